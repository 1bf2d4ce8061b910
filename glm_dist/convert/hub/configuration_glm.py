"""Sizes of a GLM, under the names of the models on the Hugging Face Hub.

Part of an exported model folder: transformers loads it there with trust_remote_code=True.
"""

from typing import Any

from transformers import PretrainedConfig


class GLMConfig(PretrainedConfig):
    """Architecture of the first GLMs (arXiv 2103.10360): learned positions, pre-norm, tanh GELU.

    Keys that only the original code reads are kept as they are.
    """

    model_type = "glm"
    attribute_map = {"num_hidden_layers": "num_layers"}  # noqa: RUF012
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    def __init__(
        self,
        num_layers: int = 24,
        hidden_size: int = 1024,
        num_attention_heads: int = 16,
        vocab_size: int = 30592,
        max_sequence_length: int = 512,
        hidden_act: str = "gelu_pytorch_tanh",
        layernorm_epsilon: float = 1e-5,
        embedding_dropout_prob: float = 0.1,
        attention_dropout_prob: float = 0.1,
        output_dropout_prob: float = 0.1,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        """Keep the sizes.

        Args:
            num_layers: Transformer layers.
            hidden_size: Width h of the residual stream; the MLP has 4 h.
            num_attention_heads: Heads.
            vocab_size: Rows of the word table, a multiple of 128.
            max_sequence_length: Largest position P; both tables have P + 1 rows.
            hidden_act: Activation of the MLP; official GLMs are trained with the tanh GELU.
            layernorm_epsilon: Of every norm.
            embedding_dropout_prob: Dropout of the embedding.
            attention_dropout_prob: Dropout of attention probabilities.
            output_dropout_prob: Dropout of the outputs of attention and MLP.
            initializer_range: Standard deviation of new weights.
            use_cache: Whether to return keys and values for the next step.
            **kwargs: Everything else.
        """
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.vocab_size = vocab_size
        self.max_sequence_length = max_sequence_length
        self.hidden_act = hidden_act
        self.layernorm_epsilon = layernorm_epsilon
        self.embedding_dropout_prob = embedding_dropout_prob
        self.attention_dropout_prob = attention_dropout_prob
        self.output_dropout_prob = output_dropout_prob
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(**kwargs)
