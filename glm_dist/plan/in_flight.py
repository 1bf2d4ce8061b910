"""Micro-batches whose activations a pipeline stage keeps at once.

The order of passes is that of megatron-core's schedules, which ``parallel/schedule.py`` runs.
"""

from collections.abc import Iterator, Sequence

from glm_dist.parallel.layout import Layout


def most_kept(layout: Layout, stage: int, *, micro_batches: int, kept: Sequence[int]) -> int:
    """Compute the largest sum of what a stage keeps for backward.

    Args:
        layout: Layout of the processes.
        stage: Pipeline coordinate.
        micro_batches: Micro-batches of a replica in a step.
        kept: Bytes that one micro-batch leaves in each of the stage's chunks.
    """
    live = most = 0
    for chunk, is_forward in _passes(layout, stage, micro_batches):
        live += kept[chunk] if is_forward else -kept[chunk]
        most = max(most, live)
    return most


def _passes(layout: Layout, stage: int, micro_batches: int) -> Iterator[tuple[int, bool]]:
    """Yield chunk and direction of each pass until the schedule repeats itself."""
    stages, chunks = layout.pipeline_parallel_size, layout.virtual_stages
    total = micro_batches * chunks
    warmup = stages - stage - 1
    if chunks > 1:  # megatron-core's interleaved schedule, with groups of as many as stages
        warmup = 2 * warmup + (chunks - 1) * stages
    warmup = min(warmup, total)
    # Behind the warmup each forward pass is followed by a backward pass. Chunks alternate with a
    # period of stages x chunks.
    steady = min(total - warmup, 2 * stages * chunks)

    def chunk_of(number: int) -> int:
        return number % (stages * chunks) // stages

    for number in range(warmup):
        yield chunk_of(number), True
    for number in range(steady):
        yield chunk_of(warmup + number), True
        yield chunks - 1 - chunk_of(number), False
