import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.config.checks import check_config
from glm_dist.config.load import (
    config_groups,
    default_config_dir,
    dump_config,
    load_config,
    load_config_file,
)
from glm_dist.config.schema import (
    RunConfig,
)
from glm_dist.errors import ConfigError
from tests.messages import Says

ROOT = Path(__file__).resolve().parents[2]
CONF = default_config_dir()
GROUPS = config_groups(CONF)
OPTIONS = [
    (group, option)
    for group, options in GROUPS.items()
    for option in options
    if group != "experiment"  # WORLD_SIZES has them all
]

WORLD_SIZES = {
    "quickstart": 2,
    "tiny": 1,
    "glm_base": 64,
    "glm_large": 64,
    "glm_doc": 64,
    "glm_sent": 64,
    "glm_410m": 64,
    "glm_515m": 64,
    "glm_roberta": 64,
    "glm_large_chinese": 64,
    "glm_2b": 64,
    "glm_10b": 256,
    "glm_10b_chinese": 256,
    "glm_130b": 768,
    "finetune": 1,
    "finetune_base": 1,
    "finetune_large": 1,
    "finetune_10b": 8,
    "compare_objectives": 1,
    "compare_objectives_gpu": 1,
}
"""Processes each experiment is made for."""

TASK = [
    "task.kind=cloze",
    "task.pattern='{text} [MASK]'",
    "task.answers={a: b, c: d}",
    "task.max_length=64",
]
"""A task without files."""


@pytest.fixture(autouse=True)
def fixed_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM_DATA", "/data")
    monkeypatch.setenv("GLM_RUNS", "/runs")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder without checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(load_config(["experiment=glm_10b"])))
    return folder


def overrides_of(experiment: str, pretrained: Path) -> list[str]:
    """Overrides that compose an experiment; of finetuning, with what users have to give."""
    if not experiment.startswith("finetune"):
        return [f"experiment={experiment}"]
    given = [f"run.init_from={pretrained}", f"run.name={experiment}"]
    return [f"experiment={experiment}", *given, *TASK]


def test_every_experiment_has_an_intended_world_size() -> None:
    assert sorted(WORLD_SIZES) == GROUPS["experiment"]


@pytest.mark.parametrize("experiment", WORLD_SIZES)
def test_experiment_composes_for_its_world_size(experiment: str, pretrained: Path) -> None:
    config = load_config(overrides_of(experiment, pretrained))
    check_config(config, world_size=WORLD_SIZES[experiment])
    assert config.run.name == experiment


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_option_composes(group: str, option: str) -> None:
    # Layouts need a model they divide, long rows and prompts one with as many
    # positions, T5 sentinels.
    host = {"parallel": "glm_10b", "batch": "glm_130b", "task": "glm_10b"}.get(group, "tiny")
    overrides = [f"experiment={host}"]
    if group == "parallel":
        overrides.append("zero=stage1")
    if (group, option) in (("data", "none"), ("evaluation", "task")):
        overrides += TASK
    if group == "task":  # a file takes half the time of an option
        option = f"{CONF}/task/{option}.yaml" if option != "none" else option
    if option == "t5":
        overrides += ["tokenizer.sentinel_pairs=100", "tokenizer.vocab_size=2200"]
    assert isinstance(load_config([*overrides, f"{group}={option}"]), RunConfig)


def test_only_a_task_needs_no_corpora() -> None:
    with pytest.raises(ConfigError, match=r"data\.corpora is empty"):
        load_config(["experiment=tiny", "data=none"])


def test_composed_glm_large_equals_the_golden_file() -> None:
    golden = (Path(__file__).parent / "golden" / "glm_large.yaml").read_text()
    assert dump_config(load_config(["experiment=glm_large"])) == golden


IN_EVERY_RUN = ("quickstart", "glm_roberta", "glm_130b")
"""Two corpora with weights, the longest schedule, every option of the architecture."""


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.slow)
        for name in WORLD_SIZES
    ],
)
def test_dumped_configuration_is_read_back_equal(
    experiment: str, pretrained: Path, tmp_path: Path
) -> None:
    config = load_config(overrides_of(experiment, pretrained))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config_file(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "content",
    [
        b"config_version: [",
        b"config_version: 1\nrun: {name: \xff\xfe}",
        b"config_version: 1\nrun: {steps: 1" + b"0" * 5000 + b"}",
        b"config_version: 1\nrun: &itself [*itself]",
        b"config_version: ${nowhere}",
        b"config_version: 1\nrun: {steps: '${'}",
    ],
    ids=["no YAML", "no UTF-8", "endless number", "itself", "open version", "open reference"],
)
def test_saved_configuration_that_cannot_be_read_is_named(
    content: bytes, tmp_path: Path, says: Says
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config_file(file)
    assert caught.value.key == str(file)
    says(caught.value)


def test_saved_number_too_long_for_a_float_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    long = f"weight: 1{'0' * 400}"
    file.write_text(dump_config(load_config(["experiment=tiny"])).replace("weight: null", long, 1))
    with pytest.raises(ConfigError, match=r"config\.yaml.* int too large to convert to float"):
        load_config_file(file)


def test_experiment_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    mine = copy_of_conf(tmp_path)
    (mine / "experiment" / "mine.yaml").write_bytes(b"# @package _global_\nrun: {name: \xff}\n")
    with pytest.raises(ConfigError, match=r"'utf-8' codec can't decode byte 0xff"):
        load_config(["experiment=mine"], config_dir=mine)


def test_missing_saved_configuration_is_named(tmp_path: Path, says: Says) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_file(tmp_path / "config.yaml")
    assert caught.value.key == str(tmp_path / "config.yaml")
    says(caught.value)


def test_mistake_inside_an_experiment_file_names_the_key(tmp_path: Path) -> None:
    mine = copy_of_conf(tmp_path)
    (mine / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nmodel:\n  num_layer: 3\nrun: {name: mine, steps: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=mine"], config_dir=mine)
    assert (caught.value.key, caught.value.fix) == ("model.num_layer", "model.num_layers")


def test_experiment_file_that_is_no_yaml_is_named(tmp_path: Path, says: Says) -> None:
    mine = copy_of_conf(tmp_path)
    (mine / "experiment" / "mine.yaml").write_text("# @package _global_\nrun: {name: [}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=mine"], config_dir=mine)
    assert caught.value.key.endswith("experiment/mine.yaml")
    assert caught.value.value == 2
    says(caught.value)


def test_experiment_file_that_names_an_option_that_is_not_there(tmp_path: Path, says: Says) -> None:
    mine = copy_of_conf(tmp_path)
    (mine / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: huge\nrun: {name: m, steps: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=mine"], config_dir=mine)
    assert (caught.value.key, caught.value.value) == (str(mine), "model/huge")
    says(caught.value)


def test_paths_do_not_depend_on_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLM_DATA")
    monkeypatch.setenv("GLM_RUNS", "~/runs")
    monkeypatch.chdir("/tmp")
    config = load_config(["experiment=tiny"])
    assert config.paths.data == "/tmp/data"
    assert config.tokenizer.path == "/tmp/data/quickstart/tokenizer.model"
    assert config.data.corpora["sotu"].prefix == "/tmp/data/quickstart/sotu"
    assert config.run_dir == Path.home() / "runs" / "tiny"


def test_last_choice_of_a_group_or_key_wins() -> None:
    config = load_config(
        ["experiment=glm_large", "run.steps=5", "experiment=tiny", "run.steps=6", "model=base"]
    )
    assert (config.run.name, config.run.steps, config.model.num_layers) == ("tiny", 6, 12)


def test_experiment_can_be_taken_back() -> None:
    overrides = ["experiment=glm_large", "experiment=null", "run.name=a", "run.steps=3"]
    assert load_config(overrides).model == load_config(["experiment=tiny"]).model


def test_corpora_are_added_changed_and_removed_by_name() -> None:
    config = load_config(
        [
            "experiment=tiny",
            "data.corpora.mine.prefix=/texts/mine",
            "+data.corpora.mine.weight=2",
            "data.corpora.shakespeare.weight=1",
            "~data.corpora.sotu",
        ]
    )
    found = {name: (corpus.prefix, corpus.weight) for name, corpus in config.data.corpora.items()}
    assert found == {
        "shakespeare": ("/data/quickstart/shakespeare", 1.0),
        "mine": ("/texts/mine", 2.0),
    }


def test_a_corpus_is_added_in_one_go() -> None:
    config = load_config(["experiment=tiny", "data.corpora.mine={prefix: /texts/mine}"])
    assert list(config.data.corpora) == ["sotu", "shakespeare", "mine"]
    assert config.data.corpora["mine"].prefix == "/texts/mine"


def test_a_plus_before_a_known_key_does_no_harm() -> None:
    config = load_config(["+experiment=tiny", "+model.num_layers=6", "++run.steps=9"])
    assert (config.model.num_layers, config.run.steps) == (6, 9)


def test_quoted_values_arrive_without_quotes() -> None:
    assert load_config(["experiment=tiny", "run.name='a, b'"]).run.name == "a, b"


def test_debug_wins_over_the_experiment() -> None:
    config = load_config(["experiment=quickstart", "debug=short"])
    assert (config.run.steps, config.evaluation.interval, config.checkpoint.interval) == (5, 0, 0)


def test_step_arithmetic_of_a_layout() -> None:
    # 32 processes / (tp 2 x pp 2) = 8 replicas; 1024 rows / (8 x 16) = 8 micro-batches.
    config = load_config(["experiment=glm_large", "parallel=tp2_pp2"])
    assert config.data_parallel_size(32) == 8
    assert config.num_micro_batches(32) == 8


def test_checks_load_no_torch() -> None:
    code = (
        "import sys\n"
        "import glm_dist.cli.main, glm_dist.cli.check, glm_dist.train.deepspeed_config\n"
        "status = glm_dist.cli.main.main(['check', 'experiment=glm_10b', '--processes', '256', "
        "'--no-files'])\n"
        "loaded = {'torch', 'deepspeed', 'megatron'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "9,880,682,496 parameters" in done.stdout


def copy_of_conf(folder: Path) -> Path:
    """conf/ under another folder, to add to."""
    copy = folder / "conf"
    for file in CONF.rglob("*.yaml"):
        target = copy / file.relative_to(CONF)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    return copy


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path, says: Says) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=tiny"], config_dir=tmp_path)
    assert (caught.value.key, caught.value.value) == ("--config-dir", str(tmp_path))
    says(caught.value)


def test_an_experiment_without_its_package_line_is_told(tmp_path: Path) -> None:
    conf = copy_of_conf(tmp_path)
    (conf / "experiment" / "mine.yaml").write_text("run:\n  name: mine\n")

    with pytest.raises(ConfigError, match=r"experiment/mine\.yaml.*\n.*# @package _global_"):
        load_config(["experiment=mine"], config_dir=conf)
