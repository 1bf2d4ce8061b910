"""Rules about records: what they need on this machine; no file is opened."""

from importlib.util import find_spec

from glm_dist.config.schema import RunConfig
from glm_dist.errors import ConfigError


def check_observe(config: RunConfig) -> None:
    """Check that the records that are asked for can be made.

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
