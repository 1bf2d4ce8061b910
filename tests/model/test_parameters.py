"""Initialisation and shards do not depend on how the model is cut."""

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch

from glm_dist.config.parameter_specs import Constant, ParameterSpec, parameter_specs
from glm_dist.config.schema import Dtype, ModelConfig, Residual
from glm_dist.model.parameters import initialize, local_slice, match_shards
from glm_dist.model.stage import GLMStage
from glm_dist.optim.param_groups import param_groups
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from tests.ranks import run_ranks
from tests.train.grid import ARCHITECTURE

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    max_position_embeddings=16,
    hidden_dropout=0.1,
    attention_dropout=0.1,
    layernorm_epsilon=1e-5,
    init_std=0.02,
    num_classes=3,
)


def initial_pieces(
    layouts: list[Layout], seed: int, model: ModelConfig = MODEL
) -> list[list[tuple[str, tuple, np.ndarray]]]:
    """Name, offset and value of every parameter this rank holds, for each layout."""
    enable_cpu()
    found = []
    for layout in layouts:
        stage = GLMStage(
            model,
            vocab_size=251,
            padded_vocab_size=256,
            dtype=Dtype.fp32,
            groups=build_groups(layout, timedelta(seconds=60)),
            device=torch.device("cpu"),
        )
        shards = stage.shards()
        initialize(shards, seed=seed)
        found.append([(p.name, p.offset, p.parameter.detach().numpy().copy()) for p in shards])
    return found


def whole(seed: int) -> dict[str, np.ndarray]:
    """The model of one process."""
    return {
        name: value
        for name, _, value in run_ranks(initial_pieces, [Layout()], seed, world_size=1)[0][0]
    }


@pytest.fixture(scope="module")
def model() -> dict[str, np.ndarray]:
    """Initial weights of one process under seed 1."""
    return whole(1)


def test_every_layout_starts_from_the_same_weights(model: dict[str, np.ndarray]) -> None:
    layouts = [Layout(4, 1, 1), Layout(1, 4, 1), Layout(2, 2, 1), Layout(1, 1, 4)]
    seen: set[str] = set()
    for rank in run_ranks(initial_pieces, layouts, 1, world_size=4):
        for pieces in rank:
            for name, offset, value in pieces:
                cut = tuple(slice(o, o + n) for o, n in zip(offset, value.shape, strict=True))
                assert np.array_equal(model[name][cut], value), name
                seen.add(name)
    assert seen == set(model)


def test_weights_have_the_official_spread(model: dict[str, np.ndarray]) -> None:
    residual = 0.02 / math.sqrt(2 * MODEL.num_layers)
    assert model["embedding.word_embeddings.weight"].std() == pytest.approx(0.02, rel=0.03)
    assert model["decoder.layers.3.mlp.linear_fc1.weight"].std() == pytest.approx(0.02, rel=0.03)
    assert model["decoder.layers.3.mlp.linear_fc2.weight"].std() == pytest.approx(
        residual, rel=0.03
    )
    assert model["decoder.layers.0.self_attention.linear_proj.weight"].std() == pytest.approx(
        residual, rel=0.06
    )
    assert not model["decoder.layers.2.self_attention.linear_qkv.bias"].any()
    assert (model["decoder.final_layernorm.weight"] == 1.0).all()
    for name in ("pool.weight", "pool.bias", "output.weight", "output.bias"):
        assert 0.5 / math.sqrt(32) < np.abs(model[f"classifier.{name}"]).max() < 1 / math.sqrt(32)
    assert model["classifier.pool.weight"].std() == pytest.approx(1 / math.sqrt(3 * 32), rel=0.05)


def test_deep_norm_makes_the_path_of_values_start_smaller() -> None:
    model = replace(MODEL, residual=Residual.deep_norm)
    pieces = run_ranks(initial_pieces, [Layout()], 1, model, world_size=1)[0][0]
    weights = {name: value for name, _, value in pieces}
    smaller = 0.02 / math.sqrt(2 * 4)
    query, key, value = (
        np.stack(
            [  # 4 heads of 8: rows 24 i + 8 n are head i's
                weights[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"][
                    24 * head + 8 * n : 24 * head + 8 * (n + 1)
                ]
                for layer in range(4)
                for head in range(4)
            ]
        )
        for n in range(3)
    )

    assert query.std() == pytest.approx(0.02, rel=0.05)
    assert key.std() == pytest.approx(0.02, rel=0.05)
    assert value.std() == pytest.approx(smaller, rel=0.05)
    for name in ("self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"):
        found = weights[f"decoder.layers.1.{name}.weight"].std()
        assert found == pytest.approx(smaller, rel=0.06), name
    assert weights["embedding.word_embeddings.weight"].std() == pytest.approx(0.02, rel=0.03)


def test_parameters_are_as_many_as_the_formula_says(model: dict[str, np.ndarray]) -> None:
    h, layers, positions, vocab = 32, 4, 16, 256
    # V·h + 2(P+1)·h + L(12h² + 13h) + 2h, and a head of 3 classes
    expected = vocab * h + 2 * (positions + 1) * h + layers * (12 * h * h + 13 * h) + 2 * h
    expected += h * h + h + 3 * h + 3
    assert sum(value.size for value in model.values()) == expected


def test_parameters_and_seeds_draw_differently(model: dict[str, np.ndarray]) -> None:
    first = model["decoder.layers.0.mlp.linear_fc1.weight"]
    assert not np.array_equal(first, model["decoder.layers.1.mlp.linear_fc1.weight"])
    assert not np.array_equal(first, whole(2)["decoder.layers.0.mlp.linear_fc1.weight"])


def elements_held(layouts: list[Layout], models: list[ModelConfig]) -> list[dict[str, np.ndarray]]:
    """Flat indices of the whole model's elements that this rank's shards hold, by name."""
    enable_cpu()
    found = []
    for layout in layouts:
        groups = build_groups(layout, timedelta(seconds=60))
        for model in models:
            stage = GLMStage(
                model,
                vocab_size=251,
                padded_vocab_size=256,
                dtype=Dtype.fp32,
                groups=groups,
                device=torch.device("cpu"),
            )
            held = {}
            for shard in stage.shards():
                whole = torch.arange(shard.spec.size).view(shard.global_shape)
                assert local_slice(shard, whole).shape == shard.parameter.shape
                held[shard.name] = local_slice(shard, whole).flatten().numpy()
            found.append(held)
    return found


def test_the_stages_of_a_layout_hold_the_table_of_the_model() -> None:
    options = [{}, {"num_classes": 0}, *ARCHITECTURE.values()]
    options.append({key: value for each in options for key, value in each.items()})
    models = [replace(MODEL, **each) for each in options]
    layouts = [Layout(2, 1, 1), Layout(1, 2, 1)]
    ranks = run_ranks(elements_held, layouts, models, world_size=2)

    cases = [(layout, model) for layout in layouts for model in models]
    for (layout, model), first, second in zip(cases, *ranks, strict=True):
        is_split = layout.tensor_parallel_size == 2
        specs = {spec.name: spec for spec in parameter_specs(model, 256)}
        assert first.keys() | second.keys() == specs.keys()
        on_both = set(specs) if is_split else {"embedding.word_embeddings.weight"}
        assert first.keys() & second.keys() == on_both
        for name, spec in specs.items():
            parts = [held[name] for held in (first, second) if name in held]
            if is_split and spec.tensor_dim is not None:
                parts = [np.sort(np.concatenate(parts))]
            for part in parts:
                assert np.array_equal(part, np.arange(spec.size)), name


def test_modules_that_differ_from_the_table_are_a_bug_that_names_the_parameter() -> None:
    spec = ParameterSpec("decoder.layers.3.a.weight", (4, 2), Constant(0.0), decays=True)
    right, wrong = (torch.nn.Parameter(torch.zeros(rows, 2)) for rows in (4, 5))

    def match(**named: torch.nn.Parameter) -> None:
        given = {f"decoder.layers.3.{name}.weight": each for name, each in named.items()}
        match_shards(given.items(), [spec], tensor_rank=0, tensor_size=1)

    match(a=right)
    with pytest.raises(RuntimeError, match=r"modules lack \['decoder.layers.3.a.weight'\]"):
        match()
    with pytest.raises(RuntimeError, match=r"table of parameters lacks \['decoder.*b.weight'\]"):
        match(a=right, b=right)
    with pytest.raises(RuntimeError, match=r"decoder.layers.3.a.weight has shape \(5, 2\)"):
        match(a=wrong)


def decayed_names(model: ModelConfig) -> set[str]:
    """Names of the parameters that decay."""
    enable_cpu()
    stage = GLMStage(
        model,
        vocab_size=251,
        padded_vocab_size=256,
        dtype=Dtype.fp32,
        groups=build_groups(Layout(), timedelta(seconds=60)),
        device=torch.device("cpu"),
    )
    decayed = {id(p) for p in param_groups(stage.shards(), weight_decay=0.1)[0]["params"]}
    return {shard.name for shard in stage.shards() if id(shard.parameter) in decayed}


def test_matrices_of_the_options_decay_and_nothing_else() -> None:
    options = {key: value for each in ARCHITECTURE.values() for key, value in each.items()}
    (found,) = run_ranks(decayed_names, replace(MODEL, **options), world_size=1)

    matrices = {
        f"decoder.layers.{layer}.{name}.weight"
        for layer in range(4)
        for name in (
            "self_attention.linear_qkv",
            "self_attention.linear_proj",
            "mlp.linear_fc1",
            "mlp.linear_fc2",
        )
    }
    head = {"classifier.pool.weight", "classifier.output.weight"}
    assert found == matrices | head | {"embedding.word_embeddings.weight"}
