"""raft demo | real | refine | train | eval | merge | report | config.

Each command reads and checks its settings and rows once, into a `Plan`, before any work. What can be checked from files
alone (settings, rows, the model's folder, the run folder) is checked before torch is imported. Every error that a user
can fix is one line on stderr and exit code 2.
"""

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from raft import __version__
from raft.cpu import share_cpu
from raft.errors import ConfigError, Interrupted, ModelError, RaftError, RunFolderError
from raft.models import check_model, check_top_k
from raft.progress import say
from raft.row_files import FORMATS
from raft.row_spool import SpooledRows
from raft.rows import iter_rows, read_rows
from raft.runs import Run
from raft.runs.files import iter_jsonl
from raft.runs.folder import REPORTS, add_to_run, check_run, open_run
from raft.runs.signals import stop_on_signals
from raft.settings.files import load_config
from raft.settings.plan import Plan
from raft.settings.schema import SECTIONS, Config, EngineKind

if TYPE_CHECKING:
    from raft.train.training import TrainingPlan

DEMO_RUN = "runs/out/demo"
REAL_RUN = "runs/out/real"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a `RaftError`, 128 + signal number after a signal."""
    _quiet_libraries()
    share_cpu()
    try:
        with stop_on_signals():
            args = _arguments(argv)
            _log_to_stderr()
            args.command(args)
    except RaftError as error:
        print(f"raft: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(f"raft: {stop}", file=sys.stderr)
        return stop.exit_code
    return 0


def demo(args: argparse.Namespace) -> None:
    from raft.demo.domains import DOMAINS

    if args.domain is not None and args.domain not in DOMAINS:
        raise ConfigError(f"--domain: expected one of {', '.join(DOMAINS)}, found {args.domain!r}")
    run = open_run(args.run, "demo", resume=args.resume, overwrite=args.overwrite)
    from raft.demo.comparison import run_demo
    from raft.demo.settings import DOMAIN, DemoSettings

    settings = DemoSettings(engine=args.engine)
    run_demo(run, seed=args.seed, domain=args.domain or DOMAIN, resume=args.resume, settings=settings)


def real(args: argparse.Namespace) -> None:
    from raft.real.files import data_folder
    from raft.real.settings import QUICK, RealSettings

    data = data_folder(args.data_dir)
    model = args.model or os.environ.get("RAFT_REAL_MODEL")
    if model is None:
        raise ConfigError("no model given: add --model FOLDER or set RAFT_REAL_MODEL (scripts/smollm2.py makes one)")
    check_model(model)
    from raft.real.study import run_real

    inputs = {"--model": model, "--data-dir": data}
    settings = QUICK if args.quick else RealSettings()
    if args.jobs > 1 and _has_gpu():
        # Each stage would start its own vLLM engine, and the memory of one GPU is too small for several.
        settings = replace(settings, engine="hf")
    run = open_run(args.run, "real", resume=args.resume, overwrite=args.overwrite, inputs=inputs)
    seeds = ",".join(map(str, args.seeds))
    command = f"raft real --model {Path(model).name} --data-dir DIR --seeds {seeds}"
    command += (f" --jobs {args.jobs}" if args.jobs > 1 else "") + (" --quick" if args.quick else "")
    run_real(run, model=model, data_dir=data, seeds=args.seeds, settings=settings, command=command, at_once=args.jobs)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def refine(args: argparse.Namespace) -> None:
    config, run = _settings(args, "refine", None if args.overwrite else "config.yaml")
    if args.sweep_tau:
        from raft.refine.sweep import sweep_text

        fused = run.refine_dir / "fused.jsonl"
        if not fused.exists():
            raise RunFolderError(f"{fused}: no such file, expected a finished refinement whose taus can be swept")
        print(sweep_text(iter_jsonl(fused), config.refine.tau))
        return
    plan = plan_refinement(config, run)
    workers = args.workers if args.executor == "ray" and not args.preview else 0
    if workers and importlib.util.find_spec("ray") is None:
        raise ConfigError('--executor ray: needs the package ray: pip install "raft-distill[ray]"')
    if not args.preview:  # a preview does not change the folder
        open_run(run.path, "refine", resume=args.resume, overwrite=args.overwrite, inputs=_inputs_of(config, args))
    from raft.refine.refinement import refine_run

    refine_run(plan, preview=args.preview or 0, retry_failed=args.retry_failed, ray_workers=workers)


def plan_refinement(config: Config, run: Run) -> Plan:
    model, data = _need(config.model, "model"), _need(config.data, "data")
    rows = SpooledRows(iter_rows(data))
    check_model(model)
    refined = config.refine
    if (refined.rewriter, refined.fuser, *refined.judges) != ("local", "local", "programs"):
        from raft.chat.pool import check_names

        check_names(refined)
    return Plan(config, run, model, data, rows)


def train(args: argparse.Namespace) -> None:
    config, run = _settings(args, "train", "config.yaml")
    if args.method is not None:
        config.train["method"] = args.method
    folder = {"resume": args.resume, "overwrite": args.overwrite, "inputs": _inputs_of(config, args)}
    check_run(run.path, "train", **folder)
    plan = plan_training(config, run)
    open_run(run.path, "train", **folder)
    from raft.train.training import train as train_run

    train_run(plan, resume=args.resume)


def plan_training(config: Config, run: Run) -> "TrainingPlan":
    model = _need(config.model, "model")
    refined = run.refine_dir / "fused.jsonl"
    data = config.data or (str(refined) if refined.exists() else _need(None, "data"))
    rows = read_rows(data)
    check_model(model)
    from raft.train.config import check_train
    from raft.train.training import TrainingPlan, with_refinement

    arguments = check_train(config)
    if arguments.preset.distills:
        check_top_k(model, arguments.top_k)
    return TrainingPlan(config, run, model, data, with_refinement(rows, data, run, arguments), arguments)


def evaluate(args: argparse.Namespace) -> None:
    config, run = _settings(args, "evaluate", "config.yaml", files=False)
    if run.path.is_file():
        raise RunFolderError(f"{run.path}: expected a run folder, found a file")
    data = args.data or str(run.path / "data" / "test.jsonl")
    if args.data is None and not Path(data).exists():
        raise ConfigError("no data given: add --data FILE with the items to answer")
    name = args.name or (Path(args.model).name if args.model else str(config.train.get("method", "raft")))
    result = run.eval_dir / f"{name}.json"
    if result.exists() and not args.overwrite:
        raise RunFolderError(f"{result}: exists; give --overwrite to replace it or --name NAME to write another")
    plan = plan_evaluation(config, run, args.model, data)
    if args.base:
        check_model(args.base)
    names = [f"eval/{name}.json", *(("eval/base.json", "eval/weight_distance.json") if args.base else ())]
    inputs = {"--data": data, "--model": plan.model, **({"--base": args.base} if args.base else {})}
    add_to_run(run.path, "eval", names, inputs)
    from raft.evaluate.evaluation import evaluate_run

    evaluate_run(plan, name, base=args.base)


def plan_evaluation(config: Config, run: Run, model: str | Path | None, data: str | Path) -> Plan:
    """model: None for the one that the run trained."""
    if model is None and not run.model_dir.is_dir():
        raise ModelError(f"{run.model_dir}: no model in the run folder, expected a trained run or a model to evaluate")
    rows = read_rows(data, need_answer=False)
    return Plan(config, run, check_model(model or run.model_dir), str(data), rows)


def show_config(args: argparse.Namespace) -> None:
    from raft.settings.listing import listing
    from raft.train.config import RAFTConfig

    print(listing(RAFTConfig), end="")


def report(args: argparse.Namespace) -> None:
    path = Path(args.run)
    if not path.is_dir():
        raise RunFolderError(f"{path}: no such run folder")
    from raft.report import write_report
    from raft.report.load import load_others, load_run

    load_others(load_run(path), args.beside)  # raises errors of the runs before the manifest is changed
    add_to_run(path, "report", REPORTS, {})
    print(write_report(path, args.beside))


def merge(args: argparse.Namespace) -> None:
    options = dict(_option(text) for text in args.settings)
    from raft.merging import make_merge
    from raft.merging import merge as merge_models

    merge_models(make_merge(args.rule, options), args.base, args.tuned, args.out)
    print(args.out)


def _option(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    try:
        if separator:
            return name, float(value)
    except ValueError:
        pass
    raise ConfigError(f"merge: expected option=number, found {text!r}")


def _settings(args: argparse.Namespace, section: str, own: str | None, files: bool = True) -> tuple[Config, Run]:
    """The settings and the run of a command. Later ones win: --config or else the run's file `own`, key=value, options.

    files: whether --model and --data set the run's own model and data.
    """
    inherited = Path(args.run) / own if args.run and own else None
    path = args.config or (inherited if inherited and inherited.is_file() else None)
    config = load_config(path, args.settings, section=section)
    config.run = args.run or config.run
    if files:
        config.model = args.model or config.model
        config.data = args.data or config.data
    return config, Run(_need(config.run, "run"))


def _inputs_of(config: Config, args: argparse.Namespace) -> dict[str, str]:
    """The files and folders that refinement and training read: setting -> path. A value may also be no path."""
    inputs = {
        "--config": args.config,
        "--model": config.model,
        "--data": config.data,
        "refine.embedding_model": config.refine.embedding_model,
        "refine.rewriter": config.refine.rewriter,
        "refine.fuser": config.refine.fuser,
        **{f"refine.judges, number {i}": name for i, name in enumerate(config.refine.judges, 1)},
        **{f"train.{name}": config.train.get(name) for name in ("deepspeed", "fsdp_config", "accelerator_config")},
    }
    return {setting: value for setting, value in inputs.items() if isinstance(value, str) and value}


def _need(value: str | None, name: str) -> str:
    if not value:
        raise ConfigError(f"no {name} given: add --{name} (or `{name}:` in the file given with --config)")
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments. key=value may be anywhere between the options, while argparse needs them in one place."""
    args, rest = _parser().parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(args, "settings")]
    if unknown:
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown)} (see raft --help)")
    if rest:
        args.settings = [*args.settings, *rest]
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="raft", description="Fine-tune an instruction model on domain data with little forgetting.")
    parser.add_argument("--version", action="version", version=f"raft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    command = _command(commands, "demo", demo, "refine, train and compare on the built-in micro-world")
    add = command.add_argument
    add("--run", metavar="DIR", default=DEMO_RUN, help=f"run folder (default: {DEMO_RUN})")
    add("--seed", metavar="N", type=_whole(0), default=0, help="seed of the world and of the training (default: 0)")
    add("--domain", metavar="NAME", help="domain of the micro-world to learn")
    add("--engine", choices=get_args(EngineKind), default="auto", help="generation engine (default: auto)")
    _continuation(command)

    command = _command(commands, "real", real, "compare SFT and RAFT on a real model and MedQuAD")
    add = command.add_argument
    add("--run", metavar="DIR", default=REAL_RUN, help=f"run folder (default: {REAL_RUN})")
    add("--model", metavar="M", help="folder of the model (default: RAFT_REAL_MODEL)")
    add("--data-dir", metavar="DIR", help="folder of the data (default: RAFT_DATA_DIR)")
    add("--seeds", metavar="N,N", type=_seeds, default=[0], help="seeds, one after the other (default: 0)")
    jobs = "stages side by side, each with its own model; on a GPU generated by transformers (default: 1)"
    add("--jobs", metavar="N", type=_whole(1), default=1, help=jobs)
    add("--quick", action="store_true", help="a few rows: that it runs, in minutes")
    _continuation(command)

    command = _command(commands, "refine", refine, "stage 1: rewrite, filter and fuse the answers", "refine")
    _inputs(command)
    command.add_argument("--preview", metavar="N", type=_whole(1), help="show the refinement of N rows and stop")
    again = "ask again for texts that were cut, empty or refused (with --resume)"
    command.add_argument("--retry-failed", action="store_true", help=again)
    sweep = "show what other taus would have kept of a finished refinement, and stop"
    command.add_argument("--sweep-tau", action="store_true", help=sweep)
    where = "this process, or workers of a Ray cluster (RAY_ADDRESS, else one that is started here)"
    command.add_argument("--executor", choices=("process", "ray"), default="process", help=where)
    command.add_argument("--workers", metavar="N", type=_whole(1), default=2, help="with --executor ray (default: 2)")
    _continuation(command)

    command = _command(commands, "train", train, "stage 2: train with answer-conditioned on-policy distillation")
    command.epilog = "settings (train.key=value): `raft config` lists them with their defaults"
    _inputs(command, data="the rows (default: DIR/refine/fused.jsonl)")
    command.add_argument("--method", metavar="NAME", help="method, such as raft or sft (short for train.method=NAME)")
    _continuation(command)

    command = _command(commands, "eval", evaluate, "answer the items of a file and score the answers", "evaluate")
    add = command.add_argument
    items = "items with answers or checks (default: DIR/data/test.jsonl)"
    _inputs(command, model="model to evaluate (default: DIR/model)", data=items)
    add("--name", metavar="NAME", help="writes DIR/eval/NAME.json (default: the method, or the model's name)")
    add("--base", metavar="M", help="model to compare with: writes DIR/eval/base.json and the retention")
    add("--overwrite", action="store_true", help="replace DIR/eval/NAME.json")

    command = _command(commands, "merge", merge, "make one model of a base and trained ones, tensor by tensor on disk")
    command.add_argument("rule", metavar="RULE", help="fapm, lines, soup or wise_ft")
    command.add_argument("--base", metavar="DIR", type=Path, help="the model that training started from")
    command.add_argument(
        "--tuned", metavar="DIR", type=Path, nargs="+", required=True, help="trained model, or several for soup"
    )
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the merged model")
    command.add_argument("settings", metavar="key=value", nargs="*", help="options of the rule, such as alpha=0.5")

    _command(commands, "config", show_config, "list every setting with its default, as YAML")

    command = _command(commands, "report", report, "write report.html and report.md of a run")
    command.add_argument("--run", metavar="DIR", required=True, help="run folder")
    others = "further runs, of other seeds or methods: means, spread and intervals over all of them"
    command.add_argument("--beside", metavar="DIR", nargs="+", default=[], help=others)
    return parser


def _command(
    commands: "argparse._SubParsersAction[_Parser]",
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    section: str = "",
) -> argparse.ArgumentParser:
    """section: the section of the settings that the command's help lists."""
    command = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if section:
        defaults = [f"  {section}.{f.name}={f.default}" for f in fields(SECTIONS[section])]
        command.epilog = "\n".join(["settings (key=value), with their defaults:", *defaults])
    command.set_defaults(command=function)
    return command


def _inputs(
    command: argparse.ArgumentParser,
    model: str = "instruction model: a folder or a name on the Hub",
    data: str = "the rows",
) -> None:
    add = command.add_argument
    add("--model", metavar="M", help=model)
    add("--data", metavar="FILE", help=f"{data}: {FORMATS}")
    add("--run", metavar="DIR", help="run folder")
    add("--config", metavar="FILE", help="YAML with settings (default: DIR/config.yaml where it exists)")
    add("settings", metavar="key=value", nargs="*", help="settings that win over the file's")


def _continuation(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    replaced = "replace what this command wrote in DIR, and what was made from it"
    group.add_argument("--overwrite", action="store_true", help=replaced)


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
        return int(text)

    return parse


def _seeds(text: str) -> list[int]:
    found = [_whole(0)(part) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected each seed once, found {text!r}")
    return found


def _quiet_libraries() -> None:
    """Must run before the libraries are imported. It does not change variables that the user has set."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not sys.stderr.isatty():  # a progress bar would fill a log file
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class _Stderr(logging.Handler):
    """Writes to the current sys.stderr, which may have been replaced since, and without breaking progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record), sys.stderr)
        except Exception:  # noqa: BLE001  # as in logging's own handlers: a failed write must not stop the work
            self.handleError(record)


def _log_to_stderr() -> None:
    logger = logging.getLogger("raft")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
