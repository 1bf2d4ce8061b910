"""One rank's failure is everybody's: mistakes in the same words, bugs by the name of the rank."""

import pickle
import socket

import pytest

from glm_dist.errors import CheckpointError, ConfigError, GlmDistError
from glm_dist.parallel.errors import RankFailure, Ranks, as_checkpoint_error
from tests.ranks import run_ranks

HOST = socket.gethostname()


class Unpicklable(Exception):  # noqa: N818
    """An error that cannot travel; its words must."""

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("not me")


def attempt(ranks: Ranks, errors: dict[int, BaseException]) -> None:
    with ranks.raise_on_all_ranks("try", "path"):
        if ranks.rank in errors:
            raise errors[ranks.rank]


def failure(ranks: Ranks, errors: dict[int, BaseException]) -> tuple[str, str]:
    """Class and text of what this rank raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        attempt(ranks, errors)
    if isinstance(caught.value, GlmDistError | RankFailure):
        pickle.dumps(caught.value)
    return type(caught.value).__name__, str(caught.value)


def ours() -> ConfigError:
    return ConfigError("paths.runs is wrong.", key="paths.runs", value="x", fix="z")


def check_failures() -> list[tuple[str, str]]:
    ranks = Ranks(None)
    with ranks.raise_on_all_ranks("do nothing wrong", "path"):
        pass
    seen = [
        failure(ranks, {1: OSError(28, "No space left on device")}),
        failure(ranks, {0: ours(), 1: ours()}),
        failure(ranks, {1: ours()}),
        failure(ranks, {0: OSError(28, "No space left on device"), 1: OSError(30, "Read-only")}),
        failure(ranks, {1: KeyError("split")}),
        failure(ranks, {1: Unpicklable("odd")}),
        failure(ranks, {0: ours(), 1: KeyError("split")}),
        failure(ranks, {1: KeyboardInterrupt()}),
    ]
    assert ranks.gather(ranks.rank) == [0, 1]
    assert ranks.on_first("name itself", "path", lambda: f"rank {ranks.rank}") == "rank 0"
    with pytest.raises(ConfigError, match=r"^paths\.runs is wrong\.$"):
        ranks.on_first("fail", "path", lambda: attempt_alone(ours()))
    return seen


def attempt_alone(error: Exception) -> None:
    raise error


def test_ranks_fail_together() -> None:
    first, second = run_ranks(check_failures, world_size=2)

    full = "path: could not try: No space left on device.\n"
    full += "Free space there, or set paths.runs to a file system with room."
    readonly = "path: could not try: Read-only.\n"
    readonly += "Set paths.runs to a file system that is not read-only."
    named = f"rank 1 on {HOST} failed: "
    see = " (see its log/rank_0001.log)"
    assert first == [
        ("CheckpointError", f"Rank 1 on {HOST}: {full}"),
        ("ConfigError", "paths.runs is wrong."),
        ("ConfigError", f"Rank 1 on {HOST}: paths.runs is wrong."),
        ("CheckpointError", f"Rank 0 on {HOST}: {full}\nRank 1 on {HOST}: {readonly}"),
        ("RankFailure", f"{named}KeyError: 'split'{see}"),
        ("RankFailure", f"{named}Unpicklable: odd{see}"),
        ("RankFailure", f"{named}KeyError: 'split'{see}"),
        ("RankFailure", f"{named}KeyboardInterrupt: {see}"),
    ]
    own = {4: ("KeyError", "'split'"), 5: ("Unpicklable", "odd"), 6: ("KeyError", "'split'")}
    own[7] = ("KeyboardInterrupt", "")
    assert second == [own.get(number, seen) for number, seen in enumerate(first)]


def test_one_process_without_a_group_agrees_with_itself() -> None:
    ranks = Ranks(None)
    assert (ranks.rank, ranks.size, ranks.gather("x")) == (0, 1, ["x"])
    kind, text = failure(ranks, {0: PermissionError(13, "Permission denied")})
    assert kind == "CheckpointError"
    assert text.startswith("path: could not try: Permission denied.\nMake it writable")


def fail(error: Exception, *, while_handling: Exception | None = None) -> None:
    """Raise inside the translation, by itself or while another error is handled."""
    with as_checkpoint_error(task="write", path="p"):
        if while_handling is None:
            raise error
        try:
            raise while_handling
        except OSError:
            raise error  # noqa: B904  # as torch's writer does


def test_only_a_refusal_of_the_system_is_translated_inside_torch() -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(CheckpointError, match="p: could not write: No space left"):
        fail(RuntimeError("write failed"), while_handling=full)
    with pytest.raises(RuntimeError, match="bug"):
        fail(RuntimeError("bug"))
    with pytest.raises(KeyError):
        fail(KeyError("split"), while_handling=full)
