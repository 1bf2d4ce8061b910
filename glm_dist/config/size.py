"""How many parameters a configuration has, by arithmetic; the model is not built.

L layers, h hidden size, f MLP size, P positions, V padded vocabulary.
"""

from glm_dist.config.schema import Activation, ModelConfig, PositionEncoding


def embedding_parameters(model: ModelConfig, padded_vocab_size: int) -> int:
    """Parameters of the word table (tied with the head) and of learned positions.

    Args:
        model: Architecture.
        padded_vocab_size: Rows of the word table, V.
    """
    rows = padded_vocab_size
    if model.position_encoding is PositionEncoding.learned:
        rows += 2 * (model.max_position_embeddings + 1)
    return rows * model.hidden_size


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of one layer; 12 h² of matrices and 13 h of vectors where the MLP is plain 4 h."""
    h, f = model.hidden_size, model.mlp_size
    inputs = 2 if model.activation is Activation.geglu else 1
    attention = 3 * h * h + 3 * h + h * h + h
    mlp = inputs * (h * f + f) + f * h + h
    layernorms = 4 * h
    return attention + mlp + layernorms


def count_parameters(model: ModelConfig, padded_vocab_size: int) -> int:
    """Parameters of the whole model; V h + 2 (P + 1) h + L (12 h² + 13 h) + 2 h without options.

    Args:
        model: Architecture.
        padded_vocab_size: Rows of the word table, V.
    """
    final_layernorm = 2 * model.hidden_size
    layers = model.num_layers * layer_parameters(model)
    return embedding_parameters(model, padded_vocab_size) + layers + final_layernorm
