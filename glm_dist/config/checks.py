"""Rules that involve several values, or the number of started processes."""

from glm_dist.config.schema import RunConfig


def check_config(config: RunConfig, *, world_size: int | None) -> None:
    """Check everything that is known before any file is opened.

    Args:
        config: Typed configuration; each value alone is already in its range.
        world_size: Processes of the job; None where they are not known yet.

    Raises:
        ConfigError: Two values contradict each other.
        LaunchError: The number of processes does not fit.
    """
    if world_size is not None:
        config.data_parallel_size(world_size)
