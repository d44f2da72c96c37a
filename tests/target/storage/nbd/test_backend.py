"""The backend ``nbd:URI`` against nbdkit and qemu-nbd."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.namespace import status_of_os_error
from nvmeof.target.storage.kinds import make_backend
from nvmeof.target.storage.namespace_text import parse_namespace_text
from nvmeof.target.storage.nbd.backend import NbdBackend
from nvmeof.target.storage.remote import OutcomeUnknownError
from tests.engines import Engine, certificates, make_image, nbdkit, qemu_nbd

SIZE = 64 << 20


@asynccontextmanager
async def opened(uri: str, **options: Any) -> AsyncIterator[NbdBackend]:
    backend = NbdBackend(uri, **options)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def read(backend: NbdBackend, offset: int, length: int) -> bytes:
    lease = await backend.acquire_read(offset, length)
    try:
        return bytes(lease.view)
    finally:
        lease.release()


@pytest.fixture(params=["nbdkit", "nbdkit 4096", "nbdkit small", "qemu-nbd raw", "qemu-nbd qcow2"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    policy = ["--filter=blocksize-policy", "memory", str(SIZE), "blocksize-error-policy=error"]
    if request.param == "nbdkit":
        made = nbdkit(tmp_path, "memory", str(SIZE))
    elif request.param == "nbdkit 4096":
        made = nbdkit(tmp_path, *policy, "blocksize-minimum=4096")
    elif request.param == "nbdkit small":
        made = nbdkit(tmp_path, *policy, "blocksize-maximum=64K", "blocksize-preferred=4K")
    else:
        kind = request.param.split()[1]
        made = qemu_nbd(tmp_path, make_image(tmp_path / "disk", str(SIZE), kind), "-f", kind)
    with made:
        yield made


async def test_every_operation(engine: Engine) -> None:
    async with opened(engine.uri) as backend:
        capabilities = backend.capabilities
        assert capabilities.size_bytes == SIZE
        assert capabilities.can_deallocate and capabilities.deallocated_reads_zero and capabilities.can_write_zeroes
        data = bytes(range(256)) * 4096  # 1 MiB: in pieces where the server's maximum is 64 KiB
        await backend.write(8192, memoryview(data))
        assert await read(backend, 4096, len(data) + 8192) == bytes(4096) + data + bytes(4096)
        await backend.write_zeroes(8192, 4096, deallocate=False, fua=True)
        await backend.deallocate(16384, 8192)
        assert await read(backend, 8192, 20480) == bytes(4096) + data[4096:8192] + bytes(8192) + data[16384:20480]
        found = bytearray(4096)
        await backend.read_into(12288, memoryview(found))
        assert found == data[4096:8192]
        await backend.copy(12288, 0, 4096)
        assert await backend.compare(0, memoryview(data)[4096:8192])
        assert not await backend.compare_and_write(0, memoryview(bytes(4096)), memoryview(data)[:4096])
        assert await backend.compare_and_write(0, memoryview(data)[4096:8192], memoryview(bytes(4096)), fua=True)
        assert await read(backend, 0, 4096) == bytes(4096)
        await backend.verify(0, SIZE)
        await backend.flush()


async def test_allocated(engine: Engine) -> None:
    async with opened(engine.uri) as backend:
        assert await backend.allocated(4096, SIZE - 4096) == []  # qemu-img allocates the first block
        await backend.write(1 << 20, memoryview(b"x" * 65536))
        parts = await backend.allocated(4096, SIZE - 4096)
        assert parts[0][0] <= 1 << 20 and parts[-1][1] >= (1 << 20) + 65536
        assert sum(end - start for start, end in parts) <= 1 << 20
        assert await backend.allocated(8 << 20, 1 << 20) == []


async def test_concurrent_requests_over_several_connections(engine: Engine) -> None:
    async with opened(engine.uri, connections=4) as backend:
        assert len(backend._client._connections) == 4

        async def one(index: int) -> None:
            data = index.to_bytes(2, "big") * 8192
            await backend.write(index * 16384, memoryview(data))
            assert await read(backend, index * 16384, 16384) == data

        await asyncio.gather(*(one(index) for index in range(256)))


async def test_a_write_is_seen_whole_or_not_at_all(engine: Engine) -> None:
    async with opened(engine.uri, connections=4) as backend:
        await backend.write(0, memoryview(bytes(32768)))

        async def writing() -> None:
            for value in range(1, 60):
                await backend.write(0, memoryview(bytes([value]) * 32768))

        async def reading() -> None:
            for _ in range(60):
                assert len(set(await read(backend, 0, 32768))) == 1

        await asyncio.gather(writing(), reading(), reading())


async def test_block_size_of_the_server(tmp_path: Path) -> None:
    policy = ["--filter=blocksize-policy", "memory", str(SIZE), "blocksize-minimum=4096"]
    with nbdkit(tmp_path, *policy) as engine:
        async with opened(engine.uri) as backend:
            assert backend.capabilities.block_bytes == 4096
        with pytest.raises(ConfigurationError, match="write block-size=4096"):
            await NbdBackend(engine.uri, block_bytes=512).open()


async def test_a_server_without_zeroing_gets_zeroes_as_data(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "--filter=nozero", "memory", str(SIZE)) as engine:
        async with opened(engine.uri) as backend:
            assert not backend.capabilities.deallocated_reads_zero
            await backend.write(0, memoryview(b"x" * (4 << 20)))
            await backend.write_zeroes(4096, 3 << 20, deallocate=True, fua=True)
            assert await read(backend, 4096, 3 << 20) == bytes(3 << 20)
            assert await read(backend, 0, 4096) == b"x" * 4096


async def test_read_only(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "-r", "memory", str(SIZE)) as engine:
        async with opened(engine.uri) as backend:
            assert not backend.capabilities.can_write


async def test_no_structured_replies(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "--no-sr", "memory", str(SIZE)) as engine:
        async with opened(engine.uri) as backend:
            await backend.write(0, memoryview(b"y" * 262144))
            assert await read(backend, 0, 262144) == b"y" * 262144
            assert await backend.allocated(0, SIZE) == [(0, SIZE)]


async def test_the_server_goes_away_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    engine = nbdkit(tmp_path, "file", str(tmp_path / "disk"))
    with engine:
        async with opened(engine.uri, wait=20) as backend:
            await backend.write(0, memoryview(b"a" * 4096))
            await backend.flush()
            engine.stop()
            reading = asyncio.ensure_future(read(backend, 0, 4096))
            writing = asyncio.ensure_future(backend.write(4096, memoryview(b"b" * 4096)))
            done, _ = await asyncio.wait([reading, writing], timeout=0.3)
            assert not done
            engine.start()
            assert await reading == b"a" * 4096
            await writing
            assert await read(backend, 4096, 4096) == b"b" * 4096
            assert backend.sync_failures == 0


async def test_status_while_the_server_is_away(tmp_path: Path) -> None:
    engine = nbdkit(tmp_path, "memory", str(SIZE))
    with engine:
        async with opened(engine.uri, wait=0.1) as backend:
            engine.stop()
            with pytest.raises(OSError, match="cannot be reached") as raised:
                await read(backend, 0, 4096)
            assert status_of_os_error(raised.value, writing=False) == (Status.NAMESPACE_NOT_READY, False)
            engine.start()
            assert await read(backend, 0, 4096) == bytes(4096)


async def test_writes_that_were_not_flushed_count_as_lost(tmp_path: Path) -> None:
    engine = nbdkit(tmp_path, "memory", str(SIZE))
    with engine:
        async with opened(engine.uri) as backend:
            await backend.write(0, memoryview(b"a" * 4096))
            engine.stop()
            engine.start()
            assert await read(backend, 0, 4096) == bytes(4096)
            assert backend.sync_failures == 1 and backend.sync_error is not None
            await backend.write(0, memoryview(b"a" * 4096))
            await backend.flush()
            engine.stop()
            engine.start()
            await read(backend, 0, 4096)
            assert backend.sync_failures == 1


async def test_a_write_that_is_not_answered_is_never_repeated(tmp_path: Path) -> None:
    record = tmp_path / "log"
    engine = nbdkit(
        tmp_path, "--filter=log", "--filter=delay", "memory", str(SIZE), f"logfile={record}", "delay-write=2"
    )
    with engine:
        async with opened(engine.uri, timeout=0.5) as backend:
            with pytest.raises(OutcomeUnknownError, match="not known") as raised:
                await backend.write(0, memoryview(b"a" * 4096))
            assert status_of_os_error(raised.value, writing=True) == (Status.WRITE_FAULT, True)
            assert await read(backend, 4096, 4096) == bytes(4096)
            assert record.read_text().count(" Write ") == 1


async def test_a_size_that_changed_while_the_server_was_away(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    engine = nbdkit(tmp_path, "file", str(disk))
    with engine:
        async with opened(engine.uri) as backend:
            engine.stop()
            disk.write_bytes(bytes(1 << 19))
            engine.start()
            await read(backend, 0, 4096)
            with pytest.raises(OSError, match="has become shorter") as raised:
                await read(backend, 1 << 19, 4096)
            assert raised.value.errno == errno.EIO
            assert "become shorter, from 1048576 to 524288" in backend.revalidate()
            assert backend.capabilities.size_bytes == 1 << 19
            assert backend.revalidate() == ""


@pytest.mark.parametrize("client", [False, True], ids=["server", "both"])
async def test_tls(tmp_path: Path, client: bool) -> None:
    folder = certificates(tmp_path / "pki")
    verify = ["--tls-verify-peer"] if client else []
    engine = nbdkit(tmp_path, "--tls=require", f"--tls-certificates={folder}", *verify, "memory", str(SIZE))
    with engine:
        uri = f"nbds+unix:///?socket={engine.socket}&tls-certificates={folder}"
        async with opened(uri, connections=2) as backend:
            data = bytes(range(256)) * 1024
            await backend.write(0, memoryview(data))
            assert await read(backend, 0, len(data)) == data
        with pytest.raises(ConfigurationError, match="it requires TLS: write nbds in place of nbd"):
            await NbdBackend(engine.uri).open()


async def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="start the NBD server first"):
        await NbdBackend(f"nbd+unix:///?socket={tmp_path}/none").open()


async def test_no_such_export(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk", "1M")
    with qemu_nbd(tmp_path, image, "-f", "raw", "-x", "one") as engine:
        with pytest.raises(ConfigurationError, match="it has no export of that name"):
            await NbdBackend(f"nbd+unix:///two?socket={engine.socket}").open()
        async with opened(f"nbd+unix:///one?socket={engine.socket}") as backend:
            assert backend.capabilities.size_bytes == 1 << 20


async def test_the_text_of_a_namespace() -> None:
    text = "nbd:nbd://192.0.2.1/a,,b,connections=4,timeout=5s,wait=1s,block-size=4096,read-only"
    backend = make_backend(parse_namespace_text(text))
    assert isinstance(backend, NbdBackend)
    assert backend.uri.export == "a,b" and backend.uri.port == 10809
    assert backend.to_text().backend.value == "nbd://192.0.2.1/a,b"
    with pytest.raises(ConfigurationError, match="no option 'size'"):
        make_backend(parse_namespace_text("nbd:nbd://192.0.2.1/a,size=1G"))


LIES = {
    "a request that was not sent": b"\x67\x44\x66\x98" + bytes(4) + (99).to_bytes(8, "big"),
    "not a reply": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_server_with_a_wrong_reply_loses_its_connection(
    tmp_path: Path, lie: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay in front of nbdkit falsifies one reply; the request is repeated over a new connection."""
    lies = [lie]
    with nbdkit(tmp_path, "memory", str(SIZE)) as engine:
        ended: list[asyncio.Task[Any]] = []

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ended.append(cast("asyncio.Task[Any]", asyncio.current_task()))
            behind, ahead = await asyncio.open_unix_connection(str(engine.socket))

            async def up() -> None:
                while data := await reader.read(65536):
                    if len(data) == 28 and data[:4] == b"\x25\x60\x95\x13" and lies:
                        writer.write(lies.pop())
                        continue
                    ahead.write(data)
                ahead.close()

            async def down() -> None:
                while data := await behind.read(65536):
                    writer.write(data)
                writer.close()

            await asyncio.gather(up(), down(), return_exceptions=True)
            for each in (writer, ahead):
                each.close()
            await asyncio.gather(*(each.wait_closed() for each in (writer, ahead)), return_exceptions=True)

        socket = tmp_path / "relay.sock"
        server = await asyncio.start_unix_server(relay, str(socket))
        async with server:
            with caplog.at_level(logging.WARNING):
                async with opened(f"nbd+unix:///?socket={socket}", connections=1) as backend:
                    assert await read(backend, 0, 4096) == bytes(4096)
            await asyncio.wait(ended)
        assert not lies and "breaks the protocol" in caplog.text


async def test_a_cancelled_caller_gets_its_buffer_when_the_server_is_done_with_it(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "--filter=delay", "memory", str(SIZE), "delay-read=1") as engine:
        async with opened(engine.uri) as backend:
            view = memoryview(bytearray(b"x" * 4096))
            reading = asyncio.ensure_future(backend.read_into(0, view))
            done, _ = await asyncio.wait([reading], timeout=0.2)
            assert not done
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert view == bytes(4096)  # the data has come: nothing comes later
