"""The first training row of a run, for a page: its text, blanks, positions, and who sees whom."""

from pathlib import Path

from glm_dist.checkpoint.manifest import Json
from glm_dist.config.schema import RunConfig
from glm_dist.data.row_parts import SegmentParts, take_apart
from glm_dist.data.row_source import open_row_source
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.stored import load_stored_tokenizer
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.tasks.finetune import examples_of

LONGEST_TEXT = 20_000
"""Characters of a piece of text; more are cut."""


def row_facts(config: RunConfig, run: Path) -> dict[str, Json]:
    """Build and describe a row: the first of training, or that of the first example.

    Args:
        config: Of the run, as it was saved.
        run: The run folder, which may hold the tokenizer.

    Raises:
        GlmDistError: Corpora, examples or tokenizer are not on this machine.
    """
    tokenizer = load_stored_tokenizer(config.tokenizer, run, checkpoint={})
    examples = examples_of(config)
    if examples is None:
        row = open_row_source(config, tokenizer).row(0)
    else:
        row = examples.rows(examples.example(examples.first))[0]
    return describe_row(row, tokenizer)


def describe_row(row: Row, tokenizer: Tokenizer) -> dict[str, Json]:
    """Describe a row in plain lists.

    Args:
        row: Finished row.
        tokenizer: Turns ids into text.
    """
    real = row.num_real_tokens
    return {
        "index": row.index,
        "corpus": row.corpus,
        "objective": row.objective,
        "length": len(row.tokens),
        "real": real,
        "predicted": int(row.loss_mask.sum()),
        "positions": row.positions[:real].tolist(),
        "block_positions": row.block_positions[:real].tolist(),
        "segments": [_segment(parts) for parts in take_apart(row, tokenizer)],
    }


def _segment(parts: SegmentParts) -> dict[str, Json]:
    return {
        "begin": parts.begin,
        "length": parts.segment.length,
        "prefix_length": parts.segment.prefix_length,
        "part_a": [[text[:LONGEST_TEXT], blank] for text, blank in parts.part_a],
        "blanks": [
            {
                "number": blank.number,
                "position": blank.position,
                "begin": blank.begin,
                "length": blank.length,
                "targets": blank.targets[:LONGEST_TEXT],
            }
            for blank in parts.blanks
        ],
        "predicted": parts.predicted[:LONGEST_TEXT],
    }
