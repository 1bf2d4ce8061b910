"""The kernels as one operator of torch, which torch.compile and autograd see through.

``glm_dist::prefix_attention`` reads query, key and value where the fused projection wrote them and
returns one gradient of the whole projection, so nothing is permuted, split or concatenated.

Shapes: s row length, b rows, a heads of this rank, d head size, n segments.
"""

from typing import Any

import torch

from glm_dist.model.attention.dropout import DropoutWords

try:
    from glm_dist.model.attention.launch import Dropped, attend, attend_backward

    HAVE_TRITON = True
except ImportError:
    HAVE_TRITON = False

AMPERE = (8, 0)
"""First compute capability that the kernels are built for."""
LARGEST_HEAD = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_DROPOUT = "Tensor? seed, Tensor? keys, Tensor? origin, float rate"
_LIBRARY = torch.library.Library("glm_dist", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    f"prefix_attention(Tensor mixed, Tensor segments, {_DROPOUT}) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "prefix_attention_backward(Tensor grad, Tensor mixed, Tensor out, Tensor log_sum, "
    f"Tensor segments, {_DROPOUT}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def has_kernels(device: torch.device, dtype: torch.dtype, *, head_size: int) -> bool:
    """Return True if the kernels run on this device and take tensors of this kind.

    Args:
        device: The rank's device.
        dtype: Number format.
        head_size: d.
    """
    if dtype not in DTYPES or head_size > LARGEST_HEAD:
        return False
    if device.type == "meta":
        return True  # shapes only, as a GPU would have them
    if not HAVE_TRITON:
        return False
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def fused_prefix_attention(
    mixed: torch.Tensor,
    segments: torch.Tensor,
    *,
    rate: float = 0.0,
    words: DropoutWords | None = None,
    origin: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute prefix attention with the Triton kernels.

    Args:
        mixed: Query, key and value of each head [s, b, a, 3 d].
        segments: Row, first position, length and prefix of each segment, int32 [n, 4].
        rate: Probability of dropping an attention weight.
        words: Words of dropout; needed if the rate is not 0.
        origin: Global number of the layer and of the first head, int32 [2]; needed with words.

    Returns:
        [s, b, a, d], contiguous.
    """
    out: torch.Tensor
    if rate == 0.0:
        out, _ = torch.ops.glm_dist.prefix_attention(mixed, segments, None, None, None, 0.0)
    else:
        assert words is not None, "the stage draws words for every micro-batch with dropout"
        out, _ = torch.ops.glm_dist.prefix_attention(
            mixed, segments, words.seed, words.keys, origin, rate
        )
    return out


def _dropped(
    seed: torch.Tensor | None, keys: torch.Tensor | None, origin: torch.Tensor | None, rate: float
) -> "Dropped | None":
    if seed is None or keys is None or origin is None:
        return None
    return Dropped(rate, seed, keys, origin)


def _heads(mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return views of query, key and value [s, b, a, d]."""
    query, key, value = mixed.chunk(3, dim=3)
    return query, key, value


@torch.library.impl(_LIBRARY, "prefix_attention", "CompositeExplicitAutograd")
def _forward(
    mixed: torch.Tensor,
    segments: torch.Tensor,
    seed: torch.Tensor | None,
    keys: torch.Tensor | None,
    origin: torch.Tensor | None,
    rate: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return attend(*_heads(mixed), segments, _dropped(seed, keys, origin, rate))


@torch.library.register_fake("glm_dist::prefix_attention", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _forward_shapes(
    mixed: torch.Tensor, segments: torch.Tensor, *dropout: object
) -> tuple[torch.Tensor, torch.Tensor]:
    s, b, a, d = mixed.shape
    return mixed.new_empty(s, b, a, d // 3), mixed.new_empty(b, a, s, dtype=torch.float32)


@torch.library.impl(_LIBRARY, "prefix_attention_backward", "CompositeExplicitAutograd")
def _backward(
    grad: torch.Tensor,
    mixed: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    segments: torch.Tensor,
    seed: torch.Tensor | None,
    keys: torch.Tensor | None,
    origin: torch.Tensor | None,
    rate: float,
) -> torch.Tensor:
    if grad.stride(3) != 1:
        grad = grad.contiguous()
    fused = torch.empty(mixed.shape, dtype=mixed.dtype, device=mixed.device)
    dropped = _dropped(seed, keys, origin, rate)
    attend_backward(
        grad, *_heads(mixed), out, log_sum, segments, gradients=_heads(fused), dropped=dropped
    )
    return fused


@torch.library.register_fake("glm_dist::prefix_attention_backward", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _backward_shapes(grad: torch.Tensor, mixed: torch.Tensor, *rest: object) -> torch.Tensor:
    return mixed.new_empty(mixed.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    mixed, segments, seed, keys, origin, rate = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(mixed, *output, segments, seed, keys, origin)
    ctx.rate = rate


def _gradient(
    ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    fused = torch.ops.glm_dist.prefix_attention_backward(grad, *ctx.saved_tensors, ctx.rate)
    return fused, *(None,) * 5


torch.library.register_autograd(
    "glm_dist::prefix_attention", _gradient, setup_context=_keep, lib=_LIBRARY
)
