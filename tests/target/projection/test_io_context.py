"""I/O commands on a context that the test builds: without a subsystem, a controller or a connection."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Awaitable

import pytest

from nvmeof.errors import CommandError
from nvmeof.spec.enums import AnaState, NvmOpcode
from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneSendAction
from nvmeof.target.commands.context import IoContext, QueueContext
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.log_rate import PeerLog
from nvmeof.target.core.states import ControllerState
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.reservations import Outcome
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zoned import make_namespace
from nvmeof.target.projection.ana_access import AnaAccess
from nvmeof.target.projection.association import AssociationView, Limits, Projection
from nvmeof.target.projection.effects import Refusal
from nvmeof.target.projection.sanitize_view import SanitizeState
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.fake_runtime import FakeRuntime
from tests.target.harness import FakeQueue, Sqe

HOSTID = bytes(range(16))
TABLES = standard_tables()
PLAIN, ZONED, OTHER = 1, 2, 3


class Seen:
    """Effects that are only recorded."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.busy: list[float] = []
        self.writes_after_sanitize = 0
        self.outcomes: list[tuple[int, Outcome, bool]] = []
        self.reasons: list[tuple[str, bool]] = []

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def begun(self, now: float) -> None:
        self.busy.append(1)

    def done(self, now: float) -> None:
        self.busy.append(-1)

    def written(self) -> None:
        self.writes_after_sanitize += 1

    def change_reservation(
        self, namespace: Namespace, outcome: Outcome, *, abort: bool = False
    ) -> Awaitable[None] | None:
        self.outcomes.append((namespace.nsid, outcome, abort))
        return namespace.reservations.change(outcome.state)

    def ended(self, reason: str, *, fault: bool = False) -> None:
        self.reasons.append((reason, fault))


def make(nsid: int, backend: Backend, zoned: ZoneGeometry | None = None) -> Namespace:
    return make_namespace(nsid, backend, NamespaceIdentifiers.derive("nqn.2026-01.org.example:worker", nsid), zoned)


class Worker:
    """The objects of a process that serves one I/O queue."""

    def __init__(self, *namespaces: Namespace) -> None:
        self.runtime = FakeRuntime()
        self.view = AssociationView(
            cntlid=1,
            subnqn="nqn.2026-01.org.example:worker",
            host_nqn="nqn.2026-01.org.example:host",
            hostid=HOSTID,
            limits=Limits(transfer_bytes=1 << 20, incapsule_bytes=8192, max_namespaces=16),
        )
        self.namespaces = {each.nsid: each for each in namespaces}
        self.effects = Seen()
        self.project()
        before = QueueContext(self.runtime, TABLES, PeerLog(), FakeQueue(), "192.0.2.1:50000")
        self.ctx = IoContext(before, self.view, self.effects, qid=1, entries=32)

    def project(self, **changes: object) -> None:
        values: dict[str, object] = {
            "state": ControllerState.READY,
            "namespaces": self.namespaces,
            "ana": AnaAccess(1),
            **changes,
        }
        self.view.change(Projection(**values))  # type: ignore[arg-type]

    def run(self, opcode: int, data: bytes = b"", *, nsid: int = PLAIN, length: int = 0, **fields: int) -> Completion:
        sqe = Sqe(opcode=opcode, cid=7, nsid=nsid, flags=0x40, sgl_type=0x5A, sgl_length=length or len(data), **fields)
        try:
            spec, moved = prepare(self.ctx, sqe)
        except CommandError as error:
            return self.ctx.refuse(sqe, error)
        result = execute(self.ctx, spec, sqe, memoryview(bytearray(data)) if data and moved else None)
        if isinstance(result, Completion):
            return result
        assert inspect.iscoroutine(result)
        while True:
            try:
                result.send(None)
            except StopIteration as stop:
                assert isinstance(stop.value, Completion)
                return stop.value
            self.runtime.turn()

    def read(self, slba: int, blocks: int, nsid: int = PLAIN) -> bytes:
        completion = self.run(NvmOpcode.READ, nsid=nsid, length=blocks * 512, cdw10=slba, cdw12=blocks - 1)
        assert completion.status == 0 and completion.data is not None
        data = bytes(completion.data)
        if completion.release is not None:
            completion.release()
        return data


@pytest.fixture
def worker() -> Worker:
    geometry = ZoneGeometry(zone_bytes=1 << 20, max_open=2, max_active=3)
    return Worker(make(PLAIN, Ramdisk("1M")), make(ZONED, Ramdisk("4M"), geometry), make(OTHER, Ramdisk("1M")))


A, B = b"a" * 1024, b"b" * 1024


def test_data_is_written_and_read(worker):
    assert worker.run(NvmOpcode.WRITE, A, cdw10=4, cdw12=1).status == 0
    assert worker.read(3, 4) == bytes(512) + A + bytes(512)
    assert worker.run(NvmOpcode.COMPARE, A, cdw10=4, cdw12=1).status == 0
    assert worker.run(NvmOpcode.COMPARE, B, cdw10=4, cdw12=1).status == Status.COMPARE_FAILURE
    assert worker.run(NvmOpcode.VERIFY, cdw10=4, cdw12=1).status == 0
    assert worker.run(NvmOpcode.FLUSH).status == 0
    counters = worker.namespaces[PLAIN].counters
    assert (counters.writes, counters.blocks_written, counters.reads) == (1, 2, 3), "a Compare reads"


def test_blocks_are_copied(worker):
    worker.run(NvmOpcode.WRITE, A + B, cdw10=0, cdw12=3)
    descriptor = struct.pack("<8xQH14x", 0, 3)
    assert worker.run(NvmOpcode.COPY, descriptor, cdw10=16, cdw12=0).status == 0
    assert worker.read(16, 4) == A + B
    # From another namespace only where the host has enabled it: CDFE is projected.
    across = struct.pack("<I4xQH14x", PLAIN, 0, 3)
    there = {"nsid": OTHER, "cdw10": 0, "cdw12": 2 << 8}
    assert worker.run(NvmOpcode.COPY, across, **there).status == Status.INVALID_FIELD
    worker.project(copy_formats=1 << 2)
    assert worker.run(NvmOpcode.COPY, across, **there).status == 0
    assert worker.read(0, 4, OTHER) == A + B


def test_blocks_are_cleared(worker):
    worker.run(NvmOpcode.WRITE, A + B, cdw10=0, cdw12=3)
    assert worker.run(NvmOpcode.WRITE_ZEROES, cdw10=1, cdw12=0).status == 0
    assert worker.read(0, 4) == A[:512] + bytes(512) + B
    ranges = struct.pack("<IIQ", 0, 2, 2)
    assert worker.run(NvmOpcode.DATASET_MANAGEMENT, ranges, cdw10=0, cdw11=4).status == 0
    assert worker.read(0, 4) == A[:512] + bytes(1536)


def test_zones(worker):
    first, second = (worker.run(NvmOpcode.ZONE_APPEND, A, nsid=ZONED, cdw10=0, cdw12=1) for _ in range(2))
    assert (first.status, first.dw0, second.status, second.dw0) == (0, 0, 0, 2)
    assert worker.read(2, 2, ZONED) == A
    reset = {"nsid": ZONED, "cdw10": 0, "cdw13": ZoneSendAction.RESET}
    assert worker.run(NvmOpcode.ZONE_MANAGEMENT_SEND, **reset).status == 0
    report = worker.run(NvmOpcode.ZONE_MANAGEMENT_RECEIVE, nsid=ZONED, length=4096, cdw12=1023)
    assert report.status == 0 and bytes(report.data)[64 + 24 : 64 + 32] == bytes(8), "the write pointer is back"
    assert worker.run(NvmOpcode.WRITE, A, nsid=ZONED, cdw10=2, cdw12=1).status == Status.ZONE_INVALID_WRITE


def test_a_refused_command_goes_out_as_a_value(worker):
    assert worker.run(NvmOpcode.READ, length=512, cdw10=2048).status == Status.LBA_OUT_OF_RANGE
    assert worker.run(NvmOpcode.ZONE_APPEND, A, nsid=ZONED, cdw10=1, cdw12=1).status == Status.INVALID_FIELD
    [read, append] = worker.effects.refusals
    assert (read.cid, read.opcode, read.nsid, read.lba, read.csi) == (7, NvmOpcode.READ, PLAIN, 2048, 0)
    assert read.error.status == Status.LBA_OUT_OF_RANGE and (append.nsid, append.lba, append.csi) == (ZONED, 1, 2)
    assert worker.ctx.counters.errors == 2
    worker.ctx.detach("gone", fault=True)
    worker.ctx.detach("gone again")
    assert worker.effects.reasons == [("gone", True)]
    assert worker.run(NvmOpcode.READ, length=512, cdw10=2048).status and len(worker.effects.refusals) == 2


def test_reservations_go_through_effects(worker):
    keys = struct.pack("<QQ", 0, 5)
    assert worker.run(NvmOpcode.RESERVATION_REGISTER, keys).status == 0
    keys = struct.pack("<QQ", 5, 0)
    assert worker.run(NvmOpcode.RESERVATION_ACQUIRE, keys, cdw10=1 << 8).status == 0
    # Preempt and Abort ends the commands of hosts that lose their registration.
    assert worker.run(NvmOpcode.RESERVATION_ACQUIRE, struct.pack("<QQ", 5, 5), cdw10=2 | 1 << 8).status == 0
    assert [(nsid, abort) for nsid, _, abort in worker.effects.outcomes] == [(1, False), (1, False), (1, True)]
    report = worker.run(NvmOpcode.RESERVATION_REPORT, length=128, cdw10=31, cdw11=1)
    assert report.status == 0 and HOSTID in bytes(report.data)
    # Another host is excluded from reserved blocks.
    worker.ctx.hostid = bytes(15) + b"x"
    assert worker.run(NvmOpcode.WRITE, A, cdw12=1).status == Status.RESERVATION_CONFLICT


def test_commands_that_the_projection_forbids(worker):
    worker.project(ana=AnaAccess(1, {1: AnaState.INACCESSIBLE}))
    assert worker.run(NvmOpcode.READ, length=512).status == Status.ANA_INACCESSIBLE
    worker.project(state=ControllerState.SHUTDOWN)
    assert worker.run(NvmOpcode.READ, length=512).status == Status.COMMAND_SEQUENCE_ERROR
    worker.project(namespaces={OTHER: worker.namespaces[OTHER]})
    assert worker.run(NvmOpcode.READ, length=512).status == Status.INVALID_FIELD
    assert worker.run(NvmOpcode.READ, length=512, nsid=OTHER).status == 0
    assert worker.run(NvmOpcode.READ, length=512, nsid=17).status == Status.INVALID_NAMESPACE
    worker.project()
    worker.view.sanitize.state = SanitizeState.RESTRICTED_PROCESSING
    assert worker.run(NvmOpcode.READ, length=512).status == Status.SANITIZE_IN_PROGRESS
    worker.view.sanitize.state = SanitizeState.IDLE
    worker.view.sanitize.erased = True
    assert worker.read(0, 1) == bytes(512) and not worker.effects.writes_after_sanitize
    assert worker.run(NvmOpcode.WRITE, A, cdw12=1).status == 0 and worker.effects.writes_after_sanitize == 1


@pytest.mark.parametrize("write_cache", [True, False])
def test_without_a_write_cache_every_write_goes_through(worker, monkeypatch, write_cache):
    through = []
    namespace = worker.namespaces[PLAIN]
    monkeypatch.setattr(type(namespace), "write", lambda self, slba, data, *, fua: through.append(fua))
    worker.project(write_cache=write_cache)
    worker.run(NvmOpcode.WRITE, A, cdw12=1)
    worker.run(NvmOpcode.WRITE, A, cdw12=1 | 1 << 30)
    assert through == [not write_cache, True]


def test_a_command_that_does_not_complete_at_once_is_busy_time(worker):
    worker.run(NvmOpcode.WRITE, A, cdw12=1)
    assert not worker.effects.busy
    assert worker.run(NvmOpcode.COPY, struct.pack("<8xQH14x", 0, 1), cdw10=16).status == 0
    assert worker.run(NvmOpcode.COPY, struct.pack("<8xQH14x", 5000, 1), cdw10=16).status == Status.LBA_OUT_OF_RANGE
    assert worker.effects.busy == [1, -1], "and what is refused at once is none"
