"""Turn a capture of NVMe/TCP into a fixture for the tests (the format is described in tests/traces/__init__.py).

    python -m tools.trace_fixture CAPTURE.pcap NAME --source "Linux 6.12 initiator and target, digests on"

A capture holds hundreds of reads that differ only in their payload. So that fixtures stay small, an exchange (command,
data, completion) is left out as a whole when the same queue has shown `--repeats` exchanges of the same opcode,
flags and length before, or when its payload is longer than `--max-payload`.
"""

from __future__ import annotations

import json
import lzma
import struct
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import click

from tests.interop.pcap import CaptureError, Direction, Piece, reassemble, split_pdus
from tests.traces import DIRECTORY, SUFFIX

_CAPSULE_CMD, _CAPSULE_RESP, _H2C_DATA, _C2H_DATA, _R2T = 4, 5, 6, 7, 9
_READ, _WRITE = 2, 1
_SUCCESS = 0x08


def pdus_of(capture: Path, port: int) -> list[Piece]:
    """The capture's PDUs, each with the time of the packet that completed it."""
    pending: dict[tuple[int, Direction], bytes] = defaultdict(bytes)
    found: list[Piece] = []
    for piece in reassemble(capture, port):
        key = piece.connection, piece.direction
        stream = pending[key] + piece.data
        while len(stream) >= 8 and len(stream) >= (plen := int.from_bytes(stream[4:8], "little")):
            found.append(Piece(*key, piece.time_seconds, next(split_pdus(stream[:plen]))))
            stream = stream[plen:]
        pending[key] = stream
    for (number, direction), rest in pending.items():
        if rest:
            raise CaptureError(f"connection {number} {direction} ends in the middle of a PDU ({len(rest)} bytes)")
    return found


def _cid(pdu: bytes) -> int | None:
    """The command a PDU belongs to."""
    offset = {_CAPSULE_CMD: 10, _CAPSULE_RESP: 20, _H2C_DATA: 8, _C2H_DATA: 8, _R2T: 8}.get(pdu[0])
    return None if offset is None else int(struct.unpack_from("<H", pdu, offset)[0])


def cut(pdus: Sequence[Piece], repeats: int, max_payload_bytes: int) -> list[Piece]:
    """Without the exchanges that add nothing: only Reads and Writes of I/O queues are ever left out."""
    seen: Counter[tuple[int, bytes, int]] = Counter()
    dropped: set[tuple[int, int]] = set()
    io_queues: set[int] = set()
    kept: list[Piece] = []
    for piece in pdus:
        pdu, cid = piece.data, _cid(piece.data)
        if cid is None:
            kept.append(piece)
            continue
        key = piece.connection, cid
        if pdu[0] == _CAPSULE_CMD:
            opcode, length = pdu[8], struct.unpack_from("<I", pdu, 8 + 32)[0]
            if opcode == 0x7F and pdu[8 + 4] == 1 and struct.unpack_from("<H", pdu, 8 + 42)[0]:
                io_queues.add(piece.connection)
            elif piece.connection in io_queues and opcode in (_READ, _WRITE):
                kind = piece.connection, bytes([opcode, pdu[1]]), length
                seen[kind] += 1
                if seen[kind] > repeats or length > max_payload_bytes:
                    dropped.add(key)
        if key not in dropped:
            kept.append(piece)
        elif pdu[0] == _CAPSULE_RESP or (pdu[0] == _C2H_DATA and pdu[1] & _SUCCESS):
            dropped.discard(key)
    return kept


@click.command(context_settings={"show_default": True})
@click.argument("capture", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("name")
@click.option("--source", required=True, help="What talked, in one sentence.")
@click.option("--port", default=4420, help="The controller's TCP port.")
@click.option("--repeats", default=2, help="Exchanges of one kind that are kept per queue.")
@click.option("--max-payload", default=1 << 20, help="Bytes of the longest exchange that is kept.")
def main(capture: Path, name: str, source: str, port: int, repeats: int, max_payload: int) -> None:
    """Write tests/traces/NAME.json.xz from CAPTURE."""
    try:
        whole = pdus_of(capture, port)
    except CaptureError as error:
        raise click.ClickException(str(error)) from None
    kept = cut(whole, repeats, max_payload)
    content = {
        "source": source,
        "cut": f"reads and writes beyond {repeats} of a kind per queue, and those of more than {max_payload} bytes",
        "pdus": [[p.connection, p.direction, round(p.time_seconds * 1e6), len(p.data)] for p in kept],
    }
    target = DIRECTORY / f"{name}{SUFFIX}"
    target.write_bytes(
        lzma.compress(b"\n".join((json.dumps(content).encode(), b"".join(p.data for p in kept))), preset=9)
    )
    kinds = Counter(p.data[0] for p in kept)
    click.echo(
        f"{target.name}: {len(kept)} of {len(whole)} PDUs, {sum(len(p.data) for p in kept)} bytes of streams in"
        f" {target.stat().st_size} bytes; PDU types {dict(sorted(kinds.items()))}"
    )


if __name__ == "__main__":
    main()
