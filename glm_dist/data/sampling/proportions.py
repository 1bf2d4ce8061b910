"""Sequences that keep to given shares at every prefix, with random access.

Position k of the sequence says which of C states has its turn, and how many turns it had before. At
every prefix each state's count is within 1 of its share: the chairman assignment problem (Tijdeman,
1980). The shares become whole numbers over a common denominator, and the sequence repeats with that
period, so a table of one period answers for every k.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

LONGEST_PERIOD = 1 << 20
"""Entries of the largest table. Shares that need more are rounded to the nearest that do not."""

LONGEST_SLOW_PERIOD = 1 << 18
"""Entries of the largest table that is worth building step by step for rounded shares."""


@dataclass(frozen=True, eq=False)
class ProportionalSequence:
    """One period of the sequence."""

    counts: tuple[int, ...]
    """Turns of each state in a period. [C]"""
    states: NDArray[np.uint16]
    """State of each position in the period."""
    ranks: NDArray[np.int32]
    """Earlier turns of that state in the period."""

    @staticmethod
    def create(weights: Sequence[Fraction]) -> "ProportionalSequence":
        """Build a period.

        Args:
            weights: Relative weights, at least 0, at least one above 0. [C]
        """
        counts = whole_shares(weights)
        states = _by_middles(counts)
        if not _within_one(states, counts):
            if sum(counts) > LONGEST_SLOW_PERIOD and _is_rounded(weights, counts):
                counts = whole_shares(weights, longest_period=LONGEST_SLOW_PERIOD)
            states = _by_deadlines(counts)
        order = states.argsort(kind="stable")  # positions, state by state
        firsts = np.cumsum(counts) - counts
        ranks = np.empty(len(states), np.int32)
        ranks[order] = np.arange(len(states)) - np.repeat(firsts, counts)
        return ProportionalSequence(counts, states, ranks)

    @property
    def period(self) -> int:
        """Positions after which the sequence repeats."""
        return len(self.states)

    def locate(self, position: int) -> tuple[int, int]:
        """Give the state at a position, and its turns before that position."""
        periods, place = divmod(position, len(self.states))
        state = int(self.states[place])
        return state, periods * self.counts[state] + int(self.ranks[place])

    def counts_before(self, position: int) -> list[int]:
        """Count each state's turns before a position."""
        periods, place = divmod(position, len(self.states))
        partial = np.bincount(self.states[:place], minlength=len(self.counts))
        return [
            periods * count + int(part) for count, part in zip(self.counts, partial, strict=True)
        ]


def whole_shares(
    weights: Sequence[Fraction], *, longest_period: int = LONGEST_PERIOD
) -> tuple[int, ...]:
    """Write shares as whole numbers of one period.

    Args:
        weights: Relative weights. [C]
        longest_period: Largest sum of the numbers.

    Returns:
        The exact shares if their common denominator is not too large, otherwise those of the
        denominator that comes closest.
    """
    total = sum(weights, Fraction(0))
    shares = [weight / total for weight in weights]
    denominator = math.lcm(*(share.denominator for share in shares))
    if denominator <= longest_period:
        return tuple(int(share * denominator) for share in shares)
    candidates = np.arange(1, longest_period + 1, dtype=np.float64)
    error = np.zeros(longest_period)
    for share in shares:
        scaled = candidates * float(share)
        np.maximum(error, np.abs(scaled - np.rint(scaled)) / candidates, out=error)
    period = int(error.argmin()) + 1
    counts = [math.floor(share * period) for share in shares]
    remainders = [share * period - count for share, count in zip(shares, counts, strict=True)]
    by_remainder = sorted(range(len(shares)), key=lambda state: (-remainders[state], state))
    for state in by_remainder[: period - sum(counts)]:
        counts[state] += 1
    for state, share in enumerate(shares):
        if share > 0 and counts[state] == 0:  # rounding must not turn rarely into never
            counts[counts.index(max(counts))] -= 1
            counts[state] = 1
    return tuple(counts)


def _is_rounded(weights: Sequence[Fraction], counts: tuple[int, ...]) -> bool:
    total, period = sum(weights, Fraction(0)), sum(counts)
    pairs = zip(weights, counts, strict=True)
    return any(weight / total != Fraction(count, period) for weight, count in pairs)


def _by_middles(counts: tuple[int, ...]) -> NDArray[np.uint16]:
    """Order all turns by the middle of their share of the period; fast, almost always good."""
    period = sum(counts)
    turns = [(np.arange(count) + 0.5) * (period / max(count, 1)) for count in counts]
    states = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
    return states[np.lexsort((states, np.concatenate(turns)))]


def _within_one(states: NDArray[np.uint16], counts: tuple[int, ...]) -> bool:
    """Check every prefix: the error of a state is extreme just before and after its turns."""
    period = len(states)
    for state, count in enumerate(counts):
        at = np.flatnonzero(states == state)  # prefix before the turn; after it, at + 1
        turn = np.arange(count)
        if (at * count - turn * period >= period).any():
            return False
        if ((turn + 1) * period - (at + 1) * count >= period).any():
            return False
    return True


def _by_deadlines(counts: tuple[int, ...]) -> NDArray[np.uint16]:
    """Schedule step by step, earliest deadline first; proven to stay within 1.

    Turn j (from 0) of a state with c turns in a period p may come after position floor(j p / c)
    and must come before position ceil((j + 1) p / c).
    """
    period, base = sum(counts), len(counts)
    schedule = [0] * period
    turns = [0] * base
    # A heap entry is (time, state) as one number, time * base + state: twice as fast as pairs.
    waiting = [state for state, count in enumerate(counts) if count]
    ready: list[int] = []
    for position in range(period):
        while waiting and waiting[0] < (position + 1) * base:
            state = heapq.heappop(waiting) % base
            deadline = -(-(turns[state] + 1) * period // counts[state])
            heapq.heappush(ready, deadline * base + state)
        state = heapq.heappop(ready) % base
        schedule[position] = state
        turns[state] += 1
        if turns[state] < counts[state]:
            release = turns[state] * period // counts[state]
            heapq.heappush(waiting, release * base + state)
    return np.array(schedule, np.uint16)
