"""One driver, two consumers: the same cases for a target's queue and a host's, over endpoints that a test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nvmeof.aio.driver import Batching, ConnectionDriver
from nvmeof.host.socket_queue import BATCHING as HOST_BATCHING
from nvmeof.protocol.connection import ConnectionConfig, HostConnection, State, TargetConnection
from nvmeof.target.driver import BATCHING as TARGET_BATCHING
from nvmeof.transport import Address

TERM_REQ_BYTES = 24


class HandEndpoint:
    """An endpoint that gives and takes what the test says, and records its calls."""

    peer_address = Address("192.0.2.1", 4420)

    def __init__(self) -> None:
        self.incoming: list[bytes | OSError] = []  # one per receive; b"" is the end of the stream
        self.sent = bytearray()
        self.room = 1 << 30
        self.error: OSError | None = None
        self.reader: Callable[[], object] | None = None
        self.writer: Callable[[], object] | None = None
        self.receives = self.sends = 0
        self.closed = self.ended = False

    def recv_into(self, buffer: Any) -> int:
        self.receives += 1
        if not self.incoming:
            raise BlockingIOError
        chunk = self.incoming.pop(0)
        if isinstance(chunk, OSError):
            raise chunk
        n = min(len(buffer), len(chunk))
        buffer[:n] = chunk[:n]
        if n < len(chunk):
            self.incoming.insert(0, chunk[n:])
        return n

    def recv_both(self, buffer: memoryview, behind: memoryview) -> int:
        return self.recv_into(buffer)

    def available(self) -> int:
        return 0

    def sendmsg(self, buffers: Any) -> int:
        self.sends += 1
        if self.error is not None:
            raise self.error
        data = b"".join(buffers)[: self.room]
        if not data:
            raise BlockingIOError
        self.room -= len(data)
        self.sent += data
        return len(data)

    def set_reader(self, callback: Callable[[], object] | None) -> None:
        self.reader = callback

    def set_writer(self, callback: Callable[[], object] | None) -> None:
        self.writer = callback

    def shutdown(self) -> None:
        self.ended = True

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Notes:
    """A consumer that records what it is given."""

    owner = "a host"

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.outputs = 0
        self.errors: list[Exception] = []
        self.ends = 0
        self.on_event: Callable[[Any], None] = lambda event: None

    def handle(self, events: list[Any], now: float) -> None:
        for event in events:
            self.events.append(event)
            self.on_event(event)

    def sent(self) -> None:
        self.outputs += 1

    def lost(self, error: OSError) -> None:
        self.errors.append(error)

    def broken(self, error: Exception) -> None:
        self.errors.append(error)

    def closed(self) -> None:
        self.ends += 1


class End:
    """A driver of one role, and the connection of the other role, which has no driver."""

    def __init__(self, role: str, **options: Any) -> None:
        host, target = HostConnection(ConnectionConfig()), TargetConnection(ConnectionConfig())
        self.connection, self.peer = (host, target) if role == "host" else (target, host)
        self.endpoint, self.consumer = options.pop("endpoint", None) or HandEndpoint(), Notes()
        batching = HOST_BATCHING if role == "host" else TARGET_BATCHING
        self.driver = ConnectionDriver(
            self.endpoint, self.connection, self.consumer, options.pop("batching", batching), **options
        )
        host.start()
        self.driver.start()

    def output_of_peer(self) -> bytes:
        data = b"".join(map(bytes, self.peer.data_to_send()))
        self.peer.bytes_sent(len(data))
        return data

    def exchange(self) -> None:
        """Exchange bytes until neither side has anything to send."""
        while True:
            data = self.output_of_peer()
            if data:
                self.endpoint.incoming.append(data)
                self.driver.readable()
            taken = bytes(self.endpoint.sent)
            self.endpoint.sent.clear()
            for at in range(0, len(taken), 512):
                chunk = taken[at : at + 512]
                self.peer.next_buffer()[: len(chunk)] = chunk
                self.peer.bytes_received(len(chunk), 0.0)
            if not data and not taken:
                return

    def queue_output(self, count: int = 1) -> None:
        for _ in range(count):
            self.connection.send_raw(bytes(100))


@pytest.fixture(params=["host", "target"])
async def end(request: pytest.FixtureRequest) -> End:
    made = End(request.param)
    made.exchange()
    assert made.connection.parameters is not None and made.endpoint.reader is not None
    made.consumer.events.clear()
    return made


async def test_output_of_one_turn_leaves_in_one_send(end: End) -> None:
    before = end.endpoint.sends
    for _ in range(5):
        end.queue_output()
        end.driver.wake()
    assert end.endpoint.sends == before and end.driver.woken
    await asyncio.sleep(0)
    assert end.endpoint.sends == before + 1 and not end.driver.woken
    assert len(end.endpoint.sent) == 500


@pytest.mark.parametrize("room", [0, 1, 99, 100, 499])
async def test_a_blocked_socket_loses_and_repeats_nothing(end: End, room: int) -> None:
    pattern = bytes(range(256)) * 2
    end.connection.send_raw(pattern)
    end.endpoint.room = room
    end.driver.flush()
    assert bytes(end.endpoint.sent) == pattern[:room]
    assert end.endpoint.writer is not None
    sends = end.endpoint.sends
    end.driver.flush()
    assert end.endpoint.sends == sends, "it is not tried before the socket says so"
    end.endpoint.room = 1 << 20
    end.endpoint.writer()
    assert bytes(end.endpoint.sent) == pattern
    assert end.endpoint.writer is None


async def test_the_consumer_is_called_when_there_is_room(end: End) -> None:
    outputs = end.consumer.outputs
    end.driver.tell_sent = True
    end.queue_output()
    end.endpoint.room = 0
    end.driver.flush()
    assert end.consumer.outputs == outputs
    end.endpoint.room = 1000
    end.endpoint.writer()
    assert end.consumer.outputs == outputs + 1
    end.driver.tell_sent = False
    end.queue_output()
    end.driver.flush()
    assert end.consumer.outputs == outputs + 1, "it does not want to know"


async def test_events_go_to_a_handler_that_the_consumer_replaces(end: End) -> None:
    seen: list[Any] = []
    end.driver.handle = lambda events, now: seen.extend(events)
    end.endpoint.incoming = [b""]
    end.driver.readable()
    assert [type(event).__name__ for event in seen] == ["PeerClosed"] and not end.consumer.events


async def test_nothing_is_received_that_the_consumer_does_not_want(end: End) -> None:
    end.driver.receiving = False
    end.driver.update_reader()
    assert end.endpoint.reader is None
    end.driver.receiving = True
    end.driver.update_reader()
    assert end.endpoint.reader is not None


async def test_receives_in_one_turn_are_bounded(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(end.connection), "bytes_received", lambda connection, n, now: [])
    end.endpoint.incoming = [bytes(1 << 20)] * 40
    end.endpoint.receives = 0
    end.driver._clock = lambda: 0.0
    end.driver.readable()
    assert end.endpoint.receives == 16


class Flood(HandEndpoint):
    """An endpoint that fills both buffers of a receive, as a socket does that has more than they hold."""

    def recv_both(self, buffer: memoryview, behind: memoryview) -> int:
        n = self.recv_into(buffer)
        return n + self.recv_into(behind) if n == len(buffer) else n


@pytest.mark.parametrize(
    ("expected", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 3), (16, 6), (24, 8), (28, 12), (32, 16), (64, 16)]
)
async def test_a_host_leaves_large_payloads_to_be_sent_while_it_asks_for_more(expected: int, at_once: int) -> None:
    end = End("host", endpoint=Flood())
    end.exchange()
    size, connection, target = 64 * 1024, end.connection, end.peer
    assert isinstance(connection, HostConnection) and isinstance(target, TargetConnection)
    for cid in range(expected):
        connection.send_command(cid, bytes(64), data_in=memoryview(bytearray(size)))
        target.send_read(cid, bytes(size))
    answers = end.output_of_peer()
    end.endpoint.incoming = [answers[:500], answers[500:]]
    end.driver.readable()
    assert connection.large_expected == expected, "only the first one's header has come"
    end.driver.readable()
    assert connection.large_expected == expected - at_once
    while end.endpoint.incoming:
        end.driver.readable()
    assert not connection.outstanding


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), OSError(113, "no route"), TimeoutError(110, "t")]
)
async def test_a_receive_that_fails_is_reported_once(end: End, error: OSError) -> None:
    end.endpoint.incoming = [error]
    end.driver.readable()
    assert end.consumer.errors == [error] and not end.endpoint.closed


async def test_a_send_that_fails_is_reported_and_its_output_is_not_sent_again(end: End) -> None:
    end.queue_output()
    end.endpoint.error = BrokenPipeError(32, "broken pipe")
    end.driver.flush()
    assert end.consumer.errors == [end.endpoint.error]


async def test_a_defect_of_the_consumer_is_reported_to_the_consumer(end: End) -> None:
    def fail(event: Any) -> None:
        raise KeyError("a defect")

    end.consumer.on_event = fail
    end.endpoint.incoming = [b""]
    end.driver.readable()
    assert [type(error) for error in end.consumer.errors] == [KeyError]


async def test_the_end_of_the_stream_is_an_event(end: End) -> None:
    end.endpoint.incoming = [b""]
    end.driver.readable()
    assert [type(event).__name__ for event in end.consumer.events] == ["PeerClosed"]
    assert end.endpoint.reader is None, "nothing more can come"


async def test_stopping_while_events_are_handled_receives_and_sends_nothing_more(end: End) -> None:
    end.consumer.on_event = lambda event: end.driver.stop()
    end.endpoint.incoming = [b"\xff" * 128, b"\xff" * 128]
    receives, sent = end.endpoint.receives, bytes(end.endpoint.sent)
    end.driver.readable()
    assert end.endpoint.receives == receives + 1
    assert bytes(end.endpoint.sent) == sent, "not even the TermReq"
    assert end.endpoint.reader is None and end.endpoint.writer is None
    assert end.connection.state is State.CLOSED and not end.endpoint.closed
    end.driver.readable()
    assert end.endpoint.receives == receives + 1


async def test_finishing_sends_queued_output_and_closes(end: End) -> None:
    end.queue_output(3)
    end.driver.finish()
    assert len(end.endpoint.sent) == 300
    assert end.endpoint.closed or end.endpoint.ended
    end.driver.finish()


async def test_finishing_over_a_blocked_socket_lingers_and_then_gives_up(end: End) -> None:
    loop = asyncio.get_running_loop()
    timers: list[tuple[float, Callable[[], object]]] = []

    class Loop:
        time = loop.time

        @staticmethod
        def call_later(seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
            timers.append((seconds, callback))
            return loop.call_later(100, lambda: None)

    end.driver._loop = Loop()  # type: ignore[assignment]
    end.queue_output()
    end.endpoint.room = 0
    end.driver.finish()
    ((seconds, expired),) = timers
    assert seconds == 2 and not end.endpoint.closed and end.endpoint.writer is not None
    expired()
    assert end.endpoint.closed and end.consumer.ends == 1


async def test_a_term_req_lingers_until_the_peer_closes(end: End) -> None:
    """A socket that is closed with unread bytes would drop the TermReq."""
    end.consumer.on_event = lambda event: end.driver.finish()
    end.endpoint.incoming = [b"\xff" * 128, b"more of it"]
    end.driver.readable()
    assert end.endpoint.sent and not end.endpoint.closed and end.endpoint.ended
    assert end.endpoint.reader is not None
    end.driver.readable()
    assert not end.endpoint.closed, "what still comes is discarded"
    end.endpoint.incoming = [b""]
    end.driver.readable()
    assert end.endpoint.closed and end.consumer.ends == 1


async def test_closing_twice_is_reported_once(end: End) -> None:
    end.driver.close()
    end.driver.close()
    end.driver.stop()
    assert end.consumer.ends == 1 and end.endpoint.closed
    end.driver.wake()
    end.driver.flush()
    await asyncio.sleep(0)
    assert not end.consumer.errors


async def test_a_wake_that_comes_after_the_end_does_nothing(end: End) -> None:
    end.queue_output()
    end.driver.wake()
    sends = end.endpoint.sends
    end.driver.close()
    await asyncio.sleep(0)
    assert end.endpoint.sends == sends and not end.consumer.errors


class Turns:
    """A `Turns` whose work is done when the test says so."""

    def __init__(self) -> None:
        self.open = False
        self.clock = lambda: 0.0
        self.spent = 0
        self.waiting: list[tuple[Any, Callable[[], object]]] = []

    def spend(self, seconds: float) -> None:
        self.spent += 1

    def add(self, owner: Any, work: Callable[[], object]) -> None:
        self.waiting.append((owner, work))


@pytest.mark.parametrize("role", ["host", "target"])
async def test_reading_in_turn(role: str) -> None:
    turns = Turns()
    end = End(role, turns=turns)
    end.endpoint.incoming = [b""]
    end.driver.readable()
    ((owner, work),) = turns.waiting
    assert owner == "a host" and not end.consumer.events
    assert end.endpoint.reader is None, "it is not called again before its turn"
    work()
    assert end.consumer.events
    turns.open = True
    end.driver.readable()
    assert turns.spent == 1 and len(turns.waiting) == 1


@pytest.mark.parametrize("role", ["host", "target"])
async def test_turns_can_begin_and_end_while_the_connection_is_read(role: str) -> None:
    end, turns = End(role), Turns()
    end.exchange()
    end.consumer.events.clear()
    end.driver.turns = turns
    assert end.endpoint.reader is not None
    end.endpoint.incoming = [b""]
    end.endpoint.reader()
    assert not end.consumer.events and len(turns.waiting) == 1
    end.driver.turns = None
    assert end.endpoint.reader is None, "what waits for its turn goes on waiting"
    turns.waiting[0][1]()
    assert end.consumer.events

    end = End(role, turns=turns)
    end.exchange()
    turns.waiting[1][1]()
    end.driver.turns = None
    assert end.endpoint.reader is not None
    end.endpoint.incoming = [b""]
    end.endpoint.reader()
    assert len(turns.waiting) == 2


@pytest.mark.parametrize("role", ["host", "target"])
async def test_a_turn_that_comes_after_the_end(role: str) -> None:
    turns = Turns()
    end = End(role, turns=turns)
    end.driver.readable()
    end.driver.close()
    receives = end.endpoint.receives
    turns.waiting[0][1]()
    assert end.endpoint.receives == receives and not end.consumer.errors


async def test_the_bytes_of_one_send_are_bounded() -> None:
    end = End("target", batching=Batching(send_bytes=250))
    end.exchange()
    end.connection.send_raw(bytes(1000))
    end.endpoint.room = 100
    taken = end.endpoint.sendmsg

    def little(buffers: Any) -> int:
        end.endpoint.room = 100
        return taken(buffers)

    end.endpoint.sendmsg = little  # type: ignore[method-assign]
    end.driver.flush()
    assert len(end.endpoint.sent) == 300 and end.driver.woken
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(end.endpoint.sent) == 1000
