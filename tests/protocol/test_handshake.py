"""ICReq and ICResp: every parameter, both ends of its range, and what breaks the rules."""

from __future__ import annotations

import struct

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.connection import Connection, ConnectionConfig, HostConnection, State, TargetConnection
from nvmeof.protocol.events import Negotiated, Ready

from .wire import failure, feed, icreq, icresp, sent, split


def handshake(host: ConnectionConfig, target: ConnectionConfig) -> tuple[Connection, Connection]:
    h, t = HostConnection(host), TargetConnection(target)
    h.start()
    [there] = feed(t, sent(h))
    [here] = feed(h, sent(t))
    assert isinstance(there, Ready)
    assert isinstance(here, Ready)
    assert here.parameters == h.parameters
    assert there.parameters == t.parameters
    return h, t


@pytest.mark.parametrize("pda_bytes", range(4, 129, 4))
def test_icreq_on_the_wire(pda_bytes: int) -> None:
    h = HostConnection(ConnectionConfig(pda_bytes=pda_bytes, maxr2t=17, header_digest=True))
    h.start()
    assert sent(h) == icreq(hpda=pda_bytes // 4 - 1, dgst=1, maxr2t=16)


@pytest.mark.parametrize("pda_bytes", range(4, 129, 4))
def test_icresp_on_the_wire(pda_bytes: int) -> None:
    t = TargetConnection(ConnectionConfig(pda_bytes=pda_bytes, maxh2cdata_bytes=131072, data_digest=True))
    feed(t, icreq(dgst=3))
    assert sent(t) == icresp(cpda=pda_bytes // 4 - 1, dgst=2, maxh2cdata=131072)


@pytest.mark.parametrize("asked", range(4))
@pytest.mark.parametrize("granted", range(4))
def test_digests_are_those_that_both_want(asked: int, granted: int) -> None:
    h, t = handshake(
        ConnectionConfig(header_digest=bool(asked & 1), data_digest=bool(asked & 2)),
        ConnectionConfig(header_digest=bool(granted & 1), data_digest=bool(granted & 2)),
    )
    both = asked & granted
    for connection in (h, t):
        assert connection.parameters is not None
        assert connection.parameters.header_digest == bool(both & 1)
        assert connection.parameters.data_digest == bool(both & 2)


def test_each_end_sends_with_the_others_alignment() -> None:
    h, t = handshake(ConnectionConfig(pda_bytes=12, maxr2t=3), ConnectionConfig(pda_bytes=128, maxh2cdata_bytes=8192))
    assert h.parameters == Negotiated(False, False, 128, 12, 3, 8192)
    assert t.parameters == Negotiated(False, False, 12, 128, 3, 8192)


@pytest.mark.parametrize("maxr2t", [1, 2, 1 << 32])
def test_maxr2t_is_0s_based(maxr2t: int) -> None:
    _, t = handshake(ConnectionConfig(maxr2t=maxr2t), ConnectionConfig())
    assert t.parameters is not None
    assert t.parameters.maxr2t == maxr2t


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (icreq(pfv=1), (6, 8)),
        (icreq(pfv=0xFFFF), (6, 8)),
        (icreq(hpda=32), (1, 10)),
        (icreq(hpda=255), (1, 10)),
        (icreq()[:4] + struct.pack("<I", 127) + icreq()[8:], (1, 4)),
        (icreq()[:4] + struct.pack("<I", 1 << 31) + icreq()[8:], (1, 4)),
        (icreq()[:2] + b"\x7f" + icreq()[3:], (1, 2)),
        (icresp(), (2, 0)),
        (b"GET / HTTP/1.1\r\nHost: target\r\n\r\n", (1, 0)),
        (bytes.fromhex("16030100") + bytes(200), (1, 0)),  # a TLS ClientHello
        (b"\xff" * 256, (1, 0)),
        (bytes(256), (1, 2)),
    ],
)
def test_bad_icreq(request_: bytes, expected: tuple[int, int]) -> None:
    t = TargetConnection(ConnectionConfig())
    assert failure(feed(t, request_)) == expected
    [pdu] = split(sent(t))
    kind, flags, hlen, pdo, plen, fes, fei = struct.unpack_from("<BBBBIHI", pdu)
    assert (kind, flags, hlen, pdo) == (3, 0, 24, 0)
    assert (fes, fei) == expected
    assert 24 + 8 <= plen <= 152
    assert request_.startswith(pdu[24:])
    assert t.state is State.CLOSED
    assert t.parameters is None


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (icresp(pfv=1), (6, 8)),
        (icresp(cpda=32), (1, 10)),
        (icresp(dgst=1), (1, 11)),
        (icresp(dgst=2), (1, 11)),
        (icresp(maxh2cdata=4095), (1, 12)),
        (icresp(maxh2cdata=0), (1, 12)),
        (icresp(maxh2cdata=4098), (1, 12)),
        (icreq(), (2, 0)),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", (1, 0)),
    ],
)
def test_bad_icresp(response: bytes, expected: tuple[int, int]) -> None:
    h = HostConnection(ConnectionConfig())
    h.start()
    sent(h)
    assert failure(feed(h, response)) == expected
    assert sent(h)[0] == 2
    assert h.state is State.CLOSED


@pytest.mark.parametrize("maxh2cdata", [4096, 0xFFFFFFFC])
def test_maxh2cdata_range(maxh2cdata: int) -> None:
    h = HostConnection(ConnectionConfig())
    h.start()
    sent(h)
    [event] = feed(h, icresp(maxh2cdata=maxh2cdata))
    assert isinstance(event, Ready)
    assert event.parameters.maxh2cdata_bytes == maxh2cdata


def test_reserved_bits_and_bytes_are_ignored() -> None:
    t = TargetConnection(ConnectionConfig(header_digest=True))
    request = bytearray(icreq(dgst=0xFC))
    request[1] = 0xFF  # FLAGS
    request[3] = 0xFF  # PDO
    request[16:] = b"\xff" * 112
    [event] = feed(t, bytes(request))
    assert isinstance(event, Ready)
    assert not event.parameters.header_digest


@pytest.mark.parametrize(
    "bad",
    [
        {"pda_bytes": 0},
        {"pda_bytes": 6},
        {"pda_bytes": 132},
        {"maxr2t": 0},
        {"maxr2t": (1 << 32) + 1},
        {"maxh2cdata_bytes": 4092},
        {"maxh2cdata_bytes": 4098},
        {"maxh2cdata_bytes": 1 << 32},
        {"r2t_bytes": 0},
        {"r2t_bytes": 6},
    ],
)
def test_bad_config(bad: dict[str, int]) -> None:
    with pytest.raises(LocalProtocolError):
        ConnectionConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1000, 8200, 8705])
def test_receive_buffer_must_hold_a_capsule(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        TargetConnection(ConnectionConfig(), bytearray(size))


def test_a_given_receive_buffer_is_used() -> None:
    buffer = bytearray(16384)
    t = TargetConnection(ConnectionConfig(), buffer)
    assert len(t.next_buffer()) == 16384
    feed(t, icreq())
    assert buffer[:128] == icreq()
