"""Time of a job: when it must stop so that its last save still fits.

Limits are ``run.max_minutes``, counted from the start of the process, and SLURM_JOB_END_TIME.
Launchers have another one: the time between their TERM and their KILL.
"""

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

SAVE_BYTES_PER_SECOND = 200e6
"""Cautious rate of a whole job's save, used until one was measured: a single network disk."""

STATE_BYTES_PER_PARAMETER = 12
"""Masters and two moments in fp32."""

MARGIN_SECONDS = 30.0
"""Time kept for the end of the program, or ``MARGIN_SHARE`` of the time allowed if that is less."""

MARGIN_SHARE = 0.05

SAVE_SLACK = 1.5
"""A save may take this many times the longest of the last ones: other jobs use the disk as well."""

REMEMBERED = 20
"""Steps whose longest counts."""

GRACE_SECONDS = {"deepspeed": 30, "torchrun": 30, "srun": 30}
"""Seconds between a launcher's TERM and its KILL; SLURM's are KillWait, 30 unless configured."""

DOCKER_GRACE_SECONDS = 10


class TimeLimit:
    """The clock of a job with its limits; rank 0's decides for all."""

    def __init__(
        self,
        *,
        parameters: int,
        started: float,
        max_minutes: float = 0.0,
        end: float = 0.0,
        launcher: str = "python",
    ) -> None:
        """Store the limits.

        Args:
            parameters: Of the whole model; the first save's length is estimated from them.
            started: Start of the process, seconds since 1970.
            max_minutes: Limit in minutes; 0 means none.
            end: End of the job, seconds since 1970; 0 if unknown.
            launcher: As ``LaunchEnvironment.launcher``.
        """
        limits = [(end, "SLURM_JOB_END_TIME")] if end > 0 else []
        if max_minutes > 0:
            limits.append((started + 60 * max_minutes, f"run.max_minutes={max_minutes:g}"))
        self._end, self.name = min(limits, default=(float("inf"), ""))
        self._margin = min(MARGIN_SECONDS, MARGIN_SHARE * max(0.0, self._end - started))
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._since: float | None = None
        self.save_seconds = parameters * STATE_BYTES_PER_PARAMETER / SAVE_BYTES_PER_SECOND
        """Length of a save: the longer of the last two, before the first an estimate."""
        self._last_save: float | None = None
        self._save_began: float | None = None
        self._saves_in_background = False
        self._launcher = launcher
        self._warned: set[bool] = set()

    def step_done(self, now: float) -> None:
        """Note the end of a step.

        Args:
            now: Seconds since 1970.
        """
        if self._since is not None:
            self._steps.append(now - self._since)
        self._since = now

    def save_began(self, now: float) -> None:
        """Note that a save in the background is in flight, which the last one would wait for.

        Args:
            now: Seconds since 1970.
        """
        self._save_began, self._saves_in_background = now, True

    def save_done(self, seconds: float, *, waited: bool = True) -> None:
        """Note a save; its time is not the step's.

        Args:
            seconds: From the end of a step until the checkpoint was complete.
            waited: False if training went on meanwhile.
        """
        self._save_began = None
        self.save_seconds = max(seconds, self._last_save or 0.0)
        self._last_save = seconds
        if waited and self._since is not None:
            self._since += seconds

    def is_near(self, now: float, *, steps: int) -> bool:
        """Return True if there is no time for more steps and a save.

        Never before the first step: each start makes progress, or restarts would go on for ever.

        Args:
            now: Seconds since 1970.
            steps: Steps that would come before the next question.
        """
        if not self._steps:
            return False
        step, save = steps * max(self._steps), SAVE_SLACK * self.save_seconds
        if self._save_began is not None:
            save += max(0.0, self._save_began + save - (now + step))
        return now + step + save + self._margin >= self._end

    def warn_of_grace(self) -> None:
        """Warn if a save takes longer than the launcher's grace; for an estimate, then a measure.

        Called before the first save and after each.
        """
        measured = self._last_save is not None
        text = grace_warning(
            self._launcher,
            self.save_seconds,
            measured=measured,
            in_docker=is_in_docker(),
            in_background=self._saves_in_background,
        )
        if text and measured not in self._warned:
            self._warned.add(measured)
            log.warning("%s", text)


def job_end(environ: Mapping[str, str]) -> float:
    """Read when SLURM ends the job.

    Args:
        environ: Environment of the process.

    Returns:
        Seconds since 1970; 0 if unknown.
    """
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdecimal() else 0.0


def grace_warning(
    launcher: str,
    seconds: float,
    *,
    measured: bool,
    in_docker: bool,
    in_background: bool = False,
) -> str:
    """Say that a save takes longer than the launcher waits between TERM and KILL.

    Args:
        launcher: As ``LaunchEnvironment.launcher``.
        seconds: Length of a save.
        measured: False for an estimate.
        in_docker: True inside a container that ``docker stop`` may end.
        in_background: The last save may have to wait for another one.

    Returns:
        One sentence with the remedy; empty if there is enough time.
    """
    grace = GRACE_SECONDS.get(launcher, 0)
    if in_docker and launcher != "srun":
        launcher, grace = "docker stop", DOCKER_GRACE_SECONDS
    saves = 2 if in_background else 1
    if not grace or saves * seconds <= grace:
        return ""
    needed = max(60, 60 * round(2 * saves * seconds / 60 + 0.5))
    if launcher == "srun":
        advice = f"submit with --signal=USR1@{needed}, which asks that much earlier"
    elif launcher == "docker stop":
        advice = f"stop the container with docker stop -t {needed}"
    else:
        advice = "send USR1 to one rank instead, which has no such limit, or set run.max_minutes"
    kind = "takes" if measured else "may take"
    more = " and the one before must end first" if in_background else ""
    return (
        f"a save {kind} {seconds:.0f} s{more}, but {launcher} kills {grace} s after TERM, before it"
        f" is complete; {advice}"
    )


def is_in_docker() -> bool:
    """Return True in a container of docker's or podman's."""
    return any(Path(file).exists() for file in ("/.dockerenv", "/run/.containerenv"))
