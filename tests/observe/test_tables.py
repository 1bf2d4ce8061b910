import pytest

from glm_dist.observe.tables import TABLE_WIDTH, table_console


def test_a_table_in_a_pipe_is_not_folded_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table_console().width == TABLE_WIDTH
    assert table_console(stderr=True, width=90).width == 90


def test_columns_of_the_environment_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert table_console().width == 70
