"""Table of GPUs: memory, peak rates and links, for planning without one.

The peak of matrix products comes from the table by which a run computes its MFU
(``observe/flops.py``), so a plan and a run divide by the same number.
"""

from dataclasses import dataclass

from glm_dist.config.wording import either
from glm_dist.errors import ConfigError
from glm_dist.observe.flops import peak_tflops


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """As typed, such as ``h100``."""
    device_name: str
    """As the driver reports it."""
    memory_gib: float
    """Total that CUDA reports to a process, before its context takes a part."""
    memory_gb_per_second: float
    """Peak bandwidth of its memory, in 10^9 bytes per second."""
    link_gb_per_second: float
    """Peak bandwidth to the GPUs of its node, one direction, in 10^9 bytes per second."""
    multiprocessors: int
    fp32_tflops: float
    """Peak of fp32 products, TFLOP/s, without tensor cores: a run does not turn TF32 on."""
    source: str
    """Origin of the figures."""
    has_bf16: bool = True
    """True if its tensor cores multiply bf16."""

    @property
    def memory(self) -> int:
        """Bytes of its memory."""
        return int(self.memory_gib * 2**30)

    @property
    def peak_tflops(self) -> float:
        """Peak of dense products in 16 bits, TFLOP/s."""
        peak = peak_tflops(self.device_name, is_16_bit=True, override=0)
        assert peak is not None, f"{self.device_name} is not in the table of peaks"
        return peak

    def peak_per_second(self, *, element_bytes: int) -> float:
        """Return the peak of dense products, operations per second.

        Args:
            element_bytes: Bytes of an element, 2 or 4.
        """
        return (self.peak_tflops if element_bytes == 2 else self.fp32_tflops) * 1e12


# Memory: total_memory of CUDA's device properties, as out-of-memory messages of PyTorch print it;
# it differs by a few hundredths between drivers. ECC takes a part on A40 and L40S.
GPUS = (
    Gpu(
        "v100-16",
        "Tesla V100-SXM2-16GB",
        15.77,
        900,
        150,
        80,
        15.7,
        "NVIDIA V100 data sheet (2020): 900 GB/s, 15.7 TFLOP/s, six NVLinks, 300 GB/s both ways",
        has_bf16=False,
    ),
    Gpu(
        "v100-32",
        "Tesla V100-SXM2-32GB",
        31.74,
        900,
        150,
        80,
        15.7,
        "NVIDIA V100 data sheet (2020): 900 GB/s, 15.7 TFLOP/s, six NVLinks, 300 GB/s both ways",
        has_bf16=False,
    ),
    Gpu(
        "a40",
        "NVIDIA A40",
        44.34,
        696,
        31.5,
        84,
        37.4,
        "NVIDIA A40 data sheet: 696 GB/s, 37.4 TFLOP/s; PCIe 4.0 x16, as NVLink joins only pairs",
    ),
    Gpu(
        "l40s",
        "NVIDIA L40S",
        44.39,
        864,
        31.5,
        142,
        91.6,
        "NVIDIA L40S data sheet: 864 GB/s, 91.6 TFLOP/s, PCIe 4.0 x16, no NVLink",
    ),
    Gpu(
        "a100-40",
        "NVIDIA A100-SXM4-40GB",
        39.39,
        1555,
        300,
        108,
        19.5,
        "NVIDIA A100 data sheet (2021): 1555 GB/s, 19.5 TFLOP/s, NVLink 600 GB/s both ways",
    ),
    Gpu(
        "a100-80",
        "NVIDIA A100-SXM4-80GB",
        79.15,
        2039,
        300,
        108,
        19.5,
        "NVIDIA A100 data sheet (2021): 2039 GB/s, 19.5 TFLOP/s, NVLink 600 GB/s both ways",
    ),
    Gpu(
        "h20",
        "NVIDIA H20",
        95.0,
        4000,
        450,
        78,
        44,
        "NVIDIA H20 product brief: 4.0 TB/s, 44 TFLOP/s, NVLink 900 GB/s both ways",
    ),
    Gpu(
        "h100",
        "NVIDIA H100 80GB HBM3",
        79.1,
        3350,
        450,
        132,
        67,
        "NVIDIA H100 data sheet, SXM: 3.35 TB/s, 67 TFLOP/s, NVLink 900 GB/s both ways",
    ),
    Gpu(
        "h200",
        "NVIDIA H200",
        139.72,
        4800,
        450,
        132,
        67,
        "NVIDIA H200 data sheet, SXM: 4.8 TB/s, 67 TFLOP/s, NVLink 900 GB/s both ways",
    ),
    Gpu(
        "b200",
        "NVIDIA B200",
        178.35,
        8000,
        900,
        148,
        75,
        "NVIDIA DGX B200 data sheet: 64 TB/s over 8 GPUs, NVLink 1.8 TB/s both ways; HGX B200: 75"
        " TFLOP/s",
    ),
)


def gpu_named(name: str) -> Gpu:
    """Find a GPU by the name the user typed.

    Args:
        name: Such as ``h100``; upper case is fine.

    Raises:
        ConfigError: It is not in the table.
    """
    typed = name.lower()
    for gpu in GPUS:
        if gpu.name == typed:
            return gpu
    names = [gpu.name for gpu in GPUS]
    alike = [each for each in names if each.startswith(typed) or typed.startswith(each)]
    advice = f"Choose one of {', '.join(names)}; add another to glm_dist/plan/gpus.py"
    if typed and alike:
        advice = f"Set --gpu {either(alike)}"
    raise ConfigError(
        f"--gpu {name} is not in the table of GPUs.\n  {advice}.",
        key="--gpu",
        value=name,
        fix=f"--gpu {alike[0] if alike else 'h100'}",
    )
