"""Rules about records and profiles; no file is opened."""

from importlib.util import find_spec

from glm_dist.config.schema import RunConfig
from glm_dist.errors import ConfigError


def check_observe(config: RunConfig, *, world_size: int | None) -> None:
    """Check what holds for a run's configuration wherever it is read.

    Args:
        config: Typed configuration.
        world_size: Processes of the job; None where they are not known yet.

    Raises:
        ConfigError: A profile of a step or a rank is asked for that no run has.
    """
    steps, ranks = config.observe.profile_steps, config.observe.profile_ranks
    if steps and min(steps) < 1:
        raise ConfigError(
            f"observe.profile_steps has {min(steps)}, but the first step of a run is 1.\n"
            "  Set observe.profile_steps=[10], for example.",
            key="observe.profile_steps",
            value=min(steps),
            fix="observe.profile_steps=[10]",
        )
    if steps and not ranks:
        raise ConfigError(
            "observe.profile_ranks is empty, so nobody would profile observe.profile_steps.\n"
            "  Set observe.profile_ranks=[0], or observe.profile_steps=[].",
            key="observe.profile_ranks",
            value=[],
            fix="observe.profile_ranks=[0]",
        )
    wrong = [rank for rank in ranks if rank < 0 or (world_size is not None and rank >= world_size)]
    if steps and wrong:
        here = "" if world_size is None else f"; this job has ranks 0 to {world_size - 1}"
        raise ConfigError(
            f"observe.profile_ranks has {wrong[0]}, which is no rank{here}.\n"
            "  Set observe.profile_ranks=[0].",
            key="observe.profile_ranks",
            value=wrong[0],
            fix="observe.profile_ranks=[0]",
        )


def check_records(config: RunConfig) -> None:
    """Check before a launch that the records and profiles that are asked for can be made.

    Args:
        config: Complete: the steps of a task are counted from its examples.

    Raises:
        ConfigError: They cannot.
    """
    if config.observe.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "observe.tensorboard=true needs the package tensorboard, which is not installed.\n"
            '  Install it: pip install "glm-dist[tensorboard]", or set observe.tensorboard=false.',
            key="observe.tensorboard",
            value=True,
            fix='pip install "glm-dist[tensorboard]"',
        )
    last = max(config.observe.profile_steps, default=0)
    if last > config.run.steps:
        raise ConfigError(
            f"observe.profile_steps has {last}, but the run ends at step {config.run.steps}.\n"
            f"  Set steps up to {config.run.steps}.",
            key="observe.profile_steps",
            value=last,
            fix=f"observe.profile_steps=[{config.run.steps}]",
        )
