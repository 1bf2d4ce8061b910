"""Figures of memory in words."""


def gib(size: int) -> str:
    """Write bytes as GiB, small ones as MiB.

    Args:
        size: Bytes.
    """
    if size < 1 << 30:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.2f} GiB"
