"""What other thresholds of the similarity would have let through, from the rows of a finished refinement."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from raft.refine.lines import FusedRow

TAUS = tuple(tau / 100 for tau in range(50, 100, 5))
_BAR = 30  # characters


class Similarities:
    """Of the rewritings of rows that are added one by one: nine bytes each."""

    def __init__(self, fused: Iterable[FusedRow] = ()):
        self.rows = 0
        self.values = array("d")
        self._passes_rest = bytearray()  # of the floor
        for row in fused:
            self.add(row)

    def add(self, row: FusedRow) -> None:
        self.rows += 1
        if row["similarity"] is not None:
            self.values.append(row["similarity"])
            self._passes_rest.append(not set(row["rejected"]["rewrite"]) - {"similarity"})

    def sweep(self, taus: Sequence[float] = TAUS) -> dict[str, dict[str, int]]:
        """tau -> how many rewritings are "similar" enough, and how many of those pass the rest of the floor ("pass").
        A judge that is not asked about texts below tau may speak against some of them yet."""
        values, passes_rest = np.array(self.values), np.array(self._passes_rest, dtype=bool)
        return {
            f"{tau:g}": {"similar": int((values >= tau).sum()), "pass": int(((values >= tau) & passes_rest).sum())}
            for tau in taus
        }


def sweep_text(fused: Iterable[FusedRow], tau: float) -> str:
    """The sweep as a table, with a histogram of the similarities. tau: of the settings, which is marked."""
    found = Similarities(fused)
    known = found.values
    taus = sorted({*TAUS, tau})
    counts = [found.sweep([one])[f"{one:g}"] for one in taus]
    # From each tau to the next one; those below the first are in the line above it.
    within = [a["similar"] - b["similar"] for a, b in zip(counts, [*counts[1:], {"similar": 0}], strict=True)]
    below = len(known) - counts[0]["similar"]
    most = max(below, *within, 1)
    what = "how many are similar enough at tau, and how many of these pass the rest of the floor"
    lines = [
        f"{len(known):,} rewritings of {found.rows:,} rows: {what}",
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
