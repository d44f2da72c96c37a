"""Asynchronous events of a controller: the outstanding request, the log page of each event, and who listens.

NVM Express Base specification, Asynchronous Event Request command. This module must not know sockets, clocks or how a
controller is connected.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakSet

from nvmeof.errors import NvmeofError, NvmeStatusError
from nvmeof.host import sqe_builders
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.association import Association, HostState
from nvmeof.host.queue import Request
from nvmeof.runtime import Future
from nvmeof.spec.enums import FeatureId, LogPageId
from nvmeof.spec.identify import parse_namespace_list

log = logging.getLogger("nvmeof.host")

EVENTS_KEPT = 1024
"""Upper bound of the events that wait in an iterator."""


@dataclass(frozen=True, slots=True)
class AsyncEvent:
    """An event that a controller reports (NVMe Base, Asynchronous Event Request command).

    ``type``: 0 error, 1 SMART / health, 2 notice, 6 I/O command set specific, 7 vendor specific. ``info``: what has
    happened, by type. ``log_page``: the identifier of the log page to read, which lets the controller report the next
    event of that type::

        async for event in controller.events:
            if event.log_page:
                await controller.get_log(event.log_page, 512)
    """

    type: int
    info: int
    log_page: int

    @classmethod
    def decode(cls, dw0: int) -> AsyncEvent:
        """Decode DW0 of the completion."""
        return cls(dw0 & 7, dw0 >> 8 & 0xFF, dw0 >> 16 & 0xFF)


class _EventRequest(Request):
    """The outstanding Asynchronous Event Request: no timeout, and nothing that waits for it."""

    __slots__ = ("lost", "then")

    def __init__(self, then: Callable[[int, int], None], lost: Callable[[], None]) -> None:
        super().__init__(sqe_builders.async_event_request())
        self.then = then
        self.lost = lost
        self.timeout = 0.0

    def completed(self, result: int, status: int) -> None:
        self.then(result & 0xFFFFFFFF, status)

    def failed(self, error: NvmeofError) -> None:
        """Drop the request, since its queue is gone."""
        self.lost()


class EventStream:
    """The events of a controller from the moment of its making on: an asynchronous iterator, for one reader.

    It ends when the controller is disconnected, and raises the error of a lost association. A reader who is behind by
    more than `EVENTS_KEPT` events misses the oldest.
    """

    def __init__(self, events: AsyncEvents) -> None:
        self._events = events
        self._waiting: deque[AsyncEvent] = deque(maxlen=EVENTS_KEPT)
        self._wanted: Future[None] | None = None
        events.streams.add(self)

    def put(self, event: AsyncEvent) -> None:
        """Add an event."""
        self._waiting.append(event)
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> AsyncEvent:
        while not self._waiting:
            if self._events.over:
                error = self._events.error
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._wanted = self._events.runtime.create_future()
            await self._wanted
        return self._waiting.popleft()


class AsyncEvents:
    """Keeps one Asynchronous Event Request outstanding on the admin queue of ``association``.

    ::

        async for event in controller.events:
            print(event)

    ``changed(nsids)`` is awaited with the namespaces of a Changed Namespace List, before the listeners are called.
    """

    def __init__(
        self, association: Association, commands: AdminCommands, changed: Callable[[list[int]], Awaitable[None]]
    ) -> None:
        self._association = association
        self._commands = commands
        self._changed = changed
        self.listeners: list[Callable[[AsyncEvent], object]] = []
        """Called with each event, after its log page was read."""
        self.streams: WeakSet[EventStream] = WeakSet()
        """The iterators of events in use."""
        self.runtime = association.runtime
        self.over = False
        """No further event comes."""

    def __aiter__(self) -> EventStream:
        return EventStream(self)

    @property
    def error(self) -> NvmeofError | None:
        """The error of a lost association; None while it lives, and after an orderly end."""
        return self._association.error if self._association.state is HostState.FAILED else None

    def _end(self) -> None:
        self.over = True
        for stream in list(self.streams):
            stream.wake()

    async def start(self, wanted: int) -> None:
        """Ask for the events of ``wanted`` (bits of OAES); the specification's own errors come without asking."""
        if wanted:
            try:
                await self._commands.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, wanted)
            except NvmeStatusError as error:
                subnqn = self._association.options.subnqn
                log.info("%s does not take the asynchronous event configuration: %s", subnqn, error)
        self._ask()

    def _ask(self) -> None:
        self._association.admin_queue.submit(_EventRequest(self._completed, self._end))

    def _completed(self, dw0: int, status: int) -> None:
        if status >= 2:
            # Asynchronous Event Request Limit Exceeded, or aborted by a shutdown: asking again would loop
            self._end()
            return
        self._association.runtime.spawn(self._handle(AsyncEvent.decode(dw0)))

    async def _handle(self, event: AsyncEvent) -> None:
        try:
            if event.log_page:
                await self._clear(event)
        except NvmeStatusError as error:
            log.info("the log page %#04x of an event could not be read: %s", event.log_page, error)
        except NvmeofError:
            self._end()
            return
        for stream in list(self.streams):
            stream.put(event)
        for listener in list(self.listeners):
            listener(event)
        association = self._association
        if association.state in (HostState.LIVE, HostState.CONNECTING) and association.admin_queue.error is None:
            self._ask()
        else:
            self._end()

    async def _clear(self, event: AsyncEvent) -> None:
        """Read the event's log page, which lets the controller report the next event of that kind."""
        if event.log_page == LogPageId.CHANGED_NAMESPACES:
            await self._changed(parse_namespace_list(await self._commands.get_log(LogPageId.CHANGED_NAMESPACES, 4096)))
        elif event.log_page in (LogPageId.DISCOVERY, LogPageId.ANA):
            await self._commands.get_log(event.log_page, 16, nsid=0)
        else:
            await self._commands.get_log(event.log_page, 512)
