import pytest

from glm_dist.config.load import load_config
from glm_dist.config.parameter_specs import (
    RowPiece,
    Uniform,
    count_parameters,
    parameter_specs,
)
from glm_dist.config.schema import Activation, ModelConfig, PositionEncoding

# Exact counts of the official models, in the order of glm.md 2.1.
PUBLISHED = {
    "glm_base": 109_338_624,
    "glm_large": 334_688_256,
    "glm_doc": 334_688_256,
    "glm_sent": 334_688_256,
    "glm_410m": 410_265_600,
    "glm_515m": 514_632_960,
    "glm_roberta": 354_873_344,
    "glm_large_chinese": 355_659_776,
    "glm_2b": 1_920_122_880,
    "glm_10b": 9_880_682_496,
    "glm_10b_chinese": 9_879_633_920,
}


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_experiment_has_the_published_number_of_parameters(experiment: str) -> None:
    config = load_config([f"experiment={experiment}"])
    assert count_parameters(config.model, config.padded_vocab_size) == PUBLISHED[experiment]


def test_internal_roberta_model_has_the_published_number_of_parameters() -> None:
    # Unpublished RoBERTa-1.25: 24 layers of 1152, 1024 positions, vocabulary 50304.
    model = ModelConfig(
        num_layers=24,
        hidden_size=1152,
        num_attention_heads=18,
        max_position_embeddings=1024,
        init_std=0.02,
    )
    assert count_parameters(model, 50304) == 442_879_488


def test_glm_130b_has_about_130_billion_parameters() -> None:
    config = load_config(["experiment=glm_130b"])
    found = count_parameters(config.model, config.padded_vocab_size)
    h, f, layers, vocab = 12_288, 32_768, 70, 150_528
    # query, key, value, output with biases; gate, value, output of the MLP; two norms
    layer = 4 * (h * h + h) + 2 * (h * f + f) + f * h + h + 2 * 2 * h
    assert found == vocab * h + layers * layer + 2 * h == 128_697_794_560
    assert found == pytest.approx(130e9, rel=0.015)


def test_rotary_positions_have_no_tables() -> None:
    model = ModelConfig(
        num_layers=3,
        hidden_size=8,
        num_attention_heads=2,
        max_position_embeddings=9,
        position_encoding=PositionEncoding.rotary_2d,
        init_std=0.02,
    )
    # 128 words of 8, three layers of 12 x 64 + 13 x 8, final norm 16
    assert count_parameters(model, 128) == 128 * 8 + 3 * (768 + 104) + 16


def test_geglu_has_two_input_projections_of_any_width() -> None:
    model = ModelConfig(
        num_layers=3,
        hidden_size=8,
        num_attention_heads=2,
        max_position_embeddings=9,
        ffn_hidden_size=20,
        activation=Activation.geglu,
        init_std=0.02,
    )
    # embeddings: 128 words and 2 x 10 positions of 8; a layer: attention 4 (64 + 8), MLP
    # 2 (8 x 20 + 20) + 20 x 8 + 8, norms 2 x 16; final norm 16
    layer = 4 * 72 + 2 * 180 + 168 + 32
    assert count_parameters(model, 128) == (128 + 20) * 8 + 3 * layer + 16


def test_the_table_of_a_published_model() -> None:
    config = load_config(["experiment=glm_large"])  # 24 layers of 1024, 512 positions
    specs = {spec.name: spec for spec in parameter_specs(config.model, config.padded_vocab_size)}
    shapes = {name: spec.shape for name, spec in specs.items()}

    ends = {
        "embedding.word_embeddings.weight": (30592, 1024),
        "embedding.position_embeddings.weight": (513, 1024),
        "embedding.block_position_embeddings.weight": (513, 1024),
        "decoder.final_layernorm.weight": (1024,),
        "decoder.final_layernorm.bias": (1024,),
    }
    layer = {
        "input_layernorm.weight": (1024,),
        "input_layernorm.bias": (1024,),
        "self_attention.linear_qkv.weight": (3072, 1024),
        "self_attention.linear_qkv.bias": (3072,),
        "self_attention.linear_proj.weight": (1024, 1024),
        "self_attention.linear_proj.bias": (1024,),
        "pre_mlp_layernorm.weight": (1024,),
        "pre_mlp_layernorm.bias": (1024,),
        "mlp.linear_fc1.weight": (4096, 1024),
        "mlp.linear_fc1.bias": (4096,),
        "mlp.linear_fc2.weight": (1024, 4096),
        "mlp.linear_fc2.bias": (1024,),
    }
    layers = {f"decoder.layers.{n}.{key}": value for n in range(24) for key, value in layer.items()}
    assert shapes == ends | layers


def test_a_classification_head_has_the_first_values_of_torch() -> None:
    model = ModelConfig(
        num_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        max_position_embeddings=3,
        init_std=0.02,
        num_classes=3,
    )
    head = [spec for spec in parameter_specs(model, 128) if spec.name.startswith("classifier.")]

    assert [(spec.name, spec.shape, spec.decays) for spec in head] == [
        ("classifier.pool.weight", (16, 16), True),
        ("classifier.pool.bias", (16,), False),
        ("classifier.output.weight", (3, 16), True),
        ("classifier.output.bias", (3,), False),
    ]
    # torch.nn.Linear draws weight and bias from U(-1 / sqrt(inputs), 1 / sqrt(inputs)).
    assert {spec.initial for spec in head} == {Uniform(0.25)}


def test_a_rank_has_rows_of_the_gate_and_of_the_value() -> None:
    model = ModelConfig(
        num_layers=1,
        hidden_size=4,
        num_attention_heads=2,
        max_position_embeddings=3,
        ffn_hidden_size=6,
        activation=Activation.geglu,
        init_std=0.02,
    )
    specs = {spec.name: spec for spec in parameter_specs(model, 128)}
    part = specs["decoder.layers.0.mlp.linear_fc1.weight"].slice_of(1, tensor_size=2)

    # 6 rows of the gate, 6 of the value; rank 1 has the last 3 of each.
    assert part.shape == (6, 4)
    assert part.rows == (RowPiece(0, 3, 3), RowPiece(3, 9, 3))


def test_a_parameter_that_does_not_divide_is_refused() -> None:
    config = load_config(["experiment=tiny"])
    words = parameter_specs(config.model, 128)[0]

    with pytest.raises(ValueError, match=r"embedding\.word_embeddings\.weight.* 1 x 3 equal"):
        words.slice_of(0, tensor_size=3)


@pytest.mark.parametrize(
    ("vocab_size", "padded"),
    # The smallest multiple of 128 that is not smaller.
    [(30524, 30592), (50265, 50304), (50009, 50048), (128, 128), (129, 256)],
)
def test_vocabulary_is_padded_to_a_multiple_of_128(vocab_size: int, padded: int) -> None:
    config = load_config(["experiment=tiny", f"tokenizer.vocab_size={vocab_size}"])
    assert config.padded_vocab_size == padded


@pytest.mark.parametrize(
    ("corruption", "padded"),
    [
        (["corruption.block_mask_prob=0.1"], 256),  # [dBLOCK] is id 128
        (["corruption.block_mask_prob=0.1", "corruption.task=masked_lm"], 128),
        (["corruption.block_mask_prob=0.1", "corruption.single_span_share=1.0"], 128),
    ],
)
def test_an_input_behind_the_vocabulary_has_a_row(corruption: list[str], padded: int) -> None:
    config = load_config(["experiment=tiny", "tokenizer.vocab_size=128", *corruption])
    assert config.padded_vocab_size == padded
