"""Hardware of a process, for the record of its run."""

import re
from pathlib import Path

import torch

DRIVER_FILE = Path("/proc/driver/nvidia/version")


def describe_gpu(device: torch.device) -> dict[str, str | None]:
    """Return GPU model, driver and NCCL version; empty for a CPU.

    Args:
        device: Device of this process.
    """
    if device.type != "cuda":
        return {}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": driver_version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
    }


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """Return the version of NVIDIA's driver; None if it cannot be read.

    Args:
        file: Where the driver says so.
    """
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", file.read_text())
    except OSError:
        return None
    return found[1] if found else None
