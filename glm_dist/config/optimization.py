"""The sections about the optimizer and its learning rate.

Part of the schema; see ``schema.py`` for its rules.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from glm_dist.config.choices import LRScheduleKind
from glm_dist.config.rules import MISSING, Section, bounded


@dataclass
class OptimizerConfig(Section):
    """AdamW with decoupled weight decay (conf/optimizer)."""

    key: ClassVar[str] = "optimizer"

    learning_rate: float = bounded(1e-4, above=0)
    """Peak learning rate."""
    beta1: float = bounded(0.9, at_least=0, below=1)
    """Decay of the first moment. GLM: 0.9."""
    beta2: float = bounded(0.98, at_least=0, below=1)
    """Decay of the second moment. GLM: 0.98, 10B 0.95."""
    epsilon: float = bounded(1e-6, above=0)
    """Added to the root of the second moment. GLM: 1e-6, 10B 1e-8."""
    weight_decay: float = bounded(0.1, at_least=0)
    """On every weight but LayerNorm parameters and biases."""
    gradient_clipping: float = bounded(1.0, at_least=0)
    """Largest global gradient norm; 0 turns clipping off. GLM: 1.0."""
    trainable: list[str] = field(default_factory=list)
    """Patterns of the parameters that learn, such as 'decoder.layers.23.*' or '*.bias'; the others
    are frozen and need no optimizer memory. Empty: all; with model.lora_rank, those that
    finetuning adds."""


@dataclass
class LRScheduleConfig(Section):
    """Learning rate over steps (conf/lr_schedule)."""

    key: ClassVar[str] = "lr_schedule"

    kind: LRScheduleKind = MISSING
    """Shape after warm-up: cosine, linear or constant."""
    warmup_share: float = bounded(0.05, at_least=0, below=1)
    """Share of decay_steps spent in linear warm-up, 0 to 1."""
    decay_steps: int = bounded(160_000, at_least=1)
    """Applied updates after which the rate stays at its floor; skipped ones do not count."""
    decay_to_ratio: float = bounded(0.05, at_least=0, at_most=1)
    """Floor as a share of the peak, 0 to 1."""
