"""Adaptive busy polling: connections in use are asked for data for a while, before the event loop waits for it.

A loop that waits is woken by the kernel, and that takes longer than a small command. While commands come, each within
`most_seconds` of the last, nothing waits: one `epoll_wait` without a timeout asks all polled connections at once. How
long is polled adapts itself as Linux's halt polling does (Documentation/virt/kvm/halt-polling.rst): it doubles when the
event loop had to be woken for data that came soon, and is halved when data came late.

A processor is busy meanwhile: polling is for hosts that wait for each command.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Hashable
from typing import Final

from nvmeof.aio.driver import ConnectionDriver

TURN_SECONDS: Final = 50e-6
"""How long is polled in one turn of the event loop, which serves everything else between two of them."""
FIRST_SECONDS: Final = 25e-6
"""How long is polled at first, and the least that is worth it."""


class Poller:
    """Polls the connections that are added to it. Implements :class:`nvmeof.transport.base.Turns`: a connection that
    the event loop reads has its turn at once, and polling begins.

    ``most_seconds``: without data for so long, it is left to the event loop to wait. ``clock`` returns seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        most_seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if most_seconds <= 0:
            raise ValueError(f"polling for {most_seconds:g} s is none")
        self.clock = clock
        self.most_seconds = most_seconds
        self.seconds = min(FIRST_SECONDS, most_seconds)
        """How long is polled at present; 0: not at all."""
        self.found = 0
        """How many times polling has found data, before the event loop had to wait."""
        self._loop = loop
        self._epoll = select.epoll()
        self._drivers: dict[int, ConnectionDriver] = {}
        self._fds: dict[ConnectionDriver, int] = {}
        self._polling = False
        self._last = clock()  # when data was found last

    # As `Turns`, for connections that the event loop reads

    @property
    def open(self) -> bool:
        """True: reads and writes are never put off."""
        return True

    def add(self, owner: Hashable, work: Callable[[], object]) -> None:
        """Do the work at once: nothing is put off here."""
        work()

    def spend(self, seconds: float) -> None:
        """Note that the event loop has read a connection, and begin to poll."""
        if self._polling:
            return
        now = self.clock()
        waited, self._last = now - seconds - self._last, now
        if waited <= self.most_seconds:
            self.seconds = min(max(self.seconds * 2, FIRST_SECONDS), self.most_seconds)
        else:
            self.seconds = 0.0 if self.seconds <= FIRST_SECONDS else self.seconds / 2
        if self.seconds:
            self._polling = True
            self._loop.call_soon(self._poll)

    # Connections

    def add_connection(self, driver: ConnectionDriver) -> None:
        """Poll a connection from now on. One that is no socket is left to the event loop."""
        fd = driver.endpoint.fileno()
        if fd < 0:
            driver.turns = None
            return
        self._epoll.register(fd, select.EPOLLIN)
        self._drivers[fd], self._fds[driver] = driver, fd
        driver.turns = self

    def remove_connection(self, driver: ConnectionDriver) -> None:
        """Forget a connection: when its socket is closed, at the latest, whose number may be given to another."""
        fd = self._fds.pop(driver, None)
        if fd is None:
            return
        del self._drivers[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # it is closed already, and the kernel has forgotten it

    def close(self) -> None:
        """Poll no more."""
        self._drivers.clear()
        self._fds.clear()
        self._epoll.close()

    def _poll(self) -> None:
        """Poll for one turn of the loop, or until there was data: what follows of that may need the loop."""
        if self._epoll.closed:
            return
        ask, clock, drivers = self._epoll.poll, self.clock, self._drivers
        until = clock() + TURN_SECONDS
        while True:
            read = False
            for fd, _ in ask(0):
                driver = drivers.get(fd)
                if driver is not None and driver.reading:
                    driver.readable()
                    read = True
            now = clock()
            if read:
                self.found += 1
                self._last = now
                break
            if now - self._last > self.seconds:
                self._polling = False
                return
            if now >= until:
                break
        self._loop.call_soon(self._poll)
