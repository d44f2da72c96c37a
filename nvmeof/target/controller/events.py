"""Asynchronous events of one controller: requests that are held, events that wait, and what is masked.

An event that was reported stays masked until the host has read its log page with RAE = 0 (NVMe Base, Asynchronous Event
Request command): later changes are in that log page anyhow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.runtime import Future, Runtime
from nvmeof.spec.enums import (
    AsyncCommandSetInfo,
    AsyncErrorInfo,
    AsyncEventType,
    AsyncNoticeInfo,
    AsyncSmartInfo,
    LogPageId,
    Oaes,
)
from nvmeof.spec.features import AsyncEventConfig
from nvmeof.spec.status import Status
from nvmeof.target.core.completion import Completion

SMART_CRITICAL_WARNINGS = 0x3F
"""Feature 0Bh bits 5:0: the SMART critical warnings that a host may ask events for."""


@dataclass(frozen=True, slots=True)
class Event:
    """The result of an Asynchronous Event Request. `enable`: its bit in Feature 0Bh; 0: it is always enabled.

    `parameter`: DW1, the Event Specific Parameter.
    """

    type: AsyncEventType
    info: int
    log_page: LogPageId
    enable: int
    parameter: int = 0

    @property
    def dw0(self) -> int:
        return self.type | self.info << 8 | self.log_page << 16


NAMESPACE_ATTRIBUTE_CHANGED = Event(
    AsyncEventType.NOTICE,
    AsyncNoticeInfo.NAMESPACE_ATTRIBUTE_CHANGED,
    LogPageId.CHANGED_NAMESPACES,
    Oaes.NAMESPACE_ATTRIBUTE,
)
ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED = Event(
    AsyncEventType.NOTICE,
    AsyncNoticeInfo.ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED,
    LogPageId.CHANGED_ALLOCATED_NAMESPACES,
    Oaes.ALLOCATED_NAMESPACE_ATTRIBUTE,
)
ANA_CHANGE = Event(AsyncEventType.NOTICE, AsyncNoticeInfo.ANA_CHANGE, LogPageId.ANA, Oaes.ANA_CHANGE)
DISCOVERY_LOG_CHANGE = Event(
    AsyncEventType.NOTICE, AsyncNoticeInfo.DISCOVERY_LOG_CHANGE, LogPageId.DISCOVERY, Oaes.DISCOVERY_LOG
)
TEMPERATURE = Event(AsyncEventType.SMART_HEALTH, AsyncSmartInfo.TEMPERATURE_THRESHOLD, LogPageId.SMART_HEALTH, 1 << 1)
RELIABILITY = Event(
    AsyncEventType.SMART_HEALTH, AsyncSmartInfo.NVM_SUBSYSTEM_RELIABILITY, LogPageId.SMART_HEALTH, 1 << 2
)
RESERVATION_LOG_AVAILABLE = Event(
    AsyncEventType.IO_COMMAND_SET_SPECIFIC,
    AsyncCommandSetInfo.RESERVATION_LOG_AVAILABLE,
    LogPageId.RESERVATION_NOTIFICATION,
    0,
)
ZONE_DESCRIPTOR_CHANGED = Event(
    AsyncEventType.NOTICE,
    AsyncNoticeInfo.ZONE_DESCRIPTOR_CHANGED,
    LogPageId.CHANGED_ZONES,
    Oaes.ZONE_DESCRIPTOR,
)
"""Its parameter is the NSID."""
TELEMETRY_LOG_CHANGED = Event(
    AsyncEventType.NOTICE,
    AsyncNoticeInfo.TELEMETRY_LOG_CHANGED,
    LogPageId.TELEMETRY_CONTROLLER,
    AsyncEventConfig.TELEMETRY,
)
TRANSIENT_INTERNAL_ERROR = Event(
    AsyncEventType.ERROR_STATUS, AsyncErrorInfo.TRANSIENT_INTERNAL_ERROR, LogPageId.ERROR_INFORMATION, 0
)
LBA_STATUS_ALERT = Event(
    AsyncEventType.NOTICE, AsyncNoticeInfo.LBA_STATUS_INFORMATION, LogPageId.LBA_STATUS, Oaes.LBA_STATUS
)
IO_EVENTS = (
    TELEMETRY_LOG_CHANGED,
    NAMESPACE_ATTRIBUTE_CHANGED,
    ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED,
    ANA_CHANGE,
    ZONE_DESCRIPTOR_CHANGED,
    LBA_STATUS_ALERT,
)
DISCOVERY_EVENTS = (DISCOVERY_LOG_CHANGE,)


class AsyncEvents:
    """`limit`: how many requests are held at once (AERL + 1). `enabled`: Feature 0Bh as the host set it."""

    def __init__(self, runtime: Runtime, limit: int, supported: tuple[Event, ...]) -> None:
        self._runtime = runtime
        self._limit = limit
        self.supported = supported
        self.enabled = 0
        self._requests: deque[tuple[int, Future[Completion]]] = deque()  # CID and result
        self._waiting: deque[Event] = deque()
        self._masked: set[Event] = set()

    @property
    def supported_bits(self) -> int:
        """What Feature 0Bh may enable, SMART's warnings aside."""
        return sum(event.enable for event in self.supported)

    @property
    def oaes(self) -> int:
        """Return OAES of Identify Controller: it has no bit for telemetry, whose support is in LPA."""
        return self.supported_bits & ~AsyncEventConfig.TELEMETRY

    @property
    def held(self) -> int:
        """How many requests are outstanding."""
        return len(self._requests)

    def request(self, cid: int) -> Completion | Awaitable[Completion]:
        """Answer a request at once when an event waits, else hold it.

        Raises Asynchronous Event Request Limit Exceeded.
        """
        if self._waiting:
            return self._completion(self._waiting.popleft())
        if len(self._requests) >= self._limit:
            raise CommandError(
                Status.ASYNC_EVENT_LIMIT_EXCEEDED,
                message=f"{self._limit} Asynchronous Event Requests are outstanding already",
            )
        future: Future[Completion] = self._runtime.create_future()
        self._requests.append((cid, future))
        return future

    def abort(self, cid: int) -> bool:
        """Complete the held request of that CID as aborted; False when there is none."""
        for position, (held_cid, future) in enumerate(self._requests):
            if held_cid == cid and not future.done():
                del self._requests[position]
                future.set_result(Completion(Status.ABORTED_BY_REQUEST))
                return True
        return False

    def forget(self, cid: int) -> bool:
        """End the held request of that CID without a completion; False when there is none."""
        for position, (held_cid, future) in enumerate(self._requests):
            if held_cid == cid and not future.done():
                del self._requests[position]
                future.set_result(Completion(forgotten=True))
                return True
        return False

    def report(self, event: Event) -> None:
        """Send an event, unless the host did not enable it, or has not read the log page of the last one."""
        if (event.enable and not self.enabled & event.enable) or event in self._masked:
            return
        self._masked.add(event)
        while self._requests:
            _, future = self._requests.popleft()
            if not future.done():
                future.set_result(self._completion(event))
                return
        self._waiting.append(event)

    def log_page_read(self, log_page: int) -> None:
        """Unmask the events of a log page that the host read with RAE = 0."""
        self._masked = {event for event in self._masked if event.log_page != log_page}

    def withdraw(self, log_page: int) -> None:
        """Drop the events of that log page that were not sent yet."""
        self._waiting = deque(event for event in self._waiting if event.log_page != log_page)
        self.log_page_read(log_page)

    def abort_all(self, status: Status) -> None:
        """Complete all requests with a status: the queue or the enabled state has gone."""
        while self._requests:
            _, future = self._requests.popleft()
            if not future.done():
                future.set_result(Completion(status))

    def reset(self) -> None:
        """Abort the requests, and disable and unmask all events, for a Controller Reset."""
        self.abort_all(Status.ABORTED_BY_REQUEST)
        self.enabled = 0
        self._masked.clear()
        self._waiting.clear()

    @staticmethod
    def _completion(event: Event) -> Completion:
        return Completion(dw0=event.dw0, dw1=event.parameter)
