"""Errors of a diverged run, with the command to continue."""

from glm_dist.checkpoint.folders import list_steps
from glm_dist.config.schema import RunConfig
from glm_dist.errors import TrainingError
from glm_dist.observe.run_folder import CHECKPOINTS


def non_finite_step(
    config: RunConfig, *, step: int, what: str, value: float, origin: str, rows: str
) -> TrainingError:
    """Explain an update that was dropped because a value is infinite or undefined.

    Args:
        config: The run's configuration.
        step: Its step.
        what: The value: loss or gradient norm.
        value: Infinite or undefined.
        origin: Ranks, tensors and micro-batches, in lines.
        rows: Rows of the step, as first-last.
    """
    return TrainingError(
        f"The {what} is {value} in step {step}; no weight was changed.\n{origin}\n"
        f"{_way_on(config, rows)}",
        key=what,
        value=value,
        fix=_override(config),
    )


def overflow_at_smallest_scale(
    config: RunConfig, *, step: int, scale: float, origin: str, rows: str
) -> TrainingError:
    """Explain an fp16 overflow that no smaller loss scale can avoid; see ``non_finite_step``."""
    return TrainingError(
        f"Gradients overflow in step {step} even at the smallest loss scale, {scale:g}"
        f" (precision.min_loss_scale={config.precision.min_loss_scale}).\n"
        f"{origin}\n{_way_on(config, rows)}\n  precision=bf16 has no loss scale.",
        key="precision.min_loss_scale",
        value=scale,
        fix=_override(config),
    )


def non_finite_loss(
    config: RunConfig, loss: float, *, first: int, last: int, rows: str
) -> TrainingError:
    """Explain a loss that is infinite or undefined.

    Args:
        config: The run's configuration.
        loss: Loss of the first such step.
        first: First step without a finite loss.
        last: Last one since the last record.
        rows: Rows of these steps, as first-last.
    """
    steps = f"step {last}" if first == last else f"steps {first} to {last}"
    return TrainingError(
        f"The loss is {loss} in {steps}; nothing was saved since.\n{_way_on(config, rows)}",
        key=steps,
        value=loss,
        fix=_override(config),
    )


def spike_error(config: RunConfig, *, step: int, spike: str, rows: str) -> TrainingError:
    """Explain a spike that ends the run, because ``stability.on_spike=stop``."""
    return TrainingError(
        f"Step {step} is a spike ({spike}); nothing was saved since.\n{_way_on(config, rows)}",
        key="stability.on_spike",
        value="stop",
        fix="stability.on_spike=warn",
    )


def interventions_used_up(config: RunConfig, *, step: int, reason: str, rows: str) -> TrainingError:
    """Explain that one more step would have to be skipped than the run allows.

    Args:
        config: The run's configuration.
        step: The step.
        reason: Why it would be skipped.
        rows: Its rows, as first-last.
    """
    allowed = config.stability.max_interventions
    more = f"stability.max_interventions={2 * max(1, allowed)}"
    return TrainingError(
        f"Step {step} would be skipped, but the retries are used up:"
        f" stability.max_interventions={allowed}. No weight was changed.\n{reason}\n"
        f"{_way_on(config, rows)}\n  To allow more: {more}",
        key="stability.max_interventions",
        value=allowed,
        fix=more,
    )


def replicas_differ(
    config: RunConfig, *, step: int, ranks: str, tensor: str, is_majority: bool
) -> TrainingError:
    """Explain that ranks which must hold the same weights do not.

    Args:
        config: The run's configuration.
        step: Steps done.
        ranks: Ranks and hosts, in words.
        tensor: First weight that differs.
        is_majority: True if the other replicas agree with each other.
    """
    names = [path.name for _, path in list_steps(config.run_dir / CHECKPOINTS)]
    cause = "differ from the other replicas" if is_majority else "differ, without a majority"
    return TrainingError(
        f"After step {step} the weights of {ranks} {cause}; the first is {tensor}. Replicas get the"
        " same updates, so a device or its memory is faulty; nothing was saved since"
        f" {names[0] if names else 'the start'}.\n"
        "  Test the devices, or leave the host out, and start again.",
        key="stability.compare_replicas_interval",
        value=ranks,
        fix="leave the host out",
    )


def _override(config: RunConfig) -> str:
    return f"run.init_from={config.run_dir}"


def _way_on(config: RunConfig, rows: str) -> str:
    """Return the advice to continue with a lower learning rate, or without some rows."""
    steps = list_steps(config.run_dir / CHECKPOINTS)
    gentler = f"optimizer.learning_rate={config.optimizer.learning_rate / 2:g}"
    if not steps:
        return f"Start again under another run.name with a lower rate, e.g. {gentler}."
    skipped = ",".join(config.data.passing_over([rows]).skip_rows)
    return (
        f"Continue from {steps[0][1].name} in a new run with a lower learning rate:\n"
        f"  run.name={config.run.name}_2 {_override(config)}"
        f" run.init_with=weights_and_optimizer {gentler}\n"
        f"  Or continue this run without these rows: 'data.skip_rows=[{skipped}]'"
    )
