import pytest

from glm_dist.config.wording import divisors


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, [1]),
        (16, [1, 2, 4, 8, 16]),
        (70, [1, 2, 5, 7, 10, 14, 35, 70]),
        (99_991 * 99_989, [1, 99_989, 99_991, 99_991 * 99_989]),
    ],
    ids=["one", "square", "layers of GLM-130B", "two large primes"],
)
def test_divisors_are_complete_up_to_ten_billion(number: int, expected: list[int]) -> None:
    assert divisors(number) == expected


def test_divisors_of_any_number_are_found_at_once() -> None:
    # The largest prime below 2^63: dividing up to its root would outlast the test's time limit.
    assert divisors(2**63 - 25) == [1, 2**63 - 25]
