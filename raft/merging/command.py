"""`raft merge`: one folder out of a base model and tuned ones."""

import argparse
import math
from pathlib import Path

from raft.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rule", metavar="RULE", help="fapm, lines, soup or wise_ft")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="the model that training started from")
    parser.add_argument(
        "--tuned", type=Path, metavar="FOLDER", nargs="+", required=True, help="trained models (several for soup)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="the new model")
    parser.add_argument("options", metavar="option=number", nargs="*", help="of the rule, such as alpha=0.5")


def run(args: argparse.Namespace) -> None:
    options = dict(_option(text) for text in args.options)
    from raft.merging import make_merge, merge
    from raft.progress import say

    merge(make_merge(args.rule, options), args.base, args.tuned, args.out)
    say(str(args.out))


def _option(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not separator or math.isnan(number):
        raise ConfigError(f"merge: expected option=number, found {text!r}")
    return name, number
