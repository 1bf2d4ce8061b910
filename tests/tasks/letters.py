"""A vocabulary of single characters: every text has other ids."""

from pathlib import Path

from glm_dist.config.load import default_config_dir
from tests.data.corpora import WORDS

ASCII = "".join(map(chr, range(33, 127)))


def write_letters(folder: Path, *, words: tuple[str, ...] = ()) -> Path:
    """Write a BERT vocabulary of the size of ``tests.data.corpora``.

    Args:
        folder: Place of the file.
        words: Whole words that are one token.
    """
    tasks = default_config_dir().glob("task/*.yaml")
    text = ASCII + "".join(file.read_text(encoding="utf-8") for file in sorted(tasks))
    letters = sorted({*text.lower()} - {" ", "\n"})
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *letters, *(f"##{c}" for c in letters)]
    pieces += words
    pieces += [f"w{number}" for number in range(WORDS - len(pieces))]
    file = folder / "letters.txt"
    file.write_text("\n".join(pieces), encoding="utf-8")
    return file
