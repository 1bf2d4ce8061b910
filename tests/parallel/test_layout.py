"""Coordinates and groups, against groups written out by hand."""

import pytest

from glm_dist.config.load import load_config
from glm_dist.errors import ConfigError
from glm_dist.parallel.layout import Coordinates, Layout

EIGHT = Layout(tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=2)


def test_neighbours_share_a_layer() -> None:
    assert [EIGHT.tensor_ranks(r) for r in (0, 2, 4, 6)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_replicas_lie_inside_a_stage() -> None:
    assert [EIGHT.data_ranks(r) for r in (0, 1, 4, 5)] == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_stages_are_half_the_job_apart() -> None:
    assert [EIGHT.pipeline_ranks(r) for r in (0, 1, 2, 3)] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_replica_is_all_slices_of_all_stages() -> None:
    assert EIGHT.model_ranks(0) == [0, 1, 4, 5]
    assert EIGHT.model_ranks(7) == [2, 3, 6, 7]


def test_the_tied_embedding_lies_on_both_ends_of_a_pipeline() -> None:
    assert Layout(1, 4, 1).embedding_ranks(2) == [0, 3]
    assert Layout(2, 1, 1).embedding_ranks(1) == [1]


def test_coordinates_count_tensor_then_data_then_pipeline() -> None:
    # rank 6 = 0 + 2 * (1 + 2 * 1)
    assert EIGHT.coordinates(6) == Coordinates(tensor=0, data=1, pipeline=1)


@pytest.mark.parametrize("layout", [Layout(1, 1, 1), Layout(4, 1, 2), Layout(2, 4, 3)], ids=str)
def test_every_place_is_taken_once(layout: Layout) -> None:
    coordinates = {layout.coordinates(rank) for rank in range(layout.world_size)}

    assert len(coordinates) == layout.world_size


def test_stages_hold_consecutive_layers() -> None:
    layout = Layout(1, 3, 1)

    assert [list(layout.layers_of_stage(6, s)) for s in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_rows_pass_through_every_stage_once_for_each_chunk() -> None:
    layout = Layout(1, 2, 1, virtual_stages=2)

    # 8 layers in 2 x 2 chunks of 2: first chunk of stages 0 and 1, then the second of both.
    order = [
        list(layout.layers_of_stage(8, stage, chunk=chunk)) for chunk in (0, 1) for stage in (0, 1)
    ]
    assert order == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_listed_layers_follow_each_other_through_the_chunks() -> None:
    layout = Layout(1, 2, 1, virtual_stages=2, stage_layers=(1, 3, 2, 1))

    order = [
        list(layout.layers_of_stage(7, stage, chunk=chunk)) for chunk in (0, 1) for stage in (0, 1)
    ]
    assert order == [[0], [1, 2, 3], [4, 5], [6]]


@pytest.mark.parametrize(
    ("layout", "num_layers", "key", "value"),
    [
        (Layout(1, 2, 1), 3, "parallel.pipeline_parallel_size", 2),
        (Layout(1, 2, 1, virtual_stages=2), 6, "parallel.virtual_stages", 2),
        (Layout(1, 2, 1, stage_layers=(2, 2)), 3, "parallel.stage_layers", [2, 2]),
        (Layout(1, 2, 1, stage_layers=(1, 1)), 3, "parallel.stage_layers", [1, 1]),
        (Layout(1, 2, 1, stage_layers=(1, 1, 1)), 3, "parallel.stage_layers", [1, 1, 1]),
        (Layout(1, 2, 1, stage_layers=(3, 0)), 3, "parallel.stage_layers", [3, 0]),
    ],
    ids=str,
)
def test_no_layer_is_left_out_or_held_twice(
    layout: Layout, num_layers: int, key: str, value: object
) -> None:
    for stage in (0, 1):
        with pytest.raises(ConfigError) as caught:
            layout.layers_of_stage(num_layers, stage)
        assert (caught.value.key, caught.value.value) == (key, value)
        assert caught.value.fix


def test_a_layout_is_what_the_configuration_asks_for() -> None:
    config = load_config(
        [
            "experiment=tiny",
            "parallel=tp2_pp2",
            "parallel.data_parallel_size=null",
            "parallel.sequence_parallel=true",
            "parallel.stage_layers=[1,3]",
        ]
    )
    asked = {"sequence_parallel": True, "stage_layers": (1, 3)}

    assert Layout.from_config(config) == Layout(2, 2, 1, **asked)
    assert Layout.from_config(config, 12) == Layout(2, 2, 3, **asked)
    assert Layout.from_config(load_config(["experiment=tiny", "parallel=dp2"])) == Layout(1, 1, 2)


def test_interleaving_asks_for_whole_groups_of_micro_batches() -> None:
    assert Layout(1, 4, 1, virtual_stages=2).micro_batch_multiple == 4
    assert Layout(1, 4, 1).micro_batch_multiple == 1


def test_a_layout_has_a_short_name() -> None:
    assert str(Layout(8, 4, 2)) == "tp8·pp4·dp2"
    assert str(Layout(2, 2, 1, sequence_parallel=True, virtual_stages=2)) == "tp2·pp2·dp1·sp·vp2"
