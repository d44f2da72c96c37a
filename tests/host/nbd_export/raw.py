"""A raw NBD client: sends any bytes, and shares no encoder with the product."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

EXTENDED, STRUCTURED, SIMPLE = "extended", "structured", "simple"


class RawClient:
    """One connection, after its negotiation; requests and replies of one form."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, form: str) -> None:
        self.reader, self.writer, self.form = reader, writer, form
        self.size = self.flags = 0
        self._cookie = 0

    @classmethod
    async def connect(cls, path: Path, form: str, *, contexts: bool = True, export: bytes = b"") -> RawClient:
        reader, writer = await asyncio.open_unix_connection(str(path))
        client = cls(reader, writer, form)
        assert await reader.readexactly(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        writer.write(b"\x00\x00\x00\x03")
        if form != SIMPLE:
            assert (await client.option(11 if form == EXTENDED else 8))[0] == 1
            if contexts:
                query = b"base:allocation"
                data = struct.pack(f">I{len(export)}sII", len(export), export, 1, len(query)) + query
                assert (await client.option(10, data))[0] == 1
        kind, infos = await client.option(7, struct.pack(f">I{len(export)}sH", len(export), export, 0))
        assert kind == 1
        (info,) = [data for data in infos if data[:2] == b"\x00\x00"]
        client.size, client.flags = struct.unpack(">QH", info[2:])
        return client

    async def option(self, number: int, data: bytes = b"") -> tuple[int, list[bytes]]:
        """Return the final reply's type, and the data of those before it."""
        self.writer.write(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        found = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", await self.reader.readexactly(20))
            assert magic == 0x3E889045565A9 and option == number
            payload = await self.reader.readexactly(length)
            if kind == 1 or kind >> 31:
                return kind, found
            found.append(payload)

    def send(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        self._cookie += 1
        if self.form == EXTENDED:
            flags |= 0x20 if data else 0
            head = struct.pack(">IHHQQQ", 0x21E41C71, flags, command, self._cookie, offset, length)
        else:
            head = struct.pack(">IHHQQI", 0x25609513, flags, command, self._cookie, offset, length)
        self.writer.write(head + data)
        return self._cookie

    async def reply(self, read_bytes: int = 0) -> tuple[int, int, int, bytes]:
        """Return cookie, error, chunk type and payload of one reply; the reply must have the negotiated form."""
        (magic,) = struct.unpack(">I", await self.reader.readexactly(4))
        if magic == 0x67446698:
            assert self.form != EXTENDED
            error, cookie = struct.unpack(">IQ", await self.reader.readexactly(12))
            return cookie, error, 0, await self.reader.readexactly(0 if error else read_bytes)
        if magic == 0x668E33EF:
            assert self.form == STRUCTURED
            flags, kind, cookie, length = struct.unpack(">HHQI", await self.reader.readexactly(16))
        else:
            assert magic == 0x6E8A278C and self.form == EXTENDED
            flags, kind, cookie, _, length = struct.unpack(">HHQQQ", await self.reader.readexactly(28))
        assert flags == 1
        payload = await self.reader.readexactly(length)
        error = struct.unpack(">I", payload[:4])[0] if kind >> 15 else 0
        return cookie, error, kind, payload

    async def do(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        """Send a command without data in its reply; return the error."""
        cookie = self.send(command, offset, length, data, flags)
        found, error, _, _ = await self.reply()
        assert found == cookie
        return error

    async def read(self, offset: int, length: int) -> bytes:
        cookie = self.send(0, offset, length)
        found, error, _, payload = await self.reply(length)
        assert found == cookie and not error
        if self.form == SIMPLE:
            return payload
        assert struct.unpack(">Q", payload[:8])[0] == offset
        return payload[8:]

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass
