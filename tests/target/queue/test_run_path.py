"""Runs of commands of a file, from the wire to the file, with the fast path and without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeof.target.queue.fast_path import FastPath
from nvmeof.target.queue.run_path import RunPath
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.conformance.rawhost import RawHost, association, io_sqe, running, until

READ, WRITE = 2, 1
BLOCK = 512
PAGE = 4096
LBA_OUT_OF_RANGE = 0x80


@pytest.fixture(params=["on", "off"])
def fast_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Force the fast path on or off; yield how many Writes each run took."""
    taken: list[int] = []
    if request.param == "off":
        monkeypatch.setattr(FastPath, "learn", lambda self, *arguments, **options: None)
    else:
        begin = RunPath._begin

        def counted(self: RunPath, *arguments: Any) -> bool:
            taken.append(len(arguments[3]))
            return begin(self, *arguments)

        monkeypatch.setattr(RunPath, "_begin", counted)
    yield taken
    assert bool(taken) == (request.param == "on")
    RawHost.close_all()


def page(number: int) -> bytes:
    return bytes([number + 1]) * PAGE


def write(io: RawHost, cid: int, number: int) -> bytes:
    sqe = io_sqe(cid, WRITE, number * PAGE // BLOCK, PAGE // BLOCK, sgl=1)
    return io.capsule(sqe, page(number))


async def completions(io: RawHost, count: int) -> dict[int, int]:
    """Return the status by CID of ``count`` commands."""
    found = [await io.completion() for _ in range(count)]
    return {cqe.cid: cqe.status for cqe in found}


async def test_writes_and_reads_in_one_send(fast_path: list[int], tmp_path: Path) -> None:
    path = tmp_path / "image"
    config = NamespaceConfig(backend=FileBackend(path, size=64 * PAGE))
    async with running(namespaces=[config]) as target:
        _, io = await association(target)
        await io.send(write(io, 100, 63))
        assert (await io.completion(100)).status == 0
        # neighbours, and one that lies behind them
        numbers = [3, 4, 5, 20, 21, 40]
        await io.send(b"".join(write(io, cid, number) for cid, number in enumerate(numbers)))
        assert await completions(io, len(numbers)) == dict.fromkeys(range(len(numbers)), 0)
        for number in numbers:
            assert bytes((await io.read(number * PAGE // BLOCK, PAGE // BLOCK, cid=number)).data) == page(number)
        (subsystem,) = [each for each in target.subsystems.values() if each.namespaces]
        namespace = subsystem.namespaces[1]
        assert (namespace.counters.writes, namespace.counters.blocks_written) == (7, 7 * PAGE // BLOCK)
        assert namespace.counters.reads == len(numbers)


async def test_the_first_writes_of_a_queue_come_together(fast_path: list[int], tmp_path: Path) -> None:
    """The first one leaves the template; those behind it in the same receive are a run, and not as on memory."""
    path = tmp_path / "image"
    config = NamespaceConfig(backend=FileBackend(path, size=64 * PAGE))
    async with running(namespaces=[config]) as target:
        _, io = await association(target)
        numbers = [3, 4, 5, 20, 21, 40]
        await io.send(b"".join(write(io, cid, number) for cid, number in enumerate(numbers)))
        assert await completions(io, len(numbers)) == dict.fromkeys(range(len(numbers)), 0)
        content = path.read_bytes()
        for number in numbers:
            assert content[number * PAGE :][:PAGE] == page(number)
        (subsystem,) = [each for each in target.subsystems.values() if each.namespaces]
        assert subsystem.namespaces[1].counters.writes == len(numbers)


async def test_each_write_of_a_run_fails_by_itself(fast_path: list[int], tmp_path: Path) -> None:
    path = tmp_path / "image"
    config = NamespaceConfig(backend=FileBackend(path, size=64 * PAGE))
    async with running(check=False, namespaces=[config]) as target:
        _, io = await association(target)
        await io.send(write(io, 100, 0))
        assert (await io.completion(100)).status == 0
        os.truncate(path, 32 * PAGE)
        await io.send(b"".join(write(io, cid, number) for cid, number in enumerate([1, 40, 2, 50])))
        assert await completions(io, 4) == {0: 0, 1: LBA_OUT_OF_RANGE, 2: 0, 3: LBA_OUT_OF_RANGE}


async def test_a_cid_that_a_run_uses_is_in_use(fast_path: list[int], tmp_path: Path) -> None:
    config = NamespaceConfig(backend=FileBackend(tmp_path / "image", size=64 * PAGE))
    async with running(namespaces=[config]) as target:
        _, io = await association(target)
        await io.send(write(io, 100, 0))
        assert (await io.completion(100)).status == 0
        await io.send(b"".join(write(io, cid, cid) for cid in (1, 2, 3, 4, 2)))
        found = [await io.completion() for _ in range(5)]
        assert sorted((cqe.cid, cqe.status) for cqe in found) in (
            [(1, 0), (2, 0), (2, 3), (3, 0), (4, 0)],
            [(1, 0), (2, 0), (2, 0), (3, 0), (4, 0)],  # the first one had ended
        )


async def test_writes_of_a_lost_connection_end(fast_path: list[int], tmp_path: Path) -> None:
    path = tmp_path / "image"
    backend = FileBackend(path, size=64 * PAGE)
    async with running(namespaces=[NamespaceConfig(backend=backend)]) as target:
        _, io = await association(target)
        await io.send(write(io, 100, 0))
        assert (await io.completion(100)).status == 0
        await io.send(b"".join(write(io, cid, cid) for cid in range(1, 7)))
        io.abort()
        await until(lambda: not backend._ranges)
        await association(target)  # a Connect would wait for writes of the lost connection
