"""Finds the subclasses that the files of a package define, so that a new one needs no list to be added to."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any


def named_subclasses(base: Any, package: str, path: Iterable[str]) -> dict[str, Any]:
    """Name -> class for all subclasses of `base`, sorted by their `name`. Imports every module of the package.

    path: the package's `__path__`.
    """
    for module in pkgutil.iter_modules(path, f"{package}."):
        importlib.import_module(module.name)
    return {found.name: found for found in sorted(_below(base), key=lambda found: found.name)}


def _below(base: Any) -> list[Any]:
    return [found for child in base.__subclasses__() for found in (child, *_below(child))]
