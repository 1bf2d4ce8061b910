"""Skips, rewinds and comparisons of replicas in real runs, with faults at known rows and steps."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.checkpoint.manifest import Json, Manifest
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.cli.trace import read_config
from glm_dist.config.load import dump_config, load_config
from glm_dist.config.schema import LossNormalization, RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.row_source import open_row_source
from glm_dist.errors import ConfigError, TrainingError
from glm_dist.observe.events import EventsSink, read_events
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.job import build_engine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.preemption import StopRequest
from glm_dist.train.preflight import check_run_folder
from glm_dist.train.replicas import Digests, differing, digests
from glm_dist.train.rows import RunRows
from glm_dist.train.same_run import passed_over, stability_memory
from glm_dist.train.start import starting_point
from glm_dist.train.state import restore_state, save_state
from glm_dist.train.step import train_step
from glm_dist.train.task import Pretraining, TaskLoss
from tests.ranks import run_ranks
from tests.train import grid
from tests.train.grid import Case, micro_batches_of, rows_of_step, run_steps, whole_weights
from tests.train.jobs import make_files
from tests.train.test_precision import equal, poison


class FaultyRows(RunRows):
    """Rows of a run; one of them, or one step, has a fault."""

    factors: ClassVar[list[float]] = []
    fault, at = "", -1

    def prepare(self, engine: TrainingEngine, done: int, fault: str, at: int) -> "FaultyRows":
        self._engine, self._step, self.fault, self.at = engine, done, fault, at
        self._heal: Callable[[], None] = lambda: None
        return self

    def reopen(self, *, done: int) -> None:
        self._step = done
        super().reopen(done=done)

    def __next__(self) -> Sequence[MicroBatch]:
        self._step += 1
        self._heal()
        self._heal = lambda: None
        if self.fault == "bad_row_and_disk" and self._step == 6:
            self.fault = "bad_row"
            damage(self._config.run_dir / "checkpoints" / "step_0000004")
        bad = {"bad_row": float("nan"), "huge_row": 1000.0}.get(self.fault, 1.0)
        FaultyRows.factors[:] = [
            bad if self.at in rows else 1.0 for rows in self.indices(self._step)
        ]
        if self._step == self.at:
            self._strike()
        return super().__next__()

    @torch.no_grad()
    def _strike(self) -> None:
        if self.fault == "bad_gradient":
            self._heal = poison(self._engine)
        if self.fault == "tripled":
            for shard in self._engine.shards:
                shard.parameter.mul_(3.0)
        if self.fault == "odd_replica" and dist.get_rank() == 1:
            self._engine.shards[2].parameter.view(-1)[0] += 1.0


class LossSink(EventsSink):
    """Events, and the loss of each step; the share of targets in each record."""

    shares: ClassVar[dict[int, float]] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        file = self._path.with_name(self._path.name.replace("events", "losses"))
        self.shares[step] = values.get("rows/target_share", -1.0)
        losses = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**losses, str(step): values.get("train/loss")}))


def damage(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def faulty_loss(plain: Callable[..., TaskLoss]) -> Callable[..., TaskLoss]:
    """Multiply the loss of each micro-batch by the next factor."""

    def loss(*arguments: Any) -> TaskLoss:
        found = plain(*arguments)
        return TaskLoss(found.total * FaultyRows.factors.pop(0), found.metrics)

    return loss


def layout_of(config: RunConfig) -> Layout:
    return Layout.from_config(config, dist.get_world_size())


def run_job(
    overrides: list[str], fault: str, at: int, last: int | None = None
) -> tuple[str, dict[str, np.ndarray]]:
    """Train on from what the run folder holds; how it ended, and the weights."""
    enable_cpu()
    config = load_config(overrides)
    if last is not None:
        config = replace(config, run=replace(config.run, steps=last))
    groups = build_groups(layout_of(config), timedelta(seconds=60))
    source = open_row_source(config)
    device, world = torch.device("cpu"), dist.get_world_size()
    engine = build_engine(config, groups, device=device, world_size=world)
    identity: Mapping[str, Any] = {"data": source.fingerprint()}
    start = starting_point(config, engine, identity)
    rows = FaultyRows(config, source, groups, done=start.step, passed_over=passed_over(start.extra))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    # Every rank writes its events, so that they can be compared.
    file = config.run_dir / f"events_{dist.get_rank()}.jsonl"
    run = LoopContext(
        config=config,
        engine=engine,
        rows=rows.prepare(engine, start.step, fault, at),
        validation=source.validation,
        stop_request=StopRequest(),
        sink=LossSink(file, attempt=1, first_step=start.step),
        checkpoints=config.run_dir / "checkpoints",
        identity=identity,
        device=device,
        saved=stability_memory(start.extra),
    )
    plain = Pretraining.loss
    Pretraining.loss = faulty_loss(plain)  # type: ignore[method-assign]
    end = "finished"
    try:
        train(run, first_step=start.step)
    except TrainingError as error:
        end = str(error)
    finally:
        Pretraining.loss = plain  # type: ignore[method-assign]
    return end, whole_weights(engine) if end == "finished" else {}


def base(folder: Path, name: str, *more: str) -> list[str]:
    """A run of 8 steps of 4 rows: rows 20 to 23 are read in step 6."""
    return [
        *make_files(folder),
        f"run.name={name}",
        "run.steps=8",
        "evaluation.interval=0",
        "checkpoint.interval=2",
        "checkpoint.keep_last=9",
        "zero=stage1",
        "stability.window=4",
        *more,
    ]


def happened(folder: Path, name: str, rank: int = 0) -> list[tuple[str, int, dict[str, Any]]]:
    events = read_events(folder / "runs" / name / f"events_{rank}.jsonl")
    return [(each["kind"], each["step"], each["details"]) for each in events]


def kinds(folder: Path, name: str, rank: int = 0) -> list[tuple[str, int]]:
    unusual = [(kind, step) for kind, step, _ in happened(folder, name, rank)]
    return [each for each in unusual if each[0] not in ("started", "checkpoint")]


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


REWIND = ("stability=rewind", "stability.compare_replicas_interval=0")


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


def skips(folder: Path) -> dict[str, Any]:
    skip = "stability.on_spike=skip"
    return {
        "clean": run_job(base(folder, "clean"), "", -1),
        "bad": run_job(base(folder, "bad"), "bad_row", 21),
        "huge": run_job(base(folder, "huge", skip), "huge_row", 21),
        "begun": run_job(base(folder, "resumed", skip), "huge_row", 21, last=5),
        "resumed": run_job(base(folder, "resumed", skip), "huge_row", 21),
        "used_up": run_job(base(folder, "used_up", "stability.max_interventions=0"), "bad_row", 21),
        "tripled": run_job(base(folder, "tripled"), "tripled", 6),
        "stopped": run_job(base(folder, "stopped", "stability.on_spike=stop"), "tripled", 6),
    }


def last_loss(folder: Path, name: str) -> float:
    losses = json.loads((folder / "runs" / name / "losses_0.jsonl").read_text())
    return float(losses["8"])


def test_a_bad_row_is_skipped_named_and_survived(tmp_path: Path) -> None:
    (ends,) = run_ranks(skips, tmp_path, world_size=1)

    assert ends["bad"][0] == ends["huge"][0] == ends["tripled"][0] == "finished"
    ((_, step, bad),) = [each for each in happened(tmp_path, "bad") if each[0] == "non_finite"]
    assert (step, bad["rows"], bad["bad_rows"]) == (6, "20-23", "20-21")
    assert "the loss of 1 of 2 micro-batches is nan for rows 20-21" in bad["origin"]
    assert kinds(tmp_path, "bad") == [("non_finite", 6), ("skipped_rows", 6)]
    assert kinds(tmp_path, "huge") == [("spike", 6), ("skipped_rows", 6)]
    # Either way one update is missing, and nothing else.
    assert equal(ends["bad"][1], ends["huge"][1])
    assert last_loss(tmp_path, "bad") == pytest.approx(last_loss(tmp_path, "clean"), rel=0.02)
    assert not equal(ends["bad"][1], ends["clean"][1])
    assert equal(ends["resumed"][1], ends["huge"][1])
    assert "retries are used up: stability.max_interventions=0" in ends["used_up"][0]
    assert "nan for rows 20-21" in ends["used_up"][0]
    assert kinds(tmp_path, "used_up") == [("non_finite", 6), ("stopped", 6)]
    # Masters times three: known at the next record, here at once.
    assert kinds(tmp_path, "tripled")[0] == ("spike", 6)
    assert ends["stopped"][0].startswith("Step 6 is a spike (")


LAYOUTS = [
    ("parallel=dp2", "zero=stage0"),
    ("parallel=dp2", "zero=stage1", "precision=bf16"),
    ("parallel=dp2", "zero=stage2"),
    ("parallel=dp2", "zero=stage3"),
    ("parallel=tp2", "zero=stage1"),
    ("parallel=pp2", "zero=stage1"),
]


def bad_gradients(folder: Path) -> list[str]:
    ends = []
    for number, layout in enumerate(LAYOUTS):
        overrides = base(folder, f"layout_{number}", *layout, "checkpoint.interval=0")
        end, weights = run_job(overrides, "bad_gradient", 3, last=4)
        assert all(np.isfinite(weight).all() for weight in weights.values())
        ends.append(end)
    (end, _) = run_job(
        base(folder, "odd", "parallel=dp2", "zero=stage0", "stability.compare_replicas_interval=2"),
        "odd_replica",
        3,
    )
    return [*ends, end]


def test_ranks_act_in_the_same_step_wherever_a_gradient_is_bad(tmp_path: Path) -> None:
    one, other = run_ranks(bad_gradients, tmp_path, world_size=2)

    assert one == other
    assert one[:-1] == ["finished"] * len(LAYOUTS)
    for number in range(len(LAYOUTS)):
        for rank in (0, 1):
            found = happened(tmp_path, f"layout_{number}", rank)
            assert [(k, s) for k, s, _ in found if k != "started"] == [
                ("non_finite", 3),
                ("skipped_rows", 3),
            ]
        ((_, _, details),) = [each for each in found if each[0] == "non_finite"]
        assert "linear_fc1.weight" in details["origin"], LAYOUTS[number]
    assert one[-1].startswith("After step 4 the weights of rank 0 on ")
    assert "differ, without a majority; the first is " in one[-1]


REFUSALS = [
    Case(dp=2, zero=0, micro_batch=4),
    Case(dp=2, zero=1, micro_batch=4),
    Case(dp=2, zero=2, micro_batch=4),
    Case(dp=2, zero=3, micro_batch=8),
    Case(dp=2, zero=1, micro_batch=4, dtype="bf16"),
    Case(dp=2, zero=2, micro_batch=4, dtype="bf16"),
    Case(dp=2, zero=1, micro_batch=4, dtype="fp16"),
    Case(dp=2, zero=1, micro_batch=4, offload=True),
    Case(dp=2, zero=3, micro_batch=8, offload=True),
    Case(pp=2, zero=1, micro_batch=4),
]


def refused_steps(cases: list[Case], folder: Path) -> list[tuple[str, bool, bool, bool, bool]]:
    """Refuse a step, and rewind over another; compare with a run without them."""
    enable_cpu()
    answers = []
    for case in cases:
        reference = grid.build_engine(case)
        run_steps(reference, case, [0, 0, 2])
        engine = grid.build_engine(case)
        run_steps(engine, case, [0, 0])
        before, scale = whole_weights(engine), engine.zero.loss_scale
        skipped = engine.zero.skipped_steps
        outcome = train_step(
            engine,
            micro_batches_of(rows_of_step(1), case, engine.groups.coordinates.data),
            learning_rate=1e-3,
            normalize_by=LossNormalization.global_tokens,
            device=torch.device("cpu"),
            accept=lambda share, norm: False,
        ).outcome
        is_unchanged = equal(before, whole_weights(engine))
        rejected = engine.zero.skipped_steps - skipped
        run_steps(engine, case, [2])
        is_clean = equal(whole_weights(reference), whole_weights(engine))
        save_state(engine, folder / str(case), step=4, extra={}, keep_last=1)
        run_steps(engine, case, [1])
        info = find_checkpoint(folder / str(case))
        assert info is not None
        restore_state(engine, info)
        for each in (reference, engine):
            run_steps(each, case, [3])
        answers.append(
            (
                str(case),
                outcome.is_refused and bool(torch.isfinite(outcome.norm)),
                is_unchanged and rejected == 1 and engine.zero.loss_scale == scale,
                is_clean,
                equal(whole_weights(reference), whole_weights(engine)),
            )
        )
    return answers


@pytest.mark.timeout(600)
def test_refused_and_rewound_steps_leave_no_trace_under_any_zero_stage(tmp_path: Path) -> None:
    for answers in run_ranks(refused_steps, REFUSALS, tmp_path, world_size=2):
        assert answers == [(str(case), True, True, True, True) for case in REFUSALS]


def test_the_odd_one_of_three_replicas_is_named() -> None:
    def held(rank: int, digest: int) -> Digests:
        return Digests(rank, "host", None, {"a": 1, "b": digest})  # type: ignore[arg-type]

    assert differing([held(0, 5), held(1, 5)]) == ([], "", True)
    assert differing([held(0, 5), held(1, 6), held(2, 5)]) == ([held(1, 6)], "b", True)
    assert differing([held(0, 5), held(1, 6)])[2] is False


def test_one_flipped_bit_changes_a_digest() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.linspace(-1, 1, 1000).to(dtype)
        other = one.clone()
        bits = other.view(torch.int32 if dtype is torch.float32 else torch.int16)
        bits[517] ^= 1
        assert digests([one]).item() != digests([other]).item()
