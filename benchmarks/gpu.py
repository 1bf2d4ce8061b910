"""Training speed on one GPU in bf16: GLM with each option, and megatron-core's GPTModel.

Every contestant runs a whole step through the same engine: rows to the device, forward, backward,
ZeRO 2 with fp32 master weights. GPTModel has the same layers and width, predicts every position
under a causal mask, and uses its fastest kernels (TransformerEngine if installed).

Without a GPU, ``--dry-run`` runs the same code on the smallest shapes.
"""

import gc
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from benchmarks.harness import Report, machine, options, paired, parse
from benchmarks.problems import (
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    device,
    model_config,
    one_process,
    span_micro_batches,
)
from benchmarks.step import run_config
from glm_dist.config.parameter_specs import Constant, ParameterSpec
from glm_dist.config.schema import Dtype, ModelConfig, RecomputeConfig, RecomputeMode
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.attention.dispatch import uses_mask
from glm_dist.model.batch import StageBatch
from glm_dist.model.block import TORCH_DTYPES, transformer_config
from glm_dist.model.compiled import compile_layers
from glm_dist.model.parameters import ParameterShard
from glm_dist.model.stage import GLMShard, GLMStage
from glm_dist.observe.flops import (
    Work,
    convention_operations,
    executed_operations,
    peak_tflops,
    row_work,
    useful_operations,
)
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.rng import seed_step
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.efficiency import micro_batch_work
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.step import train_step
from glm_dist.train.task import Pretraining, TaskLoss

try:
    from megatron.core.extensions.transformer_engine import HAVE_TE
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_with_transformer_engine_spec,
    )
except ImportError:
    HAVE_TE = False

SIZES = {"base": 32768, "large": 32768, "410m": 32768, "2b": 8192}
"""Published sizes, with positions per micro-batch that fill most of 80 GB without recomputation."""
LENGTHS = (512, 1024)
MICRO_BATCHES = 4


@dataclass(frozen=True)
class Contestant:
    """One line of the table."""

    name: str
    is_glm: bool = True
    compiled: bool = False
    recompute: RecomputeMode = RecomputeMode.none


CONTESTANTS = (
    Contestant("GLM"),
    Contestant("GLM, compile", compiled=True),
    Contestant("GLM, recompute selective", recompute=RecomputeMode.selective),
    Contestant("GLM, recompute full", recompute=RecomputeMode.full),
    Contestant("GLM, compile, recompute full", compiled=True, recompute=RecomputeMode.full),
    Contestant("GPTModel", is_glm=False),
    Contestant("GPTModel, recompute full", is_glm=False, recompute=RecomputeMode.full),
)


class GPTStage(torch.nn.Module):
    """megatron-core's GPTModel with the interface that the engine needs."""

    def __init__(self, config: TransformerConfig, positions: int, groups: ParallelGroups) -> None:
        super().__init__()
        self.config = config
        spec = get_gpt_layer_local_spec()
        if HAVE_TE and device().type == "cuda":
            spec = get_gpt_layer_with_transformer_engine_spec()
        self.gpt = GPTModel(
            config,
            spec,
            vocab_size=PADDED_VOCAB_SIZE,
            max_sequence_length=positions,
            position_embedding_type="learned_absolute",
            share_embeddings_and_output_weights=True,
            pg_collection=groups.collection(),
        )
        self.to(device())
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.02)

    @property
    def tied_weight(self) -> None:
        """Used only under ZeRO 3."""
        return None

    def shards(self) -> list[ParameterShard]:
        shards = []
        for name, parameter in self.named_parameters():
            shape = tuple(parameter.shape)
            spec = ParameterSpec(name, shape, Constant(0.0), decays=len(shape) > 1)
            shards.append(ParameterShard(spec, parameter, spec.slice_of(0, tensor_size=1)))
        return shards

    def forward(self, batch: StageBatch) -> torch.Tensor:
        """Return the sum of the losses of all positions."""
        tokens = batch.tokens
        positions = torch.arange(tokens.size(1), device=tokens.device)
        future = None  # on a GPU megatron-core makes its own
        if device().type != "cuda":
            future = (positions[None, :] > positions[:, None])[None, None]  # [1, 1, s, s]
        losses = self.gpt(tokens, positions.expand_as(tokens), future, labels=tokens.roll(-1, 1))
        return losses.double().sum()


class AllPositions(Pretraining):
    """Training task of GPTModel, which computes its own loss."""

    def loss(self, stage: object, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        return TaskLoss(hidden, hidden.new_zeros(0, 2))


def build(contestant: Contestant, model: ModelConfig, groups: ParallelGroups) -> torch.nn.Module:
    """Build the contestant's model with random weights."""
    recompute = RecomputeConfig(mode=contestant.recompute)
    if not contestant.is_glm:
        config = transformer_config(
            model, Dtype.bf16, layout=groups.layout, device=device(), recompute=recompute
        )
        if device().type == "cuda":
            config = replace(
                config,
                activation_func=torch.nn.functional.gelu,
                bias_activation_fusion=True,
                bias_dropout_fusion=True,
            )
        return GPTStage(config, model.max_position_embeddings, groups)
    stage = GLMStage(
        model,
        vocab_size=VOCAB_SIZE,
        padded_vocab_size=PADDED_VOCAB_SIZE,
        dtype=Dtype.bf16,
        groups=groups,
        device=device(),
        recompute=recompute,
    )
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if contestant.compiled:
        compile_layers(stage)
    return stage


def work_of(contestant: Contestant, micro_batches: Sequence[MicroBatch], *, masked: bool) -> Work:
    """Count the work of a step; GPTModel predicts every token and sees only the past."""
    if contestant.is_glm:
        parts = [micro_batch_work(m, uses_mask=masked) for m in micro_batches]
    else:
        length = micro_batches[0].tokens.size(1)
        rows = sum(m.tokens.size(0) for m in micro_batches)
        parts = [row_work([(length, 0)], row_length=length, num_targets=length)] * rows
    return sum(parts, Work())


def figures(
    contestant: Contestant, model: ModelConfig, work: Work, seconds: float, *, masked: bool
) -> dict[str, Any]:
    """Return speed, MFU, HFU and peak memory."""
    row: dict[str, Any] = {
        "ms a step": 1e3 * seconds,
        "tokens/s": work.positions / seconds,
        "useful TFLOP/s": useful_operations(model, work, vocab_size=VOCAB_SIZE) / seconds / 1e12,
    }
    name = torch.cuda.get_device_name() if device().type == "cuda" else "cpu"
    peak = peak_tflops(name, is_16_bit=True, override=0)
    if peak is not None:
        executed = executed_operations(
            model,
            work,
            vocab_size=VOCAB_SIZE,
            recompute=contestant.recompute,
            fused_attention=not masked,
        )
        convention = convention_operations(model, work, vocab_size=VOCAB_SIZE)
        row["useful MFU"] = row["useful TFLOP/s"] / peak
        row["MFU"] = convention / seconds / 1e12 / peak
        row["HFU"] = executed / seconds / 1e12 / peak
    if device().type == "cuda":
        row["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def measure(
    contestant: Contestant,
    model: ModelConfig,
    micro_batches: Sequence[MicroBatch],
    groups: ParallelGroups,
    *,
    rounds: int,
) -> dict[str, Any]:
    """Train a few steps; return the figures, or a note that memory ran out."""
    rows, row_length = micro_batches[0].tokens.shape
    config = run_config(
        model, steps=1, micro_batches=len(micro_batches), rows=rows, row_length=row_length
    )
    config = replace(
        config,
        precision=replace(config.precision, dtype=Dtype.bf16),
        zero=replace(config.zero, stage=2),  # one device shards nothing; fp32 master weights
    )
    head_size = model.hidden_size // model.num_attention_heads
    masked = uses_mask(
        device(), TORCH_DTYPES[Dtype.bf16], dropout=model.attention_dropout, head_size=head_size
    )
    seed_step(1, 0, coordinates=groups.coordinates)
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        engine = TrainingEngine(
            GLMShard([build(contestant, model, groups)]),  # type: ignore[list-item]
            Pretraining() if contestant.is_glm else AllPositions(),
            config.optimizer,
            deepspeed_config=deepspeed_config(config, world_size=1),
            groups=groups,
        )

        def step() -> None:
            train_step(
                engine,
                micro_batches,
                learning_rate=1e-4,
                normalize_by=config.loss.normalize_by,
                device=device(),
            )

        timing = paired({contestant.name: step}, rounds=rounds, warmup=2)[contestant.name]
    except torch.cuda.OutOfMemoryError:
        return {"ms a step": "out of memory"}
    work = work_of(contestant, micro_batches, masked=masked)
    return figures(contestant, model, work, timing.median, masked=masked)


def run(parsed: Namespace, sizes: Mapping[str, int], lengths: Sequence[int]) -> None:
    """Measure all contestants, and save the table after every row."""
    name = "gpu_dry_run" if parsed.dry_run else "gpu"
    report = Report(name, "Training on one device, bf16, ZeRO 2", machine())
    report.notes.append(
        f"{MICRO_BATCHES} micro-batches a step, dropout {parsed.dropout:g}; medians. "
        f"GPTModel with {'TransformerEngine' if HAVE_TE else 'megatron-core layers'}."
    )
    groups = one_process()
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel()  # GPTModel asks it; ours does not
    for size, positions in sizes.items():
        for length in lengths:
            model = model_config(size, positions=length, dropout=parsed.dropout)
            micro_batches = span_micro_batches(
                MICRO_BATCHES, rows=max(positions // length, 1), row_length=length
            )
            for contestant in CONTESTANTS:
                if contestant.compiled and parsed.no_compile:
                    continue
                result = measure(contestant, model, micro_batches, groups, rounds=parsed.rounds)
                line = {"size": size, "positions": length, "what": contestant.name}
                report.rows.append(line | result)
                report.save(parsed.output)
                gc.collect()
                if device().type == "cuda":
                    torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, rounds=10)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS))
    parser.add_argument("--dropout", type=float, default=0.1, help="(%(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled layers out")
    parser.add_argument("--dry-run", action="store_true", help="smallest shapes, any device")
    parsed = parse(parser, arguments)
    if parsed.dry_run:
        run(parsed, {"tiny": 128}, [64])
    elif device().type == "cuda":
        run(parsed, {size: SIZES[size] for size in parsed.sizes}, parsed.lengths)
    else:
        print("no GPU here; --dry-run checks the script")


if __name__ == "__main__":
    main()
