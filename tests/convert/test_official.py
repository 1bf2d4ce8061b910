"""Official names and row orders."""

import pytest
import torch

from glm_dist.convert.official import from_official, our_name


def test_every_official_name_has_one_of_ours() -> None:
    assert our_name("transformer.layers.11.mlp.dense_4h_to_h.bias") == (
        "decoder.layers.11.mlp.linear_fc2.bias"
    )
    assert our_name("word_embeddings.weight") == "embedding.word_embeddings.weight"


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        our_name("transformer.layers.0.attention.prompt.weight")


def test_the_fused_projection_is_regrouped_by_head() -> None:
    # 2 heads of size 2; rows are named q/k/v, head, element
    official = ["q00", "q01", "q10", "q11", "k00", "k01", "k10", "k11", "v00", "v01", "v10", "v11"]
    expected = ["q00", "q01", "k00", "k01", "v00", "v01", "q10", "q11", "k10", "k11", "v10", "v11"]
    name = "transformer.layers.0.attention.query_key_value"
    state = {
        f"{name}.bias": torch.arange(12),
        f"{name}.weight": torch.arange(12)[:, None].expand(12, 4),
    }

    ours = from_official(state, num_attention_heads=2)

    order = torch.tensor([official.index(row) for row in expected])
    assert torch.equal(ours["decoder.layers.0.self_attention.linear_qkv.bias"], order)
    assert torch.equal(ours["decoder.layers.0.self_attention.linear_qkv.weight"][:, 0], order)
