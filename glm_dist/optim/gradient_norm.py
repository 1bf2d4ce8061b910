"""Global gradient norm: squares of each parameter in fp64, one small sum over ranks.

Nothing here waits for the device. The squares also say which parameters have gradients that are
not finite.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from glm_dist.model.parameters import ParameterShard


def is_counted(shard: ParameterShard, *, tensor_rank: int) -> bool:
    """Return True if this rank counts the parameter; others may hold the same one.

    Tensor rank 0 counts what all tensor ranks hold; the first stage counts the word table.

    Args:
        shard: A parameter.
        tensor_rank: Index in the tensor-parallel group.
    """
    return (shard.tensor_dim is not None or tensor_rank == 0) and not shard.is_tied_copy


class GradientNorm:
    """The norm of what all ranks of a group hold of a gradient."""

    def __init__(
        self,
        parts: Sequence[tuple[ParameterShard, torch.Tensor]],
        *,
        tensor_rank: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        """Look at gradients that stay where they are.

        Args:
            parts: This rank's part of each parameter's gradient [n].
            tensor_rank: Index in the tensor-parallel group.
            group: Ranks with all parts; None: all ranks.
            device: The rank's device.
        """
        self.names = [shard.name for shard, _ in parts]
        self._parts = [part for _, part in parts]
        counted = [float(is_counted(shard, tensor_rank=tensor_rank)) for shard, _ in parts]
        self._counted = torch.tensor(counted, dtype=torch.float64, device=device)
        self._group = group

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute it. Collective over the group.

        Returns:
            The norm [] in fp64, not finite if any gradient of any rank is not; and the square of
            each of this rank's parts [n].
        """
        squares = torch.zeros_like(self._counted)
        if self._parts:
            norms = torch._foreach_norm(self._parts, 2, dtype=torch.float64)
            squares = torch.stack(list(norms)).square_()
        # A part that is not counted adds 0, or nan if it is not finite.
        total = (squares * self._counted).sum()
        if dist.get_world_size(self._group) > 1:
            dist.all_reduce(total, group=self._group)
        return total.sqrt_(), squares
