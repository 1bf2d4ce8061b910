"""The folder that a command writes to, made before any work is done."""

import os
from pathlib import Path

from glm_dist.errors import DataError


def make_output_folder(output: str | Path) -> None:
    """Make the folder of a file that is going to be written.

    Args:
        output: Path of the file, or the common prefix of several.

    Raises:
        DataError: The folder cannot be made or written to.
    """
    folder = Path(output).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise DataError(
            key="--output",
            found=f"{output} ({problem})",
            expected="a path in a folder that can be written to",
            fix="choose another --output",
        )
