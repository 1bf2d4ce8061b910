"""The errors a user meets: one class per kind of remedy.

Each message is written by hand for its mistake: what is wrong, with the value; why, unless that is
obvious; what to do, as a command. Key, value and fix are also fields, for programs.
"""

EXIT_FINISHED = 0
"""Exit status of a run that has reached its last step, and of every other command that is done."""

EXIT_BUG = 1
"""Exit status after a failure that is ours to fix; a restart may help, for example after a crash of
the machine."""

EXIT_USER_ERROR = 2
"""Exit status after a mistake known before training; every restart would make it again."""

EXIT_STOPPED = 75
"""Exit status of a run that stopped on request and has lost nothing: start it again (EX_TEMPFAIL).
"""

EXIT_HUMAN_NEEDED = 76
"""Exit status of a run that failed in training in a way that a restart would only repeat: the loss
is not finite, the disk is full, all checkpoints are damaged, retries are used up."""

EXIT_UNSAVED = 130
"""Exit status of a run that stopped on request without saving; a restart would start over.

A shell reports the same status after Ctrl-C, and no launcher restarts such a program.
"""


class GlmDistError(Exception):
    """A mistake that the user can correct; anything else that goes wrong is a bug of ours."""

    status: int = EXIT_USER_ERROR
    """Exit status of the program; ``needs_human`` changes it for all that goes wrong in training.
    """
    rank: int | None = None
    """The only rank that met it; None if every rank raises the same."""

    def __init__(
        self,
        message: str,
        *,
        key: str,
        value: object = None,
        fix: str = "",
    ) -> None:
        """Keep the message and its parts.

        Args:
            message: All that the user reads.
            key: Configuration key, file or launch variable at fault, as the user would type it.
            value: The value that was met there.
            fix: What to type or change; empty if only the message can say it.
        """
        self.key = key
        self.value = value
        self.fix = fix
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with every field, so that the error survives the way out of a worker process."""
        return (_rebuild, (type(self), str(self), self.key, self.value, self.fix, self.status))


def _rebuild(
    kind: type[GlmDistError], message: str, key: str, value: object, fix: str, status: int
) -> GlmDistError:
    error = kind(message, key=key, value=value, fix=fix)
    error.status = status
    return error


class ConfigError(GlmDistError):
    """A configuration value is unknown, of the wrong type, or contradicts another one."""


class LaunchError(GlmDistError):
    """The processes that were started do not fit the configuration."""


class DataError(GlmDistError):
    """A corpus, tokenizer or example on disk is missing, damaged or of the wrong kind."""


class CheckpointError(GlmDistError):
    """A checkpoint is missing, incomplete, damaged or belongs to another run."""


class TrainingError(GlmDistError):
    """Training itself went wrong in a way that going on would only hide."""

    status = EXIT_HUMAN_NEEDED
