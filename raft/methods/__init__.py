"""The training methods, one per file. The keys of `METHODS` are the values of the setting `train.method`."""

import importlib
import pkgutil

from raft.errors import ConfigError
from raft.methods.base import BLIND_LAMBDA_MAX, Method, Target, TeacherContext

__all__ = ["BLIND_LAMBDA_MAX", "METHODS", "Method", "Target", "TeacherContext", "get_method"]


def _found() -> dict[str, type[Method]]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return {method.name: method for method in sorted(_below(Method), key=lambda method: method.name)}


def _below(method: type[Method]) -> list[type[Method]]:
    return [found for child in method.__subclasses__() for found in (child, *_below(child))]


METHODS: dict[str, type[Method]] = _found()


def get_method(name: str) -> type[Method]:
    if name not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, found {name!r}")
    return METHODS[name]
