"""Time of a training step by part, from the shapes of the model and the rates of a cluster.

A stage's time is the sum over its kernels: each product at a rate that depends on its shape,
attention at the kernel's measured rate, what is between them by the bytes it moves. Then come what
the pipeline leaves idle, the exchanges that nothing hides, and the update. The constants say where
they were measured; docs/planning.md compares predictions with measurements.
"""

from dataclasses import asdict, astuple, dataclass

from glm_dist.config.choices import Activation, RecomputeMode
from glm_dist.config.parameter_specs import ParameterSpec
from glm_dist.config.schema import Dtype, RunConfig
from glm_dist.observe.flops import Frozen, Work, convention_operations
from glm_dist.parallel.layout import Layout
from glm_dist.plan.cluster import Cluster
from glm_dist.plan.gpus import Gpu
from glm_dist.plan.products import MEMORY_SHARE, Product
from glm_dist.plan.state import ParameterTable
from glm_dist.plan.traffic import Traffic
from glm_dist.plan.workload import MeanRow

ATTENTION_FORWARD_SHARE, ATTENTION_BACKWARD_SHARE = 0.265, 0.18
"""Shares of the peak of attention kernels like ours, heads of 64, in a step of GLM-2B on one H200:
143 ms. Alone they reach 307 and 210 TFLOP/s."""
DROPOUT_FACTOR = 1.6
"""Time of attention with dropout over that without: cuDNN's on one H200 (1.03 over 0.64 ms). Ours
has not been measured; an earlier one, which hashed every pair, took 2.4."""
SHARED_PASSES, OUTER_PASSES = 20, 40
"""Tensors [s, b, h] that pointwise kernels of a layer read or write in a step, on what tensor ranks
share (the MLP's inside) and outside. Their sum from one H200: 70 ms of 144 layers of GLM-2B."""
OTHER_SHARE = 0.08
"""Time of small kernels, copies and gaps over that of the products: 60 of 765 ms in that step."""
UPDATE_BYTES = 30
"""Bytes that AdamW moves for a parameter: gradient, master weight, moments, weight."""
GRADIENT_BYTES = 12
"""Bytes that zeroing, norm and reduction move for each sum of a gradient."""
SHARDING_BYTES = 50
"""Bytes that ZeRO 2 and 3 move for a parameter in each micro-batch, besides what they send: copies
into buckets, fp32 additions, copies back. From one H200: 93 ms of four micro-batches of GLM-2B."""
LAUNCHES_PER_LAYER, LAUNCHES_PER_MICRO_BATCH, LAUNCHES_PER_STEP = 39, 60, 45
"""Kernels that the host launches under ZeRO 0 and 1 (tests/train/test_host_path.py)."""
SHARDED_LAUNCHES_PER_LAYER = 170
"""The same under ZeRO 2 and 3: 24,700 in that step."""
LAUNCH_SECONDS = 40e-6
"""Time of the host for a launch, at most: 8,913 in 355 ms of GLM-Base, for part of which the GPU
waited."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest rank, by part."""

    products: float = 0.0
    attention: float = 0.0
    pointwise: float = 0.0
    head: float = 0.0
    other: float = 0.0
    """Small kernels, copies, and gaps between kernels."""
    recompute: float = 0.0
    update: float = 0.0
    tensor: float = 0.0
    """Exchanges of tensor ranks that no product hides."""
    pipeline: float = 0.0
    """Messages between stages."""
    bubble: float = 0.0
    """Waiting for the first micro-batches to arrive and the last ones to leave."""
    replicas: float = 0.0
    """Reduction of gradients and gathering of weights."""
    host: float = 0.0
    """Waiting for the host to launch kernels."""

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return float(sum(astuple(self)))


@dataclass(frozen=True)
class _Stage:
    """Seconds of one micro-batch on one stage, forward and backward."""

    products: float
    attention: float
    pointwise: float
    head: float
    other: float
    recompute: float
    tensor: float

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    def times(self, layers: int, *, head: float) -> "_Stage":
        """Return the time of several such layers, with a head."""
        values = {name: layers * value for name, value in asdict(self).items()}
        values |= {"head": head, "other": values["other"] + OTHER_SHARE * head}
        return _Stage(**values)


def step_time(
    config: RunConfig, layout: Layout, cluster: Cluster, *, table: ParameterTable | None = None
) -> StepTime:
    """Estimate a step.

    Args:
        config: Checked configuration.
        layout: Layout of its processes.
        cluster: Where it runs.
        table: The model's parameters, for many layouts of one model; None lists them again.
    """
    table = table or ParameterTable.of(config)
    micro_batches = config.num_micro_batches(layout.world_size)
    stages = _stages(config, layout, cluster, table)
    slowest = max(stages, key=lambda stage: stage.total)
    mean = sum(stage.total for stage in stages) / len(stages)
    traffic = Traffic(config, layout, cluster, micro_batches, table=table)
    # Sums wait for the last micro-batch and weights for the update, except DeepSpeed's.
    beside = micro_batches if config.zero.stage > 1 else 1
    hidden = beside * slowest.total if config.zero.overlap_comm else 0.0
    replicas = max(traffic.replicas - hidden, 0.0)
    host = _host_seconds(config, layout, micro_batches)
    of_stage = {name: micro_batches * value for name, value in asdict(slowest).items()}
    return StepTime(
        **of_stage,
        pipeline=traffic.pipeline,
        bubble=mean * (len(stages) - 1) / layout.virtual_stages,
        replicas=replicas + traffic.tied_table,
        update=_update_seconds(config, layout, cluster, table),
        host=max(host - micro_batches * slowest.total, 0.0),
    )


def step_work(config: RunConfig) -> float:
    """Count the operations of a step by the published convention, which MFU divides by."""
    rows, length = config.batch.global_batch_size, config.batch.row_length
    work = Work(positions=rows * length, dense_pairs=rows * length * length)
    return convention_operations(
        config.model, work, vocab_size=config.tokenizer.vocab_size, frozen=Frozen.of(config)
    )


def step_peak(config: RunConfig, gpu: Gpu) -> float:
    """Return the peak of a GPU in the run's number format, operations per second."""
    return gpu.peak_per_second(element_bytes=_element_bytes(config))


def _stages(
    config: RunConfig, layout: Layout, cluster: Cluster, table: ParameterTable
) -> list[_Stage]:
    """Estimate the stages in pipeline order."""
    layer = _layer(config, layout, cluster, table)
    head = _head_seconds(config, layout, cluster.gpu, trains_table=table.trains_table)
    last = layout.pipeline_parallel_size - 1
    return [
        layer.times(
            sum(
                len(layout.layers_of_stage(config.model.num_layers, stage, chunk=chunk))
                for chunk in range(layout.virtual_stages)
            ),
            head=head if stage == last else 0.0,
        )
        for stage in range(last + 1)
    ]


def _layer(config: RunConfig, layout: Layout, cluster: Cluster, table: ParameterTable) -> _Stage:
    """Estimate one micro-batch in one layer."""
    model, gpu, width = config.model, cluster.gpu, _element_bytes(config)
    tensor_size = layout.tensor_parallel_size
    positions = config.batch.micro_batch_size * config.batch.row_length

    forward = inputs = weights = 0.0
    for spec in table.specs:
        if spec.layer == 0 and len(spec.shape) == 2:
            product = _product(spec, positions, tensor_size)
            of_rows, of_weight = product.backward
            forward += product.seconds(gpu, element_bytes=width)
            inputs += of_rows.seconds(gpu, element_bytes=width)
            weights += of_weight.seconds(gpu, element_bytes=width) * table.trained_share

    attention_forward, attention_backward = _attention_seconds(config, layout, gpu)
    tensor_bytes = positions * model.hidden_size * width
    outer = OUTER_PASSES / (tensor_size if layout.sequence_parallel else 1)
    inner = SHARED_PASSES * _mlp_width(config) / (4 * tensor_size)
    pointwise = (outer + inner) * tensor_bytes / _bytes_per_second(cluster)

    is_full = config.recompute.mode is RecomputeMode.full
    again = 0.0 if config.recompute.mode is RecomputeMode.none else attention_forward
    if is_full:
        again += forward + pointwise / 3
    return _Stage(
        products=forward + inputs + weights,
        attention=attention_forward + attention_backward,
        pointwise=pointwise,
        head=0.0,
        other=OTHER_SHARE * (forward + inputs + weights),
        recompute=again,
        tensor=Traffic.tensor_seconds(
            tensor_bytes, layout, cluster, hidden_by=weights, repeats_forward=is_full
        ),
    )


def _attention_seconds(config: RunConfig, layout: Layout, gpu: Gpu) -> tuple[float, float]:
    """Estimate forward and backward of attention's inside; backward has 2.5 times the products."""
    batch, model = config.batch, config.model
    pairs = MeanRow.of(config).pairs * batch.micro_batch_size * batch.row_length**2
    operations = 4 * pairs * model.hidden_size / layout.tensor_parallel_size
    seconds = operations / step_peak(config, gpu)
    if model.attention_dropout > 0:
        seconds *= DROPOUT_FACTOR
    return seconds / ATTENTION_FORWARD_SHARE, 2.5 * seconds / ATTENTION_BACKWARD_SHARE


def _head_seconds(config: RunConfig, layout: Layout, gpu: Gpu, *, trains_table: bool) -> float:
    positions = config.batch.micro_batch_size * config.batch.row_length
    product = Product(
        max(positions * MeanRow.of(config).targets, 1.0),
        config.model.hidden_size,
        config.padded_vocab_size // layout.tensor_parallel_size,
    )
    width = _element_bytes(config)
    of_rows, of_weight = product.backward
    products = (product, of_rows, of_weight) if trains_table else (product, of_rows)
    return sum(p.seconds(gpu, element_bytes=width) for p in products)


def _product(spec: ParameterSpec, positions: int, tensor_size: int) -> Product:
    outputs, inputs = spec.shape
    if spec.tensor_dim == 0:
        outputs //= tensor_size
    elif spec.tensor_dim == 1:
        inputs //= tensor_size
    return Product(positions, inputs, outputs)


def _mlp_width(config: RunConfig) -> float:
    """Return the elements of the MLP's inside over the hidden size."""
    gates = 2 if config.model.activation is Activation.geglu else 1
    return gates * config.model.mlp_size / config.model.hidden_size


def _update_seconds(
    config: RunConfig, layout: Layout, cluster: Cluster, table: ParameterTable
) -> float:
    most = max(table.trained_elements(layout, s) for s in range(layout.pipeline_parallel_size))
    parts = layout.data_parallel_size if config.zero.stage > 0 else 1
    moved = most * GRADIENT_BYTES + most / parts * UPDATE_BYTES
    if config.zero.stage > 1:
        moved += most * SHARDING_BYTES * config.num_micro_batches(layout.world_size)
    return moved / _bytes_per_second(cluster)


def _host_seconds(config: RunConfig, layout: Layout, micro_batches: int) -> float:
    layers = config.model.num_layers / layout.pipeline_parallel_size
    in_layer = SHARDED_LAUNCHES_PER_LAYER if config.zero.stage > 1 else LAUNCHES_PER_LAYER
    in_micro_batch = layers * in_layer + LAUNCHES_PER_MICRO_BATCH
    return LAUNCH_SECONDS * (micro_batches * in_micro_batch + LAUNCHES_PER_STEP)


def _element_bytes(config: RunConfig) -> int:
    return 4 if config.precision.dtype is Dtype.fp32 else 2


def _bytes_per_second(cluster: Cluster) -> float:
    return cluster.gpu.memory_gb_per_second * 1e9 * MEMORY_SHARE
