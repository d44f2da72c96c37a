"""What fuzzing has found, and was mended."""

from __future__ import annotations

import asyncio
import logging
import struct
from pathlib import Path

import pytest

from nvmeof.nbd.numbers import OPTION_MAGIC, REQUEST_MAGIC
from nvmeof.spec.connect import Authreq
from tests.conformance.rawhost import RawHost, connect_data, icreq, make_sqe, running, until
from tests.host.nbd_export.served import served
from tests.protocol.wire import Framing, term_req
from tests.target.commands.test_authentication import target as with_keys


@pytest.mark.parametrize("behind", [term_req(2, 1), b"\xff" * 64], ids=["H2CTermReq", "no PDU"])
@pytest.mark.parametrize("trtype", ["memory", "tcp"])
async def test_what_ends_a_connection_behind_its_connect_is_counted_once(trtype: str, behind: bytes) -> None:
    """In one receive it was taken off the count of strangers twice, so that another one was not counted."""
    async with running(trtype) as target:
        other = await RawHost.open(target)
        assert target.connections.strangers.taken == 1
        host = await RawHost.open(target, handshake=False)
        entry = make_sqe(0, 0x7F, nsid=1, length=1024, sgl=0x01, cdw11=31)
        await host.send(icreq())
        # More than fits behind a handshake is received together.
        await host.send(Framing().pdu(4, 0, entry, connect_data(target.subnqn)) + behind)
        await until(lambda: len(target.drivers) == 1)
        assert target.connections.strangers.taken == 1, "the other one"
        other.close()
        await until(lambda: not target.drivers)
        assert target.connections.strangers.taken == 0


def test_each_connect_leaves_no_member_of_a_flag() -> None:
    """AUTHREQ joined with a CNTLID was a new pseudo-member, which the class keeps for good."""
    one = with_keys()
    before = len(Authreq._value2member_map_)
    for _ in range(20):
        queue = one.queue()
        assert queue.connect() & int(Authreq.ATR)
        queue.ctx.detach("gone")
    assert len(Authreq._value2member_map_) <= before + 1


def _request(command: int, offset: int = 0, length: int = 512) -> bytes:
    return struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, 7, offset, length)


_GO = struct.pack(">I", 3) + struct.pack(">QIIIH", OPTION_MAGIC, 7, 6, 0, 0)


async def test_what_an_nbd_client_sends_behind_its_disconnect_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It filled the buffer, and there was none to receive into: the event loop reported a fatal error."""
    async with served(tmp_path) as it:
        reader, writer = await asyncio.open_unix_connection(str(it.socket))
        writer.write(_GO + _request(0) * 40 + _request(2))
        for _ in range(20):
            writer.write(bytes(1 << 16))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while True:
                await reader.readexactly(1 << 14)
        writer.close()
        await until(lambda: not it.server.clients)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_what_an_nbd_client_sends_ahead_of_its_negotiation_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the buffer, of which only a part can begin: the rest did not fit, and the client was never answered."""
    async with served(tmp_path) as it:
        facts, go_on = it.server.facts, asyncio.Event()

        async def slow(name: str) -> object:
            await go_on.wait()
            return await facts(name)

        monkeypatch.setattr(it.server, "facts", slow)
        reader, writer = await asyncio.open_unix_connection(str(it.socket))
        count = 12_000
        writer.write(_GO + _request(3, length=0) * count)
        await asyncio.sleep(0.2)
        go_on.set()
        writer.write(_request(2))
        answers = 0
        async with asyncio.timeout(30):
            received = await reader.read()
        answers = received.count(struct.pack(">IIQ", 0x67446698, 0, 7))
        assert answers == count
        writer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
