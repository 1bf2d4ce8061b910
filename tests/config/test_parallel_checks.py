"""Layouts that would train another model, or hang: the key at fault and a fix that works."""

import pytest

from tests.config.test_wrong_configurations import Case, check_case
from tests.messages import Says

CASES = [
    Case(
        "MLP that does not divide",
        ["experiment=tiny", "parallel=tp4", "model.ffn_hidden_size=250"],
        key="model.ffn_hidden_size",
    ),
    Case(
        "rotary positions and heads of 6",
        [
            "experiment=tiny",
            "model.hidden_size=24",
            "model.num_attention_heads=4",
            "model.position_encoding=rotary_2d",
        ],
        key="model.position_encoding",
    ),
    Case(
        "MLP without width",
        ["experiment=tiny", "model.ffn_hidden_size=0"],
        key="model.ffn_hidden_size",
    ),
    Case(
        "interleaving without stages",
        ["experiment=tiny", "parallel.virtual_stages=2"],
        key="parallel.virtual_stages",
    ),
    Case(
        "chunks that do not divide a stage",
        ["experiment=glm_large", "parallel=pp2", "parallel.virtual_stages=5"],
        key="parallel.virtual_stages",
    ),
    Case(
        "more stages than layers",
        ["experiment=tiny", "model.num_layers=2", "parallel=pp4"],
        key="parallel.pipeline_parallel_size",
    ),
    Case(
        "stages beyond any memory",
        ["experiment=tiny", "parallel.pipeline_parallel_size=99999999999"],
        key="parallel.pipeline_parallel_size",
    ),
    Case(
        "chunks beyond any memory",
        ["experiment=tiny", "parallel=pp2", "parallel.virtual_stages=99999999999"],
        key="parallel.virtual_stages",
    ),
    Case(
        "more stages than anybody would list",
        ["experiment=tiny", "model.num_layers=390", "parallel.pipeline_parallel_size=129"],
        key="parallel.pipeline_parallel_size",
    ),
    Case(
        "a huge prime number of layers",
        ["experiment=tiny", "parallel=pp2", "model.num_layers=1000000000039"],
        key="parallel.pipeline_parallel_size",
    ),
    Case(
        "segments of a huge number of layers",
        [
            "experiment=tiny",
            "model.num_layers=1000000000039",
            "recompute=full",
            "recompute.segment_layers=2",
        ],
        key="recompute.segment_layers",
    ),
    Case(
        "layers listed for too few stages",
        ["experiment=glm_large", "parallel=pp4", "parallel.stage_layers=[12,12]"],
        key="parallel.stage_layers",
    ),
    Case(
        "listed layers that do not add up",
        ["experiment=glm_large", "parallel=pp2", "parallel.stage_layers=[13,12]"],
        key="parallel.stage_layers",
    ),
    Case(
        "a stage without layers",
        ["experiment=glm_large", "parallel=pp2", "parallel.stage_layers=[24,0]"],
        key="parallel.stage_layers",
    ),
    Case(
        "layers listed for stages instead of chunks",
        [
            "experiment=glm_large",
            "parallel=pp2",
            "parallel.virtual_stages=2",
            "parallel.stage_layers=[12,12]",
        ],
        key="parallel.stage_layers",
    ),
    Case(
        "micro-batches that do not fill the groups of interleaving",
        [
            "experiment=glm_large",
            "parallel=pp4",
            "parallel.virtual_stages=2",
            "batch.global_batch_size=96",
            "batch.micro_batch_size=16",
        ],
        processes=8,
        key="batch.micro_batch_size",
    ),
    Case(
        "segments that do not divide a stage",
        ["experiment=glm_large", "parallel=pp2", "recompute=full", "recompute.segment_layers=5"],
        key="recompute.segment_layers",
    ),
    Case(
        "segments that do not divide unequal stages",
        [
            "experiment=glm_large",
            "parallel=pp2",
            "parallel.stage_layers=[15,9]",
            "recompute=full",
            "recompute.segment_layers=5",
        ],
        key="recompute.segment_layers",
    ),
    Case(
        "segments of attention",
        ["experiment=tiny", "recompute=selective", "recompute.segment_layers=2"],
        key="recompute.segment_layers",
    ),
    Case(
        "offload without ZeRO",
        ["experiment=tiny", "zero=stage0", "zero.offload_optimizer=cpu"],
        key="zero.offload_optimizer",
    ),
    Case(
        "offload to a disk",
        ["experiment=tiny", "zero.offload_optimizer=nvme"],
        key="zero.offload_optimizer",
    ),
    Case(
        "no virtual stage",
        ["experiment=tiny", "parallel.virtual_stages=0"],
        key="parallel.virtual_stages",
    ),
    Case(
        "sequence parallelism without tensor parallelism",
        ["experiment=tiny", "parallel.sequence_parallel=true"],
        key="parallel.sequence_parallel",
    ),
    Case(
        "rows that tensor ranks cannot cut",
        [
            "experiment=tiny",
            "parallel=tp2",
            "parallel.sequence_parallel=true",
            "batch.row_length=95",
        ],
        key="batch.row_length",
    ),
    Case(
        "overlap with an offloaded optimizer",
        [
            "experiment=tiny",
            "zero=stage1",
            "zero.offload_optimizer=cpu",
            "zero.overlap_comm=true",
        ],
        key="zero.overlap_comm",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_layout_is_answered_with_a_fix_that_works(
    case: Case, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_case(case, says, monkeypatch)
