"""The section about finetuning: examples of a task, and how a prompt and a loss come of them.

Part of the schema; see ``schema.py`` for its rules, ``patterns.py`` for the language of patterns
and ``task_checks.py`` for rules that involve several values. ``kind: none`` is pretraining.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from glm_dist.config.rules import Section, bounded


class TaskKind(Enum):
    """Form of a task."""

    none = "none"
    cloze = "cloze"
    classify = "classify"
    seq2seq = "seq2seq"
    infill = "infill"


class ChoiceLoss(Enum):
    """Loss of an example from the scores of its answers."""

    cross_entropy = "cross_entropy"
    hinge = "hinge"
    generative = "generative"
    mix = "mix"
    adapet = "adapet"


class Pool(Enum):
    """Hidden state that a classifier reads."""

    cls = "cls"
    start = "start"
    pad = "pad"


LOSS = "loss"
"""Metric that every task has; the smallest value is the best."""
CHOICE_METRICS = ("accuracy", "macro_f1", "binary_f1", "matthews", "question_em", "em", "f1")
TEXT_METRICS = ("em", "f1", "rouge", "rouge_1", "rouge_2", "rouge_l", "bleu")
METRICS = {
    TaskKind.none: (),
    TaskKind.cloze: CHOICE_METRICS,
    TaskKind.classify: CHOICE_METRICS,
    TaskKind.seq2seq: TEXT_METRICS,
    TaskKind.infill: TEXT_METRICS,
}
"""Metrics that a kind can measure."""
USUAL_METRIC = {
    TaskKind.cloze: "accuracy",
    TaskKind.classify: "accuracy",
    TaskKind.seq2seq: "rouge_l",
    TaskKind.infill: "bleu",
}
"""Metric of each kind where ``task.metrics`` names none."""
ROUGE = ("rouge_1", "rouge_2", "rouge_l")
"""Metrics that ``rouge`` stands for."""

CHOICES_OF = "from"
"""Only key of ``answers`` where each example has its own."""


@dataclass
class TaskDataConfig:
    """Files of examples."""

    reader: str = "jsonl"
    """Format of the files: jsonl, or the format of one benchmark (docs/finetuning.md)."""
    train: str | None = None
    """Examples to train on."""
    valid: str | None = None
    """Examples that choose the best checkpoint."""
    test: str | None = None
    """Examples that are measured once, at the end; unset: none."""
    label: str = "label"
    """Field with the right answer: its label or, of answers in the examples, its text or index."""
    source: str = ""
    """Usual place to get the files, for the message about a missing one."""


@dataclass
class DecodeConfig(Section):
    """Writing of answers in validations of seq2seq and infill."""

    key: ClassVar[str] = "task.decode"

    beams: int = bounded(1, at_least=1, default=1)
    """Beams; 1: greedy."""
    length_penalty: float = 0.0
    """Finished beams are compared by log-probability / tokens ^ penalty."""
    no_repeat_ngram: int = bounded(0, at_least=0, default=0)
    """No n-gram of so many tokens is written twice; 0: off."""
    min_tokens: int = bounded(0, at_least=0, default=0)
    """Fewest tokens of an answer."""


@dataclass
class TaskConfig(Section):
    """A task to finetune on (conf/task)."""

    key: ClassVar[str] = "task"

    name: str = ""
    """Name in results; unset: that of the option or file."""
    kind: TaskKind = TaskKind.none
    """none: pretraining. cloze: choose the answer of a blank; classify: a new head on the hidden
    state; seq2seq: write the answer; infill: write what random blanks hide."""
    data: TaskDataConfig = field(default_factory=TaskDataConfig)
    pattern: str = ""
    """Prompt with fields of the examples in braces, such as '{text} It was [MASK].'"""
    patterns: list[str] = field(default_factory=list)
    """Prompts to choose from by pattern_id, where pattern is empty."""
    pattern_id: int = bounded(0, at_least=0, default=0)
    """Index in patterns."""
    classifier_pattern: str = ""
    """classify: prompt, such as '{premise}[SEP]{hypothesis}'; empty: as for cloze."""
    shorten: list[str] = field(default_factory=list)
    """Fields that give way where a prompt is too long; empty: all."""
    answers: dict[str, str] = field(default_factory=dict)
    """Text that stands for each label, such as {positive: good}; {from: choices} takes the answers
    from that field of each example."""
    pattern_answers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Answers that replace those above for single patterns, by pattern_id."""
    single_token: bool | None = None
    """cloze: answers are compared by one token alone, without the end of the blank; unset: where
    each of them is one token."""
    target: str = ""
    """seq2seq: the answer, such as '{summary}'; a list counts as several references."""
    pad_prompt: bool = False
    """seq2seq: prompts are filled up to source_length with tokens that the model sees, as the
    official code does; false: nothing is filled up."""
    blank_share: float = bounded(0.3, above=0, below=1, default=0.3)
    """infill: share of the words that is hidden."""
    loss: ChoiceLoss = ChoiceLoss.cross_entropy
    """cloze: see ChoiceLoss."""
    length_penalty: float = bounded(0.0, at_least=0, default=0.0)
    """cloze: scores are log-probability / tokens ^ penalty."""
    pool: Pool = Pool.cls
    """classify: hidden state of the head; cls: of [CLS]; start: of the start of the answer; pad: of
    the prompt's last token."""
    label_smoothing: float = bounded(0.0, at_least=0, below=1, default=0.0)
    """seq2seq, infill: share of the loss that all tokens have alike. Official: 0.1."""
    max_length: int = bounded(256, at_least=16, default=256)
    """cloze, classify: tokens of prompt and answer."""
    source_length: int = bounded(512, at_least=8, default=512)
    """seq2seq, infill: tokens of the prompt."""
    target_length: int = bounded(128, at_least=1, default=128)
    """seq2seq: tokens of the answer."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    metrics: list[str] = field(default_factory=list)
    """Measured at each validation; empty: those that are usual for the kind."""
    select: str | None = None
    """Metric that chooses the best checkpoint, also loss; unset: the first of metrics."""
    patience: int = bounded(0, at_least=0, default=0)
    """Validations in a row without a better value of select after which the run is finished; 0:
    off."""
    epochs: float = bounded(5.0, at_least=0, default=5.0)
    """Passes over the training examples, where run.steps is not set."""
    steps: int = bounded(1, at_least=1, default=1)
    """Steps of all epochs. Counted from the examples at the start, never set: see run.steps."""
    epoch_steps: int = bounded(1, at_least=1, default=1)
    """Steps of an epoch, after which the run validates and saves. Counted from the examples at the
    start, never set: see evaluation.interval and checkpoint.interval."""
    row_tokens: int = bounded(16, at_least=16, default=16)
    """Tokens of the longest prompt with its answer. Counted from the examples at the start, never
    set: see batch.row_length."""
    limit: int | None = None
    """Training examples that are used, drawn with a fixed seed; unset: all."""

    @property
    def prompt_pattern(self) -> str:
        """The pattern in use."""
        if self.kind is TaskKind.classify and self.classifier_pattern:
            return self.classifier_pattern
        if not self.pattern and self.pattern_id < len(self.patterns):
            return self.patterns[self.pattern_id]
        return self.pattern

    @property
    def pattern_key(self) -> str:
        """Key of the pattern in use, for messages."""
        if self.kind is TaskKind.classify and self.classifier_pattern:
            return "task.classifier_pattern"
        if self.pattern or not self.patterns:
            return "task.pattern"
        return f"task.patterns[{self.pattern_id}]"

    @property
    def prompt_answers(self) -> dict[str, str]:
        """Text of each label with the pattern in use; empty where examples have their own."""
        if self.choices_field:
            return {}
        chosen = self.pattern_answers.get(str(self.pattern_id), self.answers)
        return self.answers if self.pattern else chosen

    @property
    def choices_field(self) -> str:
        """Field with the answers of each example, with its filters; empty: they are fixed."""
        return self.answers.get(CHOICES_OF, "") if set(self.answers) == {CHOICES_OF} else ""

    @property
    def used_metrics(self) -> list[str]:
        """Metrics to measure, each named once; at least one."""
        named = self.metrics or [USUAL_METRIC[self.kind]]
        every = [each for name in named for each in (ROUGE if name == "rouge" else (name,))]
        return list(dict.fromkeys(every))

    @property
    def selecting_metric(self) -> str:
        """Metric that chooses the best checkpoint."""
        return self.select or self.used_metrics[0]

    @property
    def row_length(self) -> int:
        """Tokens of a row: prompt and answer."""
        if self.kind is TaskKind.seq2seq:
            return self.source_length + self.target_length
        if self.kind is TaskKind.infill:
            return self.source_length + max(1, int(self.source_length * self.blank_share))
        return self.max_length


def head_outputs(task: TaskConfig) -> int:
    """Return the outputs of the classification head: 0 for tasks without one.

    Args:
        task: The section, checked or not.
    """
    if task.kind is not TaskKind.classify:
        return 0
    return 1 if list(task.answers) == [CHOICES_OF] else max(len(task.answers), 2)
