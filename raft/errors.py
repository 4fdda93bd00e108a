"""Every error that a user can cause, or must act on. The command line prints one line and exits with `exit_code`."""


class RaftError(Exception):
    """Base of all errors below; its message is one line that names the place, the value and what was expected."""

    exit_code = 2


class InputError(RaftError, ValueError):
    """A data file or a row is not what was expected."""


class ConfigError(RaftError, ValueError):
    """A setting has an unknown name, a wrong type or a value outside its range."""


class ModelError(RaftError, ValueError):
    """A model cannot be used: its path, weights, tokenizer, chat template, configuration or architecture."""


class RunFolderError(RaftError, FileExistsError):
    """A run folder cannot be used as asked: it needs a choice, is not a run's, or holds nothing that can be gone on with."""


class EngineError(RaftError, RuntimeError):
    """A generation engine cannot be built as asked, or no longer follows the weights it should."""


class Interrupted(KeyboardInterrupt):
    """The user (Ctrl-C) or the system (SIGTERM) asked the run to stop; what was done is on disk and can be resumed.

    No RaftError, for it must pass every `except Exception` on its way up, those of libraries included.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum
