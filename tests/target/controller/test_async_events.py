"""Asynchronous events of a controller: requests, masks, and events that wait."""

from nvmeof.spec.enums import AnaState
from nvmeof.spec.status import Status
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import Pending, Target, TestQueue

NAMESPACE_EVENT = 0x040002
ANA_EVENT = 0x0C0302
DISCOVERY_EVENT = 0x70F002


def request(queue: TestQueue) -> Pending:
    result = queue.submit(queue.sqe(0x0C))
    assert isinstance(result, Pending)
    return result


def test_a_namespace_change_is_reported_once_until_its_log_is_read():
    target = Target()
    admin = target.admin()
    admin.set_feature(0x0B, 0x900)
    first, second = request(admin), request(admin)
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M")))
    assert first.step().dw0 == NAMESPACE_EVENT
    target.subsystem.resize_namespace(2, 2 << 20)
    assert second.step() is None, "masked"
    assert admin.log_page(0x04, 4096, rae=True).status == 0
    target.subsystem.remove_namespace(2)
    assert second.step() is None, "RAE keeps the mask"
    page = admin.read_bytes(admin.log_page(0x04, 4096))
    assert page[:8] == b"\2\0\0\0\0\0\0\0"
    assert not any(admin.read_bytes(admin.log_page(0x04, 4096)))
    target.subsystem.resize_namespace(1, 2 << 20)
    assert second.step().dw0 == NAMESPACE_EVENT


def test_an_event_waits_for_a_request():
    target = Target()
    admin = target.admin()
    admin.set_feature(0x0B, 0x900)
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE)
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE)
    assert admin.command(0x0C).dw0 == ANA_EVENT
    assert request(admin).step() is None


def test_events_that_were_not_asked_for_are_not_sent():
    target = Target()
    admin = target.admin()
    pending = request(admin)
    target.subsystem.resize_namespace(1, 2 << 20)
    assert pending.step() is None


def test_discovery_log_change():
    target = Target()
    queue = target.discovery()
    assert queue.set_feature(0x0B, 1 << 31).status == 0
    pending = request(queue)
    target.registry.remove_port(1)
    assert pending.step().dw0 == DISCOVERY_EVENT


def test_too_many_async_event_requests():
    admin = Target(max_async_events=2).admin()
    held = [request(admin), request(admin)]
    assert admin.command(0x0C).status == Status.ASYNC_EVENT_LIMIT_EXCEEDED
    assert all(item.step() is None for item in held)


def test_requests_end_with_the_admin_queue():
    admin = Target().admin()
    pending = request(admin)
    admin.ctx.detach("gone")
    assert pending.step().status == Status.ABORTED_SQ_DELETION


def test_abort_of_a_held_request_and_of_anything_else():
    admin = Target().admin()
    sqe = admin.sqe(0x0C)
    pending = admin.submit(sqe)
    assert admin.command(0x08, cdw10=1 | sqe.cid << 16).dw0 == 1, "not on that queue"
    assert admin.command(0x08, cdw10=sqe.cid << 16).dw0 == 0
    assert pending.step().status == Status.ABORTED_BY_REQUEST
    assert admin.command(0x08, cdw10=sqe.cid << 16).dw0 == 1, "it has gone"


def test_temperature_event():
    admin = Target().admin()
    admin.set_feature(0x0B, 0x02)
    pending = request(admin)
    admin.set_feature(0x04, 300)
    assert pending.step().dw0 == 0x020101
    smart = admin.read_bytes(admin.log_page(0x02, 512))
    assert smart[0] == 2 and int.from_bytes(smart[1:3], "little") == 310
