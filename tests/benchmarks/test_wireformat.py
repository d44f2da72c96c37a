"""The load generator's layouts equal the package's: each checks the other."""

from __future__ import annotations

import pytest

from benchmarks import wireformat as w
from benchmarks.workload import PAYLOADS, Shape, prepare
from nvmeof.pdu.digest import crc32c
from nvmeof.pdu.header import CH, Flags, PduType
from nvmeof.pdu.transfer import C2H_DATA, R2T_PDU
from nvmeof.spec.cqe import CQE
from nvmeof.spec.sqe import SQE


def test_rw_sqe_is_an_sqe() -> None:
    raw = w.rw_sqe(w.READ, 0x1234, 7, 0x1_0000_0002, 8, 4096, w.TRANSPORT_SGL)
    sqe = SQE.unpack_from(raw)
    assert (len(raw), sqe.opcode, sqe.cid, sqe.nsid, sqe.psdt) == (64, 2, 0x1234, 7, 1)
    assert (sqe.slba, sqe.transfer_blocks) == (0x1_0000_0002, 8)
    assert (sqe.sgl_address, sqe.sgl_length, sqe.sgl_type) == (0, 4096, 0x5A)


@pytest.mark.parametrize("digest", [False, True])
def test_head_with_and_without_digests(digest: bool) -> None:
    framing = w.Framing(digest, digest)
    head = framing.head(w.CAPSULE_CMD, bytes(64), 4096)
    ch = CH.unpack_from(head)
    assert ch.pdu_type == PduType.CAPSULE_CMD
    assert ch.flags == (Flags.HDGSTF | Flags.DDGSTF if digest else 0)
    assert (ch.hlen, ch.pdo, ch.plen) == ((72, 76, 76 + 4096 + 4) if digest else (72, 72, 72 + 4096))
    assert len(head) == ch.pdo
    if digest:
        assert int.from_bytes(head[72:76], "little") == crc32c(head[:72], 0)


def test_head_keeps_the_alignment_that_the_controller_asked_for() -> None:
    head = w.Framing(header_digest=True, alignment_bytes=64).head(w.CAPSULE_CMD, bytes(64), 512)
    assert CH.unpack_from(head).pdo == len(head) == 128


@pytest.mark.parametrize("success", [False, True])
def test_reply_templates_are_pdus(success: bool) -> None:
    templates = w.reply_templates(w.Framing(), 4096, success)
    data = C2H_DATA.unpack_from(templates["data_head"])
    assert (data.pdu_type, data.datal, data.plen) == (PduType.C2H_DATA, 4096, 4120)
    assert bool(data.flags & Flags.SUCCESS) is success
    assert len(templates["data_tail"]) == (0 if success else 24)
    assert CQE.unpack_from(templates["response"], 8).status == 0
    assert R2T_PDU.unpack_from(templates["r2t"]).r2tl == 4096


def test_a_ring_of_reads_is_counted_by_bytes() -> None:
    shape = Shape("read", 4096, 32, w.Framing(), success=True, in_capsule=False, span_bytes=1 << 24)
    load = prepare(shape)
    assert (load.head_bytes, load.unit_bytes, load.payload_bytes) == (72, 24 + 4096, 0)
    cids, places = set(), set()
    for at in range(8, len(load.heads), 72):
        sqe = SQE.unpack_from(load.heads, at)
        cids.add(sqe.cid)
        places.add(sqe.slba)
        assert sqe.slba % 8 == 0
        assert sqe.slba + sqe.transfer_blocks <= (1 << 24) // 512
    assert len(cids) == load.ring, "a CID would be in flight twice"
    assert len(places) > load.ring // 8
    assert prepare(shape) == load, "the seed is fixed"


def test_large_writes_are_cut_where_the_target_wants_it() -> None:
    framing = w.Framing(data_digest=True, maxh2cdata_bytes=4096)
    load = prepare(Shape("write", 16384, 8, framing, success=True, in_capsule=False, span_bytes=1 << 24))
    assert load.r2t
    assert (load.piece_bytes, load.payload_stride) == (4096, 16384 + 4 * 4)
    assert len(load.payloads) == PAYLOADS * load.payload_stride
    piece = load.payloads[:4096]
    assert load.payloads[4096:4100] == crc32c(piece, 0).to_bytes(4, "little")


def test_a_fill_reaches_every_block_once() -> None:
    shape = Shape("write", 4096, 8, w.Framing(), True, True, span_bytes=1 << 20, sequential=True, limit=256)
    load = prepare(shape)
    places = [SQE.unpack_from(load.heads, at).slba for at in range(8, len(load.heads), load.head_bytes)]
    assert places == list(range(0, 2048, 8))
