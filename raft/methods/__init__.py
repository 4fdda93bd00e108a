"""The training methods, one per file. The keys of `METHODS` are the values of the setting `train.method`."""

from raft.discovery import named_subclasses
from raft.errors import ConfigError
from raft.methods.base import BLIND_LAMBDA_MAX, Method, Target, TeacherContext

__all__ = ["BLIND_LAMBDA_MAX", "METHODS", "Method", "Target", "TeacherContext", "get_method"]


METHODS: dict[str, type[Method]] = named_subclasses(Method, __name__, __path__)


def get_method(name: str) -> type[Method]:
    if name not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, found {name!r}")
    return METHODS[name]
