"""The picture of a run of the losses: bars for one case, lines over N and K for a sweep. Needs matplotlib."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.common.plot import INK, MUTED, RULE, Bar, draw_bars, save, styled, write_heads
from bench.common.records import number
from bench.kernels.cases import Case
from bench.kernels.goals import full_records
from bench.kernels.providers import OURS, TOP_K, is_ours
from bench.kernels.records import by_case

COLOURS = {
    OURS: "#0a67b0",
    "torch": "#77808c",
    "torch.compile": "#3f4954",
    "trl": "#bd5200",
    "liger_jsd": "#7a4fa0",
    "liger_fused_jsd": "#b0559b",
    "liger_kl": "#2e7d5b",
}


def draw(records: Sequence[dict], path: Path) -> list[str]:
    """Writes .svg and .png beside `path` and names them."""
    cases = {case: full_records(found) for case, found in by_case(records).items()}
    cases = {case: found for case, found in cases.items() if found}
    if not cases:
        return ["none, no provider did forward and backward"]
    base, over_n, over_k = axes_of(list(cases))
    svg, png = path.with_suffix(".svg"), path.with_suffix(".png")
    with styled() as plt:
        if len(over_n) > 1 or len(over_k) > 1:
            figure = _lines(plt, cases, base, over_n, over_k)
        else:
            figure = _bars(plt, base, cases[base])
        save(plt, figure, svg, png)
    return [f"{svg}, {png.name}"]


def axes_of(cases: Sequence[Case]) -> tuple[Case, list[Case], list[Case]]:
    """The case around which most others lie, and those that differ from it in N alone and in K alone, with itself."""

    def along(base: Case, axis: str) -> list[Case]:
        same = [c for c in cases if replace(c, **{axis: getattr(base, axis)}) == base]
        return sorted(same, key=lambda c: getattr(c, axis))

    base = max(cases, key=lambda c: len(along(c, "n")) + len(along(c, "k")))
    return base, along(base, "n"), along(base, "k")


def finding(records: dict[str, dict]) -> str:
    """The title: what a reader should take away. `records`: provider -> its record of forward and backward."""
    ours = records.get(OURS)
    others = {name: r for name, r in records.items() if not is_ours(name)}
    if ours is None or not others:
        return "Distillation loss, forward and backward"
    peers = {name: r for name, r in others.items() if r["loss"] != TOP_K} or others
    best = min(peers, key=lambda name: peers[name]["ms_p50"])
    times = peers[best]["ms_p50"] / ours["ms_p50"]
    title = f"Distillation on the teacher's top-{ours['k']}: {times:.1f} times as fast as {best}"
    if "torch" in others:
        title += f", {ours['peak_mib'] / others['torch']['peak_mib']:.2f} of plain torch's memory"
    return title


def _bars(plt: Any, case: Case, records: dict[str, dict]) -> Any:
    """Times on the left, memory on the right; the fastest provider on top."""
    ordered = sorted(records.values(), key=lambda r: r["ms_p50"])
    figure, panels = plt.subplots(
        1, 2, figsize=(10, 1.9 + 0.42 * len(ordered)), sharey=True, layout="constrained", gridspec_kw={"wspace": 0.06}
    )
    floor = ordered[0]["floor_ms"]

    def bar(r: dict, key: str, low: str, high: str) -> Bar:
        parts, name = {r["provider"]: r[key]}, r["provider"]
        return Bar(name, _over(r), parts, r[low], r[high], number(r[key]), strong=name == OURS)

    for panel, unit, ends in (
        (panels[0], "time of forward + backward, ms (p50; whisker p20 to p80)", ("ms_p50", "ms_p20", "ms_p80")),
        (panels[1], "peak memory beyond the inputs, MiB", ("peak_mib", "peak_mib", "peak_mib")),
    ):
        bars = [bar(r, *ends) for r in ordered]
        longest = max(one.end for one in bars)
        draw_bars(panel, bars, COLOURS, unit, max(longest, floor) if panel is panels[0] else longest)
    panels[0].axvline(floor, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    where = (floor, len(ordered) - 0.45)
    panels[0].annotate(f"floor {number(floor)} ms", where, (4, 0), textcoords="offset points", fontsize=9)
    panels[0].set_ylim(-0.6, len(ordered) - 0.1)
    write_heads(figure, finding(records), _where(case, records))
    return figure


def _lines(plt: Any, cases: dict[Case, dict[str, dict]], base: Case, over_n: list[Case], over_k: list[Case]) -> Any:
    wanted = [
        (over_n, "n", "ms_p50", 1, "Time", "tokens N", "forward + backward, ms"),
        (over_k, "k", "ms_p50", 1, "Time", "ids kept K", "forward + backward, ms"),
        (over_n, "n", "peak_mib", 1024, "Memory", "tokens N", "peak beyond the inputs, GiB"),
    ]
    wanted = [panel for panel in wanted if len(panel[0]) > 1]
    figure, panels = plt.subplots(1, len(wanted), figsize=(4.5 * len(wanted), 4.6), layout="constrained", squeeze=False)
    names = list(dict.fromkeys(name for found in cases.values() for name in found))
    for panel, (along, axis, key, divisor, what, xlabel, ylabel) in zip(panels[0], wanted, strict=True):
        for name in names:
            points = [(getattr(c, axis), cases[c][name][key] / divisor) for c in along if name in cases[c]]
            width = 2.6 if name == OURS else 1.5
            style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": width, "label": name}
            panel.plot(*zip(*points, strict=True), color=COLOURS.get(name, MUTED), zorder=width, **style)
        if key == "ms_p50":
            points = [(getattr(c, axis), next(iter(cases[c].values()))["floor_ms"]) for c in along]
            panel.plot(*zip(*points, strict=True), color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="floor")
        panel.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=f"{what} against {axis.upper()}")
        _plain_ticks(panel, [getattr(c, axis) for c in along])
        panel.grid(True, which="major", color=RULE)
        panel.set_axisbelow(True)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    write_heads(figure, finding(cases[base]), _where(base, cases[base]))
    return figure


def _over(record: dict) -> str:
    return "top-K" if record["loss"] == TOP_K else record["loss"]


def _where(case: Case, records: dict[str, dict]) -> str:
    first = next(iter(records.values()))
    return (
        f"{first['device']}, {case}; union of the ids of 128 tokens {100 * first['union_fraction']:.0f} % of V. "
        "TRL and Liger compute a divergence over the full vocabulary."
    )


def _plain_ticks(panel: Any, xs: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    panel.set_xticks(xs, [f"{x:,}" for x in xs])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.4g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
