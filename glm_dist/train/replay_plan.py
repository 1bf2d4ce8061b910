"""Choice of the steps of a run that a replay can be compared with; no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_dist.checkpoint.folders import list_steps
from glm_dist.errors import CheckpointError
from glm_dist.observe.metrics import GRAD_NORM, TRAIN_LOSS
from glm_dist.observe.metrics_file import METRICS_FILE, REWOUND, STARTED, sound_records
from glm_dist.observe.run_folder import CHECKPOINTS


@dataclass(frozen=True)
class Recorded:
    """Metrics of a run's record, over one step or several."""

    first: int
    """First step of the record; the loss is the mean from here."""
    last: int
    """Last step; the gradient norm is this step's."""
    loss: float
    grad_norm: float | None
    """None if the record has none."""


@dataclass(frozen=True)
class Plan:
    """Checkpoint to start from, and all that its replay is compared with."""

    start: int
    """Step of the checkpoint."""
    records: tuple[Recorded, ...]
    until: int
    """Last step to replay."""
    later: int | None
    """Step of a later checkpoint whose weights are compared, which is ``until``; None: none."""


def recorded_windows(records: Iterable[Mapping[str, Any]]) -> list[Recorded]:
    """Return the records that count, by step, with the steps that each of them covers.

    Args:
        records: Lines of ``metrics.jsonl`` in the order of the file.
    """
    before: dict[int, int] = {}
    kept: dict[int, Recorded] = {}
    for record in records:
        attempt, step = record["attempt"], record["step"]
        if record.get("event") in (STARTED, REWOUND):
            kept = {last: each for last, each in kept.items() if last <= step}
            before[attempt] = step
        elif isinstance(record.get(TRAIN_LOSS), float) and step > before.get(attempt, step):
            norm = record.get(GRAD_NORM)
            kept[step] = Recorded(
                before[attempt] + 1,
                step,
                record[TRAIN_LOSS],
                norm if isinstance(norm, float) else None,
            )
            before[attempt] = step
    return [kept[step] for step in sorted(kept)]


def rewind_targets(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the steps that the run has rewound to in the history that counts.

    Args:
        records: Lines of ``metrics.jsonl`` in the order of the file.
    """
    targets: list[int] = []
    for record in records:
        if record.get("event") in (STARTED, REWOUND):
            # A start at the very step of a rewind has a checkpoint that knows nothing of it.
            targets = [target for target in targets if target < record["step"]]
        if record.get("event") == REWOUND:
            targets.append(record["step"])
    return targets


def plan_replay(
    checkpoints: Sequence[int],
    records: Sequence[Recorded],
    *,
    step: int | None,
    steps: int,
    rewinds: Sequence[int] = (),
) -> Plan | None:
    """Choose the checkpoint to replay from, and how far.

    Args:
        checkpoints: Steps of the checkpoints.
        records: Records that count.
        step: Checkpoint asked for; None: the newest one after which there is something to compare.
        steps: Most steps to replay.
        rewinds: Steps that the run has rewound to. A checkpoint up to one of them does not have
            the rows that were passed over then, so its replay ends there.

    Returns:
        None if nothing was recorded in the steps after the checkpoint.
    """
    for start in sorted(checkpoints, reverse=True) if step is None else [step]:
        end = min([start + steps, *(target for target in rewinds if target >= start)])
        inside = tuple(each for each in records if start < each.first and each.last <= end)
        later = max((c for c in checkpoints if start < c <= end), default=None)
        if later is not None:
            inside = tuple(each for each in inside if each.last <= later)
            return Plan(start, inside, later, later)
        if inside:
            return Plan(start, inside, inside[-1].last, None)
    return None


def plan_for(run: Path, *, step: int | None, steps: int) -> Plan:
    """Plan the replay of a run's steps from its files.

    Args:
        run: The run's folder.
        step: Checkpoint asked for; see ``plan_replay``.
        steps: Most steps to replay.

    Raises:
        CheckpointError: There is no checkpoint, or nothing to compare.
    """
    checkpoints = [number for number, _ in list_steps(run / CHECKPOINTS)]
    wanted = checkpoints if step is None else [step]
    if not set(wanted) & set(checkpoints):
        listed = ", ".join(map(str, sorted(checkpoints))) or "none"
        asked = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        raise CheckpointError(
            f"{run} does not have {asked}; it has: {listed}.\n"
            "  Name one of these with --step, or another run.",
            key="--step",
            value=step,
            fix="leave --step out",
        )
    lines = list(sound_records(run / METRICS_FILE))
    records, rewinds = recorded_windows(lines), rewind_targets(lines)
    plan = plan_replay(checkpoints, records, step=step, steps=steps, rewinds=rewinds)
    if plan is None:
        raise _nothing_to_compare(run, wanted, checkpoints, records, steps=steps, rewinds=rewinds)
    return plan


def _nothing_to_compare(
    run: Path,
    wanted: Sequence[int],
    checkpoints: Sequence[int],
    records: Sequence[Recorded],
    *,
    steps: int,
    rewinds: Sequence[int],
) -> CheckpointError:
    starts = sorted(wanted, reverse=True)
    ends = [
        end - start
        for start in starts
        for end in (
            *(each.last for each in records if each.first > start),
            *(number for number in checkpoints if number > start),
        )
        if not any(start <= target < end for target in rewinds)
    ]
    remedy = "Check again after the run has gone on, or name an older checkpoint with --step"
    if ends:
        remedy = f"Replay more steps: --steps {min(ends)}"
    elif rewinds and max(rewinds) >= starts[0]:
        remedy = (
            f"The run has rewound to step {max(rewinds)} and passed over rows since, of which"
            " earlier checkpoints do not know; name a later one with --step"
        )
    return CheckpointError(
        f"Nothing can be compared: {run} has neither a whole record nor another checkpoint within"
        f" {steps} step(s) after its checkpoint of step {', '.join(map(str, starts))}.\n"
        f"  {remedy}.",
        key="--steps",
        value=steps,
        fix=f"--steps {min(ends)}" if ends else "--step <older>",
    )
