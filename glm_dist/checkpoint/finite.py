"""Check that weights and moments are finite, before they are saved and after they are loaded.

A NaN in a checkpoint has no way back: its hashes hold, and every start from it fails.
"""

import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from glm_dist.checkpoint.folders import list_steps
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.errors import CheckpointError, TrainingError
from glm_dist.parallel.errors import Ranks

_MAX_LISTED = 5


def check_before_save(
    fragments: Mapping[str, Fragment], ranks: Ranks, *, step: int, directory: Path
) -> None:
    """Refuse to save values that are not finite; collective over all ranks.

    Args:
        fragments: This rank's parts of the state, by global name.
        ranks: Participating processes.
        step: Step to be saved.
        directory: The run's checkpoints folder, for the advice.

    Raises:
        TrainingError: On every rank, with the tensors and the ranks that hold them.
    """
    holders = _holders(fragments, ranks)
    if not holders:
        return
    older = ranks.on_first(
        "list the checkpoints",
        str(directory),
        lambda: [number for number, _ in list_steps(directory) if number < step],
    )
    advice = "Start again under another run.name with a lower optimizer.learning_rate."
    if older:
        advice = f"Earlier checkpoints are intact; go back to one with checkpoint.step={older[0]}."
    raise TrainingError(
        f"Step {step} is not saved, because its state is not finite: {'; '.join(holders)}.\n"
        f"  {advice}",
        key=f"step {step}",
        value="; ".join(holders),
        fix=f"checkpoint.step={older[0]}" if older else "run.name=<new>",
    )


def check_after_load(path: Path, fragments: Mapping[str, Fragment], ranks: Ranks) -> None:
    """Refuse a checkpoint whose values are not finite; collective over all ranks.

    Args:
        path: The checkpoint.
        fragments: Filled from it.
        ranks: Participating processes.

    Raises:
        CheckpointError: On every rank.
    """
    holders = _holders(fragments, ranks)
    if holders:
        raise not_finite(path, "; ".join(holders))


def not_finite(path: Path, names: str) -> CheckpointError:
    """Build the error for a checkpoint with values that are not finite.

    Args:
        path: The checkpoint.
        names: Its tensors that have them.
    """
    return CheckpointError(
        f"{path} holds values that are not finite: {names}.\n"
        "  Use an earlier checkpoint: checkpoint.step=<step> in training, --step <step> elsewhere.",
        key=str(path),
        value=names,
        fix="checkpoint.step=<earlier step>",
    )


def non_finite(tensors: Mapping[str, Sequence[torch.Tensor]]) -> list[str]:
    """Return the names of tensors with a NaN or an infinity, in one reduction per device.

    Args:
        tensors: Parts of each tensor, by name.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[str, torch.Tensor]]] = {}
    for name, parts in tensors.items():
        for part in parts:
            if part.is_floating_point() and part.numel():
                groups.setdefault((part.device, part.dtype), []).append((name, part.detach()))
    found = set()
    for group in groups.values():
        # The largest magnitude: unlike a sum of squares it cannot overflow.
        norms = torch._foreach_norm([part for _, part in group], ord=math.inf)
        finite = torch.stack(list(norms)).isfinite().tolist()
        found |= {name for (name, _), good in zip(group, finite, strict=True) if not good}
    return sorted(found)


def _holders(fragments: Mapping[str, Fragment], ranks: Ranks) -> list[str]:
    mine = non_finite({name: fragment.boxes for name, fragment in fragments.items()})
    each = ranks.gather((socket.gethostname(), mine))
    return [
        f"rank {rank} on {host}: {_listed(names)}"
        for rank, (host, names) in enumerate(each)
        if names
    ]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
