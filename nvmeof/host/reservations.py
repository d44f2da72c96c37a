"""Reservations of a namespace, as its host asks for them (NVM Express Base specification, Reservations)."""

from __future__ import annotations

from nvmeof.host import sqe_builders
from nvmeof.host.io_port import IoPort
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.reservations import (
    REGISTRANT_EXTENDED_BYTES,
    REPORT_EXTENDED_HEADER_BYTES,
    AcquireAction,
    Cptpl,
    RegisterAction,
    ReleaseAction,
    ReservationCommand,
    ReservationReport,
    ReservationType,
    pack_keys,
    pack_release,
)

REPORT_REGISTRANTS = 62
"""Registrants that the first report has room for: 4 KiB."""


class Reservations:
    """Reservations of a namespace (:attr:`Namespace.reservations`): register a key, acquire, release, report.

    ::

    await namespace.reservations.register(0x1234) await namespace.reservations.acquire(0x1234,
    ReservationType.WRITE_EXCLUSIVE) print(await namespace.reservations.report())

    A registrant is a host by its host identifier; keys are numbers of 64 bits of its choice. A conflict is an
    :class:`NvmeStatusError` with the status Reservation Conflict.
    """

    def __init__(self, port: IoPort, nsid: int) -> None:
        self._port = port
        self._nsid = nsid

    async def register(self, key: int, *, persist: bool | None = None, ignore_existing: bool = False) -> None:
        """Register this host with ``key``. ``persist``: whether reservations outlive a power loss (None: as it is).

        ``ignore_existing``: also where the host has another key, which this one replaces.
        """
        await self._register(RegisterAction.REGISTER, 0, key, persist, ignore_existing)

    async def replace(
        self, key: int, new_key: int, *, persist: bool | None = None, ignore_existing: bool = False
    ) -> None:
        """Replace this host's ``key`` by ``new_key``."""
        await self._register(RegisterAction.REPLACE, key, new_key, persist, ignore_existing)

    async def unregister(self, key: int, *, ignore_existing: bool = False) -> None:
        """Withdraw this host's registration, and the reservation that it holds alone."""
        await self._register(RegisterAction.UNREGISTER, key, 0, None, ignore_existing)

    async def _register(
        self, action: RegisterAction, key: int, new_key: int, persist: bool | None, ignore_existing: bool
    ) -> None:
        cptpl = Cptpl.NO_CHANGE if persist is None else Cptpl.SET if persist else Cptpl.CLEAR
        command = ReservationCommand(action=action, ignore_existing_key=ignore_existing, cptpl=cptpl)
        await self._send(NvmOpcode.RESERVATION_REGISTER, command, pack_keys(key, new_key))

    async def acquire(self, key: int, rtype: ReservationType) -> None:
        """Acquire a reservation of type ``rtype``. Raises :class:`NvmeStatusError` where another host holds one."""
        await self._acquire(AcquireAction.ACQUIRE, key, 0, rtype)

    async def preempt(self, key: int, preempted_key: int, rtype: ReservationType, *, abort: bool = False) -> None:
        """Take the registration of ``preempted_key`` away, and the reservation over where it holds it.

        ``abort``: abort the preempted host's commands, too; done when they have ended.
        """
        action = AcquireAction.PREEMPT_AND_ABORT if abort else AcquireAction.PREEMPT
        await self._acquire(action, key, preempted_key, rtype)

    async def _acquire(self, action: AcquireAction, key: int, preempted_key: int, rtype: ReservationType) -> None:
        command = ReservationCommand(action=action, rtype=rtype)
        await self._send(NvmOpcode.RESERVATION_ACQUIRE, command, pack_keys(key, preempted_key))

    async def release(self, key: int, rtype: ReservationType) -> None:
        """Release the reservation of type ``rtype`` that this host holds."""
        command = ReservationCommand(action=ReleaseAction.RELEASE, rtype=rtype)
        await self._send(NvmOpcode.RESERVATION_RELEASE, command, pack_release(key))

    async def clear(self, key: int) -> None:
        """Remove the reservation and all registrations, this host's too."""
        command = ReservationCommand(action=ReleaseAction.CLEAR)
        await self._send(NvmOpcode.RESERVATION_RELEASE, command, pack_release(key))

    async def report(self) -> ReservationReport:
        """Return the registrants, and which reservation is held by which of them, with 128-bit host identifiers."""
        room = REPORT_REGISTRANTS
        while True:
            data = bytearray(REPORT_EXTENDED_HEADER_BYTES + room * REGISTRANT_EXTENDED_BYTES)
            sqe = sqe_builders.reservation_report(self._nsid, len(data))
            await self._port.io(sqe, data_in=memoryview(data))
            report = ReservationReport.decode(data)
            if report.count <= room:
                return report
            room = report.count

    async def _send(self, opcode: NvmOpcode, command: ReservationCommand, data: bytes) -> None:
        await self._port.io(sqe_builders.reservation(opcode, self._nsid, command.encode()), data_out=data)
