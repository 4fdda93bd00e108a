"""The report as one HTML file: style and figures inside, nothing loaded from anywhere, no script."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raft.report.document import Document
from raft.report.load import method_name
from raft.report.samples import RIGHT
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
    found.filters |= {"anchor": _anchor, "clip": clip, "method_name": method_name, "kind": _kind, "svg": Markup}
    found.globals |= {"RIGHT": RIGHT}
    return found


def _clean(value: Any) -> Any:
    """Models write characters that no page may hold."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _kind(part: Any) -> str:
    """The name of its class: str, list, Table, Choice and so on."""
    return type(part).__name__


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
