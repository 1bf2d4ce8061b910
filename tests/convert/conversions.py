"""``glm-dist convert`` in this process, and what it leaves."""

import hashlib
from pathlib import Path

import pytest
import torch

from glm_dist.checkpoint.load import read_checkpoint
from glm_dist.cli.main import main
from glm_dist.config.load import load_config_file
from glm_dist.convert.run_source import weights_of
from tests.convert.official_files import HEADS

HEADS_TYPED = f"model.num_attention_heads={HEADS}"


def convert(*arguments: object, status: int = 0) -> None:
    """Run the command and compare its exit status."""
    assert main(["convert", *map(str, arguments)]) == status


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All weights of a run with one checkpoint."""
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    opened = weights_of(read_checkpoint(checkpoint), load_config_file(run / "config.yaml"))
    return dict(opened)


def module(part: Path) -> dict[str, torch.Tensor]:
    """Weights of an official file, read without our code."""
    tensors: dict[str, torch.Tensor] = torch.load(part, weights_only=True)["module"]
    return tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """True if names, dtypes and bits are equal."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def files_below(folder: Path) -> dict[str, str]:
    """Hash of every file, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one message of a conversion that is refused."""
    capsys.readouterr()
    convert(*arguments, status=2)
    written = capsys.readouterr()
    assert written.out == ""
    assert "Traceback" not in written.err
    return written.err
