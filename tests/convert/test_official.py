"""Official names and row orders."""

import pytest
import torch

from glm_dist.convert.official import (
    from_official,
    official_model,
    official_parameters,
    our_name,
    to_official,
)
from tests.convert.official_files import (
    HEADS,
    HIDDEN,
    LAYERS,
    POSITIONS,
    ROWS,
    make_state,
    shard,
)

PARAMETERS = official_parameters(
    official_model(num_layers=LAYERS, hidden_size=HIDDEN, max_position_embeddings=POSITIONS), ROWS
)


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


def test_the_way_back_gives_the_same_names_order_and_bits() -> None:
    state = make_state()

    back = to_official(from_official(state, num_attention_heads=HEADS), num_attention_heads=HEADS)

    assert list(back) == list(state) == [each.name for each in PARAMETERS]
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_are_those_of_the_official_layers_and_join_again(parts: int) -> None:
    state = make_state()
    for each in PARAMETERS:
        pieces = [each.part(state[each.name], rank, parts) for rank in range(parts)]
        for rank, piece in enumerate(pieces):
            assert torch.equal(piece, shard(each.name, state[each.name], rank, parts)), each.name
            assert tuple(piece.shape) == each.part_shape(parts)
        assert torch.equal(each.merge(pieces), state[each.name]), each.name
