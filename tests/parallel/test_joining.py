"""A job that does not come together ends with one message that says who or what is missing."""

import json
import os
import re
import socket
import threading
import time

import pytest
from torch._C._distributed_c10d import Store

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import LaunchError
from glm_dist.parallel import joining
from tests.train.jobs import free_port


def launch(rank: int, world_size: int, port: int, address: str = "127.0.0.1") -> LaunchEnvironment:
    """A process that some launcher started."""
    return LaunchEnvironment(rank, world_size, rank, world_size, address, port, "environment")


def join(process: LaunchEnvironment, seconds: float, stores: list[Store] | None = None) -> str:
    """Join; return how it ended.

    Args:
        process: The process that joins.
        seconds: Deadline.
        stores: Keeps the store, which the others need.
    """
    deadline = time.monotonic() + seconds
    try:
        store = joining.open_store(process, deadline=deadline)
        if stores is not None:
            stores.append(store)
        joining.wait_for_ranks(store, process, deadline=deadline, minutes=seconds / 60)
    except LaunchError as error:
        return str(error)
    except SystemExit as end:
        return f"status {end.code}"
    return "joined"


def join_together(processes: list[LaunchEnvironment], seconds: float) -> list[str]:
    """Join from threads; how each ended."""
    ends = [""] * len(processes)
    stores: list[Store] = []

    def one(number: int) -> None:
        ends[number] = join(processes[number], seconds, stores)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_absent_ranks_are_listed_while_waiting_and_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(joining, "FIRST_NOTICE_SECONDS", 0.5)
    port, host = free_port(), socket.gethostname()

    first, third = join_together([launch(rank, 4, port) for rank in (0, 2)], 1.5)

    assert f"waiting for ranks 1, 3 of 4; present: ranks 0, 2 on {host}" in caplog.messages
    assert first.startswith(
        f"Ranks 1, 3 of 4 did not join within 0.025 min; present: ranks 0, 2 on {host}.\n"
    )
    assert third == "status 2"  # one message is enough


def test_ranks_that_are_all_there_join() -> None:
    port = free_port()
    assert join_together([launch(rank, 3, port) for rank in range(3)], 20) == ["joined"] * 3


def test_a_port_in_use_is_one_sentence_with_the_option_to_change_it() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        found = join(launch(0, 2, port), 5)
    assert re.fullmatch(
        rf"Port {port} on \S+ cannot be opened: another program uses it\.\n"
        r"  Choose another one: --master_port under deepspeed.*",
        found,
    )


def test_a_store_that_is_not_there_is_named_with_address_and_port() -> None:
    port = free_port()
    found = join(launch(1, 2, port), 0.5)
    assert f"cannot reach rank 0 at 127.0.0.1:{port}: Connection refused.\n" in found


def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "NAME_SECONDS", 0.0)
    found = join(launch(1, 2, free_port(), "no.such.host.invalid"), 5)
    assert found.startswith("MASTER_ADDR=no.such.host.invalid is unknown on ")


def test_two_processes_of_one_rank_are_named() -> None:
    port = free_port()
    holder = launch(0, 2, port)
    store = joining.open_store(holder, deadline=time.monotonic() + 20)
    store.set("glm_dist/joining/0", json.dumps(["elsewhere", 7]))
    with pytest.raises(LaunchError) as caught:
        joining.wait_for_ranks(store, holder, deadline=time.monotonic() + 5, minutes=1)
    assert str(caught.value).startswith(
        f"Two processes have rank 0: process 7 on elsewhere and process {os.getpid()} on "
    )


def test_a_store_that_ends_while_ranks_join_is_one_sentence() -> None:
    port = free_port()
    held = [joining.open_store(launch(0, 3, port), deadline=time.monotonic() + 20)]
    threading.Timer(1.0, held.clear).start()
    assert "cannot reach rank 0 at" in join(launch(1, 3, port), 20)
