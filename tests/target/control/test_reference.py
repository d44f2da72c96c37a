"""docs/control.md is what the verbs say of themselves."""

from __future__ import annotations

from pathlib import Path

from nvmeof.target.control.reference import reference

ROOT = Path(__file__).parents[3]


def test_the_reference_is_current() -> None:
    published = (ROOT / "docs" / "control.md").read_text()
    assert published == reference(), "python -m nvmeof.target.control.reference > docs/control.md"
