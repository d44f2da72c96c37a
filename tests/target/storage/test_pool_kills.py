"""A pool in a directory whose process is killed at any point: all of an operation or nothing is found again."""

import os
import shutil
from pathlib import Path

import pytest

from tests.target.storage.pool_tools import Life


class Killed(BaseException):
    pass


STEPS = ("fsync", "ftruncate", "replace", "unlink", "open")


async def _create(life: Life) -> None:
    await life.create(block_bytes=4096)


async def _delete(life: Life) -> None:
    await life.delete(2)


async def _delete_all(life: Life) -> None:
    await life.delete(None)


async def _attach(life: Life) -> None:
    await life.attach(2)


async def _detach(life: Life) -> None:
    await life.detach(1)


@pytest.mark.parametrize("operation", [_create, _delete, _delete_all, _attach, _detach])
async def test_a_kill_at_any_point_leaves_all_or_nothing(tmp_path, monkeypatch, operation):
    """The directory is copied before every step that changes it: the state that a process killed there would leave."""
    directory = tmp_path / "pool"
    copies: list[Path] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def step(*arguments, **options):
            copy = tmp_path / f"copy{len(copies)}"
            copies.append(copy)
            with monkeypatch.context() as patches:
                for each in STEPS:
                    patches.setattr(os, each, originals[each])
                shutil.copytree(directory, copy)
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, step)

    async with Life(directory) as life:
        await life.create()
        await life.create()
        await life.write(1, b"keep" * 128)
        await life.attach(1)
        before = await life.state()
        originals = {name: getattr(os, name) for name in STEPS}
        for name in STEPS:
            watch(name)
        await operation(life)
        for name, real in originals.items():
            monkeypatch.setattr(os, name, real)
        after = await life.state()
    assert len(copies) >= 4
    seen = set()
    for copy in copies:
        async with Life(copy) as life:
            found = await life.state()
            assert found in (before, after)
            seen.add(found == after)
            left = {path.name.partition(".")[0] for path in copy.iterdir()} - {"pool"}
            assert left == {str(space.uuid) for space in life.subsystem.namespaces.values()}, "nothing half made"
    assert seen == {False, True}
