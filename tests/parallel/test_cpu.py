"""The patches for megatron-core on CPUs are refused if CUDA is available."""

import pytest
import torch

from glm_dist.errors import LaunchError
from glm_dist.parallel.cpu import enable_cpu


def test_a_machine_with_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    with pytest.raises(LaunchError, match="sees a GPU"):
        enable_cpu()
