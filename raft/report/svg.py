"""A small chart in SVG: axes, lines, dots, bars. Colours are CSS classes, so one drawing serves light and dark pages.

Drawn by hand rather than with a plotting library: the page then follows the reader's theme, its text can be selected
and searched, and a chart costs a few kilobytes.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from raft.report.text import html_text

Point = tuple[float, float]

_CHARACTER = 6.3  # px, the mean width of a character at the label size: enough to place a legend
_MAX_POINTS = 500  # of a line; more cannot be told apart at this size


def template(name: str) -> str:
    """The text of one file of raft/report/templates."""
    return files("raft.report").joinpath("templates", name).read_text(encoding="utf-8")


def plain_number(value: float) -> str:
    """The shortest usual way to write a tick: 0.25, 3, 1,500, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.3f}".rstrip("0").rstrip(".")


@dataclass
class Axis:
    """The range of one direction and how its ticks are written."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] = ()
    format: Callable[[float], str] = plain_number

    def __post_init__(self) -> None:
        if not self.ticks:
            self.ticks = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)

    def share(self, value: float) -> float:
        """Where `value` lies between the ends, 0 to 1."""
        low, high, value = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (value - low) / (high - low)


def axis_for(
    label: str,
    values: Iterable[float],
    *,
    log: bool = False,
    include: Iterable[float] = (),
    format: Callable[[float], str] = plain_number,
    whole: bool = False,
) -> Axis:
    """An axis that holds all finite values and those in `include`, widened to round ends (or `whole`: not widened)."""
    kept = [v for v in (*values, *include) if v is not None and math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(kept), max(kept)) if kept else (0.1, 1.0)
    if log:
        low, high = low / 1.15, high * 1.15
        if high / low < 4:  # less than a labelled tick or two otherwise
            middle = math.sqrt(low * high)
            low, high = middle / 2, middle * 2
        return Axis(label, low, high, log=True, format=format)
    if low == high:
        pad = abs(low) * 0.5 or 0.5
        low, high = (low - pad if low < 0 else max(0.0, low - pad)), high + pad
    if not whole:
        step = _step(low, high)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(label, low, high, format=format)


def _step(low: float, high: float, wanted: int = 5) -> float:
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    return next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999) * power


def _ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    return [m * 10.0**e for e in exponents for m in steps if low * 0.999 <= m * 10.0**e <= high * 1.001]


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `_MAX_POINTS` of the points, evenly spread, the last one always among them."""
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    return [*points[:-1][::stride], *points[-1:]]


@dataclass
class Chart:
    """Collects marks in data coordinates; `svg()` gives the drawing.

    A style is one or more class names of templates/chart.css, for example "raft" or "raft dashed".
    """

    x: Axis
    y: Axis
    title: str
    width: int = 460
    height: int = 300
    left: int = 54
    right: int = 16
    top: int = 30
    bottom: int = 46
    grid: bool = True
    _marks: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str, str]] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        """Pixels of a point in data coordinates, held inside the frame."""
        across, up = (min(1.0, max(0.0, share)) for share in (self.x.share(x), self.y.share(y)))
        plot_width, plot_height = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * plot_width, self.top + (1 - up) * plot_height

    def line(self, points: Sequence[Point], style: str, label: str = "") -> None:
        """A line through the points; a value that is not finite, or not positive on a log axis, breaks it."""
        runs: list[list[Point]] = [[]]
        for x, y in thin(points):
            if math.isfinite(y) and (y > 0 or not self.y.log):
                runs[-1].append(self.at(x, y))
            elif runs[-1]:
                runs.append([])
        for run in runs:
            if len(run) == 1:
                self._marks.append(f'<circle class="mark {style}" cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2.5"/>')
            elif run:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
                self._marks.append(f'<path class="line {style}" d="M{path}"/>')
        if label:
            self._legend.append(("line", style, label))

    def dot(self, x: float, y: float, style: str, tip: str = "", size: float = 4) -> None:
        """A marker: a square for SFT, a diamond for the base, a circle for all others, so colour is not needed."""
        px, py = self.at(x, y)
        shape = _shape(px, py, style.split()[0], size)
        self._marks.append(f'<{shape} class="mark {style}">{_tip(tip)}</{shape.split()[0]}>')

    def whisker(self, low: float, high: float, y: float, style: str) -> None:
        """A horizontal interval with ends."""
        (x0, py), (x1, _) = self.at(low, y), self.at(high, y)
        ends = "".join(f"M{x:.1f} {py - 4:.1f}V{py + 4:.1f}" for x in (x0, x1))
        self._marks.append(f'<path class="line {style}" d="M{x0:.1f} {py:.1f}H{x1:.1f}{ends}"/>')

    def bar(self, x0: float, x1: float, y: float, style: str, tip: str = "", base: float = 0.0) -> None:
        """A rectangle from `base` to y over x0..x1, with a hairline of space to its neighbours."""
        (left, top), (right, bottom) = self.at(x0, max(y, base)), self.at(x1, min(y, base))
        size = f'width="{max(0.5, right - left - 1):.1f}" height="{max(0.0, bottom - top):.1f}"'
        self._marks.append(f'<rect class="fill {style}" x="{left + 0.5:.1f}" y="{top:.1f}" {size}>{_tip(tip)}</rect>')

    def level(self, y: float, label: str = "", style: str = "level") -> None:
        """A horizontal reference line across the frame."""
        x, py = self.at(self.x.low, y)
        self._marks.append(f'<path class="{style}" d="M{x:.1f} {py:.1f}H{self.width - self.right}"/>')
        if label:
            self._marks.append(_text(self.width - self.right - 2, py - 5, label, "note", "end"))

    def mark_x(self, x: float, label: str = "", style: str = "level") -> None:
        """A vertical reference line across the frame, its label beside it at the top."""
        px, _ = self.at(x, self.y.low)
        self._marks.append(f'<path class="{style}" d="M{px:.1f} {self.top}V{self.height - self.bottom}"/>')
        if label:
            shift, anchor = (-5, "end") if px > self.width * 0.6 else (5, "start")
            self._marks.append(_text(px + shift, self.top + 11, label, "note", anchor))

    def note(
        self, x: float, y: float, text: str, *, dx: float = 0, dy: float = 0, anchor: str = "start", style: str = "note"
    ) -> None:
        """A small label beside a point, shifted by dx, dy pixels."""
        px, py = self.at(x, y)
        self._marks.append(_text(px + dx, py + dy, text, style, anchor))

    def heading(self, text: str) -> None:
        """The panel's own title, at the top left: for small panels side by side."""
        self._marks.append(_text(self.left, 14, text, "strong", "start"))

    def legend(self, kind: str, style: str, label: str) -> None:
        """An entry for marks that bring none of their own; kind is "line", "dot" or "fill"."""
        self._legend.append((kind, style, label))

    def svg(self) -> str:
        """The `<svg>` element, with its title as the accessible name."""
        parts = [
            _open(self.width, self.height, self.title),
            *self._frame(),
            *self._marks,
            *self._legend_row(),
            "</svg>",
        ]
        return "".join(parts)

    def _frame(self) -> list[str]:
        bottom, right = self.height - self.bottom, self.width - self.right
        parts = []
        for tick in self.y.ticks:
            _, y = self.at(self.x.low, tick)
            if self.grid:
                parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{right}"/>')
            parts.append(_text(self.left - 7, y + 3.8, self.y.format(tick), "tick", "end"))
        for tick in self.x.ticks:
            x, _ = self.at(tick, self.y.low)
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
            parts.append(_text(x, bottom + 17, self.x.format(tick), "tick", "middle"))
        parts.append(f'<path class="axis" d="M{self.left} {bottom}H{right}"/>')
        if self.x.label:
            parts.append(_text((self.left + right) / 2, self.height - 7, self.x.label, "label", "middle"))
        if self.y.label:
            middle = (self.top + bottom) / 2
            turned = f'transform="rotate(-90 13 {middle:.1f})"'
            parts.append(_text(13, middle, self.y.label, "label", "middle", turned))
        return parts

    def _legend_row(self) -> list[str]:
        parts, x, y = [], float(self.left), 13.0
        for kind, style, label in self._legend:
            if kind == "line":
                parts.append(f'<path class="line {style}" d="M{x:.1f} {y - 4}h20"/>')
            elif kind == "fill":
                parts.append(f'<rect class="fill {style}" x="{x + 4:.1f}" y="{y - 9}" width="10" height="10"/>')
            else:
                shape = _shape(x + 10, y - 4, style.split()[0], 4)
                parts.append(f'<{shape} class="mark {style}"/>')
            parts.append(_text(x + 25, y, label, "label", "start"))
            x += 25 + _CHARACTER * len(label) + 16
        return parts


def bars(rows: Sequence[tuple[str, float, str, str]], title: str, *, width: int = 460, left: int = 130) -> str:
    """Horizontal bars: rows of (name, value, value as text, style), the longest as wide as the frame."""
    row_height, top = 26, 4
    longest = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    room = width - left - 12 - _CHARACTER * max((len(text) for _, _, text, _ in rows), default=0)
    height = top * 2 + row_height * len(rows)
    parts = [_open(width, height, title)]
    for i, (name, value, text, style) in enumerate(rows):
        y, length = top + i * row_height, max(1.0, room * value / longest)
        parts.append(_text(left - 8, y + 16, name, "label", "end"))
        parts.append(f'<rect class="fill {style}" x="{left}" y="{y + 4}" width="{length:.1f}" height="16" rx="1.5"/>')
        parts.append(_text(left + length + 6, y + 16, text, "tick", "start"))
    return "".join([*parts, "</svg>"])


def stacked(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], title: str, *, width: int = 960) -> str:
    """One full-width bar a row, split in shares: rows of (name, [(part, value, style)]), parts alike in every row."""
    left, row_height, top = 60, 34, 30
    height = top + row_height * len(rows) + 4
    parts = [_open(width, height, title)]
    x = float(left)
    for part, _, style in rows[0][1]:
        parts.append(f'<rect class="fill {style}" x="{x:.1f}" y="4" width="10" height="10"/>')
        parts.append(_text(x + 15, 13, part, "label", "start"))
        x += 15 + _CHARACTER * len(part) + 18
    for i, (name, shares) in enumerate(rows):
        y, x, total = top + i * row_height, float(left), sum(value for _, value, _ in shares) or 1.0
        parts.append(_text(left - 8, y + 17, name, "label", "end"))
        for part, value, style in shares:
            length = (width - left - 4) * value / total
            tip = _tip(f"{name}, {part}: {100 * value / total:.1f} %")
            size = f'width="{max(0.0, length - 1):.1f}" height="26"'
            parts.append(f'<rect class="fill {style}" x="{x:.1f}" y="{y}" {size}>{tip}</rect>')
            if length > 46:
                parts.append(_text(x + length / 2, y + 17, f"{100 * value / total:.0f} %", f"inside {style}", "middle"))
            x += length
    return "".join([*parts, "</svg>"])


def standalone(svg: str) -> str:
    """The drawing as a file of its own: name space, colours and background included."""
    size = re.sub(r".*?viewBox=\"0 0 (\d+) (\d+)\".*", r'width="\1" height="\2"', svg, count=1, flags=re.DOTALL)
    styled = svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {size} ', 1)
    head, _, body = styled.partition(">")
    background = '<rect class="surface" width="100%" height="100%"/>'
    return f"{head}><style>{template('chart.css')}</style>{background}{body}\n"


def _open(width: int, height: int, title: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{html_text(title)}">'


def _shape(x: float, y: float, method: str, size: float) -> str:
    if method == "sft":
        side = size * 1.75
        return f'rect x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"'
    if method == "base":
        reach = size * 1.35
        right, left = f"{reach:.1f}", f"{-reach:.1f}"
        return f'path d="M{x:.1f} {y - reach:.1f}l{right} {right}l{left} {right}l{left} {left}z"'
    return f'circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"'


def _text(x: float, y: float, text: str, style: str, anchor: str, extra: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{html_text(text)}</text>'


def _tip(text: str) -> str:
    return f"<title>{html_text(text)}</title>" if text else ""
