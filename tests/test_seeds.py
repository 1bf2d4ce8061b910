"""Seeds and keys are fixed numbers: another one would change rows, masks or first weights."""

import subprocess
import sys

from glm_dist.seeds import derive_keys, derive_seed, name_key


def test_names_give_fixed_numbers() -> None:
    # Each is read from the last byte on of what b2sum prints:
    # printf "('a', 1)" | b2sum -l 64; printf wikipedia | b2sum -l 64;
    # printf 'order\0001\000a\0000' | b2sum, of which the first eight bytes are the first key.
    assert derive_seed("a", 1) == 0xACB2AFD16F387F9A >> 1
    assert name_key("wikipedia") == 0x365BE55DCFD960EA
    assert derive_keys("order", 1, "a", 0)[0] == 0x04F7A0BD2A3E4E8D


def test_keys_are_eight_and_depend_on_every_part() -> None:
    keys = derive_keys("order", 1, "a", 0) + derive_keys("order", 1, "a", 1)

    assert len(set(keys)) == 16
    assert derive_seed("a", 1) != derive_seed("a", 2)


def test_importing_them_loads_no_other_library() -> None:
    code = (
        "import sys, glm_dist.seeds; print(sorted({'torch', 'numpy', 'megatron'} & {*sys.modules}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert other.stdout == "[]\n"
