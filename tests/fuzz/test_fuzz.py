"""A bounded share of the fuzzer's cases in every run of the tests; more by hand (``fuzz.py``)."""

from tests.fuzz.fuzz import run

CASES = 720


def test_what_must_hold_holds_in_random_cases() -> None:
    violations, counts = run(first=0, cases=CASES)

    assert not violations, "\n".join(violations[:5])
    refused = sum(count for name, count in counts.items() if name.endswith("refused"))
    assert refused < 0.25 * CASES, counts  # or little would have been tried
