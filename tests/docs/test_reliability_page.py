"""Every test that the page on reliability names exists, and every row of its promises names one."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def test_each_promise_names_tests_that_exist() -> None:
    promises = PAGE.read_text(encoding="utf-8").partition("## Exit statuses")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| promise", "| ---"))]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)`", row)
        assert named, f"no test in: {row}"
        for name in named:
            assert (ROOT / "tests" / name).is_file(), name
