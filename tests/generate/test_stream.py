"""Streamed text is the text that is written at once, whatever tokens it comes in."""

from random import Random

import pytest

from glm_dist.generate.complete import _GrowingAnswer, _until

PIECES = (" ", "a", "b c", " stop", "st", "op", "\n", ".", "\u00e9", "   ")


class Tokens:
    """A tokenizer of bytes: a character may come in halves."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("stops", [(), ("stop",), ("a b", "\u00e9.", "op ")], ids=str)
def test_pieces_join_to_the_answer(stops: tuple[str, ...]) -> None:
    rng = Random(0)
    for _ in range(2000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 6)))
        ids = list(text.encode()) + ([0xC3] if rng.random() < 0.2 else [])
        answer, shown = _GrowingAnswer(Tokens(), stops), ""  # type: ignore[arg-type]
        for token in ids:
            shown += answer.add(token)
        shown += answer.close()
        assert shown == f"[{_until(Tokens().decode(ids), stops).strip()}]"
