"""The parts of `tests.interop.survive` that need no virtual machine: the load, the time line, our host's side, the
page.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from nvmeof import Ramdisk, Target
from tests.interop.guest import REPOSITORY
from tests.interop.survive import report
from tests.interop.survive.events import EVENTS
from tests.interop.survive.load import VerifyingLoad, stamp
from tests.interop.survive.rig import ADDRESSES, NQN, Run, Seen
from tests.interop.survive.timeline import line
from tests.interop.survive.watch import Order

SIZE = 512
BLOCKS = 512


class Memory:
    """A device that can lose writes, and fail."""

    failure: type[Exception] = OSError
    block_bytes = SIZE

    def __init__(self) -> None:
        self.data = bytearray(BLOCKS * SIZE)
        self.loses_writes = False
        self.fails = False
        self._left = 0
        self._reached = asyncio.Event()

    async def operations(self, count: int) -> None:
        """Wait until ``count`` more operations were begun."""
        self._left = count
        self._reached.clear()
        await self._reached.wait()

    async def _begin(self) -> None:
        await asyncio.sleep(0)
        self._left -= 1
        if not self._left:
            self._reached.set()

    async def read(self, first: int, blocks: int) -> bytes:
        await self._begin()
        if self.fails:
            raise OSError("gone")
        return bytes(self.data[first * SIZE : (first + blocks) * SIZE])

    async def write(self, first: int, data: bytes) -> None:
        await self._begin()
        if self.fails:
            self.data[first * SIZE : first * SIZE + len(data)] = data  # executed, but never completed
            raise OSError("gone")
        if not self.loses_writes:
            self.data[first * SIZE : first * SIZE + len(data)] = data


async def _loaded(memory: Memory) -> VerifyingLoad:
    load = VerifyingLoad(memory, 7, 0, BLOCKS, pause_seconds=0.0)
    await load.fill()
    load.start()
    await memory.operations(40)
    return load


async def test_a_good_device_has_no_faults() -> None:
    load = await _loaded(Memory())
    await load.stop()
    assert await load.verify() == BLOCKS
    assert not load.wrong and not load.errors


async def test_a_lost_write_is_found() -> None:
    memory = Memory()
    load = await _loaded(memory)
    memory.loses_writes = True
    await memory.operations(20)
    await load.stop()
    await load.verify()
    assert load.wrong and "is right) has run 0x7 block" in load.wrong[0][1]


@pytest.mark.parametrize(
    "content", [bytes(SIZE), stamp(8, 3, 1, SIZE), stamp(7, 4, 1, SIZE), stamp(7, 3, 1 << 40, SIZE)]
)
async def test_a_foreign_block_is_found(content: bytes) -> None:
    memory = Memory()
    load = await _loaded(memory)
    await load.stop()
    memory.data[3 * SIZE : 4 * SIZE] = content
    await load.verify()
    assert len(load.wrong) == 1


async def test_a_write_that_failed_may_have_been_executed() -> None:
    memory = Memory()
    load = await _loaded(memory)
    memory.fails = True
    await memory.operations(8)
    memory.fails = False
    await load.stop()
    await load.verify()
    assert load.errors and not load.wrong


async def test_our_host_with_our_target(tmp_path: Path) -> None:
    """Our side as a whole: a path is lost under the load, and the time line shows it."""
    async with Target(
        namespaces=[Ramdisk("16M")], listen=["127.0.0.2:0", "127.0.0.3:0"], trtype="tcp", subnqn=NQN
    ) as target:
        ports = [port.listeners[0].address.port for port in target.ports.values()]
        stop = tmp_path / "stop"
        order = Order(NQN, ["127.0.0.2", "127.0.0.3"], 7, 0, 2048, str(stop), ports)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.interop.survive.our_host", json.dumps(asdict(order)),
            cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        await asyncio.sleep(0.3)
        await target.administration.remove_port(1)
        stop.write_text("1")
        found = json.loads((await process.communicate())[0])
    assert found["compared"] == 2048 and not found["wrong"] and not found["errors"]
    assert ["127.0.0.2 state", "connecting"] in [change[1:] for change in found["changes"]]
    assert found["carried"][-1][1] == "127.0.0.3"


def _run(changes: list[tuple[float, str, str]], carried: list[tuple[float, str, int]]) -> Run:
    one, two = ADDRESSES
    before = [(0.0, f"{one} state", "live"), (0.0, f"{two} state", "live"), (0.0, "bytes", "1")]
    found = {
        "changes": [(at + 5, key, value) for at, key, value in [*before, *changes]],
        "carried": [(at + 5, path, number) for at, path, number in carried],
        "errors": [], "wrong": [], "error_count": 0, "reads": 3, "writes": 4, "longest_seconds": 0.5, "compared": 8,
    }  # fmt: skip
    return Run(EVENTS[0], 10.0, 15.0, Seen(found, 5.0), Seen(found, 5.0))


def test_a_time_line() -> None:
    one, two = ADDRESSES
    run = _run(
        [(10.5, f"{one} state", "connecting"), (20.75, f"{one} state", "live")],
        [(9.0, one, 5), (10.25, one, 1), (11.0, two, 1), (21.0, one, 2)],
    )
    found = line(run, run.ours)
    assert (found.noticed, found.failed_over, found.back, found.commands) == (0.5, 1.0, 5.75, 7)
    assert not found.faults


def test_a_path_that_does_not_come_back_is_a_fault() -> None:
    one, two = ADDRESSES
    run = _run([(10.5, f"{one} state", "connecting")], [(9.0, one, 5), (11.0, two, 1)])
    assert line(run, run.ours).back is None
    assert line(run, run.ours).faults == ["not all paths came back"]


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "REPOSITORY", tmp_path)
    (tmp_path / "docs").mkdir()
    run = _run([], [])
    both = {"ours": asdict(line(run, run.ours)), "kernel": asdict(line(run, run.kernel))}
    results = {"release": "6.12.1-amd64", "events": {EVENTS[0].name: both, EVENTS[-1].name: both}}
    (tmp_path / "6.12.json").write_text(json.dumps(results))
    assert report.write_document(tmp_path) == "docs/failure-timeline.md: 6.12"
    page = (tmp_path / report.DOCUMENT).read_text()
    assert "## nvmet of 6.12.1-amd64" in page
    assert f"| {EVENTS[0].what} | - / - | - / - | 0.5 / 0.5 | - / - | 7 / 7 | 0 / 0 | 0 / 0 |" in page
    assert f"| {EVENTS[-1].what} | none | none |" in page
