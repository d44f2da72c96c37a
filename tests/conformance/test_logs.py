"""Log pages over the wire: telemetry of a live connection, and errors of one host in the log of another."""

from __future__ import annotations

import json

from nvmeof.spec.persistent_events import EventType, parse_events
from tests.conformance.rawhost import RawHost, admin, association, io, make_sqe, running

TELEMETRY_CHANGED = 2 | 2 << 8 | 8 << 16


async def log_page(host: RawHost, lid: int, length: int, *, lsp: int = 0, rae: int = 1) -> bytes:
    """Read a log page from its beginning."""
    cdw10 = lid | lsp << 8 | rae << 15 | (length // 4 - 1) << 16
    completion = await host.call(make_sqe(9, 0x02, length=length, cdw10=cdw10))
    assert completion.status == 0, hex(completion.status)
    return completion.data


async def telemetry(host: RawHost, lid: int, *, lsp: int = 0, rae: int = 1) -> list[dict[str, object]]:
    """Return the areas of a telemetry log."""
    header = await log_page(host, lid, 512, lsp=lsp)
    page = await log_page(host, lid, 512 * (1 + int.from_bytes(header[12:14], "little")), rae=rae)
    return [json.loads(line) for line in page[512:].decode("ascii").splitlines()]


async def test_telemetry_lists_the_connections(trtype):
    async with running(trtype) as target:
        host, *_ = await association(target, queues=2)
        first, second, third = await telemetry(host, 7, lsp=1)
        assert [queue["qid"] for queue in first["queues"]] == [0, 1, 2]
        assert first["controller"]["cntlid"] == host.cntlid and second["namespaces"][0]["nsid"] == 1
        assert [each["qid"] for each in third["connections"]] == [0, 1, 2]
        assert {each["transport"] for each in third["connections"]} == {trtype}
        assert "token" not in third["connections"][0]


async def test_a_protocol_error_is_reported_to_the_other_hosts(trtype):
    async with running(trtype) as target:
        host = await admin(target)
        assert (await host.call(make_sqe(2, 0x09, cdw10=0x0B, cdw11=1 << 10))).status == 0
        await host.send(host.capsule(make_sqe(3, 0x0C)))
        other = await admin(target)
        rude = await io(target, other.cntlid)
        await rude.send(b"\x55" * 64)
        event = await host.completion(3)
        assert event.dw0 == TELEMETRY_CHANGED
        first, *_ = await telemetry(host, 8, rae=0)
        assert "protocol error" in first["reason"] and first["controller"]["cntlid"] == other.cntlid
        assert (await log_page(host, 8, 512))[382] == 0, "read with RAE = 0"


async def test_the_persistent_event_log_over_the_wire(trtype):
    async with running(trtype) as target:
        host = await admin(target)
        events = list(parse_events(await log_page(host, 0x0D, 8192, lsp=1)))
        assert [event.type for event in events] == [EventType.POWER_ON_OR_RESET]
        assert not any(await log_page(host, 0x0D, 512, lsp=2))
        assert len(await log_page(host, 0x0D, 512, lsp=3)) == 512
