"""Time of matrix products on a GPU, by their shapes."""

import math
from dataclasses import dataclass

from glm_dist.plan.gpus import Gpu

PRODUCT_SHARE = 0.84
"""Share of the peak that a product reaches whose tiles fill the GPU. One H200 computed the layers
of GLM-2B at 807 TFLOP/s, with 97 % of its multiprocessors busy; others are assumed to, too."""
MEMORY_SHARE = 0.85
"""Share of the peak bandwidth that streaming kernels reach."""
TILE = (128, 256)
"""Elements of the result that a multiprocessor computes at a time, in the kernels of cuBLAS."""
SPLIT_LENGTH = 1024
"""Shortest part of the summed dimension that cuBLAS gives to one multiprocessor."""


@dataclass(frozen=True)
class Product:
    """[rows, inner] times [inner, columns]."""

    rows: float
    inner: int
    columns: int

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.rows * self.inner * self.columns

    @property
    def backward(self) -> tuple["Product", "Product"]:
        """Return the products of its two gradients: of the rows, and of the weight."""
        return (
            Product(self.rows, self.columns, self.inner),
            Product(self.inner, round(self.rows), self.columns),
        )

    def seconds(self, gpu: Gpu, *, element_bytes: int) -> float:
        """Estimate its time.

        Args:
            gpu: Computes it.
            element_bytes: Bytes of an element, 2 or 4.
        """
        peak = gpu.peak_per_second(element_bytes=element_bytes)
        rate = peak * PRODUCT_SHARE * self.busy_share(gpu.multiprocessors)
        elements = self.rows * (self.inner + self.columns) + self.inner * self.columns
        moved = elements * element_bytes / (gpu.memory_gb_per_second * 1e9 * MEMORY_SHARE)
        return max(self.operations / rate, moved)

    def busy_share(self, multiprocessors: int) -> float:
        """Estimate the share of a GPU that is busy: the last wave of tiles is rarely full."""
        tiles = math.ceil(self.rows / TILE[0]) * math.ceil(self.columns / TILE[1])
        wanted = math.ceil(multiprocessors / tiles)
        parts = tiles * max(min(wanted, self.inner // SPLIT_LENGTH), 1)
        waves = parts / multiprocessors
        return waves / math.ceil(waves)
