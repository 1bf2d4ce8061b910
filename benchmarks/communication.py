"""Communication of a training step on paper: bytes and time of a GPU, by layout and by model.

Nothing is measured here; ``python -m benchmarks.communication`` prints the table of
docs/performance.md. A collective sends what a ring sends: of b bytes, an all-gather or
reduce-scatter over n ranks (n - 1) / n b from every GPU, and an all-reduce twice that. Latency is
left out.

The links are those of a common machine: 8 GPUs of a node joined by NVLink, and a network card for
each GPU. A ring that leaves the node uses the cards of all its members in the node.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from benchmarks.problems import PADDED_VOCAB_SIZE, model_config, span_prefix
from glm_dist.config.parameter_specs import parameter_specs
from glm_dist.config.schema import ModelConfig
from glm_dist.observe.flops import row_work, useful_operations

NVLINK = 450e9
"""Bytes per second that a GPU sends to its node."""
NETWORK = 50e9
"""Bytes per second that a GPU's network card sends: 400 Gb/s."""
GPUS_PER_NODE = 8
BF16, FP32 = 2, 4

PEAK = 989.4e12
USEFUL_SHARE = 0.5
"""Useful work as a share of the peak: the aim for one GPU. Computing time follows from it."""


@dataclass(frozen=True)
class Shape:
    """Model and rows of a replica's step."""

    size: str
    rows: int
    """Of a micro-batch."""
    row_length: int
    micro_batches: int = 4

    @cached_property
    def model(self) -> ModelConfig:
        return model_config(self.size, positions=self.row_length, dropout=0.0)

    @property
    def parameters(self) -> int:
        """Count the elements of all parameters."""
        return sum(spec.size for spec in parameter_specs(self.model, PADDED_VOCAB_SIZE))

    @property
    def activation(self) -> int:
        """Return the bytes of a micro-batch's hidden states [s, b, h] in bf16."""
        return self.rows * self.row_length * self.model.hidden_size * BF16

    def computing_seconds(self, gpus: int = 1) -> float:
        """Return the computing time of a step, if the GPUs of a replica share it evenly."""
        prefix = span_prefix(self.row_length)
        row = row_work(
            [(self.row_length, prefix)],
            row_length=self.row_length,
            num_targets=self.row_length - prefix,
        )
        useful = useful_operations(self.model, row, vocab_size=PADDED_VOCAB_SIZE)
        return useful * self.rows * self.micro_batches / (USEFUL_SHARE * PEAK * gpus)


@dataclass(frozen=True)
class Cost:
    """Messages of a GPU in a step, and their time."""

    num_bytes: float
    seconds: float
    """With nothing beside it."""
    exposed: float
    """Seconds in which the GPU cannot compute."""
    computing: float
    """Seconds in which it computes."""

    @property
    def share(self) -> float:
        """Return the part of the step's time that is lost."""
        return self.exposed / (self.exposed + self.computing)


def bytes_per_second(ranks: int, *, distance: int = 1) -> float:
    """Return what each member of a ring sends.

    Args:
        ranks: Members of the ring.
        distance: GPUs from one member to the next; other groups lie between.
    """
    in_node = max(GPUS_PER_NODE // distance, 1)
    return NVLINK if ranks <= in_node else min(NVLINK, in_node * NETWORK)


def zero_1(shape: Shape, replicas: int, *, tensor: int = 1, overlaps: bool) -> Cost:
    """Compute the cost of ZeRO 1, once a step: 4 N bytes of gradients out, 2 N of weights back.

    N are the parameters of a GPU. Gradients in fp32 are reduce-scattered; updated weights in bf16
    are all-gathered.

    Args:
        shape: Model and rows.
        replicas: Number of replicas d.
        tensor: Tensor-parallel ranks, which share the parameters.
        overlaps: Gradients go out during backward of the last micro-batch, two thirds of its time,
            and weights come in during forward of the next step's first, a third.
    """
    own = (replicas - 1) / replicas * shape.parameters / tensor
    speed = bytes_per_second(replicas, distance=tensor)
    out, back = own * FP32 / speed, own * BF16 / speed
    computing = shape.computing_seconds(tensor)
    exposed = out + back
    if overlaps:
        third = computing / shape.micro_batches / 3
        exposed = max(out - 2 * third, 0.0) + max(back - third, 0.0)
    return Cost(own * (FP32 + BF16), out + back, exposed, computing)


def tensor_parallel(shape: Shape, ranks: int, *, sequence_parallel: bool) -> Cost:
    """Compute the cost of tensor parallelism, in every layer and micro-batch.

    Without sequence parallelism: 2 all-reduces of hidden states in forward, and 2 in backward that
    run beside the weight gradients' products.

    With it an all-reduce becomes a reduce-scatter and an all-gather of the same bytes, and backward
    gathers the inputs of two linear layers once more. Beside products run those gathers and the
    reduce-scatters of backward: 4 of 10.
    """
    part = (ranks - 1) / ranks * shape.activation
    sent, hidden = (10, 4) if sequence_parallel else (8, 4)
    times = shape.model.num_layers * shape.micro_batches
    seconds = part * times / bytes_per_second(ranks)
    return Cost(
        sent * part * times,
        sent * seconds,
        (sent - hidden) * seconds,
        shape.computing_seconds(ranks),
    )


def pipeline(shape: Shape, stages: int, *, chunks: int = 1) -> Cost:
    """Compute the cost of a pipeline whose stages are on different nodes.

    Each chunk of a stage sends hidden states forward and their gradient back for every micro-batch,
    while others are computed. Exposed is the bubble: (p - 1) / (v m) of the computing time, for p
    stages of v chunks and m micro-batches.
    """
    sent = 2 * shape.activation * shape.micro_batches * chunks
    computing = shape.computing_seconds(stages)
    bubble = (stages - 1) / (chunks * shape.micro_batches) * computing
    return Cost(sent, sent / NETWORK, bubble, computing)


SHAPES = {
    "Large": Shape("large", 64, 512),
    "2B": Shape("2b", 8, 1024),
    "10B": Shape("10b", 4, 1024),
}
PIPELINED = 16
"""Micro-batches of a step with pipelines."""


def costs(shape: Shape) -> dict[str, Cost]:
    """Return the costs of the layouts in the table."""
    found = {
        f"dp{replicas}, ZeRO 1{', overlapped' if overlaps else ''}": zero_1(
            shape, replicas, overlaps=overlaps
        )
        for replicas in (8, 64)
        for overlaps in (False, True)
    }
    for ranks in (2, 4, 8):
        for sequence_parallel in (False, True):
            name = f"tp{ranks}{', sequence parallel' if sequence_parallel else ''}"
            found[name] = tensor_parallel(shape, ranks, sequence_parallel=sequence_parallel)
    name = "tp8 and dp8 (64 GPUs), ZeRO 1, overlapped"
    found[name] = zero_1(shape, 8, tensor=8, overlaps=True)
    longer = replace(shape, micro_batches=PIPELINED)
    for chunks in (1, 2):
        name = f"pp4{f', {chunks} chunks' if chunks > 1 else ''}, {PIPELINED} micro-batches"
        found[name] = pipeline(longer, 4, chunks=chunks)
    return found


def table(shapes: Sequence[str] = tuple(SHAPES)) -> str:
    """Render the table: GB sent, milliseconds alone, and the share of the step that is lost."""
    columns = {name: costs(SHAPES[name]) for name in shapes}
    heads = [f"{name}: {unit}" for name in shapes for unit in ("GB", "ms", "lost")]
    lines = [f"| layout | {' | '.join(heads)} |", f"|{' --- |' * (1 + len(heads))}"]
    for layout in costs(SHAPES[shapes[0]]):
        row = [layout]
        for name in shapes:
            cost = columns[name][layout]
            row += [f"{cost.num_bytes / 1e9:.1f}", f"{1e3 * cost.seconds:.0f}", f"{cost.share:.0%}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
    for size, each in SHAPES.items():
        print(
            f"{size}: {each.parameters / 1e9:.2f} G parameters, {each.rows} x {each.row_length}, "
            f"{each.micro_batches} micro-batches: {1e3 * each.computing_seconds():.0f} ms"
        )
