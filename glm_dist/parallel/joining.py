"""Start of a job of several processes: reach its store, and wait for the other ranks by name.

Each rank announces itself in the store before any process group is created, because torch waits
for absent ranks in silence. Every mistake of a launch that shows here is one message.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
from datetime import timedelta
from queue import Empty, Queue

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import LaunchError

log = logging.getLogger(__name__)

FIRST_NOTICE_SECONDS = 15.0
"""Time after which the absent ranks are listed for the first time."""

NOTICE_SECONDS = 60.0
"""Interval between later lists."""

POLL_SECONDS = 0.2

NAME_SECONDS = 60.0
"""Longest time in which the name of the first host may become known."""

ANSWER_SECONDS = 20.0
"""Time in which a store must answer once its port accepts connections."""

SHOWN_RANKS = 16

_COUNT, _ABSENT = "count", "absent"


def open_store(launch: LaunchEnvironment, *, deadline: float) -> Store:
    """Open or reach the job's store.

    Args:
        launch: Identity of this process.
        deadline: Reading of ``time.monotonic`` at which to give up.

    Raises:
        LaunchError: The address is unknown or cannot be reached, or the port is in use.
    """
    address, port = launch.master_addr, launch.master_port
    holds = launch.rank == 0 and not launch.has_agent_store
    _check_route(launch, deadline=deadline)
    descriptor = _listen(port) if holds else None
    _reach(launch, deadline=deadline)
    opened: Queue[Store | RuntimeError] = Queue()

    def connect() -> None:
        seconds = timedelta(seconds=max(deadline - time.monotonic(), 1.0))
        try:
            opened.put(
                TCPStore(
                    address,
                    port,
                    launch.world_size,
                    is_master=holds,
                    timeout=seconds,
                    wait_for_workers=False,
                    multi_tenant=holds and descriptor is None,
                    master_listen_fd=descriptor,
                )
            )
        except RuntimeError as error:
            opened.put(error)

    # Another program at the port may accept the connection and never answer.
    threading.Thread(target=connect, name="store", daemon=True).start()
    try:
        store = opened.get(timeout=max(min(ANSWER_SECONDS, deadline - time.monotonic()), 1.0))
    except Empty:
        store = RuntimeError("no answer")
    if isinstance(store, RuntimeError):
        reason = f"another program answers there, or another job ({_first_line(store)})"
        raise _unreachable(launch, reason)
    return store


def wait_for_ranks(
    store: Store, launch: LaunchEnvironment, *, deadline: float, minutes: float
) -> None:
    """Announce this rank and wait until all have announced themselves.

    Args:
        store: The job's store, with a prefix for this start of its ranks.
        launch: Identity of this process.
        deadline: Reading of ``time.monotonic`` at which to give up.
        minutes: The same as a duration, for the message.

    Raises:
        LaunchError: Ranks are absent, or two processes have the same rank.
        SystemExit: The same, on ranks that need not print it.
    """
    try:
        _wait(PrefixStore("glm_dist/joining", store), launch, deadline=deadline, minutes=minutes)
    except RuntimeError as error:
        raise _unreachable(launch, f"it left while ranks joined ({_first_line(error)})") from None


def _wait(
    board: PrefixStore, launch: LaunchEnvironment, *, deadline: float, minutes: float
) -> None:
    _announce(board, launch)
    notice = time.monotonic() + FIRST_NOTICE_SECONDS
    while board.add(_COUNT, 0) < launch.world_size:
        now = time.monotonic()
        if board.check([_ABSENT]):
            _give_up(board, launch, json.loads(board.get(_ABSENT)), minutes=minutes)
        absent = _absent(board, launch.world_size) if now >= min(deadline, notice) else []
        if now >= deadline and absent:
            board.set(_ABSENT, json.dumps(absent))
            _give_up(board, launch, absent, minutes=minutes)
        if now >= notice:
            notice = now + NOTICE_SECONDS
            if absent and launch.rank == _first_present(absent):
                present = _hosts(board, launch.world_size)
                log.warning(
                    "waiting for %s of %d; present: %s", _ranks(absent), launch.world_size, present
                )
        time.sleep(POLL_SECONDS)


def _announce(board: PrefixStore, launch: LaunchEnvironment) -> None:
    mine = json.dumps([socket.gethostname(), os.getpid()])
    holder = board.compare_set(str(launch.rank), "", mine).decode()
    if holder != mine:
        host, pid = json.loads(holder)
        raise LaunchError(
            f"Two processes have rank {launch.rank}: process {pid} on {host} and process"
            f" {os.getpid()} on {socket.gethostname()}.\n"
            "  Give every process its own RANK, or use another MASTER_PORT if they belong to"
            " different jobs.",
            key="RANK",
            value=launch.rank,
            fix="export MASTER_PORT=<another port>",
        )
    board.add(_COUNT, 1)


def _give_up(
    board: PrefixStore, launch: LaunchEnvironment, absent: list[int], *, minutes: float
) -> None:
    """End this rank; the first present rank prints the error and leaves last.

    Raises:
        LaunchError: On the first present rank.
        SystemExit: On the others.
    """
    present = _hosts(board, launch.world_size)
    if launch.rank != _first_present(absent):
        raise SystemExit(2)
    time.sleep(1.0)  # it may hold the store that the others still query
    raise LaunchError(
        f"{_ranks(absent).capitalize()} of {launch.world_size} did not join within {minutes:g} min;"
        f" present: {present}.\n"
        f"  See the output of the absent ones and whether their hosts reach"
        f" {launch.master_addr}:{launch.master_port}; watchdog.start_minutes allows more time.",
        key="watchdog.start_minutes",
        value=absent,
        fix="watchdog.start_minutes=30",
    )


def _absent(board: PrefixStore, world_size: int) -> list[int]:
    return [rank for rank in range(world_size) if not board.check([str(rank)])]


def _first_present(absent: list[int]) -> int:
    return next(rank for rank in range(len(absent) + 1) if rank not in absent)


def _hosts(board: PrefixStore, world_size: int) -> str:
    """Describe the present ranks by host."""
    by_host: dict[str, list[int]] = {}
    for rank in range(world_size):
        if board.check([str(rank)]):
            host, _ = json.loads(board.get(str(rank)))
            by_host.setdefault(host, []).append(rank)
    shown = [f"{_ranks(ranks)} on {host}" for host, ranks in list(by_host.items())[:SHOWN_RANKS]]
    more = len(by_host) - len(shown)
    return ", ".join(shown) + (f" and {more} more hosts" if more else "")


def _ranks(ranks: list[int]) -> str:
    """List ranks in words, at most ``SHOWN_RANKS`` of them."""
    shown = ", ".join(map(str, ranks[:SHOWN_RANKS]))
    more = f" and {len(ranks) - SHOWN_RANKS} more" if len(ranks) > SHOWN_RANKS else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def _check_route(launch: LaunchEnvironment, *, deadline: float) -> None:
    """Check that the first host's name is known and that there is a way to it.

    Raises:
        LaunchError: The name stays unknown, or a network interface is down.
    """
    last = min(deadline, time.monotonic() + NAME_SECONDS)
    warned = False
    while True:
        try:
            found = socket.getaddrinfo(
                launch.master_addr, launch.master_port, type=socket.SOCK_DGRAM
            )
            break
        except socket.gaierror as error:
            if time.monotonic() >= last:
                raise LaunchError(
                    f"MASTER_ADDR={launch.master_addr} is unknown on {socket.gethostname()}:"
                    f" {error.strerror}.\n"
                    "  Export MASTER_ADDR=<address of the host of rank 0>.",
                    key="MASTER_ADDR",
                    value=launch.master_addr,
                    fix="export MASTER_ADDR=<address of the host of rank 0>",
                ) from None
        if not warned and launch.local_rank == 0:
            warned = True
            log.warning("waiting for the name MASTER_ADDR=%s to be known", launch.master_addr)
        time.sleep(1.0)
    problem: OSError | None = None
    for family, kind, _, _, address in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # UDP: chooses a route and sends nothing
            return
        except OSError as error:
            problem = error
    assert problem is not None
    if problem.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        raise no_route(launch)


def no_route(launch: LaunchEnvironment) -> LaunchError:
    """Explain that a network interface is missing.

    Args:
        launch: Identity of this process.
    """
    return LaunchError(
        f"{socket.gethostname()} has no network interface that leads to"
        f" {launch.master_addr}; processes talk over the network even on one host.\n"
        "  Start the loopback with `ip link set lo up`, or export MASTER_ADDR and"
        " GLOO_SOCKET_IFNAME of an interface that is up.",
        key="MASTER_ADDR",
        value=launch.master_addr,
        fix="ip link set lo up",
    )


def _listen(port: int) -> int:
    """Open the store's port and return the socket's descriptor.

    Raises:
        LaunchError: The port is in use or not allowed.
    """
    dual = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            backlog=4096,
            dualstack_ipv6=dual,
        )
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "another program uses it" if in_use else error.strerror
        raise LaunchError(
            f"Port {port} on {socket.gethostname()} cannot be opened: {reason}.\n"
            "  Choose another one: --master_port under deepspeed, --master-port under torchrun,"
            " MASTER_PORT elsewhere.",
            key="MASTER_PORT",
            value=port,
            fix=f"--master_port {port + 1}",
        ) from None
    return listener.detach()


def _reach(launch: LaunchEnvironment, *, deadline: float) -> None:
    """Wait until the store's port accepts a connection.

    Raises:
        LaunchError: It does not before the deadline.
    """
    notice = time.monotonic() + FIRST_NOTICE_SECONDS
    while True:
        now = time.monotonic()
        try:
            address = (launch.master_addr, launch.master_port)
            socket.create_connection(address, timeout=max(min(5.0, deadline - now), 0.5)).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if now >= deadline:
            raise _unreachable(launch, reason)
        if now >= notice and launch.local_rank == 0:
            notice = now + NOTICE_SECONDS
            log.warning(
                "rank %d waits for rank 0 at %s:%d: %s",
                launch.rank,
                launch.master_addr,
                launch.master_port,
                reason,
            )
        time.sleep(min(POLL_SECONDS, max(deadline - now, 0.01)))


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [""])[0]


def _unreachable(launch: LaunchEnvironment, reason: str) -> LaunchError:
    host = socket.gethostname()
    holder = "torchrun's first process" if launch.has_agent_store else "rank 0"
    if launch.rank == 0 and not launch.has_agent_store:
        holder = "itself"
    address = f"{launch.master_addr}:{launch.master_port}"
    return LaunchError(
        f"Rank {launch.rank} on {host} cannot reach {holder} at {address}: {reason}.\n"
        "  MASTER_ADDR must be the host of rank 0, MASTER_PORT free there and open to all hosts;"
        " see also whether rank 0 has started.",
        key="MASTER_ADDR",
        value=address,
        fix="export MASTER_ADDR=<address of the host of rank 0>",
    )
