"""Seeds and keys derived from names: one fixed function of its arguments on every machine.

Whatever needs random numbers derives them from the seed of the run and the names of what they are
for, so nothing depends on the order in which they are drawn. These functions may never change:
rows, dropout masks and initial weights follow from them.
"""

import hashlib
import struct


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from named parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derive_keys(*parts: int | str) -> tuple[int, ...]:
    """Derive eight independent 64-bit keys from named parts."""
    text = "\0".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=64).digest()
    return struct.unpack("<8Q", digest)


def name_key(name: str) -> int:
    """Derive a 64-bit key from a name; it does not depend on which other names there are."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
