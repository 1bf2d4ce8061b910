"""Rules of a task that involve several values; no file is opened.

What depends on the examples, such as a field that they lack, is checked where they are read.
"""

from collections.abc import Sequence

from glm_dist.config.patterns import PatternError, Piece, count_blanks, parse_field, parse_pattern
from glm_dist.config.schema import ModelConfig, RunConfig
from glm_dist.config.task import CHOICES_OF, LOSS, METRICS, TaskConfig, TaskKind, head_outputs
from glm_dist.errors import ConfigError

CHOICE = "choice"
"""Field of a pattern that stands for the answer of a row."""


def check_task(config: RunConfig) -> None:
    """Check the section ``task``.

    Raises:
        ConfigError: A pattern is malformed or has no blank, answers are missing, a metric is
            unknown, or the model has too few positions or another head than the task needs.
    """
    task = config.task
    if task.kind is TaskKind.none:
        return
    pieces = _checked_pattern(task)
    _check_blanks(task, pieces)
    if task.kind in (TaskKind.cloze, TaskKind.classify):
        _check_answers(task)
    if task.kind is TaskKind.seq2seq:
        _check_target(task)
    _check_metrics(task)
    _check_numbers(task)
    _check_length(task, config.model)
    _check_outputs(task, config.model)


def _checked_pattern(task: TaskConfig) -> list[Piece]:
    if not task.pattern and task.patterns and task.pattern_id >= len(task.patterns):
        last = len(task.patterns) - 1
        raise ConfigError(
            f"task.pattern_id={task.pattern_id}, but the last of task.patterns is {last}.\n"
            f"  Set task.pattern_id={last} or less.",
            key="task.pattern_id",
            value=task.pattern_id,
            fix=f"task.pattern_id={last}",
        )
    if not task.prompt_pattern.strip():
        raise ConfigError(
            f"task.kind={task.kind.name} makes prompts, and task.pattern is empty.\n"
            "  Set task.pattern='{text} It was [MASK].', with the fields of the examples.",
            key="task.pattern",
            value=task.pattern,
            fix="task.pattern='{text} It was [MASK].'",
        )
    every = {"pattern": task.pattern, "classifier_pattern": task.classifier_pattern}
    every |= {f"patterns[{n}]": text for n, text in enumerate(task.patterns)}
    for key, text in {**every, "target": task.target}.items():
        parse_checked(text, key=f"task.{key}")
    return parse_pattern(task.prompt_pattern)


def parse_checked(text: str, *, key: str) -> list[Piece]:
    """Parse a pattern.

    Args:
        text: The pattern.
        key: Where it was written, for the message.

    Raises:
        ConfigError: It is malformed.
    """
    try:
        return parse_pattern(text)
    except PatternError as error:
        raise ConfigError(
            f"{key}={text!r} is malformed: {error}.\n"
            "  Write fields in single braces, such as '{question} [MASK].'",
            key=key,
            value=text,
            fix="{question} [MASK].",
        ) from error


def _check_blanks(task: TaskConfig, pieces: Sequence[Piece]) -> None:
    found = count_blanks(pieces)
    needed = {TaskKind.cloze: 1, TaskKind.seq2seq: 1, TaskKind.infill: 0}.get(task.kind, found)
    if found == needed:
        return
    has = {0: "no blank", 1: "a blank"}.get(found, f"{found} blanks")
    needs, advice = "exactly one", "Write [MASK] once, where the answer stands."
    if task.kind is TaskKind.infill:
        needs, advice = "none: blanks come from the words of the examples", "Leave [MASK] out."
    raise ConfigError(
        f"{task.pattern_key}={task.prompt_pattern!r} has {has}, and task.kind={task.kind.name}"
        f" needs {needs}.\n  {advice}",
        key=task.pattern_key,
        value=task.prompt_pattern,
        fix=advice,
    )


def _check_answers(task: TaskConfig) -> None:
    if CHOICES_OF in task.answers and len(task.answers) > 1:
        raise ConfigError(
            f"task.answers has {CHOICES_OF!r}, which takes the answers from the examples, and"
            " labels besides.\n  Write answers: {from: choices}, or labels alone.",
            key="task.answers",
            value=list(task.answers),
            fix="answers: {from: choices}",
        )
    if task.choices_field:
        _check_choices_field(task.choices_field)
        _check_whole_choices(task)
        return
    answers = task.prompt_answers
    if len(answers) < 2:
        raise ConfigError(
            f"task.answers has {len(answers) or 'no'} label{'s' * (len(answers) != 1)}, and"
            f" task.kind={task.kind.name} chooses from at least 2.\n"
            "  Write answers: {positive: good, negative: bad}, or {from: choices} for answers in"
            " the examples.",
            key="task.answers",
            value=answers,
            fix="answers: {positive: good, negative: bad}",
        )
    for label, text in answers.items():
        if not text.strip():
            raise ConfigError(
                f"task.answers has no text for the label {label!r}.\n"
                f"  Write answers: {{{label}: <text>}}.",
                key=f"task.answers.{label}",
                value=text,
                fix=f"task.answers.{label}=<text>",
            )
    _check_pattern_answers(task)


def _check_choices_field(field: str) -> None:
    try:
        parse_field(field)
    except PatternError as error:
        raise ConfigError(
            f"task.answers.from={field!r} is malformed: {error}.\n"
            "  Name the field that lists the answers of an example: {from: choices}.",
            key="task.answers.from",
            value=field,
            fix="task.answers.from=choices",
        ) from error


def _check_whole_choices(task: TaskConfig) -> None:
    if task.single_token:
        raise ConfigError(
            "task.single_token=true needs answers that are the same in every example, and"
            f" task.answers.from={task.choices_field} takes them from the examples.\n"
            "  Leave task.single_token out: whole answers are compared.",
            key="task.single_token",
            value=True,
            fix="task.single_token=null",
        )


def _check_pattern_answers(task: TaskConfig) -> None:
    for number, answers in task.pattern_answers.items():
        key = f"task.pattern_answers.{number}"
        if not number.isdecimal() or int(number) >= len(task.patterns):
            raise ConfigError(
                f"{key} belongs to no pattern; task.patterns has {len(task.patterns)}, counted from"
                " 0.\n  Name the pattern_id of one of them.",
                key=key,
                value=number,
            )
        if list(answers) != list(task.answers):
            raise ConfigError(
                f"{key} has the labels {', '.join(answers)}, and task.answers has"
                f" {', '.join(task.answers)}.\n  Write the same labels in the same order.",
                key=key,
                value=list(answers),
            )


def _check_target(task: TaskConfig) -> None:
    if not task.target.strip():
        raise ConfigError(
            "task.kind=seq2seq writes answers, and task.target is empty.\n"
            "  Set task.target='{summary}', with the field that holds them.",
            key="task.target",
            value=task.target,
            fix="task.target='{summary}'",
        )


def _check_metrics(task: TaskConfig) -> None:
    known = METRICS[task.kind]
    for name in task.metrics:
        if name not in known:
            raise ConfigError(
                f"task.metrics has {name!r}, which task.kind={task.kind.name} does not have.\n"
                f"  Choose from {', '.join(known)}.",
                key="task.metrics",
                value=name,
                fix=f"task.metrics=[{known[0]}]",
            )
    measured = task.used_metrics
    if task.selecting_metric not in (*measured, LOSS):
        raise ConfigError(
            f"task.select={task.select} is not among task.metrics={measured}.\n"
            f"  Set task.select={measured[0]}, or add {task.select} to task.metrics.",
            key="task.select",
            value=task.select,
            fix=f"task.select={measured[0]}",
        )


def _check_numbers(task: TaskConfig) -> None:
    if task.limit is not None and task.limit < 1:
        raise ConfigError(
            f"task.limit={task.limit}, but it must be a number of examples, or null for all.\n"
            "  Set task.limit=null.",
            key="task.limit",
            value=task.limit,
            fix="task.limit=null",
        )
    if task.epochs == 0:
        raise ConfigError(
            "task.epochs=0 trains nothing.\n"
            "  Set task.epochs=5; glm-dist evaluate measures a run without training.",
            key="task.epochs",
            value=0,
            fix="task.epochs=5",
        )


def _check_length(task: TaskConfig, model: ModelConfig) -> None:
    keys = {
        TaskKind.cloze: ("max_length",),
        TaskKind.classify: ("max_length",),
        TaskKind.seq2seq: ("source_length", "target_length"),
        TaskKind.infill: ("source_length",),
    }[task.kind]
    room = model.max_position_embeddings + 1
    for key in keys:
        value = getattr(task, key)
        if value > room:
            raise ConfigError(
                f"task.{key}={value} is more than the {room} positions of the model"
                f" (model.max_position_embeddings={model.max_position_embeddings}).\n"
                f"  Set task.{key}={room} or less.",
                key=f"task.{key}",
                value=value,
                fix=f"task.{key}={room}",
            )


def _check_outputs(task: TaskConfig, model: ModelConfig) -> None:
    needed = head_outputs(task)
    if model.num_classes != needed:
        raise ConfigError(
            f"model.num_classes={model.num_classes}, but this task needs {needed}: task.answers"
            f" has {len(task.answers)} and task.kind is {task.kind.name}.\n"
            "  Leave model.num_classes out; the task sets it.",
            key="model.num_classes",
            value=model.num_classes,
            fix=f"model.num_classes={needed}",
        )
