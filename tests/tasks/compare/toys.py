"""A comparison small enough for a test: its files and overrides.

UniLM is left out: its prompts and last words are laid out as BERT's.
"""

import json
import random
from pathlib import Path

from tests.train.jobs import make_files

OBJECTIVES = ("glm_mixed", "bert", "gpt", "t5")

TASK = """kind: cloze
data: {{train: {folder}/train.jsonl, valid: {folder}/valid.jsonl}}
pattern: '{{text}} w9 [MASK].'
answers: {{'0': w700, '1': w800}}
max_length: 48
metrics: [accuracy]
"""


def make_comparison(folder: Path) -> list[str]:
    """Write a corpus, a task that the last word of a text decides, and texts with last words.

    Returns:
        Overrides of a comparison ``runs/toy`` of a few steps a run.
    """
    overrides = make_files(folder)
    draws = random.Random(0)
    for split, count in (("train", 64), ("valid", 40)):
        lines = []
        for _ in range(count):
            label = draws.randrange(2)
            words = [f"w{draws.randrange(10, 400)}" for _ in range(6)]
            text = " ".join([*words, "w500" if label else "w600"])
            lines.append(json.dumps({"text": text, "label": label}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    texts = [
        {"text": " ".join(f"w{10 + n + k}" for k in range(20)), "targets": [f"w{30 + n} w5"]}
        for n in range(8)
    ]
    (folder / "words.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    (folder / "ending.yaml").write_text(TASK.format(folder=folder))
    return [
        *overrides,
        "tokenizer.sentinel_pairs=30",
        "tokenizer.vocab_size=1064",
        "model.max_position_embeddings=128",
        "parallel=dp",
        "zero=stage0",
        "run.name=toy",
        "run.steps=2",
        "evaluation.interval=2",
        "checkpoint.background=false",
        f"compare.objectives=[{','.join(OBJECTIVES)}]",
        f"compare.tasks=[{folder / 'ending.yaml'}]",
        "compare.seeds=[1]",
        'compare.finetune=["run.steps=3","evaluation=none","checkpoint=none"]',
        f"compare.last_words={folder / 'words.jsonl'}",
    ]
