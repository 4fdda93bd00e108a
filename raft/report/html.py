"""The report as one HTML file: style and figures inside, nothing loaded from anywhere, no script."""

from collections.abc import Callable, Iterable
from string import Template
from typing import Any

from raft.report.document import Document, Example, Section
from raft.report.figures import Figure, style_of
from raft.report.load import method_name
from raft.report.samples import RIGHT, Choice, Comparison
from raft.report.svg import template
from raft.report.tables import Cell, Table
from raft.report.text import clip, html_text


def render(document: Document) -> str:
    return Template(template("page.html")).substitute(
        title=html_text(document.title),
        style=template("chart.css") + template("page.css"),
        facts="".join(f"<div><dt>{html_text(k)}</dt><dd>{html_text(v)}</dd></div>" for k, v in document.facts),
        findings=_wrap("ul", document.findings, lambda text: f"<li>{html_text(text)}</li>", ' class="findings"'),
        contents="".join(f'<a href="#{_anchor(s)}">{html_text(s.title)}</a>' for s in document.sections),
        sections="".join(map(_section, document.sections)),
    )


def _section(section: Section) -> str:
    wide = [figure for figure in section.figures if figure.wide]
    narrow = [figure for figure in section.figures if not figure.wide]
    body = "".join(
        [
            *(f"<p>{html_text(text)}</p>" for text in section.text),
            *map(_table, section.tables),
            _wrap("div", [*map(_figure, narrow), *map(_table, section.beside)], str, ' class="figures"'),
            *map(_figure, wide),
            *map(_table, section.below),
            *map(_choice, section.choices),
            _wrap("div", section.examples, _example, ' class="examples"'),
        ]
    )
    if section.folded:
        body = f"<details><summary>Show</summary>{body}</details>"
    return f'<section id="{_anchor(section)}"><h2>{html_text(section.title)}</h2>{body}</section>'


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_class(cell, table, i)}>{_content(cell)}</th>' for i, cell in enumerate(table.header)
    )
    rows = "".join(
        f'<tr{_row_class(row)}><th scope="row"{_class(row[0], table, 0)}>{_content(row[0])}</th>'
        + "".join(_data_cell(cell, table, i) for i, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in table.rows
    )
    caption, name = html_text(table.caption), table.name
    return (
        f'<figure class="table"><div class="scroll" role="region" tabindex="0" aria-labelledby="about-{name}">'
        f'<table id="table-{name}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<figcaption id="about-{name}">{caption}</figcaption></figure>'
    )


def _data_cell(cell: Cell, table: Table, column: int) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{_class(cell, table, column)}{value}>{_content(cell)}</td>"


def _class(cell: Cell, table: Table, column: int) -> str:
    is_number = any(row[column].is_number for row in table.rows if column < len(row))
    names = " ".join(name for name in ("num" if is_number else "", cell.style) if name)
    return f' class="{names}"' if names else ""


def _row_class(row: list[Cell]) -> str:
    marks = {"difference": "apart", "total": "apart", "suite": "group" if row[0].text else ""}
    name = marks.get(row[0].style, "")
    return f' class="{name}"' if name else ""


def _content(cell: Cell) -> str:
    note = f'<span class="note">{html_text(cell.note)}</span>' if cell.note else ""
    return html_text(cell.text) + note


def _figure(figure: Figure) -> str:
    title = "" if figure.name.startswith("scores-") else f"<strong>{html_text(figure.title)}.</strong> "
    wide = " wide" if figure.wide else ""
    small = " panel" if figure.name.startswith("scores-") else ""
    caption = f"<figcaption>{title}{html_text(figure.caption)}</figcaption>"
    return f'<figure class="card{wide}{small}">{figure.svg}{caption}</figure>'


def _choice(choice: Choice) -> str:
    counted = f"{choice.found:,} of {choice.of:,} items"
    heading = f'<h3>{html_text(choice.title)} <span class="note">{counted}</span></h3>'
    return heading + "".join(map(_comparison, choice.shown))


def _comparison(pair: Comparison) -> str:
    skill = f"{pair.suite}, {pair.skill.replace('_', ' ')}" if pair.skill else pair.suite
    expected = f'<p class="expected">Reference answer: {html_text(clip(pair.expected))}</p>' if pair.expected else ""
    answers = []
    for method, sample in pair.answers.items():
        verdict = "right" if sample["score"] >= RIGHT else "wrong"
        mark = f'<span class="verdict {verdict}">{"✓" if verdict == "right" else "✗"} {verdict}</span>'
        answers.append(_answer(method_name(method), str(sample["output"]), style_of(method), mark))
    return _sample(skill, pair.question, expected, answers)


def _example(example: Example) -> str:
    note = f'<p class="expected">{html_text(example.note)}</p>'
    return _sample(f"row {example.id}", example.question, note, [_answer(name, text) for name, text in example.stages])


def _sample(tag: str, question: str, note: str, answers: list[str]) -> str:
    return (
        f'<article class="sample"><p class="question"><span class="tag">{html_text(tag)}</span>'
        f'{html_text(clip(question))}</p>{note}<div class="answers">{"".join(answers)}</div></article>'
    )


def _answer(name: str, text: str, style: str = "", mark: str = "") -> str:
    output = html_text(clip(text)) or '<span class="note">(empty)</span>'
    return (
        f'<div class="answer {style}"><span class="who">{html_text(name)}</span>{mark}'
        f'<div class="output">{output}</div></div>'
    )


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _wrap(tag: str, items: Iterable[Any], render_one: Callable[[Any], str], attributes: str = "") -> str:
    inside = "".join(map(render_one, items))
    return f"<{tag}{attributes}>{inside}</{tag}>" if inside else ""
