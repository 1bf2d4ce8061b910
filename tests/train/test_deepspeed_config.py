import json
import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.config.load import load_config
from glm_dist.train.deepspeed_config import deepspeed_config

GOLDEN = Path(__file__).parent / "golden"
PAIRS = [("stage0", "fp32")] + [
    (zero, dtype) for zero in ("stage1", "stage2", "stage3") for dtype in ("fp32", "bf16", "fp16")
]
"""Stages 0 and 1 are DeepSpeed's only if the optimizer is offloaded; 0 never is."""


@pytest.mark.parametrize(("zero", "precision"), PAIRS, ids="-".join)
def test_dictionary_equals_the_golden_file(zero: str, precision: str) -> None:
    config = load_config(["experiment=glm_large", f"zero={zero}", f"precision={precision}"])
    generated = deepspeed_config(config, world_size=64)
    golden = json.loads((GOLDEN / f"deepspeed_{zero}_{precision}.json").read_text())
    assert generated == golden


def test_accumulation_counts_replicas_not_processes() -> None:
    # 1024 rows / (4 replicas x 16 rows) = 16 micro-batches, though 8 processes are started.
    config = load_config(["experiment=glm_large", "parallel=tp2"])
    assert deepspeed_config(config, world_size=8)["gradient_accumulation_steps"] == 16


def test_one_replica_communicates_nothing() -> None:
    config = load_config(["experiment=glm_large", "parallel=tp2", "zero=stage2", "precision=bf16"])

    assert "communication_data_type" not in deepspeed_config(config, world_size=2)
    assert "communication_data_type" in deepspeed_config(config, world_size=4)


def test_values_of_the_sections_arrive() -> None:
    config = load_config(
        [
            "experiment=glm_large",
            "zero.reduce_bucket_size=12345",
            "zero.allgather_bucket_size=23456",
            "optimizer.gradient_clipping=0.25",
            "precision.initial_loss_scale_power=9",
            "precision.loss_scale_window=77",
            "precision.loss_scale_hysteresis=3",
            "precision.min_loss_scale=8",
        ]
    )
    generated = deepspeed_config(config, world_size=64)
    zero, fp16 = generated["zero_optimization"], generated["fp16"]
    assert isinstance(zero, dict)
    assert isinstance(fp16, dict)
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (12345, 23456)
    assert generated["gradient_clipping"] == 0.25
    assert fp16["initial_scale_power"] == 9
    assert (fp16["loss_scale_window"], fp16["hysteresis"], fp16["min_loss_scale"]) == (77, 3, 8)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_the_optimizer_is_offloaded_on_request(stage: str) -> None:
    config = load_config(
        ["experiment=glm_large", f"zero={stage}", "zero.offload_optimizer=cpu", "precision=bf16"]
    )
    generated = deepspeed_config(config, world_size=64)
    zero = generated["zero_optimization"]
    assert isinstance(zero, dict)
    assert zero["offload_optimizer"] == {"device": "cpu"}
    assert generated["zero_force_ds_cpu_optimizer"] is False


def test_deepspeed_accepts_every_golden_file() -> None:
    # DeepSpeed's own parser, in another process: the import takes seconds.
    check = (
        "import json, sys; from deepspeed.runtime.config import DeepSpeedConfig\n"
        "for file in sys.argv[1:]:\n"
        "    parsed = DeepSpeedConfig(json.load(open(file)))\n"
        "    assert f'stage{parsed.zero_optimization_stage}' in file, file\n"
        "    assert parsed.float16_config.enabled == ('fp16' in file), file\n"
        "    assert parsed.bfloat16_config.enabled == ('bf16' in file), file\n"
    )
    files = [str(GOLDEN / f"deepspeed_{zero}_{precision}.json") for zero, precision in PAIRS]
    done = subprocess.run(
        [sys.executable, "-c", check, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
