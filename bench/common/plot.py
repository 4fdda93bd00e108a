"""Pictures by matplotlib: the style of all of them, and stacked bars. The same records give the same file."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common.records import number

INK, MUTED, RULE = "#1b2027", "#5a6472", "#e2e6eb"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "svg.hashsalt": "bench",  # without it every file has other names inside
}
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
PARTS = {
    "rollout": "#0a67b0",
    "teacher": "#7a4fa0",
    "forward_backward": "#bd5200",
    "generate": "#0a67b0",
    "optimizer": "#2e7d5b",
    "refresh": "#c2185b",
    "other": "#aab2bd",
}


@dataclass(frozen=True)
class Bar:
    label: str
    under: str  # a second line of the label
    parts: Mapping[str, float]  # from left to right; each name has a colour
    low: float  # ends of the whisker
    high: float
    note: str  # behind the bar
    strong: bool = False

    @property
    def end(self) -> float:
        return max(self.high, sum(self.parts.values()))


@contextmanager
def styled(**changes: Any) -> Iterator[Any]:
    """Gives pyplot with our style. ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE | changes):
        yield pyplot


def save(pyplot: Any, figure: Any, *paths: Path) -> None:
    """Writes a figure to each path, .svg or .png, and closes it."""
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata, facecolor="white")
    pyplot.close(figure)


def write_heads(figure: Any, title: str, where: str) -> None:
    """What a reader should take away goes above the panels, what was measured below them."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    wrapped = textwrap.fill(where, int(14.5 * figure.get_figwidth()))
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8.5, color=MUTED)


def draw_bars(panel: Any, bars: Sequence[Bar], colours: Mapping[str, str], unit: str, longest: float) -> None:
    """Horizontal bars, the first one on top. A part that is too short to be seen is not drawn."""
    for y, bar in enumerate(reversed(bars)):
        left = 0.0
        for name, value in bar.parts.items():
            if value > 1e-4 * longest:
                panel.barh(y, value, left=left, color=colours.get(name, MUTED), height=0.62)
            if len(bar.parts) > 1 and value > 0.011 * (len(number(value)) + 1) * longest:  # its number has room
                panel.text(left + value / 2, y, number(value), color="white", ha="center", va="center", fontsize=8)
            left += value
        if bar.high > bar.low:
            panel.errorbar(bar.low, y - 0.4, xerr=[[0], [bar.high - bar.low]], ecolor=INK, elinewidth=1, capsize=2)
        panel.annotate(bar.note, (bar.end, y), (6, 0), **BESIDE)
    panel.set_xlim(0, 1.2 * longest)
    panel.set_xlabel(unit)
    panel.xaxis.grid(True, color=RULE)
    panel.set_axisbelow(True)
    panel.set_yticks(range(len(bars)), [f"{bar.label}\n{bar.under}" for bar in reversed(bars)])
    # A panel that shares its axis with the one on its left has no labels.
    for tick, bar in zip(panel.get_yticklabels(), reversed(bars), strict=False):
        tick.set(fontsize=9, fontweight="bold" if bar.strong else "normal")


def draw_stacked(bars: Sequence[Bar], title: str, where: str, unit: str, path: Path) -> str:
    """Writes `path` with the suffix .svg and names it. The file holds its text as text."""
    target = path.with_suffix(".svg")
    with styled(**{"svg.fonttype": "none"}) as pyplot:
        save(pyplot, stacked(pyplot, bars, title, where, unit), target)
    return str(target)


def stacked(pyplot: Any, bars: Sequence[Bar], title: str, where: str, unit: str) -> Any:
    figure, panel = pyplot.subplots(figsize=(10, 1.9 + 0.42 * len(bars)), layout="constrained")
    draw_bars(panel, bars, PARTS, unit, max((bar.end for bar in bars), default=0.0) or 1.0)
    named = [name for name in PARTS if any(name in bar.parts for bar in bars)]
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=PARTS[name]) for name in named]
    labels = [name.replace("_", " + ") for name in named]
    panel.legend(handles, labels, ncols=len(named), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)
    write_heads(figure, title, where)
    return figure
