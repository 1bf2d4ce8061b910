"""Layout of ranks: tensor x data x pipeline coordinates, as plain arithmetic.

Ranks are numbered tensor first, then data, then pipeline, so that the ranks of one
tensor-parallel group are neighbours and share a node's fast links. No torch here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from glm_dist.config.parallel_checks import check_stage_layers
from glm_dist.config.schema import RunConfig


@dataclass(frozen=True)
class Coordinates:
    """Index of one rank on each axis."""

    tensor: int
    data: int
    pipeline: int


@dataclass(frozen=True)
class Layout:
    """Sizes of the three parallel axes, and their split of rows and layers."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    """True if tensor ranks split the sequence outside tensor-parallel layers."""
    virtual_stages: int = 1
    """Chunks of layers on each pipeline rank; more than one shortens the pipeline's bubble."""
    stage_layers: tuple[int, ...] = ()
    """Layers of each chunk in pipeline order; () divides them evenly."""

    @classmethod
    def from_config(cls, config: RunConfig, world_size: int | None = None) -> "Layout":
        """Create the layout of a configured run.

        Args:
            config: Configuration of the run.
            world_size: Processes of the whole job; None: as many replicas as the configuration
                asks for, or one.

        Raises:
            LaunchError: The processes do not divide into replicas, or not into as many as asked.
        """
        parallel = config.parallel
        if world_size is None:
            replicas = parallel.data_parallel_size or 1
        else:
            replicas = config.data_parallel_size(world_size)
        return cls(
            tensor_parallel_size=parallel.tensor_parallel_size,
            pipeline_parallel_size=parallel.pipeline_parallel_size,
            data_parallel_size=replicas,
            sequence_parallel=parallel.sequence_parallel,
            virtual_stages=parallel.virtual_stages,
            stage_layers=tuple(parallel.stage_layers),
        )

    @property
    def world_size(self) -> int:
        """Processes of the whole job."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def micro_batch_multiple(self) -> int:
        """Required divisor of a replica's micro-batches: interleaving runs them in groups."""
        return self.pipeline_parallel_size if self.virtual_stages > 1 else 1

    def sizes(self) -> dict[str, int]:
        """Return the axes by name, as checkpoints and provenance record them."""
        return {
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "data_parallel_size": self.data_parallel_size,
        }

    def coordinates(self, rank: int) -> Coordinates:
        """Return the coordinates of a rank.

        Args:
            rank: Global rank, 0 to world_size - 1.
        """
        rest, tensor = divmod(rank, self.tensor_parallel_size)
        pipeline, data = divmod(rest, self.data_parallel_size)
        return Coordinates(tensor=tensor, data=data, pipeline=pipeline)

    def tensor_ranks(self, rank: int) -> list[int]:
        """Return the ranks that share the same layers and rows."""
        return self._sharing(rank, lambda c: (c.data, c.pipeline))

    def data_ranks(self, rank: int) -> list[int]:
        """Return the ranks that hold the same parameters for other rows."""
        return self._sharing(rank, lambda c: (c.tensor, c.pipeline))

    def pipeline_ranks(self, rank: int) -> list[int]:
        """Return the ranks of the same tensor slice, in stage order."""
        return self._sharing(rank, lambda c: (c.tensor, c.data))

    def model_ranks(self, rank: int) -> list[int]:
        """Return the ranks that together hold one replica of the model."""
        return self._sharing(rank, lambda c: c.data)

    def embedding_ranks(self, rank: int) -> list[int]:
        """Return the first and last rank of this pipeline, which hold the tied embedding."""
        stages = self.pipeline_ranks(rank)
        return stages if len(stages) == 1 else [stages[0], stages[-1]]

    def layers_of_stage(self, num_layers: int, stage: int, *, chunk: int = 0) -> range:
        """Return the global indices of the layers in one chunk of a pipeline stage.

        Rows pass through chunk 0 of every stage, then through chunk 1 of every stage, and so on.

        Args:
            num_layers: Layers of the whole model.
            stage: Pipeline coordinate.
            chunk: Index among the stage's virtual stages.

        Raises:
            ConfigError: The chunks do not divide the layers evenly, or ``stage_layers`` does not
                assign all layers.
        """
        check_stage_layers(
            num_layers,
            num_stages=self.pipeline_parallel_size,
            chunks_per_stage=self.virtual_stages,
            listed=self.stage_layers,
        )
        num_chunks = self.pipeline_parallel_size * self.virtual_stages
        counts = self.stage_layers or (num_layers // num_chunks,) * num_chunks
        index = chunk * self.pipeline_parallel_size + stage
        first = sum(counts[:index])
        return range(first, first + counts[index])

    def __str__(self) -> str:
        """Return a short form such as tp2·pp2·dp1, with further options."""
        pairs = zip(("tp", "pp", "dp"), self.sizes().values(), strict=True)
        parts = [f"{axis}{size}" for axis, size in pairs]
        if self.sequence_parallel:
            parts.append("sp")
        if self.virtual_stages > 1:
            parts.append(f"vp{self.virtual_stages}")
        if self.stage_layers:
            parts.append("+".join(map(str, self.stage_layers)))
        return "·".join(parts)

    def _sharing(self, rank: int, key: Callable[[Coordinates], object]) -> list[int]:
        mine = key(self.coordinates(rank))
        return [r for r in range(self.world_size) if key(self.coordinates(r)) == mine]
