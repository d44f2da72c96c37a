"""Bytes that are no PDU, PDUs with wrong headers, wrong digests, and data without an R2T."""

from __future__ import annotations

import struct

import pytest

from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import (
    C2H_TERM,
    CAPSULE,
    H2C_TERM,
    IN_CAPSULE,
    READ,
    WRITE,
    RawHost,
    admin,
    association,
    causes,
    connect_data,
    healthy,
    icreq,
    io_sqe,
    make_sqe,
    running,
)

INVALID_FIELD, SEQUENCE, HEADER_DIGEST, OUT_OF_RANGE, LIMIT, UNSUPPORTED = 1, 2, 3, 4, 5, 6
TRANSIENT = 0x22

FIRST_BYTES = {
    "http": (b"GET / HTTP/1.1\r\nHost: target\r\n\r\n", INVALID_FIELD, 0, "PDU type 0x47 does not exist"),
    "tls": (
        bytes.fromhex("1603010200010001fc0303") + bytes(100),
        INVALID_FIELD,
        0,
        "seems to speak TLS (first byte 16h)",
    ),
    "tls alert": (bytes.fromhex("15030300020246"), INVALID_FIELD, 0, "seems to speak TLS (first byte 15h)"),
    "no TLS version": (bytes.fromhex("1604010200010001fc"), INVALID_FIELD, 0, "PDU type 0x16 does not exist"),
    "wrong PFV": (icreq(pfv=1), UNSUPPORTED, 8, "PFV 0x1 is not supported"),
    "HPDA too large": (icreq(hpda=32), INVALID_FIELD, 10, "HPDA 32 is above 31"),
    "PLEN too small": (icreq(plen=127), INVALID_FIELD, 4, "PLEN is 127, this PDU has 128"),
    "PLEN zero": (icreq(plen=0), INVALID_FIELD, 4, "PLEN is 0"),
    "PLEN huge": (icreq(plen=0xFFFFFFFF), INVALID_FIELD, 4, "PLEN is 4294967295"),
    "HLEN": (icreq(hlen=24), INVALID_FIELD, 2, "HLEN is 24, a ICREQ has 128"),
    "HLEN zero": (icreq(hlen=0), INVALID_FIELD, 2, "HLEN is 0"),
    "a command first": (struct.pack("<BBBBI", CAPSULE, 0, 72, 0, 72) + bytes(64), SEQUENCE, 0, "CAPSULE_CMD received"),
    "our own ICResp": (struct.pack("<BBBBI", 1, 0, 128, 0, 128) + bytes(120), SEQUENCE, 0, "ICRESP received"),
    "our own TermReq": (struct.pack("<BBBBI", C2H_TERM, 0, 24, 0, 24) + bytes(16), SEQUENCE, 0, "C2H_TERM_REQ"),
}


@pytest.mark.parametrize("case", FIRST_BYTES)
async def test_anything_but_an_icreq_is_answered_with_a_termreq(trtype, log, case):
    data, fes, fei, cause = FIRST_BYTES[case]
    async with running(trtype) as target:
        host = await RawHost.open(target, handshake=False)
        await host.send(data)
        pdu = await host.terminated(fes, fei)
        assert data.startswith(pdu.raw[24:]) and len(pdu.raw) > 24
        lines = causes(log.records, cause)
        assert len(lines) == 1 and str(target.address.host) not in lines[0].split(": ", 1)[1]
        await healthy(target)


async def test_a_second_icreq_is_a_sequence_error(log):
    async with running() as target:
        host = await RawHost.open(target)
        await host.send(icreq())
        await host.terminated(SEQUENCE)
        assert len(causes(log.records, "ICREQ received")) == 1


async def test_a_termreq_of_the_host_ends_the_connection_without_an_answer(log):
    async with running() as target:
        host = await RawHost.open(target)
        await host.send(struct.pack("<BBBBIHI10x", H2C_TERM, 0, 24, 0, 24, 3, 77))
        await host.ended()
        host.close()
        assert len(causes(log.records, "Header Digest Error")) == 1


LIES = {
    "HLEN": ({"hlen": 64}, 2, "HLEN is 64"),
    "PLEN below the header": ({"plen": 71}, 4, "PLEN is 71"),
    "PLEN of a common header": ({"plen": 8}, 4, "PLEN is 8"),
    "PLEN zero": ({"plen": 0}, 4, "PLEN is 0"),
    "PLEN huge": ({"plen": 0x80000000, "pdo": 72}, 4, "bytes in a capsule that takes 8192"),
    "PDO in the header": ({"plen": 584, "pdo": 24}, 3, "PDO is 24"),
    "PDO not aligned": ({"plen": 584, "pdo": 73}, 3, "PDO is 73"),
    "PDO far away": ({"plen": 584, "pdo": 252}, 3, "PDO is 252"),
    "PDO beyond the end": ({"plen": 76, "pdo": 80}, 4, "PLEN is 76 with data from 80 on"),
    "HDGSTF not agreed": ({"flags": 1, "plen": 76}, 1, "HDGSTF is not what the handshake settled"),
    "DDGSTF not agreed": ({"flags": 2, "plen": 84, "pdo": 72}, 1, "DDGSTF is not what the handshake settled"),
}


@pytest.mark.parametrize("case", LIES)
async def test_a_command_with_a_wrong_header(trtype, log, case):
    lies, fei, cause = LIES[case]
    async with running(trtype) as target:
        hosts = await association(target)
        await hosts[1].send(hosts[1].capsule(io_sqe(5, READ, 0, 1), **lies))
        await hosts[1].terminated(INVALID_FIELD, fei)
        assert len(causes(log.records, cause)) == 1
        assert (await hosts[0].get_property(0x1C)) & 1, "the admin queue is not touched"
        await healthy(target)
        hosts[0].close()


@pytest.mark.parametrize("dgst", [1, 2, 3])
async def test_digests_are_granted_and_used(trtype, dgst):
    async with running(trtype) as target:
        hosts = await association(target, dgst=dgst)
        assert hosts[1].icresp[2] == dgst
        data = bytes(range(256)) * 32
        assert (await hosts[1].write(3, data)).status == 0
        assert (await hosts[1].write(40, data, in_capsule=False)).status == 0
        for slba in (3, 40):
            for cid in range(3):  # the third takes the fast path
                assert (await hosts[1].read(slba, 16, cid)).data == data
        for host in hosts:
            host.close()


async def test_digests_that_are_not_offered_are_not_granted():
    async with running(digests=False) as target:
        host = await admin(target, dgst=3)
        assert host.icresp[2] == 0
        host.close()


@pytest.mark.parametrize("before", [0, 1, 5])
async def test_a_wrong_header_digest_is_fatal(trtype, log, before):
    """FEI is the digest that was received. Commands before it in the same segment get no completion."""
    async with running(trtype) as target:
        hosts = await association(target, dgst=1)
        host = hosts[1]
        good = b"".join(host.capsule(io_sqe(cid, READ, 0, 1)) for cid in range(before))
        bad = host.capsule(io_sqe(9, READ, 0, 1), bad_header=0x10)
        await host.send(good + bad + host.capsule(io_sqe(10, READ, 0, 1)))
        await host.terminated(HEADER_DIGEST, int.from_bytes(bad[-4:], "little"))
        assert len(causes(log.records, "header digest is not that of the header")) == 1
        await healthy(target)
        hosts[0].close()


@pytest.mark.parametrize("in_capsule", [True, False])
async def test_a_wrong_data_digest_fails_that_command_only(trtype, in_capsule):
    async with running(trtype) as target:
        hosts = await association(target, dgst=3)
        host = hosts[1]
        old, new = b"\xaa" * 4096, b"\x55" * 4096
        for cid in range(3):
            assert (await host.write(8, old, cid)).status == 0
        if in_capsule:
            await host.send(host.capsule(io_sqe(7, WRITE, 8, 8, sgl=IN_CAPSULE), new, bad_data=1))
        else:
            await host.send(host.capsule(io_sqe(7, WRITE, 8, 8)))
            ttag, _, _ = await host.r2t(7)
            await host.send(host.h2c(7, ttag, 0, new[:1024], last=False, bad_data=1))
            await host.send(host.h2c(7, ttag, 1024, new[1024:]))
        completion = await host.completion(7)
        assert (completion.status, completion.dnr) == (TRANSIENT, False)
        assert (await host.read(8, 8)).data == old, "nothing is left behind"
        assert (await host.write(8, new)).status == 0, "the connection goes on"
        assert (await host.read(8, 8)).data == new
        for each in hosts:
            each.close()


async def test_a_large_write_with_a_wrong_data_digest_leaves_nothing_behind():
    """128 KiB are received in place, into staging memory."""
    async with running(namespaces=[Ramdisk("4M")]) as target:
        hosts = await association(target, dgst=2)
        host, size = hosts[1], 128 << 10
        await host.send(host.capsule(io_sqe(7, WRITE, 0, size // 512)))
        ttag, _, length = await host.r2t(7)
        assert length == size
        await host.send(host.h2c(7, ttag, 0, b"\xee" * size, bad_data=0x8000))
        assert (await host.completion(7)).status == TRANSIENT
        assert (await host.read(0, size // 512)).data == bytes(size)
        for each in hosts:
            each.close()


H2C_WRONGS = {
    "beyond its R2T": (lambda h, t: h.h2c(3, t, 0, bytes(4608)), OUT_OF_RANGE, 0, "goes beyond its R2T"),
    "starts beyond": (lambda h, t: h.h2c(3, t, 1 << 31, bytes(512)), OUT_OF_RANGE, 0, "goes beyond its R2T"),
    "unknown TTAG": (lambda h, t: h.h2c(3, t + 1, 0, bytes(4096)), INVALID_FIELD, 10, "which is not in use"),
    "another CID": (lambda h, t: h.h2c(4, t, 0, bytes(4096)), INVALID_FIELD, 8, "under another command's TTAG"),
    "out of order": (lambda h, t: h.h2c(3, t, 512, bytes(512), last=False), SEQUENCE, 0, "H2CData at 512, expected 0"),
    "LAST too early": (lambda h, t: h.h2c(3, t, 0, bytes(512)), INVALID_FIELD, 1, "LAST_PDU"),
    "DATAL is not PLEN's": (lambda h, t: h.h2c(3, t, 0, bytes(4096), datal=4092), INVALID_FIELD, 16, "DATAL is 4092"),
    "no data": (lambda h, t: h.h2c(3, t, 0, b""), INVALID_FIELD, 4, "PLEN is 24, too small"),
}  # fmt: skip


@pytest.mark.parametrize("case", H2C_WRONGS)
async def test_h2cdata_that_does_not_fit_its_r2t(trtype, log, case):
    make, fes, fei, cause = H2C_WRONGS[case]
    async with running(trtype) as target:
        hosts = await association(target)
        host = hosts[1]
        await host.send(host.capsule(io_sqe(3, WRITE, 0, 8)))
        ttag, offset, length = await host.r2t(3)
        assert (offset, length) == (0, 4096)
        await host.send(make(host, ttag))
        await host.terminated(fes, fei)
        assert len(causes(log.records, cause)) == 1
        assert target.pool.used_bytes == 0
        await healthy(target)
        hosts[0].close()


async def test_h2cdata_larger_than_maxh2cdata(log):
    async with running(connection=ConnectionConfig(maxh2cdata_bytes=4096)) as target:
        hosts = await association(target)
        host = hosts[1]
        assert host.icresp[3] == 4096
        await host.send(host.capsule(io_sqe(3, WRITE, 0, 16)))
        ttag, _, _ = await host.r2t(3)
        await host.send(host.h2c(3, ttag, 0, bytes(8192)))
        await host.terminated(LIMIT)
        assert len(causes(log.records, "MAXH2CDATA is 4096")) == 1
        hosts[0].close()


async def test_h2cdata_without_an_r2t(log):
    async with running() as target:
        host = await admin(target)
        await host.send(host.h2c(0, 0, 0, bytes(512)))
        await host.terminated(INVALID_FIELD, 10)
        assert len(causes(log.records, "H2CData for TTAG 0x0")) == 1


async def test_an_unknown_pdu_type_and_a_reserved_one(trtype, log):
    async with running(trtype) as target:
        for kind in (0x08, 0x0A, 0xFF):
            host = await RawHost.open(target)
            await host.send(struct.pack("<BBBBI", kind, 0, 24, 0, 24) + bytes(16))
            await host.terminated(INVALID_FIELD, 0)
            assert len(causes(log.records, f"PDU type {kind:#04x} does not exist")) == 1
        await healthy(target)


async def test_every_byte_in_a_separate_segment(trtype):
    """Segments of one byte give the same result."""
    async with running(trtype) as target:
        host = await RawHost.open(target, handshake=False)
        for byte in icreq(dgst=3):
            await host.send(bytes([byte]))
        assert (await host.pdu()).kind == 1
        host.header_digest = host.data_digest = True
        sqe = make_sqe(1, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw11=31)
        for byte in host.capsule(sqe, connect_data(target.subnqn)):
            await host.send(bytes([byte]))
        assert (await host.completion(1)).status == 0
        host.close()
