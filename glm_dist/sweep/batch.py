"""A sweep as a job array of SLURM: one task a point, submitted in one call."""

import hashlib
import itertools
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from glm_dist.errors import ConfigError, LaunchError
from glm_dist.files import is_file, write_atomically

SCRIPT = Path("launchers/sweep.sh")
"""Batch script, below the folder from which sweeps are submitted."""


def points_folder(folder: Path, arguments: Sequence[Sequence[str]]) -> Path:
    """Name the folder of the points' arguments.

    A sweep with other points gets another one, since tasks of the first may still wait.

    Args:
        folder: Folder of the sweep.
        arguments: Of ``glm-dist``, for each point.
    """
    return folder / f"points.{hashlib.sha256(repr(arguments).encode()).hexdigest()[:8]}"


def array_command(
    folder: Path, numbers: Sequence[int], *, jobs: int | None, options: str
) -> list[str]:
    """Write the sbatch command of a sweep.

    Args:
        folder: Of ``points_folder``.
        numbers: Points to run.
        jobs: Points at a time; None: as many as the cluster has room for.
        options: More options of sbatch.

    Raises:
        ConfigError: The options are no words of a command line.
    """
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise ConfigError(
            f"--sbatch {options!r} is no list of options ({error}).\n"
            "  Write for example --sbatch='--partition=gpu --time=2:00:00'.",
            key="--sbatch",
            value=options,
            fix="--sbatch='--partition=gpu --time=2:00:00'",
        ) from error
    array = f"--array={_ranges(numbers)}{'' if jobs is None else f'%{jobs}'}"
    return ["sbatch", array, *words, str(SCRIPT), str(folder)]


def submit(command: Sequence[str], folder: Path, arguments: Sequence[Sequence[str]]) -> str:
    """Write the arguments of all points, and submit the array.

    Args:
        command: Of ``array_command``.
        folder: Of ``points_folder``.
        arguments: Of ``glm-dist``, for each point.

    Returns:
        What sbatch answered.

    Raises:
        LaunchError: There is no SLURM here, or it refused.
    """
    check_cluster()
    folder.mkdir(parents=True, exist_ok=True)
    for number, words in enumerate(arguments):
        write_atomically(folder / f"{number}.txt", "".join(f"{word}\n" for word in words))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip() or f"status {done.returncode}"
        raise LaunchError(
            f"sbatch refused the array: {reason}\n"
            f"  Change its options with --sbatch='<options>'; it was: {shlex.join(command)}",
            key="--sbatch",
            value=reason,
            fix="--sbatch='<options>'",
        )
    return done.stdout.strip()


def check_cluster() -> None:
    """Refuse to submit where that cannot work.

    Raises:
        LaunchError: No sbatch, or not in the repository's folder.
    """
    if shutil.which("sbatch") is None:
        raise LaunchError(
            "--slurm needs sbatch, which is not on this machine.\n"
            "  Run it on a login node of the cluster, or leave --slurm out to run the points here.",
            key="--slurm",
            value=None,
            fix="leave --slurm out",
        )
    if not is_file(SCRIPT):
        raise LaunchError(
            f"--slurm submits {SCRIPT}, which is not in {Path.cwd()}.\n"
            "  Submit from the root of the repository.",
            key="--slurm",
            value=str(Path.cwd()),
            fix="cd <repository>",
        )


def check_lines(arguments: Sequence[str]) -> None:
    """Refuse arguments that do not fit into lines.

    Raises:
        ConfigError: One has a line break.
    """
    for word in arguments:
        if "\n" in word:
            raise ConfigError(
                f"{word!r} has a line break, which --slurm cannot hand on.\n"
                "  Put the value into a file of conf/, or leave --slurm out.",
                key="command line",
                value=word,
                fix="leave --slurm out",
            )


def _ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers as sbatch reads them, such as 0,2-5."""
    pieces = []
    for _, run in itertools.groupby(enumerate(numbers), lambda each: each[1] - each[0]):
        members = [number for _, number in run]
        pieces.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ",".join(pieces)
