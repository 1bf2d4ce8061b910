"""Distributed pretraining of GLM (arXiv 2103.10360) by autoregressive blank infilling."""

import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm_dist.checkpoint.best import StepChoice
    from glm_dist.generate.load import TrainedModel

__all__ = ["load"]

__version__ = "0.1.0"


def load(
    run: str | Path,
    *,
    step: "StepChoice" = None,
    tokenizer: str | Path | None = None,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
) -> "TrainedModel":
    """Load a trained model; see ``generate.load.load_trained``.

    Examples:
        >>> model = glm_dist.load("runs/quickstart")
        >>> model.complete("The people of the United [MASK] have chosen their government.")
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # megatron-core speaks of optional libraries
        door = importlib.import_module("glm_dist.generate.load")
    loaded: TrainedModel = door.load_trained(
        run,
        step=step,
        tokenizer=tokenizer,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
    )
    return loaded
