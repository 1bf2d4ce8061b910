"""Text in, the same text out with its blanks filled, laid out as the run was trained."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers

from glm_dist.config.schema import (
    CorruptionConfig,
    PretrainingTask,
    TokenizerConfig,
    TokenizerKind,
)
from glm_dist.data.row_source import open_row_source
from glm_dist.data.tokenizer.tokenizer import (
    Tokenizer,
    TokenizerSpec,
    load_tokenizer,
    open_tokenizer,
)
from glm_dist.errors import DataError, GlmDistError
from glm_dist.generate.complete import not_text
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import Data, Room, make_prompt, read_prompt, read_run_prompt
from glm_dist.generate.prompt_checks import check_writes
from glm_dist.generate.sampling import Cut
from tests.data.corpora import (
    CLS,
    EOS,
    GMASK,
    MASK,
    SMASK,
    SOP,
    VOCAB_SIZE,
    make_config,
    make_documents,
    write_corpus,
    write_vocabulary,
)
from tests.messages import Says

ALL = CorruptionConfig(
    task=PretrainingTask.blank_infilling,
    span_share=0.5,
    sentence_share=0.3,
    document_share=0.2,
    short_share=0.0,
    single_span_share=0.0,
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Words w6 … w999 and GLM's special tokens."""
    return load_tokenizer(
        TokenizerConfig(
            kind=TokenizerKind.bert,
            path=str(write_vocabulary(tmp_path_factory.mktemp("vocabulary"))),
            vocab_size=VOCAB_SIZE,
            task_masks=True,
        )
    )


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that changes letters, forgets spaces, and knows few words."""
    library = Library(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    file = tmp_path_factory.mktemp("letters") / "tokenizer.json"
    library.save(str(file))
    return open_tokenizer(TokenizerSpec(TokenizerKind.huggingface, str(file)))


def test_a_context_is_closed_unless_it_ends_in_an_open_tail(words: Tokenizer) -> None:
    assert read_prompt("w10 [MASK] w11", words, ALL).tokens == [CLS, 10, MASK, 11, EOS]
    assert read_prompt("w10 w11 [gMASK]", words, ALL).tokens == [CLS, 10, 11, GMASK]
    both = read_prompt("[sMASK] w10 [MASK]", words, ALL)
    assert (both.tokens, both.mask_indices) == ([CLS, SMASK, 10, MASK, EOS], [1, 3])


def test_text_without_a_blank_is_continued(words: Tokenizer) -> None:
    prompt = read_prompt("w10 w11", words, ALL)

    assert (prompt.tokens, prompt.mask_indices) == ([CLS, 10, 11, GMASK], [3])
    assert prompt.filled(["w12"]) == "w10 w11 [w12]"


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("W20, Hello naïve [MASK]!", "W20, Hello naïve [x]!"),
        ("a<|endoftext|>b [MASK] c", "a<|endoftext|>b [x] c"),
        ("\ta  [MASK]\t\tb\u3000[sMASK]", "\ta  [x]\t\tb\u3000[y]"),
        ("a\u2581b[MASK]\u2581", "a\u2581b[x]\u2581"),
        ("[CLS] ＡＢＣ [UNK][MASK][MASK]", "[CLS] ＡＢＣ [UNK][x][y]"),
        ("line\n\n[MASK]\nline \n", "line\n\n[x]\nline \n"),
    ],
)
@pytest.mark.parametrize("kind", ["words", "letters"])
def test_all_but_the_blanks_comes_back_as_typed(
    text: str, filled: str, kind: str, request: pytest.FixtureRequest
) -> None:
    prompt = read_prompt(text, request.getfixturevalue(kind), ALL)

    assert prompt.filled(["x", "y"][: len(prompt.mask_indices)]) == filled


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("w10 [gMASK]", {"span_share": 0.5, "sentence_share": 0.5, "document_share": 0.0}),
        ("w10", {"span_share": 1.0, "sentence_share": 0.0, "document_share": 0.0}),
        ("w10 [sMASK] w11", {"sentence_share": 0.0, "document_share": 0.5}),
        ("w10 [MASK]", {"span_share": 0.0, "document_share": 1.0, "sentence_share": 0.0}),
        ("w10 [gMASK]", {"single_span_share": 1.0}),
    ],
)
def test_a_mask_that_was_never_trained_is_refused(
    text: str, changes: dict[str, float], words: Tokenizer, says: Says
) -> None:
    with pytest.raises(DataError) as caught:
        read_prompt(text, words, replace(ALL, **changes))
    says(caught.value)
    for name in caught.value.fix.split(" or "):
        read_prompt(f"w10 {name}", words, replace(ALL, **changes))


WRITING = (PretrainingTask.blank_infilling, PretrainingTask.causal_lm)


@pytest.mark.parametrize("task", list(PretrainingTask))
def test_a_run_of_another_task_is_refused(task: PretrainingTask) -> None:
    corruption = replace(ALL, task=task)
    if task in WRITING:
        check_writes(corruption, run="runs/a")
        return
    with pytest.raises(
        GlmDistError, match=rf"runs/a was trained with corruption\.task={task.name}"
    ):
        check_writes(corruption, run="runs/a")


def test_a_causal_run_continues_text_and_fills_no_blanks(words: Tokenizer, says: Says) -> None:
    causal = replace(ALL, task=PretrainingTask.causal_lm)
    prompt = read_prompt("w10 w11", words, causal)
    assert (prompt.tokens, prompt.mask_indices) == ([CLS, 10, 11], [2])
    assert prompt.filled(["w12"]) == "w10 w11 [w12]"
    cut = read_prompt(TEN, words, causal, room=Room(4, Cut.right))
    assert cut.tokens == [CLS, 17, 18, 19]
    data = make_prompt([Data("[MASK]"), " w10"], words, causal, room=Room(99))
    assert data.tokens == [CLS, *words.encode_document("[MASK]"), 10]
    with pytest.raises(DataError) as caught:
        read_prompt("w10 [MASK]", words, causal)
    says(caught.value)


def test_task_masks_need_a_tokenizer_that_has_them(tmp_path: Path, says: Says) -> None:
    plain = load_tokenizer(
        TokenizerConfig(
            kind=TokenizerKind.bert,
            path=str(write_vocabulary(tmp_path)),
            vocab_size=VOCAB_SIZE - 2,
            task_masks=False,
        )
    )
    only_documents = replace(ALL, span_share=0.0, sentence_share=0.0, document_share=1.0)

    assert read_prompt("w10 [MASK]", plain, only_documents).tokens[2] == MASK
    with pytest.raises(DataError) as caught:
        read_prompt("w10 [gMASK]", plain, ALL)
    says(caught.value)


def test_bytes_that_are_no_text_are_refused(words: Tokenizer) -> None:
    text = b"w10 \xff [MASK]".decode(errors="surrogateescape")  # as arguments arrive

    with pytest.raises(DataError, match="UTF-8"):
        read_prompt(text, words, ALL)


@pytest.mark.parametrize("option", ["sentinels", "no_block_positions", "keep_span_order"])
def test_blanks_are_laid_out_as_in_the_rows_of_the_run(option: str, tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        {"text": write_corpus(tmp_path, "text", make_documents(20))},
        shares=(1.0, 0.0, 0.0),
        row_length=128,
        sentinel_pairs=20,
        single_span_share=0.0,
        short_share=0.0,
        **{"keep_span_order": True, option: True},
    )
    tokenizer = load_tokenizer(config.tokenizer)
    part_b = PartB.of(config, tokenizer.special)
    row = open_row_source(config).row(0)
    part_a = row.tokens[: row.prefix_length]
    masks = {MASK, *(tokenizer.special.first_sentinel + 2 * i for i in range(20))}
    indices = [i for i, token in enumerate(part_a) if token in masks]

    # The text of Part A, with every blank written as a user would.
    ids = [MASK if token in masks else token for token in part_a[1:]]
    text = tokenizer.decode([token for token in ids if token not in (CLS, EOS)])
    written = read_prompt(text, tokenizer, config.corruption)
    kept = [token for token in part_a[1:] if token not in (CLS, EOS)]
    assert written.tokens == [CLS, *kept, EOS]

    number, step = -1, 0
    for i in range(row.prefix_length, row.num_real_tokens):
        starts = row.tokens[i] == SOP or row.tokens[i] > tokenizer.special.first_sentinel
        number, step = (number + 1, 1) if starts else (number, step + 1)
        if starts:
            assert row.tokens[i] == part_b.first([], number)
        expected = (row.positions[i], row.block_positions[i])
        assert part_b.positions(indices[number], step) == expected
    assert number == len(indices) - 1 > 3


def test_structure_is_no_text(words: Tokenizer) -> None:
    banned = not_text(words.special, VOCAB_SIZE)

    assert {CLS, EOS, MASK, GMASK, SOP} <= set(banned)
    assert max(banned) < VOCAB_SIZE
    assert not {10, 11, 12} & set(banned)


MASKS = {MASK, SMASK, GMASK}
TEN = " ".join(f"w{10 + n}" for n in range(10))


@pytest.mark.parametrize(
    ("text", "cut", "kept"),
    [
        (f"[MASK] {TEN}", Cut.left, [MASK, 10, 11, 12]),
        (f"{TEN} [MASK]", Cut.left, [17, 18, 19, MASK]),
        (f"{TEN} [MASK]", Cut.right, [17, 18, 19, MASK]),
        (f"{TEN} [MASK] {TEN}", Cut.left, [MASK, 10, 11, 12]),
        (f"{TEN} [MASK] {TEN}", Cut.right, [17, 18, 19, MASK]),
        (f"[MASK] w10 w11 [MASK] {TEN}", Cut.left, [MASK, 10, 11, MASK]),
        (f"{TEN} w20 w21 w22 [gMASK]", Cut.right, [19, 20, 21, 22, GMASK]),
    ],
)
def test_a_long_text_is_cut_but_never_its_blanks(
    text: str, cut: Cut, kept: list[int], words: Tokenizer
) -> None:
    ends = [] if kept[-1] == GMASK else [EOS]
    prompt = read_prompt(text, words, ALL, room=Room(6, cut))

    assert prompt.tokens == [CLS, *kept, *ends]
    assert [prompt.tokens[n] for n in prompt.mask_indices] == [t for t in kept if t in MASKS]
    assert prompt.filled(["x"] * len(prompt.mask_indices)).startswith(text.partition("[")[0])


@pytest.mark.parametrize(
    ("text", "cut"), [(f"{TEN} [MASK]", None), (f"[MASK] {TEN} [MASK]", Cut.left)]
)
def test_a_text_that_cannot_be_cut_is_refused(
    text: str, cut: Cut | None, words: Tokenizer, says: Says
) -> None:
    with pytest.raises(DataError) as caught:
        read_prompt(text, words, ALL, room=Room(6, cut))
    says(caught.value)


def test_data_in_a_pattern_holds_no_blanks_and_gives_way_first(words: Tokenizer) -> None:
    parts = [Data("w10 [MASK] w11"), " w6 [MASK] w7", Data(TEN)]
    whole = make_prompt(parts, words, ALL, room=Room(99))

    assert whole.tokens.count(MASK) == 1
    assert whole.mask_indices == [whole.tokens.index(MASK)]
    data = len(words.encode_document("w10 [MASK] w11"))
    literal = [6, MASK, 7]
    for cut, kept in ((Cut.right, [*range(10, 16)]), (Cut.left, [*range(14, 20)])):
        prompt = make_prompt(parts, words, ALL, room=Room(2 + data + 3 + 6, cut))
        assert prompt.tokens[1 + data :] == [*literal, *kept, EOS]
    shortest = make_prompt(parts, words, ALL, room=Room(5, Cut.right))
    assert shortest.tokens == [CLS, *literal, EOS]
    for room in (Room(4, Cut.right), Room(19)):
        with pytest.raises(DataError, match="more than the"):
            make_prompt(parts, words, ALL, room=room)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w1 {*} w2 {*} [MASK]", [CLS, "w1", -3, -2, "w2", -1, MASK, EOS]),  # three over two places
        ("w1 [MASK]", [CLS, -3, -2, -1, "w1", MASK, EOS]),
    ],
)
def test_learned_tokens_have_the_ids_behind_the_word_table(
    text: str, expected: list[int | str], words: Tokenizer, tmp_path: Path
) -> None:
    config = make_config(tmp_path, {})
    config = replace(config, model=replace(config.model, prompt_tokens=3))
    end = config.padded_vocab_size + 3  # learned tokens are counted from here
    ids = [
        words.encode(each)[0] if isinstance(each, str) else each + end * (each < 0)
        for each in expected
    ]

    assert read_run_prompt(text, words, config, room=Room(64)).tokens == ids
