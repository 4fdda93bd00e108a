"""The report as one HTML file: style and figures inside, nothing loaded from anywhere, no script."""

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raft.report.document import Document, RowExample
from raft.report.figures import Figure
from raft.report.load import method_name
from raft.report.samples import RIGHT, Choice
from raft.report.tables import Table
from raft.report.text import clean, clip


def render(document: Document) -> str:
    return environment().get_template("page.html").render(document=document)


def environment() -> Environment:
    """Of raft/report/templates. All text is escaped; the filter `svg` lets our own drawings through."""
    found = Environment(
        loader=PackageLoader("raft.report"),
        autoescape=True,
        finalize=_clean,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {"anchor": _anchor, "clip": clip, "method_name": method_name, "svg": Markup}
    found.globals |= {"RIGHT": RIGHT}
    kinds = {"table": Table, "figure": Figure, "choice": Choice, "row_example": RowExample}
    found.tests |= {name: _is(kind) for name, kind in kinds.items()}
    return found


def _clean(value: object) -> object:
    """Models write characters that no page may hold."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _is(kind: type) -> Callable[[object], bool]:
    return lambda part: isinstance(part, kind)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
