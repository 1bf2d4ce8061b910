"""Bytes that ranks exchange in a step, and their time."""

from functools import cached_property

from glm_dist.config.schema import Dtype, RunConfig
from glm_dist.parallel.layout import Layout
from glm_dist.plan.cluster import Cluster, all_reduced
from glm_dist.plan.state import ParameterTable

SUM_BYTES = 4
"""Bytes of an element of the gradients' sums, which are fp32."""


class Traffic:
    """Exchanges of a step, in seconds."""

    def __init__(
        self,
        config: RunConfig,
        layout: Layout,
        cluster: Cluster,
        micro_batches: int,
        *,
        table: ParameterTable,
    ) -> None:
        """Prepare.

        Args:
            config: Checked configuration.
            layout: Layout of its processes.
            cluster: Where it runs.
            micro_batches: Of a step, on each replica.
            table: The model's parameters.
        """
        self._config, self._layout, self._cluster = config, layout, cluster
        self._micro_batches = micro_batches
        self._table = table
        self._width = 4 if config.precision.dtype is Dtype.fp32 else 2

    @staticmethod
    def tensor_seconds(
        size: float, layout: Layout, cluster: Cluster, *, hidden_by: float, repeats_forward: bool
    ) -> float:
        """Estimate what tensor ranks wait for each other in a layer, for one micro-batch.

        A layer sums twice in forward and twice in backward; products of weights' gradients run
        beside the latter. With sequence parallelism each sum is two halves of the same bytes, and
        the rows of two weights' gradients are gathered once more.

        Args:
            size: Bytes of [s, b, h].
            layout: Layout of the processes.
            cluster: Where they run.
            hidden_by: Seconds of the products of weights' gradients in a layer.
            repeats_forward: True if backward computes the layer again.
        """
        ranks = layout.tensor_parallel_size
        each = cluster.exchange_seconds(
            all_reduced(size, ranks), ranks=ranks, stride=1, world_size=layout.world_size
        )
        backward = 2 * each + (each if layout.sequence_parallel else 0.0)
        return (4 if repeats_forward else 2) * each + max(backward - hidden_by, 0.0)

    @property
    def pipeline(self) -> float:
        """Messages between stages: activations there, gradients back, for each chunk."""
        layout, batch = self._layout, self._config.batch
        if layout.pipeline_parallel_size == 1:
            return 0.0
        size = batch.micro_batch_size * batch.row_length * self._config.model.hidden_size
        if layout.sequence_parallel:
            size //= layout.tensor_parallel_size
        one = self._cluster.send_seconds(size * self._width, world_size=layout.world_size)
        return 2 * self._micro_batches * layout.virtual_stages * one

    @property
    def tied_table(self) -> float:
        """Sum of the tied table's gradient over the first and the last stage."""
        layout, config = self._layout, self._config
        if layout.pipeline_parallel_size == 1 or not self._table.trains_table:
            return 0.0
        elements = config.padded_vocab_size * config.model.hidden_size
        size = elements * SUM_BYTES / layout.tensor_parallel_size
        return self._cluster.send_seconds(all_reduced(size, 2), world_size=layout.world_size)

    @property
    def replicas(self) -> float:
        """Reductions of gradients and gatherings of weights over the replicas."""
        layout = self._layout
        seconds = (
            self._cluster.exchange_seconds(
                half,
                ranks=layout.data_parallel_size,
                stride=layout.tensor_parallel_size,
                world_size=layout.world_size,
            )
            for half in self._halves
        )
        return sum(seconds)

    @cached_property
    def _halves(self) -> list[float]:
        """Bytes that a rank sends in each reduce-scatter or all-gather of a step."""
        layout, stage = self._layout, self._config.zero.stage
        ranks = layout.data_parallel_size
        stages = range(layout.pipeline_parallel_size)
        trained = max(self._table.trained_elements(layout, each) for each in stages)
        held = max(self._table.elements(layout, each) for each in stages)
        sums = all_reduced(trained * SUM_BYTES, ranks) / 2
        # ZeRO 3 shards frozen parameters as well.
        weights = all_reduced((held if stage == 3 else trained) * self._width, ranks) / 2
        if stage == 0:
            return [sums, sums]
        if stage == 1:
            return [sums, weights]
        every = self._micro_batches
        gathered = 2 * every if stage == 3 else 1
        return [sums] * every + [weights] * gathered
