"""The host against our own target, over every transport: the whole stack in one process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nvmeof
from nvmeof import FileBackend, HostController, NvmeStatusError, Ramdisk, Target, connect, discover
from nvmeof.host.association import HostState
from nvmeof.host.async_events import AsyncEvent
from nvmeof.pdu import digest
from nvmeof.spec.status import Status
from nvmeof.transport import options

from .conftest import HOSTNQN

Pair = Callable[..., AbstractAsyncContextManager[tuple[Target, HostController]]]
TRANSPORTS = ["tcp", "mptcp", "memory"]


@asynccontextmanager
async def pair(transport: str = "tcp", *backends: Any, **options: Any) -> AsyncIterator[tuple[Target, HostController]]:
    listen = "target:0" if transport == "memory" else "127.0.0.1:0"
    async with Target(namespaces=backends or [Ramdisk("64M")], trtype=transport, listen=listen) as target:
        chosen = {"hostnqn": HOSTNQN, "transport": transport, "subnqn": target.subnqn, **options}
        async with await connect(target.address.host, target.address.port, **chosen) as controller:
            yield target, controller


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("disable_sqflow", [False, True])
async def test_each_kind_of_command_once(transport: str, digests: bool, disable_sqflow: bool) -> None:
    options = {"hdr_digest": digests, "data_digest": digests, "disable_sqflow": disable_sqflow, "nr_io_queues": 3}
    async with pair(transport, **options) as (target, controller):
        (namespace,) = await controller.namespaces()
        assert (namespace.block_bytes, namespace.size_bytes) == (512, 64 << 20)
        for size in (512, 4096, 8192, 8704, 131072, 3 << 20):
            data = os.urandom(size)
            await namespace.write(9, data, fua=True)
            assert await namespace.read(9, size // 512) == data
        await namespace.flush()
        await namespace.write_zeroes(9, 100, deallocate=True)
        await namespace.deallocate([(200, 50), (300, 10)])
        after = await namespace.read(9, 400)
        assert after[: 100 * 512] == bytes(100 * 512)
        assert after[191 * 512 : 241 * 512] == bytes(50 * 512)
        assert after[100 * 512 : 191 * 512] == data[100 * 512 : 191 * 512]
        assert (await controller.identify()).subnqn == target.subnqn
        assert (await controller.smart_log()).host_write_commands
        facts = controller.describe()
        assert [each["protocol"] for each in facts] == [transport] * 4


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_many_at_once_on_several_queues(transport: str) -> None:
    async with pair(transport, nr_io_queues=4, queue_size=16) as (_, controller):
        namespace = controller.namespace(1)
        blocks = {lba * 8: os.urandom(4096) for lba in range(400)}
        await asyncio.gather(*(namespace.write(lba, data) for lba, data in blocks.items()))
        found = await asyncio.gather(*(namespace.read(lba, 8) for lba in blocks))
        assert found == list(blocks.values())


async def test_a_large_transfer_in_place() -> None:
    async with pair("tcp", Ramdisk("256M"), queue_size=8) as (_, controller):
        namespace = controller.namespace(1)
        source = bytearray(os.urandom(1 << 20) * 100)
        await namespace.write(0, source)
        into = bytearray(len(source))
        await namespace.read_into(0, memoryview(into))
        assert hashlib.sha256(into).digest() == hashlib.sha256(source).digest()


async def test_a_file_namespace(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 << 20))
    data = os.urandom(2 << 20)
    async with pair("tcp", FileBackend(path, block_bytes=4096)) as (_, controller):
        namespace = controller.namespace(1)
        await namespace.write(3, data)
        await namespace.flush()
        assert namespace.block_bytes == 4096
        assert await namespace.read(3, len(data) // 4096) == data
    assert path.read_bytes()[3 * 4096 : 3 * 4096 + len(data)] == data


async def test_discovery() -> None:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp") as target:
        entries = await discover(target.address.host, target.address.port, transport="tcp", hostnqn=HOSTNQN)
        (entry,) = [each for each in entries if each.is_nvm]
        assert (entry.subnqn, entry.traddr, entry.trsvcid) == (target.subnqn, "127.0.0.1", str(target.address.port))


@pytest.mark.parametrize("trtype", ["tcp", "mptcp"])
@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::1]:0", "localhost:0"])
async def test_connecting_with_the_result_of_discover(trtype: str, listen: str) -> None:
    async with Target(namespaces=[Ramdisk("1M")], trtype=trtype, listen=listen) as target:
        asked = "127.0.0.1" if listen.startswith("0.") else target.address.host
        entries = await discover(asked, str(target.address.port), hostnqn=HOSTNQN)
        found = [each for each in entries if each.is_nvm]
        assert found[0].transport == trtype
        assert {each.transport for each in found} == {trtype, "tcp"}
        for entry in found:
            async with await connect(entry, hostnqn=HOSTNQN, nr_io_queues=2) as controller:
                assert (await controller.identify()).subnqn == target.subnqn
                assert {each["transport"] for each in controller.describe()} == {entry.transport}
            by_text = connect(entry.traddr, entry.trsvcid, subnqn=entry.subnqn, hostnqn=HOSTNQN, transport="tcp")
            async with await by_text as controller:
                assert controller.options.trsvcid == target.address.port
        async with await connect(found[0], hostnqn=HOSTNQN, transport="tcp") as controller:
            assert controller.options.transport == "tcp"
        (own, *_) = [each for each in entries if not each.is_nvm]
        async with await connect(own, hostnqn=HOSTNQN, keep_alive_tmo=0) as controller:
            assert await controller.discovery_log() == entries


async def test_entries_that_cannot_be_connected_to() -> None:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp") as target:
        found = await discover(target.address.host, target.address.port, hostnqn=HOSTNQN)
        entry = found[-1]
        for change, kind, says in (
            ({"treq": 5, "sectype": 2}, nvmeof.TransportError, "requires TLS"),
            ({"trtype": 1}, nvmeof.ConfigurationError, "rdma"),
            ({"trsvcid": "x"}, nvmeof.NvmeofError, "has no port number"),
            ({"traddr": "fe80::1"}, nvmeof.ConfigurationError, "needs its interface"),
        ):
            with pytest.raises(kind, match=says):
                await connect(replace(entry, **change), hostnqn=HOSTNQN)
        with pytest.raises(nvmeof.ConfigurationError, match="no subsystem NQN was given"):
            await connect(entry.traddr, entry.trsvcid, hostnqn=HOSTNQN)
        with pytest.raises(nvmeof.ConfigurationError, match="'4420x' is not a port"):
            await connect(entry.traddr, "4420x", subnqn=entry.subnqn, hostnqn=HOSTNQN)


@pytest.mark.parametrize("transport", ["tcp", "mptcp"])
async def test_all_queues_go_where_the_admin_queue_went(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for several machines, whose order changes with each look-up."""
    async with Target(namespaces=[Ramdisk("1M")], trtype=transport, listen="127.0.0.2:0") as target:
        port = target.address.port
        async with Target(namespaces=[Ramdisk("1M")], trtype=transport, listen=f"127.0.0.3:{port}") as other:
            order = ["127.0.0.2", "127.0.0.3"]
            real = options.resolve

            async def resolve(host: str, *rest: Any, **more: Any) -> list[options.Resolved]:
                if host != "storage":
                    return await real(host, *rest, **more)
                order.reverse()
                return [found for each in reversed(order) for found in await real(each, *rest, **more)]

            monkeypatch.setattr(options, "resolve", resolve)
            chosen = {"subnqn": target.subnqn, "hostnqn": HOSTNQN, "transport": transport}
            async with await connect("storage", port, nr_io_queues=3, **chosen) as controller:
                peers = {str(each["peer"]) for each in controller.describe()}
                assert len(peers) == 1 and len(controller.io_queues) == 3
                assert len(target.drivers) + len(other.drivers) == 4


async def test_ipv6() -> None:
    try:
        target = Target(namespaces=[Ramdisk("1M")], trtype="mptcp", listen="[::1]:0")
        await target.start()
    except nvmeof.TransportError as error:
        pytest.skip(str(error))
    try:
        async with await connect("::1", target.address.port, subnqn=target.subnqn, hostnqn=HOSTNQN) as controller:
            assert await controller.namespace(1).read(0) == bytes(512)
            assert str(controller.describe()[1]["peer"]).startswith("[::1]:")
    finally:
        await target.stop()


async def test_status_errors_leave_the_association_alone() -> None:
    async with pair() as (_, controller):
        namespace = controller.namespace(1)
        await namespace.refresh()
        with pytest.raises(NvmeStatusError) as caught:
            await namespace.read(namespace.size_blocks - 1, 2)
        assert caught.value.status == Status.LBA_OUT_OF_RANGE
        with pytest.raises(NvmeStatusError) as caught:
            await controller.io_passthru(0x7E, nsid=1, data_bytes=512)
        assert caught.value.status == Status.INVALID_OPCODE
        with pytest.raises(NvmeStatusError) as caught:
            await controller.namespace(5).read(0)
        assert caught.value.status == Status.INVALID_NAMESPACE
        (newest, *_) = await controller.error_log(10)
        assert newest.sqid == 1
        assert controller.state is HostState.LIVE
        assert await namespace.read(0) == bytes(512)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subnqn": "nqn.2026-01.org.example:nobody"}, "it names subnqn"),
    ],
)
async def test_refused_connects(options: dict[str, Any], words: str) -> None:
    with pytest.raises(NvmeStatusError, match=words):
        async with pair(**options):
            pass


async def test_a_host_that_is_not_allowed() -> None:
    async with Target(
        namespaces=[Ramdisk("1M")], trtype="tcp", allowed_hosts=["nqn.2026-01.org.example:other"]
    ) as target:
        with pytest.raises(NvmeStatusError) as caught:
            await connect(
                target.address.host, target.address.port, subnqn=target.subnqn, transport="tcp", hostnqn=HOSTNQN
            )
        assert caught.value.status == Status.CONNECT_INVALID_PARAMETERS, "as if it were not there"


async def test_keep_alive_preserves_an_idle_association() -> None:
    async with pair(keep_alive_tmo=1) as (_, controller):
        await asyncio.sleep(2.5)
        assert controller.state is HostState.LIVE
        assert await controller.namespace(1).read(0) == bytes(512)
        assert controller.association.timeouts.keep_alives >= 4


async def test_namespaces_that_come_and_go() -> None:
    async with pair() as (target, controller):
        events: asyncio.Queue[AsyncEvent] = asyncio.Queue()
        controller.on_event.append(events.put_nowait)
        assert [each.nsid for each in await controller.namespaces()] == [1]
        nsid = await target.add_namespace(Ramdisk("1M"))
        assert (await asyncio.wait_for(events.get(), 20)).log_page == 4
        assert [each.nsid for each in await controller.namespaces()] == [1, nsid]
        await target.remove_namespace(nsid)
        assert (await asyncio.wait_for(events.get(), 20)).log_page == 4
        assert [each.nsid for each in await controller.namespaces()] == [1]
        assert events.empty()


async def test_a_target_that_stops_fails_outstanding_commands() -> None:
    async with pair(nr_io_queues=2) as (target, controller):
        namespace = controller.namespace(1)
        await namespace.refresh()

        async def load() -> None:
            while True:
                await namespace.read(0, 256)

        tasks = [asyncio.create_task(load()) for _ in range(8)]
        await asyncio.sleep(0.05)
        await target.stop(0.1)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert all(isinstance(result, nvmeof.NvmeofError) for result in results)
        assert controller.state is HostState.FAILED


@pytest.mark.parametrize("page", [0x07, 0x0D])
async def test_a_log_page_that_is_captured_for_a_host_is_captured_once(page: int) -> None:
    """LSP bit 0 captures the page, also when it is read in several pieces."""
    async with pair() as (_, controller):
        whole = await controller.get_log(page, 1024, lsp=1, chunk_bytes=512)
        assert whole == await controller.get_log(page, 1024) and whole[0] == page and any(whole[512:])


async def test_two_hosts_see_the_same_data() -> None:
    async with pair() as (target, first):
        chosen = {"subnqn": target.subnqn, "transport": "tcp", "hostnqn": HOSTNQN + "2", "hostid": uuid.uuid4()}
        async with await connect(target.address.host, target.address.port, **chosen) as second:
            assert first.cntlid != second.cntlid
            await first.namespace(1).write(0, b"\x11" * 512)
            assert await second.namespace(1).read(0) == b"\x11" * 512


async def test_connecting_and_leaving_many_times() -> None:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp") as target:
        for _ in range(20):
            async with await connect(
                target.address.host, target.address.port, subnqn=target.subnqn, transport="tcp", hostnqn=HOSTNQN
            ) as controller:
                await controller.namespace(1).read(0)


def test_public_names() -> None:
    for name in nvmeof.__all__:
        assert getattr(nvmeof, name) is not None
    assert set(nvmeof.__all__) <= set(dir(nvmeof))
    with pytest.raises(AttributeError, match="no attribute 'Wheel'"):
        _ = nvmeof.Wheel


@pytest.mark.parametrize("end", ["nvmeof.host.socket_queue", "nvmeof.target.driver"])
@pytest.mark.parametrize("digests", [False, True])
async def test_each_end_warns_that_digests_are_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str, digests: bool
) -> None:
    for module in ("nvmeof.host.socket_queue", "nvmeof.target.driver"):
        if module != end:
            monkeypatch.setattr(f"{module}.warn_if_slow", lambda: None)
    digest.warn_if_slow.cache_clear()
    monkeypatch.setattr(digest, "FAST", False)
    async with pair(data_digest=digests):
        pass
    assert sum("fast CRC32C" in record.getMessage() for record in caplog.records) == digests
    digest.warn_if_slow.cache_clear()
