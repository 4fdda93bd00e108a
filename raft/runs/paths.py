"""The paths inside a run folder."""

from pathlib import Path


class Run:
    """The paths inside one run folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.refine_dir = self.path / "refine"
        self.train_dir = self.path / "train"
        self.model_dir = self.path / "model"
        self.eval_dir = self.path / "eval"
        self.config_path = self.path / "config.yaml"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"
