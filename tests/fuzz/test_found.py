"""What fuzzing has found, and was mended."""

from __future__ import annotations

import pytest

from tests.conformance.rawhost import RawHost, connect_data, icreq, make_sqe, running, until
from tests.protocol.wire import Framing, term_req


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
