"""Errors that a user can cause or must act on. The command line prints the message and exits with `exit_code`."""


class RaftError(Exception):
    """Base of the errors below. The message is one line that names the place, the value and what was expected."""

    exit_code = 2


class InputError(RaftError, ValueError):
    """A data file or a row is wrong."""


class ConfigError(RaftError, ValueError):
    """A setting has an unknown name, a wrong type or a value outside its range."""


class ModelError(RaftError, ValueError):
    """A model cannot be used: its path, weights, tokenizer, chat template, configuration or architecture."""


class RunFolderError(RaftError, FileExistsError):
    """A run folder cannot be used: --resume or --overwrite is needed, it is not a run's, or it cannot be resumed."""


class EngineError(RaftError, RuntimeError):
    """A generation engine cannot be built, or no longer has the current weights of the model."""


class Interrupted(KeyboardInterrupt):
    """The user (Ctrl-C) or the system (SIGTERM) stopped the run. It can be resumed from what is on disk.

    It is not a RaftError, because no `except Exception` may catch it, not even in a library.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum
