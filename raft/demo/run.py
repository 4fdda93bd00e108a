"""`raft demo`: the whole method on the micro-world, next to plain SFT, in minutes on two CPU cores."""

from dataclasses import asdict
from typing import Any

from raft.demo.record import machine, settle_config, versions
from raft.demo.settings import BASE_MODEL, DOMAIN, REFINE, DemoSettings
from raft.demo.stages import Clock, Stages
from raft.runs import Run, write_json

SUITES = ("domain", "general", "format")


def run_demo(
    run: Run, *, seed: int = 0, domain: str = DOMAIN, resume: bool = False, settings: DemoSettings | None = None
) -> dict:
    """Refines, trains SFT and RAFT from the same base, scores all three on the test split, writes summary.json and the report.

    Every stage leaves a file when it is done, so a killed demo goes on where it was (`resume`).
    """
    baseline = Run(run.path / "baselines" / "sft")
    settings = settings or DemoSettings()
    settle_config(run, {"seed": seed, "domain": domain, **asdict(settings), "refine": asdict(REFINE)})
    stages = Stages(run, domain, seed, settings)
    clock = Clock(run.path / "seconds.json")

    print(f"raft demo: domain {domain}, seed {seed}, folder {run.path}" + (", resumed" if resume else ""), flush=True)
    clock.time("[1/8] starting the engine", "engine", lambda: stages.engine)
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

    print("[8/8] writing the report ...", flush=True)
    from raft.evaluate import weight_distance
    from raft.report import write_report

    distances = {
        "sft": weight_distance(BASE_MODEL, baseline.model_dir),
        "raft": weight_distance(BASE_MODEL, run.model_dir),
    }
    write_json(run.eval_dir / "weight_distance.json", distances)
    summary = _summary(scores, clock, stages)
    write_json(run.path / "summary.json", summary)
    print(write_report(run.path))
    return summary


def _say(scores: dict[str, dict]) -> None:
    name, result = list(scores.items())[-1]
    print(f"      {name}: " + ", ".join(f"{suite} {result['scores'][suite]:.3f}" for suite in SUITES), flush=True)


def _summary(scores: dict[str, dict], clock: Clock, stages: Stages) -> dict[str, Any]:
    from raft.evaluate import retention

    table = {name: {suite: result["scores"][suite] for suite in SUITES} for name, result in scores.items()}
    return {
        "scores": table,
        "n": {suite: scores["base"]["n"][suite] for suite in SUITES},
        "seconds": clock.seconds,
        "seed": stages.seed,
        "domain": stages.domain,
        "retention": {name: retention(table[name], table["base"]) for name in ("sft", "raft")},
        "settings": {"sft": asdict(stages.settings.sft), "raft": asdict(stages.settings.raft)},
        "engine": {"name": stages.engine.name, "weights": stages.engine.weights.mode},
        "machine": machine(),
        "versions": versions(),
        "command": f"raft demo --seed {stages.seed} --domain {stages.domain}",
    }
