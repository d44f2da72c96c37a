"""A subsystem in memory with several controllers, and a network between it and the host that can misbehave.

The model begins at the queue contract: commands are executed in the shared storage, after a delay, and completions come
back, unless the network of the port loses them. All of the host above the device is real.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvmeof.errors import ConnectionLost, ConnectTimeout, TransportError
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue, QueueDevice, Request
from nvmeof.spec.connect import CONNECT, PROPERTY_GET, PROPERTY_SET
from nvmeof.spec.enums import AdminOpcode, AnaState, Cns, Csi, FabricsType, FeatureId, LogPageId, NvmOpcode
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    IDENTIFY_CONTROLLER_NVM,
    NamespaceDescriptor,
    build_namespace_descriptors,
    build_namespace_list,
)
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.log_pages import AnaGroup, GetLogPage, build_ana_log
from nvmeof.spec.properties import CAP_OFFSET, CSTS_OFFSET, VS_OFFSET, Cap, Cc, Csts, Shst, Vs
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.wire import build

BLOCK_BYTES = 512
SUBNQN = "nqn.2026-01.org.example:model"
COUNT = 0xC0
"""A vendor specific command without data that must not be executed twice: CDW10 is the key that it counts."""
_WORD = 1 << 16
"""Marks a status that is a CQE's status word already."""
_STATUS = {
    AnaState.INACCESSIBLE: Status.ANA_INACCESSIBLE,
    AnaState.PERSISTENT_LOSS: Status.ANA_PERSISTENT_LOSS,
    AnaState.CHANGE: Status.ANA_TRANSITION,
}


@dataclass(eq=False)
class Volume:
    """A namespace: its data and its Identify fields."""

    nsid: int
    blocks: int = 64
    nguid: bytes = b""
    eui64: bytes = b""
    uuid: bytes = b""
    csi: int = Csi.NVM
    nmic: int = 1
    anagrpid: int = 1
    lbads: int = 9
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.nguid = self.nguid or bytes([0xA0, self.nsid]) * 8
        self.data = self.data or bytearray(self.blocks << self.lbads)


@dataclass(eq=False)
class Late:
    """A command in flight to the controller."""

    sqe: Sqe
    data: bytes


@dataclass(eq=False)
class Connection:
    """One queue of an association, as the controller has it."""

    queue: Queue
    controller: ModelController
    alive: bool = True
    on_the_way: list[Late] = field(default_factory=list)


@dataclass(eq=False)
class ModelController:
    """One association, at the target."""

    port: ModelPort
    cntlid: int
    cc: Cc = field(default_factory=Cc)
    events: list[Request] = field(default_factory=list)
    pending: list[tuple[int, int, int]] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)


@dataclass(eq=False)
class ModelPort:
    """A port of the target with its network."""

    number: int
    up: bool = True
    """Connections can be made."""
    loses_requests: bool = False
    """Requests of the host do not arrive."""
    loses_answers: bool = False
    """Half-open: commands are executed, but their completions are lost."""
    delay: float = 0.001
    linger: float = 0.0
    """Commands in flight when the connection was cut are executed so many seconds later, without a completion."""
    identify: dict[str, Any] = field(default_factory=dict)
    ana: dict[int, AnaState] = field(default_factory=lambda: {1: AnaState.OPTIMIZED})
    ana_log: Callable[[], bytes] | None = None
    """The log in place of the true one."""
    volumes: dict[int, Volume] | None = None
    """The volumes in place of the subsystem's."""
    statuses: list[int] = field(default_factory=list)
    """The status words of the next I/O commands, in place of executing them."""
    controllers: list[ModelController] = field(default_factory=list)
    executed: int = 0
    changes: int = 0
    log_reads: int = 0
    connects: int = 0


class ModelDevice(QueueDevice):
    """The target behind ``ports`` ports, addressed as ``p0``, ``p1`` and so on."""

    name = "model"

    def __init__(self, ports: int = 2, *volumes: Volume, cqt_ms: int = 0) -> None:
        self.ports = [ModelPort(number) for number in range(ports)]
        self.volumes = {each.nsid: each for each in volumes or (Volume(1),)}
        self.counts: dict[int, int] = defaultdict(int)
        self.counted_at: dict[int, float] = {}
        self.written_at: dict[int, float] = {}
        """The time of the last write, by the number in the first 8 bytes of its data."""
        self.identify: dict[str, Any] = {
            "mdts": 5, "ioccsz": 4 + 512, "iorcsz": 1, "kas": 10, "acl": 3, "nn": 16, "mnan": 16, "maxcmd": 64,
            "sn": "MODEL", "mn": "Model", "oaes": 1 << 8 | 1 << 11, "cmic": 0b1011, "anagrpmax": 4, "nanagrpid": 4,
            "anatt": 10, "cntrltype": 1, "subnqn": SUBNQN, "rtd3e": 1_000_000, "cqt": cqt_ms,
        }  # fmt: skip
        self.next_cntlid = 1
        self._links: dict[Queue, Connection] = {}
        self._drained: set[Queue] = set()

    # -- for tests

    def cut(self, port: int) -> None:
        """Reset all connections of a port: both ends notice at once."""
        where, loop = self.ports[port], asyncio.get_running_loop()
        for controller in list(where.controllers):
            for link in list(controller.connections):
                link.alive = False
                for late in link.on_the_way:
                    loop.call_later(where.linger, self._late, where, late)
                link.queue.report_err(ConnectionLost(f"p{port} reset the connection"))
            if controller in where.controllers:
                where.controllers.remove(controller)

    def _late(self, port: ModelPort, late: Late) -> None:
        if late.sqe.opcode in (NvmOpcode.WRITE, COUNT):
            self._io(port, Request(b"", late.data), late.sqe)

    def set_ana(self, port: int, state: AnaState, group: int = 1) -> None:
        """Change a group's state on a port, and send the event."""
        where = self.ports[port]
        where.ana[group] = state
        where.changes += 1
        self.raise_event(port, 2, 3, LogPageId.ANA)

    def raise_event(self, port: int, kind: int, info: int, page: int) -> None:
        """Complete an Asynchronous Event Request of every controller of a port, or hold the event until there is
        one.
        """
        for controller in self.ports[port].controllers:
            event = (kind, info, page)
            if event not in controller.pending:
                controller.pending.append(event)
            self._deliver_events(controller)

    def _deliver_events(self, controller: ModelController) -> None:
        while controller.events and controller.pending:
            kind, info, page = controller.pending.pop(0)
            self._answer_later(controller.events.pop(), controller.port, kind | info << 8 | page << 16, 0)

    # -- the contract

    def claim_dev(self, options: ConnectOptions) -> bool:
        return options.transport == "model"

    async def setup_ctrl(self, options: ConnectOptions) -> None:
        pass

    async def release_ctrl(self, options: ConnectOptions) -> None:
        pass

    async def create_queue(self, queue: Queue) -> None:
        port = self.ports[int(queue.options.traddr[1:])]
        port.connects += 1
        await asyncio.sleep(port.delay)
        if not port.up:
            raise TransportError(f"p{port.number} refuses connections")
        if port.loses_requests or port.loses_answers:
            await asyncio.sleep(queue.options.connect_timeout)
            raise ConnectTimeout(f"p{port.number} does not answer")
        if queue.qid == 0:
            controller = ModelController(port, port.identify.get("cntlid", self.next_cntlid))
            self.next_cntlid += 1
            port.controllers.append(controller)
        else:
            controller = next(
                each for each in reversed(port.controllers) if each.connections[0].queue.on_error == queue.on_error
            )
        self._links[queue] = link = Connection(queue, controller)
        controller.connections.append(link)

    def send_req(self, request: Request, more: bool) -> None:
        link = self._links[request.queue]
        port = link.controller.port
        if port.loses_requests:
            return
        if port.linger and request.queue.qid:
            late = Late(SQE.unpack_from(request.sqe), bytes(request.data_out or b""))
            link.on_the_way.append(late)
            asyncio.get_running_loop().call_later(port.delay, link.on_the_way.remove, late)
        asyncio.get_running_loop().call_later(port.delay, self._arrived, link, request, request.cid)

    def _arrived(self, link: Connection, request: Request, cid: int) -> None:
        if not link.alive or request.cid != cid or link.queue in self._drained:
            return  # the command was lost with its connection
        answer = self._execute(link, request, SQE.unpack_from(request.sqe))
        if answer is not None:
            self._answer_later(request, link.controller.port, *answer)

    def _answer_later(self, request: Request, port: ModelPort, result: int, status: int) -> None:
        if port.loses_answers:
            return
        cid, queue = request.cid, request.queue
        asyncio.get_running_loop().call_later(port.delay, self._answer, request, queue, cid, result, status)

    def _answer(self, request: Request, queue: Queue, cid: int, result: int, status: int) -> None:
        alive = self._links.get(queue)
        if queue not in self._drained and alive is not None and alive.alive and request.cid == cid >= 0:
            request.done(result, status & 0xFFFF if status & _WORD else status_field(status))

    def poll_queue(self, queue: Queue) -> int:
        return 0

    def drain_queue(self, queue: Queue) -> None:
        self._drained.add(queue)

    def destroy_queue(self, queue: Queue) -> None:
        link = self._links.pop(queue, None)
        if link is not None:
            link.alive = False
            if queue.qid == 0 and link.controller in link.controller.port.controllers:
                link.controller.port.controllers.remove(link.controller)

    def give_back(self, request: Request) -> bool:
        return True

    # -- the controller

    def _execute(self, link: Connection, request: Request, sqe: Sqe) -> tuple[int, int] | None:
        controller = link.controller
        if sqe.opcode == 0x7F:
            return self._fabrics(controller, request, sqe)
        if request.queue.qid:
            return self._io(controller.port, request, sqe)
        return self._admin(controller, request, sqe)

    def _fabrics(self, controller: ModelController, request: Request, sqe: Sqe) -> tuple[int, int]:
        if sqe.fctype == FabricsType.CONNECT:
            CONNECT.unpack_from(request.sqe)
            return controller.cntlid, 0
        if sqe.fctype == FabricsType.PROPERTY_SET:
            controller.cc = Cc.decode(PROPERTY_SET.unpack_from(request.sqe).value)
            return 0, 0
        if sqe.fctype == FabricsType.PROPERTY_GET:
            offset = PROPERTY_GET.unpack_from(request.sqe).ofst
            cap = Cap(mqes_entries=64, timeout_seconds=1.0)
            status = Csts(rdy=controller.cc.en, shst=Shst.COMPLETE if controller.cc.shn else Shst.NORMAL)
            return {CSTS_OFFSET: status.encode(), CAP_OFFSET: cap.encode(), VS_OFFSET: Vs(2, 0).encode()}[offset], 0
        return 0, 0

    def _admin(self, controller: ModelController, request: Request, sqe: Sqe) -> tuple[int, int] | None:
        if sqe.opcode == AdminOpcode.IDENTIFY:
            return self._identify(controller, request.data_in, sqe)
        if sqe.opcode == AdminOpcode.GET_LOG_PAGE:
            return self._log(controller.port, request, sqe)
        if sqe.opcode == AdminOpcode.SET_FEATURES:
            return sqe.cdw11 if sqe.cdw10 & 0xFF == FeatureId.NUMBER_OF_QUEUES else 0, 0
        if sqe.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
            controller.events.append(request)
            self._deliver_events(controller)
            return None
        if sqe.opcode in (AdminOpcode.KEEP_ALIVE, AdminOpcode.ABORT):
            return int(sqe.opcode == AdminOpcode.ABORT), 0
        return 0, Status.INVALID_OPCODE

    def _identify(self, controller: ModelController, into: memoryview | None, sqe: Sqe) -> tuple[int, int]:
        assert into is not None
        port = controller.port
        volumes = self.volumes if port.volumes is None else port.volumes
        cns, volume = sqe.cdw10 & 0xFF, volumes.get(sqe.nsid)
        if cns == Cns.CONTROLLER:
            into[:] = build(IDENTIFY_CONTROLLER, **{"cntlid": controller.cntlid, **self.identify, **port.identify})
        elif cns == Cns.ACTIVE_NAMESPACES:
            into[:] = build_namespace_list(sorted(volumes), sqe.nsid)
        elif cns == Cns.NAMESPACE and volume is not None:
            into[:] = build(
                IDENTIFY_NAMESPACE,
                nsze=volume.blocks,
                ncap=volume.blocks,
                nmic=volume.nmic,
                anagrpid=volume.anagrpid,
                nguid=volume.nguid,
                eui64=volume.eui64 or bytes(8),
                lbaf=[{"lbads": volume.lbads}],
            )
        elif cns == Cns.NAMESPACE_DESCRIPTORS and volume is not None:
            found = [NamespaceDescriptor(2, volume.nguid), NamespaceDescriptor(4, bytes([volume.csi]))]
            found += [NamespaceDescriptor(1, volume.eui64)] if volume.eui64 else []
            found += [NamespaceDescriptor(3, volume.uuid)] if volume.uuid else []
            into[:] = build_namespace_descriptors(found)
        elif cns == Cns.CSI_CONTROLLER:
            into[:] = build(IDENTIFY_CONTROLLER_NVM, dmrl=2, dmrsl=100)
        return 0, 0

    def _log(self, port: ModelPort, request: Request, sqe: Sqe) -> tuple[int, int]:
        into = request.data_in
        assert into is not None
        page = GetLogPage.decode(sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13)
        if page.lid != LogPageId.ANA:
            into[:] = bytes(len(into))
            return 0, 0
        port.log_reads += 1
        if port.ana_log is not None:
            data = port.ana_log()
        else:
            volumes = self.volumes if port.volumes is None else port.volumes
            groups = [
                AnaGroup(group, state, port.changes, tuple(v.nsid for v in volumes.values() if v.anagrpid == group))
                for group, state in sorted(port.ana.items())
            ]
            data = build_ana_log(port.changes, groups)
        if page.offset_bytes > len(data):
            return 0, Status.INVALID_FIELD
        piece = data[page.offset_bytes : page.offset_bytes + len(into)]
        into[: len(piece)] = piece
        return 0, 0

    def _io(self, port: ModelPort, request: Request, sqe: Sqe) -> tuple[int, int]:
        if port.statuses:
            return 0, port.statuses.pop(0) | _WORD
        volumes = self.volumes if port.volumes is None else port.volumes
        volume = volumes.get(sqe.nsid)
        if volume is None:
            return 0, status_field(Status.INVALID_NAMESPACE, dnr=True) | _WORD
        state = port.ana[volume.anagrpid]
        if state in _STATUS:
            return 0, _STATUS[state]
        port.executed += 1
        size = 1 << volume.lbads
        start, end = sqe.slba * size, (sqe.slba + sqe.transfer_blocks) * size
        if sqe.opcode == COUNT:
            self.counts[sqe.cdw10] += 1
            self.counted_at[sqe.cdw10] = asyncio.get_running_loop().time()
        elif sqe.opcode == NvmOpcode.READ:
            assert request.data_in is not None
            request.data_in[:] = volume.data[start:end]
        elif sqe.opcode == NvmOpcode.WRITE:
            assert request.data_out is not None
            if sqe.transfer_blocks << volume.lbads > 4096 << int({**self.identify, **port.identify}["mdts"]):
                return 0, Status.INVALID_FIELD
            volume.data[start:end] = request.data_out
            self.written_at[int.from_bytes(request.data_out[:8], "little")] = asyncio.get_running_loop().time()
        elif sqe.opcode == NvmOpcode.WRITE_ZEROES:
            volume.data[start:end] = bytes(end - start)
        elif sqe.opcode not in (NvmOpcode.FLUSH, NvmOpcode.COMPARE):
            return 0, Status.INVALID_OPCODE
        return 0, 0
