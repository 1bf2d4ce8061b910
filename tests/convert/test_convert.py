"""``glm-dist convert`` between runs and official checkpoints."""

import json
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from glm_dist.config.load import load_config_file
from glm_dist.convert import run_writer
from glm_dist.convert.official import from_official
from tests.convert.conversions import (
    HEADS_TYPED,
    convert,
    error_of,
    files_below,
    module,
    same,
    weights,
)
from tests.convert.official_files import (
    HEADS,
    POSITIONS,
    ROWS,
    Numpy1Pickle,
    make_state,
    shard,
    write_parts,
    write_vocabulary,
)
from tests.messages import Says

STATE = make_state()
OURS = from_official(STATE, num_attention_heads=HEADS)

RNG = {
    "np_rng_state": ("MT19937", np.arange(624, dtype=np.uint32), 624, 0, 0.0),
    "torch_rng_state": torch.get_rng_state(),
}
DEEPSPEED = {
    "optimizer": {"state": {0: torch.ones(3)}, "loss_scale": 65536.0},
    "param_shapes": [{"a": torch.Size([3])}],
    "ds_config": {"zero_optimization": {"stage": 1}},
    "ds_version": "0.3.16",
    "csr_tensor_module_names": {"word_embeddings"},
}
PART_OF_HEAD = {"pool_layer.weight": torch.ones(4, 4), "multichoice_head.bias": torch.ones(1)}


def with_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in state.items()}


Make = Callable[[Path], object]

FORMS: dict[str, Make] = {
    "two parts, no tracker": lambda f: write_parts(f / "glm", STATE, parts=2),
    "four parts": lambda f: write_parts(f / "glm" / "7", STATE, parts=4),
    "random states of numpy 2": lambda f: write_parts(f / "glm", STATE, beside=RNG),
    "random states of numpy 1": lambda f: write_parts(
        f / "glm", STATE, beside=RNG, pickle_module=Numpy1Pickle
    ),
    "legacy": lambda f: write_parts(
        f / "glm", STATE, parts=2, beside=RNG, _use_new_zipfile_serialization=False
    ),
    "best": lambda f: [
        write_parts(f / "glm" / "best", STATE, iteration=None),
        (f / "glm" / "latest").write_text("best\n"),
    ],
    "DeepSpeed": lambda f: write_parts(f / "glm" / "7", STATE, beside=RNG | DEEPSPEED),
    "part of a classifier": lambda f: write_parts(
        f / "glm" / "7", with_prefix(STATE), extra=PART_OF_HEAD
    ),
    "prompts": lambda f: write_parts(
        f / "glm" / "7", STATE, extra={"prompt_spell.spell_embeddings.weight": torch.ones(2, 2)}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_official_files_becomes_the_same_run(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    FORMS[form](tmp_path)
    tokenizer = write_vocabulary(tmp_path)

    convert(tmp_path / "glm", tmp_path / "run", HEADS_TYPED, f"tokenizer.path={tokenizer}")

    assert same(weights(tmp_path / "run"), OURS)
    step = 0 if form == "best" else 7
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:07d}").is_dir()
    said = capsys.readouterr().out
    ignored = re.search(r"(?m)^ignored +(.*)$", said)
    assert ignored is not None
    if form == "part of a classifier":
        assert ignored[1] == "module.pool_layer.weight, module.multichoice_head.bias"
    if form == "prompts":
        assert ignored[1] == "module.prompt_spell.spell_embeddings.weight"
    if form == "DeepSpeed":
        assert set(ignored[1].split(", ")) == {*RNG, *DEEPSPEED}


def test_the_way_there_and_back_keeps_every_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    write_parts(tmp_path / "glm" / "7", STATE)
    tokenizer, run = write_vocabulary(tmp_path), tmp_path / "run"
    convert(tmp_path / "glm", run, HEADS_TYPED, f"tokenizer.path={tokenizer}")
    says(capsys.readouterr().out)

    for parts in (1, 2, 4):
        back = tmp_path / f"back_{parts}"
        convert(run, back, "--to", "official", "--model-parallel-size", parts)
        files = sorted((back / "7").iterdir())
        assert [file.name for file in files] == [
            f"mp_rank_{rank:02d}_model_states.pt" for rank in range(parts)
        ]
        for rank, file in enumerate(files):
            cut = {name: shard(name, tensor, rank, parts) for name, tensor in STATE.items()}
            assert same(module(file), cut)
            content = torch.load(file, weights_only=True)
            assert (content["iteration"], content["mp_world_size"]) == (7, parts)
        assert (back / "latest").read_text() == "7"
        assert (back / "latest_checkpointed_iteration.txt").read_text() == "7"
    says(capsys.readouterr().out.rpartition("source ")[2])


def test_an_official_checkpoint_is_cut_again_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parts(tmp_path / "glm" / "7", STATE, parts=4)

    convert(
        tmp_path / "glm",
        tmp_path / "two",
        "--to",
        "official",
        HEADS_TYPED,
        "--model-parallel-size",
        "2",
    )

    assert "permuted    0 tensors" in capsys.readouterr().out
    for rank in range(2):
        cut = {name: shard(name, tensor, rank, 2) for name, tensor in STATE.items()}
        assert same(module(tmp_path / "two" / "7" / f"mp_rank_0{rank}_model_states.pt"), cut)


def test_longer_tables_keep_their_rows_and_get_new_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parts(tmp_path / "glm", STATE)
    tokenizer = write_vocabulary(tmp_path)

    convert(
        tmp_path / "glm",
        tmp_path / "run",
        HEADS_TYPED,
        f"tokenizer.path={tokenizer}",
        "model.max_position_embeddings=2000",
    )

    found = weights(tmp_path / "run")
    for name in ("position_embeddings", "block_position_embeddings"):
        table = found.pop(f"embedding.{name}.weight")
        assert torch.equal(table[: POSITIONS + 1], OURS[f"embedding.{name}.weight"])
        assert table.shape[0] == 2001
        # 2001 - 41 rows of 16 drawn with 0.02: the estimate of the deviation is good to 1 in 250
        assert float(table[POSITIONS + 1 :].float().std()) == pytest.approx(0.02, rel=0.02)
    assert same(found, {name: OURS[name] for name in found})
    assert "grown       transformer.position_embeddings.weight, transformer.block" in (
        capsys.readouterr().out
    )


def test_sizes_typed_for_another_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    write_parts(tmp_path / "glm", STATE)
    run, tokenizer = tmp_path / "run", f"tokenizer.path={write_vocabulary(tmp_path)}"
    (tmp_path / "large").mkdir()
    large = f"tokenizer.path={write_vocabulary(tmp_path / 'large', rows=256)}"
    before = files_below(tmp_path)
    for typed in (
        [tokenizer],
        [HEADS_TYPED],
        [HEADS_TYPED, tokenizer, "model.num_layers=3"],
        [HEADS_TYPED, tokenizer, "model.max_position_embeddings=30"],
        [tokenizer, "model=tiny"],
        [tokenizer, "model=tiny", "model.num_layers=2", "model.hidden_size=16"],
        [HEADS_TYPED, large],
        [HEADS_TYPED, tokenizer, "tokenizer.vocab_size=100"],
        [HEADS_TYPED, "tokenizer=bert", "tokenizer.path=nowhere.txt"],
        [HEADS_TYPED, "tokenizer.path=nowhere.txt"],
        ["model.num_attention_heads=5", tokenizer],
        [HEADS_TYPED, tokenizer, "model.heads=4"],
        [HEADS_TYPED, tokenizer, "model.lora_rank=4"],
    ):
        says(error_of(capsys, tmp_path / "glm", run, *typed))
        assert files_below(tmp_path) == before, typed


def broken(change: Callable[[dict[str, Any]], object], **how: Any) -> Make:
    """A checkpoint of two parts whose second one is changed before it is written."""

    def make(folder: Path) -> None:
        write_parts(folder / "glm", STATE, parts=2, **how)
        file = folder / "glm" / "mp_rank_01_model_states.pt"
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)

    return make


def truncated(folder: Path) -> None:
    file = write_parts(folder / "glm", STATE) / "mp_rank_00_model_states.pt"
    file.write_bytes(file.read_bytes()[:-2000])


def one_of_two(folder: Path) -> None:
    (write_parts(folder / "glm", STATE, parts=2) / "mp_rank_01_model_states.pt").unlink()


def claims_more(folder: Path) -> None:
    huge = torch.zeros(1, dtype=torch.float16).expand(1 << 40, 16)
    write_parts(folder / "glm", STATE, extra={"word_embeddings.weight": huge})


QKV = "transformer.layers.0.attention.query_key_value.weight"
NORM = "transformer.layers.1.input_layernorm.bias"

BROKEN: dict[str, Make] = {
    "truncated": truncated,
    "a part of two": one_of_two,
    "missing weight": broken(lambda c: c["module"].pop(NORM)),
    "wrong shape": broken(lambda c: c["module"].update({QKV: torch.ones(24, 15).half()})),
    "whole numbers": broken(lambda c: c["module"].update({NORM: torch.ones(16).int()})),
    "text for a weight": broken(lambda c: c["module"].update({NORM: "1"})),
    "no module": broken(lambda c: c.pop("module")),
    "another iteration": broken(lambda c: c.update(iteration=8)),
    "twice": broken(lambda c: c["module"].update({f"model.{NORM}": torch.ones(16).half()})),
    "not finite": broken(lambda c: c["module"][QKV].fill_(float("nan"))),
    "more than the file": claims_more,
    "best without the rest": lambda f: write_parts(
        f / "glm" / "best", {"word_embeddings.weight": STATE["word_embeddings.weight"]}
    ),
    "a model of another kind": lambda f: write_parts(f / "glm", {"lm_head.weight": torch.ones(2)}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_checkpoints_are_one_error_and_leave_nothing(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    BROKEN[kind](tmp_path)
    tokenizer = write_vocabulary(tmp_path)
    before = files_below(tmp_path)

    said = error_of(
        capsys,
        tmp_path / "glm",
        tmp_path / "new" / "run",
        HEADS_TYPED,
        f"tokenizer.path={tokenizer}",
    )

    assert said.startswith("CheckpointError: ")
    assert files_below(tmp_path) == before
    assert not (tmp_path / "new").exists()
    says(said)


def test_options_without_a_meaning_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    glm = write_parts(tmp_path / "glm", STATE)
    tokenizer = write_vocabulary(tmp_path)
    run, out = tmp_path / "run", tmp_path / "out"
    convert(glm, run, HEADS_TYPED, f"tokenizer.path={tokenizer}")
    before = files_below(tmp_path)
    for arguments in (
        (run, out),
        (run, out, "--to", "ours"),
        (run, out, "--to", "official", "run.seed=3"),
        (run, out, "--to", "official", "--step", "8"),
        (run, out, "--to", "official", "--model-parallel-size", "3"),
        (glm, out, "--step", "7"),
        (glm, out, "--dtype", "fp32"),
        (glm, out, "--model-parallel-size", "2"),
        (glm, run, HEADS_TYPED, f"tokenizer.path={tokenizer}"),
        (run / "checkpoints" / "step_0000007", out, "--to", "official"),
        (tmp_path / "nowhere", out),
    ):
        says(error_of(capsys, *arguments))
        assert files_below(tmp_path) == before, arguments


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layernorm_epsilon", "1.0e-06"),
        ("residual", "deep_norm"),
        ("position_encoding", "rotary_2d"),
        ("ffn_hidden_size", "32"),
    ],
)
def test_an_architecture_without_an_official_form_is_refused(
    tmp_path: Path, key: str, value: str, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    glm, run = write_parts(tmp_path / "glm", STATE), tmp_path / "run"
    convert(glm, run, HEADS_TYPED, f"tokenizer.path={write_vocabulary(tmp_path)}")
    config = run / "config.yaml"
    config.write_text(re.sub(rf"(?m)^  {key}: .*$", f"  {key}: {value}", config.read_text()))

    said = error_of(capsys, run, tmp_path / "out", "--to", "official")

    assert said.startswith(f"ConfigError: The model has model.{key}=")
    says(said)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 10 kB: a full disk, with an error of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, says: Says
) -> None:
    glm, tokenizer = write_parts(tmp_path / "glm", STATE), write_vocabulary(tmp_path)
    imported = (HEADS_TYPED, f"tokenizer.path={tokenizer}")
    convert(glm, tmp_path / "run", *imported)
    before = files_below(tmp_path)
    request.getfixturevalue("small_files")

    for arguments in (
        (glm, tmp_path / "again", *imported),
        (tmp_path / "run", tmp_path / "back", "--to", "official"),
    ):
        said = error_of(capsys, *arguments)
        assert said.startswith("CheckpointError: ")
        assert files_below(tmp_path) == before
        says(re.sub(r"\.\d+\.tmp", ".<pid>.tmp", said))


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    glm, tokenizer = write_parts(tmp_path / "glm", STATE), write_vocabulary(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=10_000))

    says(error_of(capsys, glm, tmp_path / "run", HEADS_TYPED, f"tokenizer.path={tokenizer}"))


def test_a_conversion_that_changes_logits_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    glm = write_parts(tmp_path / "glm", STATE)
    tokenizer = write_vocabulary(tmp_path)
    # Rows as for two heads instead of four: every shape is right.
    monkeypatch.setattr(
        run_writer,
        "our_rows",
        lambda name, tensor, **_: from_official({name: tensor}, num_attention_heads=2).popitem()[1],
    )

    said = error_of(capsys, glm, tmp_path / "run", HEADS_TYPED, f"tokenizer.path={tokenizer}")

    assert "would compute other logits" in said
    assert not (tmp_path / "run").exists()


def test_an_imported_run_says_where_it_comes_from(tmp_path: Path) -> None:
    glm = write_parts(tmp_path / "glm" / "7", STATE)
    tokenizer, run = write_vocabulary(tmp_path), tmp_path / "runs" / "run"

    convert(glm, run, HEADS_TYPED, f"tokenizer.path={tokenizer}", "model.hidden_dropout=0.05")

    config = load_config_file(run / "config.yaml")
    assert config.run_dir == run
    assert (config.model.num_attention_heads, config.model.hidden_dropout) == (HEADS, 0.05)
    assert config.padded_vocab_size == ROWS
    (manifest,) = run.glob("checkpoints/*/manifest.json")
    origin = json.loads(manifest.read_text())["extra"]["converted_from"]
    assert origin == {"official": str(glm), "parts": 1, "tag": "7"}
    assert (run / "overrides.txt").read_text().splitlines()[-1] == "model.hidden_dropout=0.05"
    assert (run / "tokenizer" / "vocab.txt").read_bytes() == tokenizer.read_bytes()
