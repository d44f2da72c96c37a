"""Captures of TCP connections: reading them back into byte streams, and writing byte streams as packets.

Nothing here knows this project's parser or any library: it is the part that turns packets into what a peer's
`recv` would have given (for fixtures), and what our two ends sent into packets that a foreign reader such as tshark
takes (for a witness). The file format is the classic libpcap one; link types Ethernet, raw IP and Linux cooked
capture are read, Ethernet is written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Direction = Literal["h2c", "c2h"]

_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e6),
    b"\xa1\xb2\xc3\xd4": (">", 1e6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e9),
    b"\xa1\xb2\x3c\x4d": (">", 1e9),
}
_LINK_ETHERNET, _LINK_RAW, _LINK_COOKED, _LINK_COOKED2 = 1, 101, 113, 276
_FIN, _SYN, _RST, _PUSH, _ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_SEQUENCE_MASK = 0xFFFFFFFF


class CaptureError(Exception):
    """A file that is not a capture, or one that lacks packets of a connection."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one connection in one direction, in the order in which the receiver gets them.

    `connection` counts the TCP connections of the capture from 0 by their first packet, `time_seconds` is relative to
    the capture's first packet.
    """

    connection: int
    direction: Direction
    time_seconds: float
    data: bytes


@dataclass(slots=True)
class _Flow:
    """One direction of a connection: the next sequence number, and segments that came ahead of it."""

    expected: int | None = None
    early: dict[int, bytes] = field(default_factory=dict)

    def take(self, sequence: int, payload: bytes) -> Iterator[bytes]:
        """Return the payloads that are now in order; repeated bytes are dropped."""
        if self.expected is None:
            self.expected = sequence
        self.early[sequence] = payload
        while True:
            for start in sorted(self.early, key=lambda s: (s - self.expected) & _SEQUENCE_MASK):  # type: ignore[operator]
                ahead = (start - self.expected) & _SEQUENCE_MASK
                old = (self.expected - start) & _SEQUENCE_MASK
                if ahead == 0 or old < len(self.early[start]):
                    fresh = self.early.pop(start)[old if ahead else 0 :]
                    self.expected = (self.expected + len(fresh)) & _SEQUENCE_MASK
                    yield fresh
                    break
                if ahead >= 1 << 31:
                    del self.early[start]
                    break
            else:
                return


def read_packets(path: Path) -> Iterator[tuple[float, int, bytes]]:
    """Yield every packet of a capture as (seconds since the first one, link type, bytes)."""
    raw = path.read_bytes()
    try:
        order, scale = _MAGIC[raw[:4]]
    except KeyError:
        raise CaptureError(f"{path} is not a libpcap capture") from None
    link = struct.unpack_from(order + "I", raw, 20)[0] & 0xFFFF
    offset, first = 24, None
    while offset + 16 <= len(raw):
        seconds, fraction, captured, length = struct.unpack_from(order + "4I", raw, offset)
        if captured < length:
            raise CaptureError(f"{path}: a packet was cut to {captured} of {length} bytes")
        now = seconds + fraction / scale
        first = now if first is None else first
        yield now - first, link, raw[offset + 16 : offset + 16 + captured]
        offset += 16 + captured


def _ip_of(link: int, packet: bytes) -> bytes:
    """Return the IP packet in a frame, empty for another protocol."""
    if link == _LINK_RAW:
        return packet
    skip, kind = {_LINK_ETHERNET: (14, 12), _LINK_COOKED: (16, 14), _LINK_COOKED2: (20, 0)}.get(link, (0, 0))
    if not skip:
        raise CaptureError(f"link type {link} is not read")
    return packet[skip:] if packet[kind : kind + 2] in (b"\x08\x00", b"\x86\xdd") else b""


def _tcp_of(ip: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return (source address, destination address, TCP segment) of an IP packet without extension headers."""
    if ip[:1] and ip[0] >> 4 == 4 and ip[9] == 6:
        total = struct.unpack_from(">H", ip, 2)[0] or len(ip)  # 0: segmentation offload
        return ip[12:16], ip[16:20], ip[(ip[0] & 15) * 4 : total]
    if ip[:1] and ip[0] >> 4 == 6 and ip[6] == 6:
        length = struct.unpack_from(">H", ip, 4)[0] or len(ip) - 40
        return ip[8:24], ip[24:40], ip[40 : 40 + length]
    return None


def reassemble(path: Path, port: int) -> Iterator[Piece]:
    """Return what the controllers on TCP `port` and their hosts received, piece by piece, in the order of the capture.

    Raises CaptureError when bytes of a stream are missing at the end.
    """
    connections: dict[tuple[bytes, int], tuple[int, dict[Direction, _Flow]]] = {}
    every: list[tuple[int, dict[Direction, _Flow]]] = []
    for now, link, packet in read_packets(path):
        segment = _tcp_of(_ip_of(link, packet))
        if segment is None:
            continue
        source, destination, tcp = segment
        source_port, destination_port, sequence, _, header, flags = struct.unpack_from(">HHIIBB", tcp)
        if port not in (source_port, destination_port):
            continue
        direction: Direction = "c2h" if source_port == port else "h2c"
        peer = (destination, destination_port) if direction == "c2h" else (source, source_port)
        if peer not in connections or flags & (_SYN | _ACK) == _SYN:
            connections[peer] = (len(every), {"h2c": _Flow(), "c2h": _Flow()})
            every.append(connections[peer])
        number, flows = connections[peer]
        if flags & _SYN:
            flows[direction].expected = (sequence + 1) & _SEQUENCE_MASK
        payload = tcp[(header >> 4) * 4 :]
        if payload:
            yield from (Piece(number, direction, now, data) for data in flows[direction].take(sequence, payload))
    for number, flows in every:
        for way, flow in flows.items():
            if flow.early:
                raise CaptureError(
                    f"{path}: connection {number} {way}: bytes before sequence {min(flow.early)} are missing"
                )


def split_pdus(stream: bytes) -> Iterator[bytes]:
    """Return the PDUs of one direction by the PLEN field of their common header (bytes 4 to 7); the rest must be
    empty.
    """
    offset = 0
    while offset < len(stream):
        plen = int.from_bytes(stream[offset + 4 : offset + 8], "little")
        if plen < 8 or offset + plen > len(stream):
            raise CaptureError(f"offset {offset}: PLEN {plen} with {len(stream) - offset} bytes left")
        yield stream[offset : offset + plen]
        offset += plen


def _checksum(*parts: bytes) -> int:
    """Return the internet checksum (RFC 1071) over the joined parts."""
    data = b"".join(parts)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) & 1 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(slots=True)
class _Sender:
    """One end of a synthetic connection."""

    address: bytes
    port: int
    mac: bytes
    sequence: int

    def packet(self, to: _Sender, flags: int, payload: bytes = b"") -> bytes:
        """Return an Ethernet frame with the right checksums; advance the sequence number."""
        tcp = struct.pack(
            ">HHIIBBHHH",
            self.port,
            to.port,
            self.sequence,
            to.sequence if flags & _ACK else 0,
            0x50,
            flags,
            65535,
            0,
            0,
        )
        pseudo = self.address + to.address + struct.pack(">BBH", 0, 6, len(tcp) + len(payload))
        tcp = tcp[:16] + struct.pack(">H", _checksum(pseudo, tcp, payload)) + tcp[18:]
        ip = (
            struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(payload), 0, 0x4000, 64, 6, 0)
            + self.address
            + to.address
        )
        ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
        self.sequence = (self.sequence + len(payload) + bool(flags & (_SYN | _FIN))) & _SEQUENCE_MASK
        return to.mac + self.mac + b"\x08\x00" + ip + tcp + payload


def write_pcap(path: Path, pieces: Iterable[Piece], *, port: int = 4420, segment_bytes: int = 32768) -> None:
    """Write byte streams as the packets of TCP connections on 10.0.0.x:`port`: handshake, segments, FIN.

    `pieces` come in time order; connection numbers are free. A piece longer than `segment_bytes` (at most 65495: what
    an IPv4 packet carries) becomes several packets, as with segmentation offload.
    """
    ends: dict[int, dict[Direction, _Sender]] = {}
    frames: list[tuple[float, bytes]] = []

    def open_connection(number: int, now: float) -> dict[Direction, _Sender]:
        host = _Sender(b"\x0a\x00\x00\x02", 40000 + number, b"\x02\x00\x00\x00\x00\x02", 1000)
        target = _Sender(b"\x0a\x00\x00\x01", port, b"\x02\x00\x00\x00\x00\x01", 2000)
        frames.append((now, host.packet(target, _SYN)))
        frames.append((now, target.packet(host, _SYN | _ACK)))
        frames.append((now, host.packet(target, _ACK)))
        return {"h2c": host, "c2h": target}

    last = 0.0
    for piece in pieces:
        last = max(last, piece.time_seconds)
        pair = ends.get(piece.connection) or ends.setdefault(piece.connection, open_connection(piece.connection, last))
        sender, receiver = pair[piece.direction], pair["c2h" if piece.direction == "h2c" else "h2c"]
        for start in range(0, len(piece.data), segment_bytes):
            part = piece.data[start : start + segment_bytes]
            frames.append((last, sender.packet(receiver, _ACK | _PUSH, part)))
            frames.append((last, receiver.packet(sender, _ACK)))
    for pair in ends.values():
        for way, other in (("h2c", "c2h"), ("c2h", "h2c")):
            frames.append((last, pair[way].packet(pair[other], _ACK | _FIN)))  # type: ignore[index]
        frames.append((last, pair["h2c"].packet(pair["c2h"], _ACK)))
    _write_frames(path, frames)


def _write_frames(path: Path, frames: Sequence[tuple[float, bytes]]) -> None:
    with path.open("wb") as out:
        out.write(struct.pack("<4sHHiIII", b"\xd4\xc3\xb2\xa1", 2, 4, 0, 0, 0x40000, _LINK_ETHERNET))
        for now, frame in frames:
            seconds, micros = divmod(round(now * 1e6), 1_000_000)
            out.write(struct.pack("<4I", seconds, micros, len(frame), len(frame)) + frame)
