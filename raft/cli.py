"""raft demo | real | refine | train | eval | report.

What can be checked from files alone (settings, rows, the model's folder, the run folder) is checked before torch is
imported, and torch is imported only inside the commands. Every error that a user can mend is one line on stderr and
exit code 2.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from raft import __version__
from raft.config import Config, EvalSettings, RefineSettings, check_train, load_config
from raft.cpu import share_cpu
from raft.errors import ConfigError, Interrupted, RaftError, RunFolderError
from raft.folder import REPORTS, add_to_run, check_run, open_run
from raft.models import check_model, check_top_k
from raft.progress import say
from raft.rows import read_rows
from raft.runs import Run, stop_on_signals

DEMO_RUN = "runs/out/demo"
REAL_RUN = "runs/out/real"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, 2 for a `RaftError`, 128 + signal number when stopped."""
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
    from raft.demo.run import run_demo
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
    from raft.real.run import run_real

    inputs = {"--model": model, "--data-dir": data}
    settings = QUICK if args.quick else RealSettings()
    if args.jobs > 1 and _has_gpu():
        # Each vLLM would want its share of the one GPU, and the fourth would find none.
        settings = replace(settings, engine="hf")
    run = open_run(args.run, "real", resume=args.resume, overwrite=args.overwrite, inputs=inputs)
    seeds = ",".join(map(str, args.seeds))
    command = f"raft real --model {Path(model).name} --data-dir DIR --seeds {seeds}"
    command += (f" --jobs {args.jobs}" if args.jobs > 1 else "") + (" --quick" if args.quick else "")
    run_real(
        run,
        model=model,
        data_dir=data,
        seeds=args.seeds,
        settings=settings,
        command=command,
        at_once=args.jobs,
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def refine(args: argparse.Namespace) -> None:
    config = _settings(args, "refine", None if args.overwrite else "config.yaml")
    path, model, data = _need(config.run, "run"), _need(config.model, "model"), _need(config.data, "data")
    read_rows(data)
    check_model(model)
    if args.preview:
        run = Run(path)  # a preview only shows, the folder stays as it is
    else:
        inputs = _inputs_of(config, args)
        run = open_run(path, "refine", resume=args.resume, overwrite=args.overwrite, inputs=inputs)
    from raft.refine.run import refine_run

    refine_run(config, run, resume=args.resume, preview=args.preview or 0)


def train(args: argparse.Namespace) -> None:
    config = _settings(args, "train", "config.yaml")
    path, model = _need(config.run, "run"), _need(config.model, "model")
    if args.method is not None:
        config.train["method"] = args.method
    refined = Run(path).refine_dir / "fused.jsonl"
    read_rows(config.data or (refined if refined.exists() else _need(None, "data")))
    check_model(model)
    inputs = _inputs_of(config, args)
    check_run(path, "train", resume=args.resume, overwrite=args.overwrite, inputs=inputs)
    arguments = check_train(config)
    if arguments.preset.distills:
        check_top_k(model, arguments.top_k)
    from raft.train.run import check_refined
    from raft.train.run import train as train_run

    check_refined(Run(path), arguments)
    run = open_run(path, "train", resume=args.resume, overwrite=args.overwrite, inputs=inputs)
    train_run(config, run, resume=args.resume)


def evaluate(args: argparse.Namespace) -> None:
    config = _settings(args, "evaluate", "config.yaml", files=False)
    run = Run(_need(config.run, "run"))
    if run.path.is_file():
        raise RunFolderError(f"{run.path}: expected a run folder, found a file")
    data = args.data or str(run.path / "data" / "test.jsonl")
    if args.data is None and not Path(data).exists():
        raise ConfigError("no data given: add --data FILE with the items to answer")
    name = args.name or (Path(args.model).name if args.model else str(config.train.get("method", "raft")))
    result = run.eval_dir / f"{name}.json"
    if result.exists() and not args.overwrite:
        raise RunFolderError(f"{result}: exists; give --overwrite to replace it or --name NAME to write another")
    model = args.model or run.model_dir
    if args.model or run.model_dir.is_dir():  # else `evaluate_run` refuses
        read_rows(data, need_answer=False)
        for each in filter(None, (model, args.base)):
            check_model(each)
        names = [f"eval/{name}.json", *(("eval/base.json", "eval/weight_distance.json") if args.base else ())]
        inputs = {"--data": data, "--model": model, **({"--base": args.base} if args.base else {})}
        add_to_run(run.path, "eval", names, inputs)
    from raft.evaluate.run import evaluate_run

    evaluate_run(config, run, model=args.model, data_path=data, name=name, base=args.base)


def show_config(args: argparse.Namespace) -> None:
    from raft.listing import listing

    print(listing(), end="")


def report(args: argparse.Namespace) -> None:
    path = Path(args.run)
    if not path.is_dir():
        raise RunFolderError(f"{path}: no such run folder")
    from raft.report import write_report
    from raft.report.load import load_others, load_run

    load_others(load_run(path), args.beside)  # refuses what cannot be reported before anything is listed as a report
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


def _settings(args: argparse.Namespace, section: str, own: str | None, files: bool = True) -> Config:
    """The settings of a command: --config or else the file `own` of the run, then key=value, then the options.

    `files` False: --model and --data name something else than the run's own model and data.
    """
    inherited = Path(args.run) / own if args.run and own else None
    path = args.config or (inherited if inherited and inherited.is_file() else None)
    config = load_config(path, args.settings, section=section)
    config.run = args.run or config.run
    if files:
        config.model = args.model or config.model
        config.data = args.data or config.data
    return config


def _inputs_of(config: Config, args: argparse.Namespace) -> dict[str, str]:
    """The files and folders that refinement and training read, by setting. What names none does no harm."""
    inputs = {
        "--config": args.config,
        "--model": config.model,
        "--data": config.data,
        "refine.embedding_model": config.refine.embedding_model,
        "refine.fusion_model": config.refine.fusion_model,
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
    """argparse takes positionals in one place only; key=value may stand anywhere between the options."""
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
    command.add_argument("--run", metavar="DIR", default=DEMO_RUN, help=f"run folder (default: {DEMO_RUN})")
    command.add_argument(
        "--seed", metavar="N", type=_seed, default=0, help="seed of the world and of the training (default: 0)"
    )
    command.add_argument("--domain", metavar="NAME", help="domain of the micro-world to learn")
    command.add_argument(
        "--engine", choices=("auto", "vllm", "hf"), default="auto", help="generation engine (default: auto)"
    )
    _continuation(command)

    command = _command(commands, "real", real, "compare SFT and RAFT on a real model and MedQuAD")
    command.add_argument("--run", metavar="DIR", default=REAL_RUN, help=f"run folder (default: {REAL_RUN})")
    command.add_argument("--model", metavar="M", help="folder of the model (default: RAFT_REAL_MODEL)")
    command.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: RAFT_DATA_DIR)")
    command.add_argument(
        "--seeds", metavar="N,N", type=_seeds, default=[0], help="seeds, one after the other (default: 0)"
    )
    command.add_argument(
        "--jobs",
        metavar="N",
        type=_count,
        default=1,
        help="stages side by side, each with its own model; on a GPU generated by transformers (default: 1)",
    )
    command.add_argument("--quick", action="store_true", help="a few rows: that it runs, in minutes")
    _continuation(command)

    command = _command(
        commands, "refine", refine, "stage 1: rewrite, filter and fuse the answers", RefineSettings, "refine"
    )
    _inputs(command)
    command.add_argument("--preview", metavar="N", type=_count, help="show the refinement of N rows and stop")
    _continuation(command)

    command = _command(commands, "train", train, "stage 2: train with answer-conditioned on-policy distillation")
    command.epilog = "settings (train.key=value): `raft config` lists them with their defaults"
    _inputs(command, data="the rows (default: DIR/refine/fused.jsonl)")
    command.add_argument(
        "--method", metavar="NAME", help="raft, sft, sdft, on_policy, fapm or l2sp (short for train.method=NAME)"
    )
    _continuation(command)

    command = _command(
        commands, "eval", evaluate, "answer the items of a file and score the answers", EvalSettings, "evaluate"
    )
    _inputs(
        command,
        model="model to evaluate (default: DIR/model)",
        data="items with answers or checks (default: DIR/data/test.jsonl)",
    )
    command.add_argument(
        "--name", metavar="NAME", help="writes DIR/eval/NAME.json (default: the method, or the model's name)"
    )
    command.add_argument(
        "--base", metavar="M", help="model to compare with: writes DIR/eval/base.json and the retention"
    )
    command.add_argument("--overwrite", action="store_true", help="replace DIR/eval/NAME.json")

    command = _command(commands, "merge", merge, "make one model of a base and trained ones, tensor by tensor on disk")
    command.add_argument("rule", metavar="RULE", help="fapm, lines, soup or wise_ft")
    command.add_argument("--base", metavar="DIR", type=Path, help="the model that training started from")
    command.add_argument(
        "--tuned", metavar="DIR", type=Path, nargs="+", required=True, help="trained model, or several for soup"
    )
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the merged model")
    command.add_argument("settings", metavar="key=value", nargs="*", help="options of the rule, such as alpha=0.5")

    command = _command(commands, "config", show_config, "list every setting with its default, as YAML")

    command = _command(commands, "report", report, "write report.html and report.md of a run")
    command.add_argument("--run", metavar="DIR", required=True, help="run folder")
    command.add_argument(
        "--beside",
        metavar="DIR",
        nargs="+",
        default=[],
        help="further runs, of other seeds or methods: means, spread and intervals over all of them",
    )
    return parser


def _command(
    commands: Any, name: str, function: Any, summary: str, settings: type | None = None, prefix: str = ""
) -> argparse.ArgumentParser:
    listed = "settings (key=value), with their defaults:\n" + _defaults(settings, prefix) if settings else None
    command = commands.add_parser(
        name, help=summary, description=summary, epilog=listed, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.set_defaults(command=function)
    return command


def _defaults(settings: type, prefix: str) -> str:
    defaults = [(f.name, f.default) for f in fields(settings) if f.default is not MISSING]
    return "\n".join(f"  {prefix}.{name}={default}" for name, default in defaults)


def _inputs(
    command: argparse.ArgumentParser,
    model: str = "instruction model: a folder or a name on the Hub",
    data: str = "the rows",
) -> None:
    command.add_argument("--model", metavar="M", help=model)
    command.add_argument("--data", metavar="FILE", help=f"{data}, .jsonl or .parquet")
    command.add_argument("--run", metavar="DIR", help="run folder")
    command.add_argument(
        "--config", metavar="FILE", help="YAML with settings (default: DIR/config.yaml where it exists)"
    )
    command.add_argument("settings", metavar="key=value", nargs="*", help="settings that win over the file's")


def _continuation(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    group.add_argument(
        "--overwrite", action="store_true", help="replace what this command wrote in DIR, and what was made from it"
    )


def _seed(text: str) -> int:
    return _whole(text, 0)


def _seeds(text: str) -> list[int]:
    found = [_whole(part, 0) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected each seed once, found {text!r}")
    return found


def _count(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
    return number


def _quiet_libraries() -> None:
    """Set before the libraries are imported; what the user has set stays."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not sys.stderr.isatty():  # a bar would fill a log file with itself
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is at the time, not to what it was when the handler was made, and around the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record), sys.stderr)
        except Exception:  # noqa: BLE001  # as logging's own handlers: a line that cannot be written stops no work
            self.handleError(record)


def _log_to_stderr() -> None:
    logger = logging.getLogger("raft")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
