"""Configurations of imported weights of published sizes; no weights are needed for them."""

from pathlib import Path

import pytest
import torch

from glm_dist.config.schema import TokenizerKind
from glm_dist.convert.configuration import complete_configuration
from glm_dist.convert.official import official_model
from glm_dist.convert.source import Source
from glm_dist.errors import ConfigError
from tests.convert.official_files import write_vocabulary
from tests.messages import Says


def sizes_only(*, layers: int, hidden: int, positions: int, rows: int = 30592) -> Source:
    model = official_model(num_layers=layers, hidden_size=hidden, max_position_embeddings=positions)
    keys = {"num_layers": layers, "hidden_size": hidden, "max_position_embeddings": positions}
    return Source(
        title="official checkpoint glm",
        model=model,
        sizes={f"model.{key}": value for key, value in keys.items()},
        padded_vocab_size=rows,
        tensors={},
        dtype=torch.float16,
        step=200_000,
    )


LARGE = sizes_only(layers=24, hidden=1024, positions=512)


@pytest.mark.parametrize(
    ("layers", "hidden", "heads"),
    [(12, 768, 12), (24, 1024, 16), (30, 1024, 16), (30, 1152, 18), (36, 2048, 32), (48, 4096, 64)],
)
def test_published_sizes_tell_the_heads(
    tmp_path: Path, layers: int, hidden: int, heads: int
) -> None:
    source = sizes_only(layers=layers, hidden=hidden, positions=512)

    config = complete_configuration(
        source, [f"tokenizer.path={write_vocabulary(tmp_path, 30592)}"], target=tmp_path / "run"
    )

    assert config.model.num_attention_heads == heads
    assert (config.model.num_layers, config.model.hidden_size) == (layers, hidden)


def test_sizes_of_a_test_model_do_not(tmp_path: Path, says: Says) -> None:
    with pytest.raises(ConfigError) as caught:  # conf/model/tiny.yaml has these, and 4 heads
        complete_configuration(
            sizes_only(layers=4, hidden=64, positions=160), [], target=tmp_path / "run"
        )
    assert caught.value.key == "model.num_attention_heads"
    says(caught.value)


def test_an_experiment_gives_all_that_the_files_do_not_say(tmp_path: Path) -> None:
    tokenizer = write_vocabulary(tmp_path, 30592)  # 30582 pieces, sop and eop
    typed = ["experiment=glm_large", f"tokenizer.path={tokenizer}"]

    config = complete_configuration(LARGE, typed, target=tmp_path / "my glm, large")

    assert config.model.num_attention_heads == 16
    assert (config.tokenizer.kind, config.tokenizer.task_masks) == (TokenizerKind.bert, False)
    assert config.tokenizer.vocab_size == 30584
    assert config.batch.global_batch_size == 1024
    assert config.run_dir == tmp_path / "my glm, large"


@pytest.mark.parametrize("positions", [511, 1024])
def test_positions_of_an_experiment_never_grow_by_themselves(
    tmp_path: Path, positions: int, says: Says
) -> None:
    typed = ["experiment=glm_large", f"tokenizer.path={write_vocabulary(tmp_path, 30592)}"]
    source = sizes_only(layers=24, hidden=1024, positions=positions)

    with pytest.raises(ConfigError) as caught:
        complete_configuration(source, typed, target=tmp_path / "run")

    assert (caught.value.key, caught.value.value) == ("model.max_position_embeddings", 512)
    says(caught.value)
    complete_configuration(source, [*typed, caught.value.fix], target=tmp_path / "run")


def test_the_chinese_vocabulary_needs_its_scheme(tmp_path: Path, says: Says) -> None:
    (tmp_path / "cog-pretrain.model").touch()
    typed = [f"tokenizer.path={tmp_path / 'cog-pretrain.model'}"]

    with pytest.raises(ConfigError) as caught:
        complete_configuration(LARGE, typed, target=tmp_path / "run")

    says(caught.value)
