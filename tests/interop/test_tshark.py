"""tshark's findings in captures that are known good, and in deliberately broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import traces
from tests.interop import tshark
from tests.interop.pcap import CaptureError, Piece, reassemble, split_pdus, write_pcap

pytestmark = pytest.mark.skipif(not tshark.available(), reason="tshark is not installed")

DIGESTS = "linux-6.12-digests"


def pieces_of(name: str) -> list[Piece]:
    return [Piece(p.connection, p.direction, p.time_seconds, p.data) for p in traces.load(name).pdus]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", traces.names())
def test_the_traffic_of_a_kernel_is_well_formed(name: str, tmp_path: Path) -> None:
    pieces = pieces_of(name)
    write_pcap(tmp_path / "x.pcap", pieces)
    reading = tshark.read(tmp_path / "x.pcap")
    assert reading.complaints() == []
    assert sum(reading.pdus.values()) == len(pieces)
    assert reading.pdus["H2CData"] == 1 and reading.pdus["R2T"] == 1
    assert (reading.good_digests > 100) == (name == DIGESTS)


def test_streams_survive_the_way_through_a_capture_file(tmp_path: Path) -> None:
    pieces = pieces_of(DIGESTS)
    write_pcap(tmp_path / "x.pcap", pieces, port=5555, segment_bytes=1460)
    found: dict[tuple[int, str], bytearray] = {}
    for piece in reassemble(tmp_path / "x.pcap", 5555):
        found.setdefault((piece.connection, piece.direction), bytearray()).extend(piece.data)
    for name, connection, direction, data in traces.streams():
        if name == DIGESTS:
            assert found[connection, direction] == data


def test_a_wrong_digest_is_named(tmp_path: Path) -> None:
    pieces = pieces_of(DIGESTS)
    victim = next(i for i, p in enumerate(pieces) if p.data[0] == 7 and p.data[1] & 2)
    broken = bytearray(pieces[victim].data)
    broken[-1] ^= 1
    pieces[victim] = Piece(pieces[victim].connection, "c2h", pieces[victim].time_seconds, bytes(broken))
    write_pcap(tmp_path / "x.pcap", pieces)
    assert any("bad data digest" in line for line in tshark.read(tmp_path / "x.pcap").complaints())


def test_a_command_without_completion_and_the_reverse_are_named(tmp_path: Path) -> None:
    pieces = pieces_of("linux-6.12")
    responses = [p for p in pieces if p.data[0] == 5]
    write_pcap(tmp_path / "x.pcap", [p for p in pieces if p is not responses[3]])
    assert any("more than completed" in line for line in tshark.read(tmp_path / "x.pcap").complaints())
    write_pcap(tmp_path / "y.pcap", [*pieces, responses[3]])
    assert any("without a command" in line for line in tshark.read(tmp_path / "y.pcap").complaints())


def test_a_pdu_of_unknown_type_is_named(tmp_path: Path) -> None:
    pieces = pieces_of("linux-6.12")
    wrong = bytes([8]) + pieces[-1].data[1:]
    write_pcap(tmp_path / "x.pcap", [*pieces, Piece(pieces[-1].connection, pieces[-1].direction, 99.0, wrong)])
    assert tshark.read(tmp_path / "x.pcap").complaints()


def test_a_lost_segment_is_an_error_of_the_capture(tmp_path: Path) -> None:
    write_pcap(tmp_path / "x.pcap", pieces_of("linux-6.12"))
    raw = (tmp_path / "x.pcap").read_bytes()
    offset, lengths = 24, []
    while offset < len(raw):
        lengths.append((offset, 16 + int.from_bytes(raw[offset + 8 : offset + 12], "little")))
        offset += lengths[-1][1]
    start, size = lengths[7]  # the ICResp's acknowledgement is 6, this is the Connect command
    (tmp_path / "x.pcap").write_bytes(raw[:start] + raw[start + size :])
    with pytest.raises(CaptureError, match="missing"):
        list(reassemble(tmp_path / "x.pcap", 4420))


def test_splitting_needs_whole_pdus() -> None:
    stream = traces.load("linux-6.12").stream(0, "h2c")
    assert b"".join(split_pdus(stream)) == stream
    with pytest.raises(CaptureError, match="PLEN"):
        list(split_pdus(stream[:-1]))
