"""Many random cases, each by a number that makes it again.

python -m tests.fuzz.fuzz --cases 10000            by hand
python -m tests.fuzz.fuzz --first 4711 --cases 1   one case again
"""

import argparse
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

from glm_dist.errors import GlmDistError
from tests.fuzz.lab import Lab, build_lab
from tests.fuzz.probes import ALWAYS_VALID, PROBES


def violation(number: int, lab: Lab, folder: Path, counts: Counter[str]) -> str | None:
    """Try one case; a description of what does not hold, or None."""
    probe = PROBES[number % len(PROBES)]
    counts[probe.__name__] += 1
    try:
        probe(Random(number), lab, folder)
    except GlmDistError as error:
        counts[f"{probe.__name__}, refused"] += 1
        if probe in ALWAYS_VALID:
            return f"case {number} ({probe.__name__}): refused, {error}"
    except Exception:
        return f"case {number} ({probe.__name__}):\n{traceback.format_exc(limit=-2)}"
    return None


def run(first: int, cases: int) -> tuple[list[str], Counter[str]]:
    """Try cases; what was violated, and how often each probe ran and was refused."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "lab").mkdir()
        lab = build_lab(folder / "lab")
        found = [violation(n, lab, folder, counts) for n in range(first, first + cases)]
    return [each for each in found if each], counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    typed = parser.parse_args()
    started = time.monotonic()
    violations, counts = run(typed.first, typed.cases)
    print("\n".join(violations[:20]))
    print(dict(sorted(counts.items())))
    print(f"{typed.cases} cases, {len(violations)} violations, {time.monotonic() - started:.0f} s")
