"""Linux's own traffic, read in both directions by our parser and encoded again byte for byte."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pytest

from nvmeof.pdu.digest import digest_bytes
from nvmeof.pdu.framer import Framing, check_header
from nvmeof.pdu.handshake import ICREQ, ICRESP, Dgst, pda_to_bytes
from nvmeof.pdu.header import CH, DIGEST_BYTES, PduType
from nvmeof.pdu.transfer import C2H_DATA, H2C_DATA, R2T_PDU
from nvmeof.protocol.connection import Connection, ConnectionConfig, HostConnection, TargetConnection
from nvmeof.protocol.encoder import Encoder
from nvmeof.protocol.events import CommandBatch, CommandData, Completions, Event, Ready
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.cqe import CQE
from nvmeof.spec.sqe import SQE
from tests import traces
from tests.events import one_by_one
from tests.traces import Pdu, Trace

TRANSPORT_DATA_BLOCK = 0x5A
READ_SIZES = [pytest.param(0, id="whole"), pytest.param(1, id="byte by byte"), pytest.param(4093, id="in odd pieces")]
CONVERSATIONS = [
    pytest.param(name, connection, id=f"{name}-{connection}")
    for name in traces.names()
    for connection in traces.load(name).connections
]


def conversation(name: str, connection: int) -> list[Pdu]:
    return [pdu for pdu in traces.load(name).pdus if pdu.connection == connection]


def settled(pdus: list[Pdu]) -> tuple[Encoder, Encoder, Framing]:
    """Return the settings of the handshake that begins a connection: each side's encoder, and the framing of both."""
    request, response = ICREQ.unpack_from(pdus[0].data), ICRESP.unpack_from(pdus[1].data)
    digests = bool(response.dgst & Dgst.HDGST_ENABLE), bool(response.dgst & Dgst.DDGST_ENABLE)
    host = Encoder(*digests, pda_to_bytes(response.cpda))
    controller = Encoder(*digests, pda_to_bytes(request.hpda))
    return host, controller, Framing(*digests)


def payload_of(data: bytes, framing: Framing) -> bytes:
    header = CH.unpack_from(data)
    offset, length = check_header(
        header.pdu_type, header.flags, header.hlen, header.pdo, header.plen,
        Framing() if header.pdu_type in (PduType.ICREQ, PduType.ICRESP) else framing,
    )  # fmt: skip
    return data[offset : offset + length] if length else b""


def encoded_again(data: bytes, host: Encoder, controller: Encoder, framing: Framing) -> bytes:
    """Parse a PDU into its fields, and encode these again."""
    payload = payload_of(data, framing)
    trailer = digest_bytes(payload) if payload and framing.data_digest else b""
    match data[0]:
        case PduType.ICREQ:
            return ICREQ.pack(ICREQ.unpack_from(data))
        case PduType.ICRESP:
            return ICRESP.pack(ICRESP.unpack_from(data))
        case PduType.CAPSULE_CMD:
            sqe = SQE.unpack_from(data, CH.size)
            sgl = sqe.sgl_address, sqe.sgl_length, sqe.sgl_type
            return host.command(sqe.cid, SQE.pack(sqe), sgl, len(payload)) + payload + trailer
        case PduType.CAPSULE_RESP:
            cqe = CQE.unpack_from(data, CH.size)
            return controller.response(cqe.cid, cqe.status, cqe.dw0, cqe.dw1, cqe.sqhd, cqe.sqid)
        case PduType.H2C_DATA:
            h2c = H2C_DATA.unpack_from(data)
            last = bool(h2c.flags & 4)
            return host.h2c_data(h2c.cccid, h2c.ttag, h2c.datao, h2c.datal, last) + payload + trailer
        case PduType.C2H_DATA:
            c2h = C2H_DATA.unpack_from(data)
            return controller.c2h_data(c2h.cccid, c2h.datao, c2h.datal, c2h.flags & 0x0C) + payload + trailer
        case PduType.R2T:
            r2t = R2T_PDU.unpack_from(data)
            return controller.r2t(r2t.cccid, r2t.ttag, r2t.r2to, r2t.r2tl)
    raise AssertionError(f"PDU type {data[0]}")


@pytest.mark.parametrize("name", traces.names())
def test_fixtures_hold_every_kind_of_pdu(name: str) -> None:
    trace = traces.load(name)
    kinds = Counter(PduType(pdu.data[0]) for pdu in trace.pdus)
    assert set(kinds) == set(PduType) - {PduType.H2C_TERM_REQ, PduType.C2H_TERM_REQ}
    assert len(trace.connections) == 4 and trace.source.startswith("Linux")


def test_fixtures_stay_small() -> None:
    assert sum(path.stat().st_size for path in traces.DIRECTORY.glob(f"*{traces.SUFFIX}")) < 1_000_000


@pytest.mark.parametrize(("name", "connection"), CONVERSATIONS)
def test_every_pdu_is_encoded_again_to_the_same_bytes(name: str, connection: int) -> None:
    pdus = conversation(name, connection)
    parties = settled(pdus)
    for number, pdu in enumerate(pdus):
        assert encoded_again(pdu.data, *parties) == pdu.data, f"PDU {number}, type {pdu.data[0]}"


def config_of(pdus: list[Pdu]) -> ConnectionConfig:
    request, response = ICREQ.unpack_from(pdus[0].data), ICRESP.unpack_from(pdus[1].data)
    return ConnectionConfig(
        header_digest=bool(request.dgst & Dgst.HDGST_ENABLE),
        data_digest=bool(request.dgst & Dgst.DDGST_ENABLE),
        pda_bytes=pda_to_bytes(request.hpda),
        maxr2t=request.maxr2t + 1,
        maxh2cdata_bytes=response.maxh2cdata,
    )


def feed(connection: Connection, data: bytes, at_once: int, handle: Callable[[Event], None]) -> None:
    """Feed as a socket would, at most `at_once` bytes at a time (0: as much as the connection takes)."""
    offset = 0
    while offset < len(data):
        buffer = connection.next_buffer()
        size = min(len(buffer), len(data) - offset, at_once or len(data))
        buffer[:size] = data[offset : offset + size]
        offset += size
        for event in one_by_one(connection.bytes_received(size, 0.0)):
            handle(event)


def drained(connection: Connection) -> bytes:
    """Return all that a connection wants to send."""
    sent = b""
    while buffers := connection.data_to_send():
        data = b"".join(bytes(buffer) for buffer in buffers)
        connection.bytes_sent(len(data))
        sent += data
    return sent


def turns(pdus: list[Pdu]) -> Iterator[tuple[str, list[Pdu]]]:
    """Yield runs of PDUs in one direction."""
    run: list[Pdu] = []
    for pdu in pdus:
        if run and run[-1].direction != pdu.direction:
            yield run[-1].direction, run
            run = []
        run.append(pdu)
    yield run[-1].direction, run


@pytest.mark.parametrize("at_once", READ_SIZES)
@pytest.mark.parametrize(("name", "connection"), CONVERSATIONS)
def test_our_target_follows_linux_host(name: str, connection: int, at_once: int) -> None:
    """All that Linux's host sent goes into a target connection, which answers with what Linux's target answered."""
    pdus = conversation(name, connection)
    framing = settled(pdus)[2]
    target = TargetConnection(config_of(pdus))
    commands: list[bytes] = []
    data: dict[int, bytes] = {}
    transfers: dict[int, memoryview] = {}

    def handle(event: Event) -> None:
        if isinstance(event, CommandBatch):
            starts = range(CH.size, CH.size + event.count * event.stride, event.stride)
            commands.extend(bytes(event.view[at : at + SQE.size]) for at in starts)
        elif isinstance(event, CommandData):
            assert event.digest_ok
            commands.append(bytes(event.sqe))
            data[SQE.unpack_from(event.sqe).cid] = bytes(event.data)
        elif isinstance(event, R2tTransfer):
            assert event.ok
            data[event.cid] = bytes(transfers.pop(event.cid))
        else:
            assert isinstance(event, Ready), event

    pending: dict[int, bytearray] = defaultdict(bytearray)
    for direction, run in turns(pdus):
        if direction == "h2c":
            expected_commands = [p.data[8:72] for p in run if p.data[0] == PduType.CAPSULE_CMD]
            expected_data = [payload_of(p.data, framing) for p in run]
            data.clear()
            commands.clear()
            feed(target, b"".join(p.data for p in run), at_once, handle)
            assert commands == expected_commands
            assert sorted(data.values()) == sorted(part for part in expected_data if part)
            if run[0].data[0] == PduType.ICREQ:
                assert drained(target) == pdus[1].data
            continue
        for pdu in run:
            if pdu.data[0] == PduType.R2T:
                r2t = R2T_PDU.unpack_from(pdu.data)
                target._r2ts._last = r2t.ttag - 1  # Linux numbers its transfers differently
                transfers[r2t.cccid] = memoryview(bytearray(r2t.r2tl))
                target.request_data(r2t.cccid, transfers[r2t.cccid], None)
                assert drained(target) == pdu.data
            elif pdu.data[0] == PduType.C2H_DATA:
                pending[C2H_DATA.unpack_from(pdu.data).cccid] += pdu.data
            elif pdu.data[0] == PduType.CAPSULE_RESP:
                cqe = CQE.unpack_from(pdu.data, CH.size)
                before = bytes(pending.pop(cqe.cid, b""))
                target.send_read(cqe.cid, payload_of(before, framing) if before else b"", cqe.status, cqe.dw0, cqe.dw1)
                sent = drained(target)
                assert sent[: len(before)] == before
                ours = CQE.unpack_from(sent, len(before) + CH.size)
                # SQHD counts fetched commands, which Linux does when a command completes, and the fixture is cut.
                assert (ours.cid, ours.status, ours.dw0, ours.dw1) == (cqe.cid, cqe.status, cqe.dw0, cqe.dw1)
                assert len(sent) - len(before) == len(pdu.data)
    assert not transfers and not pending


@pytest.mark.parametrize("at_once", READ_SIZES)
@pytest.mark.parametrize(("name", "connection"), CONVERSATIONS)
def test_our_host_sends_what_linux_sent(name: str, connection: int, at_once: int) -> None:
    """A host connection with Linux's commands sends Linux's bytes, and reads all answers."""
    pdus = conversation(name, connection)
    framing = settled(pdus)[2]
    host = HostConnection(config_of(pdus))
    wanted: dict[int, memoryview] = {}
    got: list[tuple[int, int, int, int]] = []

    def handle(event: Event) -> None:
        if isinstance(event, Completions):
            got.extend(event.entries)
        else:
            assert isinstance(event, Ready), event

    host.start()
    for number, pdu in enumerate(pdus):
        if pdu.data[0] == PduType.CAPSULE_CMD:
            command = SQE.unpack_from(pdu.data, CH.size)
            data_out, data_in = _buffers(pdus[number:], command.cid, pdu, framing)
            if data_in is not None:
                wanted[command.cid] = data_in
            host.send_command(command.cid, pdu.data[8:72], data_out, data_in)
        if pdu.direction == "h2c":
            assert drained(host) == pdu.data, f"PDU {number}, type {pdu.data[0]}"
        else:
            feed(host, pdu.data, at_once, handle)
            if pdu.data[0] == PduType.C2H_DATA:
                c2h = C2H_DATA.unpack_from(pdu.data)
                here = wanted[c2h.cccid][c2h.datao : c2h.datao + c2h.datal]
                assert bytes(here) == payload_of(pdu.data, framing)
    recorded = [CQE.unpack_from(p.data, CH.size) for p in pdus if p.data[0] == PduType.CAPSULE_RESP]
    assert got == [(cqe.cid, cqe.status & 0xFFFE, cqe.dw0, cqe.dw1) for cqe in recorded]
    assert host.outstanding == 0


def _buffers(rest: list[Pdu], cid: int, pdu: Pdu, framing: Framing) -> tuple[bytes | None, memoryview | None]:
    """Return the data of a command, from the rest of the traffic: what the host sends, and where the answer goes."""
    in_capsule = payload_of(pdu.data, framing)
    if in_capsule:
        return in_capsule, None
    length, kind = struct.unpack_from("<I3xB", pdu.data, CH.size + 32)
    assert kind == TRANSPORT_DATA_BLOCK
    if not length:
        return None, None
    for later in rest[1:]:
        if later.data[0] == PduType.H2C_DATA and H2C_DATA.unpack_from(later.data).cccid == cid:
            return payload_of(later.data, framing), None
        if later.data[0] == PduType.C2H_DATA and C2H_DATA.unpack_from(later.data).cccid == cid:
            break
    return None, memoryview(bytearray(length))


def test_a_wrong_bit_in_a_digested_header_is_found() -> None:
    trace: Trace = traces.load("linux-6.12-digests")
    pdus = next(
        c for c in (conversation(trace.name, n) for n in trace.connections) if ICRESP.unpack_from(c[1].data).dgst
    )
    target = TargetConnection(config_of(pdus))
    events: list[Event] = []
    feed(target, pdus[0].data, 0, events.append)
    command = bytearray(pdus[2].data)
    assert len(command) > 72 + DIGEST_BYTES
    command[40] ^= 0x10
    feed(target, bytes(command), 0, events.append)
    assert [type(event).__name__ for event in events] == ["Ready", "ProtocolFailure"]
