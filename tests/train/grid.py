"""One tiny training job under any layout: what the layout grid and the resume tests compare."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import cache

import numpy as np
import torch
import torch.distributed as dist

from glm_dist.config.load import load_config
from glm_dist.config.schema import (
    Activation,
    Dtype,
    LossNormalization,
    ModelConfig,
    Offload,
    OptimizerConfig,
    PositionEncoding,
    PromptEncoder,
    RecomputeConfig,
    RecomputeMode,
    Residual,
    RunConfig,
)
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.sharded import ParameterShards
from glm_dist.optim.state import Rates
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.rng import seed_step
from glm_dist.train import job
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.step import train_step
from glm_dist.train.task import Task

STEPS = 3
FEW_STEPS = 2
"""Steps of the default run; the second has the moments and the loss that the first left."""

GLOBAL_BATCH = 16
ROW_LENGTH = 24
VOCAB_SIZE = 251  # prime: no tensor-parallel size divides it
MODEL = ModelConfig(
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    max_position_embeddings=32,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    layernorm_epsilon=1e-5,
    init_std=0.02,
)
ARCHITECTURE: dict[str, dict[str, object]] = {
    "geglu": {"activation": Activation.geglu, "ffn_hidden_size": 44},
    "rotary_2d": {"position_encoding": PositionEncoding.rotary_2d},
    "shrink": {"embedding_gradient_share": 0.1},
    "deep_norm": {"residual": Residual.deep_norm},
}
"""Options of GLM-130B that earlier models lack."""

LORA = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
ADAPTED: dict[str, dict[str, object]] = {
    "lora": {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": list(LORA)},
    **{
        f"prompt_{encoder.value}": {"prompt_tokens": 3, "prompt_encoder": encoder}
        for encoder in PromptEncoder
    },
}
"""Parameters that finetuning adds to a model."""

OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3,
    beta1=0.9,
    beta2=0.98,
    epsilon=1e-6,
    weight_decay=0.1,
    gradient_clipping=0.5,
)


@dataclass(frozen=True)
class Case:
    """One cell of the grid."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 0
    micro_batch: int = 1
    sp: bool = False
    vp: int = 1
    layers: int = 4
    split: tuple[int, ...] = ()
    recompute: str = "none"
    segment: int = 1
    dropout: float = 0.0
    dtype: str = "fp32"
    min_scale: int = 1
    offload: bool = False
    architecture: tuple[str, ...] = ()
    """Names of ARCHITECTURE and ADAPTED."""
    trainable: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        return Layout(
            self.tp,
            self.pp,
            self.dp,
            sequence_parallel=self.sp,
            virtual_stages=self.vp,
            stage_layers=self.split,
        )

    @property
    def model(self) -> ModelConfig:
        changes = {
            key: value
            for name in self.architecture
            for key, value in (ARCHITECTURE | ADAPTED)[name].items()
        }
        return replace(
            MODEL,
            num_layers=self.layers,
            hidden_dropout=self.dropout,
            attention_dropout=self.dropout,
            lora_dropout=self.dropout,
            **changes,
        )

    @property
    def options(self) -> str:
        """Every field that is not as usual and not seen in the layout's name."""
        shown = [
            f"{each.name} {getattr(self, each.name)}"
            for each in fields(self)
            if each.name in ("layers", "recompute", "segment", "dropout", "dtype")
            and getattr(self, each.name) != each.default
        ]
        named = [*self.architecture, *self.trainable]
        return ", ".join([*shown, *(["offload"] if self.offload else []), *named])

    def __str__(self) -> str:
        return f"{self.layout} zero{self.zero} micro{self.micro_batch} {self.options}".rstrip()


@dataclass(frozen=True)
class Trace:
    """Results of a case: loss and norm of each step, and the whole model at the end."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]


def rows_of_step(step: int) -> list[Row]:
    """GLOBAL_BATCH random rows whose number of targets differs from row to row."""
    rng = np.random.Generator(np.random.Philox(key=[7, step]))
    position = np.arange(ROW_LENGTH)
    rows = []
    for i in range(GLOBAL_BATCH):
        prefix = ROW_LENGTH - 1 if i == 0 else int(rng.integers(1, ROW_LENGTH - 1))
        in_b = position >= prefix
        rows.append(
            Row(
                tokens=rng.integers(0, VOCAB_SIZE, size=ROW_LENGTH),
                positions=np.where(in_b, 3, position),
                block_positions=np.where(in_b, position - prefix + 1, 0),
                targets=rng.integers(0, VOCAB_SIZE, size=ROW_LENGTH),
                loss_mask=in_b,
                prefix_length=prefix,
                objective="span",
                num_real_tokens=ROW_LENGTH,
            )
        )
    return rows


def rows_of_case(step: int, case: Case) -> list[Row]:
    """The rows of a step, with the slots of a prompt spread over all but every third."""
    rows = rows_of_step(step)
    slots = run_config(case).prompt_slots
    for number, row in enumerate(rows):
        if number % 3:
            row.tokens[1 : 1 + 2 * len(slots) : 2] = slots
    return rows


def micro_batches_of(rows: list[Row], case: Case, replica: int) -> list[MicroBatch]:
    """The contiguous slice of a replica, cut into micro-batches."""
    per_replica = GLOBAL_BATCH // case.dp
    first = replica * per_replica
    return [
        MicroBatch.stack(rows[cut : cut + case.micro_batch])
        for cut in range(first, first + per_replica, case.micro_batch)
    ]


@cache
def base_config() -> RunConfig:
    """Return the settings shared by all cases."""
    return load_config(["experiment=tiny", "run.seed=1"])


def run_config(case: Case) -> RunConfig:
    """The configuration of a case: buckets of which the model fills several, a small loss scale."""
    base = base_config()
    return replace(
        base,
        model=case.model,
        tokenizer=replace(base.tokenizer, vocab_size=VOCAB_SIZE),
        batch=replace(
            base.batch, global_batch_size=GLOBAL_BATCH, micro_batch_size=case.micro_batch
        ),
        optimizer=replace(OPTIMIZER, trainable=list(case.trainable)),
        parallel=replace(
            base.parallel, tensor_parallel_size=case.tp, pipeline_parallel_size=case.pp
        ),
        zero=replace(
            base.zero,
            stage=case.zero,
            reduce_bucket_size=20_000,
            allgather_bucket_size=20_000,
            overlap_comm=case.zero >= 2 or (case.zero == 1 and not case.offload),
            offload_optimizer=Offload.cpu if case.offload else Offload.none,
        ),
        precision=replace(
            base.precision,
            dtype=Dtype[case.dtype],
            initial_loss_scale_power=8,
            loss_scale_hysteresis=1,
            min_loss_scale=case.min_scale,
        ),
        recompute=RecomputeConfig(RecomputeMode[case.recompute], case.segment),
    )


@cache
def groups_of(layout: Layout) -> ParallelGroups:
    """This rank's groups, made once: every group keeps threads until its process ends."""
    return build_groups(layout, timedelta(seconds=60))


def rank_device() -> torch.device:
    """Return this rank's device, ready for use: the GPU set by ``run_ranks``, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    enable_cpu()
    return torch.device("cpu")


def build_engine(
    case: Case, *, task: Task = job.PRETRAINING, num_classes: int = 0
) -> TrainingEngine:
    """The engine of this rank as a job makes it, with the initial weights of seed 1."""
    if case.dtype == "fp16":
        # DeepSpeed denies fp16 on CPUs because it is slow there; torch computes it all the same.
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    config = run_config(case)
    return job.build_engine(
        replace(config, model=replace(config.model, num_classes=num_classes)),
        groups_of(case.layout),
        device=rank_device(),
        world_size=case.layout.world_size,
        task=task,
    )


def run_steps(
    engine: TrainingEngine, case: Case, steps: Iterable[int]
) -> tuple[list[float], list[float]]:
    """Train; losses and norms of the steps, equal on all ranks."""
    groups = engine.groups
    losses, norms = [], []
    for step in steps:
        seed_step(1, step, coordinates=groups.coordinates)
        result = train_step(
            engine,
            micro_batches_of(rows_of_case(step, case), case, groups.coordinates.data),
            rates=Rates.known(OPTIMIZER.learning_rate),
            normalize_by=LossNormalization.global_tokens,
            device=rank_device(),
        )
        loss = result.loss_share.clone()
        dist.all_reduce(loss)
        losses.append(float(loss))
        norms.append(float(result.outcome.norm))
    return losses, norms


def parts_of(
    engine: TrainingEngine, shard: ParameterShard, value: np.ndarray
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield the slices of the whole that a rank holds; a GeGLU's halves are sharded separately."""
    halved = re.search(r"linear_fc1\.(weight|bias|lora_b)", shard.name)
    gated = engine.model.config.gated_linear_unit and halved
    if not gated:
        yield shard.offset, value
        return
    gate, factor = np.split(value, 2)
    start = engine.groups.coordinates.tensor * len(gate)
    for first, part in ((0, gate), (shard.global_shape[0] // 2, factor)):
        yield (first + start, *(0,) * (value.ndim - 1)), part


def whole_weights(engine: TrainingEngine) -> dict[str, np.ndarray]:
    """Every parameter put together on every rank, without the checkpoint's code."""
    import deepspeed

    pieces: list[tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]] = []
    with deepspeed.zero.GatheredParameters(
        [p.parameter for p in engine.shards], enabled=isinstance(engine.zero, ParameterShards)
    ):
        for shard in engine.shards:
            value = shard.parameter.detach().float().cpu().numpy().copy()
            for offset, part in parts_of(engine, shard, value):
                pieces.append((shard.name, shard.global_shape, offset, part))
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, pieces)
    whole: dict[str, np.ndarray] = {}
    for rank_pieces in gathered:
        for name, shape, offset, value in rank_pieces:
            target = whole.setdefault(name, np.full(shape, np.nan, dtype=np.float32))
            cut = tuple(slice(o, o + n) for o, n in zip(offset, value.shape, strict=True))
            seen = target[cut]
            # Replicas of a slice must agree to the bit, or they drift apart in a long run.
            assert np.isnan(seen).all() or np.array_equal(seen, value), f"{name} differs by rank"
            target[cut] = value
    return whole


def initial_weights(case: Case) -> dict[str, np.ndarray]:
    """The model that a case starts from."""
    return whole_weights(build_engine(case))


def train_cases(cases: list[Case], steps: int = STEPS) -> list[Trace]:
    """Run the cases one after the other in this process group."""
    traces = []
    for case in cases:
        engine = build_engine(case)
        losses, norms = run_steps(engine, case, range(steps))
        traces.append(Trace(losses, norms, whole_weights(engine)))
    return traces
