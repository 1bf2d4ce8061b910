"""Comparison of what every host brings to a job: libraries, configuration and files of data.

A node with an older environment, another checkout or other variables trains along and changes the
result, or fails much later in a place that says nothing of the cause.
"""

import hashlib
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch

import glm_dist
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.schema import RunConfig
from glm_dist.config.surroundings import THREADS, variables
from glm_dist.config.values import values_of
from glm_dist.errors import LaunchError
from glm_dist.observe.run_folder import library_versions
from glm_dist.parallel.errors import Ranks

log = logging.getLogger(__name__)

LOCAL_KEYS = ("paths.data", "tokenizer.path")
"""Keys that may differ: a host may have its own copy of the data, which hashes compare."""

MAX_SHOWN = 8

Facts: TypeAlias = Mapping[str, str]


def check_same_everywhere(config: RunConfig) -> None:
    """Refuse a job whose processes differ; collective over all ranks, before anything is built.

    Args:
        config: This process's configuration.

    Raises:
        LaunchError: On every rank, with the values that differ and their hosts.
    """
    _check_same(
        facts_of(config),
        problem="The processes of this job differ:",
        fix="the same environment on every host",
        advice="Start all of them from the same environment and checkout, with the same variables.",
    )


def agree_on_surroundings(launch: LaunchEnvironment, environ: Mapping[str, str]) -> None:
    """Refuse ranks with other variables, and let all use the same number of threads. Collective.

    Args:
        launch: Identity of this process.
        environ: Its environment.

    Raises:
        LaunchError: On every rank, with the variables, their values and ranks.
    """
    mine = variables(environ)
    if launch.threads is not None:
        del mine[THREADS]
    ranks = Ranks(None)
    threads = torch.get_num_threads()
    gathered = ranks.gather((socket.gethostname(), mine, launch.threads, threads))
    # A number that this program chose, even on some ranks only, is compared as it is used.
    if len({(chosen is None, used) for *_, chosen, used in gathered}) > 1:
        if all(chosen is not None for *_, chosen, _ in gathered):
            threads = min(used for *_, used in gathered)
            log.info("OMP_NUM_THREADS=%d on all ranks: hosts have different cores", threads)
            torch.set_num_threads(threads)
        else:
            gathered = [
                (host, found | {THREADS: str(used)}, chosen, used)
                for host, found, chosen, used in gathered
            ]
    different = sorted(
        name
        for name in {name for _, found, *_ in gathered for name in found}
        if len({found.get(name) for _, found, *_ in gathered}) > 1
    )
    if not different:
        return
    lines = [
        _line_of_ranks(name, [(host, found) for host, found, *_ in gathered]) for name in different
    ]
    raise LaunchError(
        "The processes of this job have different variables:\n" + "\n".join(lines) + "\n"
        "  Export the same values on every host; under deepspeed --hostfile, write them to"
        " .deepspeed_env (glm-dist hostfile --exports).",
        key=different[0],
        value=", ".join(different),
        fix=f"export {different[0]} on every host",
    )


def _line_of_ranks(name: str, gathered: list[tuple[str, Facts]]) -> str:
    """Show the values of one variable with their ranks and the first one's host."""
    by_value: dict[str, list[int]] = {}
    for rank, (_, found) in enumerate(gathered):
        by_value.setdefault(found.get(name, "unset"), []).append(rank)
    parts = []
    for value, ranks in by_value.items():
        more = f" and {len(ranks) - MAX_SHOWN} more" if len(ranks) > MAX_SHOWN else ""
        shown = ", ".join(map(str, ranks[:MAX_SHOWN])) + more
        parts.append(
            f"{value} on rank{'s' if len(ranks) > 1 else ''} {shown} ({gathered[ranks[0]][0]})"
        )
    return f"  {name}: " + ", ".join(parts)


def check_same_data(digests: Facts) -> None:
    """Refuse a job whose hosts have other files of data; collective over all ranks.

    Validation on other examples would also give ranks other metrics, and let them go separate ways.

    Args:
        digests: See ``Workload.digests``.

    Raises:
        LaunchError: On every rank, with the digests that differ and their hosts.
    """
    _check_same(
        digests,
        problem="The hosts of this job have read different data:",
        fix="the same files on every host",
        advice="Copy the same files to every host, or name files on a shared file system.",
    )


def _check_same(mine: Facts, *, problem: str, fix: str, advice: str) -> None:
    ranks = Ranks(None)
    # Everything from every rank would be megabytes; most jobs are the same everywhere.
    if len(set(ranks.gather(hash_of(mine)))) == 1:
        return
    gathered = ranks.gather((socket.gethostname(), mine))
    different = sorted(
        name
        for name in {name for _, facts in gathered for name in facts}
        if len({facts.get(name) for _, facts in gathered}) > 1
    )
    lines = [_line(name, gathered) for name in different[:MAX_SHOWN]]
    more = len(different) - MAX_SHOWN
    lines += [f"  and {more} more"] if more > 0 else []
    raise LaunchError(
        f"{problem}\n" + "\n".join(lines) + f"\n  {advice}",
        key=different[0],
        value=", ".join(different),
        fix=fix,
    )


def facts_of(config: RunConfig) -> Facts:
    """Return versions, kind of device and configuration by name, as text."""
    versions = {f"version of {name}": str(x) for name, x in library_versions().items()}
    versions["source of glm_dist"] = _source()
    versions["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    values = {
        name: str(value)
        for name, value in values_of(config)
        if name not in LOCAL_KEYS and not name.endswith(".prefix")
    }
    return versions | values


def _source() -> str:
    """Digest the package's modules: two checkouts may have the same version."""
    package = Path(glm_dist.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def hash_of(facts: Facts) -> str:
    """Digest facts; equal in every process."""
    text = "\n".join(f"{name}={value}" for name, value in sorted(facts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _line(name: str, gathered: list[tuple[str, Facts]]) -> str:
    """Show the values of one name with their first host."""
    hosts: dict[str, str] = {}
    for host, facts in gathered:
        hosts.setdefault(facts.get(name, "absent"), host)
    return f"  {name}: " + ", ".join(f"{value} on {host}" for value, host in hosts.items())
