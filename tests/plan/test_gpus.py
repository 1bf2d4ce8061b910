"""Every GPU of the table has a peak, and an unknown one is refused with the names."""

import pytest

from glm_dist.errors import ConfigError
from glm_dist.plan.gpus import GPUS, gpu_named


def test_every_gpu_has_the_peak_by_which_a_run_measures() -> None:
    peaks = {gpu.name: gpu.peak_tflops for gpu in GPUS}
    assert peaks["v100-32"] == 125
    assert peaks["a100-40"] == peaks["a100-80"] == 312
    assert peaks["h100"] == peaks["h200"] == 989.4
    assert peaks["b200"] == 2250
    assert len(peaks) == len(GPUS)  # no name twice


def test_an_unknown_gpu_is_refused_with_the_names() -> None:
    assert gpu_named("H100").memory == int(79.1 * 2**30)
    with pytest.raises(ConfigError, match=r"--gpu mi300.*\n.*a100-80.*h200") as caught:
        gpu_named("mi300")
    assert (caught.value.key, caught.value.value) == ("--gpu", "mi300")


@pytest.mark.parametrize(
    ("typed", "said", "fix"),
    [
        ("A100", "Set --gpu a100-40 or a100-80.", "--gpu a100-40"),
        ("h100-80", "Set --gpu h100.", "--gpu h100"),
    ],
)
def test_names_that_are_alike_are_proposed(typed: str, said: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        gpu_named(typed)
    assert caught.value.fix == fix
