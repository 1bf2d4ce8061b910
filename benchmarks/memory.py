"""Peak memory and time of a step on a CPU: ours against a conventional implementation.

Ours runs with and without recomputation. The conventional one stores scores and probabilities of
every pair under a dense mask, and logits of every position; a variant has torch's fused attention
under the dense mask. Each runs in a separate process; the figure is the process's peak resident
memory minus its value before the model was created.
"""

import multiprocessing
import resource
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from benchmarks.harness import Report, Timing, machine, options, parse, timed
from benchmarks.problems import (
    VOCAB_SIZE,
    device,
    glm,
    loss_of,
    model_config,
    one_process,
    span_micro_batches,
)
from glm_dist.config.schema import Dtype, ModelConfig, RecomputeConfig, RecomputeMode
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.batch import StageBatch
from glm_dist.model.stage import GLMStage

OURS = {
    "ours": RecomputeMode.none,
    "ours, recompute=selective": RecomputeMode.selective,
    "ours, recompute=full": RecomputeMode.full,
}
WAYS = (*OURS, "dense mask, full logits", "fused dense mask, full logits")


class DenseAttention(torch.nn.Module):
    """Core attention with a mask [b, 1, s, s], unfused or through torch's fused call."""

    def __init__(self, mask: torch.Tensor, *, is_fused: bool) -> None:
        super().__init__()
        self._mask = mask
        self._is_fused = is_fused

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        **_: object,
    ) -> torch.Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if self._is_fused:
            context = scaled_dot_product_attention(query, key, value, attn_mask=self._mask)
        else:
            scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
            context = scores.masked_fill(~self._mask, float("-inf")).softmax(dim=3) @ value
        return context.permute(2, 0, 1, 3).flatten(2)


def loss_of_all_positions(stage: GLMStage, batch: StageBatch, micro: MicroBatch) -> torch.Tensor:
    """Compute logits at every position, then the loss at the targets."""
    hidden = stage(batch).transpose(0, 1)  # [b, s, h]
    logits = (hidden @ stage.tied_weight.t())[..., :VOCAB_SIZE]  # [b, s, v]
    losses = cross_entropy(logits.flatten(0, 1), micro.targets.flatten(), reduction="none")
    return (losses * micro.loss_mask.flatten()).sum()


def peak_and_seconds(
    way: str, model: ModelConfig, rows: int, row_length: int, threads: int, rounds: int
) -> tuple[float, float]:
    """Build a model and run some steps; return peak memory in GiB and seconds per step."""
    torch.set_num_threads(threads)
    groups = one_process()
    (micro,) = span_micro_batches(1, rows=rows, row_length=row_length)
    batch = StageBatch.from_micro_batch(micro, device())
    before = _resident_bytes()
    recompute = RecomputeConfig(OURS.get(way, RecomputeMode.none), 1)
    stage = glm(model, groups, dtype=Dtype.fp32, device=device(), recompute=recompute)
    optimizer = torch.optim.AdamW(stage.parameters(), fused=True)
    if way not in OURS:
        position = torch.arange(row_length)
        mask = (position[None, :] <= position[:, None]) | (
            position < micro.prefix_length[:, None, None]
        )
        for layer in stage.decoder.layers:
            layer.self_attention.core_attention = DenseAttention(
                mask[:, None], is_fused=way.startswith("fused")
            )

    def step() -> None:
        loss = loss_of(stage, batch) if way in OURS else loss_of_all_positions(stage, batch, micro)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    timing = Timing([timed(step) for _ in range(rounds)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 2**30, timing.median


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", default="base", help="option of conf/model (%(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch (%(default)s)")
    parser.add_argument("--row-length", type=int, default=576, help="(%(default)s)")
    parsed = parse(parser, arguments)
    model = model_config(parsed.model, positions=parsed.row_length, dropout=0.0)
    report = Report(
        f"memory_{parsed.model}",
        f"Peak memory of a step, GLM-{parsed.model}, {parsed.rows} rows of {parsed.row_length}",
        machine(),
    )
    context = multiprocessing.get_context("spawn")
    for way in WAYS:
        with context.Pool(1) as pool:
            arguments_of_way = (way, model, parsed.rows, parsed.row_length)
            peak, seconds = pool.apply(
                peak_and_seconds, (*arguments_of_way, parsed.threads, parsed.rounds)
            )
        report.rows.append({"way": way, "peak, GiB": peak, "seconds a step": seconds})
    ours = report.rows[0]["peak, GiB"]
    for row in report.rows:
        row["peak of ours / this"] = ours / row["peak, GiB"]
    report.notes.append("Weights, gradients and AdamW's moments are part of every figure.")
    report.save(parsed.output)


if __name__ == "__main__":
    main()
