"""Make this folder with an old version of glm_dist; see README.md.

python make.py <checkout of the old version> <python that has its libraries>
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORED_ROOT = "/run_v1_root"
"""Stands in the stored files for the folder that holds them."""

STORED_STEP, LAST_STEP = 4, 8
QUESTION = "w10 w11 w12 [MASK] w15 w16 w17 ."

PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", ".", *(f"w{n}" for n in range(6, 120))]

MODEL = [
    "model=tiny",
    "model.num_layers=2",
    "model.hidden_size=8",
    "model.num_attention_heads=2",
    "model.max_position_embeddings=64",
    # Nothing drawn in the model: other builds of torch draw other numbers.
    "model.hidden_dropout=0.0",
    "model.attention_dropout=0.0",
    "batch.global_batch_size=4",
    "batch.micro_batch_size=2",
    "batch.row_length=48",
    "optimizer.learning_rate=1e-2",
    "lr_schedule.decay_steps=10",
    "lr_schedule.warmup_share=0.2",
    "data=single",
    "data.validation_share=0.1",
    "data.num_workers=0",
    "tokenizer=bert",
    f"tokenizer.vocab_size={len(PIECES) + 4}",
    "tokenizer.task_masks=true",
    "evaluation.rows_per_objective=4",
    "checkpoint.keep_last=1",
    "observe.log_interval=1",
]


def write_text(file: Path, *, documents: int, seed: int) -> None:
    """Write documents in which a word is mostly followed by the next one."""
    draw = random.Random(seed)
    lines = []
    for _ in range(documents):
        word = draw.randrange(6, 120)
        words = []
        for _ in range(draw.randrange(20, 90)):
            word = draw.randrange(6, 120) if draw.random() < 0.1 else 6 + (word - 5) % 114
            words.append(f"w{word}" + (" ." if draw.random() < 0.1 else ""))
        lines.append(" ".join(words))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


class OldVersion:
    """The commands of the old version, with files in a folder of its own."""

    def __init__(self, checkout: Path, python: str, folder: Path) -> None:
        """Keep where things are."""
        self.checkout, self.python, self.folder = checkout, python, folder

    def call(self, *arguments: str) -> str:
        """Run ``glm-dist``; its standard output."""
        program = "import sys; from glm_dist.cli import main; sys.exit(main())"
        environment = os.environ | {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.python, "-c", program, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def train(self, name: str, *overrides: str) -> list[dict[str, float]]:
        """Train; the run's records."""
        files = [f"tokenizer.path={self.folder}/vocab.txt", f"paths.data={self.folder}"]
        base = [f"paths.runs={self.folder}", f"run.name={name}"]
        self.call("train", *MODEL, *files, *base, *overrides)
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def make(old: OldVersion) -> None:
    """Prepare corpora, train two runs, store them and what the old version makes of them."""
    folder = old.folder
    (folder / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
    for name, documents, seed in (("first", 60, 1), ("second", 30, 2)):
        write_text(folder / f"{name}.txt", documents=documents, seed=seed)
        old.call(
            "prepare", f"{name}.txt", "--output", name, "--tokenizer", "vocab.txt", "--workers=1"
        )
    spans = ["corruption=glm_span", f"data.corpora.text.prefix={folder}/first"]
    spans += [f"evaluation.interval={STORED_STEP}", f"checkpoint.interval={STORED_STEP}"]
    old.train("spans", *spans, f"run.steps={STORED_STEP}")
    store(folder, "spans")
    answer = old.call("generate", str(folder / "spans"), QUESTION, "--greedy", "--max-tokens=8")
    records = old.train("spans", *spans, f"run.steps={LAST_STEP}")
    expected = {
        "records": [
            {key: value for key, value in record.items() if not key.startswith(("speed/", "time"))}
            for record in records
            if "event" not in record
        ],
        "question": QUESTION,
        "answer": answer,
    }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")

    mixed = ["corruption=glm_mixed", "evaluation.interval=0", "checkpoint.interval=2"]
    mixed += [f"data.corpora.text={{prefix: {folder}/first, weight: 2}}"]
    mixed += [f"data.corpora.more={{prefix: {folder}/second, weight: 1}}"]
    old.train("mixed", *mixed, "run.steps=2")
    store(folder, "mixed", "*.distcp", ".metadata")  # no test reads its tensors
    for file in [*folder.glob("first.*"), *folder.glob("second.*"), folder / "vocab.txt"]:
        if file.name not in ("first.txt", "second.txt"):
            shutil.copyfile(file, HERE / file.name)
    hide_machine(folder)


def store(folder: Path, name: str, *left_out: str) -> None:
    """Copy a run's folder without logs, lock and further names."""
    shutil.rmtree(HERE / name, ignore_errors=True)
    unwanted = shutil.ignore_patterns("log", "lock", *left_out)
    shutil.copytree(folder / name, HERE / name, ignore=unwanted)


def hide_machine(folder: Path) -> None:
    """Replace the paths and the host of this machine; manifests of checkpoints hold none."""
    for file in HERE.rglob("*"):
        if file.suffix in (".yaml", ".txt", ".json", ".jsonl") and file.name != "manifest.json":
            text = file.read_text(encoding="utf-8").replace(str(folder), STORED_ROOT)
            if file.name == "provenance.json":
                content = json.loads(text)
                for attempt in content["attempts"]:
                    attempt |= {"hosts": ["localhost"]}
                    attempt["command"][0] = "train.py"
                text = json.dumps(content, indent=1) + "\n"
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(OldVersion(Path(sys.argv[1]), sys.argv[2], Path(folder)))
