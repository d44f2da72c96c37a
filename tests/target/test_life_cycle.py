"""The life of a target: a start that fails half-way, draining, and namespaces that come and go while commands run."""

from __future__ import annotations

import asyncio

import pytest

from nvmeof.errors import ConfigurationError, LocalProtocolError
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import FLUSH, READ, RawHost, association, io_sqe, running, until
from tests.target.backend_tools import SlowFlush


@pytest.fixture(autouse=True)
def left_open():
    yield
    RawHost.close_all()


class Noted(Ramdisk):
    """A backend that records whether it is open, and fails to open on request."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("1M")
        self.fails, self.opened, self.closed = fails, 0, 0

    async def open(self) -> None:
        if self.fails:
            raise OSError(5, "the medium does not answer")
        await super().open()
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1
        await super().close()


async def test_a_failed_start_closes_opened_files_and_can_be_repeated():
    first, second = Noted(), Noted(fails=True)
    target = Target(namespaces=[first, second], trtype="memory", listen="memory:0")
    with pytest.raises(OSError, match="does not answer"):
        await target.start()
    assert (first.opened, first.closed) == (1, 1) and not second.opened
    assert not target.listeners and not target.drivers
    with pytest.raises(LocalProtocolError):
        await target.add_namespace(Ramdisk("1M"))
    second.fails = False
    await target.start()
    hosts = await association(target)
    assert (await hosts[1].read(0, 1)).status == 0
    await target.stop()
    assert (first.closed, second.closed) == (2, 1)


async def test_a_stop_waits_for_commands_in_progress_and_completes_them():
    backend = SlowFlush()
    target = Target(namespaces=[backend], trtype="memory", listen="memory:0")
    await target.start()
    hosts = await association(target)
    await hosts[1].send(hosts[1].capsule(io_sqe(7, FLUSH, 0, 1, length=0)))
    await until(lambda: backend.flushes)
    stopping = asyncio.ensure_future(target.stop(drain_seconds=30))
    await until(lambda: all(driver._draining for driver in target.drivers if driver.queue.ctx.qid))
    await hosts[1].send(hosts[1].capsule(io_sqe(8, READ, 0, 1)))  # too late: not begun
    backend.go_on.set()
    assert (await hosts[1].completion(7)).status == 0
    await hosts[1].ended()
    await stopping
    assert not target.drivers and not target.tasks


async def test_a_stop_cancels_commands_that_do_not_end():
    backend = SlowFlush()
    target = Target(namespaces=[backend], trtype="memory", listen="memory:0")
    await target.start()
    hosts = await association(target)
    await hosts[1].send(hosts[1].capsule(io_sqe(7, FLUSH, 0, 1, length=0)))
    await until(lambda: backend.flushes)
    stopping = asyncio.ensure_future(target.stop(drain_seconds=0.05))
    await hosts[1].ended()
    backend.go_on.set()
    await stopping
    assert not target.drivers


async def test_a_namespace_is_removed_while_a_command_of_it_runs():
    backend = SlowFlush()
    async with running(namespaces=[backend, Ramdisk("1M")]) as target:
        hosts = await association(target)
        await hosts[1].send(hosts[1].capsule(io_sqe(7, FLUSH, 0, 1, length=0)))
        await until(lambda: backend.flushes)
        removing = asyncio.ensure_future(target.remove_namespace(1))
        await asyncio.sleep(0)
        assert (await hosts[1].read(0, 1, 8)).status != 0, "it no longer exists"
        backend.go_on.set()
        await removing
        await hosts[1].completion(7)
        with pytest.raises(ConfigurationError):
            await target.remove_namespace(1)
        assert await target.add_namespace(Ramdisk("1M")) == 1
        assert (await hosts[1].read(0, 1, 9)).status == 0
