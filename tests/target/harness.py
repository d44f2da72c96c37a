"""A target without sockets or an event loop: commands go straight through the tables."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any, cast

from nvmeof.errors import CommandError
from nvmeof.spec.connect import CONNECT_DATA
from nvmeof.spec.enums import DISCOVERY_NQN, FABRICS_OPCODE, FabricsType
from nvmeof.spec.properties import CC_OFFSET, CSTS_OFFSET
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.admin_context import AnyContext, ConnectContext
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.rows.features import FeatureTable
from nvmeof.target.commands.rows.log_pages import LogPageTable
from nvmeof.target.commands.rows.structures import CommandSetTable, IdentifyTable
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.effects import QueueEffects
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.states import QueueState
from nvmeof.target.core.tables import Tables
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.namespace_kinds import NamespaceKinds
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.wire import build
from tests.fake_runtime import FakeRuntime

TABLES = standard_tables()
"""The tables of this module's targets; a test may patch them."""
COMMANDS = TABLES[CommandTables]
ADMIN, DISCOVERY, NVM = COMMANDS.admin, COMMANDS.discovery, COMMANDS.nvm
FABRICS_ADMIN, FABRICS_IO = COMMANDS.fabrics_admin, COMMANDS.fabrics_io
ZNS = COMMANDS.beside_nvm(2)
LOG_PAGES, FEATURES = TABLES[LogPageTable], TABLES[FeatureTable]
IDENTIFY, COMMAND_SETS = TABLES[IdentifyTable], TABLES[CommandSetTable]

NQN = "nqn.2026-01.org.example:disk"
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
HOSTID = bytes(range(16))
CC_ENABLE = 0x460061
CC_DISABLED = 0x460060
IN_CAPSULE = 0x01
TRANSPORT = 0x5A


class FakeQueue:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.aborted: list[int] = []  # namespaces
        self.in_progress: dict[int, int] = {}  # NSID by CID
        self.states: list[QueueState] = []
        self.ctx: Any = None

    def close(self, reason: str) -> None:
        self.reasons.append(reason)

    def abort(self, cid: int) -> bool:
        return False

    def abort_namespace(self, nsid: int) -> None:
        self.aborted.append(nsid)

    def commands(self) -> dict[int, int]:
        return self.in_progress

    def set_state(self, state: QueueState) -> None:
        self.states.append(state)
        if self.ctx is not None:
            self.ctx.queue_state = state


def controller_of(ctx: AnyContext) -> Controller:
    """Return the controller of a connected queue, which an I/O queue's context has only as the owner of its effects."""
    assert not isinstance(ctx, ConnectContext)
    return cast(QueueEffects, ctx.effects).controller


class Pending:
    """A command that did not complete at once, driven by the test."""

    def __init__(self, awaitable: Awaitable[Completion]) -> None:
        assert inspect.iscoroutine(awaitable)
        self._coroutine = awaitable
        self.completion: Completion | None = None
        self.step()

    def step(self) -> Completion | None:
        if self.completion is None:
            try:
                self._coroutine.send(None)
            except StopIteration as stop:
                self.completion = stop.value
        return self.completion

    def close(self) -> None:
        self._coroutine.close()


class Target:
    """A registry with one subsystem and one port."""

    def __init__(self, *backends: Backend, tables: Tables = TABLES, **options: Any) -> None:
        self.runtime = FakeRuntime()
        self.registry = TargetRegistry(tables)
        namespaces = tuple(NamespaceConfig(backend=backend) for backend in backends or (Ramdisk("1M"),))
        config = SubsystemConfig(nqn=NQN, namespaces=namespaces, **options)
        self.subsystem = Subsystem(config, kinds=tables[NamespaceKinds])
        self.registry.add_subsystem(self.subsystem)
        self.port = PortInfo(portid=1, transport="tcp", trtype=3, traddr="0.0.0.0", trsvcid="4420")
        self.registry.add_port(self.port)

    def queue(self, port: PortInfo | None = None) -> TestQueue:
        seen = port or self.port.seen_at("192.0.2.1", 4420)
        return TestQueue(ConnectContext(self.runtime, self.registry, seen, FakeQueue()))

    def admin(self, **connect: Any) -> TestQueue:
        """Return a connected and enabled admin queue."""
        queue = self.queue()
        queue.connect(**connect)
        queue.set_property(CC_OFFSET, CC_ENABLE)
        return queue

    def discovery(self, **connect: Any) -> TestQueue:
        return self.admin(subnqn=DISCOVERY_NQN, **connect)

    def io(self, admin: TestQueue, qid: int = 1, **connect: Any) -> TestQueue:
        queue = self.queue()
        queue.connect(**{"qid": qid, "cntlid": admin.controller.cntlid, **connect})
        return queue


class TestQueue:
    __test__ = False

    def __init__(self, ctx: AnyContext) -> None:
        self.ctx: Any = ctx
        self.cid = 0

    @property
    def controller(self) -> Any:
        """The controller that the queue is connected to; None before its Connect."""
        return None if isinstance(self.ctx, ConnectContext) else controller_of(self.ctx)

    @property
    def closed(self) -> list[str]:
        return cast(FakeQueue, self.ctx.queue).reasons

    def submit(self, sqe: Sqe, data: bytes | None = None) -> Completion | Pending:
        self.cid += 1
        sqe.cid = self.cid
        self.ctx.activity.heard = True
        try:
            spec, length = prepare(self.ctx, sqe)
        except CommandError as error:
            return self.ctx.refuse(sqe, error)
        buffer = None
        if data is not None and length:
            assert len(data) == length, "the queue receives what the SGL describes"
            buffer = memoryview(bytearray(data))
        result = execute(self.ctx, spec, sqe, buffer)
        if isinstance(self.ctx, ConnectContext) and self.ctx.accepted is not None:
            self.ctx = cast(FakeQueue, self.ctx.queue).ctx = self.ctx.accepted
        return result if isinstance(result, Completion) else Pending(result)

    def run(self, sqe: Sqe, data: bytes | None = None) -> Completion:
        """Run a command that completes at once. Fills in the SGL unless it is given."""
        result = self.submit(sqe, data)
        if isinstance(result, Pending):
            while result.step() is None and self.ctx.runtime.turn():
                """What takes long in memory lets others have their turn between two pieces."""
            assert result.completion is not None, "the command is still pending"
            result = result.completion
        return result

    def command(
        self, opcode: int, data: bytes | None = None, *, length: int | None = None, **fields: Any
    ) -> Completion:
        return self.run(self.sqe(opcode, data, length=length, **fields), data)

    def sqe(self, opcode: int, data: bytes | None = None, *, length: int | None = None, **fields: Any) -> Sqe:
        if length is None:
            length = len(data) if data is not None else 0
        defaults = {"flags": 0x40, "sgl_type": TRANSPORT, "sgl_length": length}
        return Sqe(opcode=opcode, **{**defaults, **fields})

    def read_bytes(self, completion: Completion) -> bytes:
        assert completion.status == 0, hex(completion.status)
        assert completion.data is not None
        data = bytes(completion.data)
        if completion.release is not None:
            completion.release()
        return data

    def try_connect(
        self,
        *,
        subnqn: str | bytes = NQN,
        hostnqn: str | bytes = HOST,
        hostid: bytes = HOSTID,
        cntlid: int = 0xFFFF,
        qid: int = 0,
        sqsize: int = 31,
        recfmt: int = 0,
        cattr: int = 0,
        kato: int = 5000,
    ) -> Completion:
        data = build(CONNECT_DATA, hostid=hostid, cntlid=cntlid, subnqn=subnqn, hostnqn=hostnqn)
        return self.command(
            FABRICS_OPCODE,
            data,
            nsid=FabricsType.CONNECT,
            sgl_type=IN_CAPSULE,
            cdw10=recfmt | qid << 16,
            cdw11=sqsize | cattr << 16,
            cdw12=kato,
        )

    def connect(self, **fields: Any) -> int:
        completion = self.try_connect(**fields)
        assert completion.status == 0, hex(completion.status)
        return completion.dw0

    def set_property(self, offset: int, value: int, attrib: int = 0) -> Completion:
        return self.command(
            FABRICS_OPCODE, nsid=FabricsType.PROPERTY_SET, cdw10=attrib, cdw11=offset, cdw12=value & 0xFFFFFFFF
        )

    def get_property(self, offset: int, attrib: int = 0) -> Completion:
        return self.command(FABRICS_OPCODE, nsid=FabricsType.PROPERTY_GET, cdw10=attrib, cdw11=offset)

    @property
    def csts(self) -> int:
        return self.get_property(CSTS_OFFSET).dw0

    def identify(self, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> Completion:
        return self.command(0x06, length=4096, nsid=nsid, cdw10=cns | cntid << 16, cdw11=csi << 24)

    def log_page(
        self, lid: int, length: int, offset: int = 0, *, nsid: int = 0, rae: bool = False, lsp: int = 0, **fields: Any
    ) -> Completion:
        numd = length // 4 - 1
        return self.command(
            0x02,
            length=length,
            nsid=nsid,
            cdw10=lid | lsp << 8 | rae << 15 | (numd & 0xFFFF) << 16,
            cdw11=numd >> 16,
            cdw12=offset & 0xFFFFFFFF,
            cdw13=offset >> 32,
            **fields,
        )

    def get_feature(self, fid: int, sel: int = 0, *, cdw11: int = 0, length: int = 0, nsid: int = 0) -> Completion:
        return self.command(0x0A, length=length, nsid=nsid, cdw10=fid | sel << 8, cdw11=cdw11)

    def set_feature(
        self, fid: int, value: int = 0, *, data: bytes | None = None, save: bool = False, nsid: int = 0
    ) -> Completion:
        return self.command(0x09, data, nsid=nsid, cdw10=fid | save << 31, cdw11=value)
