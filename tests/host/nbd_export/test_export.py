"""The export as a raw client sees it: every command in every form, block sizes, limits, and clients that break the
protocol.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmeof import Ramdisk
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.host.nbd_export.budget import Budget, Share
from nvmeof.host.nbd_export.order import WriteOrder
from nvmeof.host.nbd_export.server import NbdServer, Place
from tests.engines import certificates
from tests.host.nbd_export.raw import EXTENDED, SIMPLE, STRUCTURED, RawClient
from tests.host.nbd_export.served import SIZE, served

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EINVAL, ENOSPC = 1, 22, 28
FORMS = [SIMPLE, STRUCTURED, EXTENDED]


@asynccontextmanager
async def client(folder: Path, form: str = STRUCTURED, *backends: Any, **options: Any) -> AsyncIterator[RawClient]:
    async with served(folder, *backends, **options) as running:
        raw = await RawClient.connect(running.socket, form)
        try:
            yield raw
        finally:
            await raw.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [512, 4096])
async def test_every_command(tmp_path: Path, form: str, block: int) -> None:
    async with client(tmp_path, form, Ramdisk(SIZE, block_bytes=block)) as raw:
        assert raw.size == SIZE
        model = bytearray(SIZE)
        data = os.urandom(1 << 20)
        for offset, length in ((0, 4096), (8192, 1 << 20), (513, 7), (4095, 2), (5000, 100_000), (SIZE - 3, 3)):
            assert await raw.do(WRITE, offset, length, data[:length], FUA) == 0
            model[offset : offset + length] = data[:length]
        assert await raw.do(FLUSH) == 0
        for offset, length, flags in ((10_000, 5, 0), (4096, 8192, FAST_ZERO), (20_001, 40_003, NO_HOLE | FUA)):
            assert await raw.do(ZEROES, offset, length, flags=flags) == 0
            model[offset : offset + length] = bytes(length)
        assert await raw.do(TRIM, 65_536, 65_536, flags=FUA) == 0
        model[65_536:131_072] = bytes(65_536)  # this target's deallocated blocks read as zeroes
        for offset, length in ((0, SIZE), (1, 4095), (4097, 5), (0, 2 << 20), (SIZE - 1, 1)):
            assert await raw.read(offset, length) == model[offset : offset + length]


@pytest.mark.parametrize("form", [STRUCTURED, EXTENDED])
async def test_block_status(tmp_path: Path, form: str) -> None:
    async with client(tmp_path, form) as raw:

        async def extents(offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
            raw.send(STATUS, offset, length, flags=flags)
            _, error, kind, payload = await raw.reply()
            assert not error and payload[:4] == b"\x00\x00\x00\x01"
            assert kind == (6 if form == EXTENDED else 5)
            if form == EXTENDED:
                return list(struct.iter_unpack(">QQ", payload[8:]))
            return list(struct.iter_unpack(">II", payload[4:]))

        assert await extents(0, SIZE) == [(SIZE, 3)]
        await raw.do(WRITE, 4 << 20, 4096, b"x" * 4096)
        before, data, behind = await extents(0, SIZE)
        assert before == (4 << 20, 3) and behind == (SIZE - (4 << 20) - data[0], 3)
        assert data in ((4096, 0), (2 << 20, 0))  # the pages that the kernel has allocated for it
        assert await extents(0, SIZE, REQ_ONE) == [before]
        assert await extents(4 << 20, 512) == [(512, 0)]
        assert await extents((4 << 20) + 100, 9) == [(9, 0)]


@pytest.mark.parametrize("form", FORMS)
async def test_refusals(tmp_path: Path, form: str) -> None:
    async with client(tmp_path, form) as raw:
        for expected, command, offset, length, data, flags in (
            (EINVAL, READ, SIZE, 1, b"", 0),
            (EINVAL, READ, SIZE - 1, 2, b"", 0),
            (EINVAL, READ, 0, 0, b"", 0),
            (EINVAL, READ, 0, 65 << 20, b"", 0),
            (EINVAL, READ, 0, 512, b"", FUA),
            (ENOSPC, WRITE, SIZE - 1, 2, b"ab", 0),
            (EINVAL, WRITE, 0, 2, b"ab", DF),
            (ENOSPC, TRIM, 1 << 63, 512, b"", 0),
            (EINVAL, CACHE, 0, 512, b"", 0),
            (EINVAL, 99, 0, 512, b"", 0),
        ):
            assert await raw.do(command, offset, length, data, flags) == expected, (command, offset, length)
        assert await raw.read(0, 512) == bytes(512)


async def test_block_status_that_was_not_negotiated(tmp_path: Path) -> None:
    async with served(tmp_path) as running:
        raw = await RawClient.connect(running.socket, STRUCTURED, contexts=False)
        assert await raw.do(STATUS, 0, 512) == EINVAL
        await raw.close()


async def test_extended_requests_beyond_32_bits(tmp_path: Path) -> None:
    async with client(tmp_path, EXTENDED, Ramdisk("6G")) as raw:
        assert await raw.do(WRITE, 5 << 30, 4096, b"x" * 4096) == 0
        assert await raw.do(ZEROES, 0, 6 << 30) == 0
        assert await raw.read(5 << 30, 4096) == bytes(4096)
        assert await raw.do(TRIM, 0, 6 << 30) == 0
        raw.send(STATUS, 0, 6 << 30)
        _, error, _, payload = await raw.reply()
        assert not error and sum(length for length, _ in struct.iter_unpack(">QQ", payload[8:])) <= 6 << 30


async def test_read_only(tmp_path: Path) -> None:
    async with client(tmp_path, read_only=True) as raw:
        assert raw.flags & 2
        for command, data in ((WRITE, b"x" * 512), (TRIM, b""), (ZEROES, b"")):
            assert await raw.do(command, 0, 512, data) == EPERM
        assert await raw.read(0, 512) == bytes(512)


async def test_requests_larger_than_a_command(tmp_path: Path) -> None:
    """With an MDTS of 64 KiB every request is split; libnbd also sends 33 MiB, beyond the announced maximum."""
    async with client(tmp_path, STRUCTURED, Ramdisk("64M"), mdts=65536) as raw:
        data = os.urandom(33 << 20)
        assert await raw.do(WRITE, 512, len(data), data) == 0
        assert await raw.read(512, len(data)) == data


async def test_parts_of_blocks_written_at_once_all_stay(tmp_path: Path) -> None:
    """Adjacent writes in one block, and whole blocks between them: no write is undone by another."""
    async with client(tmp_path, SIMPLE, Ramdisk(SIZE, block_bytes=4096)) as raw:
        random.seed(7)
        model = bytearray(65536)
        pieces = [(at, min(random.choice((100, 512, 4096, 5000)), 65536 - at)) for at in range(0, 65536, 512)]
        at, disjoint = 0, []
        for offset, length in pieces:
            if offset >= at:
                disjoint.append((offset, length))
                at = offset + length
        random.shuffle(disjoint)
        for round_ in range(1, 5):
            for offset, length in disjoint:
                raw.send(WRITE, offset, length, bytes([round_ * 50 + offset % 50]) * length)
                model[offset : offset + length] = bytes([round_ * 50 + offset % 50]) * length
            for _ in disjoint:
                assert (await raw.reply())[1] == 0
            assert await raw.read(0, 65536) == model


async def test_many_reads_at_once(tmp_path: Path) -> None:
    for form in FORMS:
        async with client(tmp_path, form) as raw:
            data = os.urandom(1 << 20)
            await raw.do(WRITE, 0, len(data), data)
            sent = {}
            for index in range(1000):
                offset = index * 997 % 255 * 4096 + (index % 7 == 0)
                sent[raw.send(READ, offset, 4096)] = offset
            for _ in range(1000):
                cookie, error, _, payload = await raw.reply(4096)
                offset = sent.pop(cookie)
                assert not error and payload[-4096:] == data[offset : offset + 4096]


async def test_one_of_many_reads_fails_alone(tmp_path: Path) -> None:
    async with served(tmp_path) as running:
        await running.controller.namespace(1).write_uncorrectable(80, 1)
        raw = await RawClient.connect(running.socket, STRUCTURED)
        cookies = [raw.send(READ, index * 4096, 4096) for index in range(16)]
        errors = {}
        for _ in range(16):
            cookie, error, _, _ = await raw.reply()
            errors[cookie] = error
        assert [index for index, cookie in enumerate(cookies) if errors[cookie]] == [10]
        assert errors[cookies[10]] == 5
        await raw.close()


async def test_a_client_that_takes_no_replies_holds_no_more_than_the_memory(tmp_path: Path) -> None:
    async with served(tmp_path, memory_bytes=1 << 20) as running:
        greedy = await RawClient.connect(running.socket, SIMPLE)
        for _ in range(400):
            greedy.send(READ, 0, 65536)
        other = await RawClient.connect(running.socket, SIMPLE)
        assert await other.read(0, 4096) == bytes(4096)
        assert running.server.budget.held_bytes <= 1 << 19  # one client leaves half of the memory to others
        for _ in range(400):
            assert (await greedy.reply(65536))[3] == bytes(65536)
        assert await other.read(0, 4 << 20) == bytes(4 << 20)  # more than all memory, and alone
        await greedy.close()
        await other.close()
        await running.server.close()
        assert running.server.budget.held_bytes == 0


async def test_disconnecting_waits_for_outstanding_requests(tmp_path: Path) -> None:
    async with client(tmp_path, SIMPLE) as raw:
        cookies = {raw.send(READ, index * 512, 512) for index in range(20)}
        raw.send(DISC)
        while cookies:
            cookies.remove((await raw.reply(512))[0])
        assert await raw.reader.read() == b""


LIES = {
    "not a request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a write of 4 GiB": struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 0xFFFFFFFF),
    "extended headers that were not negotiated": struct.pack(">IHHQQQ", 0x21E41C71, 0, 0, 1, 0, 512),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_clients_that_break_the_protocol_are_disconnected(
    tmp_path: Path, lie: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as running:
        raw = await RawClient.connect(running.socket, STRUCTURED)
        with caplog.at_level(logging.WARNING):
            raw.writer.write(lie)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await raw.reader.readexactly(1)
        assert "an NBD client was disconnected: it sends" in caplog.text
        await raw.close()
        other = await RawClient.connect(running.socket, STRUCTURED)
        assert await other.read(0, 512) == bytes(512)
        await other.close()


async def test_a_write_whose_data_never_comes(tmp_path: Path) -> None:
    async with served(tmp_path) as running:
        raw = await RawClient.connect(running.socket, STRUCTURED)
        raw.send(WRITE, 0, 1 << 20, b"x" * 1000)
        await raw.writer.drain()
        await raw.close()
        other = await RawClient.connect(running.socket, STRUCTURED)
        assert await other.read(0, 4096) == bytes(4096)
        await other.close()
        await running.server.close()
        assert running.server.budget.held_bytes == 0


async def test_several_exports_by_name(tmp_path: Path) -> None:
    async with served(tmp_path, Ramdisk("1M"), Ramdisk("2M")) as running:
        for name, size in ((b"", 1 << 20), (b"1", 1 << 20), (b"2", 2 << 20)):
            raw = await RawClient.connect(running.socket, EXTENDED, export=name)
            assert raw.size == size
            await raw.close()


async def test_the_size_is_the_current_one(tmp_path: Path) -> None:
    async with served(tmp_path) as running:
        (subsystem,) = running.target.subsystems.values()
        subsystem.resize_namespace(1, 8 << 20)
        raw = await RawClient.connect(running.socket, STRUCTURED)
        assert raw.size == 8 << 20
        subsystem.resize_namespace(1, 4 << 20)
        assert await raw.do(WRITE, 6 << 20, 512, b"x" * 512) == ENOSPC
        assert await raw.do(READ, 6 << 20, 512) == EINVAL
        await raw.close()


async def test_our_own_client(tmp_path: Path) -> None:
    from nvmeof.target.storage.nbd.backend import NbdBackend

    for tls in (False, True):
        folder = tmp_path / f"tls{tls}"
        folder.mkdir()
        options: dict[str, Any] = {}
        suffix, scheme = "", "nbd"
        if tls:
            from nvmeof.host.nbd_export.server import server_tls

            pki = certificates(folder / "pki")
            options = {"tls": server_tls(str(pki), verify=True), "tls_required": True}
            suffix, scheme = f"&tls-certificates={pki}", "nbds"
        async with served(folder, **options) as running:
            backend = NbdBackend(f"{scheme}+unix:///?socket={running.socket}{suffix}", connections=2)
            await backend.open()
            data = os.urandom(3 << 20)
            await backend.write(512, memoryview(data), fua=True)
            lease = await backend.acquire_read(512, len(data))
            assert lease.view == data
            lease.release()
            assert await backend.allocated(8 << 20, 1 << 20) == []
            await backend.close()


async def test_places(tmp_path: Path) -> None:
    assert str(Place.parse("tcp:127.0.0.1")) == "tcp:127.0.0.1:10809"
    for text in ("127.0.0.1", "unix:", "udp:1.2.3.4"):
        with pytest.raises(ConfigurationError, match="write unix:/PATH or tcp:ADDRESS"):
            Place.parse(text)
    async with served(tmp_path) as running:
        with pytest.raises(TransportError, match="another process listens at"):
            await running.server.listen(Place(path=str(running.socket)))
        where = await running.server.listen(Place.parse("tcp:127.0.0.1:0"))
        assert where.startswith("tcp:127.0.0.1:") and not where.endswith(":0")
        with pytest.raises(ConfigurationError, match="two exports have one name"):
            NbdServer([running.server.default, running.server.default])


def test_budget() -> None:
    budget, one, other, third = Budget(400), Share(), Share(), Share()
    assert budget.take(1000, one) and not budget.take(1, one)  # more than all memory, alone
    budget.give(1000, one)
    assert budget.take(200, one) and not budget.take(1, one)  # as much as it leaves free
    assert budget.take(99, other) and not budget.take(3, other)
    assert budget.take(200, third)  # the reserve is for clients that hold nothing
    assert not budget.take(1, third) and budget.held_bytes == 499
    freed: list[bool] = []
    budget.when_free(lambda: freed.append(budget.take(1, other)))
    budget.give(200, one)
    assert freed == [True] and (one.held_bytes, other.held_bytes, third.held_bytes) == (0, 100, 200)


async def test_write_order() -> None:
    order = WriteOrder()
    first = await order.claim(0, 4, merging=False)
    beside = await order.claim(2, 6, merging=False)  # whole blocks do not wait for each other
    merging = asyncio.ensure_future(order.claim(3, 4, merging=True))
    later = asyncio.ensure_future(order.claim(3, 4, merging=False))
    away = await order.claim(10, 12, merging=False)
    order.release(first)
    done, _ = await asyncio.wait([merging, later], timeout=0.01)
    assert not done
    order.release(beside)
    held = await merging
    assert not later.done()
    order.release(held)
    order.release(await later)
    order.release(away)
