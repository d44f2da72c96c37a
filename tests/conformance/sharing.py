"""Hosts that share a target, for tests of isolation: silent and slow ones, and one that must be served at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nvmeof.target.server import Target
from nvmeof.target.simple_config import simple_config
from nvmeof.target.subsystem.config import TargetConfig
from nvmeof.transport import SocketOptions
from tests.conformance.rawhost import R2T, RawHost, association, until

MIB = 1 << 20
SLOW_BYTES_PER_SECOND = 2 * MIB
AT_ONCE = 3.0
SMALL = SocketOptions(sndbuf_bytes=65536, rcvbuf_bytes=65536)
OTHER = {"hostnqn": "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555", "hostid": b"o" * 16}


@asynccontextmanager
async def target_of(*backends: Any, staging_bytes: int = 16 * MIB) -> AsyncIterator[Target]:
    config = simple_config(backends, "nqn.2026-01.org.example:shared", "tcp", "127.0.0.1:0", None)
    target = Target(TargetConfig(subsystems=config.subsystems, ports=config.ports, staging_bytes=staging_bytes),
                    options=SMALL)  # fmt: skip
    async with target:
        yield target
        RawHost.close_all()
        await until(lambda: not target.pool.used_bytes and not target.drivers)


@asynccontextmanager
async def behaving(manner: str, hosts: list[RawHost]) -> AsyncIterator[None]:
    """Let hosts receive nothing, or 2 MiB/s together."""

    async def receive() -> None:
        step = 16384
        while True:
            for host in hosts:
                try:
                    host.endpoint.recv_into(bytearray(step))
                except BlockingIOError:
                    pass
                await asyncio.sleep(step / SLOW_BYTES_PER_SECOND)

    task = asyncio.create_task(receive()) if manner == "slow" else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def answer_slowly(host: RawHost) -> None:
    """Answer R2Ts at 2 MiB/s."""
    while True:
        pdu = await host.pdu()
        if pdu.kind != R2T:
            continue
        cid, ttag, _, length = pdu.fields("HHII")
        data = host.h2c(cid, ttag, 0, bytes(length))
        for at in range(0, len(data), 16384):
            await host.send(data[at : at + 16384])
            await asyncio.sleep(16384 / SLOW_BYTES_PER_SECOND)


async def served(target: Target, **fields: Any) -> list[RawHost]:
    """Check that another host connects, reads and writes, each at once."""
    async with asyncio.timeout(AT_ONCE):
        hosts = await association(target, **OTHER)
    for nlb in (8, 2048):
        async with asyncio.timeout(AT_ONCE):
            completion = await hosts[1].read(0, nlb, **fields)
            assert completion.status == 0 and len(completion.data) == nlb * 512
        async with asyncio.timeout(AT_ONCE):
            assert (await hosts[1].write(0, bytes(nlb * 512), in_capsule=False, **fields)).status == 0
    return hosts


def without_runs(target: Target) -> None:
    """Let the namespaces of a running target execute commands one by one instead of as runs."""
    for subsystem in target.subsystems.values():
        for namespace in subsystem.namespaces.values():
            namespace.runs = None
