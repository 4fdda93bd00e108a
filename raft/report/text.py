"""Making text safe to print. What a model wrote may hold markup, control characters or half surrogates."""

import html
import re

_LIMIT = 600  # characters of one answer that a report shows
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# These change the direction or the place of the text around them.
_INVISIBLE = re.compile(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """`text` without characters that no page may hold or that would reorder it."""
    return _INVISIBLE.sub("", _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")))


def clip(text: str) -> str:
    return text if len(text) <= _LIMIT else f"{text[:_LIMIT]} … ({len(text):,} characters)"


# Markup anywhere in a line, and what makes a heading or a list at its start. Dots and dashes stay: 58.5, not 58\.5.
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$]|^(?:[#=]|[-+](?= )))")


def markdown_text(text: str) -> str:
    """For a line or a table cell: markup is escaped, a line break becomes `<br>`, and no address becomes a link."""
    escaped = _MARKDOWN.sub(r"\\\1", html.escape(clean(text), quote=False))
    linkless = escaped.replace("://", "&#58;//").replace("@", "&#64;").replace("www", "ww&#119;")
    return "<br>".join(line.strip() for line in linkless.split("\n"))
