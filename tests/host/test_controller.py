"""The controller's life over the in-memory device: no socket is involved anywhere here."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from nvmeof.errors import AuthenticationError, ConfigurationError, ConnectionLost, NvmeStatusError, TransportError
from nvmeof.host.association import HostState
from nvmeof.host.async_events import AsyncEvent
from nvmeof.host.queue import Request
from nvmeof.spec.connect import connect_invalid_dw0
from nvmeof.spec.enums import AdminOpcode, FeatureId, NvmOpcode
from nvmeof.spec.properties import Csts
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from tests.conformance.rawhost import until

from .conftest import HOSTNQN, Connect
from .fake_device import SUBNQN, FakeDevice

FABRICS = 0x7F


async def test_connecting(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(nr_io_queues=2, queue_size=100, keep_alive_tmo=7, disable_sqflow=True)
    assert controller.state is HostState.LIVE
    assert controller.cntlid == 7
    assert str(controller.version) == "2.0"
    assert controller.max_transfer_bytes == 4096 << 5
    assert device.calls == ["setup_ctrl", "create_queue 0", "create_queue 1", "create_queue 2"]
    connects = [(qid, sqe) for qid, sqe in device.log if sqe.opcode == FABRICS and sqe.fctype == 1]
    assert [qid for qid, _ in connects] == [0, 1, 2]
    admin, io = connects[0][1], connects[1][1]
    # CDW10: RECFMT, QID; CDW11: SQSIZE 0's-based, CATTR; CDW12: KATO in ms
    assert (admin.cdw10, admin.cdw11, admin.cdw12) == (0, 31 | 4 << 16, 7000)
    assert (io.cdw10, io.cdw11 & 0xFFFF, io.cdw12) == (1 << 16, 63, 0)  # the controller's MQES, not ours
    assert device.connect_data.cntlid == 7
    assert device.connect_data.subnqn == SUBNQN
    assert device.connect_data.hostnqn == HOSTNQN
    assert device.features[FeatureId.NUMBER_OF_QUEUES] == 0x0001_0001
    assert device.features[FeatureId.ASYNC_EVENT_CONFIGURATION] == 1 << 8
    assert len(device.events) == 1
    assert device.queues[1].capsule_bytes == 64 + 8192
    facts = controller.describe()
    assert [each["qid"] for each in facts] == [0, 1, 2]
    assert facts[1]["transport"] == "fake"


@pytest.mark.parametrize(("maxcmd", "entries"), [(8, 8), (1, 2), (0, 64), (64, 64), (100, 64)])
async def test_the_queue_is_no_larger_than_maxcmd(
    device: FakeDevice, connected: Connect, caplog: pytest.LogCaptureFixture, maxcmd: int, entries: int
) -> None:
    """MAXCMD 0, which some controllers report, is no limit; MQES is one."""
    caplog.set_level(logging.INFO, "nvmeof.host")
    device.identify.update(maxcmd=maxcmd)
    await connected(queue_size=100)
    (io,) = [sqe for qid, sqe in device.log if qid and sqe.opcode == FABRICS and sqe.fctype == 1]
    assert io.cdw11 & 0xFFFF == entries - 1
    assert device.queues[1].entries == entries
    assert f"takes I/O queues of {entries} entries, 100 were asked for" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("kas", 0, "KAS 0"),
        ("ioccsz", 3, "IOCCSZ 3"),
        ("ioccsz", 0, "IOCCSZ 0"),
        ("iorcsz", 0, "IORCSZ 0"),
        ("icdoff", 1, "ICDOFF 1"),
    ],
)
async def test_a_controller_without_a_working_io_queue(
    device: FakeDevice, connected: Connect, field: str, value: int, words: str
) -> None:
    """As in Linux the controller is refused with one sentence, and nothing stays open."""
    device.identify.update({field: value})
    with pytest.raises(TransportError, match=words) as caught:
        await connected()
    assert SUBNQN in str(caught.value) and "\n" not in str(caught.value)
    assert "create_queue 1" not in device.calls and device.calls[-1] == "release_ctrl"


async def test_a_discovery_controller_needs_nothing_for_io_queues(device: FakeDevice, connected: Connect) -> None:
    device.identify.update(cntrltype=2, oaes=0, ofcs=0, kas=0, ioccsz=0, iorcsz=0, maxcmd=0)
    await connected(discovery=True, nr_io_queues=0)


async def test_commands_without_data_in_their_capsules(device: FakeDevice, connected: Connect) -> None:
    device.identify.update(ioccsz=4)
    controller = await connected()
    assert device.queues[1].capsule_bytes == 64
    await controller.namespace(1).write(0, bytes(512))


async def test_disconnecting(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    device.calls.clear()
    device.log.clear()
    await controller.disconnect()
    kinds = [(qid, sqe.fctype) for qid, sqe in device.log if sqe.opcode == FABRICS]
    # Disconnect on the I/O queue, CC.SHN, then CSTS until the shutdown is complete
    assert kinds[:2] == [(1, 8), (0, 0)]
    assert set(kinds[2:]) == {(0, 4)}
    assert device.cc.shn == 1
    assert device.cc.en
    assert device.calls == ["drain_queue 1", "destroy_queue 1", "drain_queue 0", "destroy_queue 0", "release_ctrl"]
    await controller.disconnect()
    assert device.calls.count("release_ctrl") == 1
    with pytest.raises(ConnectionLost, match="disconnected"):
        await controller.namespace(1).read(0)


async def test_a_controller_that_closes_a_deleted_queue_first(device: FakeDevice, connected: Connect) -> None:
    def close(request: Request, sqe: Sqe) -> Any:
        if sqe.opcode == FABRICS and sqe.fctype == 8:
            asyncio.get_running_loop().call_soon(device.break_queue, request.queue.qid)
            return None
        return "default"

    controller = await connected(nr_io_queues=3)
    device.intercept = close
    lost: list[Exception] = []
    controller.on_lost.append(lost.append)
    await controller.disconnect()
    assert len([sqe for sqe in device.sent(FABRICS) if sqe.fctype == 8]) == 3
    assert device.cc.shn == 1
    assert controller.state is HostState.CLOSED
    assert not lost


async def test_a_controller_that_does_not_shut_down(
    device: FakeDevice, connected: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvmeof.host.controller.SHUTDOWN_SECONDS", 0.1)
    controller = await connected()
    device.shutdown_polls = 10**9
    await controller.disconnect()
    assert "did not shut down within 0.1 s" in str(controller.error)
    assert device.calls[-1] == "release_ctrl"


async def test_a_cancelled_disconnect_closes_at_once(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    device.shutdown_polls = 10**9
    task = asyncio.create_task(controller.disconnect())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert controller.state is HostState.CLOSED
    assert device.calls[-2:] == ["destroy_queue 0", "release_ctrl"]


async def test_without_disconnect_support_queues_just_close(device: FakeDevice, connected: Connect) -> None:
    device.identify["ofcs"] = 0
    controller = await connected()
    await controller.disconnect()
    assert not [sqe for sqe in device.sent(FABRICS) if sqe.fctype == 8]


async def test_fewer_queues_than_asked_for(device: FakeDevice, connected: Connect) -> None:
    def one_queue(request: Request, sqe: Sqe) -> Any:
        return (0, 0) if sqe.opcode == AdminOpcode.SET_FEATURES else "default"

    device.intercept = one_queue
    controller = await connected(nr_io_queues=8)
    assert len(controller.io_queues) == 1


@pytest.mark.parametrize(
    ("setup", "words", "kind"),
    [
        (lambda d: d.identify.update(cntlid=8), "gave controller 0x7 on Connect and 0x8 on Identify", TransportError),
        (lambda d: setattr(d, "connect_result", lambda qid: (7 + qid, 0)), "in place of 0x7", TransportError),
        (lambda d: setattr(d, "connect_result", lambda qid: (7 | 1 << 17, 0)), "demands auth", AuthenticationError),
        (lambda d: setattr(d, "csts", Csts(cfs=True)), "fatal error", TransportError),
        (lambda d: setattr(d, "ready_polls", 10**9), "did not become ready within 1 s", TransportError),
        (lambda d: d.identify.update(icdoff=1), "ICDOFF", TransportError),
        (lambda d: setattr(d, "refuse_queue", 0), "refuses this queue", TransportError),
        (lambda d: setattr(d, "refuse_queue", 1), "refuses this queue", TransportError),
        (
            lambda d: setattr(
                d, "connect_result", lambda qid: (connect_invalid_dw0("subnqn"), Status.CONNECT_INVALID_PARAMETERS)
            ),
            "it names subnqn in the Connect data",
            NvmeStatusError,
        ),
        (
            lambda d: setattr(d, "connect_result", lambda qid: (0, Status.CONNECT_INVALID_HOST) if qid else (7, 0)),
            "refused I/O queue 1",
            NvmeStatusError,
        ),
    ],
)
async def test_a_connect_that_fails_frees_everything(
    device: FakeDevice, connected: Connect, setup: Any, words: str, kind: type[Exception]
) -> None:
    setup(device)
    with pytest.raises(kind, match=words):
        await connected()
    created = [call for call in device.calls if call.startswith("create_queue")]
    destroyed = [call for call in device.calls if call.startswith("destroy_queue")]
    assert len(created) == len(destroyed)
    assert device.calls[-1] == "release_ctrl"


async def test_a_cancelled_connect_frees_everything(device: FakeDevice, connected: Connect) -> None:
    device.ready_polls = 10**9
    task = asyncio.create_task(connected())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert device.calls[-2:] == ["destroy_queue 0", "release_ctrl"]


async def test_unknown_options(connected: Connect) -> None:
    with pytest.raises(ConfigurationError, match="number_of_wheels"):
        await connected(number_of_wheels=4)
    with pytest.raises(ConfigurationError, match="subsystem NQN"):
        await connected(subnqn="disk\n")


async def test_a_status_becomes_an_error_with_its_name(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    with pytest.raises(NvmeStatusError, match=r"Security Receive failed: Invalid.* Opcode") as caught:
        await controller.admin_passthru(AdminOpcode.SECURITY_RECEIVE, data_bytes=16)
    assert caught.value.status == Status.INVALID_OPCODE


async def test_passthru(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    await controller.namespace(1).write(3, b"\x5a" * 512)
    answer = await controller.io_passthru(NvmOpcode.READ, nsid=1, data_bytes=512, cdw10=3)
    assert answer.data == b"\x5a" * 512
    await controller.set_feature(FeatureId.ARBITRATION, 5)
    assert await controller.get_feature(FeatureId.ARBITRATION) == 5
    with pytest.raises(ConfigurationError, match="brings no data"):
        await controller.io_passthru(NvmOpcode.WRITE, nsid=1, data_bytes=512)
    with pytest.raises(ConfigurationError, match="none can be sent"):
        await controller.io_passthru(NvmOpcode.READ, nsid=1, data=bytes(512))
    with pytest.raises(ConfigurationError, match="cdw99"):
        await controller.admin_passthru(AdminOpcode.IDENTIFY, cdw99=1)


async def test_namespaces_over_several_lists(device: FakeDevice, connected: Connect) -> None:
    device.active = list(range(1, 2100))
    controller = await connected()
    assert await controller.active_namespaces() == device.active


@pytest.mark.parametrize("raw", [[5, 3], [5, 5], [0xFFFFFFFF], [7] * 1024])
async def test_an_invalid_entry_ends_a_namespace_list(device: FakeDevice, connected: Connect, raw: list[int]) -> None:
    def nonsense(request: Request, sqe: Sqe) -> Any:
        if sqe.opcode == AdminOpcode.IDENTIFY and sqe.cdw10 == 2 and request.data_in is not None:
            data = b"".join(nsid.to_bytes(4, "little") for nsid in raw)
            request.data_in[:] = data.ljust(4096, b"\0")
            return 0, 0
        return "default"

    controller = await connected()
    device.intercept = nonsense
    assert await controller.active_namespaces() == [nsid for nsid in raw[:1] if nsid != 0xFFFFFFFF]


async def test_a_namespace_that_vanishes_is_left_out(device: FakeDevice, connected: Connect) -> None:
    device.active = [1, 2]

    def gone(request: Request, sqe: Sqe) -> Any:
        if sqe.opcode == AdminOpcode.IDENTIFY and sqe.cdw10 == 0 and sqe.nsid == 2:
            return 0, Status.INVALID_NAMESPACE
        return "default"

    controller = await connected()
    device.intercept = gone
    assert [each.nsid for each in await controller.namespaces()] == [1]


async def test_asynchronous_events(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    seen: list[AsyncEvent] = []
    controller.on_event.append(seen.append)
    (namespace,) = await controller.namespaces()
    device.namespace["nsze"] = 8192
    device.raise_event(2, 0, 0x04)
    await until(lambda: device.events)  # asked again
    assert seen == [AsyncEvent(2, 0, 0x04)]
    assert namespace.size_blocks == 8192
    assert len(device.events) == 1
    # the log page is read without retaining the event, which lets the next one come
    assert not device.sent(AdminOpcode.GET_LOG_PAGE)[-1].cdw10 & 1 << 15


async def test_refused_event_requests_are_not_sent_again(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    device.complete(device.events.pop(), 0, 0x105)
    await asyncio.sleep(0.02)
    assert len(device.sent(AdminOpcode.ASYNC_EVENT_REQUEST)) == 1
    assert controller.state is HostState.LIVE


async def test_a_broken_queue_ends_the_association(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(nr_io_queues=2)
    lost: list[Exception] = []
    controller.on_lost.append(lost.append)
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.READ)
    reads = [asyncio.create_task(namespace.read(lba)) for lba in range(4)]
    await until(lambda: len(device.held) == 4)
    device.break_queue(2)
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(result, ConnectionLost) and "broke queue 2" in str(result) for result in results)
    assert controller.state is HostState.FAILED
    assert len(lost) == 1
    assert [call for call in device.calls if call.startswith("drain")] == [f"drain_queue {qid}" for qid in range(3)]
    with pytest.raises(ConnectionLost):
        await namespace.read(0)
    with pytest.raises(ConnectionLost):
        await controller.identify()
    await controller.disconnect()
    assert device.calls[-1] == "release_ctrl"


async def test_get_log_in_pieces(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    device.log.clear()
    assert len(await controller.get_log(0x05, 10000)) == 10000
    sent = device.sent(AdminOpcode.GET_LOG_PAGE)
    assert [sqe.cdw12 for sqe in sent] == [0, 4096, 8192]
    assert [bool(sqe.cdw10 & 1 << 15) for sqe in sent] == [True, True, False]
    assert (await controller.smart_log()).composite_temperature == 300
    assert await controller.error_log(3) == []


@pytest.mark.parametrize(
    ("page", "lsp", "sent"),
    [(0x07, 1, [1, 0, 0]), (0x07, 9, [9, 0, 0]), (0x0D, 1, [1, 0, 0]), (0x0D, 0, [0] * 3), (0x0C, 1, [1] * 3)],
)
async def test_the_capture_of_a_log_page_is_requested_once(
    device: FakeDevice, connected: Connect, page: int, lsp: int, sent: list[int]
) -> None:
    controller = await connected()
    device.log.clear()
    await controller.get_log(page, 10000, lsp=lsp)
    assert [sqe.cdw10 >> 8 & 0x7F for sqe in device.sent(AdminOpcode.GET_LOG_PAGE)] == sent


@pytest.mark.parametrize("fctype", [0, 4, 8])
async def test_a_cancelled_disconnect_waits_for_no_answer(device: FakeDevice, connected: Connect, fctype: int) -> None:
    controller = await connected()

    def silent(request: Request, sqe: Sqe) -> Any:
        return (
            None if (sqe.opcode == FABRICS and sqe.fctype == fctype) or sqe.opcode == AdminOpcode.ABORT else "default"
        )

    device.intercept = silent
    task = asyncio.create_task(controller.disconnect())
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
    assert controller.state is HostState.CLOSED
    assert device.calls[-1] == "release_ctrl"


@pytest.mark.parametrize("qid", [0, 1])
async def test_a_loss_while_a_queue_is_created_leaves_no_queue_behind(
    device: FakeDevice, connected: Connect, monkeypatch: pytest.MonkeyPatch, qid: int
) -> None:
    create = device.create_queue

    async def create_queue(queue: Any) -> None:
        await create(queue)
        if queue.qid == qid:
            device.break_queue(0)
        await asyncio.sleep(0)
        device.calls.append(f"made {queue.qid}")

    monkeypatch.setattr(device, "create_queue", create_queue)
    with pytest.raises(ConnectionLost, match="the fake broke queue 0"):
        await connected(nr_io_queues=3)
    created = [call.split()[1] for call in device.calls if call.startswith("create_queue")]
    assert created == ["0", "1"][: qid + 1], "no more queues for an association that is lost"
    assert f"destroy_queue {qid}" in device.calls[device.calls.index(f"made {qid}") :]
    assert device.calls[-1] == "release_ctrl"


async def test_one_vanished_namespace_does_not_stop_the_refresh_of_others(
    device: FakeDevice, connected: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.active = [1, 2, 3]
    controller = await connected()
    namespaces = await controller.namespaces()
    device.active, device.namespace["nsze"] = [1, 3], 8192
    identify = device._identify

    def answer(sqe: Sqe, into: memoryview | None) -> Any:
        if sqe.cdw10 == 0 and sqe.nsid == 1:
            device.namespace["lbaf"] = [{"lbads": 3}]  # invalid
        try:
            return identify(sqe, into)
        finally:
            device.namespace["lbaf"] = [{"lbads": 9}]

    monkeypatch.setattr(device, "_identify", answer)
    monkeypatch.setattr("nvmeof.host.async_events.parse_namespace_list", lambda raw: [1, 2, 3])
    device.raise_event(2, 0, 0x04)
    await until(lambda: device.events)  # asked again
    assert [each.size_blocks for each in namespaces] == [4096, 4096, 8192]
    assert len(device.events) == 1
