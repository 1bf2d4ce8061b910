"""Numbers on a command line are read or refused."""

import argparse

import pytest

from glm_dist.cli.arguments import whole_number


def test_numbers_from_the_least_on_are_taken() -> None:
    assert [whole_number(at_least=2)(text) for text in ("2", "30")] == [2, 30]


@pytest.mark.parametrize("text", ["1", "-3", "2.5", "many", ""])
def test_others_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of at least 2"):
        whole_number(at_least=2)(text)
