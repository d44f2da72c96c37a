"""tshark reads the traffic of our host and our target.

The traffic has no padding before data, since tshark 4.0 expects data right behind the header, whatever PDO says.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

import nvmeof
from nvmeof.errors import NvmeStatusError
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.interop import tshark
from tests.interop.pcap import Direction, Piece, write_pcap

pytestmark = pytest.mark.skipif(not tshark.available(), reason="tshark is not installed")


class Relay:
    """A relay that passes TCP connections on to a target and records the bytes, in order."""

    def __init__(self, port: int) -> None:
        self.pieces: list[Piece] = []
        self.port = 0
        self._target_port = port
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.wait_for(asyncio.gather(*self._tasks, return_exceptions=True), 5)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self._connections
        self._connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        for source, sink, direction in ((reader, far_writer, "h2c"), (far_reader, writer, "c2h")):
            task = asyncio.create_task(self._pass_on(number, source, sink, direction))  # type: ignore[arg-type]
            self._tasks.add(task)

    async def _pass_on(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                self.pieces.append(Piece(number, direction, loop.time(), data))
                sink.write(data)
                await sink.drain()
        sink.close()


async def _talk(port: int, subnqn: str, **options: Any) -> None:
    noise = random.Random(4420)
    assert [e.subnqn for e in await nvmeof.discover("127.0.0.1", port, transport="tcp") if e.subnqn == subnqn]
    async with await nvmeof.connect("127.0.0.1", port, subnqn=subnqn, transport="tcp", **options) as controller:
        await controller.smart_log()
        await controller.error_log(4)
        (namespace,) = await controller.namespaces()
        size = namespace.block_bytes
        blocks = [1, 8, 16, 24, 300, 2048, 1]
        data = [noise.randbytes(count * size) for count in blocks]
        await asyncio.gather(*(namespace.write(4096 * i, part) for i, part in enumerate(data)))
        await namespace.flush()
        found = await asyncio.gather(*(namespace.read(4096 * i, count) for i, count in enumerate(blocks)))
        assert found == data
        await namespace.write_zeroes(0, 64)
        await namespace.deallocate([(4096, 8), (8192, 8)])
        with pytest.raises(NvmeStatusError):
            await namespace.read(namespace.size_blocks, 1)


@pytest.mark.parametrize("digests", [False, True], ids=["plain", "digests"])
@pytest.mark.parametrize(
    ("host", "target"),
    [
        pytest.param({"nr_io_queues": 2}, {}, id="as usual"),
        pytest.param({"disable_sqflow": True, "queue_size": 8}, {}, id="SUCCESS in place of completions"),
        pytest.param({"maxr2t": 3}, {"r2t_bytes": 65536, "maxh2cdata_bytes": 16384}, id="several R2Ts and H2CDatas"),
    ],
)
async def test_tshark_has_no_complaint(
    host: dict[str, Any], target: dict[str, Any], digests: bool, tmp_path: Path
) -> None:
    config = ConnectionConfig(header_digest=True, data_digest=True, **target)
    async with (
        nvmeof.Target(namespaces=[Ramdisk("64M")], trtype="tcp", connection=config) as served,
        Relay(served.address.port) as relay,
    ):
        await _talk(relay.port, served.subnqn, hdr_digest=digests, data_digest=digests, **host)
    first = relay.pieces[0].time_seconds
    pieces = [Piece(p.connection, p.direction, p.time_seconds - first, p.data) for p in relay.pieces]
    write_pcap(tmp_path / "own.pcap", pieces)
    reading = tshark.read(tmp_path / "own.pcap")
    assert reading.complaints() == []
    assert reading.streams == 2 + 1 * host.get("nr_io_queues", 1)
    assert (reading.good_digests > 60) == digests
    for kind in ("ICReq", "ICResp", "CapsuleCmd", "CapsuleResp", "H2CData", "C2HData", "R2T"):
        assert reading.pdus[kind], reading.summary()
    if "r2t_bytes" in target:
        assert reading.pdus["R2T"] >= (1 << 20) // 65536 and reading.pdus["H2CData"] >= (1 << 20) // 16384
    if "disable_sqflow" in host:
        assert reading.pdus["CapsuleResp"] < reading.command_count
