"""A second, trivial queue device: a controller in memory that answers SQEs. No socket, no PDU, no connection.

It shows that the controller above a device knows nothing of them, and misbehaves on request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nvmeof.errors import ConnectionLost, TransportError
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue, QueueDevice, Request
from nvmeof.spec.connect import CONNECT, CONNECT_DATA, PROPERTY_GET, PROPERTY_SET
from nvmeof.spec.discovery import build_discovery_entry, build_discovery_log
from nvmeof.spec.enums import AdminOpcode, Cns, Csi, FabricsType, FeatureId, LogPageId, NvmOpcode, SubType
from nvmeof.spec.identify import IDENTIFY_CONTROLLER, IDENTIFY_CONTROLLER_NVM, build_namespace_list
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.log_pages import SMART_HEALTH, GetLogPage
from nvmeof.spec.properties import CAP_OFFSET, CC_OFFSET, CSTS_OFFSET, VS_OFFSET, Cap, Cc, Csts, Shst, Vs
from nvmeof.spec.sqe import CDW12_FUA, DSM_RANGE, SQE, Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.wire import build

BLOCK_BYTES = 512
SUBNQN = "nqn.2026-01.org.example:fake"

Answer = tuple[int, int] | None
"""(result, status), or None: held, no completion yet."""


class FakeDevice(QueueDevice):
    """One controller with one namespace of ``blocks`` blocks. ``intercept(request, sqe)`` may answer instead."""

    name = "fake"
    allowed_opts = frozenset({"tos"})
    max_hw_sectors = 0

    def __init__(self, blocks: int = 4096, **identify: Any) -> None:
        self.memory = bytearray(blocks * BLOCK_BYTES)
        self.identify: dict[str, Any] = {
            "cntlid": 7, "mdts": 5, "ioccsz": 4 + 512, "iorcsz": 1, "kas": 10, "acl": 3, "nn": 1, "ofcs": 1,
            "maxcmd": 64, "sn": "FAKE", "mn": "Fake controller", "oaes": 1 << 8, **identify,
        }  # fmt: skip
        self.namespace: dict[str, Any] = {"nsze": blocks, "ncap": blocks, "lbaf": [{"lbads": 9}]}
        self.active = [1]
        self.cap = Cap(mqes_entries=64, timeout_seconds=1.0)
        self.csts = Csts()
        self.ready_polls = 1
        self.shutdown_polls = 1
        self.connect_result: Callable[[int], Answer] = lambda qid: (7, 0)
        self.intercept: Callable[[Request, Sqe], Answer | str] | None = None
        self.log: list[tuple[int, Sqe]] = []
        self.more: list[bool] = []
        self.events: list[Request] = []
        self.held: list[Request] = []
        self.calls: list[str] = []
        self.queues: dict[int, Queue] = {}
        self.drained: set[int] = set()
        self.refuse_queue: int | None = None
        self.call_soon: Callable[..., object] = lambda *args: asyncio.get_running_loop().call_soon(*args)
        self.features: dict[int, int] = {}
        self.discovery_log = build_discovery_log(
            1,
            [
                build_discovery_entry(
                    trtype=3,
                    adrfam=1,
                    subtype=SubType.NVM,
                    trsvcid="4420",
                    subnqn=SUBNQN,
                    traddr="192.0.2.1",
                    cntlid=0xFFFF,
                )
            ],
        )

    # -- the contract

    def claim_dev(self, options: ConnectOptions) -> bool:
        return options.transport == "fake"

    async def setup_ctrl(self, options: ConnectOptions) -> None:
        self.calls.append("setup_ctrl")

    async def release_ctrl(self, options: ConnectOptions) -> None:
        self.calls.append("release_ctrl")

    async def create_queue(self, queue: Queue) -> None:
        self.calls.append(f"create_queue {queue.qid}")
        if queue.qid == self.refuse_queue:
            raise TransportError("the fake refuses this queue")
        self.queues[queue.qid] = queue
        self.drained.discard(queue.qid)

    def send_req(self, request: Request, more: bool) -> None:
        sqe = SQE.unpack_from(request.sqe)
        self.log.append((request.queue.qid, sqe))
        self.more.append(more)
        answer: Any = "default"
        if self.intercept is not None:
            answer = self.intercept(request, sqe)
        if answer == "default":
            answer = self._answer(request, sqe)
        if answer is not None:
            self.call_soon(self.complete, request, *answer)

    def complete(self, request: Request, result: int, status: int) -> None:
        if request.queue.qid not in self.drained and request.cid >= 0:
            request.done(result, status_field(status))

    def poll_queue(self, queue: Queue) -> int:
        return 0

    def drain_queue(self, queue: Queue) -> None:
        self.calls.append(f"drain_queue {queue.qid}")
        self.drained.add(queue.qid)

    def destroy_queue(self, queue: Queue) -> None:
        self.calls.append(f"destroy_queue {queue.qid}")

    # -- the controller

    def _answer(self, request: Request, sqe: Sqe) -> Answer:
        if sqe.opcode == 0x7F:
            return self._fabrics(request, sqe)
        return self._admin(request, sqe) if request.queue.qid == 0 else self._io(request, sqe)

    def _fabrics(self, request: Request, sqe: Sqe) -> Answer:
        if sqe.fctype == FabricsType.CONNECT:
            self.connect = CONNECT.unpack_from(request.sqe)
            self.connect_data = CONNECT_DATA.parse(bytes(request.data_out or b""))
            return self.connect_result(self.connect.qid)
        if sqe.fctype == FabricsType.PROPERTY_SET:
            value = PROPERTY_SET.unpack_from(request.sqe).value
            cc = Cc.decode(value)
            self._ready_in = self.ready_polls
            self._shut_in = self.shutdown_polls
            self.cc = cc
            return 0, 0
        if sqe.fctype == FabricsType.PROPERTY_GET:
            offset = PROPERTY_GET.unpack_from(request.sqe).ofst
            if offset == CSTS_OFFSET:
                return self._csts().encode(), 0
            values = {CAP_OFFSET: self.cap.encode(), VS_OFFSET: Vs(2, 0).encode(), CC_OFFSET: 0}
            return values[offset], 0
        return 0, 0

    def _csts(self) -> Csts:
        cc = getattr(self, "cc", None)
        if self.csts.cfs or cc is None:
            return self.csts
        if cc.shn:
            self._shut_in -= 1
            return Csts(rdy=True, shst=Shst.COMPLETE if self._shut_in < 0 else Shst.OCCURRING)
        self._ready_in -= 1
        return Csts(rdy=cc.en and self._ready_in < 0)

    def _admin(self, request: Request, sqe: Sqe) -> Answer:
        into = request.data_in
        if sqe.opcode == AdminOpcode.IDENTIFY:
            return self._identify(sqe, into)
        if sqe.opcode == AdminOpcode.GET_LOG_PAGE:
            page = GetLogPage.decode(sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13)
            data = {
                LogPageId.DISCOVERY: self.discovery_log,
                LogPageId.SMART_HEALTH: build(SMART_HEALTH, composite_temperature=300),
                LogPageId.CHANGED_NAMESPACES: build_namespace_list([1]),
            }.get(LogPageId(page.lid), bytes(8192))
            assert into is not None and len(into) == page.length_bytes
            into[:] = data[page.offset_bytes : page.offset_bytes + len(into)].ljust(len(into), b"\0")
            return 0, 0
        if sqe.opcode == AdminOpcode.SET_FEATURES:
            self.features[sqe.cdw10 & 0xFF] = sqe.cdw11
            granted = sqe.cdw11 if sqe.cdw10 & 0xFF == FeatureId.NUMBER_OF_QUEUES else 0
            return granted, 0
        if sqe.opcode == AdminOpcode.GET_FEATURES:
            return self.features.get(sqe.cdw10 & 0xFF, 0), 0
        if sqe.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
            self.events.append(request)
            return None
        if sqe.opcode == AdminOpcode.ABORT:
            return self._abort(sqe.cdw10 & 0xFFFF, sqe.cdw10 >> 16)
        if sqe.opcode == AdminOpcode.KEEP_ALIVE:
            return 0, 0
        return 0, Status.INVALID_OPCODE

    def _abort(self, qid: int, cid: int) -> Answer:
        for request in self.held:
            if request.queue.qid == qid and request.cid == cid:
                self.held.remove(request)
                self.complete(request, 0, Status.ABORTED_BY_REQUEST)
                return 0, 0
        return 1, 0

    def _identify(self, sqe: Sqe, into: memoryview | None) -> Answer:
        assert into is not None and len(into) == 4096
        cns = sqe.cdw10 & 0xFF
        if cns == Cns.CONTROLLER:
            into[:] = build(IDENTIFY_CONTROLLER, **self.identify)
        elif cns == Cns.ACTIVE_NAMESPACES:
            into[:] = build_namespace_list(self.active, sqe.nsid)
        elif cns == Cns.NAMESPACE and sqe.nsid in self.active:
            into[:] = build(IDENTIFY_NAMESPACE, **self.namespace)
        elif cns == Cns.CSI_CONTROLLER and sqe.cdw11 >> 24 == Csi.NVM:
            into[:] = build(IDENTIFY_CONTROLLER_NVM, dmrl=2, dmrsl=100)
        return 0, 0

    def _io(self, request: Request, sqe: Sqe) -> Answer:
        start, length = sqe.slba * BLOCK_BYTES, sqe.transfer_blocks * BLOCK_BYTES
        if sqe.opcode in (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES) and start + length > len(
            self.memory
        ):
            return 0, Status.LBA_OUT_OF_RANGE
        if sqe.opcode == NvmOpcode.READ:
            assert request.data_in is not None and len(request.data_in) == length
            request.data_in[:] = self.memory[start : start + length]
        elif sqe.opcode == NvmOpcode.WRITE:
            assert request.data_out is not None and len(request.data_out) == length
            self.memory[start : start + length] = request.data_out
            self.fua = bool(sqe.cdw12 & CDW12_FUA)
        elif sqe.opcode == NvmOpcode.WRITE_ZEROES:
            self.memory[start : start + length] = bytes(length)
        elif sqe.opcode == NvmOpcode.DATASET_MANAGEMENT:
            data = bytes(request.data_out or b"")
            assert len(data) == (sqe.cdw10 + 1) * 16
            for offset in range(0, len(data), 16):
                piece = DSM_RANGE.unpack_from(data, offset)
                begin, size = piece.slba * BLOCK_BYTES, piece.length_blocks * BLOCK_BYTES
                self.memory[begin : begin + size] = bytes(size)
        elif sqe.opcode != NvmOpcode.FLUSH:
            return 0, Status.INVALID_OPCODE
        return 0, 0

    # -- for tests

    def raise_event(self, kind: int, info: int, page: int) -> None:
        """Complete an outstanding Asynchronous Event Request."""
        self.complete(self.events.pop(), kind | info << 8 | page << 16, 0)

    def hold(self, opcode: int) -> None:
        """Leave I/O commands of an opcode without an answer, in ``held``."""

        def intercept(request: Request, sqe: Sqe) -> Answer | str:
            if request.queue.qid and sqe.opcode == opcode:
                self.held.append(request)
                return None
            return "default"

        self.intercept = intercept

    def break_queue(self, qid: int) -> None:
        """Report an error on a queue."""
        self.queues[qid].report_err(ConnectionLost(f"the fake broke queue {qid}"))

    def sent(self, opcode: int) -> list[Sqe]:
        """Return the sent commands of an admin, I/O or (a plain number) any opcode."""
        queues = {AdminOpcode: (0,), NvmOpcode: range(1, 65536)}.get(type(opcode), range(65536))
        return [sqe for qid, sqe in self.log if sqe.opcode == opcode and qid in queues]
