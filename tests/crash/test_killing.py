"""The short form of `make kill`: a target is killed a few times, and nothing that it acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.killing import BLOCK, UNREADABLE, Killer


async def test_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    killer = Killer(tmp_path, 7)
    await killer.run(4)
    assert killer.kills == 4 and killer.plain.acknowledged > 10 and killer.zoned.acknowledged > 10


async def test_what_is_lost_is_found(tmp_path: Path) -> None:
    killer = Killer(tmp_path, 8)
    await killer.run(1)
    block = next(block for block, held in killer.plain.blocks.items() if any(*held) and held != {UNREADABLE})
    content = (tmp_path / "plain").read_bytes()
    (tmp_path / "plain").write_bytes(content[: block * BLOCK] + bytes(BLOCK) + content[(block + 1) * BLOCK :])
    with pytest.raises(AssertionError, match="block"):
        await killer.run(0)
