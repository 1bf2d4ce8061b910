"""Files of torch.save that could run code, or are damaged: one error, and nothing is run."""

import argparse
import io
import os
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glm_dist.convert.restricted import load_restricted
from glm_dist.errors import CheckpointError
from tests.convert.official_files import Numpy1Pickle
from tests.messages import Says


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, says: Says, is_zip: bool) -> None:
    marker, file = tmp_path / "was_run", tmp_path / "a.pt"
    evil = [Calls(os.mkdir, str(marker)), argparse.Namespace(lr=1), Calls(eval, "1")]
    torch.save(
        {"module": {"a": torch.ones(2)}, "args": evil}, file, _use_new_zipfile_serialization=is_zip
    )

    # Other libraries in the process may have allowed more.
    with torch.serialization.safe_globals([argparse.Namespace]):
        with pytest.raises(CheckpointError) as caught:
            load_restricted(file)
        assert argparse.Namespace in torch.serialization.get_safe_globals()

    assert not marker.exists()
    assert caught.value.key == str(file)
    assert "posix.mkdir" in str(caught.value)
    # The zip format lets all names be listed; the older one stops at the first.
    assert ("argparse.Namespace" in str(caught.value)) == is_zip
    says(caught.value)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("numpy", [1, 2])
def test_random_states_of_both_numpys_are_read(tmp_path: Path, is_zip: bool, numpy: int) -> None:
    state = np.random.default_rng(3).integers(0, 2**32, 624, dtype=np.uint32)
    states = {
        "np_rng_state": ("MT19937", state, 624, 0, 0.0),
        "random_rng_state": random.getstate(),
        "torch_rng_state": torch.get_rng_state(),
        "module": OrderedDict(a=torch.arange(6.0).half()),
        "param_shapes": [OrderedDict(a=torch.Size([6]))],
    }
    file = tmp_path / "a.pt"
    old = {"pickle_module": Numpy1Pickle} if numpy == 1 else {}
    torch.save(states, file, _use_new_zipfile_serialization=is_zip, **old)
    path = b"numpy.core.multiarray" if numpy == 1 else b"numpy._core.multiarray"
    assert path in file.read_bytes()  # stored, not compressed

    read = load_restricted(file)

    assert np.array_equal(read["np_rng_state"][1], state)
    assert read["random_rng_state"] == states["random_rng_state"]
    assert torch.equal(read["module"]["a"], torch.arange(6.0).half())


def saved(**how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({"module": {"a": torch.ones(1000)}}, stream, **how)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle at all",
        saved()[:-300],
        saved()[:200],
        b"\x80\x02}q\x00X\xff\xff",
        saved(pickle_protocol=4),
        saved(_use_new_zipfile_serialization=False)[:-100],
    ],
    ids=["empty", "text", "cut at the end", "at the start", "half", "protocol 4", "old and cut"],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(content)

    with pytest.raises(CheckpointError) as caught:
        load_restricted(file)

    assert caught.value.key == str(file)
    assert "cannot be read" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch proposes to turn the restriction off


def test_pages_of_a_zip_file_stay_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.full((1000,), 7.0)}, file)
    tensor = load_restricted(file)["a"]
    with file.open("r+b") as stream:  # what is mapped shows later changes, what is read does not
        content = stream.read()
        stream.seek(content.index(torch.full((1000,), 7.0).numpy().tobytes()))
        stream.write(torch.ones(1000).numpy().tobytes())

    assert tensor.sum() == 1000
