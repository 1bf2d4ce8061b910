"""The section about finetuning: examples of a task, and how a prompt and a loss come of them.

Part of the schema; see ``schema.py`` for its rules. ``kind: none`` is pretraining.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from glm_dist.config.rules import Section, bounded


class TaskKind(Enum):
    """What is learned from examples."""

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
    """Field with the right answer."""


@dataclass
class DecodeConfig:
    """Writing of answers in validations of seq2seq and infill."""

    beams: int = 1
    """Beams; 1: greedy."""
    length_penalty: float = 0.0
    """Finished beams are compared by log-probability / tokens ^ penalty."""
    no_repeat_ngram: int = 0
    """No run of so many tokens is written twice; 0: off."""
    min_tokens: int = 0
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
    shorten: list[str] = field(default_factory=list)
    """Fields that give way where a prompt is too long; empty: all."""
    answers: dict[str, str] = field(default_factory=dict)
    """Text that stands for each label, such as {positive: good}; {from: choices} takes the answers
    from that field of each example."""
    target: str = ""
    """seq2seq: the answer, such as '{summary}'; a list counts as several references."""
    loss: ChoiceLoss = ChoiceLoss.cross_entropy
    """cloze: see ChoiceLoss."""
    length_penalty: float = bounded(0.0, at_least=0, default=0.0)
    """cloze: scores are log-probability / tokens ^ penalty."""
    label_smoothing: float = bounded(0.0, at_least=0, below=1, default=0.0)
    """seq2seq, infill: share of the loss that all tokens have alike. Official: 0.1."""
    max_length: int = bounded(256, at_least=16, default=256)
    """cloze, classify: tokens of prompt and answer."""
    source_length: int = bounded(512, at_least=1, default=512)
    """seq2seq: tokens of the prompt."""
    target_length: int = bounded(128, at_least=1, default=128)
    """seq2seq: tokens of the answer."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    metrics: list[str] = field(default_factory=list)
    """Measured at each validation; empty: those that are usual for the kind."""
    select: str | None = None
    """Metric that chooses the best checkpoint; unset: the first of metrics."""
    epochs: float = bounded(5.0, at_least=0, default=0.0)
    """Passes over the training examples, where run.steps is not set."""
    steps: int = bounded(1, at_least=1, default=1)
    """Steps of all epochs; counted from the examples at the start."""
    epoch_steps: int = bounded(1, at_least=1, default=1)
    """Steps of an epoch; counted as well. Validations and checkpoints follow it."""
    row_tokens: int = bounded(16, at_least=16, default=16)
    """Tokens of the longest prompt with its answer; measured as well."""
    limit: int | None = None
    """Training examples that are used, drawn with a fixed seed; unset: all."""
