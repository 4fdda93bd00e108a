"""Progress of a stage of the refinement: rows, tokens, and the share of rows that are still in."""

from raft.progress import Progress


class StageProgress(Progress):
    """Rows of one stage. per_call: whether one answer of the model finishes a row; a fusion may take several."""

    def __init__(self, stage: str, total: int, *, per_call: bool = False, show: bool = True):
        super().__init__(f"refine: {stage}", total, per_call=per_call, show=show)
        self._tokens = 0

    def add_rows(self, rows: int, *, fresh: int = 0, tokens: int = 0, kept: int = 0) -> None:
        """rows: how many more are done. fresh: those of them that no earlier run has done. tokens: generated for them.
        kept: those of all rows done so far that are still in."""
        self._tokens += tokens
        speed = [f"{self._tokens / self.seconds:,.0f} tokens/s"] if self._tokens else []
        share = f"kept {100 * kept / max(self._done + rows, 1):.1f} %"
        self.add(rows, fresh=fresh, figures=[share, *speed])
