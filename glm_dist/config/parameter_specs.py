"""Every parameter of the model by name: shape, sharding, first values and weight decay.

This is the only table of parameters. Modules are checked against it, shards are cut by it, and
sizes and operation counts are sums over it. It is arithmetic on the configuration: no model is
built and torch is not loaded.

Letters: h hidden size, f MLP size, a heads, d head size, L layers, P positions, V padded
vocabulary, t tensor ranks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, TypeAlias

from glm_dist.config.architecture import ModelConfig
from glm_dist.config.choices import Activation, PositionEncoding, PromptEncoder, Residual

WORD_EMBEDDINGS = "embedding.word_embeddings.weight"
"""Table [V, h] of the tied input and output embedding; a last stage has a copy under this name."""

CLASSIFIER = "classifier."
"""Prefix of the classification head, which belongs to one task."""

PROMPT = "embedding.prompt."
"""Beginning of the names of a prompt's parameters."""


class RowPiece(NamedTuple):
    """Consecutive local rows (dim 0) and their position in the whole parameter."""

    local_start: int
    global_start: int
    num_rows: int


@dataclass(frozen=True)
class ParameterSlice:
    """The box of a whole parameter that one tensor rank holds."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    """First element of the slice in the whole, along each dim."""
    rows: tuple[RowPiece, ...] = ()
    """Rows of a slice that is not one box; then ``offset`` is not used. Empty: one box."""


@dataclass(frozen=True)
class Constant:
    """Initialisation with one value everywhere."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Initialisation with a normal distribution around zero."""

    std: float
    row_factors: tuple[float, ...] = (1.0,)
    """Factors of the rows seen as [row_groups, factors, n]: drawn with ``std``, then scaled."""
    row_groups: int = 1


@dataclass(frozen=True)
class Uniform:
    """Initialisation with a uniform distribution from -bound to bound."""

    bound: float


Initial: TypeAlias = Constant | Normal | Uniform


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of the whole model, independent of the layout."""

    name: str
    """Name in the whole model; layers are numbered globally."""
    shape: tuple[int, ...]
    initial: Initial
    decays: bool
    """Matrices and tables decay; biases and parameters of norms do not (GLM 4f61ed7)."""
    tensor_dim: int | None = None
    """Dim that is split over tensor ranks; None: every rank holds the whole parameter."""
    row_blocks: int = 1
    """Blocks of rows that are split over tensor ranks one by one; a GeGLU has a gate and a value
    block, and each rank needs rows of both."""
    layer: int | None = None
    """Layer it belongs to; None: the ends of the model."""
    on_first_stage: bool = False
    on_last_stage: bool = False
    is_added: bool = False
    """True for parameters that finetuning adds to a pretrained model, whose checkpoints lack them;
    they learn even where the rest of the model is frozen by default."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def is_held_by(self, layers: range, *, is_first: bool, is_last: bool) -> bool:
        """Return True if a pipeline stage, or a chunk of it, has this parameter.

        Args:
            layers: Global indices of its layers.
            is_first: The embedding lies there.
            is_last: The final norm and the head lie there.
        """
        if self.layer is not None:
            return self.layer in layers
        return (self.on_first_stage and is_first) or (self.on_last_stage and is_last)

    def slice_of(self, tensor_rank: int, *, tensor_size: int) -> ParameterSlice:
        """Compute the part that one tensor rank holds.

        Args:
            tensor_rank: Index in the tensor-parallel group.
            tensor_size: Size of that group.

        Raises:
            ValueError: The parameter does not divide into that many slices.
        """
        shape, offset = list(self.shape), [0] * len(self.shape)
        if self.tensor_dim is None:
            return ParameterSlice(tuple(shape), tuple(offset))
        if shape[self.tensor_dim] % (tensor_size * self.row_blocks):
            raise ValueError(
                f"{self.name}: dim {self.tensor_dim} of {self.shape} does not divide into "
                f"{self.row_blocks} x {tensor_size} equal parts"
            )
        shape[self.tensor_dim] //= tensor_size
        if self.row_blocks == 1 or tensor_size == 1:
            offset[self.tensor_dim] = tensor_rank * shape[self.tensor_dim]
            return ParameterSlice(tuple(shape), tuple(offset))
        rows = shape[0] // self.row_blocks
        pieces = tuple(
            RowPiece(block * rows, (block * tensor_size + tensor_rank) * rows, rows)
            for block in range(self.row_blocks)
        )
        return ParameterSlice(tuple(shape), tuple(offset), pieces)


def parameter_specs(model: ModelConfig, padded_vocab_size: int) -> tuple[ParameterSpec, ...]:
    """List every parameter of the whole model once.

    Args:
        model: Architecture.
        padded_vocab_size: Rows of the word table, V.
    """
    h = model.hidden_size
    table = Normal(model.init_std)
    words = ParameterSpec(WORD_EMBEDDINGS, (padded_vocab_size, h), table, True, tensor_dim=0)
    specs = [replace(words, on_first_stage=True, on_last_stage=True)]
    if model.position_encoding is PositionEncoding.learned:
        shape = (model.max_position_embeddings + 1, h)
        specs += [
            ParameterSpec(f"embedding.{name}.weight", shape, table, True, on_first_stage=True)
            for name in ("position_embeddings", "block_position_embeddings")
        ]
    specs += prompt_specs(model)
    for layer in range(model.num_layers):
        specs += layer_specs(model, layer)
    specs += [replace(spec, on_last_stage=True) for spec in _norm("decoder.final_layernorm", h)]
    if model.num_classes > 0:
        specs += _classifier(h, model.num_classes)
    return tuple(specs)


def layer_specs(model: ModelConfig, layer: int) -> tuple[ParameterSpec, ...]:
    """List the parameters of one layer.

    Weights that write to the residual stream start smaller by sqrt(2 L). Under DeepNorm the whole
    path of values does: also the MLP's input, and the values among query, key and value, whose
    rows are [a, 3, d] (arXiv 2203.00555, figure 2).

    Args:
        model: Architecture.
        layer: Global index.
    """
    h, f = model.hidden_size, model.mlp_size
    blocks = 2 if model.activation is Activation.geglu else 1
    smaller = 1 / math.sqrt(2 * model.num_layers)
    plain, reduced = Normal(model.init_std), Normal(model.init_std * smaller)
    qkv, fc1 = plain, plain
    if model.residual is Residual.deep_norm:
        qkv = replace(plain, row_factors=(1.0, 1.0, smaller), row_groups=model.num_attention_heads)
        fc1 = reduced
    specs = (
        *_norm("input_layernorm", h),
        *_column_parallel("self_attention.linear_qkv", (3 * h, h), qkv),
        *_row_parallel("self_attention.linear_proj", (h, h), reduced),
        *_norm("pre_mlp_layernorm", h),
        *_column_parallel("mlp.linear_fc1", (blocks * f, h), fc1, row_blocks=blocks),
        *_row_parallel("mlp.linear_fc2", (h, f), reduced),
    )
    if model.lora_rank > 0:
        specs += tuple(spec for weight in specs for spec in _lora(model, weight))
    prefix = f"decoder.layers.{layer}."
    return tuple(replace(spec, name=prefix + spec.name, layer=layer) for spec in specs)


def prompt_specs(model: ModelConfig) -> tuple[ParameterSpec, ...]:
    """List the parameters of the prompt's vectors and of their encoder.

    The official code leaves torch's default values in MLP and LSTM.

    Args:
        model: Architecture.
    """
    if model.prompt_tokens == 0:
        return ()
    h = model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"table.weight": (model.prompt_tokens, h)}
    width = h
    if model.prompt_encoder is PromptEncoder.lstm:
        width = 2 * h  # of both directions
        for layer, direction in product(range(2), ("", "_reverse")):
            end = f"l{layer}{direction}"
            shapes[f"lstm.weight_ih_{end}"] = (4 * h, h if layer == 0 else width)
            shapes[f"lstm.weight_hh_{end}"] = (4 * h, h)
            shapes |= {f"lstm.bias_{kind}_{end}": (4 * h,) for kind in ("ih", "hh")}
    if model.prompt_encoder is not PromptEncoder.none:
        shapes |= {"mlp.0.weight": (h, width), "mlp.0.bias": (h,)}
        shapes |= {"mlp.2.weight": (h, h), "mlp.2.bias": (h,)}
    return tuple(
        ParameterSpec(
            PROMPT + name,
            shape,
            _prompt_initial(name, model),
            decays=len(shape) == 2,
            on_first_stage=True,
            is_added=True,
        )
        for name, shape in shapes.items()
    )


def _prompt_initial(name: str, model: ModelConfig) -> Initial:
    if name.startswith("table"):
        return Normal(model.init_std)
    is_first_of_two = name.startswith("mlp.0") and model.prompt_encoder is PromptEncoder.lstm
    inputs = model.hidden_size * (2 if is_first_of_two else 1)
    return Uniform(1 / math.sqrt(inputs))


def _lora(model: ModelConfig, weight: ParameterSpec) -> tuple[ParameterSpec, ...]:
    """Describe the factors of a weight's update, split over tensor ranks as the weight is.

    The update begins as zero: B is zero, and A is drawn (arXiv 2106.09685, section 4.1), from the
    distribution of the authors' code.

    Args:
        model: Architecture.
        weight: Any parameter of a layer.
    """
    module, _, kind = weight.name.rpartition(".")
    if kind != "weight" or module.rpartition(".")[2] not in model.lora_targets:
        return ()
    outputs, inputs = weight.shape
    a = ParameterSpec(
        f"{module}.lora_a",
        (model.lora_rank, inputs),
        Uniform(1 / math.sqrt(inputs)),
        decays=True,
        tensor_dim=1 if weight.tensor_dim == 1 else None,
        is_added=True,
    )
    b = replace(
        a,
        name=f"{module}.lora_b",
        shape=(outputs, model.lora_rank),
        initial=Constant(0.0),
        tensor_dim=0 if weight.tensor_dim == 0 else None,
        row_blocks=weight.row_blocks,
    )
    return a, b


def count_parameters(model: ModelConfig, padded_vocab_size: int) -> int:
    """Count the parameters of the whole model; the tied table counts once.

    Args:
        model: Architecture.
        padded_vocab_size: Rows of the word table, V.
    """
    return sum(spec.size for spec in parameter_specs(model, padded_vocab_size))


def _norm(name: str, size: int) -> tuple[ParameterSpec, ...]:
    return (
        ParameterSpec(f"{name}.weight", (size,), Constant(1.0), decays=False),
        ParameterSpec(f"{name}.bias", (size,), Constant(0.0), decays=False),
    )


def _classifier(hidden_size: int, num_classes: int) -> Iterator[ParameterSpec]:
    """Describe the classification head; the official code leaves torch's default values in it."""
    first = Uniform(1 / math.sqrt(hidden_size))
    for name, rows in (("pool", hidden_size), ("output", num_classes)):
        for kind, shape in (("weight", (rows, hidden_size)), ("bias", (rows,))):
            yield ParameterSpec(
                f"{CLASSIFIER}{name}.{kind}",
                shape,
                first,
                decays=kind == "weight",
                on_last_stage=True,
                is_added=True,
            )


def _column_parallel(
    name: str, shape: tuple[int, int], initial: Initial, *, row_blocks: int = 1
) -> tuple[ParameterSpec, ...]:
    """Describe a linear layer whose outputs are split over tensor ranks."""
    weight = ParameterSpec(
        f"{name}.weight", shape, initial, decays=True, tensor_dim=0, row_blocks=row_blocks
    )
    bias = replace(
        weight, name=f"{name}.bias", shape=shape[:1], initial=Constant(0.0), decays=False
    )
    return weight, bias


def _row_parallel(name: str, shape: tuple[int, int], initial: Initial) -> tuple[ParameterSpec, ...]:
    """Describe a linear layer whose inputs are split over tensor ranks; each holds the bias."""
    return (
        ParameterSpec(f"{name}.weight", shape, initial, decays=True, tensor_dim=1),
        ParameterSpec(f"{name}.bias", shape[:1], Constant(0.0), decays=False),
    )
