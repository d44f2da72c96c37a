"""The queue contract: registration, choosing a device, identifiers, draining."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from nvmeof.errors import (
    CommandNotExecuted,
    ConfigurationError,
    ConnectionLost,
    LocalProtocolError,
    NvmeofError,
    OutcomeUnknown,
)
from nvmeof.host.device_registry import QUEUE_OPS, DeviceRegistry
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue, Request
from nvmeof.host.socket_queue import SocketQueueDevice

from .conftest import HOSTNQN
from .fake_device import SUBNQN, FakeDevice


def options(**changes: Any) -> ConnectOptions:
    base: dict[str, Any] = {
        "traddr": "memory",
        "subnqn": SUBNQN,
        "hostnqn": HOSTNQN,
        "hostid": uuid.UUID(int=1),
        "transport": "fake",
    }
    return ConnectOptions(**{**base, **changes})


class Recorder(FakeDevice):
    """A device that only records calls."""

    def __init__(self) -> None:
        super().__init__(8)
        self.sent_requests: list[Request] = []

    def send_req(self, request: Request, more: bool) -> None:
        self.sent_requests.append(request)


class Noted(Request):
    __slots__ = ("outcome",)

    def __init__(self, priority: bool = False) -> None:
        super().__init__(bytes(64))
        self.priority = priority
        self.outcome: list[Any] = []

    def completed(self, result: int, status: int) -> None:
        self.outcome.append((result, status))

    def failed(self, error: NvmeofError) -> None:
        self.outcome.append(error)


@pytest.mark.parametrize("op", [*QUEUE_OPS, "required_opts", "allowed_opts", "max_hw_sectors", "max_segments"])
def test_registration_is_refused_when_something_is_missing(op: str) -> None:
    registry = DeviceRegistry()
    device = FakeDevice()
    setattr(device, op, None)
    with pytest.raises(ConfigurationError, match=op):
        registry.register(device)


def test_a_class_without_an_operation_cannot_be_made() -> None:
    class Half(FakeDevice):
        poll_queue = SocketQueueDevice.__mro__[1].poll_queue  # type: ignore[assignment]

    Half.__abstractmethods__ = frozenset({"poll_queue"})  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="poll_queue"):
        Half()


def test_the_first_device_that_claims_is_used() -> None:
    class Picky(FakeDevice):
        name = "picky"

        def claim_dev(self, options: ConnectOptions) -> bool:
            return options.traddr == "192.0.2.9"

    registry, picky, first, second = DeviceRegistry(), Picky(), FakeDevice(), FakeDevice()
    for device in (picky, first, second):
        registry.register(device)
    assert registry.claim(options()) is first
    assert registry.claim(options(traddr="192.0.2.9")) is picky
    registry.unregister(first)
    assert registry.claim(options()) is second
    with pytest.raises(ConfigurationError, match="no queue device reaches memory over carrier-pigeon"):
        registry.claim(options(transport="carrier-pigeon"))
    with pytest.raises(ConfigurationError, match="already"):
        registry.register(second)
    with pytest.raises(ConfigurationError, match="not registered"):
        registry.unregister(first)


def test_required_and_allowed_options() -> None:
    registry, device = DeviceRegistry(), FakeDevice()
    registry.register(device)
    registry.claim(options(tos=4, queue_size=16))
    with pytest.raises(ConfigurationError, match="does not take the option hdr_digest"):
        registry.claim(options(hdr_digest=True))
    device.required_opts = frozenset({"host_traddr"})
    with pytest.raises(ConfigurationError, match="needs the option host_traddr"):
        registry.claim(options())
    registry.claim(options(host_traddr="192.0.2.2"))


def queue(entries: int = 4, reserved: int = 0) -> tuple[Queue, Recorder]:
    device = Recorder()
    return Queue(device, options(), 1, entries, reserved=reserved), device


def test_one_entry_stays_free_and_the_rest_waits() -> None:
    each, device = queue(4)
    requests = [Noted() for _ in range(5)]
    for request in requests:
        each.submit(request)
    assert [request.cid for request in requests] == [0, 1, 2, -1, -1]
    assert (each.room, each.waiting, each.load) == (0, 2, 5)
    requests[1].done(5, 0)
    assert requests[1].outcome == [(5, 0)]
    assert requests[3].cid == 1
    assert device.sent_requests[-1] is requests[3]


def test_a_command_identifier_is_not_reused_at_once() -> None:
    each, _ = queue(4)
    seen = []
    for _ in range(6):
        request = Noted()
        each.submit(request)
        seen.append(request.cid)
        request.done(0, 0)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_second_completion_is_an_error() -> None:
    each, _ = queue()
    request = Noted()
    each.submit(request)
    request.done(0, 0)
    with pytest.raises(LocalProtocolError, match="twice"):
        request.done(0, 0)
    assert len(request.outcome) == 1


def test_priority_requests_have_identifiers_of_their_own() -> None:
    each, device = queue(4, reserved=1)
    ordinary = [Noted() for _ in range(3)]
    for request in ordinary:
        each.submit(request)
    first, second = Noted(priority=True), Noted(priority=True)
    each.submit(first)
    each.submit(second)
    assert first.cid == 2
    assert second.cid == -1
    ordinary[0].done(0, 0)
    # the urgent one comes before the one that has waited longer
    assert second.cid == 0
    assert ordinary[2].cid == -1
    first.done(0, 0)
    second.done(0, 0)
    assert ordinary[2].cid == 0
    assert len(device.sent_requests) == 5


def test_withdrawing() -> None:
    each, device = queue(2)
    sent, waiting = Noted(), Noted()
    each.submit(sent)
    each.submit(waiting)
    assert not each.withdraw(sent)
    assert each.withdraw(waiting)
    sent.done(0, 0)
    assert device.sent_requests == [sent]


def test_failing_drains_first_and_fails_each_request_once() -> None:
    each, device = queue(2)
    sent, waiting = Noted(), Noted()
    each.submit(sent)
    each.submit(waiting)
    error = ConnectionLost("gone")
    each.fail(error)
    each.fail(ConnectionLost("again"))
    assert device.calls == ["drain_queue 1"]
    (unknown,) = sent.outcome
    assert isinstance(unknown, OutcomeUnknown) and unknown.__cause__ is error and "not known" in str(unknown)
    (untouched,) = waiting.outcome
    assert isinstance(untouched, CommandNotExecuted) and untouched.__cause__ is error and "not sent" in str(untouched)
    with pytest.raises(CommandNotExecuted, match="gone; the command was not sent"):
        each.submit(Noted())


def test_an_error_other_than_a_loss_is_passed_on() -> None:
    each, _ = queue(2)
    sent, waiting = Noted(), Noted()
    each.submit(sent)
    each.submit(waiting)
    error = LocalProtocolError("a defect of ours")
    each.fail(error)
    assert sent.outcome == [error] and waiting.outcome == [error]
    with pytest.raises(LocalProtocolError, match="a defect of ours"):
        each.submit(Noted())


def test_expired() -> None:
    each, _ = queue(8)
    each.timeout = 10
    each.epoch = 100.0
    ordinary, patient, eager = Noted(), Noted(), Noted()
    patient.timeout, eager.timeout = 0.0, 1.0
    for request in (ordinary, patient, eager):
        each.submit(request)
    assert list(each.expired(100.5)) == []
    assert list(each.expired(101.0)) == [eager]
    assert list(each.expired(1e9)) == [ordinary, eager]


class Together:
    """A group that records the commands that completed together."""

    def __init__(self) -> None:
        self.seen: list[list[Request]] = []

    def completed_together(self, requests: list[Request]) -> None:
        self.seen.append(requests)


class Grouped(Noted):
    def __init__(self, group: Together | None) -> None:
        super().__init__()
        self.group = group


def test_requests_of_one_group_that_succeed_are_completed_in_one_call() -> None:
    each, _ = queue(8, reserved=1)
    group = Together()
    requests = [Grouped(group) for _ in range(3)]
    for request in requests:
        each.submit(request)
    each.complete_good([2, 0, 1])
    assert group.seen == [[requests[2], requests[0], requests[1]]]
    assert all(request.cid == -1 and not request.outcome for request in requests)
    assert (each.requests, each.room, each.completed) == ({}, 6, 3)


def test_of_other_requests_that_succeed_each_is_completed() -> None:
    """Requests without a group, of two groups, with a reserved identifier, and while others wait for identifiers."""
    each, device = queue(6, reserved=1)
    groups = [Together(), Together()]
    requests = [Grouped(groups[0]), Grouped(groups[1]), Grouped(None)]
    for request in requests:
        each.submit(request)
    urgent = Noted(priority=True)
    each.submit(urgent)
    each.complete_good([0, 1, 2, urgent.cid])
    assert [group.seen for group in groups] == [[[requests[0]]], [[requests[1]]]]
    assert requests[2].outcome == urgent.outcome == [(0, 0)]
    full = [Grouped(groups[0]) for _ in range(5)]
    for request in full:
        each.submit(request)
    each.complete_good([request.cid for request in full[:4]])
    assert full[4].cid >= 0 and device.sent_requests[-1] is full[4]
    assert each.completed == 8


def test_success_after_the_teardown_is_ignored() -> None:
    each, _ = queue(4)
    request = Grouped(Together())
    each.submit(request)
    each.fail(ConnectionLost("gone"))
    each.complete_good([0])
    assert each.completed == 0
