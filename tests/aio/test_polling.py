"""Busy polling: when it begins and ends, how long it goes on, and that it reads what the event loop would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from nvmeof import ConfigurationError, Ramdisk, Target, connect
from nvmeof.aio.polling import FIRST_SECONDS, TURN_SECONDS, Poller
from nvmeof.target.subsystem.config import POLL_MOST_SECONDS, NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from tests.conformance.rawhost import until

MOST = 200e-6


class Driver:
    """As much of a `ConnectionDriver` as a poller sees."""

    def __init__(self, sock: socket.socket | None) -> None:
        self.sock = sock
        self.endpoint = self
        self.reading = True
        self.turns: Any = None
        self.received: list[bytes] = []

    def fileno(self) -> int:
        return -1 if self.sock is None else self.sock.fileno()

    def readable(self) -> None:
        assert self.sock is not None
        self.received.append(self.sock.recv(100))
        self.turns.spend(1e-6)


class Loop:
    """Keeps what is to be called in the next turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def turn(self) -> None:
        calls, self.soon = self.soon, []
        for call in calls:
            call()


class Rig:
    def __init__(self) -> None:
        self.now = 100.0
        self.step = 1e-6
        self.loop = Loop()
        self.poller = Poller(self.loop, MOST, self.clock)  # type: ignore[arg-type]
        self.peer, sock = socket.socketpair()
        self.driver = Driver(sock)
        self.poller.add_connection(self.driver)  # type: ignore[arg-type]

    def clock(self) -> float:
        self.now += self.step
        return self.now

    def loop_reads(self, after: float) -> None:
        """The event loop finds data `after` so many seconds."""
        self.now += after
        self.peer.send(b"by the loop")
        self.driver.readable()

    def until_idle(self) -> float:
        """Let it poll until it gives up; return how long that took."""
        began = self.now
        while self.loop.soon:
            self.loop.turn()
        return self.now - began

    def close(self) -> None:
        self.poller.close()
        self.peer.close()
        assert self.driver.sock is not None
        self.driver.sock.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


async def test_it_polls_longer_while_data_comes_soon_and_less_when_it_comes_late(rig: Rig) -> None:
    for expected in (2 * FIRST_SECONDS, 4 * FIRST_SECONDS, MOST):
        rig.loop_reads(after=MOST / 4)
        assert rig.poller.seconds == pytest.approx(expected)
        assert rig.until_idle() == pytest.approx(expected, abs=5e-6)
    for expected in (MOST / 2, MOST / 4, MOST / 8, 0.0):
        rig.loop_reads(after=10 * MOST)
        assert rig.poller.seconds == pytest.approx(expected)
        rig.until_idle()
    rig.loop_reads(after=10 * MOST)
    assert not rig.loop.soon, "a host that asks seldom is not polled for"
    rig.loop_reads(after=MOST / 2)
    assert rig.poller.seconds == FIRST_SECONDS and rig.loop.soon


async def test_a_turn_of_the_loop_is_short_and_ends_when_there_was_data(rig: Rig) -> None:
    rig.loop_reads(after=MOST / 4)
    rig.loop_reads(after=MOST / 4)
    rig.loop_reads(after=MOST / 4)
    rig.until_idle()
    rig.loop_reads(after=MOST / 4)
    began = rig.now
    rig.loop.turn()
    assert rig.now - began == pytest.approx(TURN_SECONDS, abs=5e-6)
    rig.peer.send(b"while it polls")
    began = rig.now
    rig.loop.turn()
    assert rig.driver.received[-1] == b"while it polls" and rig.poller.found == 1
    assert rig.now - began < 10e-6 and len(rig.loop.soon) == 1, "the loop has its turn, then polling goes on"
    assert rig.until_idle() == pytest.approx(rig.poller.seconds, abs=5e-6)


async def test_a_connection_that_takes_nothing_is_not_read(rig: Rig) -> None:
    rig.loop_reads(after=MOST / 4)
    rig.driver.reading = False
    rig.peer.send(b"too early")
    rig.until_idle()
    assert rig.driver.received == [b"by the loop"]


async def test_a_connection_that_is_closed_is_forgotten(rig: Rig) -> None:
    assert rig.driver.sock is not None
    rig.driver.sock.close()  # the consumer hears of it after that
    rig.poller.remove_connection(rig.driver)  # type: ignore[arg-type]
    rig.poller.remove_connection(rig.driver)  # type: ignore[arg-type]
    again = Rig()
    rig.poller.add_connection(again.driver)  # type: ignore[arg-type]
    again.peer.send(b"the same number, perhaps")
    rig.poller.spend(0.0)
    rig.loop.turn()
    assert again.driver.received == [b"the same number, perhaps"]
    again.close()


async def test_what_is_no_socket_is_left_to_the_loop(rig: Rig) -> None:
    driver = Driver(None)
    driver.turns = "what new connections have"
    rig.poller.add_connection(driver)  # type: ignore[arg-type]
    assert driver.turns is None


def polling_target(transport: str = "tcp", **more: Any) -> Target:
    subsystem = SubsystemConfig(
        nqn="nqn.2026-01.org.example:poll", namespaces=(NamespaceConfig(backend=Ramdisk("8M")),)
    )
    ports = (PortConfig(transport=transport, host="127.0.0.1" if transport != "memory" else "poll", port=0),)
    return Target(TargetConfig(subsystems=(subsystem,), ports=ports, **more))


@pytest.mark.parametrize("transport", ["tcp", "mptcp", "memory"])
async def test_a_target_that_polls_serves_as_one_that_does_not(transport: str) -> None:
    async with polling_target(transport, poll_seconds=0.002) as target:
        address = target.address
        options: dict[str, Any] = {"transport": transport, "subnqn": "nqn.2026-01.org.example:poll"}
        async with await connect(address.host, address.port, **options) as controller:
            namespace = controller.namespace(1)
            for lba in range(200):
                await namespace.write(lba, lba.to_bytes(8, "little") * 64)
            for lba in range(200):
                assert await namespace.read(lba, 1) == lba.to_bytes(8, "little") * 64
            await asyncio.gather(*(namespace.write(lba, bytes(512 * 256)) for lba in range(0, 4096, 256)))
            assert await namespace.read(199, 1) == bytes(512)
            poller = target.connections.poller
            assert poller is not None
            if transport != "memory":
                assert poller.found
                assert len(poller._drivers) == len([each for each in target.drivers if each.queue.ctx.qid])
        await until(lambda: not target.drivers)
        assert not poller._drivers and not poller._fds


def test_a_time_that_would_keep_the_processor_busy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"poll_seconds is between 0 and 0.01, not 1: a processor"):
        polling_target(poll_seconds=1.0)
    with pytest.raises(ConfigurationError, match="poll_seconds"):
        polling_target(poll_seconds=-1e-6)
    assert POLL_MOST_SECONDS == 0.01
