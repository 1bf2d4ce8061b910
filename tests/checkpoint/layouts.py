"""One set of global tensors and what each rank of several layouts holds of it.

Parts are cut with plain slicing, so that they do not depend on the code under test.
"""

import torch

from glm_dist.checkpoint.fragments import Fragment

LAYOUTS = {"one": 1, "rows": 2, "columns": 2, "flat": 2, "columns_flat": 4}
"""Ranks by layout."""


def global_tensors() -> dict[str, torch.Tensor]:
    """Distinct numbers everywhere; names as a model and its optimizer have them."""
    return {
        "model.weight": torch.arange(48.0).view(6, 8),
        "model.bias": torch.arange(5.0) + 100,
        "model.cube": torch.arange(24.0).view(2, 3, 4) + 200,
        "model.scale": torch.tensor(7.5),
        "exp_avg.weight": torch.arange(48.0).view(6, 8) + 300,
    }


def parts(layout: str, rank: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of what a rank holds, described for the checkpoint."""
    if layout == "one":
        return {name: tensor.clone() for name, tensor in tensors.items()}
    return {name: _part(layout, rank, tensor) for name, tensor in tensors.items()}


def data(part: torch.Tensor) -> list[float]:
    """Values of a part, box after box."""
    if not isinstance(part, Fragment):
        return part.flatten().tolist()
    return [x for _, view in part._boxes.values() for x in view.flatten().tolist()]


def _part(layout: str, rank: int, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() < 2 and layout != "flat":
        return tensor.clone()  # replicated, like a bias under tensor parallelism
    if layout == "rows":
        half = tensor.shape[0] // 2
        return Fragment(
            tensor[rank * half : (rank + 1) * half].clone(),
            global_shape=tensor.shape,
            offset=(rank * half, *[0] * (tensor.dim() - 1)),
        )
    if layout == "columns":
        local, offset = _columns(tensor, rank)
        return Fragment(local, global_shape=tensor.shape, offset=offset)
    if layout == "flat":
        return _flat(tensor, (0,) * tensor.dim(), tensor.shape, rank)
    local, offset = _columns(tensor, rank // 2)
    return _flat(local, offset, tensor.shape, rank % 2)


def _columns(tensor: torch.Tensor, rank: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    half = tensor.shape[-1] // 2
    local = tensor[..., rank * half : (rank + 1) * half].contiguous()
    return local, (*[0] * (tensor.dim() - 1), rank * half)


def _flat(
    local: torch.Tensor, offset: tuple[int, ...], global_shape: torch.Size, rank: int
) -> Fragment:
    """ZeRO over two ranks: the first gets a third and one element, the second the padded rest."""
    cut = local.numel() // 3 + 1
    padded = torch.cat([local.reshape(-1), torch.full((3,), -1.0)])
    return Fragment(
        padded[:cut].clone() if rank == 0 else padded[cut:].clone(),
        global_shape=global_shape,
        offset=offset,
        local_shape=local.shape,
        start=0 if rank == 0 else cut,
    )
