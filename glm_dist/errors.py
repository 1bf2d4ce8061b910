"""The errors a user meets: one class per kind of remedy, one message form.

Every message states the key or file, what was found there, what was expected and how to mend it.
The class builds the sentence, so no caller can leave a part out.
"""


class GlmDistError(Exception):
    """A mistake in the user's input that is known before it costs accelerator time."""

    def __init__(self, *, key: str, found: object, expected: str, fix: str) -> None:
        """Compose the message.

        Args:
            key: Configuration key, file or launch variable at fault, as the user would type it.
            found: The value that was met there.
            expected: What would have been right, in words that follow "expected".
            fix: What to type or change, as one imperative sentence without its full stop.
        """
        self.key = key
        self.found = found
        self.expected = expected
        self.fix = fix
        super().__init__(f"{key} = {found}: expected {expected}.\n  Fix: {fix}.")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword, so that the error survives the way out of a worker process."""
        return (_rebuild, (type(self), self.key, self.found, self.expected, self.fix))


def _rebuild(
    kind: type[GlmDistError], key: str, found: object, expected: str, fix: str
) -> GlmDistError:
    return kind(key=key, found=found, expected=expected, fix=fix)


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
