"""Hosts that use one target's reservations, each through separate controllers."""

from __future__ import annotations

import struct
from collections.abc import Awaitable

from nvmeof.errors import CommandError
from nvmeof.spec.reservations import (
    AcquireAction,
    RegisterAction,
    ReleaseAction,
    ReservationReport,
    pack_keys,
    pack_release,
)
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.core.completion import Completion
from nvmeof.target.storage.base import Backend
from tests.target.harness import Pending, Target, TestQueue

REGISTER, REPORT, ACQUIRE, RELEASE = 0x0D, 0x0E, 0x11, 0x15
LOG = 0x80
KEYS = [0xA0, 0xB1, 0xC2]


def hostid(number: int) -> bytes:
    return bytes([number + 1]) * 16


class Host:
    """`io`: the I/O queue of its first controller, and `admin` its admin queue."""

    def __init__(self, target: Target, number: int) -> None:
        self.target = target
        self.number = number
        self.hostid = hostid(number)
        self.admin, self.io = self.connect()

    def connect(self) -> tuple[TestQueue, TestQueue]:
        """Connect one more controller."""
        identity = {"hostnqn": f"nqn.2026-01.org.example:host{self.number}", "hostid": self.hostid}
        admin = self.target.admin(**identity)
        return admin, self.target.io(admin, **identity)

    def register(
        self,
        nrkey: int = 0,
        *,
        action: int = RegisterAction.REGISTER,
        crkey: int = 0,
        ignore: bool = False,
        cptpl: int = 0,
        **fields: int,
    ) -> Completion:
        cdw10 = action | ignore << 3 | cptpl << 30
        return self._run(REGISTER, pack_keys(crkey, nrkey), cdw10, **fields)

    def acquire(
        self,
        rtype: int,
        crkey: int,
        prkey: int = 0,
        *,
        action: int = AcquireAction.ACQUIRE,
        ignore: bool = False,
        **fields: int,
    ) -> Completion:
        return self._run(ACQUIRE, pack_keys(crkey, prkey), action | ignore << 3 | rtype << 8, **fields)

    def preempt(self, rtype: int, crkey: int, prkey: int, *, abort: bool = False) -> Completion:
        action = AcquireAction.PREEMPT_AND_ABORT if abort else AcquireAction.PREEMPT
        return self.acquire(rtype, crkey, prkey, action=action)

    def release(
        self, rtype: int, crkey: int, *, action: int = ReleaseAction.RELEASE, ignore: bool = False, **fields: int
    ) -> Completion:
        return self._run(RELEASE, pack_release(crkey), action | ignore << 3 | rtype << 8, **fields)

    def clear(self, crkey: int, **fields: int) -> Completion:
        return self.release(0, crkey, action=ReleaseAction.CLEAR, **fields)

    def start(self, opcode: int, data: bytes, cdw10: int, **fields: int) -> Completion | Pending:
        """Start a command that may not complete at once."""
        return self.io.submit(self.io.sqe(opcode, data, **{"nsid": 1, "cdw10": cdw10, **fields}), data)

    def _run(self, opcode: int, data: bytes, cdw10: int, **fields: int) -> Completion:
        return self.io.command(opcode, data, **{"nsid": 1, "cdw10": cdw10, **fields})

    def report_bytes(self, length: int, *, cdw11: int = 1, nsid: int = 1) -> Completion:
        return self.io.command(REPORT, length=length, nsid=nsid, cdw10=length // 4 - 1, cdw11=cdw11)

    def report(self, length: int = 4096) -> ReservationReport:
        return ReservationReport.decode(self.io.read_bytes(self.report_bytes(length)))

    def write(self, slba: int = 0) -> int:
        return self.io.command(0x01, bytes(512), nsid=1, cdw10=slba).status

    def read(self) -> int:
        completion = self.io.command(0x02, length=512, nsid=1)
        if completion.release is not None:
            completion.release()
        return completion.status

    def notices(self, admin: TestQueue | None = None) -> list[tuple[int, int, int, int]]:
        """Return all unread notices in their order: count, type, how many more, NSID."""
        found = []
        queue = admin or self.admin
        while True:
            page = queue.read_bytes(queue.log_page(LOG, 64))
            count, kind, more, nsid = struct.unpack("<QBBxxI48x", page)
            if not kind:
                assert not any(page)
                return found
            found.append((count, kind, more, nsid))

    async def run(self, opcode: int, data: bytes, cdw10: int, *, queue: TestQueue | None = None) -> Completion:
        """Run a command in an event loop."""
        queue = queue or self.io
        sqe = queue.sqe(opcode, data, nsid=1, cdw10=cdw10)
        try:
            spec, _ = prepare(queue.ctx, sqe)
        except CommandError as error:
            return queue.ctx.refuse(sqe, error)
        result = execute(queue.ctx, spec, sqe, memoryview(bytearray(data)))
        return await result if isinstance(result, Awaitable) else result


def reserved(rtype: int, *backends: Backend) -> list[Host]:
    """Return three hosts: the holder, another registrant, and one that is not registered."""
    target = Target(*backends)
    hosts = [Host(target, number) for number in range(3)]
    for host in hosts[:2]:
        assert host.register(KEYS[host.number]).status == 0
    assert hosts[0].acquire(rtype, KEYS[0]).status == 0
    return hosts


def kinds(host: Host, admin: TestQueue | None = None) -> list[int]:
    return [kind for _, kind, _, _ in host.notices(admin)]
