"""All metrics of one model, with every sample, in eval/NAME.json of the run folder.

Each part is written as soon as it is done, so a killed evaluation continues with the next one.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raft.digest import json_digest
from raft.evaluate.kept import kept_result
from raft.models import load_model, load_tokenizer
from raft.models.fingerprint import fingerprint
from raft.progress import Progress, say
from raft.prompts import Message
from raft.real.data import Data
from raft.real.general import ifeval_functions, score_ifeval
from raft.real.measures import measure
from raft.real.medquad import Item
from raft.real.results import Answer, ArcChoice, DomainAnswer, DomainChoice, Evaluation, IFEvalAnswer, Samples
from raft.real.scores import metrics
from raft.refine.embed import Embedder
from raft.rendering import chat_ids, output
from raft.runs import Run, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raft.engines import Engine

# First tokens of an answer that count for the choice and for the likelihood. They are enough to show the topic; scoring
# 2,000 whole answers, of 130 tokens on average, would take most of an evaluation's time.
CHOICE_TOKENS = 48
IFEVAL_TOKENS = 256
MAX_MODEL_LEN = 2048


def evaluate(
    model: "Model",
    data: Data,
    run_dir: str | Path,
    name: str,
    *,
    embedder: Embedder,
    max_tokens: int = 160,
    ifeval_tokens: int = IFEVAL_TOKENS,
    seed: int = 0,
) -> Evaluation:
    """All metrics of the model, kept in eval/NAME.json and read from there for the same settings. Closes the model.

    `max_tokens`: limit of an answer to a domain question; `ifeval_tokens`: of one to IFEval's. All answers are greedy:
    `seed` is recorded, without effect.
    The process should hold no other engine.
    """
    path = Run(run_dir).eval_dir / f"{name}.json"
    settings: dict[str, str | int] = {
        "data_seed": data.seed,
        "seed": seed,
        "engine": model.engine_kind,
        "embedder": embedder.name,
        "max_tokens": max_tokens,
        "choice_tokens": CHOICE_TOKENS,
        "ifeval_tokens": ifeval_tokens,
        "items": digest(data),
    }
    weights = fingerprint(model.folder)
    kept: Evaluation | None = kept_result(path, {"fingerprint": weights, "settings": settings})
    result: Evaluation = kept or {
        "model": str(model.folder),
        "fingerprint": weights,
        "settings": settings,
        "engine": None,
        "seconds": {},
        "samples": {},
    }
    parts: dict[str, Callable[[], Samples]] = {
        "domain_answers": lambda: {"domain_answers": _answers(model, data, embedder, max_tokens)},
        "ifeval": lambda: {"ifeval": _ifeval(model, data, ifeval_tokens)},
        "domain_choice": lambda: {"domain_choice": _domain_choice(model, data)},
        "arc": lambda: {"arc": _arc(model, data)},
    }
    try:
        for part, work in parts.items():
            if part in result["samples"]:
                continue
            if part in ("domain_answers", "ifeval") and model.starting is None:
                model.engine  # noqa: B018  # started here, outside the time of the first answers
            started = time.monotonic()
            result["samples"].update(work())
            result["seconds"][part] = round(time.monotonic() - started, 1)
            if model.starting is not None:
                result["engine"] = model.engine.name
                result["seconds"]["engine"] = model.starting
            write_json(path, result)
            say(f"      {name}, {part}: {result['seconds'][part]:.0f} s")
    finally:
        model.close()
    scores, n = metrics(result["samples"])
    if result.get("metrics") != scores:
        result["n"], result["metrics"] = n, scores
        write_json(path, result)
    return result


class Model:
    """One copy of the weights, for the engine and for likelihoods. Both are created on first use."""

    def __init__(self, folder: str | Path, engine_kind: str = "auto"):
        self.folder, self.engine_kind = folder, engine_kind
        self.starting: float | None = None  # seconds that the engine took to start

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self.folder)

    @cached_property
    def weights(self) -> "PreTrainedModel":
        import torch

        # float32 on a CPU, where it is the fastest, whatever dtype the checkpoint has.
        on_gpu = torch.cuda.is_available()
        model = load_model(self.folder, dtype=None if on_gpu else torch.float32)
        return model.to("cuda" if on_gpu else "cpu").eval()

    @cached_property
    def engine(self) -> "Engine":
        from raft.engines import make_engine

        started = time.monotonic()
        engine = make_engine(self.engine_kind, self.weights, self.tokenizer, max_model_len=MAX_MODEL_LEN)
        self.starting = round(time.monotonic() - started, 1)
        return engine

    def release(self) -> None:
        """Free the memory of the engine's cache, if there is an engine."""
        if self.starting is not None:
            self.engine.release()

    def close(self) -> None:
        if self.starting is not None:
            self.engine.close()


def _chat(question: str) -> list[Message]:
    return [Message(role="user", content=question)]


def _generate(model: Model, questions: Sequence[str], max_tokens: int, label: str) -> list[Answer]:
    """Greedy answers."""
    from raft.engines import Sampling

    prompts = [chat_ids(model.tokenizer, _chat(question)) for question in questions]
    with Progress(f"evaluate: {label}", len(prompts), "answer", per_call=True) as phase:
        completions = model.engine.generate(prompts, Sampling(temperature=0.0, max_tokens=max_tokens))
        phase.add(len(prompts))
    made: list[Answer] = []
    for completion in completions:
        thought, text = output(model.tokenizer, completion.token_ids)
        answer = Answer(output=text, finish_reason=completion.finish_reason)
        made.append(answer if thought is None else {**answer, "thought": thought})
    return made


def likelihoods(
    model: Model, asked: Sequence[tuple[str, Sequence[str]]], label: str, limit: int | None
) -> list[list[float]]:
    """Mean log p per token of each question's texts, -inf for a text without tokens: it is never chosen.

    limit: number of first tokens of a text that count; None: all.
    """
    from raft.evaluate.likelihood import log_likelihoods

    model.release()
    pairs = [(question, text) for question, texts in asked for text in texts]
    with Progress(label, len(pairs), "text", per_call=True) as phase:
        chats = [_chat(question) for question, _ in pairs]
        found = log_likelihoods(model.weights, model.tokenizer, chats, [t for _, t in pairs], max_tokens=limit)
        phase.add(len(pairs))
    values = iter(-math.inf if value is None else value for value in found)
    return [[next(values) for _ in texts] for _, texts in asked]


def _domain(data: Data) -> list[tuple[str, Item]]:
    return [
        (s, item)
        for s, items in (("rephrased", data.medquad.rephrased), ("unseen", data.medquad.unseen))
        for item in items
    ]


def _answers(model: Model, data: Data, embedder: Embedder, max_tokens: int) -> list[DomainAnswer]:
    items = _domain(data)
    answers = _generate(model, [item.question for _, item in items], max_tokens, "domain answers")
    with Progress("evaluate: embeddings", 2 * len(items), "text", per_call=True, final=False) as phase:
        found = measure([a["output"] for a in answers], [item.answer for _, item in items], embedder)
        phase.add(2 * len(items))
    return [
        {"set": s, "id": item.id, "question": item.question, "reference": item.answer, **answer, **measures}
        for (s, item), answer, measures in zip(items, answers, found, strict=True)
    ]


def _domain_choice(model: Model, data: Data) -> list[DomainChoice]:
    items = _domain(data)
    asked = [(item.question, (item.answer, *item.wrong)) for _, item in items]
    found = likelihoods(model, asked, "evaluate: domain choice", CHOICE_TOKENS)
    return [
        {
            "set": s,
            "id": item.id,
            "loglik": values[0],
            "wrong_loglik": values[1:],
            "choice": float(values[0] > max(values[1:])) if item.wrong else None,
        }
        for (s, item), values in zip(items, found, strict=True)
    ]


def _arc(model: Model, data: Data) -> list[ArcChoice]:
    found = likelihoods(model, [(item.question, item.choices) for item in data.arc], "evaluate: ARC-Easy", None)
    samples = []
    for item, values in zip(data.arc, found, strict=True):
        chosen = max(range(len(values)), key=values.__getitem__)
        score = float(chosen == item.answer)
        samples.append(
            ArcChoice(id=item.id, question=item.question, loglik=values, chosen=chosen, answer=item.answer, score=score)
        )
    return samples


def _ifeval(model: Model, data: Data, max_tokens: int) -> list[IFEvalAnswer]:
    functions = ifeval_functions(data.folder)
    answers = _generate(model, [item["prompt"] for item in data.ifeval], max_tokens, "IFEval")
    return [
        {
            "id": str(item["key"]),
            "instructions": item["instruction_id_list"],
            "prompt": item["prompt"],
            **answer,
            **score_ifeval(functions, item, answer["output"]),
        }
        for item, answer in zip(data.ifeval, answers, strict=True)
    ]


def digest(data: Data) -> str:
    """Hash of all items that are asked."""
    domain = [asdict(item) for _, item in _domain(data)]
    return json_digest([domain, [asdict(item) for item in data.arc], data.ifeval])
