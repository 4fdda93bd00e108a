"""The engine that generates the rollouts: builds it when training starts, refreshes its weights, closes it."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raft.engines import MAX_NUM_SEQS, Completion, Engine, Sampling
from raft.train.config import RAFTConfig
from raft.train.recorder import Recorder


class Generation:
    """engine: an engine of the caller, which is not closed here. None: `attach` builds one if the method distils."""

    def __init__(self, args: RAFTConfig, engine: Engine | None, recorder: Recorder):
        self.engine = engine
        self.was_called = False
        """Whether rollouts were generated since this was last set to False."""
        self._args, self._own, self._recorder = args, engine is None, recorder

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, deepspeed: bool) -> None:
        """Builds the engine if needed and gives it the model's weights."""
        args = self._args
        if args.preset.distills and self.engine is None:
            from raft.engines import make_engine

            rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
            requests = rows * args.rollouts_per_prompt * args.steps_per_refresh
            self.engine = make_engine(
                args.rollout_engine,
                model,
                tokenizer,
                max_model_len=args.max_length,
                # Under DeepSpeed the parameters are views of DeepSpeed's own buffers.
                weights="copied" if deepspeed else args.engine_weights,
                gpu_memory_utilization=args.vllm_gpu_memory_utilization,
                max_num_seqs=min(MAX_NUM_SEQS, requests),  # more than there are would only enlarge the KV cache
                release_on_gpu=args.release_cache,
            )
        if self.engine is not None:
            self.engine.refresh()

    @property
    def name(self) -> str:
        return getattr(self.engine, "name", "an engine")

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        assert self.engine is not None
        self.was_called = True
        with self._recorder.clock.part("rollout"):
            completions = self.engine.generate(prompts, sampling)
            if self._args.release_cache:
                self.engine.release()
        self._recorder.generated(prompts, completions)
        return completions

    def refresh(self) -> None:
        if self.engine is not None:
            with self._recorder.clock.part("refresh"):
                self.engine.refresh()

    def refresh_if_given(self) -> None:
        """Refreshes an engine of the caller after the last step. One built here is closed instead."""
        if self.engine is not None and not self._own:
            self.engine.refresh()

    def close(self) -> None:
        if self._own and self.engine is not None:
            self.engine.close()
            self.engine = None
