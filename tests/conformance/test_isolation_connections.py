"""The shares of one host in connections, and lines of the log before its Connect (docs/isolation.md)."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nvmeof.errors import TransportError
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.transport import SocketOptions
from tests.conformance.rawhost import (
    RawHost,
    admin,
    causes,
    icreq,
    make_sqe,
    until,
)
from tests.conformance.sharing import (
    AT_ONCE,
    MIB,
    OTHER,
    behaving,
    target_of,
)


async def test_connections_of_one_address(log, manner):
    """Existing associations keep their connections; one address has at most half of all."""
    async with target_of(Ramdisk(MIB)) as target:
        target.connections._counted.most = 16
        greedy = []
        with contextlib.suppress(TransportError, ConnectionError, EOFError, AssertionError):
            for _ in range(12):
                greedy.append(await admin(target, sqsize=31))
        assert len(greedy) == 8 and causes(log.records, "connection refused")
        async with behaving(manner, greedy):
            for host in greedy:
                page = [make_sqe(cid, 0x02, length=65536, cdw10=0x3FFF << 16 | 1) for cid in range(8)]
                await host.send(b"".join(map(host.capsule, page)))
            async with asyncio.timeout(AT_ONCE):
                other = await RawHost.open(target, options=SocketOptions(host_traddr="127.0.0.2"))
                await other.connect(**OTHER)
            assert len(target.drivers) == 9


async def dribble(host: RawHost, data: bytes) -> None:
    """Send a byte now and then."""
    for number in range(len(data)):
        await host.send(data[number : number + 1])
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["silent", "half an ICReq", "byte by byte"])
async def test_connections_without_a_connect(log, how):
    async with target_of(Ramdisk(MIB)) as target:
        target.connections.strangers.most = 16
        opened: list[RawHost] = []
        dribbling: list[asyncio.Task[None]] = []
        for _ in range(12):
            with contextlib.suppress(TransportError, ConnectionError):  # a refused one may be reset while it connects
                opened.append(await RawHost.open(target, handshake=False))
                if how == "half an ICReq":
                    await opened[-1].send(icreq()[:64])
                elif how == "byte by byte":
                    dribbling.append(asyncio.create_task(dribble(opened[-1], icreq()[:-1])))
        await until(lambda: len(target.drivers) == 8 and "connection refused" in log.text)
        elsewhere = SocketOptions(host_traddr="127.0.0.2")
        async with asyncio.timeout(AT_ONCE):
            host = await RawHost.open(target, options=elsewhere)
            await host.connect(**OTHER)
        for task in dribbling:
            task.cancel()
        await asyncio.gather(*dribbling, return_exceptions=True)
        for each in opened:
            each.close()
        await until(lambda: len(target.drivers) == 1 and not target.connections.strangers.taken)


async def test_lines_of_the_log(log):
    async with target_of(Ramdisk(MIB)) as target:
        for number in range(100):
            host = await RawHost.open(target, handshake=number % 2 > 0)
            if number % 2:
                assert (await host.try_connect(subnqn="nqn.2026-01.org.example:none")).status
            else:
                await host.send(b"\xff" * 128)
            host.close()
        await until(lambda: not target.drivers)
        assert len(causes(log.records, "127.0.0.1:")) < 30
        assert (await admin(target)).cntlid and causes(log.records, "connected"), "hosts have lines of their own"
