"""Rules about validations and checkpoints between steps; no file is opened."""

from glm_dist.config.schema import RunConfig, TaskKind
from glm_dist.errors import ConfigError


def check_intervals(config: RunConfig) -> None:
    """Check that what happens between steps has what it needs.

    Raises:
        ConfigError: It is asked for, and another value prevents it.
    """
    evaluation, checkpoint = config.evaluation, config.checkpoint
    is_pretraining = config.task.kind is TaskKind.none
    if is_pretraining and evaluation.interval > 0 and evaluation.rows_per_objective == 0:
        raise ConfigError(
            f"evaluation.interval={evaluation.interval} asks for validation, but"
            " evaluation.rows_per_objective=0 gives it no rows.\n"
            "  Set evaluation.rows_per_objective=1024, or evaluation.interval=0.",
            key="evaluation.rows_per_objective",
            value=0,
            fix="evaluation.rows_per_objective=1024",
        )
    if is_pretraining and evaluation.interval > 0 and config.data.validation_share == 0:
        raise ConfigError(
            f"evaluation.interval={evaluation.interval} asks for validation, but"
            " data.validation_share=0"
            " holds no documents out.\n"
            "  Set data.validation_share=0.05, or evaluation.interval=0.",
            key="data.validation_share",
            value=0,
            fix="data.validation_share=0.05",
        )
    if checkpoint.step is not None and checkpoint.step < 1:
        raise ConfigError(
            f"checkpoint.step={checkpoint.step}, but it must be the step of a checkpoint, or null"
            " for the newest.\n"
            "  Set checkpoint.step=null.",
            key="checkpoint.step",
            value=checkpoint.step,
            fix="checkpoint.step=null",
        )
    if checkpoint.interval > 0 and checkpoint.keep_last == 0:
        raise ConfigError(
            f"checkpoint.interval={checkpoint.interval} asks for checkpoints, but"
            " checkpoint.keep_last=0"
            " would delete each at once.\n"
            "  Set checkpoint.keep_last=3, or checkpoint.interval=0.",
            key="checkpoint.keep_last",
            value=0,
            fix="checkpoint.keep_last=3",
        )
    _check_best(config)
    if config.stability.rewinds and checkpoint.interval == 0:
        raise ConfigError(
            "stability=rewind goes back to checkpoints, but checkpoint.interval=0 saves none.\n"
            "  Set checkpoint.interval=1000, or stability=default.",
            key="checkpoint.interval",
            value=0,
            fix="stability=default",
        )


def _check_best(config: RunConfig) -> None:
    """Refuse to compare checkpoints or validations where there are none."""
    wants = {
        "checkpoint.keep_best": (config.checkpoint.keep_best, "true", "false"),
        "task.patience": (config.task.patience > 0, config.task.patience, "0"),
    }
    for key, (is_on, value, off) in wants.items():
        if is_on and config.evaluation.interval == 0:
            raise ConfigError(
                f"{key}={value} compares validations, but evaluation.interval=0 turns them off.\n"
                f"  Set evaluation.interval=1000, or {key}={off}.",
                key="evaluation.interval",
                value=0,
                fix=f"{key}={off}",
            )
    if config.checkpoint.keep_best and config.checkpoint.interval == 0:
        raise ConfigError(
            "checkpoint.keep_best=true keeps a checkpoint, but checkpoint.interval=0 saves none.\n"
            "  Set checkpoint.interval=1000, or checkpoint.keep_best=false.",
            key="checkpoint.interval",
            value=0,
            fix="checkpoint.keep_best=false",
        )
