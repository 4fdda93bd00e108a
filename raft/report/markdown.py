"""The same report in Markdown, its figures as SVG files in DIR/report/."""

from pathlib import Path

from raft.evaluate.results import Sample
from raft.report.document import Document, Part, RowExample, Section
from raft.report.figures import Figure
from raft.report.load import method_name
from raft.report.plots import standalone
from raft.report.samples import RIGHT, Choice
from raft.report.tables import Cell, Table
from raft.report.text import clip, markdown_text

FOLDER = "report"  # of the figures, beside report.md


def render(document: Document) -> str:
    facts = "\n".join(f"- **{markdown_text(name)}**: {markdown_text(value)}" for name, value in document.facts)
    findings = "\n".join(f"- {markdown_text(text)}" for text in document.findings)
    parts = [f"# {markdown_text(document.title)}", facts, findings, *map(_section, document.sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def figure_files(document: Document, folder: Path) -> dict[Path, str]:
    """Path -> content of every drawing that `render` links."""
    parts = [
        part for section in document.sections for group in section.parts if isinstance(group, list) for part in group
    ]
    return {folder / FOLDER / f"{part.name}.svg": standalone(part.svg) for part in parts if isinstance(part, Figure)}


def _section(section: Section) -> str:
    return "\n\n".join([f"## {markdown_text(section.title)}", *map(_part, section.parts)])


def _part(part: Part | Figure) -> str:
    match part:
        case str():
            return markdown_text(part)
        case Table():
            return _table(part)
        case Figure():
            return _figure(part)
        case Choice():
            return _choice(part)
        case RowExample():
            return _example(part)
    return "\n\n".join(map(_part, part))


def _table(table: Table) -> str:
    header = [markdown_text(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in table.header]
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    lines = [header, rule, *([_cell(cell) for cell in row] for row in table.rows)]
    return f"{markdown_text(table.caption)}\n\n" + "\n".join(_line(line) for line in lines)


def _cell(cell: Cell) -> str:
    return markdown_text(cell.text) + (f"<br>({markdown_text(cell.note)})" if cell.note else "")


def _figure(figure: Figure) -> str:
    title, caption = markdown_text(figure.title), markdown_text(figure.caption)
    return f"![{title}]({FOLDER}/{figure.name}.svg)\n\n**{title}.** {caption}"


def _choice(choice: Choice) -> str:
    title = f"### {markdown_text(choice.title)} ({choice.found:,} of {choice.of:,} items)"
    if not choice.shown:
        return title
    methods = list(choice.shown[0].answers)
    lines = [["Item", "Question", *(markdown_text(method_name(m)) for m in methods)], ["---"] * (len(methods) + 2)]
    for pair in choice.shown:
        skill = f"{pair.suite}, {pair.skill}" if pair.skill else pair.suite
        answers = [_answer(sample) for sample in pair.answers.values()]
        lines.append([markdown_text(skill.replace("_", " ")), markdown_text(clip(pair.question)), *answers])
    return title + "\n\n" + "\n".join(map(_line, lines))


def _answer(sample: Sample) -> str:
    mark = "✓" if sample["score"] >= RIGHT else "✗"
    return f"{mark} {markdown_text(clip(str(sample['output'])))}"


def _example(example: RowExample) -> str:
    question, note = markdown_text(clip(example.question)), markdown_text(example.note)
    lines = [f"- **Row {markdown_text(example.id)}**: {question} ({note})"]
    lines += [f"  - {markdown_text(name)}: {markdown_text(clip(text))}" for name, text in example.stages]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
