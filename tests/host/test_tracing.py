"""The events of a host's queue: commands when they go to the device and when they complete, and the end of the
queue.
"""

from __future__ import annotations

from nvmeof.errors import ConnectionLost
from nvmeof.host.queue import Queue
from nvmeof.host.tracing import CommandTrace
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.trace import CommandCompleted, CommandSent, Event, QueueEnded, Side, TracedQueue

from .test_queue import Noted, Recorder, queue

READ, WRITE, FABRICS = 2, 1, 0x7F


class Clock:
    time = 10.0

    def __call__(self) -> float:
        return self.time


def traced(entries: int) -> tuple[Queue, Recorder, list[Event], Clock]:
    each, device = queue(entries)
    events: list[Event] = []
    clock = Clock()
    each.trace = CommandTrace(events.append, TracedQueue(Side.HOST, "there", 1), clock)
    return each, device, events, clock


def request(opcode: int, nsid: int = 1, **buffers: bytes | memoryview) -> Noted:
    made = Noted()
    made.sqe = SQE.pack(Sqe(opcode=opcode, nsid=nsid))
    made.data_out, made.data_in = buffers.get("data_out"), buffers.get("data_in")  # type: ignore[assignment]
    return made


def test_a_command_is_sent_and_completed() -> None:
    each, _, events, clock = traced(8)
    read = request(READ, 7, data_in=memoryview(bytearray(512)))
    write = request(WRITE, 7, data_out=bytes(1024))
    each.submit(read)
    clock.time = 11.0
    each.submit(write)
    clock.time = 13.5
    cids = (read.cid,), (write.cid,)
    read.done(0, 0)
    write.done(0, status_field(Status.LBA_OUT_OF_RANGE, True, True))
    of = each.trace.queue if each.trace else None
    assert events == [
        CommandSent(of, 10.0, READ, None, 7, cids[0], 512),  # type: ignore[arg-type]
        CommandSent(of, 11.0, WRITE, None, 7, cids[1], 1024),  # type: ignore[arg-type]
        CommandCompleted(of, 13.5, READ, None, 7, cids[0], 512, 0, 3.5),  # type: ignore[arg-type]
        CommandCompleted(of, 13.5, WRITE, None, 7, cids[1], 1024, int(Status.LBA_OUT_OF_RANGE), 2.5),  # type: ignore[arg-type]
    ]


def test_a_fabrics_command_has_its_type_and_no_namespace() -> None:
    each, _, events, _ = traced(8)
    each.submit(request(FABRICS, 0x04))
    [sent] = events
    assert isinstance(sent, CommandSent)
    assert (sent.opcode, sent.fctype, sent.nsid, sent.data_bytes) == (FABRICS, 4, 0, 0)


def test_a_waiting_command_is_sent_after_the_completion_that_frees_an_identifier() -> None:
    each, _, events, clock = traced(2)
    first, second = request(READ), request(WRITE)
    each.submit(first)
    each.submit(second)
    assert [type(event) for event in events] == [CommandSent], "the other waits for an identifier"
    clock.time = 12.0
    first.done(0, 0)
    clock.time = 13.0
    second.done(0, 0)
    told = [(type(event), event.opcode) for event in events if isinstance(event, CommandSent | CommandCompleted)]
    assert told == [(CommandSent, READ), (CommandCompleted, READ), (CommandSent, WRITE), (CommandCompleted, WRITE)]
    assert [event.seconds for event in events if isinstance(event, CommandCompleted)] == [2.0, 1.0]


def test_the_end_of_a_queue_is_reported_once() -> None:
    each, _, events, _ = traced(3)
    for _ in range(4):
        each.submit(request(READ))
    each.fail(ConnectionLost("it has gone"))
    each.fail(ConnectionLost("it has gone again"))
    ended = [event for event in events if isinstance(event, QueueEnded)]
    assert [(event.reason, event.unfinished) for event in ended] == [("it has gone", 2)], "two were never sent"
