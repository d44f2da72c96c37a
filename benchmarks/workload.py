"""What a load loop sends: a ring of prepared capsules and a few prepared payloads, all bytes, made once."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks import wireformat as w

RING_COMMANDS = 16384  # 64 MiB of distinct 4 KiB blocks: more than the last-level cache holds
RING_LARGE = 1024
PAYLOADS = 16
SEED = 20260101


@dataclass(frozen=True)
class Workload:
    """Prepared bytes plus the sizes by which replies are counted. All sizes in bytes."""

    op: str
    depth: int
    framing: w.Framing
    heads: bytes
    head_bytes: int
    payloads: bytes  # `payload_count` payloads, each in pieces of `piece_bytes` followed by their digest
    payload_bytes: int  # 0 for reads
    payload_stride: int
    payload_count: int
    piece_bytes: int
    r2t: bool
    unit_bytes: int  # of all replies to one command; with R2T, of one reply
    check: bytes  # the first eight bytes of a reply
    batch: int = 1  # new commands are sent when at least so many can be
    limit: int = 0

    @property
    def ring(self) -> int:
        return len(self.heads) // self.head_bytes


@dataclass(frozen=True)
class Shape:
    """One benchmark case as the load generator sees it."""

    op: str  # "read" or "write"
    block_size_bytes: int  # of one command
    depth: int
    framing: w.Framing
    success: bool  # reads: C2HData carries SUCCESS and no response follows
    in_capsule: bool  # writes
    nsid: int = 1
    lba_bytes: int = 512
    span_bytes: int = 1 << 30
    batch: int = 1
    sequential: bool = False
    limit: int = 0


def prepare(shape: Shape) -> Workload:
    """Build the ring and the payloads of a case; the same shape gives the same bytes."""
    size = shape.block_size_bytes
    rng = random.Random(SEED)
    slots = shape.span_bytes // size
    count = min(RING_COMMANDS if size <= 16384 else RING_LARGE, 0xFF00)
    if shape.sequential:
        count = min(slots, RING_COMMANDS)
        starts = list(range(count))
    else:
        starts = [rng.randrange(slots) for _ in range(count)]
    blocks = size // shape.lba_bytes
    write = shape.op == "write"
    inline = write and shape.in_capsule
    framing = shape.framing
    opcode, sgl = (w.WRITE if write else w.READ), (w.IN_CAPSULE if inline else w.TRANSPORT_SGL)
    heads = [
        framing.head(
            w.CAPSULE_CMD, w.rw_sqe(opcode, cid, shape.nsid, start * blocks, blocks, size, sgl), size if inline else 0
        )
        for cid, start in enumerate(starts)
    ]
    piece = size if inline else min(size, framing.maxh2cdata_bytes)
    stored = [_in_pieces(rng.randbytes(size), piece, framing) for _ in range(PAYLOADS if write else 0)]
    templates = w.reply_templates(framing, size, shape.success)
    response = templates["response"]
    return Workload(
        op=shape.op,
        depth=shape.depth,
        framing=framing,
        heads=b"".join(heads),
        head_bytes=len(heads[0]),
        payloads=b"".join(stored),
        payload_bytes=size if write else 0,
        payload_stride=len(stored[0]) if stored else 0,
        payload_count=len(stored),
        piece_bytes=piece,
        r2t=write and not inline,
        unit_bytes=len(response) if write else len(templates["data_head"]) + size + len(templates["data_tail"]),
        check=(response if write else templates["data_head"])[:8],
        batch=1 if write and not inline else min(shape.batch, shape.depth),
        limit=shape.limit,
    )


def _in_pieces(payload: bytes, piece: int, framing: w.Framing) -> bytes:
    parts = (payload[at : at + piece] for at in range(0, len(payload), piece))
    return b"".join(part + framing.tail(part) for part in parts)


def floor_hello(shape: Shape, workload: Workload) -> dict[str, object]:
    """What the floor server has to know to move the same bytes: sizes and fixed replies, as JSON values."""
    templates = w.reply_templates(shape.framing, shape.block_size_bytes, shape.success)
    inline_bytes = workload.payload_stride if shape.in_capsule and shape.op == "write" else 0
    data_pdu = workload.framing.data_offset(w.RESPONSE_BYTES) + workload.payload_stride if workload.r2t else 0
    return {
        "mode": "read" if shape.op == "read" else "r2t" if workload.r2t else "write",
        "request_bytes": workload.head_bytes + inline_bytes,
        "data_pdu_bytes": data_pdu,
        "payload_bytes": shape.block_size_bytes,
        "depth": shape.depth,
        **{name: value.hex() for name, value in templates.items()},
    }
