"""Evaluation of a model on items: generate answers, check them, average by suite and skill, keep every sample."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from raft.errors import InputError
from raft.evaluate import checks
from raft.progress import Progress

if TYPE_CHECKING:
    from raft.engines import Engine, Sampling

SUITES = ("domain", "general", "format")
DEFAULT_SUITE = "domain"
DEFAULT_CHECK = {"kind": "f1"}


class Sample(TypedDict):
    id: str
    suite: str
    skill: str | None
    question: str
    output: str
    finish_reason: str
    score: float
    thought: NotRequired[str]
    """The thought before the output. It is not scored."""


class Evaluation(TypedDict):
    scores: dict[str, float]
    n: dict[str, int]
    by_skill: dict[str, dict[str, float]]
    samples: list[Sample]


def evaluate(
    items: Sequence[Mapping[str, Any]],
    engine: "Engine",
    sampling: "Sampling",
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Answer every item with `engine` and score it with the item's check.

    An item is a row with "prompt" (chat messages) or "question", and optionally a suite (default "domain"), "skill",
    "check" (default token F1) and "answer" (needed by token F1 only). All items are validated before the first token.
    `batch_size` limits the items in one call of the engine (default: all in one). Item i draws from `sampling.seed` and
    i, so that answers do not depend on the batch size, except by rounding.
    `progress` shows the progress on stderr.
    """
    from raft.engines import request_seed
    from raft.rendering import chat_ids, chat_options
    from raft.rendering import output as written

    check_items(items)
    prompts = [chat_ids(engine.tokenizer, _prompt(item), **chat_options(item)) for item in items]
    seeds = [request_seed(sampling.seed, number) for number in range(len(prompts))]
    size = batch_size or len(prompts)
    completions = []
    with Progress("answer", len(prompts), "item", per_call=True, final=False, show=progress) as phase:
        for start in range(0, len(prompts), size):
            end = start + size
            batch = engine.generate(prompts[start:end], sampling, seeds=seeds[start:end])
            completions += batch
            phase.add(len(batch))
    samples = []
    for number, (item, completion) in enumerate(zip(items, completions, strict=True)):
        thought, output = written(engine.tokenizer, completion.token_ids)
        sample = Sample(
            id=str(item.get("id", number)),
            suite=item.get("suite") or DEFAULT_SUITE,
            skill=item.get("skill"),
            question=item.get("question") or _prompt(item)[-1]["content"],
            output=output,
            finish_reason=completion.finish_reason,
            score=checks.score(_check(item), output, answer=item.get("answer")),
        )
        if thought is not None:
            sample["thought"] = thought
        samples.append(sample)
    return summarize(samples)


def check_items(items: Sequence[Mapping[str, Any]], source: str = "evaluate") -> None:
    """Raise InputError, one line with `source` and the item, if an item cannot be asked or scored."""
    if not items:
        raise InputError(f"{source}: no items, expected at least one")
    for number, item in enumerate(items):
        _validate(item, f"{source}, item {str(item.get('id', number))!r}")


def summarize(samples: list[Sample]) -> Evaluation:
    """Mean scores of each suite and of each skill in it. The three known suites come first, in their order."""
    found = {sample["suite"] for sample in samples}
    suites = [suite for suite in SUITES if suite in found] + sorted(found.difference(SUITES))
    scores, n, by_skill = {}, {}, {}
    for suite in suites:
        of_suite = [sample for sample in samples if sample["suite"] == suite]
        scores[suite] = fmean(sample["score"] for sample in of_suite)
        n[suite] = len(of_suite)
        skills = sorted({sample["skill"] for sample in of_suite if sample["skill"] is not None})
        if skills:
            by_skill[suite] = {k: fmean(s["score"] for s in of_suite if s["skill"] == k) for k in skills}
    return Evaluation(scores=scores, n=n, by_skill=by_skill, samples=samples)


def _prompt(item: Mapping[str, Any]) -> list[dict[str, str]]:
    return item.get("prompt") or [{"role": "user", "content": item["question"]}]


def _check(item: Mapping[str, Any]) -> Mapping[str, Any]:
    check = item.get("check")
    return DEFAULT_CHECK if check is None else check


def _validate(item: Mapping[str, Any], where: str) -> None:
    if not item.get("prompt") and not item.get("question"):
        found = ", ".join(item) or "no fields"
        raise InputError(f"{where}: expected 'prompt' (chat messages) or 'question', found {found}")
    check = _check(item)
    checks.validate(check, where=f'{where}, field "check"')
    answer = item.get("answer")
    if checks.needs_answer(check) and not (isinstance(answer, str) and answer.strip()):
        raise InputError(f'{where}, field "answer": the check "f1" compares with it, expected a text, found {answer!r}')
