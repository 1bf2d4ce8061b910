"""Documents of a corpus in an order of chance that depends on a seed and their number alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.hashing import mix_bits

DOCUMENTS_AT_A_TIME = 1 << 16


def shuffled_order(num_documents: int, *, seed: int) -> NDArray[np.int64]:
    """Order document numbers by a hash of seed and number; 24 bytes of memory a document.

    Args:
        num_documents: n.
        seed: Any integer from 0 to 2^64 - 1.

    Returns:
        The document at each place. [n]
    """
    numbers = np.arange(num_documents, dtype=np.uint64)
    keys = mix_bits(numbers ^ mix_bits(np.full(1, seed, np.uint64)))
    order: NDArray[np.int64] = keys.argsort(kind="stable")
    return order


def write_in_order(
    source: Path,
    target: Path,
    order: NDArray[np.int64],
    *,
    lengths: NDArray[np.int32],
    token_type: "np.dtype[np.integer]",
) -> None:
    """Copy the documents of a token file in another order.

    Args:
        source: Token file.
        target: File to write.
        order: The document at each place. [n]
        lengths: Tokens of each document of ``source``. [n]
        token_type: Type of the ids.
    """
    tokens = np.memmap(source, mode="r", dtype=token_type).view(np.ndarray)
    ends = lengths.cumsum(dtype=np.int64)
    with target.open("wb") as stream:
        for begin in range(0, len(order), DOCUMENTS_AT_A_TIME):
            numbers = order[begin : begin + DOCUMENTS_AT_A_TIME]
            stops = ends[numbers].tolist()
            starts = (ends[numbers] - lengths[numbers]).tolist()
            documents = [tokens[a:b] for a, b in zip(starts, stops, strict=True)]
            stream.write(np.concatenate(documents).tobytes())
