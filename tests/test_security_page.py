"""SECURITY.md says where each claim is tested: those files and tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()


def test_what_it_names_is_there() -> None:
    files = set(re.findall(r"`(tests/[\w/.]+)`", PAGE))
    assert len(files) > 25 and all((ROOT / each).exists() for each in files), files
    source = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"`(test_\w+)`", PAGE))
    missing = [each for each in tests if not re.search(rf"def {each}\b", source)]
    assert len(tests) > 8 and not missing


def test_every_point_of_the_review_has_an_outcome() -> None:
    rows = [line for line in PAGE.partition("## Review\n")[2].splitlines() if line.startswith("| ")][2:]
    outcomes = [row.rstrip(" |").rpartition(" | ")[2] for row in rows]
    assert len(outcomes) > 30
    assert all(each.startswith(("mended", "accepted", "looked for", "found off")) for each in outcomes), outcomes
    assert all(
        "`tests/" in each or "same" in each or "`test_" in each for each in outcomes if each.startswith("mended")
    )
