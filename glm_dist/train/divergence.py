"""Errors of a diverged run, with the command to continue."""

from glm_dist.checkpoint.folders import list_steps
from glm_dist.config.schema import RunConfig
from glm_dist.errors import TrainingError
from glm_dist.observe.run_folder import CHECKPOINTS


def non_finite_gradients(config: RunConfig, *, step: int, norm: float) -> TrainingError:
    """Explain an update that was dropped because a gradient is infinite or undefined."""
    return TrainingError(
        f"The gradient norm is {norm} in step {step}; no weight was changed.\n{_way_on(config)}",
        key="gradient norm",
        value=norm,
        fix=_override(config),
    )


def overflow_at_smallest_scale(config: RunConfig, *, step: int, scale: float) -> TrainingError:
    """Explain an fp16 overflow that no smaller loss scale can avoid."""
    return TrainingError(
        f"Gradients overflow in step {step} even at the smallest loss scale, {scale:g}"
        f" (precision.min_loss_scale={config.precision.min_loss_scale}).\n"
        f"{_way_on(config)} precision=bf16 has no loss scale.",
        key="precision.min_loss_scale",
        value=scale,
        fix=_override(config),
    )


def non_finite_loss(config: RunConfig, loss: float, *, first: int, last: int) -> TrainingError:
    """Explain a loss that is infinite or undefined.

    Args:
        config: The run's configuration.
        loss: Mean over the steps.
        first: First step that may have diverged.
        last: Last step that may have diverged.
    """
    steps = f"step {last}" if first == last else f"steps {first} to {last}"
    return TrainingError(
        f"The loss is {loss} in {steps}; nothing was saved since.\n{_way_on(config)}",
        key=steps,
        value=loss,
        fix=_override(config),
    )


def _override(config: RunConfig) -> str:
    return f"run.init_from={config.run_dir}"


def _way_on(config: RunConfig) -> str:
    """Return the advice to continue with a lower learning rate."""
    steps = list_steps(config.run_dir / CHECKPOINTS)
    gentler = f"optimizer.learning_rate={config.optimizer.learning_rate / 2:g}"
    if not steps:
        return f"Start again under another run.name with a lower rate, e.g. {gentler}."
    return (
        f"Continue from {steps[0][1].name} in a new run with a lower learning rate:\n"
        f"  run.name={config.run.name}_2 {_override(config)}"
        f" run.init_with=weights_and_optimizer {gentler}"
    )
