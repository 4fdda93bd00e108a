"""Stacked bars as SVG, written by hand: no plotting library, and the same records give the same file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.plot import INK, MUTED, RULE
from bench.records import number

COLOURS = {
    "rollout": "#0a67b0",
    "teacher": "#7a4fa0",
    "forward_backward": "#bd5200",
    "generate": "#0a67b0",
    "optimizer": "#2e7d5b",
    "refresh": "#c2185b",
    "other": "#aab2bd",
}
WIDTH, LEFT, RIGHT, TOP, ROW = 980, 210, 150, 92, 40  # px; RIGHT holds the figures behind a bar
CHARACTER = 6.6  # px, mean width at the size of the labels
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Bar:
    label: str
    under: str  # a second, smaller line
    parts: Mapping[str, float]
    low: float  # ends of the whisker
    high: float
    note: str  # behind the bar
    strong: bool = False


def stacked(bars: Sequence[Bar], title: str, subtitle: str, unit: str) -> str:
    height = TOP + ROW * len(bars) + 46
    longest = max([max(bar.high, sum(bar.parts.values())) for bar in bars], default=0.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / longest
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 28, title, 16, INK, weight=600),
        _text(16, 48, subtitle, 12, MUTED),
        *_legend([name for name in COLOURS if any(name in bar.parts for bar in bars)]),
        *_axis(longest, scale, height, unit),
    ]
    for i, bar in enumerate(bars):
        drawn += _bar(bar, TOP + ROW * i, scale)
    return "\n".join([*drawn, "</svg>"]) + "\n"


def draw(bars: Sequence[Bar], title: str, subtitle: str, unit: str, path: Path) -> str:
    """Writes `path` with the suffix .svg and names it."""
    target = path.with_suffix(".svg")
    target.write_text(stacked(bars, title, subtitle, unit), encoding="utf-8")
    return str(target)


def _bar(bar: Bar, y: float, scale: float) -> list[str]:
    drawn = [
        _text(LEFT - 10, y + 15, bar.label, 13, INK, anchor="end", weight=600 if bar.strong else 400),
        _text(LEFT - 10, y + 29, bar.under, 10.5, MUTED, anchor="end"),
    ]
    x = float(LEFT)
    for name, value in bar.parts.items():
        width = value * scale
        if width < 0.05:  # not even a line
            continue
        tip = f"<title>{escape(f'{bar.label}: {name} {number(value)}')}</title>"
        drawn.append(
            f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="24" fill="{COLOURS[name]}">{tip}</rect>'
        )
        inside = number(value)
        if width > CHARACTER * (len(inside) + 1):
            drawn.append(_text(x + width / 2, y + 20, inside, 11, "#ffffff", anchor="middle"))
        x += width
    low, high = (LEFT + end * scale for end in (bar.low, bar.high))
    whisker = f"M{low:.1f} {y + 32}H{high:.1f}M{low:.1f} {y + 29.5}v5M{high:.1f} {y + 29.5}v5"
    drawn.append(f'<path d="{whisker}" stroke="{INK}" stroke-width="1" fill="none"/>')
    drawn.append(_text(max(x, high) + 8, y + 20, bar.note, 11.5, INK))
    return drawn


def _legend(names: Sequence[str]) -> list[str]:
    drawn, x = [], float(LEFT)
    for name in names:
        label = name.replace("_", " + ")
        drawn.append(f'<rect x="{x:.1f}" y="63" width="11" height="11" fill="{COLOURS[name]}"/>')
        drawn.append(_text(x + 16, 73, label, 12, INK))
        x += 16 + CHARACTER * len(label) + 20
    return drawn


def _axis(longest: float, scale: float, height: int, unit: str) -> list[str]:
    step = next(
        s for power in range(-4, 12) for s in (10.0**power, 2 * 10.0**power, 5 * 10.0**power) if longest / s <= 6
    )
    bottom = height - 36
    drawn = []
    for i in range(int(longest / step + 1e-9) + 1):
        x = LEFT + i * step * scale
        drawn.append(f'<path d="M{x:.1f} {TOP - 4}V{bottom}" stroke="{RULE}" stroke-width="1"/>')
        drawn.append(_text(x, bottom + 14, number(i * step) if i else "0", 11, MUTED, anchor="middle"))
    return [*drawn, _text(LEFT, bottom + 30, unit, 11, MUTED)]


def _text(x: float, y: float, text: str, size: float, colour: str, anchor: str = "start", weight: int = 400) -> str:
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{place}{bold}>{escape(text)}</text>'
