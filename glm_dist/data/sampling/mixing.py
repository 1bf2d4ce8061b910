"""Row index -> corpus, in exact proportion to any weights, by arithmetic alone.

Among the first k rows a pair of corpora of weights a and b has round(k a / (a + b)) and the rest.
More corpora are paired to a binary tree, the two lightest first (Huffman's tree); a pair divides
the rows that the tree above gives it. Nothing is tabulated, so weights may have any range.

Why a row belongs to exactly one corpus: if k grows by one, round(k a / (a + b)) grows by 0 or 1,
as a / (a + b) is at most 1; so does the rest, and exactly one of them grows.

Why no corpus is ever more than 1.68 rows off its share: dividing n rows of a pair, each part is
within 1/2 of its share of n, and hands its error down in proportion to the weights below it. A
corpus of weight w whose nodes, from itself up to below the root, have the weights W1 = w, W2, … is
off by at most 1/2 (w/W1 + w/W2 + …). When two nodes were paired they were the two lightest, so the
node that later joins them weighs no less than either: W3 >= W2 + W1, and likewise further up. The
weights grow at least like the Fibonacci numbers 1, 1, 2, 3, 5, …, whose reciprocals add up to less
than 3.36. With two corpora the bound is 0.5, with three 1, with four 1.25, with five 1.42. Taking
off one corpus after the other, from the heaviest on, has no bound that holds for any number.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from glm_dist.config.schema import DataConfig

MOST_ROWS_OFF = 1.68
"""Largest difference between the rows of a corpus and its share of them, at any row."""


@dataclass(frozen=True)
class _Leaf:
    weight: int
    first: int
    """Its number."""


@dataclass(frozen=True)
class _Pair:
    weight: int
    first: int
    """Smallest number below."""
    heavy: "_Pair | _Leaf"
    light: "_Pair | _Leaf"

    def heavy_before(self, turn: int) -> int:
        """Count the turns of the heavier part before a turn: nearest to its share, halves up."""
        return (2 * turn * self.heavy.weight + self.weight) // (2 * self.weight)


class Turns:
    """Turns 0, 1, 2, … without end, each taken by one of several in proportion to their weights."""

    def __init__(self, weights: Sequence[Fraction]) -> None:
        """Pair those with a weight above 0.

        Args:
            weights: Relative weights, at least 0, at least one above 0. [C]
        """
        total = sum(weights, Fraction(0))
        self.shares = tuple(weight / total for weight in weights)
        """Exact share of each. [C]"""
        scale = math.lcm(*(weight.denominator for weight in weights))
        nodes: list[tuple[int, int, _Pair | _Leaf]] = [
            (int(weight * scale), -number, _Leaf(int(weight * scale), number))
            for number, weight in enumerate(weights)
            if weight > 0
        ]
        heapq.heapify(nodes)
        while len(nodes) > 1:  # of equal weights the earlier counts as the heavier
            _, _, light = heapq.heappop(nodes)
            _, _, heavy = heapq.heappop(nodes)
            pair = _Pair(
                weight=heavy.weight + light.weight,
                first=min(heavy.first, light.first),
                heavy=heavy,
                light=light,
            )
            heapq.heappush(nodes, (pair.weight, -pair.first, pair))
        self._root = nodes[0][2]

    def locate(self, turn: int) -> tuple[int, int]:
        """Give who has a turn, and how many turns it had before."""
        node = self._root
        while isinstance(node, _Pair):
            before = node.heavy_before(turn)
            if node.heavy_before(turn + 1) > before:
                node, turn = node.heavy, before
            else:
                node, turn = node.light, turn - before
        return node.first, turn

    def counts_before(self, turn: int) -> list[int]:
        """Count the turns of each before a turn."""
        counts = [0] * len(self.shares)
        nodes = [(self._root, turn)]
        while nodes:
            node, turn = nodes.pop()
            if isinstance(node, _Leaf):
                counts[node.first] = turn
            else:
                before = node.heavy_before(turn)
                nodes += [(node.heavy, before), (node.light, turn - before)]
        return counts


@dataclass(frozen=True, eq=False)
class BlendStage:
    """Rows with constant weights."""

    first_row: int
    turns: Turns
    before: tuple[int, ...]
    """Rows of each corpus in earlier stages. [C]"""


class Blend:
    """Turns of all corpora, from row 0 without end.

    A stage begins at a recorded row; what was read before is a closed formula, so a later stage
    changes no earlier row.
    """

    def __init__(self, weights: Sequence[Fraction], later: Sequence[tuple[int, list[Fraction]]]):
        """Plan the stages.

        Args:
            weights: Relative weight of each corpus from row 0 on. [C]
            later: First row and weights of each later stage, in rising order.
        """
        self.stages = [BlendStage(0, Turns(weights), (0,) * len(weights))]
        for first_row, changed in later:
            before = tuple(self.counts_before(first_row))
            self.stages.append(BlendStage(first_row, Turns(changed), before))

    def locate(self, row: int) -> tuple[int, int]:
        """Give a row's corpus, and the rows of that corpus before it."""
        stage = self._stage(row)
        corpus, rank = stage.turns.locate(row - stage.first_row)
        return corpus, stage.before[corpus] + rank

    def counts_before(self, row: int) -> list[int]:
        """Count the rows of each corpus before a row."""
        stage = self._stage(row)
        counts = stage.turns.counts_before(row - stage.first_row)
        return [past + count for past, count in zip(stage.before, counts, strict=True)]

    def wanted_before(self, row: int) -> list[Fraction]:
        """Add up the exact share that each corpus has of the rows before a row."""
        wanted = [Fraction(0)] * len(self.stages[0].before)
        ends = [*(stage.first_row for stage in self.stages[1:]), row]
        for stage, end in zip(self.stages, ends, strict=True):
            rows = max(0, min(end, row) - stage.first_row)
            for corpus, share in enumerate(stage.turns.shares):
                wanted[corpus] += rows * share
        return wanted

    def shares(self, row: int) -> list[Fraction]:
        """Give the exact share of each corpus in the stage of a row."""
        return list(self._stage(row).turns.shares)

    def _stage(self, row: int) -> BlendStage:
        number = bisect_right(self.stages, row, key=lambda stage: stage.first_row)
        return self.stages[number - 1]


def make_blend(config: DataConfig, num_tokens: Sequence[int]) -> Blend:
    """Blend the corpora of a configuration.

    Args:
        config: Weights and stages; checked already.
        num_tokens: Training tokens of each corpus, its weight where none is given.
    """
    corpora = list(config.corpora.values())
    first = [
        Fraction(tokens) if corpus.weight is None else as_written(corpus.weight)
        for corpus, tokens in zip(corpora, num_tokens, strict=True)
    ]
    later = [
        (row, [as_written(corpus.stage_weights[stage]) for corpus in corpora])
        for stage, row in enumerate(config.stage_starts)
    ]
    return Blend(first, later)


def as_written(number: float) -> Fraction:
    """Read a number as the user wrote it: 0.3 is three tenths."""
    return Fraction(str(number))
