"""Prefix attention against other ways to compute it, forward and backward.

On a CPU in fp32, against torch's fused attention with a dense mask. On a GPU in bf16, kernel by
kernel (``attention_gpu.py``).
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Report, machine, options, paired, parse
from benchmarks.problems import device
from glm_dist.model.attention.dispatch import prefix_attention
from glm_dist.model.attention.plan import plan_attention

ROWS, HEADS, HEAD_SIZE = 4, 12, 64  # GLM-Base
SHARES = (0.25, 0.82)  # a document row; a row of short spans
LENGTHS = (512, 1024)


def dense_mask(row_length: int, prefixes: Sequence[int]) -> torch.Tensor:
    """Build the mask [b, 1, s, s], True where a query sees a key; not part of the measured time."""
    position = torch.arange(row_length, device=device())
    causal = position[None, :] <= position[:, None]
    return torch.stack([causal | (position[None, :] < prefix) for prefix in prefixes])[:, None]


def contestants(row_length: int, share: float) -> dict[str, Callable[[], None]]:
    """Return implementations of the same attention on the same projection [s, b, a, 3 d]."""
    prefixes = [int(share * row_length) + i for i in range(-2, ROWS - 2)]
    mixed = torch.randn(row_length, ROWS, HEADS, 3 * HEAD_SIZE, device=device())
    mixed.requires_grad_()
    weight = torch.randn(row_length, ROWS, HEADS, HEAD_SIZE, device=device())
    weight = weight.permute(1, 2, 0, 3)
    plan = plan_attention(prefixes, row_length=row_length).to(device())
    mask = dense_mask(row_length, prefixes)

    def run(attend: Callable[..., torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            parts = [x.permute(1, 2, 0, 3) for x in mixed.split(HEAD_SIZE, dim=3)]
            attend(*parts).backward(weight)
            mixed.grad = None

        return work

    return {
        "prefix": run(lambda q, k, v: prefix_attention(q, k, v, plan=plan, dropout=0.0)),
        "dense mask": run(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)),
    }


def on_cpu(rounds: int) -> Report:
    """Compare the split calls with a dense mask."""
    report = Report(
        "attention", f"Prefix attention, {ROWS} rows, {HEADS} heads of {HEAD_SIZE}", machine()
    )
    for row_length in LENGTHS:
        for share in SHARES:
            torch.manual_seed(0)
            timings = paired(contestants(row_length, share), rounds=rounds, warmup=3)
            row = {"positions": row_length, "prefix": f"{share:.0%}"}
            for name, timing in timings.items():
                row[f"{name}, ms"] = 1e3 * timing.median
            for name, timing in list(timings.items())[1:]:
                row[f"prefix / {name}"] = timings["prefix"].relative_to(timing)
            report.rows.append(row)
    report.notes.append("Forward and backward; a ratio is the median over turns, below 1 faster.")
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, rounds=30)
    parser.add_argument("--tune", action="store_true", help="GPU: try tiles, print the best")
    parser.add_argument("--shapes", nargs="*", default=[], help="GPU: only these, e.g. 2B Large")
    parser.add_argument(
        "--dry-run", action="store_true", help="the GPU's part on a CPU, in Triton's interpreter"
    )
    parsed = parse(parser, arguments)
    if device().type == "cuda" or parsed.dry_run:
        # Not at the top: a machine without a GPU need not have Triton.
        from benchmarks import attention_gpu

        result = attention_gpu.report(
            machine(), device=device(), tunes=parsed.tune, only=parsed.shapes
        )
    else:
        result = on_cpu(parsed.rounds)
    result.save(parsed.output)


if __name__ == "__main__":
    main()
