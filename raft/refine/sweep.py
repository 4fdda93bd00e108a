"""What other thresholds of the similarity would have let through, from the rows of a finished refinement."""

from collections.abc import Sequence

from raft.refine.lines import FusedRow

TAUS = tuple(tau / 100 for tau in range(50, 100, 5))
_BAR = 30  # characters


def tau_sweep(fused: Sequence[FusedRow], taus: Sequence[float] = TAUS) -> dict[str, dict[str, int]]:
    """tau -> how many rewritings are "similar" enough, and how many of those pass the rest of the floor ("pass"). A
    judge that is not asked about texts below tau may speak against some of them yet."""
    known = [(row["similarity"], row["rejected"]["rewrite"]) for row in fused if row["similarity"] is not None]
    return {
        f"{tau:g}": {
            "similar": sum(similarity >= tau for similarity, _ in known),
            "pass": sum(similarity >= tau and not set(reasons) - {"similarity"} for similarity, reasons in known),
        }
        for tau in taus
    }


def sweep_text(fused: Sequence[FusedRow], tau: float) -> str:
    """`tau_sweep` as a table, with a histogram of the similarities. tau: of the settings, which is marked."""
    known = [row["similarity"] for row in fused if row["similarity"] is not None]
    taus = sorted({*TAUS, tau})
    counts = [tau_sweep(fused, [one])[f"{one:g}"] for one in taus]
    # From each tau to the next one; those below the first are in the line above it.
    within = [a["similar"] - b["similar"] for a, b in zip(counts, [*counts[1:], {"similar": 0}], strict=True)]
    below = len(known) - counts[0]["similar"]
    most = max(below, *within, 1)
    what = "how many are similar enough at tau, and how many of these pass the rest of the floor"
    lines = [
        f"{len(known):,} rewritings of {len(fused):,} rows: {what}",
        f"{'tau':>7} {'similar':>16} {'pass':>16}   similarities from here to the next line",
        f"{'below':>7} {'':>16} {'':>16}   {_bar(below, most)}",
    ]
    for one, count, inside in zip(taus, counts, within, strict=True):
        shares = " ".join(
            f"{count[kind]:>8,} {100 * count[kind] / max(len(known), 1):5.1f} %" for kind in ("similar", "pass")
        )
        mark = "*" if one == tau else " "
        lines.append(f"{mark}{one:>6.3g} {shares}   {_bar(inside, most)}")
    return "\n".join([*lines, "* refine.tau"])


def _bar(count: int, most: int) -> str:
    return f"{'#' * -(-_BAR * count // most)} {count:,}".strip()
