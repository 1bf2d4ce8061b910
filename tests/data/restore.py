"""The inverse of GLM's layout: the text a row was made of, from the row alone."""

from glm_dist.data.rows import Row
from tests.data.corpora import EOP, SOP


def restored(row: Row) -> list[int]:
    """Put the content of every blank back in the place of its mask.

    Independent of the package: uses only what a reader of the paper knows about tokens, targets
    and positions.
    """
    answers: dict[int, list[int]] = {}
    for index in range(row.prefix_length, row.num_real_tokens):
        place = int(row.positions[index])
        if row.tokens[index] == SOP:
            assert place not in answers, "two blanks share a mask"
            answers[place] = []
        answers[place].append(int(row.targets[index]))
    text: list[int] = []
    for index in range(row.prefix_length):
        if index in answers:
            answer = answers[index]
            text += answer[:-1] if answer[-1] == EOP else answer
        else:
            text.append(int(row.tokens[index]))
    return text
