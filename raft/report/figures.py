"""The figures of a report: which numbers go into which drawing, with a caption that states what is to be seen."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from matplotlib.ticker import MaxNLocator

from raft.report.estimates import Estimates
from raft.report.load import RunData, Training, method_name, ordered
from raft.report.numbers import brief, distance, duration, percent
from raft.report.plots import PARTS, Drawing, Point, color, drawing, short
from raft.train.lines import ValidationLine

Line = tuple[list[Point], str, bool]  # its points, style, and whether it is dashed
PHASES = ("rollout", "teacher", "forward_backward", "optimizer", "refresh")


@dataclass(frozen=True)
class Figure:
    name: str  # file name of the drawing beside report.md
    title: str
    svg: str
    caption: str
    panel: bool = False  # a small one of several side by side, which brings its own title


def slug(name: str) -> str:
    """`name` as part of a file name; a suite is named by the data, so it may hold anything."""
    return re.sub(r"[^\w-]+", "-", name)


def score_figures(found: Estimates, name: str = "scores") -> list[Figure]:
    """One panel a suite: the score of every model with its interval."""
    figures = []
    styles = found.runs[0].styles
    rows = {method: row for row, method in enumerate(found.methods)}
    for suite in found.suites:
        scores = {method: score for method in rows if (score := found.scores.get((method, suite)))}
        title = f"{suite} scores in percent"
        with drawing(title, size=(280, 54 + 28 * len(rows)), shares="x") as drawn:
            axes = drawn.axes
            for method, score in scores.items():
                row, style = rows[method], styles[method]
                if score.interval:
                    low, high = score.interval
                    ends = [low, low, math.nan, low, high, math.nan, high, high]
                    heights = [row - 0.15, row + 0.15, math.nan, row, row, math.nan, row - 0.15, row + 0.15]
                    axes.plot(ends, heights, color=color(style), linewidth=1.8)
                drawn.dot(score.value, row, style, f"{method_name(method)}: {percent(score.value)} %", size=9)
                at_the_end = ("axes fraction", "data")
                text = percent(score.value)
                drawn.note(1, row, text, dx=8, xycoords=at_the_end, color=color("ink"), va="center")
            axes.set_title(short(suite.capitalize()))
            # A little wider than 0 to 100, so that a marker at an end touches no label.
            axes.set_xlim(-0.04, 1.04)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_yticks(list(rows.values()), [short(method_name(method), 18) for method in rows])
        values = ", ".join(f"{method_name(method)} {percent(score.value)}" for method, score in scores.items())
        figures.append(
            Figure(f"{name}-{slug(suite)}", f"{suite.capitalize()} scores", drawn.svg, f"{values} %.", panel=True)
        )
    return figures


def trade_off(data: RunData) -> Figure | None:
    """Domain against general score on the validation items, pass by pass."""
    paths = {}
    for method, training in data.training.items():
        passes = [v for v in training.validation if _finite(v.get("domain")) and _finite(v.get("general"))]
        if len(passes) > 1:
            paths[method] = passes
    if not paths:
        return None
    title = "Trade-off of domain against general score during training"
    parts = []
    with drawing(title, "domain, %", "general, %", size=(460, 320), shares="xy") as drawn:
        drawn.axes.update_datalim([(0, 0), (0, 1)])
        widest = max(v["domain"] for passes in paths.values() for v in passes)
        for method, passes in paths.items():
            style, name = data.styles[method], method_name(method)
            drawn.line([(v["domain"], v["general"]) for v in passes], style, name)
            for v in passes[1:]:
                drawn.dot(v["domain"], v["general"], style, f"{name}, step {v['step']}: {_place(v)}", size=6.5)
            last = passes[-1]
            dx, side = (7, "left") if last["domain"] < 0.75 * widest else (4, "right")
            dy = -16 if last["general"] > 0.5 else 6
            drawn.note(last["domain"], last["general"], f"step {last['step']}", dx=dx, dy=dy, ha=side)
            parts.append(f"{name} ends at {_place(last)}")
        first = next((passes[0] for passes in paths.values() if passes[0].get("step") == 0), None)
        if first:
            tip, label = "Base model, step 0", "Base (step 0)"
            drawn.dot(first["domain"], first["general"], "base", tip, size=9, label=label)
            parts.insert(0, f"The base model starts at {_place(first)}")
        drawn.legend()
    caption = f"Each marker is a pass over the validation items; up and to the right is better. {'; '.join(parts)}."
    return Figure("trade-off", "Domain against general score during training", drawn.svg, caption)


def losses(data: RunData) -> Figure | None:
    """Supervised loss of every method, and the distillation loss of those that have one."""
    series: dict[str, Line] = {}
    for method, training in data.training.items():
        for field, sign in (("loss_sft", "L_SFT"), ("loss_kl", "L_KL")):
            if points := _series(training, field):
                series[f"{method_name(method)} {sign}"] = points, data.styles[method], field == "loss_kl"
    # A divergence may be 0 where teacher and student agree: the other steps still want a logarithmic scale.
    return _by_step("losses", "Training losses", "loss, nats a token", series, least=0) if series else None


def balance(data: RunData) -> Figure | None:
    """Cross-entropy over divergence, before and after the weight lambda (the paper's Fig. 2a)."""
    for method in reversed(ordered(data.training)):
        rows = [
            (m, sft / kl)
            for m in data.training[method].metrics
            if _positive(sft := m.get("loss_sft")) and _positive(kl := m.get("loss_kl"))
        ]
        if not rows:
            continue
        raw = [(m["step"], ratio) for m, ratio in rows]
        balanced = [(m["step"], ratio / weight) for m, ratio in rows if _positive(weight := m.get("lambda"))]
        with drawing("Ratio of cross-entropy to divergence by step", "step", "ratio, no unit", log=True) as drawn:
            drawn.axes.axhline(1, color=color("muted"), linewidth=1, linestyle=":")
            drawn.line(raw, "base", "L_SFT / L_KL", width=1.4)
            if balanced:
                drawn.line(balanced, data.styles[method], "L_SFT / (λ · L_KL)", width=1.4)
            drawn.legend()
        caption = f"Median ratio without the weight λ {brief(_median(raw))}"
        caption += f", with it {brief(_median(balanced))}; 1 (dotted) is balance." if balanced else "."
        return Figure("balance", "Balance of the two losses", drawn.svg, caption)
    return None


# What else a line of metrics.jsonl has: field, title, axis with its unit, whether it is a share.
_SIGNALS = (
    ("lambda", "Weight λ of the distillation loss", "λ, no unit", False),
    ("learning_rate", "Learning rate", "learning rate", False),
    ("grad_norm", "Norm of the gradient, before clipping", "L2 norm", False),
    ("rollout_length", "Length of the rollouts", "tokens, mean", False),
    ("rollout_truncated", "Rollouts cut at the limit", "%", True),
    ("student_entropy", "Entropy of the student on the teacher's tokens", "nats a token", False),
    ("tokens_per_second", "Throughput", "tokens a second", False),
)


def signals(data: RunData) -> list[Figure]:
    """Small charts of a training by step, each where a method has logged it."""
    found = []
    for field, title, unit, share in _SIGNALS:
        series: dict[str, Line] = {
            method_name(method): (points, data.styles[method], False)
            for method, training in data.training.items()
            if (points := _series(training, field))
        }
        if series:
            found.append(_by_step(field, title, unit, series, share=share))
    return found


def weight_distance(data: RunData) -> Figure | None:
    """Relative L2 distance from the base model by layer (the paper's Fig. 3)."""
    series = {
        method: sorted((int(layer), value) for layer, value in moved.get("layers", {}).items())
        for method, moved in data.weight_distance.items()
    }
    series = {method: points for method, points in series.items() if points}
    if not series:
        return None
    title = "Relative L2 distance of each layer's weights from the base model"
    with drawing(title, "layer", "||w − w₀|| / ||w₀||") as drawn:
        _from_zero(drawn)
        for method, points in series.items():
            style = data.styles[method]
            drawn.line([(float(layer), value) for layer, value in points], style, width=1.4)
            for i, (layer, value) in enumerate(points):
                tip = f"{method_name(method)}, layer {layer}: {distance(value)}"
                drawn.dot(layer, value, style, tip, label="" if i else method_name(method))
        layers = [layer for points in series.values() for layer, _ in points]
        drawn.axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
        drawn.axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        drawn.legend()
    means = {method: data.weight_distance[method].get("mean") for method in series}
    texts = [f"{method_name(method)} {distance(mean)}" for method, mean in means.items() if _finite(mean)]
    caption = f"Mean over layers: {', '.join(texts)}."
    return Figure("weight-distance", "Distance of the weights from the base model", drawn.svg, caption)


def similarities(data: RunData) -> Figure | None:
    """Histogram of the similarity of answer and rewriting, with the threshold."""
    values = [(value, bool(row.get("kept"))) for row in data.fused if _finite(value := row.get("similarity"))]
    if not values:
        return None
    tau = (data.config.get("refine") or {}).get("tau")
    width = 0.025
    low = math.floor(min(min(v for v, _ in values), tau or 1.0) / 0.1 + 1e-9) * 0.1
    bins: dict[int, list[int]] = {}  # number of the bin -> rows dropped, rows kept
    for value, is_kept in values:
        bins.setdefault(math.floor(min(value, 1.0 - 1e-9) / width + 1e-9), [0, 0])[int(is_kept)] += 1
    title = "Similarity of rewritten and raw answers"
    with drawing(title, "cosine similarity", "rows") as drawn:
        labels = ("kept", "raw answer stays")
        for number, (dropped, kept) in sorted(bins.items()):
            left, place = number * width, f"{number * width:.3f} to {(number + 1) * width:.3f}"
            drawn.box(left, dropped, width, kept, "raft", f"{place}: {kept} kept", label=labels[0])
            drawn.box(left, 0, width, dropped, "base", f"{place}: {dropped} not kept", label=labels[1])
            labels = ("", "")
        drawn.axes.set_xlim(low, 1)
        if tau is not None:
            drawn.axes.axvline(tau, color=color("muted"), linewidth=1, linestyle=":")
            drawn.note(tau, 1, f"τ = {tau:g}", dx=-5, dy=-10, ha="right", xycoords=("data", "axes fraction"))
        drawn.legend()
    total = sum(is_kept for _, is_kept in values)
    share = f"{total:,} of {len(values):,} rewritings ({percent(total / len(values))} %)"
    return Figure("similarity", title, drawn.svg, f"{share} were kept: good enough, and fused.")


def step_time(data: RunData) -> Figure | None:
    """Where the seconds of training went, as shares."""
    seconds = {}
    for method, training in data.training.items():
        sums = {phase: 0.0 for phase in PHASES}
        for line in training.metrics:
            for phase, value in (line.get("seconds") or {}).items():
                if _finite(value):
                    sums[phase] = sums.get(phase, 0.0) + value
        if sum(sums.values()) > 0:
            seconds[method] = sums
    if not seconds:
        return None
    phases = list(dict.fromkeys(phase for sums in seconds.values() for phase in sums))
    parts = []
    with drawing("Shares of training time", "%", size=(460, 75 + 40 * len(seconds)), shares="x") as drawn:
        _rows(drawn, [method_name(method) for method in seconds])
        for row, (method, sums) in enumerate(seconds.items()):
            total, left = sum(sums.values()), 0.0
            for i, phase in enumerate(phases):
                share = sums.get(phase, 0.0) / total
                part = PARTS[min(i, len(PARTS) - 1)]
                tip = f"{method_name(method)}, {_words(phase)}: {percent(share)} %"
                drawn.box(left, row - 0.35, share, 0.7, part, tip, label="" if row else _words(phase))
                if share > 0.1:
                    ink = color(f"on-{part}")
                    text = f"{percent(share, 0)} %"
                    drawn.note(left + share / 2, row, text, ha="center", va="center", color=ink, fontweight="bold")
                left += share
            largest = max(sums, key=lambda phase: sums[phase])
            share_of_largest = f"{_words(largest)} ({percent(sums[largest] / total)} %)"
            parts.append(f"{method_name(method)}: {duration(total)} logged, most in {share_of_largest}")
        drawn.axes.set_xlim(0, 1)
        drawn.legend()
    return Figure("step-time", "Where training time goes", drawn.svg, f"{'; '.join(parts)}.")


def stages(data: RunData) -> Figure | None:
    """Seconds of each stage as bars."""
    seconds = {k: v for k, v in (data.summary.get("seconds") or {}).items() if _finite(v) and k != "total"}
    if not seconds:
        return None
    with drawing("Seconds per stage", size=(460, 16 + 26 * len(seconds))) as drawn:
        _rows(drawn, [_words(stage) for stage in seconds])
        for row, value in enumerate(seconds.values()):
            drawn.box(0, row - 0.32, value, 0.64, "part2")
            drawn.note(value, row, duration(value), dx=6, va="center")
        drawn.axes.xaxis.set_visible(False)
        drawn.axes.spines.bottom.set_visible(False)
    longest = max(seconds, key=lambda stage: seconds[stage])
    caption = f"The longest stage is {_words(longest)}, {duration(seconds[longest])}."
    return Figure("stages", "Seconds per stage", drawn.svg, caption)


def _by_step(
    name: str, title: str, unit: str, series: Mapping[str, Line], *, share: bool = False, least: float = -math.inf
) -> Figure:
    """series: label -> its line; share: the values are shares; least: values up to it do not choose the scale."""
    values = [y for points, _, _ in series.values() for _, y in points if y > least]
    log = not share and bool(values) and min(values) > 0 and max(values) > 30 * min(values)
    with drawing(f"{title} by step", "step", unit, log=log, shares="y" if share else "") as drawn:
        _from_zero(drawn, log)
        for label, (points, style, dashed) in series.items():
            drawn.line(points, style, label, dashed=dashed, width=1.4)
        drawn.legend()
    ends = []
    for label, (points, _, _) in series.items():
        first, last = (f"{percent(value)} %" if share else brief(value) for _, value in (points[0], points[-1]))
        ends.append(f"{label} {first} to {last}")
    scale = " The scale is logarithmic." if log else ""
    return Figure(name, title, drawn.svg, f"First to last logged step: {'; '.join(ends)}.{scale}")


def _rows(drawn: Drawing, names: list[str]) -> None:
    """A row a name, from the top, with no grid."""
    drawn.axes.set_yticks(range(len(names)), [short(name, 24) for name in names], color=color("ink"))
    drawn.axes.set_ylim(len(names) - 0.5, -0.5)
    drawn.axes.grid(False)


def _from_zero(drawn: Drawing, log: bool = False) -> None:
    if not log:
        drawn.axes.update_datalim([(0, 0)], updatex=False)


def _series(training: Training, key: str) -> list[Point]:
    return [(m["step"], value) for m in training.metrics if _finite(value := m.get(key)) and _finite(m.get("step"))]


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> TypeGuard[float]:
    return _finite(value) and value > 0


def _median(points: Sequence[Point]) -> float:
    return statistics.median(v for _, v in points)


def _place(scores: ValidationLine) -> str:
    return f"domain {percent(scores['domain'])} %, general {percent(scores['general'])} %"


def _words(name: str) -> str:
    return name.replace("_", " ")
