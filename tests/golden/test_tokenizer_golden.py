"""Official special ids of each tokenizer kind, from the vocabularies in the reference folder."""

import json
import os
from pathlib import Path

import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, open_tokenizer

pytestmark = pytest.mark.golden

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(os.environ.get("GLM_REFERENCE_DIR", ROOT / "../shared/reference")).resolve()


def _open(
    kind: TokenizerKind, pattern: str, *, task_masks: bool = True, fixed: bool = True
) -> Tokenizer:
    found = sorted(REFERENCE.glob(f"tokenizers/{pattern}"))
    if not found:
        pytest.skip(f"no tokenizers/{pattern} in GLM_REFERENCE_DIR ({REFERENCE})")
    return open_tokenizer(
        TokenizerSpec(kind, str(found[0]), task_masks=task_masks, fixed_task_masks=fixed)
    )


# (pad, eos, cls, sep, mask, unk, sop, eop, gmask, smask, dBLOCK), vocabulary size
OFFICIAL = [
    pytest.param(
        TokenizerKind.bert,
        "*vocab.txt",
        True,
        (0, 0, 101, 102, 103, 100, 30522, 30523, 30524, 30525, 30526),
        30526,
        id="bert",
    ),
    pytest.param(
        TokenizerKind.gpt2,
        "*gpt2-vocab.json",
        True,
        (50256, 50256, 50259, 50261, 50260, 50262, 50257, 50258, 50263, 50264, 50265),
        50265,
        id="gpt2",
    ),
    pytest.param(
        TokenizerKind.chinese_sentencepiece,
        "*.model",
        True,
        (50000, 50000, 50002, 50001, 50003, 50004, 50006, 50007, 50009, 50008, 50010),
        50010,
        id="chinese-fixed",
    ),
    pytest.param(
        TokenizerKind.chinese_sentencepiece,
        "*.model",
        False,
        (50000, 50000, 50002, 50001, 50003, 50004, 50006, 50007, 50007, 50008, 50009),
        50009,
        id="chinese-unfixed",
    ),
]


@pytest.mark.parametrize(("kind", "pattern", "fixed", "ids", "size"), OFFICIAL)
def test_special_ids_are_the_official_ones(
    kind: TokenizerKind, pattern: str, fixed: bool, ids: tuple[int, ...], size: int
) -> None:
    tokenizer = _open(kind, pattern, fixed=fixed)
    special = tokenizer.special

    found = (special.pad, special.eos, special.cls, special.sep, special.mask, special.unk)
    found += (special.sop, special.eop, special.gmask, special.smask, special.block_mask)
    assert found == ids
    assert tokenizer.vocab_size == size


@pytest.mark.parametrize(
    ("kind", "pattern", "size"),
    [
        pytest.param(TokenizerKind.bert, "*vocab.txt", 30524, id="bert"),
        pytest.param(TokenizerKind.gpt2, "*gpt2-vocab.json", 50263, id="gpt2"),
    ],
)
def test_without_task_masks_there_are_two_ids_less(
    kind: TokenizerKind, pattern: str, size: int
) -> None:
    tokenizer = _open(kind, pattern, task_masks=False)

    assert tokenizer.vocab_size == size
    assert tokenizer.special.gmask == tokenizer.special.mask


def test_unfixed_chinese_scheme_shows_the_shared_id_as_the_mask() -> None:
    tokenizer = _open(TokenizerKind.chinese_sentencepiece, "*.model", fixed=False)

    assert tokenizer.decode([50007]) == "[gMASK]"


def test_chinese_model_keeps_the_space_behind_a_mask() -> None:
    tokenizer = _open(TokenizerKind.chinese_sentencepiece, "*.model")

    assert tokenizer.decode(tokenizer.encode("in the [MASK] house")) == "in the[MASK] house"


@pytest.mark.parametrize("file", sorted(REFERENCE.glob("collator/*.json")), ids=lambda f: f.stem)
def test_collator_files_name_the_same_special_ids(file: Path) -> None:
    content = json.loads(file.read_text())
    kinds = {
        "bert": (TokenizerKind.bert, "*vocab.txt"),
        "gpt2": (TokenizerKind.gpt2, "*gpt2-vocab.json"),
        "chinese": (TokenizerKind.chinese_sentencepiece, "*.model"),
    }
    if content["tokenizer"] not in kinds:
        pytest.skip(f"no vocabulary here for tokenizer {content['tokenizer']!r}")
    kind, pattern = kinds[content["tokenizer"]]
    shares_id = content["special"].get("gmask") == content["special"]["eop"]
    special = _open(kind, pattern, fixed=not shares_id).special

    assert {name: getattr(special, name) for name in content["special"]} == content["special"]
