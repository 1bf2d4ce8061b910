"""A corpus of 10^12 tokens in 10^9 documents opens like a small one; memory stays flat."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.data.corpus.indexed import HEADER, MAGIC, bin_path, idx_path
from glm_dist.data.corpus.splits import split_documents
from tests.data.corpora import write_vocabulary

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = 10**9
TOKENS_EACH = 1000

SCRIPT = """
import json, resource, sys
from pathlib import Path
from glm_dist.data.row_source import open_row_source
from tests.data.corpora import make_config
folder = Path(sys.argv[1])
source = open_row_source(make_config(folder, {"huge": str(folder / "huge")}))
row = source.row(0)
far = source.row(10**15)
print(json.dumps({
    "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "rows_per_round": source.blend()[0].rows_per_round,
    "length": len(row.tokens),
    "index": far.index,
}))
"""


def write_sparse_corpus(prefix: Path) -> None:
    """Describe 2 TB of tokens: holes, and the index entries at the edges of the splits."""
    try:
        with bin_path(prefix).open("wb") as stream:
            stream.truncate(2 * DOCUMENTS * TOKENS_EACH)
    except OSError as error:
        pytest.skip(f"no sparse files of 2 TB here ({error})")
    split = split_documents(DOCUMENTS, validation_share=0.05, test_share=0.001)
    ranges = split.training + split.validation + split.test
    edges = sorted({edge for part in ranges for edge in part} | {DOCUMENTS - 1})
    offsets_at = HEADER.size + 4 * DOCUMENTS
    starts_at = offsets_at + 8 * DOCUMENTS
    with idx_path(prefix).open("wb") as stream:
        stream.write(HEADER.pack(MAGIC, 1, 8, DOCUMENTS, DOCUMENTS + 1))
        stream.truncate(starts_at + 8 * (DOCUMENTS + 1))
        stream.seek(HEADER.size + 4 * (DOCUMENTS - 1))
        stream.write(struct.pack("<i", TOKENS_EACH))
        for edge in edges:
            stream.seek(starts_at + 8 * edge)
            stream.write(struct.pack("<q", edge))
            if edge < DOCUMENTS:
                stream.seek(offsets_at + 8 * edge)
                stream.write(struct.pack("<q", 2 * TOKENS_EACH * edge))


def run(script: str, *arguments: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_a_trillion_tokens_open_without_being_read(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    write_sparse_corpus(tmp_path / "huge")
    found = run(SCRIPT, str(tmp_path))

    # The index alone has 20 GB: whoever passes through it holds more than this.
    assert found["rss_mib"] < 1024
    # 949 million training documents of 1000 tokens; a row of 576 reads about 530 of them.
    assert found["rows_per_round"] == pytest.approx(949e9 / 530, rel=0.05)
    assert found["length"] == 576
    assert found["index"] == 10**15


PREPARE = """
import json, resource, sys
from glm_dist.config.schema import TokenizerKind
from glm_dist.data.prepare.prepare import prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
if __name__ == "__main__":
    choice = TokenizerSpec(TokenizerKind.bert, sys.argv[1])
    prepare([sys.argv[2]], sys.argv[3], tokenizer=choice, options=TextOptions())
    print(json.dumps({"rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


@pytest.mark.slow
def test_memory_of_preparation_does_not_grow_with_the_input(tmp_path: Path) -> None:
    vocabulary = write_vocabulary(tmp_path)
    line = json.dumps({"text": " ".join(f"w{10 + n % 900}" for n in range(200))}) + "\n"
    memory = {}
    for megabytes in (10, 500):
        file = tmp_path / f"{megabytes}.jsonl"
        with file.open("w") as stream:
            for _ in range(megabytes * 1_000_000 // len(line)):
                stream.write(line)
        found = run(PREPARE, str(vocabulary), str(file), str(tmp_path / f"out{megabytes}"))
        memory[megabytes] = found["rss_mib"]

    assert memory[500] <= 1.1 * memory[10]
