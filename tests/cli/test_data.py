"""The commands around corpora, as a user calls them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from glm_dist.cli.main import main
from glm_dist.data.corpus.indexed import bin_path, open_indexed
from tests.data.corpora import make_documents, write_corpus, write_vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_vocabulary(tmp_path)
    write_corpus(tmp_path, "news", make_documents(60))
    return tmp_path


def overrides(folder: Path) -> list[str]:
    return [
        "experiment=tiny",
        "tokenizer=bert",
        f"tokenizer.path={folder}/vocab.txt",
        "tokenizer.vocab_size=1004",
        "tokenizer.task_masks=true",
        "data=single",
        f"data.corpora.text.prefix={folder}/news",
    ]


def test_validate_ends_with_one_where_a_corpus_is_damaged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "validate", f"{folder}/news"]) == 0
    bin_path(folder / "news").write_bytes(b"12")
    assert main(["data", "validate", f"{folder}/news"]) == 1
    assert "was cut short" in capsys.readouterr().out


def test_validate_refuses_a_corpus_that_is_not_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "validate", f"{folder}/nothing"]) == 2
    assert f"{folder}/nothing.idx is missing" in capsys.readouterr().err


def test_validate_refuses_an_empty_evaluation_set(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "validate", f"{folder}/news", "--against", ""]) == 2
    assert "--against is empty" in capsys.readouterr().err


def test_validate_counts_copies_and_what_an_evaluation_set_shares(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = make_documents(60)
    write_corpus(folder, "more", [*make_documents(5, seed=1), *documents[:3], documents[0]])
    command = ["data", "validate", f"{folder}/news", f"{folder}/more", "--duplicates"]
    assert main([*command, "--against", f"{folder}/more"]) == 0
    shown = capsys.readouterr().out

    assert f"{folder}/news: 0 documents are copies of earlier ones" in shown
    assert f"{folder}/more: 1 documents are copies of earlier ones" in shown
    assert f"{folder}/more: 4 documents are in the corpora named before it" in shown
    assert f"{folder}/news: holds 4 of the 9 documents of {folder}/more" in shown


def test_trace_leads_from_a_step_to_files_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = write_vocabulary(tmp_path)
    lines = [
        f'{{"text": "{" ".join(f"w{10 + (7 * n + i) % 900}" for i in range(9))}"}}\n'
        for n in range(50)
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    prepare = ["prepare", f"{tmp_path}/a.jsonl", "--output", f"{tmp_path}/news", "--shuffle", "1"]
    assert main([*prepare, "--tokenizer", str(vocabulary), "--workers", "1"]) == 0
    command = [*overrides(tmp_path), "batch.global_batch_size=4"]
    assert main(["data", "trace", *command, "--step", "3"]) == 0
    step = capsys.readouterr().out
    assert main(["data", "trace", *command, "--row", "8", "--rows", "4"]) == 0
    assert capsys.readouterr().out == step
    for wrong in (["--step", "99999"], ["--step", "3", "--row", "2"]):
        assert main(["data", "trace", *command, *wrong]) == 2
    assert main(["data", "trace", f"{tmp_path}/no_run", "--step", "1"]) == 2
    assert f"{tmp_path}/no_run/config.yaml is missing" in capsys.readouterr().err

    assert main(["data", "inspect", *command, "--row", "9", "--no-mask"]) == 0
    row = capsys.readouterr().out
    numbers = [int(n) for n in re.findall(r"a\.jsonl:(\d+)", row)]
    assert numbers
    assert all(f"{tmp_path}/a.jsonl:{n}" in step for n in numbers)
    first_words = [json.loads(lines[n - 1])["text"].split()[4] for n in numbers[1:-1]]
    assert first_words
    assert all(word in row for word in first_words)


def test_stats_count_documents_and_tokens(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    corpus = open_indexed(folder / "news")
    assert main(["data", "stats", f"{folder}/news"]) == 0
    shown = capsys.readouterr().out

    assert f"{corpus.num_tokens:,}" in shown
    assert f"{max(len(corpus.document(i)) for i in range(60)):,}" in shown


@pytest.mark.parametrize("objective", ["span", "sentence", "document"])
def test_inspect_shows_blanks_and_their_content(
    folder: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    command = ["data", "inspect", *overrides(folder), "--objective", objective, "--rows", "2"]
    assert main([*command, "corruption=glm_mixed"]) == 0
    shown = capsys.readouterr().out
    mask = {"span": "[MASK]1", "sentence": "[sMASK]1", "document": "[gMASK]1"}[objective]

    assert shown.count(f"objective={objective}") == 2
    assert shown.count(mask) >= 2
    assert "attention" in shown


def test_inspect_shows_validation_rows_and_baselines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", *overrides(folder), "--validation", "--no-mask"]) == 0
    assert main(["data", "inspect", *overrides(folder), "corruption.task=masked_lm"]) == 0
    assert "predicted" in capsys.readouterr().out


def test_inspect_names_the_objectives_there_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", *overrides(folder), "--objective", "sentense"]) == 2
    assert "--objective=sentense is not drawn" in capsys.readouterr().err


def test_blend_counts_what_a_run_reads(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", "blend", *overrides(folder), "--rows", "100", "--sample", "20"]) == 0
    shown = capsys.readouterr().out

    assert "100 rows" in shown
    assert "100.0000%" in shown


def test_merge_joins_corpora(folder: Path) -> None:
    write_corpus(folder, "more", make_documents(5, seed=1))
    command = ["data", "merge", f"{folder}/news", f"{folder}/more", "--output", f"{folder}/all"]
    assert main(command) == 0

    assert open_indexed(folder / "all").num_documents == 65


def test_tokenizer_commands_train_show_and_encode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(60)]
    text = "\n".join(" ".join(rng.choice(words, 12)) for _ in range(300))
    (tmp_path / "a.txt").write_text(text)
    model = f"{tmp_path}/t.model"
    train = ["tokenizer", "train", f"{tmp_path}/a.txt", "--output", model, "--vocab-size", "300"]
    assert main(train) == 0
    assert main(["tokenizer", "show", "--tokenizer", model]) == 0
    assert "ids: 300, padded to 384" in capsys.readouterr().out
    assert main(["tokenizer", "encode", "--tokenizer", model, f"{words[0]} [MASK]"]) == 0
    # 300 ids: 292 pieces, end of text, [CLS], [SEP], and [MASK] is 295.
    assert capsys.readouterr().out.split("\n")[0].endswith("295")


def test_prepare_command_reports_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = write_vocabulary(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "w10 w11"}\nbroken\n')
    command = ["prepare", f"{tmp_path}/a.jsonl", "--output", f"{tmp_path}/out/a"]
    command += ["--tokenizer", str(vocabulary), "--workers", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().err

    assert f"{tmp_path}/a.jsonl:2: not JSON" in shown
    assert "documents=1 tokens=4 files=1 skipped_lines=1" in shown


def test_prepare_asks_for_a_tokenizer_it_can_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("w10")
    command = ["prepare", f"{tmp_path}/a.txt", "--output", f"{tmp_path}/a"]
    assert main([*command, "--tokenizer", f"{tmp_path}/nothing"]) == 2
    assert "does not exist" in capsys.readouterr().err
