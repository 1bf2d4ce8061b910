from pathlib import Path

from glm_dist.config.keys import leaf_keys
from glm_dist.config.load import config_groups, default_config_dir
from glm_dist.config.reference import config_reference

ROOT = Path(__file__).resolve().parents[2]


def test_written_reference_is_current() -> None:
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == config_reference(default_config_dir()), "run `make docs`"


def test_every_key_and_option_is_explained() -> None:
    lines = config_reference(default_config_dir()).splitlines()
    explained = {
        cells[1].strip(): cells[-2].strip()
        for cells in (line.split("|") for line in lines if line.startswith("| `"))
    }
    options = {name for names in config_groups(default_config_dir()).values() for name in names}
    keys = {key for key in leaf_keys() if "." in key}
    assert {f"`{name}`" for name in options | keys} == set(explained)
    assert not [name for name, text in explained.items() if not text]
