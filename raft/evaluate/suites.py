"""Evaluation of a model on items: generate answers, check them, average by suite and skill, keep every sample."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypedDict

from raft.errors import InputError
from raft.evaluate import checks
from raft.evaluate.checks import Check
from raft.evaluate.results import Evaluation, Sample
from raft.progress import Progress
from raft.prompts import Message

if TYPE_CHECKING:
    from raft.engines import Engine, Sampling

SUITES = ("domain", "general", "format")
DEFAULT_SUITE = "domain"
DEFAULT_CHECK: Check = {"kind": "f1"}


class Item(TypedDict, total=False):
    """A test item: a row with what says how its answer is scored, such as a line of data/test.jsonl."""

    id: str
    suite: str  # what is measured; absent: DEFAULT_SUITE
    skill: str | None  # a part of the suite
    question: str
    prompt: list[Message]  # the chat that is asked; absent: the question alone
    check: Check  # absent: DEFAULT_CHECK
    answer: str  # the reference, which some checks need


def evaluate(
    items: Sequence[Mapping[str, Any]],
    engine: "Engine",
    sampling: "Sampling",
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Answer every item with `engine` and score it with the item's check.

    An item has the fields of `Item`, at least "prompt" or "question"; others, such as "tools", are for the chat
    template. All items are validated before the first token.
    `batch_size` limits the items in one call of the engine (default: all in one). Item i draws from `sampling.seed` and
    i, so that answers do not depend on the batch size, except by rounding.
    `progress` shows the progress on stderr.
    """
    from raft.engines import request_seed
    from raft.rendering import chat_ids, chat_options
    from raft.rendering import output as written

    checked = check_items(items)
    prompts = [
        chat_ids(engine.tokenizer, item["prompt"], **chat_options(row))
        for item, row in zip(checked, items, strict=True)
    ]
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
    for item, completion in zip(checked, completions, strict=True):
        thought, output = written(engine.tokenizer, completion.token_ids)
        sample = Sample(
            id=item["id"],
            suite=item["suite"],
            skill=item["skill"],
            question=item["question"],
            output=output,
            finish_reason=completion.finish_reason,
            score=checks.score(item["check"], output, answer=item.get("answer")),
        )
        if thought is not None:
            sample["thought"] = thought
        samples.append(sample)
    return summarize(samples)


def check_items(items: Sequence[Mapping[str, Any]], source: str = "evaluate") -> list[Item]:
    """The items with the defaults of what they left out.

    InputError, one line with `source` and the item, if an item cannot be asked or scored.
    """
    if not items:
        raise InputError(f"{source}: no items, expected at least one")
    return [_checked(item, str(item.get("id", number)), source) for number, item in enumerate(items)]


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


def _checked(item: Mapping[str, Any], name: str, source: str) -> Item:
    where = f"{source}, item {name!r}"
    if not item.get("prompt") and not item.get("question"):
        found = ", ".join(item) or "no fields"
        raise InputError(f"{where}: expected 'prompt' (chat messages) or 'question', found {found}")
    check = DEFAULT_CHECK if item.get("check") is None else item["check"]
    checks.validate(check, where=f'{where}, field "check"')
    answer = item.get("answer")
    if checks.needs_answer(check) and not (isinstance(answer, str) and answer.strip()):
        raise InputError(f'{where}, field "answer": the check "f1" compares with it, expected a text, found {answer!r}')
    prompt = item.get("prompt") or [Message(role="user", content=item["question"])]
    checked = Item(
        id=name,
        suite=item.get("suite") or DEFAULT_SUITE,
        skill=item.get("skill"),
        question=item.get("question") or prompt[-1]["content"],
        prompt=prompt,
        check=check,
    )
    if answer is not None:
        checked["answer"] = answer
    return checked
