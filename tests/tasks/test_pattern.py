"""Patterns filled with fields, and the prompts they become."""

import pytest

from glm_dist.config.patterns import FILTERS, Mark
from glm_dist.config.schema import CorruptionConfig, PretrainingTask
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import DataError
from glm_dist.generate.prompt import PLAIN, Data, Frame, Part, Room, make_prompt, read_prompt
from glm_dist.generate.sampling import Cut
from glm_dist.tasks.pattern import Pattern
from tests.data.corpora import CLS, EOS, GMASK, MASK, SMASK
from tests.generate.test_prompt import ALL
from tests.messages import Says

ODD = ("[MASK]", "{x}", "{{", "", " ", "不是[MASK]。", "a  b")
"""Texts of fields that look like structure."""


def test_fields_are_data_whatever_they_hold() -> None:
    for text in ODD:
        parts = Pattern("{a}: [MASK].").parts({"a": text})
        assert parts == [text, ": [MASK]."]
        assert [isinstance(part, Data) for part in parts] == [True, False]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("no_stop", "What?!", "What"),
        ("no_stop", "...", ""),
        ("lower_first", "He Ran", "he Ran"),
        ("lower_first", "", ""),
        ("upper_first", "élan", "Élan"),
        ("strip", " a b ", "a b"),
        ("strip_end", " a ", " a"),
        ("keep_end", "a", "a"),
        ("fixed", "a", "a"),
    ],
)
def test_a_filter_changes_the_text(name: str, text: str, expected: str) -> None:
    assert Pattern(f"{{a:{name}}}").filled({"a": text}) == expected


def test_every_filter_has_a_test() -> None:
    (mark,) = (
        each
        for each in test_a_filter_changes_the_text.pytestmark  # type: ignore[attr-defined]
        if each.name == "parametrize"
    )
    assert {case[0] for case in mark.args[1]} == set(FILTERS)


def test_filters_act_in_order_and_a_space_stays_in_front() -> None:
    assert Pattern("a {b:strip:no_stop}").parts({"b": " Yes. "}) == ["a", " Yes"]


def test_a_group_is_one_part_that_gives_way_with_its_fields() -> None:
    pattern = Pattern('{{"{a}" / "{b}"}}{{ of {c}}}', shorten=["a"])
    first, second = pattern.parts({"a": "x", "b": "[MASK]", "c": 3})
    assert (first, second) == ('"x" / "[MASK]"', " of 3")
    assert isinstance(first, Data)
    assert first.shortens
    assert isinstance(second, Data)
    assert not second.shortens


def test_a_target_may_be_a_list() -> None:
    assert Pattern(" {a:strip}").texts({"a": ["x ", "y"]}) == [" x", " y"]
    assert Pattern("{a}.").texts({"a": "x"}) == ["x."]


@pytest.mark.parametrize("fields", [{"b": "x"}, {"a": None}, {"a": ["x"]}, {"a": True}], ids=str)
def test_a_field_that_is_no_text_is_named(fields: dict[str, object], says: Says) -> None:
    with pytest.raises(DataError) as caught:
        Pattern("{a}").parts(fields)
    says(caught.value)


def tokens(
    parts: list[Part],
    words: Tokenizer,
    room: int = 99,
    frame: Frame = PLAIN,
    corruption: CorruptionConfig = ALL,
) -> list[int]:
    return make_prompt(parts, words, corruption, room=Room(room, Cut.right), frame=frame).tokens


def text(first: int, count: int, *, keep_end: bool = False, shortens: bool = True) -> Data:
    numbers = range(first, first + count)
    joined = " ".join(f"w{number}" for number in numbers)
    return Data(joined, keep_end=keep_end, shortens=shortens)


def test_the_side_with_more_to_give_is_shortened_from_its_end(words: Tokenizer) -> None:
    parts = [text(10, 3), Mark.border, "[MASK]", text(20, 5)]
    # 5 > 3: two leave the right side; at 3 to 3 the right one gives again, then the left one.
    assert tokens(parts, words, 9) == [CLS, 10, 11, 12, MASK, 20, 21, 22, EOS]
    assert tokens(parts, words, 8) == [CLS, 10, 11, 12, MASK, 20, 21, EOS]
    assert tokens(parts, words, 7) == [CLS, 10, 11, MASK, 20, 21, EOS]


def test_the_last_part_of_a_side_gives_way_first(words: Tokenizer) -> None:
    parts: list[Part] = [text(10, 5), "[MASK]", text(20, 2), text(30, 1, shortens=False)]
    assert tokens(parts, words, 10) == [CLS, 10, 11, 12, 13, 14, MASK, 20, 30, EOS]
    assert tokens(parts, words, 8) == [CLS, 10, 11, 12, 13, MASK, 30, EOS]


def test_a_part_can_keep_its_end(words: Tokenizer) -> None:
    parts: list[Part] = [text(10, 5, keep_end=True), "[sMASK]"]
    assert tokens(parts, words, 6) == [CLS, 12, 13, 14, SMASK, EOS]


def test_a_prompt_that_cannot_be_shortened_enough_is_refused(words: Tokenizer) -> None:
    with pytest.raises(DataError, match="has 9 tokens, more than the 8"):
        tokens([text(10, 6, shortens=False), "[MASK]", text(20, 3)], words, 8)


def test_frames_decide_about_ends(words: Tokenizer) -> None:
    parts: list[Part] = [text(10, 1), "[MASK]"]
    assert tokens(parts, words) == [CLS, 10, MASK, EOS]
    assert tokens(parts, words, frame=Frame(opens=False, closes=False)) == [10, MASK]
    no_blank: list[Part] = [text(10, 1), "[SEP]", text(11, 1)]
    sep = words.special.sep
    assert tokens(no_blank, words) == [CLS, 10, sep, 11, GMASK]
    assert tokens(no_blank, words, frame=Frame(continues=False)) == [CLS, 10, sep, 11, EOS]


def test_learned_tokens_are_spread_over_the_slots(words: Tokenizer) -> None:
    parts: list[Part] = [Mark.slot, "w10", Mark.slot, "[MASK]"]
    three = Frame(slots=(2000, 2001, 2002))
    # Official: ceil(3 / 2) = 2 in each slot as long as there are any.
    assert tokens(parts, words, frame=three) == [CLS, 2000, 2001, 10, 2002, MASK, EOS]
    assert tokens(["w10", "[MASK]"], words, frame=three) == [CLS, 2000, 2001, 2002, 10, MASK, EOS]
    assert tokens(parts, words) == [CLS, 10, MASK, EOS]


def test_a_mask_that_finetuning_trains_is_no_mistake(words: Tokenizer) -> None:
    spans = CorruptionConfig(
        task=PretrainingTask.blank_infilling,
        span_share=1.0,
        sentence_share=0.0,
        document_share=0.0,
        short_share=0.0,
        single_span_share=0.0,
    )
    parts: list[Part] = [text(10, 1), "[sMASK]"]
    with pytest.raises(DataError, match="never trained"):
        make_prompt(parts, words, spans, room=Room(9))
    made = make_prompt(parts, words, spans, room=Room(9), learned=["[sMASK]"])
    assert made.tokens == [CLS, 10, SMASK, EOS]
    typed = read_prompt("w10 [sMASK]", words, spans, learned=["[sMASK]"])
    assert typed.tokens == made.tokens
