import json
import math

import pytest

from glm_dist.json_text import json_text


def test_what_is_not_finite_is_null_at_any_depth() -> None:
    content = {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf, "d": None, "e": 3}}
    text = json_text(content)
    assert json.loads(text) == {"a": [1.5, None, [None]], "b": {"c": None, "d": None, "e": 3}}


@pytest.mark.parametrize(("word", "written"), [("詞", '"詞"'), ("\ud83d", '"\\ud83d"')])
def test_text_is_unicode_or_spelled(word: str, written: str) -> None:
    assert json_text(word) == written
