"""`raft demo`: RAFT and plain SFT on the micro-world, in minutes on two CPU cores."""

import time
from dataclasses import asdict

from raft.demo.settings import BASE_MODEL, DOMAIN, MAX_ANSWER, MAX_MODEL_LEN, REFINE, DemoSettings
from raft.demo.stages import Stages, StageTimes, train_settings
from raft.evaluate.results import Result
from raft.progress import say
from raft.report.load import Summary
from raft.runs import Run, write_json
from raft.runs.provenance import machine, settle, versions
from raft.settings import Config, EvalSettings, save_config

SUITES = ("domain", "general", "format")


def run_demo(
    run: Run, *, seed: int = 0, domain: str = DOMAIN, resume: bool = False, settings: DemoSettings | None = None
) -> Summary:
    """Refine, train SFT and RAFT from the same base, score all three on the test split, write summary.json and report.

    Each stage writes a file when it is done, so `resume` continues a killed demo with the first unfinished stage.
    """
    baseline = Run(run.path / "baselines" / "sft")
    settings = settings or DemoSettings()
    given = {"seed": seed, "domain": domain, **asdict(settings)}
    if (run.path / "demo.json").exists():
        settle(run, given)
    stages = Stages(run, domain, seed, settings)

    say(f"raft demo: domain {domain}, seed {seed}, folder {run.path}" + (", resumed" if resume else ""))
    say("[1/8] starting the engine ...")
    started = time.monotonic()
    stages.engine  # noqa: B018
    # Written only now, so that a demo that cannot start leaves nothing that the next try would have to resume.
    settle(run, given)
    save_config(_config(run, seed, settings), run.config_path)
    clock = StageTimes(run.path / "seconds.json")
    clock.add("engine", time.monotonic() - started)
    scores = {
        "base": clock.time("[2/8] scoring the base model", "eval_base", lambda: stages.evaluate("base", BASE_MODEL))
    }
    _say(scores)
    clock.time("[3/8] refining the answers: rewrite, filter, fuse", "refine", stages.refine)
    clock.time(
        "[4/8] training SFT on the raw answers", "train_sft", lambda: stages.train("sft", settings.sft, baseline)
    )
    scores["sft"] = clock.time("[5/8] scoring SFT", "eval_sft", lambda: stages.evaluate("sft", baseline.model_dir))
    _say(scores)
    clock.time(
        "[6/8] training RAFT on the fused answers", "train_raft", lambda: stages.train("raft", settings.raft, run)
    )
    scores["raft"] = clock.time("[7/8] scoring RAFT", "eval_raft", lambda: stages.evaluate("raft", run.model_dir))
    _say(scores)

    say("[8/8] writing the report ...")
    from raft.evaluate import weight_distance
    from raft.report import write_report

    distances = {
        "sft": weight_distance(BASE_MODEL, baseline.model_dir),
        "raft": weight_distance(BASE_MODEL, run.model_dir),
    }
    write_json(run.eval_dir / "weight_distance.json", distances)
    summary = _summary(scores, clock, stages)
    write_json(run.path / "summary.json", summary)
    say(str(write_report(run.path)))
    return summary


def _config(run: Run, seed: int, settings: DemoSettings) -> Config:
    """The demo's settings as `raft refine`, `raft train` and `raft eval` read them, so that they work on its folder."""
    return Config(
        model=str(BASE_MODEL),
        data=str(run.path / "data" / "train.jsonl"),
        seed=seed,
        run=str(run.path),
        refine=REFINE,
        train=train_settings("raft", settings.raft, seed),
        evaluate=EvalSettings(max_tokens=MAX_ANSWER, max_model_len=MAX_MODEL_LEN),
    )


def _say(scores: dict[str, Result]) -> None:
    name, result = list(scores.items())[-1]
    say(f"      {name}: " + ", ".join(f"{suite} {result['scores'][suite]:.3f}" for suite in SUITES))


def _old(scores: dict[str, float]) -> dict[str, float]:
    """The scores without the domain, which the base model does not know and so cannot retain."""
    return {suite: score for suite, score in scores.items() if suite != "domain"}


def _summary(scores: dict[str, Result], clock: StageTimes, stages: Stages) -> Summary:
    from raft.stats.retention import retention

    table = {name: {suite: result["scores"][suite] for suite in SUITES} for name, result in scores.items()}
    return {
        "scores": table,
        "n": {suite: scores["base"]["n"][suite] for suite in SUITES},
        "seconds": clock.seconds,
        "seed": stages.seed,
        "domain": stages.domain,
        "retention": {name: retention(_old(table[name]), table["base"]) for name in ("sft", "raft")},
        "settings": {"sft": asdict(stages.settings.sft), "raft": asdict(stages.settings.raft)},
        "engine": {"name": stages.engine.name, "weights": stages.engine.weights.mode},
        "machine": machine(),
        "versions": versions(),
        "command": f"raft demo --seed {stages.seed} --domain {stages.domain}",
    }
