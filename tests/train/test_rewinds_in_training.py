"""Rewinds of a running job: the same as if it had skipped the rows from the start."""

import json
from pathlib import Path
from typing import Any

import pytest

from glm_dist.checkpoint.manifest import Json, Manifest
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.cli.trace import read_config
from glm_dist.config.load import dump_config, load_config
from glm_dist.errors import ConfigError
from glm_dist.train.preflight import check_run_folder
from tests.ranks import run_ranks
from tests.train.faulty_jobs import LossSink, base, happened, kinds, run_job
from tests.train.test_precision import equal

REWIND = ("stability=rewind", "stability.compare_replicas_interval=0")


def damaged_rewinds(folder: Path) -> dict[str, Any]:
    more = (*REWIND, "checkpoint.background=false", "checkpoint.keep_last=1")
    return {
        "skipped": run_job(base(folder, "skipped", *more, "data.skip_rows=[8-23]"), "", -1),
        "damaged": run_job(base(folder, "damaged", *more), "bad_row_and_disk", 21),
    }


def test_a_rewind_sets_a_damaged_checkpoint_aside_and_keeps_two_intact_ones(tmp_path: Path) -> None:
    (ends,) = run_ranks(damaged_rewinds, tmp_path, world_size=1)

    assert [end for end, _ in ends.values()] == ["finished"] * 2
    found = [(kind, step) for kind, step, _ in happened(tmp_path, "damaged")]
    assert found == [
        ("started", 0),
        ("checkpoint", 2),
        ("checkpoint", 4),
        ("non_finite", 6),
        ("skipped_rows", 6),
        ("rewound", 2),
        ("checkpoint", 4),
        ("checkpoint", 6),
        ("checkpoint", 8),
    ]
    names = sorted(path.name for path in (tmp_path / "runs/damaged/checkpoints").iterdir())
    assert names == [".bad-step_0000004", "step_0000006", "step_0000008"]
    assert equal(ends["skipped"][1], ends["damaged"][1])


def test_a_checkpoint_that_was_found_damaged_is_no_longer_verified() -> None:
    upkeep = Upkeep(verified={"step_0000002", "step_0000004", ".old-step_0000006"})
    upkeep.went_back_to(Path("checkpoints/step_0000002"))
    assert upkeep.verified == {"step_0000002"}


def rewinds(folder: Path) -> dict[str, Any]:
    ends = {
        "skipped_from_the_start": run_job(
            base(folder, "reference", *REWIND, "data.skip_rows=[16-23]"), "huge_row", 21
        ),
        "rewound": run_job(base(folder, "rewound", *REWIND, "data.num_workers=1"), "huge_row", 21),
        "begun": run_job(base(folder, "resumed", *REWIND), "huge_row", 21, last=7),
        "resumed": run_job(base(folder, "resumed", *REWIND), "huge_row", 21),
    }
    return ends


def test_a_rewind_is_a_run_that_skipped_the_rows_from_the_start(tmp_path: Path) -> None:
    (ends,) = run_ranks(rewinds, tmp_path, world_size=1)

    assert [end for end, _ in ends.values()] == ["finished"] * 4
    # Row 21 is in step 6; the checkpoint before is step 4, so the rows of steps 5 and 6 go.
    assert kinds(tmp_path, "reference") == []
    assert kinds(tmp_path, "rewound") == [("spike", 6), ("skipped_rows", 6), ("rewound", 4)]
    details = {kind: found for kind, _, found in happened(tmp_path, "rewound")}
    assert details["skipped_rows"]["rows"] == "16-23"
    assert details["spike"]["rows"] == "20-23"
    reference = ends["skipped_from_the_start"][1]
    assert equal(reference, ends["rewound"][1])
    assert equal(reference, ends["resumed"][1])
    manifest = json.loads(
        (tmp_path / "runs/resumed/checkpoints/step_0000008/manifest.json").read_text()
    )
    memory = manifest["extra"]["stability"]
    assert memory["passed_over"] == ["16-23"]
    assert memory["interventions"] == 1


def shares_of_targets(folder: Path) -> list[dict[int, float]]:
    more = (*REWIND, "checkpoint.interval=3", "observe.log_interval=3", "run.steps=6")
    found = []
    for name, skipped in (("reference", "data.skip_rows=[12-23]"), ("rewound", "run.seed=1234")):
        LossSink.shares = {}
        run_job(base(folder, name, *more, "run.seed=1234", skipped), "bad_row", 21)
        found.append(LossSink.shares)
    return found


def test_a_record_after_a_rewind_does_not_count_the_steps_that_were_undone(tmp_path: Path) -> None:
    ((reference, rewound),) = run_ranks(shares_of_targets, tmp_path, world_size=1)
    # Both read rows 24 to 35 in steps 4 to 6; the rewound run has read rows 12 to 23 before.
    assert kinds(tmp_path, "rewound")[-1] == ("rewound", 3)
    assert reference[6] > 0
    assert rewound == reference


def test_rows_that_a_rewind_passed_over_count_as_skipped_elsewhere(tmp_path: Path) -> None:
    overrides = base(tmp_path, "run", *REWIND)
    config = load_config(overrides)
    checkpoint = config.run_dir / "checkpoints" / "step_0000008"
    checkpoint.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(dump_config(config))
    extra: dict[str, Json] = {"rows": 32, "stability": {"passed_over": ["16-23"]}}
    manifest = Manifest(step=8, layout={}, extra=extra, tensors={}, files={})
    (checkpoint / "manifest.json").write_text(manifest.to_json())

    # 32 rows were read and 8 passed over: the next one has index 40.
    assert read_config([str(config.run_dir)]).data.row_index(32) == 40
    for past in ("36-36", "16-24"):
        with pytest.raises(ConfigError, match=r"data\.skip_rows"):
            check_run_folder(load_config([*overrides, f"data.skip_rows=[{past}]"]))
    for future in ("40-43", "16-23"):
        assert check_run_folder(load_config([*overrides, f"data.skip_rows=[{future}]"])) == 8
