"""Command lines of the benchmarks. Nothing here imports torch, which takes a while."""

import argparse
from collections.abc import Collection


def make_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """`name` is the command; `about` is the docstring of its module, which --help prints as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def choose(parser: argparse.ArgumentParser, option: str, value: str | None, known: Collection[str]) -> list[str]:
    """The names in a comma-separated value, or all that are known; the parser refuses any other name."""
    named = value.split(",") if value else list(known)
    if unknown := sorted(set(named) - set(known)):
        parser.error(f"{option}: {', '.join(unknown)} unknown; there are {', '.join(known)}")
    return named
