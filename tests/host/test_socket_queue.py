"""The software device over real connections, against a fake target: data paths, digests, and failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from nvmeof.errors import (
    ConfigurationError,
    ConnectionLost,
    ConnectTimeout,
    NvmeStatusError,
    RemoteTermination,
    TransportError,
)
from nvmeof.host.client import HostController, connect, discover
from nvmeof.host.controller import HostState
from nvmeof.pdu.digest import digest_bytes
from nvmeof.pdu.termination import Fes
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.protocol.events import ProtocolFailure
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.status import Status
from tests.conformance.rawhost import until

from .conftest import HOSTNQN
from .fake_device import BLOCK_BYTES, SUBNQN, FakeDevice
from .fake_target import FakeTarget, Link

Start = Callable[..., Awaitable[FakeTarget]]


@pytest.fixture
async def start(device: FakeDevice) -> AsyncIterator[Start]:
    targets: list[FakeTarget] = []

    async def run(transport: str = "tcp", **config: Any) -> FakeTarget:
        target = FakeTarget(device, transport, ConnectionConfig(incapsule_bytes=8192, **config))
        await target.start()
        targets.append(target)
        return target

    yield run
    for target in targets:
        await target.stop()


@contextlib.asynccontextmanager
async def host(target: FakeTarget, **options: Any) -> AsyncIterator[HostController]:
    chosen = {"subnqn": SUBNQN, "transport": target.transport, "hostnqn": HOSTNQN, **options}
    async with await connect(target.host, target.port, **chosen) as controller:
        yield controller


@pytest.mark.parametrize("transport", ["tcp", "mptcp", "memory"])
@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("sqflow", [False, True])
async def test_data(start: Start, device: FakeDevice, transport: str, digests: bool, sqflow: bool) -> None:
    target = await start(transport, header_digest=digests, data_digest=digests, maxh2cdata_bytes=16384)
    async with host(
        target, hdr_digest=digests, data_digest=digests, disable_sqflow=not sqflow, nr_io_queues=2
    ) as controller:
        namespace = controller.namespace(1)
        small, large = os.urandom(8 * BLOCK_BYTES), os.urandom(1000 * BLOCK_BYTES)
        await namespace.write(0, small)  # in capsule
        await namespace.write(100, large)  # by R2T, in several H2CData
        assert await namespace.read(0, 8) == small
        assert await namespace.read(100, 1000) == large
        into = bytearray(1000 * BLOCK_BYTES)
        await namespace.read_into(100, into)
        assert into == large
        facts = controller.describe()
        assert facts[1]["transport"] == transport
        assert facts[1]["hdr_digest"] is digests
        assert facts[1]["data_digest"] is digests
    await until(lambda: all(link.endpoint.closed for link in target.accepted))
    assert not target.events


async def test_hundreds_of_commands_at_once(start: Start, device: FakeDevice) -> None:
    target = await start()
    async with host(target, nr_io_queues=2, queue_size=32) as controller:
        namespace = controller.namespace(1)
        blocks = [os.urandom(BLOCK_BYTES) for _ in range(500)]
        await asyncio.gather(*(namespace.write(lba, block) for lba, block in enumerate(blocks)))
        assert await asyncio.gather(*(namespace.read(lba) for lba in range(500))) == blocks


async def test_commands_of_one_turn_leave_together(start: Start, device: FakeDevice) -> None:
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        link = controller.io_queues[0].private
        calls = 0
        sendmsg = link.endpoint.sendmsg

        def counted(buffers: Any) -> int:
            nonlocal calls
            calls += 1
            return int(sendmsg(buffers))

        link.endpoint.sendmsg = counted
        await asyncio.gather(*(namespace.read(lba) for lba in range(50)))
        # the first of an idle queue at once, the others together
        assert calls == 2


async def test_polling_completes_commands_without_the_event_loop(start: Start, device: FakeDevice) -> None:
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        queue = controller.io_queues[0]
        queue.private.endpoint.set_reader(None)
        task = asyncio.create_task(namespace.read(0))
        await until(lambda: controller.device.poll_queue(queue) == 1)
        assert not task.done()
        assert controller.device.poll_queue(queue) == 0
        await task


async def test_discovering(start: Start, device: FakeDevice) -> None:
    device.identify.update(cntrltype=2, oaes=0, ioccsz=0, ofcs=0)
    target = await start()
    (entry,) = await discover(target.host, target.port, transport="tcp", hostnqn=HOSTNQN)
    assert entry.subnqn == SUBNQN


@pytest.mark.parametrize("digests", [False, True])
async def test_read_data_with_pdo_0_is_taken_from_behind_the_header(
    start: Start, device: FakeDevice, caplog: pytest.LogCaptureFixture, digests: bool
) -> None:
    """Some targets send C2HData like that: short reads, and reads that are received in place."""
    caplog.set_level(logging.INFO, "nvmeof.host")
    target = await start(header_digest=digests, data_digest=digests)
    device.memory[:] = bytes(range(256)) * (len(device.memory) // 256)

    def without_pdo(buffers: list[Any]) -> list[Any]:
        changed = []
        for buffer in buffers:
            raw = bytearray(buffer)
            if raw[0] == 7 and len(raw) in (24, 28) and raw[2] == 24:
                raw[3] = 0
                raw[24:] = digest_bytes(raw[:24]) if raw[24:] else b""
            changed.append(raw)
        return changed

    target.mangle = without_pdo
    async with host(target, hdr_digest=digests, data_digest=digests) as controller:
        namespace = controller.namespace(1)
        assert await namespace.read(0, 1) == device.memory[:512]
        assert await namespace.read(0, 256) == device.memory[: 256 * 512]
    lines = [record.getMessage() for record in caplog.records if "PDO 0" in record.getMessage()]
    assert len(lines) == 2, "one per queue"
    assert all("C2H_DATA with data and PDO 0" in line for line in lines)


# -- bad ends


async def test_a_port_without_a_listener() -> None:
    with pytest.raises(TransportError, match="refused"):
        await connect("127.0.0.1", 1, subnqn=SUBNQN, transport="tcp", hostnqn=HOSTNQN)


async def test_unknown_transport() -> None:
    with pytest.raises(ConfigurationError, match="carrier-pigeon"):
        await connect("127.0.0.1", 1, subnqn=SUBNQN, transport="carrier-pigeon", hostnqn=HOSTNQN)


async def test_a_peer_that_never_answers_icreq(start: Start) -> None:
    target = await start()
    target.silent = True
    with pytest.raises(ConnectTimeout, match="is it an NVMe/TCP target"):
        async with host(target, connect_timeout=0.2):
            pass


@pytest.mark.parametrize(
    ("garbage", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "cannot speak with 127.0.0.1:.*: PDU type 0x48 does not exist"),
        (b"\x01\x00\x80\x00\x80\x00\x00\x00" + b"\xff" * 120, "cannot speak with .*: .*PFV"),
        (b"\x05\x00\x18\x00\x18\x00\x00\x00" + bytes(16), "cannot speak with"),  # a response before ICResp
        (bytes.fromhex("15030300020246"), r"cannot speak with .* seems to speak TLS \(first byte 15h\)"),
        (bytes.fromhex("1603030040020000"), r"cannot speak with .* seems to speak TLS \(first byte 16h\)"),
        (b"", "closed the connection in place of an answer to ICReq: does that port require TLS"),
    ],
)
async def test_garbage_in_place_of_icresp(start: Start, garbage: bytes, words: str) -> None:
    target = await start()

    def accept(link: Link) -> None:
        link.endpoint.set_reader(None)
        if garbage:
            link.endpoint.sendmsg([garbage])
        else:
            link.endpoint.shutdown()

    target.on_accept = accept
    with pytest.raises(ConnectionLost, match=words):
        async with host(target):
            pass


async def test_a_connection_that_is_reset_in_place_of_icresp(start: Start) -> None:
    target = await start()
    target.on_accept = lambda link: link.endpoint.set_reader(link.endpoint.abort)
    words = r"ended the connection \(.*reset.*\) in place of an answer to ICReq: does that port require TLS"
    with pytest.raises(ConnectionLost, match=words):
        async with host(target):
            pass


async def test_a_server_that_speaks_tls() -> None:
    """A port that requires TLS answers a plain host like this (by Python's TLS)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(ConnectionLost, match="TLS"):
            await connect("127.0.0.1", port, subnqn=SUBNQN, transport="tcp", hostnqn=HOSTNQN)


async def test_digests_that_are_not_granted(start: Start) -> None:
    target = await start()
    with pytest.raises(TransportError, match="does not offer header digests"):
        async with host(target, hdr_digest=True):
            pass


BAD_PDUS = [
    # type, flags, hlen, pdo, plen, then the rest: each lies about something else
    (b"\x05\x00\x18\x00\x18\x00\x00\x00" + bytes(12) + b"\xee\xee\x00\x00", "not in use"),
    (b"\x07\x04\x18\x18\x20\x00\x00\x00" + b"\xee\xee" + bytes(14) + bytes(8), "DATAL"),
    (b"\x07\x04\x18\x18\x20\x00\x00\x00" + b"\xee\xee" + bytes(6) + b"\x08\x00\x00\x00" + bytes(4 + 8), "not in use"),
    (b"\x09\x00\x18\x00\x18\x00\x00\x00" + b"\xee\xee" + bytes(14), "not in use"),
    (b"\x42\x00\x18\x00\x18\x00\x00\x00" + bytes(16), ""),
    (b"\x05\x00\x18\x00\xff\xff\xff\x7f" + bytes(16), ""),
    (b"\x05\x00\x30\x00\x18\x00\x00\x00" + bytes(16), ""),
    (b"\x04\x00\x48\x00\x48\x00\x00\x00" + bytes(64), "CAPSULE_CMD received"),
]


@pytest.mark.parametrize(("pdu", "words"), BAD_PDUS)
async def test_bad_pdus_on_a_live_queue(start: Start, device: FakeDevice, pdu: bytes, words: str) -> None:
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        device.hold(NvmOpcode.READ)
        reading = asyncio.create_task(namespace.read(0))
        await until(lambda: device.held)
        target.links[1].connection.send_raw(pdu)
        target.links[1].flush()
        with pytest.raises(ConnectionLost, match=rf"broke the protocol on queue 1.*{words}"):
            await reading
        assert controller.state is HostState.FAILED
        await until(lambda: target.events)
    # the peer was told the reason
    assert [type(event).__name__ for event in target.events][:1] == ["Terminated"]


async def test_a_term_req_names_the_reason(start: Start, device: FakeDevice) -> None:
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        device.hold(NvmOpcode.READ)
        reading = asyncio.create_task(namespace.read(0))
        await until(lambda: device.held)
        target.links[1].connection.terminate(Fes.PDU_SEQUENCE_ERROR, 0, bytes(24))
        target.links[1].flush()
        with pytest.raises(ConnectionLost, match="terminated queue 1: PDU Sequence Error"):
            await reading
        assert controller.error is not None
        cause = controller.error.__cause__
        assert isinstance(cause, RemoteTermination) and (cause.fes, cause.fei) == (Fes.PDU_SEQUENCE_ERROR, 0)


@pytest.mark.parametrize("qid", [0, 1])
async def test_a_connection_that_closes(start: Start, device: FakeDevice, qid: int) -> None:
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        device.hold(NvmOpcode.READ)
        tasks = [asyncio.create_task(namespace.read(lba)) for lba in range(3)]
        await until(lambda: len(device.held) == 3)
        target.links[qid].endpoint.abort()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ConnectionLost)
            assert f"queue {qid}" in str(result)


async def test_a_peer_that_stops_in_the_middle_of_a_pdu(start: Start, device: FakeDevice) -> None:
    target = await start()
    async with host(target, io_timeout=1.0, admin_timeout=1.0) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        device.hold(NvmOpcode.READ)
        into = bytearray(BLOCK_BYTES)
        reading = asyncio.create_task(namespace.read_into(0, into))
        await until(lambda: device.held)
        cid = device.held[0].cid
        target.links[1].connection.send_raw(
            b"\x07\x04\x18\x18\x18\x02\x00\x00" + cid.to_bytes(2, "little") + bytes(6) + b"\x00\x02\x00\x00" + bytes(4)
        )
        target.links[1].connection.send_raw(b"\xaa" * 100)
        target.links[1].flush()
        device.held.clear()  # the Abort finds nothing
        with pytest.raises(ConnectionLost, match="was not answered in time"):
            await reading
        assert into == bytes(BLOCK_BYTES)  # a small PDU is taken when it is complete
        # torn down: nothing writes to the buffer
        with contextlib.suppress(OSError):
            target.links[1].endpoint.sendmsg([b"\xbb" * 412])
        await asyncio.sleep(0.05)
        assert into[100:] == bytes(412)


async def test_a_peer_that_stops_reading(start: Start, device: FakeDevice) -> None:
    target = await start()
    async with host(target, io_timeout=1.0, admin_timeout=1.0) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        target.links[1].endpoint.set_reader(None)
        data = bytearray(4096 * BLOCK_BYTES)
        with pytest.raises(ConnectionLost, match="was not answered in time"):
            await asyncio.gather(*(namespace.write(0, data) for _ in range(20)))
        assert controller.state is HostState.FAILED
        assert controller.io_queues[0].load == 0


async def test_a_bad_data_digest_costs_only_the_command(start: Start, device: FakeDevice) -> None:
    target = await start(header_digest=True, data_digest=True)
    async with host(target, hdr_digest=True, data_digest=True) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()

        def corrupt(buffers: list[Any]) -> list[Any]:
            return [bytes(b[:-1]) + b"\x5a" if len(b) == 4 * BLOCK_BYTES else b for b in buffers]

        target.mangle = corrupt
        with pytest.raises(NvmeStatusError) as caught:
            await namespace.read(0, 4)
        assert caught.value.status == Status.TRANSIENT_TRANSPORT_ERROR
        assert len(await namespace.read(0, 3)) == 3 * BLOCK_BYTES
        assert controller.state is HostState.LIVE


async def test_a_bad_header_digest_is_fatal(start: Start, device: FakeDevice) -> None:
    target = await start(header_digest=True)
    async with host(target, hdr_digest=True) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()

        def corrupt(buffers: list[Any]) -> list[Any]:
            whole = bytearray(b"".join(buffers))
            whole[-1] ^= 0xFF
            return [bytes(whole)]

        target.mangle = corrupt
        with pytest.raises(ConnectionLost, match="header digest"):
            await namespace.flush()


async def test_a_read_that_brings_too_little(start: Start, device: FakeDevice) -> None:
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        device.hold(NvmOpcode.READ)
        reading = asyncio.create_task(namespace.read(0, 2))
        await until(lambda: device.held)
        target.links[1].connection.send_completion(device.held[0].cid, 0)
        target.links[1].flush()
        with pytest.raises(NvmeStatusError) as caught:
            await reading
        assert caught.value.status == Status.DATA_TRANSFER_ERROR


async def test_a_blocked_socket(start: Start, device: FakeDevice) -> None:
    target = await start("memory")
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        target.silent = True
        data = os.urandom(2000 * BLOCK_BYTES)
        writing = asyncio.create_task(namespace.write(0, data))
        await asyncio.sleep(0.05)
        target.silent = False
        for link in list(target.accepted):
            link.readable()
        await writing
        assert device.memory[: len(data)] == data


async def test_the_failure_event_is_never_ours(start: Start, device: FakeDevice) -> None:
    """The host never breaks a rule that the target's side of the protocol checks."""
    target = await start("memory", header_digest=True, data_digest=True)
    async with host(target, hdr_digest=True, data_digest=True, queue_size=2) as controller:
        namespace = controller.namespace(1)
        await asyncio.gather(*(namespace.write(lba, bytes(BLOCK_BYTES)) for lba in range(100)))
        await namespace.write(0, bytes(3000 * BLOCK_BYTES))
    assert not [event for event in target.events if isinstance(event, ProtocolFailure)]


@pytest.mark.parametrize(
    "what", ["identify", "smart_log", "read", "read_into", "long read_into", "write", "long write"]
)
async def test_a_timeout_is_obeyed_while_the_target_is_stopped(start: Start, what: str) -> None:
    """The target's process is stopped: it takes bytes and answers nothing, not even Aborts."""
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        target.silent = True
        buffer = bytearray(6 << 20 if what.startswith("long") else 4096)
        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "identify": controller.identify,
            "smart_log": controller.smart_log,
            "read": lambda: namespace.read(0),
            "read_into": lambda: namespace.read_into(0, buffer),
            "write": lambda: namespace.write(0, buffer),
        }
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await operations[what.removeprefix("long ")]()
        assert asyncio.get_running_loop().time() - began < 20
        for link in target.accepted:
            link.endpoint.abort()


async def test_data_that_comes_after_a_cancelled_read_into_does_not_land_in_its_buffer(
    start: Start, device: FakeDevice
) -> None:
    target = await start()
    async with host(target) as controller:
        namespace = controller.namespace(1)
        await namespace.write(0, b"\xaa" * BLOCK_BYTES)
        device.hold(NvmOpcode.READ)
        into = bytearray(BLOCK_BYTES)
        reading = asyncio.create_task(namespace.read_into(0, into))
        await until(lambda: device.held)
        held = device.held.pop()  # the Abort finds nothing
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        device.intercept = None
        device.send_req(held, False)
        assert await namespace.read(0) == b"\xaa" * BLOCK_BYTES  # the late answer came before this one
        assert into == bytes(BLOCK_BYTES)
        assert controller.io_queues[0].load == 0
