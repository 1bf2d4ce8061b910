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
    """Training task of a row: GLM's blank infilling, or one of the paper's baselines."""

    blank_infilling = "blank_infilling"
    masked_lm = "masked_lm"
    causal_lm = "causal_lm"
    span_corruption = "span_corruption"
    unilm = "unilm"


class Activation(Enum):
    """Activation of the MLP, between its projections."""

    gelu = "gelu"
    geglu = "geglu"


class Dtype(Enum):
    """Number format of weights and activations during a step."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Offload(Enum):
    """Memory that holds this process's share of the optimizer."""

    none = "none"
    cpu = "cpu"


class RecomputeMode(Enum):
    """Activations that are computed again in backward instead of being kept."""

    none = "none"
    selective = "selective"
    full = "full"


class PositionEncoding(Enum):
    """Encoding of a token's two positions."""

    learned = "learned"
    rotary_2d = "rotary_2d"


class Residual(Enum):
    """Position of a layer's norms, and what its outputs are added to."""

    pre_norm = "pre_norm"
    deep_norm = "deep_norm"


class PromptEncoder(Enum):
    """Network between the table of prompt tokens and the rows that the model reads."""

    none = "none"
    mlp = "mlp"
    lstm = "lstm"


class LRScheduleKind(Enum):
    """Shape of the learning rate after warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class LossNormalization(Enum):
    """Divisor of a step's summed loss."""

    global_tokens = "global_tokens"
    micro_batch = "micro_batch"


class Resume(Enum):
    """Treatment of checkpoints that are already in the run folder."""

    auto = "auto"
    must = "must"
    never = "never"


class Fusing(Enum):
    """Use of fused kernels between matrix products."""

    auto = "auto"
    on = "on"
    off = "off"


class InitWith(Enum):
    """State that a run takes over from run.init_from."""

    weights = "weights"
    weights_and_optimizer = "weights_and_optimizer"
    architecture = "architecture"


class WandbMode(Enum):
    """Destination of Weights & Biases records."""

    off = "off"
    online = "online"
    offline = "offline"
