"""The figures of a report: which numbers go into which chart, with a caption that states what is to be seen."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from raft.report.load import RunData, Training, method_name, ordered
from raft.report.svg import Axis, Chart, Point, axis_for, bars, plain_number, stacked
from raft.report.tables import distance, duration, interval_of, percent

PHASES = ("rollout", "teacher", "forward_backward", "optimizer", "refresh")


@dataclass(frozen=True)
class Figure:
    name: str  # file name of the drawing beside report.md
    title: str
    svg: str
    caption: str
    wide: bool = False


def style_of(method: str) -> str:
    return method if method in ("base", "sft", "raft") else "other"


def slug(name: str) -> str:
    """`name` as part of a file name; a suite is named by the data, so it may hold anything."""
    return re.sub(r"[^\w-]+", "-", name)


def score_figures(data: RunData) -> list[Figure]:
    """One panel a suite: the score of every model with its interval."""
    figures = []
    methods = list(data.scores)
    for suite in data.suites:
        y = Axis("", len(methods) - 0.5, -0.5, ticks=range(len(methods)), format=lambda i: method_name(methods[int(i)]))
        # A little wider than 0 to 100, so that a marker at an end touches no label.
        x = Axis("", -0.04, 1.04, ticks=(0, 0.25, 0.5, 0.75, 1), format=lambda v: percent(v, 0))
        height = 54 + 28 * len(methods)
        chart = Chart(x, y, f"{suite} scores in percent", 330, height, left=46, right=46, top=26, bottom=28)
        values = []
        for i, method in enumerate(methods):
            value = data.scores[method].get(suite)
            if value is None:
                continue
            if interval := interval_of(data, method, suite):
                chart.whisker(*interval, i, style_of(method))
            chart.dot(value, i, style_of(method), f"{method_name(method)}: {percent(value)} %", size=4.5)
            chart.note(x.high, i, percent(value), dx=44, dy=4, anchor="end", style="tick strong")
            values.append(f"{method_name(method)} {percent(value)}")
        chart.heading(suite.capitalize())
        caption = f"{', '.join(values)} %."
        figures.append(Figure(f"scores-{slug(suite)}", f"{suite.capitalize()} scores", chart.svg(), caption))
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
    every = [v for passes in paths.values() for v in passes]
    x = axis_for("domain, %", [v["domain"] for v in every], include=(0.0,), format=lambda v: percent(v, 0))
    y = axis_for("general, %", [v["general"] for v in every], include=(0.0, 1.0), format=lambda v: percent(v, 0))
    chart = Chart(x, y, "Trade-off of domain against general score during training", height=320)
    parts = []
    for method, passes in paths.items():
        style, name = style_of(method), method_name(method)
        chart.line([(v["domain"], v["general"]) for v in passes], style, name)
        for v in passes[1:]:
            chart.dot(v["domain"], v["general"], style, f"{name}, step {v['step']}: {_place(v)}", size=3.2)
        last = passes[-1]
        dx, anchor = (8, "start") if x.share(last["domain"]) < 0.75 else (4, "end")
        dy = 18 if y.share(last["general"]) > 0.5 else -8
        chart.note(last["domain"], last["general"], f"step {last['step']}", dx=dx, dy=dy, anchor=anchor)
        parts.append(f"{name} ends at {_place(last)}")
    first = next((passes[0] for passes in paths.values() if passes[0].get("step") == 0), None)
    if first:
        chart.dot(first["domain"], first["general"], "base", "Base model, step 0", size=4.5)
        chart.legend("dot", "base", "Base (step 0)")
        parts.insert(0, f"The base model starts at {_place(first)}")
    caption = f"Each marker is a pass over the validation items; up and to the right is better. {'; '.join(parts)}."
    return Figure("trade-off", "Domain against general score during training", chart.svg(), caption)


def losses(data: RunData) -> Figure | None:
    """Supervised loss of every method, and the distillation loss of those that have one."""
    series = []
    for method, training in data.training.items():
        sft, kl = _series(training, "loss_sft"), _series(training, "loss_kl")
        if sft:
            series.append((sft, style_of(method), f"{method_name(method)} L_SFT"))
        if kl:
            series.append((kl, f"{style_of(method)} dashed", f"{method_name(method)} L_KL"))
    if not series:
        return None
    values = [y for points, _, _ in series for _, y in points if y > 0]
    log = bool(values) and max(values) > 30 * min(values)
    x = axis_for("step", [step for points, _, _ in series for step, _ in points], whole=True)
    y = axis_for(
        "loss, nats a token", [y for points, _, _ in series for _, y in points], log=log, include=() if log else (0.0,)
    )
    chart = Chart(x, y, "Training losses by step")
    for points, style, label in series:
        chart.line(points, f"{style} thin", label)
    ends = ", ".join(f"{label} {points[0][1]:.3g} to {points[-1][1]:.3g}" for points, _, label in series)
    scale = " The scale is logarithmic." if log else ""
    return Figure("losses", "Training losses", chart.svg(), f"First to last logged step: {ends}.{scale}")


def balance(data: RunData) -> Figure | None:
    """Cross-entropy over divergence, before and after the weight lambda (the paper's Fig. 2a)."""
    for method in reversed(ordered(data.training)):
        lines = data.training[method].metrics
        rows = [m for m in lines if _positive(m.get("loss_sft")) and _positive(m.get("loss_kl"))]
        if not rows:
            continue
        raw = [(m["step"], m["loss_sft"] / m["loss_kl"]) for m in rows]
        balanced = [
            (m["step"], ratio / m["lambda"])
            for m, (_, ratio) in zip(rows, raw, strict=True)
            if _positive(m.get("lambda"))
        ]
        x = axis_for("step", [step for step, _ in raw], whole=True)
        y = axis_for("ratio, no unit", [v for _, v in (*raw, *balanced)], log=True, include=(1.0,))
        chart = Chart(x, y, "Ratio of cross-entropy to divergence by step")
        chart.level(1.0)
        chart.line(raw, "base thin", "L_SFT / L_KL")
        if balanced:
            chart.line(balanced, f"{style_of(method)} thin", "L_SFT / (λ · L_KL)")
        caption = f"Median ratio without the weight λ {_median(raw):.3g}"
        caption += f", with it {_median(balanced):.3g}; 1 (dotted) is balance." if balanced else "."
        return Figure("balance", "Balance of the two losses", chart.svg(), caption)
    return None


def weight_lambda(data: RunData) -> Figure | None:
    """lambda by step."""
    series = {method: _series(training, "lambda") for method, training in data.training.items()}
    series = {method: points for method, points in series.items() if points}
    if not series:
        return None
    values = [v for points in series.values() for _, v in points]
    log = min(values) > 0 and max(values) > 30 * min(values)
    x = axis_for("step", [step for points in series.values() for step, _ in points], whole=True)
    y = axis_for("λ, no unit", values, log=log, include=() if log else (0.0,))
    chart = Chart(x, y, "Weight lambda of the distillation loss by step")
    for method, points in series.items():
        chart.line(points, style_of(method), method_name(method))
    ranges = [f"{method_name(m)}: {min(v for _, v in p):.3g} to {max(v for _, v in p):.3g}" for m, p in series.items()]
    caption = f"Range over training, {'; '.join(ranges)}."
    return Figure("lambda", "Weight λ of the distillation loss", chart.svg(), caption)


# What else a line of metrics.jsonl has: field, title, axis with its unit, whether it is a share.
_SIGNALS = (
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
        series = {method: _series(training, field) for method, training in data.training.items()}
        series = {method: points for method, points in series.items() if points}
        if not series:
            continue
        values = [v for points in series.values() for _, v in points]
        log = not share and min(values) > 0 and max(values) > 30 * min(values)
        x = axis_for("step", [step for points in series.values() for step, _ in points], whole=True)
        written = _whole_percent if share else plain_number
        y = axis_for(unit, values, log=log, include=() if log else (0.0,), format=written)
        chart = Chart(x, y, f"{title} by step", left=60)
        ranges = []
        for method, points in series.items():
            chart.line(points, f"{style_of(method)} thin", method_name(method))
            ends = [f"{percent(v)} %" if share else f"{v:.3g}" for _, v in (points[0], points[-1])]
            ranges.append(f"{method_name(method)} {ends[0]} to {ends[1]}")
        caption = f"First to last logged step: {'; '.join(ranges)}.{' The scale is logarithmic.' if log else ''}"
        found.append(Figure(slug(field), title, chart.svg(), caption))
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
    layers = sorted({layer for points in series.values() for layer, _ in points})
    stride = math.ceil(len(layers) / 12)
    x = Axis("layer", layers[0] - 0.5, layers[-1] + 0.5, ticks=layers[::stride], format=lambda v: f"{v:.0f}")
    y = axis_for("||w − w₀|| / ||w₀||", [v for points in series.values() for _, v in points], include=(0.0,))
    chart = Chart(x, y, "Relative L2 distance of each layer's weights from the base model", left=60)
    for method, points in series.items():
        chart.line(points, f"{style_of(method)} thin")
        chart.legend("dot", style_of(method), method_name(method))
        for layer, value in points:
            chart.dot(layer, value, style_of(method), f"{method_name(method)}, layer {layer}: {distance(value)}")
    means = {method: data.weight_distance[method].get("mean") for method in series}
    texts = [f"{method_name(method)} {distance(mean)}" for method, mean in means.items() if _finite(mean)]
    caption = f"Mean over layers: {', '.join(texts)}."
    return Figure("weight-distance", "Distance of the weights from the base model", chart.svg(), caption)


def similarities(data: RunData) -> Figure | None:
    """Histogram of the similarity of answer and rewriting, with the threshold."""
    values = [(row["similarity"], bool(row.get("kept"))) for row in data.fused if _finite(row.get("similarity"))]
    if not values:
        return None
    tau = (data.config.get("refine") or {}).get("tau")
    width = 0.025
    low = math.floor(min(min(v for v, _ in values), tau or 1.0) / 0.1 + 1e-9) * 0.1
    bins: dict[int, list[int]] = {}  # number of the bin -> rows dropped, rows kept
    for value, is_kept in values:
        bins.setdefault(math.floor(min(value, 1.0 - 1e-9) / width + 1e-9), [0, 0])[int(is_kept)] += 1
    y = axis_for("rows", [sum(counts) for counts in bins.values()], include=(0,))
    chart = Chart(axis_for("cosine similarity", [low, 1.0], whole=True), y, "Similarity of rewritten and raw answers")
    for number, (dropped, kept) in sorted(bins.items()):
        left, right = number * width, (number + 1) * width
        chart.bar(left, right, dropped, "base", f"{left:.3f} to {right:.3f}: {dropped} not kept")
        chart.bar(left, right, dropped + kept, "raft", f"{left:.3f} to {right:.3f}: {kept} kept", base=dropped)
    chart.legend("fill", "raft", "kept")
    chart.legend("fill", "base", "raw answer stays")
    if tau is not None:
        chart.mark_x(tau, f"τ = {tau:g}")
    total = sum(is_kept for _, is_kept in values)
    share = f"{total:,} of {len(values):,} rewritings ({percent(total / len(values))} %)"
    caption = f"{share} were kept: good enough, and fused."
    return Figure("similarity", "Similarity of rewritten and raw answers", chart.svg(), caption)


def step_time(data: RunData) -> Figure | None:
    """Where the seconds of training went, as shares."""
    rows = []
    for method, training in data.training.items():
        sums = {phase: 0.0 for phase in PHASES}
        for line in training.metrics:
            for phase, value in (line.get("seconds") or {}).items():
                if _finite(value):
                    sums[phase] = sums.get(phase, 0.0) + value
        if sum(sums.values()) > 0:
            rows.append((method, sums))
    if not rows:
        return None
    phases = list(dict.fromkeys(phase for _, sums in rows for phase in sums))
    shares = [
        (method_name(method), [(_words(p), sums.get(p, 0.0), f"part{min(i, 4) + 1}") for i, p in enumerate(phases)])
        for method, sums in rows
    ]
    parts = []
    for method, sums in rows:
        total = sum(sums.values())
        largest = max(sums, key=lambda phase: sums[phase])
        share = f"{_words(largest)} ({percent(sums[largest] / total)} %)"
        parts.append(f"{method_name(method)}: {duration(total)} logged, most in {share}")
    drawn = stacked(shares, "Shares of training time")
    return Figure("step-time", "Where training time goes", drawn, f"{'; '.join(parts)}.", wide=True)


def stages(data: RunData) -> Figure | None:
    """Seconds of each stage as bars."""
    seconds = {k: v for k, v in (data.summary.get("seconds") or {}).items() if _finite(v) and k != "total"}
    if not seconds:
        return None
    rows = [(_words(stage), value, duration(value), "part2") for stage, value in seconds.items()]
    longest = max(seconds, key=lambda stage: seconds[stage])
    caption = f"The longest stage is {_words(longest)}, {duration(seconds[longest])}."
    return Figure("stages", "Seconds per stage", bars(rows, "Seconds per stage"), caption)


def _whole_percent(value: float) -> str:
    return percent(value, 0)


def _series(training: Training, key: str) -> list[Point]:
    return [(m["step"], m[key]) for m in training.metrics if _finite(m.get(key)) and _finite(m.get("step"))]


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _median(points: Sequence[Point]) -> float:
    values = sorted(v for _, v in points)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _place(scores: dict[str, float]) -> str:
    return f"domain {percent(scores['domain'])} %, general {percent(scores['general'])} %"


def _words(name: str) -> str:
    return name.replace("_", " ")
