"""Layouts that would train another model, or hang, and the exact message that refuses each."""

import pytest

from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.errors import GlmDistError
from tests.config.test_wrong_configurations import Case

CASES = [
    Case(
        "MLP that does not divide",
        ["experiment=tiny", "parallel=tp4", "model.ffn_hidden_size=250"],
        message="ConfigError: model.ffn_hidden_size = 250: expected a multiple of "
        "parallel.tensor_parallel_size = 4, whose processes share the MLP.\n"
        "  Fix: set model.ffn_hidden_size=248 or 252, or parallel.tensor_parallel_size=1.",
    ),
    Case(
        "rotary positions and heads of 6",
        [
            "experiment=tiny",
            "model.hidden_size=24",
            "model.num_attention_heads=4",
            "model.position_encoding=rotary_2d",
        ],
        message="ConfigError: model.position_encoding = rotary_2d: expected heads of a multiple of "
        "4 dims, two pairs or more to turn; model.hidden_size / num_attention_heads = 24 / 4 = 6.\n"
        "  Fix: set model.hidden_size=16 or 32, or model.position_encoding=learned.",
    ),
    Case(
        "MLP without width",
        ["experiment=tiny", "model.ffn_hidden_size=0"],
        message="ConfigError: model.ffn_hidden_size = 0: expected a whole number of at least 1, "
        "or null for 4 x model.hidden_size.\n"
        "  Fix: set model.ffn_hidden_size=null.",
    ),
    Case(
        "interleaving without stages",
        ["experiment=tiny", "parallel.virtual_stages=2"],
        message="ConfigError: parallel.virtual_stages = 2: expected 1 with "
        "parallel.pipeline_parallel_size = 1; without stages there is nothing to interleave.\n"
        "  Fix: leave it out, or choose parallel=pp2.",
    ),
    Case(
        "chunks that do not divide a stage",
        ["experiment=glm_large", "parallel=pp2", "parallel.virtual_stages=5"],
        message="ConfigError: parallel.virtual_stages = 5: expected a divisor of the 12 layers of "
        "each stage.\n"
        "  Fix: choose 1, 2, 3, 4, 6 or 12, or list the layers: "
        "parallel.stage_layers=[2,2,3,2,3,2,3,2,3,2].",
    ),
    Case(
        "more stages than layers",
        ["experiment=tiny", "model.num_layers=2", "parallel=pp4"],
        message="ConfigError: parallel.pipeline_parallel_size = 4: expected a divisor of "
        "model.num_layers = 2.\n"
        "  Fix: choose 1 or 2.",
    ),
    Case(
        "stages beyond any memory",
        ["experiment=tiny", "parallel.pipeline_parallel_size=99999999999"],
        message="ConfigError: parallel.pipeline_parallel_size = 99999999999: expected a divisor of "
        "model.num_layers = 4.\n"
        "  Fix: choose 1, 2 or 4.",
    ),
    Case(
        "chunks beyond any memory",
        ["experiment=tiny", "parallel=pp2", "parallel.virtual_stages=99999999999"],
        message="ConfigError: parallel.virtual_stages = 99999999999: expected a divisor of the 2 "
        "layers of each stage.\n"
        "  Fix: choose 1 or 2.",
    ),
    Case(
        "more stages than anybody would list",
        ["experiment=tiny", "model.num_layers=390", "parallel.pipeline_parallel_size=129"],
        message="ConfigError: parallel.pipeline_parallel_size = 129: expected a divisor of "
        "model.num_layers = 390.\n"
        "  Fix: choose 1, 2, 3, 5, 6, 10, 13, 15, 26, 30, 39, 65, 78, 130, 195 or 390.",
    ),
    Case(
        "a huge prime number of layers",
        ["experiment=tiny", "parallel=pp2", "model.num_layers=1000000000039"],
        message="ConfigError: parallel.pipeline_parallel_size = 2: expected a divisor of "
        "model.num_layers = 1000000000039.\n"
        "  Fix: choose 1 or 1000000000039, or list the layers: "
        "parallel.stage_layers=[500000000020,500000000019].",
    ),
    Case(
        "segments of a huge number of layers",
        [
            "experiment=tiny",
            "model.num_layers=1000000000039",
            "recompute=full",
            "recompute.segment_layers=2",
        ],
        message="ConfigError: recompute.segment_layers = 2: expected a divisor of the layers of "
        "every stage, 1000000000039.\n"
        "  Fix: choose 1 or 1000000000039.",
    ),
    Case(
        "layers listed for too few stages",
        ["experiment=glm_large", "parallel=pp4", "parallel.stage_layers=[12,12]"],
        message="ConfigError: parallel.stage_layers = [12,12]: expected 4 numbers, one for each "
        "stage.\n"
        "  Fix: set parallel.stage_layers=[6,6,6,6].",
    ),
    Case(
        "listed layers that do not add up",
        ["experiment=glm_large", "parallel=pp2", "parallel.stage_layers=[13,12]"],
        message="ConfigError: parallel.stage_layers = [13,12]: expected numbers that add up to "
        "model.num_layers = 24, not to 25.\n"
        "  Fix: set parallel.stage_layers=[12,12].",
    ),
    Case(
        "a stage without layers",
        ["experiment=glm_large", "parallel=pp2", "parallel.stage_layers=[24,0]"],
        message="ConfigError: parallel.stage_layers = [24,0]: expected at least 1 layer in each.\n"
        "  Fix: set parallel.stage_layers=[12,12].",
    ),
    Case(
        "layers listed for stages instead of chunks",
        [
            "experiment=glm_large",
            "parallel=pp2",
            "parallel.virtual_stages=2",
            "parallel.stage_layers=[12,12]",
        ],
        message="ConfigError: parallel.stage_layers = [12,12]: expected 2 stages x 2 chunks = 4 "
        "numbers, one for each chunk.\n"
        "  Fix: set parallel.stage_layers=[6,6,6,6].",
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
        message="ConfigError: batch.micro_batch_size = 16: expected a number of micro-batches that "
        "parallel.pipeline_parallel_size = 4 divides, because parallel.virtual_stages = 2 runs "
        "them in groups of that many; now global_batch_size / (micro_batch_size x replicas) = "
        "96 / (16 x 2) = 3.\n"
        "  Fix: set batch.micro_batch_size=12, or parallel.virtual_stages=1.",
    ),
    Case(
        "segments that do not divide a stage",
        ["experiment=glm_large", "parallel=pp2", "recompute=full", "recompute.segment_layers=5"],
        message="ConfigError: recompute.segment_layers = 5: expected a divisor of the layers of "
        "every stage, 12.\n"
        "  Fix: choose 1, 2, 3, 4, 6 or 12.",
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
        message="ConfigError: recompute.segment_layers = 5: expected a divisor of the layers of "
        "every stage, 9 or 15.\n"
        "  Fix: choose 1 or 3.",
    ),
    Case(
        "segments of attention",
        ["experiment=tiny", "recompute=selective", "recompute.segment_layers=2"],
        message="ConfigError: recompute.segment_layers = 2: expected 1 with recompute.mode = "
        "selective; only whole layers are computed again in segments.\n"
        "  Fix: leave it out, or choose recompute=full.",
    ),
    Case(
        "offload without ZeRO",
        ["experiment=tiny", "zero=stage0", "zero.offload_optimizer=cpu"],
        message="ConfigError: zero.offload_optimizer = cpu: expected none with zero.stage = 0; it "
        "is ZeRO that moves the optimizer.\n"
        "  Fix: choose zero=stage1, which shards nothing over one replica, or leave it out.",
    ),
    Case(
        "offload to a disk",
        ["experiment=tiny", "zero.offload_optimizer=nvme"],
        message="ConfigError: zero.offload_optimizer = nvme: expected one of none, cpu.\n"
        "  Fix: set zero.offload_optimizer=none, or leave it out to keep the group's value.",
    ),
    Case(
        "no virtual stage",
        ["experiment=tiny", "parallel.virtual_stages=0"],
        message="ConfigError: parallel.virtual_stages = 0: expected a whole number of at least 1.\n"
        "  Fix: set parallel.virtual_stages=2, or leave it out to keep the group's value.",
    ),
    Case(
        "sequence parallelism without tensor parallelism",
        ["experiment=tiny", "parallel.sequence_parallel=true"],
        message="ConfigError: parallel.sequence_parallel = true: expected false with "
        "parallel.tensor_parallel_size = 1; it cuts rows over the processes that share a layer.\n"
        "  Fix: leave it out, or choose parallel=tp2.",
    ),
    Case(
        "rows that tensor ranks cannot cut",
        [
            "experiment=tiny",
            "parallel=tp2",
            "parallel.sequence_parallel=true",
            "batch.row_length=95",
        ],
        message="ConfigError: batch.row_length = 95: expected a multiple of "
        "parallel.tensor_parallel_size = 2, because parallel.sequence_parallel cuts rows in equal "
        "parts.\n"
        "  Fix: set batch.row_length=94 or 96, or parallel.sequence_parallel=false.",
    ),
    Case(
        "overlap where gradients are reduced at the end",
        ["experiment=tiny", "zero=stage1", "zero.overlap_comm=true"],
        message="ConfigError: zero.overlap_comm = true: expected false with zero.stage = 1; its "
        "gradients are reduced once, after the last backward.\n"
        "  Fix: set zero.overlap_comm=false, or choose zero=stage2.",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_layout_is_answered_with_one_exact_message(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLM_DATA", raising=False)
    monkeypatch.delenv("GLM_RUNS", raising=False)

    with pytest.raises(GlmDistError) as caught:
        check_config(load_config(case.overrides), world_size=case.processes)

    assert f"{type(caught.value).__name__}: {caught.value}" == case.message
