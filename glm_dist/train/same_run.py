"""Checks that a run resumes with the configuration and the rows that it had so far.

A pre-check runs them before the start, and the job repeats them after opening its data.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glm_dist.checkpoint.manifest import Manifest
from glm_dist.config.load import load_config_file
from glm_dist.config.schema import LossNormalization, RunConfig
from glm_dist.config.task import TaskKind
from glm_dist.config.values import ABSENT, shown_value, values_of
from glm_dist.data.identity import ROW_RULE, describe_differences, keeps_rows, row_rule_of
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.files import exists
from glm_dist.observe.run_folder import CONFIG_FILE, PROVENANCE_FILE

MOST_TYPED = 4
"""Values that a message repeats as a command."""

FREE_KEYS: tuple[str, ...] = (
    "config_version",
    "run.name",
    "run.steps",
    "run.max_minutes",
    "run.init_from",
    "run.init_with",
    "parallel.",
    "zero.",
    "recompute.",
    "data.num_workers",
    "data.prefetch",
    "data.validation_corpora.",
    "evaluation.",
    "checkpoint.",
    "stability.",
    "watchdog.",
    "observe.",
    "task.data.train",
    "task.data.valid",
    "task.data.test",
    "task.data.source",
    "task.metrics",
    "task.decode.",
    "task.epochs",
    "task.steps",
    "task.epoch_steps",
    "compare.",
    "task.patience",
    "paths.",
    "tokenizer.path",
)
"""Keys that a resumed run may change: they affect speed and duration, not results."""


FUTURE_KEYS = ("data.corpora.", "data.stage_starts", "data.skip_rows")
"""Keys that a resumed run may change if that changes none of the rows it has read."""


def stability_memory(extra: Mapping[str, object]) -> Mapping[str, Any]:
    """Return what the guard of ``train/stability.py`` left in a checkpoint; empty in old ones."""
    memory = extra.get("stability")
    return memory if isinstance(memory, Mapping) else {}


def passed_over(extra: Mapping[str, object]) -> list[str]:
    """Return the ranges of rows, as first-last, that rewinds before a checkpoint passed over."""
    return [str(rows) for rows in stability_memory(extra).get("passed_over", [])]


def check_same_config(
    config: RunConfig,
    *,
    newest: str,
    rows_read: int,
    skipped: Sequence[str] = (),
    file: Path | None = None,
    shown: str | None = None,
) -> None:
    """Compare every value that changes the result with the configuration saved in the folder.

    Args:
        config: Configuration of the resumed run.
        newest: Name of its newest checkpoint.
        rows_read: Training rows read until then.
        skipped: Ranges that rewinds passed over until then, besides ``data.skip_rows``.
        file: The saved configuration; None: the one in the run folder.
        shown: Its name in messages; None: its path.

    Raises:
        ConfigError: A value differs, or the saved configuration cannot be read.
    """
    file = config.run_dir / CONFIG_FILE if file is None else file
    if not exists(file):
        return
    earlier = load_config_file(file)
    name = shown or str(file)
    _check_order(earlier, config, file=name, newest=newest)
    saved = dict(values_of(earlier))
    free = FREE_KEYS
    past, present = (each.data.passing_over(skipped) for each in (earlier, config))
    row = past.row_index(rows_read)
    has_same_past = past.read_before(row) == present.read_before(row)
    if config.loss.normalize_by is LossNormalization.global_tokens:
        free = (*free, "batch.micro_batch_size")
    current = dict(values_of(config))
    changed = [
        key
        for key in sorted(saved.keys() | current.keys())
        if not key.startswith(free)
        and saved.get(key, ABSENT) != current.get(key, ABSENT)
        and not _is_moved_corpus(key, saved, current)
        and not (has_same_past and key.startswith(FUTURE_KEYS))
    ]
    if changed:
        was = {key: saved.get(key, ABSENT) for key in changed}
        now = {key: current.get(key, ABSENT) for key in changed}
        raise _other_values(was, now, name=name, newest=newest)


def _other_values(
    was: Mapping[str, object], now: Mapping[str, object], *, name: str, newest: str
) -> ConfigError:
    """Explain values that differ from those of the saved configuration.

    Args:
        was: Saved values of the keys that differ.
        now: Present values of the same keys.
        name: Of the saved configuration.
        newest: Name of the checkpoint to resume from.
    """
    lines = [f"  {key}={shown_value(was[key])}, now {shown_value(now[key])}\n" for key in was]
    # A key may follow another one, as decay_steps does run.steps, and was never typed.
    typed = [
        shlex.quote(f"{key}={shown_value(value)}") for key, value in was.items() if value != ABSENT
    ]
    return ConfigError(
        f"The run resumes from {newest}, but {name} has other values:\n"
        f"{''.join(lines)}"
        f"  {_way_back(typed, len(was))}, or start a new run with run.name=<new>.",
        key=", ".join(was),
        value=", ".join(shown_value(value) for value in now.values()),
        fix=" ".join(typed) if len(typed) == len(was) else "run.name=<new>",
    )


def _way_back(typed: Sequence[str], num_changed: int) -> str:
    """Return the advice to restore values; as a command if there are few, all of which can be set.

    Args:
        typed: Overrides that set earlier values.
        num_changed: Values that have changed.
    """
    if len(typed) < num_changed or len(typed) > MOST_TYPED:
        return "Restore these values"
    return f"Set {' '.join(typed)}"


def check_has_optimizer(checkpoint: Path, manifest: Manifest) -> None:
    """Refuse to go on from weights alone, as ``glm-dist convert`` writes them.

    Raises:
        CheckpointError: The checkpoint has no optimizer state.
    """
    if manifest.has_optimizer:
        return
    run = checkpoint.parent.parent
    raise CheckpointError(
        f"{checkpoint} holds weights without the optimizer's state, so no training can go on from"
        " it.\n"
        "  Begin a new run with these weights: run.name=<new name>"
        f" run.init_from={run} run.init_with=weights",
        key=str(checkpoint),
        value="weights only",
        fix=f"run.name=<new name> run.init_from={run} run.init_with=weights",
    )


def check_same_position(config: RunConfig, checkpoint: Path, manifest: Manifest) -> None:
    """Refuse to resume where the step does not begin at the row that the checkpoint ends at.

    Raises:
        CheckpointError: ``batch.global_batch_size`` is not the one of the checkpoint.
    """
    moved = moved_position(config, manifest)
    if moved is None:
        return
    rows, step = manifest.extra["rows"], manifest.step
    assert isinstance(rows, int)
    saved = rows // max(step, 1)
    fits = f"Set batch.global_batch_size={saved}, or start" if saved * step == rows else "Start"
    raise CheckpointError(
        f"{checkpoint} has another global batch size: {moved}.\n"
        f"  {fits} a new run with run.name=<new>.",
        key="batch.global_batch_size",
        value=config.batch.global_batch_size,
        fix=f"batch.global_batch_size={saved}",
    )


def moved_position(config: RunConfig, manifest: Manifest) -> str | None:
    """Say in words which rows a run would skip or repeat after a checkpoint; None if it fits.

    Args:
        config: Configuration of the run that continues.
        manifest: Its checkpoint. Without a number of rows nothing is compared.
    """
    rows, begin = manifest.extra.get("rows"), manifest.step * config.batch.global_batch_size
    if not isinstance(rows, int) or rows == begin:
        return None
    first, last = sorted((rows, begin))
    effect = "would never be read" if begin > rows else "would be read again"
    return (
        f"{manifest.step} steps have read {rows} rows, but {begin} with batch.global_batch_size="
        f"{config.batch.global_batch_size}; rows {first} to {last - 1} {effect}"
    )


def check_same_rows(
    config: RunConfig, checkpoint: Path, *, extra: Mapping[str, object], current: object
) -> None:
    """Refuse to resume with other rows: some would be repeated and others never read.

    Args:
        config: Configuration of the resumed run.
        checkpoint: Checkpoint to resume from.
        extra: The checkpoint's facts about the run. Without an identity of its data
            (``extra["data"]``) nothing is refused.
        current: Identity of the current data.

    Raises:
        CheckpointError: The rows differ.
    """
    saved = extra.get("data")
    if not isinstance(saved, Mapping) or not isinstance(current, Mapping):
        return
    rule = row_rule_of(saved)
    if rule > ROW_RULE:
        raise CheckpointError(
            f"{checkpoint} was trained by row rule {rule}; this version of glm_dist knows rules up "
            f"to {ROW_RULE}.\n  Use the version that saved it: "
            f"{config.run_dir / PROVENANCE_FILE} names it.",
            key=str(checkpoint),
            value=rule,
            fix="use the version of glm_dist that provenance.json names",
        )
    unread = _unread_corpora(config, extra, saved)
    if unread:
        current = _without(current, unread)
    differences = describe_differences(saved, current)
    if differences:
        read = "corpora" if config.task.kind is TaskKind.none else "examples"
        raise CheckpointError(
            f"{checkpoint} was trained on other data, so the run would repeat some texts and never "
            f"read others: {'; '.join(differences)}.\n"
            f"  Restore the {read} and the tokenizer, or train on the new ones in a new run: "
            f"run.name=<new name> run.init_from={config.run_dir}",
            key=str(checkpoint),
            value="; ".join(differences),
            fix="restore the files, or start a new run",
        )
    if not keeps_rows(rule, row_rule_of(current), config):
        raise CheckpointError(
            f"{checkpoint} was trained by row rule {rule}, by which an older version mixed corpora "
            f"and objectives. This version follows rule {row_rule_of(current)}: the run would"
            " continue with other rows, repeat some texts and never read others.\n"
            f"  Continue in a new run: run.name=<new name> run.init_from={config.run_dir} "
            "run.init_with=weights_and_optimizer\n"
            "  Or use the version that saved it: "
            f"{config.run_dir / PROVENANCE_FILE} names it.",
            key=str(checkpoint),
            value=rule,
            fix=f"run.init_from={config.run_dir} run.init_with=weights_and_optimizer",
        )


def _unread_corpora(
    config: RunConfig, extra: Mapping[str, object], saved: Mapping[str, object]
) -> frozenset[str]:
    """Return the corpora that the checkpoint does not list and no row has been read from."""
    rows_read, known = extra.get("rows"), saved.get("corpora")
    if not isinstance(rows_read, int) or not isinstance(known, Mapping):
        return frozenset()
    data = config.data.passing_over(passed_over(extra))
    stages = data.read_before(data.row_index(rows_read)).weights
    read = {name for weights in stages.values() for name in weights}
    return frozenset(config.data.corpora) - read - known.keys()


def _without(identity: Mapping[str, Any], names: frozenset[str]) -> dict[str, object]:
    """Return an identity of data without some of its corpora."""
    corpora = identity["corpora"].items()
    return {
        **identity,
        "corpora": {name: entry for name, entry in corpora if name not in names},
        "order": [name for name in identity["order"] if name not in names],
    }


def _check_order(earlier: RunConfig, config: RunConfig, *, file: str, newest: str) -> None:
    """Check the order of the corpora, which the mixing depends on; new ones may be inserted."""
    before = [name for name in earlier.data.corpora if name in config.data.corpora]
    now = [name for name in config.data.corpora if name in earlier.data.corpora]
    if before != now:
        raise ConfigError(
            f"data.corpora lists {', '.join(now)}, but in the order {', '.join(before)} in {file}, "
            f"from whose {newest} the run resumes; another order gives other rows.\n"
            "  List them in the old order, or start a new run with run.name=<new>.",
            key="data.corpora",
            value=now,
            fix=f"list them in the order {', '.join(before)}",
        )


def _is_moved_corpus(key: str, saved: Mapping[str, object], current: Mapping[str, object]) -> bool:
    """Return True if only the path of a known corpus changed; its content is compared elsewhere."""
    is_prefix = key.startswith("data.corpora.") and key.endswith(".prefix")
    return is_prefix and key in saved and key in current
