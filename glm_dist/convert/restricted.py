"""Files of ``torch.save`` from anywhere: tensors and plain values are read, nothing is executed.

A pickle can name any function to be called while it is read. torch's restricted unpickler knows
tensors, containers and numbers only. Official checkpoints also hold the state of numpy's random
generator, an array of unsigned integers; the four names that it needs are allowed, too, under the
module paths of numpy 1 and 2. There is no way to allow more.
"""

import pickle
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from glm_dist.checkpoint.only_tensors import only_allowed
from glm_dist.errors import CheckpointError

_ZIP = b"PK\x03\x04"
"""First bytes of torch's newer format."""

_RECONSTRUCT = np.empty(0).__reduce__()[0]
"""The function that numpy's arrays name to be made of; its module has moved with numpy 2."""

Allowed: TypeAlias = Any

ALLOWED: tuple[Allowed, ...] = (
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
)


def load_restricted(path: Path) -> Any:
    """Load a file of ``torch.save``; its tensors are mapped into memory where the format allows.

    Args:
        path: File in torch's zip format, or in the one before it, which is read as a whole.

    Raises:
        CheckpointError: It names functions or classes that are not allowed, or it is damaged.
        OSError: It cannot be opened.
    """
    with path.open("rb") as stream:  # whatever torch says of it is about the content then
        is_zip = stream.read(len(_ZIP)) == _ZIP
    with only_allowed(ALLOWED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about what is an error below
        try:
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
        # Damaged or hostile bytes may raise anything.
        except Exception as error:
            names = _forbidden(path, error, is_zip=is_zip)
            if names:
                raise _refusal(path, names) from error
            raise damaged(path, _problem(error)) from error


def damaged(path: Path, problem: str) -> CheckpointError:
    """Build the error for a file that cannot be read."""
    return CheckpointError(
        f"{path} cannot be read: {problem}.\n"
        "  It is truncated, damaged or no file of torch.save; fetch it again.",
        key=str(path),
        value=problem,
        fix="fetch the file again",
    )


def _forbidden(path: Path, error: Exception, *, is_zip: bool) -> list[str]:
    """Names in a file that are not allowed; read from its bytes, without running them."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    if is_zip:
        with suppress(pickle.UnpicklingError, ValueError):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    # The older format has no such list, and the unpickler stops at the first name.
    found = re.search(r"(?:GLOBAL|class|blocklisted module) ([\w.]+)", str(error))
    return [found[1]] if found else []


def _refusal(path: Path, names: list[str]) -> CheckpointError:
    listed = ", ".join(names)
    return CheckpointError(
        f"{path} holds objects that are neither tensors nor plain values: {listed}. To read them,"
        " code would be run that the file names, so nothing of it was read.\n"
        "  Save the file again where it came from, with tensors, numbers and text only.",
        key=str(path),
        value=listed,
        fix="save the file again without them",
    )


def _problem(error: Exception) -> str:
    """Describe a failure of torch's reader; its own words propose to read without restriction."""
    text = str(error)
    if "TorchScript" in text or "torchscript" in text:
        return "it is a TorchScript program, which holds code"
    if ".tar format" in text:
        return "it has the .tar format of the first versions of torch"
    if isinstance(error, OSError) or "zip archive" in text:
        return "it is not a whole archive"
    if isinstance(error, EOFError) or "EOF" in text:
        return "it ends too early"
    if isinstance(error, pickle.UnpicklingError):
        return "its content is no pickle of tensors and plain values"
    return "its bytes make no sense"
