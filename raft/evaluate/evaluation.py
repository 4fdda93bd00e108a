"""`raft eval`: scores one model on one data file, writes the result to the run folder and prints the scores."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from raft.digest import json_digest
from raft.errors import ConfigError, InputError, ModelError
from raft.evaluate.kept import kept_result
from raft.evaluate.results import Identity, Result
from raft.evaluate.suites import check_items, evaluate
from raft.models import check_model, load_tokenizer
from raft.models.fingerprint import fingerprint
from raft.rows import Row, read_rows
from raft.runs import Run, read_json, write_json
from raft.settings import Config, Plan
from raft.stats.retention import retention

log = logging.getLogger(__name__)


def evaluate_run(plan: Plan, name: str = "model", *, base: str | Path | None = None) -> Result:
    """Answer the plan's rows with its model and score the answers.

    Writes eval/NAME.json: the result of `evaluate` with the model, data, settings and seconds. With `base`, a model to
    compare with, it also writes the base's result to eval/base.json, the retention to the model's result, and the
    distance between the weights of both to eval/weight_distance.json. An earlier result of the base with the same items
    and settings is reused. Prints the table of scores and returns the result.
    """
    config, run, path, data_path, items = plan.config, plan.run, plan.model, plan.data, plan.rows
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "weight_distance":
        raise ConfigError(f"name: expected letters, digits, '.', '-' or '_', found {name!r}")
    if base is not None and name == "base":
        raise ConfigError("name: 'base' is the name of the base model's own result, choose another")
    check_items(items, data_path)
    base_path = None if base is None else check_model(base)

    if name == "base":
        _check_base(config, path)
    _check_lengths(config, path, items, data_path)

    results: dict[str, Result] = {}
    if base_path is not None:
        results["base"] = _base(config, run, base_path, items, data_path)
    result = results[name] = _evaluate_model(config, path, items, data_path, _identity(config, path, items))
    trained = trained_items(run, config, items, data_path)
    if trained:
        result["trained_items"] = trained
        log.warning(
            "%s: %d of %d items ask what the training rows ask: their scores say what was learned, not what the model "
            "does with new questions",
            data_path,
            len(trained),
            len(items),
        )
    if base_path is not None:
        result["retention"] = retention(result["scores"], results["base"]["scores"])
        _write_distance(run, name, base_path, path)
    write_json(run.eval_dir / f"{name}.json", result)
    print(score_table(results))
    return result


def score_table(results: Mapping[str, Result]) -> str:
    """Scores in percent, one line per model, with the retention if it is known."""
    suites = list(dict.fromkeys(suite for result in results.values() for suite in result["scores"]))
    n = next(iter(results.values()))["n"]
    header = ["", *(f"{suite} (n={n.get(suite, 0)})" for suite in suites)]
    lines = [header]
    for name, result in results.items():
        cells = [f"{100 * result['scores'][suite]:.1f} %" for suite in suites]
        lines.append([name, *cells])
        if kept := result.get("retention"):
            lines.append(["  retention", *(f"{100 * kept[suite]:.1f} %" if suite in kept else "-" for suite in suites)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


# Fields of an item that determine its prompt and its score.
_ASKED = ("id", "suite", "skill", "prompt", "answer", "check", "tools", "chat_template_kwargs")


def trained_items(run: Run, config: Config, items: Sequence[Row], data_path: str | Path) -> list[str]:
    """Ids of the items whose question is in the training rows, as far as the run knows these rows."""
    asked: set[str] = set()
    for path in (run.refine_dir / "fused.jsonl", *([Path(config.data)] if config.data else [])):
        if (path.is_file() or path.is_dir()) and path.resolve() != Path(data_path).resolve():
            asked.update(row["question"].strip() for row in read_rows(path, need_answer=False))
    return [item["id"] for item in items if item["question"].strip() in asked]


def _check_base(config: Config, path: str) -> None:
    """Refuse the name "base" for any model but the one that the run starts from: reports call that one "base"."""
    if config.model is not None and fingerprint(path) != fingerprint(config.model):
        raise ConfigError(
            f"name: 'base' is the name of the model that the run starts from ({config.model}), found {path}; give "
            "another with --name"
        )


def _base(config: Config, run: Run, path: str, items: Sequence[Row], data_path: str | Path) -> Result:
    """The result of the base model; an earlier one with the same model, items and settings is reused."""
    file, identity = run.eval_dir / "base.json", _identity(config, path, items)
    known: Result | None = kept_result(file, identity)
    if known:
        log.info("%s: evaluated before, on the same items with the same settings: taken from there", file)
        return known
    result = _evaluate_model(config, path, items, data_path, identity)
    write_json(file, result)
    return result


def _identity(config: Config, path: str, items: Sequence[Row]) -> Identity:
    settings = config.evaluate
    return {
        "fingerprint": fingerprint(path),
        "items": json_digest([{name: item.get(name) for name in _ASKED} for item in items]),
        "settings": {
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "max_model_len": settings.max_model_len,
            "seed": config.seed,
        },
    }


def _check_lengths(config: Config, path: str, items: Sequence[Row], data_path: str | Path) -> None:
    """Refuse prompts without room for an answer, by id and before any work; the engine would do so later, by number."""
    from raft.rendering import chat_ids, chat_options

    tokenizer, limit = load_tokenizer(path), config.evaluate.max_model_len
    for item in items:
        try:
            length = len(chat_ids(tokenizer, item["prompt"], **chat_options(item)))
        except InputError as error:
            raise InputError(f"{data_path}, item {item['id']!r}: {error}") from error
        if length >= limit:
            found = f"prompt has {length} tokens, expected fewer than evaluate.max_model_len ({limit})"
            raise InputError(f"{data_path}, item {item['id']!r}: {found}")


def _evaluate_model(
    config: Config, path: str, items: Sequence[Row], data_path: str | Path, identity: Identity
) -> Result:
    from raft.engines import Sampling, make_engine

    settings = config.evaluate
    started = time.perf_counter()
    engine = make_engine(settings.engine, path, load_tokenizer(path), max_model_len=settings.max_model_len)
    try:
        sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens, seed=config.seed)
        result = evaluate(items, engine, sampling, batch_size=settings.batch_size, progress=True)
        engine_name = engine.name
    finally:
        engine.close()
    return {
        "model": path,
        "data": str(data_path),
        "engine": engine_name,
        **identity,
        "seconds": round(time.perf_counter() - started, 3),
        **result,
    }


def _write_distance(run: Run, name: str, base: str, path: str) -> None:
    from raft.merging.distance import weight_distance

    file = run.eval_dir / "weight_distance.json"
    try:
        distance = weight_distance(base, path)
    except ModelError as error:  # models of different shapes have no weight distance
        log.info("no weight distance: %s", error)
        return
    try:
        known = read_json(file)
    except InputError:
        known = {}
    write_json(file, {**known, name: distance})
