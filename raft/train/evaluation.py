"""eval_loss on rows: the evaluation of transformers.Trainer, which takes rows in place of datasets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer

from raft.train.data import Example
from raft.train.inputs import Prepared, render_evaluation
from raft.train.progress import TrainingProgress


class EvaluatingTrainer(Trainer):
    """Takes rows, in memory or in a file, for `eval_dataset` and `test_dataset`."""

    prepared: Prepared
    _progress: TrainingProgress | None = None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers; eval_dataset: rows as in the constructor."""
        with self._evaluating():
            return super().evaluate(self._rendered(eval_dataset), *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, metrics only; test_dataset: rows as in the constructor."""
        with self._evaluating():
            return super().predict(self._rendered(test_dataset), *args, **kwargs)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Ends the progress bar also after an error, since the Trainer does not report errors to callbacks."""
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.end_evaluation()

    def _rendered(self, dataset: Any) -> Any:
        # For several sets the Trainer calls `evaluate` again with each set: its name, or its rendered rows.
        if isinstance(self.eval_dataset, dict) and isinstance(dataset, str) and dataset in self.eval_dataset:
            return dataset
        if isinstance(dataset, list) and dataset and isinstance(dataset[0], Example):
            return dataset
        return render_evaluation(
            dataset, self.prepared.tokenizer, self.args, self.prepared.ends, self.prepared.vocabulary
        )
