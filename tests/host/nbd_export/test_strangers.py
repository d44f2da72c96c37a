"""What those who reach the server and have agreed on nothing can do: keep nobody out, fill neither memory nor log."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeof.host.nbd_export import server as server_module
from nvmeof.host.nbd_export.server import NEGOTIATING_MAX, NbdClientProtocol, Place
from nvmeof.nbd.numbers import Option
from tests.host.nbd_export.raw import SIMPLE, RawClient
from tests.host.nbd_export.served import served


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


async def test_nobody_else_can_connect_whatever_the_umask_is(tmp_path: Path) -> None:
    async with served(tmp_path) as running:
        assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600
    assert not running.socket.exists()


async def test_the_socket_of_another_program_stays(tmp_path: Path) -> None:
    async with served(tmp_path) as running:
        running.socket.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(running.socket))
    assert running.socket.exists(), "it is not ours any longer"
    other.close()


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data


async def test_answers_that_are_not_taken_do_not_pile_up(tmp_path: Path) -> None:
    """A client that asks for lists and reads none of them."""
    async with served(tmp_path) as running:
        for number in range(2000):
            running.server.disks[f"export {number} {'x' * 200}"] = running.server.default  # type: ignore[index]
        reader, writer = await asyncio.open_unix_connection(str(running.socket), limit=1024)
        writer.write(struct.pack(">I", 3) + option(Option.LIST) * 900)
        most = 0
        for _ in range(60):
            await asyncio.sleep(0.01)
            (client,) = running.server.clients
            most = max(most, client._transport.get_write_buffer_size())
        assert 0 < most < 3 << 20, "a list has half a MiB"
        writer.close()
        del reader


async def test_silent_clients_of_one_address_keep_no_other_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as running:
        where = await running.server.listen(Place.parse("tcp:127.0.0.1:0"))
        port = int(where.rpartition(":")[2])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(NEGOTIATING_MAX + 40)]
        await asyncio.sleep(0.1)
        assert running.server.negotiating.taken == NEGOTIATING_MAX // 2
        assert running.server.negotiating.has_room("192.0.2.1")
        client = await RawClient.connect(running.socket, SIMPLE)
        client.send(0, 0, 512)
        assert (await client.reply(512))[-1] == bytes(512)
        assert len([line for line in caplog.messages if "was refused" in line]) <= 20
        for _, writer in silent:
            writer.close()
        client.writer.close()
        async with asyncio.timeout(10):
            while running.server.negotiating.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_garbage_fills_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path) as running:
        for _ in range(100):
            reader, writer = await asyncio.open_unix_connection(str(running.socket))
            writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(64))
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1000)
            writer.close()
        assert 10 <= len([line for line in caplog.messages if "was disconnected" in line]) <= 25


async def test_a_client_that_gives_up_and_does_not_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.1)
    aborted: list[NbdClientProtocol] = []
    lost = NbdClientProtocol.connection_lost
    monkeypatch.setattr(NbdClientProtocol, "connection_lost", lambda self, exc: (aborted.append(self), lost(self, exc)))
    async with served(tmp_path) as running:
        for number in range(2000):
            running.server.disks[f"export {number} {'x' * 200}"] = running.server.default  # type: ignore[index]
        _, writer = await asyncio.open_unix_connection(str(running.socket), limit=1024)
        writer.write(struct.pack(">I", 3) + option(Option.LIST) + option(Option.ABORT))
        async with asyncio.timeout(10):
            while not aborted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        writer.close()
