"""Drawings by matplotlib: SVG with its text as text, small, the same for the same numbers.

A colour is one of the page's CSS variables (templates/chart.css), so that one drawing serves light and dark pages.
"""

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from raft.report.load import KNOWN, OTHER_STYLES
from raft.report.numbers import percent, plain_number
from raft.report.text import clean

Point = tuple[float, float]

METHODS = (*KNOWN, *(f"other{i + 1}" for i in range(OTHER_STYLES)))
PARTS = ("part1", "part2", "part3", "part4", "part5")  # of a bar; text on them is in on-part1 and so on
VARIABLES = ("surface", "ink", "muted", "rule", "axis", *METHODS, *PARTS, *(f"on-{part}" for part in PARTS))
_PLACE = "#abc0"  # matplotlib knows no variables: as a colour it is given the place of one among VARIABLES
# A shape a method, so that colour is not needed.
MARKERS = dict(zip(METHODS, "Dsopv^X*P", strict=True))
_MAX_POINTS = 500  # of a line; more cannot be told apart at this size
_TIP = "tip:"
_ROUNDED = ("d", "x", "y", "width", "height", "transform")  # attributes with coordinates


def color(variable: str) -> str:
    """For matplotlib: the colour that becomes var(--variable)."""
    return f"{_PLACE}{VARIABLES.index(variable):02x}"


def template(name: str) -> str:
    """The text of one file of raft/report/templates."""
    return files("raft.report").joinpath("templates", name).read_text(encoding="utf-8")


# Of matplotlib. Lengths in points, which are the pixels of the drawing.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": color("ink"),
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": color("axis"),
    "axes.labelcolor": color("ink"),
    "axes.labelsize": 11,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": color("rule"),
    "xtick.labelcolor": color("muted"),
    "ytick.labelcolor": color("muted"),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.major.pad": 7,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.solid_capstyle": "round",
    "lines.dashed_pattern": (3, 2.2),
}


class Drawing:
    """One pair of axes. `axes` and `canvas` are matplotlib's; `svg` is there after the `with` of `drawing`."""

    def __init__(self, canvas: Canvas):
        self.canvas = canvas
        self.axes: Axes = canvas.subplots()
        self.svg = ""

    def line(
        self, points: Sequence[Point], style: str, label: str = "", *, dashed: bool = False, width: float = 1.8
    ) -> None:
        """A line through the points; a value that is not finite, or not positive on a log axis, breaks it."""
        points = thin(points)
        is_log = self.axes.get_yscale() == "log"
        values = [y if math.isfinite(y) and (y > 0 or not is_log) else math.nan for _, y in points]
        gone = [True, *map(math.isnan, values), True]
        alone = [i for i in range(len(values)) if gone[i] and not gone[i + 1] and gone[i + 2]]
        xs, form = [x for x, _ in points], "--" if dashed else "-"
        (drawn,) = self.axes.plot(xs, values, form, color=color(style), linewidth=width, label=short(label))
        if alone:
            drawn.set(marker="o", markersize=5, markevery=alone)

    def dot(self, x: float, y: float, style: str, tip: str = "", *, size: float = 8, label: str = "") -> None:
        """A marker, `size` pixels wide; tip: what it says under the pointer."""
        (drawn,) = self.axes.plot(x, y, MARKERS[style], color=color(style), markersize=size, label=short(label))
        drawn.set(markeredgecolor=color("surface"), gid=_gid(tip))

    def box(
        self, x: float, y: float, width: float, height: float, style: str, tip: str = "", *, label: str = ""
    ) -> None:
        """A rectangle from its lower left corner on, with a hairline of space to its neighbours."""
        drawn = Rectangle((x, y), width, height, facecolor=color(style), edgecolor=color("surface"), linewidth=1)
        drawn.set(gid=_gid(tip), label=short(label))
        self.axes.add_patch(drawn)

    def note(self, x: float, y: float, text: str, *, dx: float = 0, dy: float = 0, **options: Any) -> None:
        """Small text beside a point, shifted by dx, dy pixels (up)."""
        place = {"xytext": (dx, dy), "textcoords": "offset points", "annotation_clip": False}
        self.axes.annotate(clean(text), (x, y), **{**place, "color": color("muted"), **options})

    def legend(self) -> None:
        """Of the marks that have a label, above the axes, in as many columns as have room."""
        marks, labels = self.axes.get_legend_handles_labels()
        if labels:
            widest = max(6.5 * len(label) + 44 for label in labels)
            rows = math.ceil(len(labels) / max(1, self.canvas.get_figwidth() * 72 // widest))
            columns = math.ceil(len(labels) / rows)  # rows of like length
            self.canvas.set_figheight(self.canvas.get_figheight() + 17 / 72 * (rows - 1))
            spaces = {"handlelength": 1.8, "columnspacing": 1.4, "handletextpad": 0.5, "borderaxespad": 0.2}
            self.canvas.legend(marks, labels, loc="outside upper left", ncols=columns, **spaces)


@contextmanager
def drawing(
    title: str,
    x: str = "",
    y: str = "",
    *,
    size: tuple[float, float] = (460, 300),
    log: bool = False,
    shares: str = "",
) -> Iterator[Drawing]:
    """Axes to draw on, named x and y with their units. title: what those hear who do not see it; size: in pixels;
    log: of y; shares: the axes ("x", "y" or "xy") whose values are shares, written in percent."""
    title = clean(title)
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}), warnings.catch_warnings():
        # Text is set in the reader's fonts; whether matplotlib's own has a character is of no interest.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        found = Drawing(Canvas(figsize=(size[0] / 72, size[1] / 72), layout="constrained"))
        axes = found.axes
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log:
            axes.set_yscale("log", subs=())
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            written = partial(percent, digits=0) if name in shares else plain_number
            axis.set_major_formatter(FuncFormatter(lambda value, _, written=written: written(value)))
        yield found
        _round_ends(axes)
        found.svg = _svg(found.canvas, title)


def _round_ends(axes: Axes) -> None:
    """Ends for axes that have none yet: round numbers, or on a log scale a little beyond the values."""
    if axes.get_autoscalex_on():
        ticks = _round_ticks(*axes.dataLim.intervalx)
        axes.set_xlim(ticks[0], ticks[-1])
        axes.set_xticks(ticks)
    if axes.get_autoscaley_on() and axes.get_yscale() == "linear":
        ticks = _round_ticks(*axes.dataLim.intervaly)
        axes.set_ylim(ticks[0], ticks[-1])
        axes.set_yticks(ticks)
    elif axes.get_autoscaley_on():
        low, high = axes.dataLim.intervaly
        wider = max(1.15, 2 / math.sqrt(high / low))  # far enough apart for a labelled tick or two
        axes.set_ylim(low / wider, high * wider)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 800 * low else (1.0, 2.0, 5.0)))


def _round_ticks(low: float, high: float) -> Sequence[float]:
    """From the round number below `low` to the one above `high`."""
    if not low < high:  # a single value, or none at all
        low, high = (min(low, 0.0), max(high, 0.0) or 1.0) if low == high else (0.0, 1.0)
    ticks: Sequence[float] = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return ticks


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `_MAX_POINTS` of the points, evenly spread, the last one always among them."""
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    return [*points[:-1][::stride], *points[-1:]]


def standalone(svg: str) -> str:
    """The drawing as a file of its own: name space, colours and background included."""
    size = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert size is not None  # of every drawing
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[1]}" height="{size[2]}"'
    background = '<rect width="100%" height="100%" style="fill: var(--surface)" />'
    opening, _, body = svg.removeprefix("<svg").partition(">")
    return f"{head}{opening}><style>{template('chart.css')}</style>{background}{body}\n"


def short(text: str, limit: int = 28) -> str:
    """`text` as a label, of which the data know no bounds."""
    text = clean(text)
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return f"\u2009{text}" if text.startswith("_") else text  # matplotlib leaves such labels out of a legend


def _gid(tip: str) -> str | None:
    return _TIP + clean(tip) if tip else None


def _svg(canvas: Canvas, title: str) -> str:
    written = io.StringIO()
    canvas.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    found = ET.fromstring(written.getvalue())
    box = _rounded(found.get("viewBox", ""))
    root = ET.Element("svg", {"class": "chart", "viewBox": box, "role": "img", "aria-label": title})
    for child in found:
        _copy(child, root)
    return ET.tostring(root, encoding="unicode")


def _copy(element: ET.Element, parent: ET.Element) -> None:
    """Puts a copy of the element below `parent`, without what a page has no use for: empty groups, paths without ink,
    clipping (all marks lie inside the axes), matplotlib's ids and fonts, and digits below a tenth of a pixel."""
    tag = element.tag.rpartition("}")[2]
    style = element.get("style", "")
    if tag in ("metadata", "style", "clipPath") or style == "fill: none":
        return
    kept = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    name = kept.pop("id", "")
    kept.pop("clip-path", None)
    if tag == "path" and name:
        kept["id"] = name  # of a marker, to which <use> points
    if style:
        style = re.sub(r" ?font-family: [^;]*;", "", style).replace("; stroke-dashoffset: 0", "")
        kept["style"] = re.sub(
            _PLACE + "([0-9a-f]{2})", lambda found: f"var(--{VARIABLES[int(found[1], 16)]})", style
        ).replace(": ", ":")
    if kept.get("transform", "").startswith("rotate(-0 "):
        del kept["transform"]
    kept = {name: _rounded(value) if name in _ROUNDED else value for name, value in kept.items()}
    tip = name.removeprefix(_TIP) if name.startswith(_TIP) else ""
    if tag == "g" and not kept and not tip:
        copy = parent
    else:
        copy = ET.SubElement(parent, tag, kept)
        copy.text = (element.text or "").strip()
    if tip:
        ET.SubElement(copy, "title").text = tip
    for child in element:
        _copy(child, copy)


def _rounded(value: str) -> str:
    value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", value).strip() if value[:1] == "M" else value
