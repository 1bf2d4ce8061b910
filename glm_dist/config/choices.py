"""The named alternatives a configuration value may take.

A member's name equals its value, because overrides are matched against the name.
"""

from enum import Enum


class TokenizerKind(Enum):
    """Families of tokenizers; each fixes the official ids of GLM's special tokens."""

    sentencepiece = "sentencepiece"
    chinese_sentencepiece = "chinese_sentencepiece"
    bert = "bert"
    gpt2 = "gpt2"
    roberta = "roberta"
    huggingface = "huggingface"


class PretrainingTask(Enum):
    """What a row trains: GLM's blank infilling, or one of the baselines the paper compares with."""

    blank_infilling = "blank_infilling"
    masked_lm = "masked_lm"
    causal_lm = "causal_lm"
    span_corruption = "span_corruption"
    unilm = "unilm"


class Activation(Enum):
    """What the MLP does between its projections."""

    gelu = "gelu"
    geglu = "geglu"


class Dtype(Enum):
    """Number format of weights and activations during a step."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Offload(Enum):
    """Where ZeRO keeps this process's share of the optimizer."""

    none = "none"
    cpu = "cpu"


class RecomputeMode(Enum):
    """Which activations are computed again in backward instead of being kept."""

    none = "none"
    selective = "selective"
    full = "full"


class PositionEncoding(Enum):
    """How attention learns of the two positions of a token."""

    learned = "learned"
    rotary_2d = "rotary_2d"


class Residual(Enum):
    """Where a layer's norms stand, and what its outputs are added to."""

    pre_norm = "pre_norm"
    deep_norm = "deep_norm"


class LRScheduleKind(Enum):
    """Shape of the learning rate after warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class LossNormalization(Enum):
    """What a step's summed loss is divided by."""

    global_tokens = "global_tokens"
    micro_batch = "micro_batch"


class Resume(Enum):
    """What to do about checkpoints already in the run folder."""

    auto = "auto"
    must = "must"
    never = "never"


class InitWith(Enum):
    """What a run takes over from the one that run.init_from names."""

    weights = "weights"
    weights_and_optimizer = "weights_and_optimizer"


class WandbMode(Enum):
    """Where Weights & Biases records go."""

    off = "off"
    online = "online"
    offline = "offline"
