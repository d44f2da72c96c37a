"""A file namespace and a loss of power at any point of a workload: nothing that was secured is lost."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.target.storage import file_calls
from nvmeof.target.storage.file import FileBackend
from tests.crash.block_layer import Journal, everything, journal_of, nothing_more
from tests.crash.history import History
from tests.target.backend_tools import read, settled

BLOCKS = 12


@dataclass(frozen=True)
class Command:
    """`kind`: write, zeroes, same (Compare and Write), copy, or flush."""

    kind: str
    block: int = 0
    count: int = 1
    fua: bool = False


COMMANDS = st.builds(
    Command,
    st.sampled_from(["write", "write", "write", "zeroes", "same"]),
    st.integers(0, BLOCKS - 1),
    st.integers(1, 3),
    st.booleans(),
)
TURNS = st.lists(
    st.one_of(
        st.lists(st.one_of(COMMANDS, st.just(Command("flush"))), min_size=1, max_size=6),
        st.builds(lambda *at: [Command("copy", *at)], st.integers(0, BLOCKS - 1), st.integers(1, 3), st.booleans()),
        st.just([Command("flush")]),
    ),
    min_size=1,
    max_size=5,
)


@dataclass
class Host:
    """Sends commands to a backend, several at a time, and remembers what it was told."""

    backend: FileBackend
    history: History
    block_bytes: int
    marks: int = 0

    def content(self) -> bytes:
        """Of a block, unlike that of any other."""
        self.marks += 1
        return self.marks.to_bytes(2, "big") * (self.block_bytes // 2)

    async def send(self, command: Command) -> None:
        if command.kind == "flush":
            about = self.history.flushing()
            await settled(self.backend.flush())
            self.history.flushed(about)
            return
        start, size, fua = command.block, self.block_bytes, command.fua
        count = min(command.count, BLOCKS - start)
        offset, length = start * size, count * size
        data = b"".join(bytes(size) if command.kind == "zeroes" else self.content() for _ in range(count))
        if command.kind == "copy":
            source = (start + 4) % (BLOCKS - count)
            data = await read(self.backend, source * size, length)
        blocks = {start + index: data[index * size :][:size] for index in range(count)}
        operation: dict[str, Callable[[], Any]] = {
            "write": lambda: self.backend.write(offset, memoryview(bytearray(data)), fua=fua),
            "zeroes": lambda: self.backend.write_zeroes(offset, length, deallocate=bool(start % 2), fua=fua),
            "copy": lambda: self.backend.copy(source * size, offset, length, fua=fua),
        }
        if command.kind == "same":
            await self._compare_and_write(offset, data, blocks, fua)
            return
        written = self.history.sent(blocks, fua=fua)
        await settled(operation[command.kind]())
        self.history.completed(written)

    async def _compare_and_write(self, offset: int, data: bytes, blocks: dict[int, bytes], fua: bool) -> None:
        held = await read(self.backend, offset, len(data))
        written = self.history.sent(blocks, fua=fua)
        if await settled(self.backend.compare_and_write(offset, memoryview(held), memoryview(data), fua=fua)):
            self.history.completed(written)
        else:
            self.history.writes.remove(written)  # it has written nothing


async def play(path: Path, turns: list[list[Command]], block_bytes: int, history: History) -> None:
    backend = FileBackend(path, block_bytes=block_bytes)
    await backend.open()
    host = Host(backend, history, block_bytes)
    for turn in turns:
        await asyncio.gather(*(host.send(command) for command in turn))
    history.journal.note("closing")
    await backend.close()


def losses(journal: Journal, seed: int) -> list[tuple[int, Callable[[int], int]]]:
    """Each point of a journal, with what is left: as little as possible, as much, and by chance."""
    draw = random.Random(seed)
    by_chance = [lambda count: draw.randrange(count), lambda count: (count - 1) * (draw.random() < 0.5)]
    return [
        (cut, choose) for cut in range(len(journal.entries) + 1) for choose in (nothing_more, everything, *by_chance)
    ]


def run(turns: list[list[Command]], block_bytes: int, seed: int, no_dsync: bool = False) -> int:
    """Play turns, then each loss of power; return how many losses there were."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        path = Path(name) / "disk"
        path.write_bytes(bytes(BLOCKS * block_bytes))
        journal = journal_of(Path(name), patch)
        if no_dsync:
            patch.setattr(file_calls, "os", _WithoutDsync())
        history = History(journal)
        asyncio.run(play(path, turns, block_bytes, history))
        file = journal.names[Path(name), "disk"]
        assert file is not None
        cases = losses(journal, seed)
        for cut, choose in cases:
            assert not [*history.wrong(journal.media_of(file, cut, choose), cut, block_bytes)]
        return len(cases)


class _WithoutDsync:
    """The `os` of a file system that takes no RWF_DSYNC."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwritev(self, fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_DSYNC:
            raise OSError(95, "not supported")
        return os.pwritev(fd, buffers, offset, flags)


@given(TURNS, st.sampled_from([512, 4096]), st.integers(0, 1 << 32), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_that_was_secured_is_lost(
    turns: list[list[Command]], block_bytes: int, seed: int, no_dsync: bool
) -> None:
    run(turns, block_bytes, seed, no_dsync)


def test_a_group_of_writes_with_fua_is_lost_nowhere() -> None:
    group = [Command("write", block % BLOCKS, 1, True) for block in range(24)]
    assert run([group, group, [Command("flush")]], 4096, 1) > 400


@pytest.mark.parametrize("broken", ["sync", "dsync", "group"])
def test_a_storage_that_forgets_a_sync_is_found(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has teeth."""
    if broken == "dsync":
        monkeypatch.setattr(os, "RWF_DSYNC", 0)
        turns = [[Command("write", 1, 1, True)]]
    else:
        monkeypatch.setattr(FileBackend, "_sync", lambda self, since: None)
        turns = [[Command("write", 1)], [Command("flush")]]
        if broken == "group":
            turns = [[Command("write", 1, 1, True), Command("write", 2, 1, True)]]
    with pytest.raises(AssertionError, match="block"):
        run(turns, 512, 1)
