"""eval_loss on rows: the evaluation of transformers.Trainer, which takes rows in place of datasets."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer
from transformers.trainer_utils import PredictionOutput

from raft.train.data import Example
from raft.train.inputs import Evaluated, Prepared, Rows, render_evaluation
from raft.train.progress import TrainingProgress


class EvaluatingTrainer(Trainer):
    """Takes rows, in memory or in a file, for `eval_dataset` and `test_dataset`."""

    prepared: Prepared
    _progress: TrainingProgress | None = None

    def evaluate(self, eval_dataset: Evaluated | None = None, *args: object, **kwargs: object) -> dict[str, float]:
        """As in transformers; eval_dataset: rows as in the constructor."""
        with self._evaluating():
            return super().evaluate(self._rendered(eval_dataset), *args, **kwargs)

    def predict(self, test_dataset: Rows, *args: object, **kwargs: object) -> PredictionOutput:
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

    def _rendered(self, dataset: Evaluated | None) -> str | list[Example] | dict[str, list[Example]] | None:
        # For several sets the Trainer calls `evaluate` again with each set: its name, or its rendered rows.
        if isinstance(self.eval_dataset, dict) and isinstance(dataset, str) and dataset in self.eval_dataset:
            return dataset
        if isinstance(dataset, list) and dataset and isinstance(dataset[0], Example):
            return dataset
        return render_evaluation(
            dataset, self.prepared.tokenizer, self.args, self.prepared.ends, self.prepared.vocabulary
        )
