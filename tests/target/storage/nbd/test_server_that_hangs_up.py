"""A server that takes every connection, agrees to everything, and hangs up at once."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from nvmeof.nbd.uri import NbdUri
from nvmeof.target.storage.nbd.client import LINES_AT_ONCE, NbdClient
from nvmeof.target.storage.nbd.request import NbdRequest


async def test_it_is_tried_again_slowly_and_in_few_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    greeted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        writer.write(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        await reader.readexactly(4)
        try:
            while True:
                _, option, length = struct.unpack(">QII", await reader.readexactly(16))
                await reader.readexactly(length)
                if option == 6 or option == 7:
                    facts = struct.pack(">HQH", 0, 1 << 20, 1)
                    writer.write(struct.pack(">QIII", 0x3E889045565A9, option, 3, len(facts)) + facts)
                    writer.write(struct.pack(">QIII", 0x3E889045565A9, option, 1, 0))
                    await writer.drain()
                    break
                writer.write(struct.pack(">QIII", 0x3E889045565A9, option, 1 << 31 | 1, 0))
        except asyncio.IncompleteReadError:
            pass
        await asyncio.sleep(0.005)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(tmp_path / "s"))
    client = NbdClient(NbdUri(path=str(tmp_path / "s")), connections=1, wait=1.0)
    async with server:
        await client.open()
        reading = client.begin(NbdRequest(0, 0, 512, memoryview(bytearray(512))))
        await asyncio.sleep(1.5)
        await client.close()
        assert 3 <= greeted <= 8, "after 0, 0.05, 0.1, 0.2, 0.4 and 0.8 s"
        assert isinstance(reading.exception(), OSError)
    assert len(caplog.messages) <= 2 * LINES_AT_ONCE
