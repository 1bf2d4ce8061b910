"""One rank's failure is everybody's, in the same words and of the same class."""

import pickle

import pytest
import torch.distributed as dist

from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.parallel.errors import Ranks
from tests.ranks import run_ranks


class Unpicklable(Exception):  # noqa: N818
    """An error that cannot travel; its words must."""

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("not me")


def attempt(ranks: Ranks, errors: dict[int, Exception] | dict[int, KeyboardInterrupt]) -> None:
    with ranks.together("try", "place"):
        if ranks.rank in errors:
            raise errors[ranks.rank]


def failure(ranks: Ranks, errors: dict[int, Exception]) -> tuple[str, str]:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        attempt(ranks, errors)
    pickle.dumps(caught.value)
    return type(caught.value).__name__, str(caught.value)


def check_failures() -> list[tuple[str, str]]:
    ranks = Ranks(None)
    ours = ConfigError(key="paths.runs", found="x", expected="y", fix="z")
    with ranks.together("do nothing wrong", "place"):
        pass
    seen = [
        failure(ranks, {1: OSError(28, "No space left on device")}),
        failure(ranks, {1: ours}),
        failure(ranks, {0: ValueError("a"), 1: ValueError("b")}),
        failure(ranks, {1: Unpicklable("odd")}),
    ]
    assert ranks.gather(ranks.rank) == [0, 1]
    assert ranks.on_first("name itself", "place", lambda: f"rank {ranks.rank}") == "rank 0"
    return seen


def check_a_rank_that_is_stopped() -> str:
    """An interrupt stays one where it arrives, and the others do not wait."""
    ranks = Ranks(dist.group.WORLD)
    with pytest.raises((KeyboardInterrupt, CheckpointError)) as caught:
        attempt(ranks, {1: KeyboardInterrupt()})
    return type(caught.value).__name__


def check_all() -> tuple[list[tuple[str, str]], str]:
    return check_failures(), check_a_rank_that_is_stopped()


def test_ranks_fail_together() -> None:
    (first, first_stop), (second, second_stop) = run_ranks(check_all, world_size=2)
    assert first == second
    full, ours, both, odd = first
    assert full[0] == "CheckpointError"
    assert "OSError on rank 1: [Errno 28] No space left on device" in full[1]
    assert "expected every rank to try" in full[1]
    assert "Fix: free space there" in full[1]
    assert ours == ("ConfigError", "paths.runs = x: expected y.\n  Fix: z.")
    assert "place = ValueError on rank 0: a; ValueError on rank 1: b: expected" in both[1]
    assert "Unpicklable on rank 1: odd" in odd[1]
    assert (first_stop, second_stop) == ("CheckpointError", "KeyboardInterrupt")


def test_one_process_without_a_group_agrees_with_itself() -> None:
    ranks = Ranks(None)
    assert (ranks.rank, ranks.size, ranks.gather("x")) == (0, 1, ["x"])
    assert failure(ranks, {0: PermissionError(13, "Permission denied")})[1].endswith(
        "Fix: make it writable for this user, or point paths.runs elsewhere."
    )
