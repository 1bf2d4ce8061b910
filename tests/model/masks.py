"""The dense masks that no kernel of ours is given: what attention must equal."""

from collections.abc import Sequence

import torch

from glm_dist.data.rows import Segment


def dense_mask(rows: Sequence[Sequence[Segment]], row_length: int) -> torch.Tensor:
    """Build the attention mask for every pair [b, s, s].

    Query i sees key j iff both lie in one segment and j <= i or j is in that segment's Part A.
    What the segments of a row leave over is padding, which sees padding before it.
    """
    masks = []
    for row in rows:
        segment, part_a = [], []
        for number, (length, prefix) in enumerate(row):
            segment += [number] * length
            part_a += [True] * prefix + [False] * (length - prefix)
        padding = row_length - len(segment)
        segment += [-1] * padding
        part_a += [False] * padding
        masks.append(
            [
                [segment[i] == segment[j] and (j <= i or part_a[j]) for j in range(row_length)]
                for i in range(row_length)
            ]
        )
    return torch.tensor(masks)


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention written out [b, a, s, d]: scores, mask, softmax, sum."""
    scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(dim=3) @ value
