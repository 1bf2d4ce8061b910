"""The Transformer: its sizes, and the options beyond the first GLMs.

An option without a value in ``conf/model`` is off; what may not be combined is in ``checks.py``.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from glm_dist.config.choices import Activation, PositionEncoding, PromptEncoder, Residual
from glm_dist.config.rules import Section, bounded
from glm_dist.errors import ConfigError

LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""Linear layers of a Transformer layer: query, key and value; attention output; MLP in; MLP out."""


@dataclass
class ModelConfig(Section):
    """Architecture of the Transformer (conf/model)."""

    key: ClassVar[str] = "model"

    num_layers: int = bounded(24, at_least=1)
    """L: Transformer layers of the whole model."""
    hidden_size: int = bounded(1024, at_least=1)
    """h: width of the residual stream."""
    num_attention_heads: int = bounded(16, at_least=1)
    """a: heads of h / a each. Published GLMs have heads of 64, GLM-130B of 128."""
    max_position_embeddings: int = bounded(512, at_least=1)
    """P: largest position; learned tables have P + 1 rows, as the official model's."""
    hidden_dropout: float = bounded(0.1, at_least=0, below=1)
    """After embedding, attention output and MLP output. GLM pretrains with 0.1."""
    attention_dropout: float = bounded(0.1, at_least=0, below=1)
    """On attention probabilities. GLM pretrains with 0.1."""
    layernorm_epsilon: float = bounded(1e-5, above=0)
    """GLM uses 1e-5 everywhere."""
    init_std: float = bounded(0.02, above=0)
    """Normal initialisation; output projections (with deep_norm also the MLP's input and the
    values) are divided by sqrt(2 * num_layers). GLM: 0.02."""
    embedding_gradient_share: float = bounded(0.1, above=0, at_most=1, default=1.0)
    """Share of the gradient that word embeddings let through to their table; the head's use of the
    table is not touched. 1: all of it; GLM-130B: 0.1, against spikes of the loss."""
    ffn_hidden_size: int | None = None
    """f: width of the MLP; unset: 4 h, as in every GLM but GLM-130B, which has 8/3 h."""
    activation: Activation = Activation.gelu
    """gelu: tanh approximation, as official; geglu: GELU(gate) x value, two input projections, with
    the exact GELU of GLM-130B."""
    position_encoding: PositionEncoding = PositionEncoding.learned
    """learned: a table for each of the two positions, as official; rotary_2d: no tables, half of
    each head is turned by the position, half by the block position, as in ChatGLM-6B."""
    residual: Residual = Residual.pre_norm
    """pre_norm: official; deep_norm: LN(sqrt(2 L) x + f(x)), as in GLM-130B."""
    lora_rank: int = bounded(8, at_least=0, default=0)
    """r: rank of a trained update W + lora_alpha / r x B A of the lora_targets, with the model
    itself frozen (LoRA, arXiv 2106.09685). 0: none."""
    lora_alpha: float = bounded(16.0, above=0, default=16.0)
    """Factor of the update, divided by the rank, so that another rank needs no other rate."""
    lora_dropout: float = bounded(0.0, at_least=0, below=1, default=0.0)
    """On the input of the update."""
    lora_targets: list[str] = field(default_factory=lambda: ["linear_qkv", "linear_proj"])
    """Linear layers with an update: linear_qkv, linear_proj, linear_fc1, linear_fc2."""
    prompt_tokens: int = bounded(3, at_least=0, default=0)
    """Trained vectors that take the places of {*} in a pattern, in order (P-tuning, arXiv
    2103.10385). 0: none."""
    prompt_encoder: PromptEncoder = PromptEncoder.lstm
    """Network that the vectors pass before the model reads them. lstm: two layers, bidirectional,
    then an MLP, as official; mlp: the MLP; none: the vectors themselves."""
    num_classes: int = bounded(2, at_least=0, default=0)
    """Outputs of the classification head: one for each class, or 1 for a score of each candidate;
    0: no head."""

    def __post_init__(self) -> None:
        """Check the names as well; see ``Section``.

        Raises:
            ConfigError: A layer of ``lora_targets`` does not exist, or there is none.
        """
        super().__post_init__()
        unknown = [name for name in self.lora_targets if name not in LORA_TARGETS]
        if unknown or (self.lora_rank > 0 and not self.lora_targets):
            found = ", ".join(unknown) or "nothing"
            raise ConfigError(
                f"model.lora_targets names {found}, but the linear layers are"
                f" {', '.join(LORA_TARGETS)}.\n  Set model.lora_targets=[linear_qkv,linear_proj].",
                key="model.lora_targets",
                value=found,
                fix="model.lora_targets=[linear_qkv,linear_proj]",
            )

    @property
    def mlp_size(self) -> int:
        """Width of the MLP, f."""
        return 4 * self.hidden_size if self.ffn_hidden_size is None else self.ffn_hidden_size

    @property
    def without_lora(self) -> "ModelConfig":
        """The same architecture once the updates are merged into the weights."""
        return replace(self, lora_rank=0)

    @property
    def lora_scale(self) -> float:
        """Factor of the product B A."""
        return self.lora_alpha / self.lora_rank

    @property
    def head_size(self) -> int:
        """Width of one attention head, d."""
        return self.hidden_size // self.num_attention_heads
