"""The shares of one host in events, errors and lines of the log (docs/isolation.md): once silent, once slow.

The rows of the table itself must name their tests.
"""

from __future__ import annotations

import ast
import asyncio
import re
from functools import cache
from pathlib import Path

import pytest

from nvmeof.spec.log_pages import ERROR_INFORMATION_ENTRY
from nvmeof.spec.status import Status
from nvmeof.target.controller.error_log import ERROR_LOG_ENTRIES
from nvmeof.target.core.log_rate import PeerRate
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import READ, RawHost, admin, causes, io, io_sqe, make_sqe, until
from tests.conformance.sharing import (
    AT_ONCE,
    MIB,
    OTHER,
    SMALL,
    behaving,
    served,
    target_of,
    without_runs,
)

ASYNC_EVENT_REQUEST, SET_FEATURES, GET_LOG_PAGE = 0x0C, 0x09, 0x02
NAMESPACE_ATTRIBUTE_NOTICES = 1 << 8
EVENT_REQUESTS = 4
ROOT = Path(__file__).parents[2]


async def listening(host: RawHost, requests: int, first: int = 100) -> None:
    """Enable namespace events, and let requests wait for them."""
    notices = make_sqe(1, SET_FEATURES, cdw10=0x0B, cdw11=NAMESPACE_ATTRIBUTE_NOTICES)
    assert (await host.call(notices)).status == 0
    cids = range(first, first + requests)
    await host.send(b"".join(host.capsule(make_sqe(cid, ASYNC_EVENT_REQUEST)) for cid in cids))


async def test_event_requests_of_one_host(manner):
    """Requests beyond its limit are refused; another host has as many, and gets its events at once."""
    async with target_of(Ramdisk(MIB)) as target:
        greedy = await admin(target, sqsize=127)
        async with behaving(manner, [greedy]):
            await listening(greedy, 100)
            [controller] = target.subsystems[target.subnqn].controllers.values()
            await until(lambda: len(controller.events._requests) == EVENT_REQUESTS)
            async with asyncio.timeout(AT_ONCE):
                other = await admin(target, **OTHER)
                await listening(other, EVENT_REQUESTS + 1)
                refused = await other.completion(100 + EVENT_REQUESTS)
                assert refused.status == Status.ASYNC_EVENT_LIMIT_EXCEEDED
                target.administration.resize_namespace(1, MIB // 2)
                assert (await other.completion(100)).status == 0
        assert len(controller.events._requests) <= EVENT_REQUESTS


async def test_events_that_wait_for_a_request(manner):
    """One event of a kind is held, however often it happens; a host with a request gets the first at once."""
    async with target_of(Ramdisk(MIB)) as target:
        greedy = await admin(target, sqsize=127)
        await listening(greedy, 0)
        [controller] = target.subsystems[target.subnqn].controllers.values()
        async with behaving(manner, [greedy]):
            page = make_sqe(2, GET_LOG_PAGE, length=4096, cdw10=1023 << 16 | 4 | 1 << 15)  # RAE: the event stays
            await greedy.send(greedy.capsule(page))
            other = await admin(target, **OTHER)
            await listening(other, 1)
            for number in range(200):
                target.administration.resize_namespace(1, MIB // 2 if number % 2 else MIB)
            target.administration.resize_namespace(1, MIB // 2)
            async with asyncio.timeout(AT_ONCE):
                assert (await other.completion(100)).status == 0
            assert len(controller.events._waiting) == 1


async def test_errors_of_one_host(manner):
    """Its errors replace its own oldest entries, and none of another host's."""
    async with target_of(Ramdisk(MIB)) as target:
        other = await admin(target, **OTHER)
        assert (await other.call(make_sqe(1, 0xC5))).status == Status.INVALID_OPCODE
        greedy = await admin(target, sqsize=127)
        mine, theirs = sorted(
            target.subsystems[target.subnqn].controllers.values(), key=lambda each: each.cntlid != other.cntlid
        )
        async with behaving(manner, [greedy]):
            for start in (0, 100, 200):
                cids = range(start, start + 100)
                await greedy.send(b"".join(greedy.capsule(make_sqe(cid, 0xC5)) for cid in cids))
                await until(lambda: theirs.error_log.count == start + 100)  # noqa: B023 - awaited here
            assert len(theirs.error_log._entries) == ERROR_LOG_ENTRIES and mine.error_log.count == 1
            async with asyncio.timeout(AT_ONCE):
                page = await other.call(make_sqe(2, GET_LOG_PAGE, length=128, cdw10=31 << 16 | 1))
            entries = [ERROR_INFORMATION_ENTRY.parse(page.data[at : at + 64]) for at in (0, 64)]
            assert [entry.error_count for entry in entries] == [1, 0]


async def test_lines_of_the_log_by_hosts(log, manner):
    """Lines that a connected host causes are counted by address, and a line says how many were left out."""
    async with target_of(Ramdisk(MIB)) as target:
        target.registry.peer_log.hosts = PeerRate(20, 5.0)
        greedy = [await admin(target) for _ in range(4)]
        async with behaving(manner, greedy):
            for _ in range(30):
                host = await admin(target, sqsize=31)
                host.close()
            await until(lambda: len(target.drivers) == 4)
            about = causes(log.records, "127.0.0.1:")
            assert 15 <= len(about) <= 45
            await asyncio.sleep(0.4)  # two more lines are allowed
            await served(target)
        assert causes(log.records, "lines about this peer were left out")


async def test_completions_that_are_not_received(tmp_path, manner):
    """Held commands of a host whose output is full delay no other host."""
    async with target_of(FileBackend(tmp_path / "disk", size=16 * MIB)) as target:
        without_runs(target)
        first = await admin(target)
        greedy = [await io(target, first.cntlid, qid, options=SMALL, sqsize=127) for qid in range(1, 5)]
        async with behaving(manner, greedy):
            for host in greedy:
                await host.send(b"".join(host.capsule(io_sqe(cid, READ, 8 * cid, 8)) for cid in range(127)))
            queues = [driver.queue for driver in target.drivers if driver.queue.ctx.qid]
            await until(lambda: any(queue.staging.reads or queue.held for queue in queues))
            await served(target)
            assert all(len(queue.held) <= 128 and queue.pending <= 128 for queue in queues)


# -- the table

ROWS = re.compile(r"^\| (?!resource|---)(.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`")
HERE = tuple(f"tests/conformance/test_isolation{part}.py" for part in ("", "_connections", "_events"))


@cache
def functions(path: str) -> dict[str, str]:
    """Return the tests of a file, each with its source."""
    text = (ROOT / path).read_text()
    found = (each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    return {each.name: "\n".join(ast.unparse(each).splitlines()[:8]) for each in found}


def rows() -> list[list[str]]:
    text = (ROOT / "docs/isolation.md").read_text()
    return [[cell.strip() for cell in row.split("|")] for row in ROWS.findall(text)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_row_names_its_tests(row):
    assert len(row) == 5, "resource, share, reserve, at the limit, tests"
    tests = row[4]
    named = NAMED.findall(tests)
    if not named:
        assert tests.startswith("none:"), "a row without a test says why"
        return
    sources = []
    for path, name in named:
        places = [path] if path else [each for each in HERE if name in functions(each)]
        assert places and name in functions(places[0]), f"{path} {name} is no test"
        sources.append(functions(places[0])[name])
    manners = any(re.search(r"\bmanner\b|byte by byte", source) for source in sources)
    assert manners == ("silent and slow" in tests), "silent and slow hosts are what the row says"


def test_every_test_of_isolation_is_in_the_table():
    named = {name for row in rows() for _, name in NAMED.findall(row[4])}
    there = {name for path in HERE for name in functions(path) if name.startswith("test_")}
    assert there - named == {"test_each_row_names_its_tests", "test_every_test_of_isolation_is_in_the_table"}
