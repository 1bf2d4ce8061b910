"""Choice between fused operations and torch's own, by configuration, device and toolchain."""

import logging
import subprocess
import time

import torch

from glm_dist.config.schema import CompileConfig, Fusing
from glm_dist.errors import ConfigError
from glm_dist.model.fused import FusedPointwise
from glm_dist.model.fused_bodies import compiled
from glm_dist.model.pointwise import ONE_BY_ONE, Pointwise
from glm_dist.parallel.errors import Ranks

log = logging.getLogger(__name__)


def may_compile(config: CompileConfig, device: torch.device) -> bool:
    """Return True if a run leaves compiled code behind."""
    return config.enabled or _wants_fused(config, device)


def choose_pointwise(config: CompileConfig, *, device: torch.device) -> Pointwise:
    """Decide how modules run what lies between matrix products. Collective over all ranks.

    All ranks decide alike: fused dropout draws other masks, and tensor ranks need equal masks.

    Args:
        config: Section of the configuration.
        device: Device of the model.

    Raises:
        ConfigError: ``compile.pointwise`` is on, and torch.compile does not work on some rank.
    """
    if not _wants_fused(config, device):
        return ONE_BY_ONE
    started = time.monotonic()
    ranks = Ranks(None)
    failures = ranks.gather(_try_compiler(device))
    seconds = time.monotonic() - started
    failure = next((each for each in failures if each), "")
    if not failure:
        log.info(
            "compile.pointwise=%s: torch.compile works (%.1f s); the first step takes some more"
            " seconds to fuse what lies between matrix products",
            config.pointwise.name,
            seconds,
        )
        return FusedPointwise()
    if ranks.rank == 0 or config.pointwise is Fusing.on:
        refuse_or_warn(config, failure, device=device)
    return ONE_BY_ONE


def refuse_or_warn(config: CompileConfig, failure: str, *, device: torch.device) -> None:
    """Say that torch.compile does not work.

    Args:
        config: Section of the configuration.
        failure: What went wrong, in a line.
        device: Device of the model.

    Raises:
        ConfigError: ``compile.pointwise`` is on.
    """
    remedy = "Install triton and gcc" if device.type == "cuda" else "Install g++"
    if config.pointwise is Fusing.on:
        raise ConfigError(
            f"compile.pointwise=on needs torch.compile, which does not work here: {failure}.\n"
            f"  {remedy}, or set compile.pointwise=off.",
            key="compile.pointwise",
            value="on",
            fix="compile.pointwise=off",
        )
    log.warning(
        "compile.pointwise=auto: torch.compile does not work here, so training is slower: %s."
        " %s, or set compile.pointwise=off to hide this warning.",
        failure,
        remedy,
    )


def _wants_fused(config: CompileConfig, device: torch.device) -> bool:
    if config.pointwise is Fusing.auto:
        return device.type == "cuda"
    return config.pointwise is Fusing.on


def _try_compiler(device: torch.device) -> str:
    """Compile a small function; return the first line of what went wrong, or nothing."""
    try:
        compiled(_probe)(torch.ones(8, 8, device=device))
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(".: ")
    return ""


def _probe(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers + 1.0).sum(dim=1)
