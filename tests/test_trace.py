"""The trace hook at both ends of a connection, over real transports; joining listeners, and failing ones."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest

from nvmeof import NvmeStatusError, Ramdisk, Target, connect, discover
from nvmeof.pdu.header import PduType
from nvmeof.spec.enums import DISCOVERY_NQN, AdminOpcode, NvmOpcode
from nvmeof.spec.status import Status
from nvmeof.trace import (
    CommandAdmitted,
    CommandCompleted,
    CommandEvent,
    CommandSent,
    Counts,
    Event,
    PdusMoved,
    QueueEnded,
    Side,
    TracedQueue,
    join,
)

FABRICS = 0x7F
HOSTNQN = "nqn.2026-01.org.example:trace"
EVENT_REQUEST = int(AdminOpcode.ASYNC_EVENT_REQUEST)


class Events(list[Event]):
    def __call__(self, event: Event) -> None:
        self.append(event)


@pytest.mark.parametrize("transport", ["memory", "tcp"])
@pytest.mark.parametrize("digests", [False, True])
async def test_both_ends_count_the_same(transport: str, digests: bool) -> None:
    at_target, at_host, seen = Counts(), Counts(), Events()
    listen = "target:0" if transport == "memory" else "127.0.0.1:0"
    target = Target(namespaces=[Ramdisk("64M")], trtype=transport, listen=listen, trace=at_target)
    async with target:
        options: dict[str, Any] = {"hdr_digest": digests, "data_digest": digests, "nr_io_queues": 2}
        async with await connect(
            target.address.host,
            target.address.port,
            subnqn=target.subnqn,
            transport=transport,
            hostnqn=HOSTNQN,
            trace=join(at_host, seen),
            **options,
        ) as controller:
            namespace = controller.namespace(1)
            for size in (512, 8192, 199_680):
                await namespace.write(0, bytes(size))
                assert await namespace.read(0, size // 512) == bytes(size)
            await asyncio.gather(*(namespace.read(8 * index, 8) for index in range(200)))
            await namespace.flush()
            with pytest.raises(NvmeStatusError):
                await controller.io_passthru(NvmOpcode.READ, nsid=1, data_bytes=512, cdw10=1 << 30)
    unanswered = Counter({EVENT_REQUEST: at_host.sent[EVENT_REQUEST]})
    assert unanswered[EVENT_REQUEST] > 0
    assert at_host.sent - unanswered == at_host.completed == at_target.completed
    assert at_host.failed == at_target.failed
    assert at_target.failed[NvmOpcode.READ] == 1
    assert at_target.admitted[NvmOpcode.READ] == at_host.sent[NvmOpcode.READ] - 1
    assert at_target.backend_called == Counter(
        {opcode: at_target.admitted[opcode] for opcode in (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.FLUSH)}
    )
    assert at_host.pdus_sent == at_target.pdus_received
    assert at_host.pdus_received == at_target.pdus_sent
    assert (at_host.sent_bytes, at_host.received_bytes) == (at_target.received_bytes, at_target.sent_bytes)
    assert at_host.pdus_sent[PduType.CAPSULE_CMD] == at_host.sent.total()
    assert at_host.pdus_sent[PduType.ICREQ] == at_host.queues_ended == at_target.queues_ended == 3
    assert at_host.unfinished == at_target.unfinished == unanswered.total()
    assert at_target.events[CommandCompleted] < at_target.completed.total(), (
        "commands served together are reported together"
    )

    ended = [event for event in seen if isinstance(event, QueueEnded)]
    assert {event.queue.qid for event in ended} == {0, 1, 2}
    for event in ended:
        assert all(each.queue is not event.queue for each in seen[seen.index(event) + 1 :]), "it is the queue's last"
        queue = event.queue
        assert (queue.side, queue.subnqn, queue.hostnqn) == (Side.HOST, target.subnqn, HOSTNQN)
        assert queue.cntlid == controller.cntlid
    for event in seen:
        if isinstance(event, CommandCompleted):
            assert 0 <= event.seconds < 60
    reads = [each.data_bytes for each in seen if isinstance(each, CommandSent) and each.opcode == NvmOpcode.READ]
    assert sum(reads) == 512 + 8192 + 199_680 + 200 * 4096 + 512


async def test_the_queues_of_a_target_have_names_and_end() -> None:
    events = Events()
    async with Target(namespaces=[Ramdisk("1M")], trtype="memory", listen="named:0", trace=events) as target:
        async with await connect(
            target.address.host, target.address.port, subnqn=target.subnqn, transport="memory", hostnqn=HOSTNQN
        ) as controller:
            cntlid = controller.cntlid
        await discover(target.address.host, target.address.port, transport="memory", hostnqn=HOSTNQN)
    ended = [event for event in events if isinstance(event, QueueEnded)]
    of_disk = [each.queue for each in ended if each.queue.subnqn == target.subnqn]
    assert sorted((queue.qid, queue.cntlid) for queue in of_disk) == [(0, cntlid), (1, cntlid)]
    [discovery] = [each.queue for each in ended if each.queue not in of_disk]
    assert (discovery.qid, discovery.subnqn) == (0, DISCOVERY_NQN)
    assert all(event.reason for event in ended)
    assert {queue.hostnqn for queue in {event.queue for event in events}} == {HOSTNQN}
    assert {event.queue.side for event in events} == {Side.TARGET}
    moments = [event.at for event in events]
    assert moments == sorted(moments)


async def test_a_command_is_reported_step_by_step() -> None:
    events = Events()
    async with (
        Target(namespaces=[Ramdisk("1M")], trtype="memory", listen="steps:0", trace=events) as target,
        await connect(target.address.host, target.address.port, subnqn=target.subnqn, transport="memory", trace=events)
        as controller,
    ):  # fmt: skip
        await controller.namespace(1).refresh()
        events.clear()
        await controller.namespace(1).write(0, bytes(512))
        await controller.identify()
    told = [
        (event.queue.side.value, type(event).__name__, event.opcode)
        for event in events
        if isinstance(event, CommandEvent)
    ]
    write, identify = int(NvmOpcode.WRITE), int(AdminOpcode.IDENTIFY)
    assert told[:9] == [
        ("host", "CommandSent", write),
        ("target", "CommandAdmitted", write),
        ("target", "BackendCalled", write),
        ("target", "CommandCompleted", write),
        ("host", "CommandCompleted", write),
        ("host", "CommandSent", identify),
        ("target", "CommandAdmitted", identify),
        ("target", "CommandCompleted", identify),
        ("host", "CommandCompleted", identify),
    ]
    moved = [(event.queue.side.value, event.sent) for event in events if isinstance(event, PdusMoved)]
    assert moved[:4] == [("host", True), ("target", False), ("target", True), ("host", False)]


async def test_a_listener_without_pdu_events_gets_none() -> None:
    class Commands(Events):
        pdus = False

    events = Commands()
    async with (
        Target(namespaces=[Ramdisk("1M")], trtype="memory", listen="nopdus:0", trace=join(events)) as target,
        await connect(target.address.host, target.address.port, subnqn=target.subnqn, transport="memory", trace=events),
    ):
        assert all(driver.connection.tap is None for driver in target.drivers)
    assert events and not [event for event in events if isinstance(event, PdusMoved)]


async def test_without_a_listener_nothing_is_made() -> None:
    async with (
        Target(namespaces=[Ramdisk("1M")], trtype="memory", listen="none:0") as target,
        await connect(target.address.host, target.address.port, subnqn=target.subnqn, transport="memory") as controller,
    ):
        assert all(driver.queue.trace is None and driver.connection.tap is None for driver in target.drivers)
        assert all(queue.trace is None for queue in controller.queues())


async def test_a_lost_connection_reports_unfinished_commands() -> None:
    counts, events = Counts(), Events()
    async with Target(namespaces=[Ramdisk("1M")], trtype="memory", listen="lost:0") as target:
        controller = await connect(
            target.address.host, target.address.port, subnqn=target.subnqn, transport="memory",
            trace=join(counts, events),
        )  # fmt: skip
        await target.stop()
    await controller.disconnect()
    assert counts.queues_ended == 2
    assert counts.unfinished == counts.sent.total() - counts.completed.total() > 0
    reasons = {event.reason for event in events if isinstance(event, QueueEnded)}
    assert len(reasons) == 1 and "closed the connection" in reasons.pop()


def test_joining_none_is_none() -> None:
    assert join() is None
    assert join(None, None) is None
    counts = Counts()
    joined = join(None, counts)
    assert joined is not None and joined.pdus


async def test_a_failing_listener_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def broken(event: Event) -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError("no such thing")

    caplog.set_level(logging.ERROR, "nvmeof.trace")
    counts = Counts()
    async with (
        Target(namespaces=[Ramdisk("1M")], trtype="memory", listen="broken:0", trace=join(broken, counts)) as target,
        await connect(
            target.address.host, target.address.port, subnqn=target.subnqn, transport="memory", trace=broken
        ) as controller,
    ):
        await controller.namespace(1).write(0, bytes(512))
    assert calls == 2, "once at each end"
    assert counts.completed[NvmOpcode.WRITE] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "a trace listener failed and is called no more: ZeroDivisionError: no such thing"
    ] * 2


def test_counts_of_every_event() -> None:
    counts, queue = Counts(), TracedQueue(Side.HOST, "here")
    counts(CommandAdmitted(queue, 0.0, 2, None, 1, [1, 2], 512))
    counts(CommandCompleted(queue, 0.0, 2, None, 1, [1, 2], 512, int(Status.LBA_OUT_OF_RANGE), 0.5))
    counts(PdusMoved(queue, 0.0, True, {4: 2}, 144))
    counts(PdusMoved(queue, 0.0, False, {}, 9))
    counts(QueueEnded(queue, 0.0, "gone", 3))
    assert (counts.admitted, counts.completed, counts.failed) == ({2: 2}, {2: 2}, {2: 2})
    assert (counts.pdus_sent, counts.sent_bytes, counts.received_bytes) == ({4: 2}, 144, 9)
    assert (counts.unfinished, counts.queues_ended, counts.events.total()) == (3, 1, 5)
