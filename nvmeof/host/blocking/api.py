"""The blocking classes of the host: the methods of the asyncio API, by the same names, which wait.

Written by tools/blocking_api.py: change the asyncio classes, then run ``make blocking``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, overload

from nvmeof.errors import NvmeofError
from nvmeof.host.admin_commands import LOG_CHUNK_BYTES
from nvmeof.host.association import HostState
from nvmeof.host.async_events import AsyncEvent
from nvmeof.host.blocking.portal import PORTAL, Blocking
from nvmeof.host.buffers import DeviceBuffer
from nvmeof.host.client import HostController as _HostController
from nvmeof.host.client import PassthruResult
from nvmeof.host.discovery import DiscoveryEntry
from nvmeof.host.facts import QueueFacts
from nvmeof.host.host_subsystem import HostSubsystem as _HostSubsystem
from nvmeof.host.host_subsystem import PathSpec
from nvmeof.host.io_port import NvmLimits
from nvmeof.host.multipath.member import Member
from nvmeof.host.namespace import CHUNK_BYTES
from nvmeof.host.namespace import Namespace as _Namespace
from nvmeof.host.options import ConnectOptions
from nvmeof.host.reservations import Reservations as _Reservations
from nvmeof.host.results import (
    AnaLog,
    ErrorLogEntry,
    IdentifyController,
    IdentifyNamespace,
    IdentifyNamespaceZns,
    LbaStatusRange,
    NvmCommandSetLimits,
    SmartLog,
)
from nvmeof.host.zones import Zone
from nvmeof.host.zones import Zones as _Zones
from nvmeof.spec.enums import NSID_ALL
from nvmeof.spec.identify import NamespaceDescriptor
from nvmeof.spec.media import LbaStatusAction
from nvmeof.spec.properties import Vs
from nvmeof.spec.reservations import ReservationReport, ReservationType
from nvmeof.spec.zns import ZoneState
from nvmeof.wire import Buffer


class Reservations(Blocking[_Reservations]):
    """Reservations of a namespace (:attr:`Namespace.reservations`): register a key, acquire, release, report.

    ::

    namespace.reservations.register(0x1234) namespace.reservations.acquire(0x1234,
    ReservationType.WRITE_EXCLUSIVE) print(namespace.reservations.report())

    A registrant is a host by its host identifier; keys are numbers of 64 bits of its choice. A conflict is an
    :class:`NvmeStatusError` with the status Reservation Conflict.
    """

    __slots__ = ()

    def register(self, key: int, *, persist: bool | None = None, ignore_existing: bool = False) -> None:
        """Register this host with ``key``. ``persist``: whether reservations outlive a power loss (None: as it is).

        ``ignore_existing``: also where the host has another key, which this one replaces.
        """
        PORTAL.run(self.wrapped.register(key, persist=persist, ignore_existing=ignore_existing))

    def replace(self, key: int, new_key: int, *, persist: bool | None = None, ignore_existing: bool = False) -> None:
        """Replace this host's ``key`` by ``new_key``."""
        PORTAL.run(self.wrapped.replace(key, new_key, persist=persist, ignore_existing=ignore_existing))

    def unregister(self, key: int, *, ignore_existing: bool = False) -> None:
        """Withdraw this host's registration, and the reservation that it holds alone."""
        PORTAL.run(self.wrapped.unregister(key, ignore_existing=ignore_existing))

    def acquire(self, key: int, rtype: ReservationType) -> None:
        """Acquire a reservation of type ``rtype``. Raises :class:`NvmeStatusError` where another host holds one."""
        PORTAL.run(self.wrapped.acquire(key, rtype))

    def preempt(self, key: int, preempted_key: int, rtype: ReservationType, *, abort: bool = False) -> None:
        """Take the registration of ``preempted_key`` away, and the reservation over where it holds it.

        ``abort``: abort the preempted host's commands, too; done when they have ended.
        """
        PORTAL.run(self.wrapped.preempt(key, preempted_key, rtype, abort=abort))

    def release(self, key: int, rtype: ReservationType) -> None:
        """Release the reservation of type ``rtype`` that this host holds."""
        PORTAL.run(self.wrapped.release(key, rtype))

    def clear(self, key: int) -> None:
        """Remove the reservation and all registrations, this host's too."""
        PORTAL.run(self.wrapped.clear(key))

    def report(self) -> ReservationReport:
        """Return the registrants, and which reservation is held by which of them, with 128-bit host identifiers."""
        return PORTAL.run(self.wrapped.report())


class Zones(Blocking[_Zones]):
    """Zones of a namespace (:attr:`Namespace.zones`): report, manage and append to the zones of a zoned namespace.

    ::

    first, *others = namespace.zones.report() lba = namespace.zones.append(first.start, bytes(4096)) await
    namespace.zones.finish(first.start)

    Zones are named by their first block. A namespace without zones refuses these commands.
    """

    __slots__ = ()

    def info(self) -> IdentifyNamespaceZns:
        """Identify Namespace of the Zoned Namespace Command Set (CNS 05h), decoded."""
        return PORTAL.run(self.wrapped.info())

    def report(
        self, lba: int = 0, *, state: ZoneState | None = None, extended: bool = False, limit: int | None = None
    ) -> list[Zone]:
        """Return the zones from the one that holds block ``lba`` on, at most ``limit``; with ``state`` those in it.

        ``extended``: with their descriptor extensions. The report of many zones takes several commands, between which
        their states may change.
        """
        return PORTAL.run(self.wrapped.report(lba, state=state, extended=extended, limit=limit))

    def open(self, lba: int | None = None) -> None:
        """Open the zone explicitly; None: all that are closed."""
        PORTAL.run(self.wrapped.open(lba))

    def close(self, lba: int | None = None) -> None:
        """Close the zone; None: all that are open."""
        PORTAL.run(self.wrapped.close(lba))

    def finish(self, lba: int | None = None) -> None:
        """Make the zone full; None: all that are open or closed."""
        PORTAL.run(self.wrapped.finish(lba))

    def reset(self, lba: int | None = None) -> None:
        """Make the zone empty: its data is gone; None: all zones."""
        PORTAL.run(self.wrapped.reset(lba))

    def offline(self, lba: int | None = None) -> None:
        """Take the read-only zone offline; None: all that are read only."""
        PORTAL.run(self.wrapped.offline(lba))

    def set_extension(self, lba: int, data: Buffer) -> None:
        """Give an empty zone its descriptor extension, which closes it. ``data`` has ``zdes`` times 64 bytes."""
        PORTAL.run(self.wrapped.set_extension(lba, data))

    def append(self, lba: int, data: Buffer, *, fua: bool = False) -> int:
        """Append ``data``, a whole number of blocks, to the zone that begins at ``lba``; return where it went.

        It is one command, up to ZASL of the controller. It is not sent again when a connection is lost: whether it took
        place, and where, is not known then.
        """
        return PORTAL.run(self.wrapped.append(lba, data, fua=fua))

    def changed(self) -> list[int] | None:
        """Return the first blocks of the zones that changed by themselves since the last call (log page BFh).

        None: too many to list; read a whole :meth:`report`.
        """
        return PORTAL.run(self.wrapped.changed())


class Namespace(Blocking[_Namespace]):
    """One namespace of a subsystem. Block addresses and counts are in logical blocks of ``block_bytes``.

    ::

        namespace = controller.namespace(1)
        namespace.write(0, bytes(4096))
        data = namespace.read(0, 4096 // namespace.block_bytes)

    The operations raise :class:`NvmeStatusError` for a command that fails, :class:`ConnectionLost` when the connection
    has gone, :class:`LocalProtocolError` for what is no range of whole blocks.
    """

    __slots__ = ()

    @property
    def nsid(self) -> int:
        """As :attr:`nvmeof.host.namespace.Namespace.nsid`."""
        return self.wrapped.nsid

    @property
    def reservations(self) -> Reservations:
        """As :attr:`nvmeof.host.namespace.Namespace.reservations`."""
        return Reservations(self.wrapped.reservations)

    @property
    def zones(self) -> Zones:
        """As :attr:`nvmeof.host.namespace.Namespace.zones`."""
        return Zones(self.wrapped.zones)

    @property
    def info(self) -> IdentifyNamespace:
        """Identify Namespace as last read. Raises LocalProtocolError before the namespace was identified."""
        return self.wrapped.info

    @property
    def block_bytes(self) -> int:
        """Size of a logical block in bytes. Raises LocalProtocolError before the namespace was identified."""
        return self.wrapped.block_bytes

    @property
    def size_blocks(self) -> int:
        """NSZE: the namespace's size in logical blocks. Raises LocalProtocolError as :attr:`info` does."""
        return self.wrapped.size_blocks

    @property
    def size_bytes(self) -> int:
        """NSZE in bytes. Raises LocalProtocolError as :attr:`info` does."""
        return self.wrapped.size_bytes

    def refresh(self) -> IdentifyNamespace:
        """Identify the namespace (again); the decoded structure.

        Raises NvmeStatusError when it is not active, NvmeofError for a block format that this host has not.
        """
        return PORTAL.run(self.wrapped.refresh())

    def limits_changed(self) -> None:
        """Take over what the port's commands may transfer: it changes when a path to the subsystem comes or goes."""
        PORTAL.run_function(self.wrapped.limits_changed)

    def read(self, lba: int, blocks: int = 1) -> bytes:
        """Read ``blocks`` logical blocks from ``lba`` on. :meth:`read_into` needs no copy: use it for much data."""
        return PORTAL.run(self.wrapped.read(lba, blocks))

    def read_into(self, lba: int, destination: memoryview | bytearray) -> None:
        """Fill ``destination``, a whole number of blocks, from ``lba`` on.

        The buffer belongs to the transfer until this returns. After a cancellation, which is raised at once, it is the
        caller's own again, with some of the data or none.
        """
        PORTAL.run(self.wrapped.read_into(lba, destination))

    def write(self, lba: int, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data``, a whole number of blocks, from ``lba`` on; ``fua``: it is on the medium on return.

        A writable buffer must not change until this returns. After a cancellation, which is raised at once, it is the
        caller's own again; whether the data is written then is not known.
        """
        PORTAL.run(self.wrapped.write(lba, data, fua=fua))

    def read_many(
        self, lbas: Sequence[int], blocks: int = 1, *, into: memoryview | bytearray | Sequence[Buffer] | None = None
    ) -> memoryview:
        """Read ``blocks`` logical blocks from each of ``lbas`` on, as one operation: the cheapest form of many Reads.

        Returns one view of all data in the order of ``lbas``; each piece has ``blocks * block_bytes`` bytes. ``into``:
        a writable buffer for all of it (which is returned as a view), or a list of buffers, one for each of ``lbas``
        (the view returned is empty then). The buffers belong to the operation until this returns. After the first
        error no further command is sent, and it is raised when the others have ended.
        """
        return PORTAL.run(self.wrapped.read_many(lbas, blocks, into=into))

    def write_many(
        self, lbas: Sequence[int], data: Buffer | Sequence[Buffer], blocks: int = 1, *, fua: bool = False
    ) -> None:
        """Write ``blocks`` logical blocks from each of ``lbas`` on, as one operation.

        ``data``: one buffer with the data of all in the order of ``lbas``, or a list with one buffer for each. ``data``
        must not change during the call. An error ends the call as with :meth:`write` and :meth:`read_many`. The order
        in which the writes take place is not defined, also where they overlap.
        """
        PORTAL.run(self.wrapped.write_many(lbas, data, blocks, fua=fua))

    def readv(self, lba: int, buffers: Sequence[Buffer]) -> None:
        """Fill the writable ``buffers`` one after the other from ``lba`` on; together they are whole blocks.

        A buffer that begins and ends between two blocks needs no copy of its data.
        """
        PORTAL.run(self.wrapped.readv(lba, buffers))

    def writev(self, lba: int, buffers: Sequence[Buffer], *, fua: bool = False) -> None:
        """Write the ``buffers`` one after the other from ``lba`` on; together they are whole blocks.

        A buffer that begins and ends between two blocks needs no copy of its data.
        """
        PORTAL.run(self.wrapped.writev(lba, buffers, fua=fua))

    def flush(self) -> None:
        """Bring all completed writes to the medium."""
        PORTAL.run(self.wrapped.flush())

    def write_zeroes(self, lba: int, blocks: int, *, deallocate: bool = False) -> None:
        """Zero ``blocks`` blocks from ``lba`` on; ``deallocate``: give the storage back where that reads as zeroes."""
        PORTAL.run(self.wrapped.write_zeroes(lba, blocks, deallocate=deallocate))

    def write_uncorrectable(self, lba: int, blocks: int) -> None:
        """Make ``blocks`` blocks from ``lba`` on unreadable, until they are written again."""
        PORTAL.run(self.wrapped.write_uncorrectable(lba, blocks))

    def verify(self, lba: int, blocks: int) -> None:
        """Have the controller read ``blocks`` blocks from ``lba`` on. Raises NvmeStatusError where it cannot."""
        PORTAL.run(self.wrapped.verify(lba, blocks))

    def compare(self, lba: int, data: Buffer) -> bool:
        """Return whether the blocks from ``lba`` on hold ``data``, whole blocks: the controller compares them."""
        return PORTAL.run(self.wrapped.compare(lba, data))

    def compare_and_write(self, lba: int, expected: Buffer, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data`` from ``lba`` on if the blocks there hold ``expected``, as one operation (fused Compare and
        Write): no other command comes between.

        Both have the same whole number of blocks, what one command takes at most. Up to the controller's atomic size
        (ACWU, NACWU) other hosts see all of it or nothing. Raises :class:`CompareFailed` where the blocks hold other
        data: nothing is written then. It is never sent again once it may have been executed:
        :class:`OutcomeUnknown` says so, and reading the blocks tells what has become of it. Raises
        :class:`NvmeofError` for a controller that has no such operation.
        """
        PORTAL.run(self.wrapped.compare_and_write(lba, expected, data, fua=fua))

    def copy(
        self, lba: int, sources: Iterable[tuple[int, int]], *, from_nsid: int | None = None, fua: bool = False
    ) -> None:
        """Have the controller copy the ``(lba, blocks)`` of ``sources``, one behind the other, to ``lba`` and on.

        ``from_nsid``: out of that namespace of the subsystem; descriptor format 2h has to be enabled before (Host
        Behavior Support). What exceeds the namespace's limits takes several commands, one after the other: after an
        error some of them have been done.
        """
        PORTAL.run(self.wrapped.copy(lba, sources, from_nsid=from_nsid, fua=fua))

    def deallocate(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Deallocate the ``(lba, blocks)`` ranges: their content is no longer needed (Dataset Management)."""
        PORTAL.run(self.wrapped.deallocate(ranges))

    def dataset_management(
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        deallocate: bool = False,
        integral_read: bool = False,
        integral_write: bool = False,
    ) -> None:
        """Tell the controller how the ``(lba, blocks)`` ranges will be used: not at all, read as a whole, or written as
        a whole.
        """
        PORTAL.run(
            self.wrapped.dataset_management(
                ranges, deallocate=deallocate, integral_read=integral_read, integral_write=integral_write
            )
        )

    def lba_status(
        self, lba: int = 0, blocks: int | None = None, *, action: LbaStatusAction = LbaStatusAction.TRACKED
    ) -> list[LbaStatusRange]:
        """Return the blocks of a range (None: to the end) that may not be readable, by Get LBA Status.

        ``action``: those that the controller knows of already, or what it finds when it reads all of them now (SCAN).
        """
        return PORTAL.run(self.wrapped.lba_status(lba, blocks, action=action))

    def chunks(
        self, lba: int = 0, blocks: int | None = None, *, chunk_bytes: int = CHUNK_BYTES, read_ahead: int = 2
    ) -> Generator[bytearray, None, None]:
        """Read a large range (None: to the end of the namespace) piece by piece.

        ::

            for chunk in namespace.chunks():
                digest.update(chunk)

        Each piece has ``chunk_bytes``, rounded down to whole blocks, the last one perhaps less, and is the caller's
        own. The next ``read_ahead`` pieces are read while one is looked at. Leave the loop through
        ``contextlib.closing`` to stop what is read ahead at once. Raises as :meth:`read_into` does.
        """
        return PORTAL.iterate(self.wrapped.chunks(lba, blocks, chunk_bytes=chunk_bytes, read_ahead=read_ahead))

    def split(self, lba: int, blocks: int) -> Iterator[tuple[int, int]]:
        """Yield stretches ``(lba, blocks)`` that one command each may transfer.

        None is longer than MDTS, the device and NLB allow, or crosses the namespace's optimal I/O boundary (NOIOB).
        """
        return iter(PORTAL.run_function(self.wrapped.split, lba, blocks))


class HostController(Blocking[_HostController]):
    """A connected controller, for blocking programs: the result of :func:`connect`. It ends with its ``with``
    block. Namespaces and raw commands are methods of this class; those of :class:`AdminCommands` (identify, log pages,
    features) are its methods too. This class adds MPTCP paths to both bases.

    The commands raise :class:`NvmeStatusError` when they complete with another status than success,
    :class:`ConnectionLost` when a queue died.
    """

    __slots__ = ()

    @property
    def options(self) -> ConnectOptions:
        """As :attr:`nvmeof.host.client.HostController.options`."""
        return self.wrapped.options

    @property
    def subnqn(self) -> str:
        """As :attr:`nvmeof.host.client.HostController.subnqn`."""
        return self.wrapped.subnqn

    @property
    def version(self) -> Vs:
        """As :attr:`nvmeof.host.client.HostController.version`."""
        return self.wrapped.version

    @property
    def max_transfer_bytes(self) -> int:
        """As :attr:`nvmeof.host.client.HostController.max_transfer_bytes`."""
        return self.wrapped.max_transfer_bytes

    def disconnect(self) -> None:
        """Shut the controller down in order and close all connections. Safe to call twice."""
        PORTAL.run(self.wrapped.disconnect())

    def take_buffer(self, size_bytes: int) -> DeviceBuffer:
        """Take memory for reads and writes: what the queue device needs no copy for. Release it after use.

        With ``transport="tcp_offload"`` it is memory of the device, else that of this program. Raises
        ConfigurationError for a size that the device cannot have, LocalProtocolError when its memory is used up.
        """
        return PORTAL.run_function(self.wrapped.take_buffer, size_bytes)

    def namespaces(self) -> list[Namespace]:
        """Return the active namespaces, identified; one that is deleted during the call is left out."""
        return [Namespace(each) for each in PORTAL.run(self.wrapped.namespaces())]

    def discovery_log(self) -> list[DiscoveryEntry]:
        """Return the Discovery log page of a discovery controller."""
        return PORTAL.run(self.wrapped.discovery_log())

    def admin_passthru(
        self, opcode: int, *, nsid: int = 0, data: Buffer | None = None, data_bytes: int = 0, **dwords: int
    ) -> PassthruResult:
        """Execute a raw admin command; ``dwords``: cdw2, cdw3, cdw10 to cdw15, flags. See :meth:`io_passthru`."""
        return PORTAL.run(self.wrapped.admin_passthru(opcode, nsid=nsid, data=data, data_bytes=data_bytes, **dwords))

    def io_passthru(
        self, opcode: int, *, nsid: int = 0, data: Buffer | None = None, data_bytes: int = 0, **dwords: int
    ) -> PassthruResult:
        """Execute a raw I/O command. ``data`` is sent; ``data_bytes`` are received. Bits 1:0 of the opcode say which it
        takes.

        Raises :class:`ConfigurationError` where these disagree, and for more data than the queue device transfers.
        """
        return PORTAL.run(self.wrapped.io_passthru(opcode, nsid=nsid, data=data, data_bytes=data_bytes, **dwords))

    def property_get(self, offset: int, size: int = 4) -> int:
        """Return a controller property of 4 or 8 bytes."""
        return PORTAL.run(self.wrapped.property_get(offset, size))

    def property_set(self, offset: int, value: int, size: int = 4) -> None:
        """Set a controller property of 4 or 8 bytes."""
        PORTAL.run(self.wrapped.property_set(offset, value, size))

    def identify_raw(self, cns: int, nsid: int = 0, cntid: int = 0, csi: int = 0) -> bytes:
        """Return any Identify data structure: 4,096 bytes."""
        return PORTAL.run(self.wrapped.identify_raw(cns, nsid, cntid, csi))

    def identify(self) -> IdentifyController:
        """Identify Controller (CNS 01h), decoded: ``info.mn``, or ``info["mn"]``, is the model number."""
        return PORTAL.run(self.wrapped.identify())

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace (CNS 00h), decoded. All zero for a namespace that is not active."""
        return PORTAL.run(self.wrapped.identify_namespace(nsid))

    def active_namespaces(self) -> list[int]:
        """Return the NSIDs of the active namespaces, ascending (CNS 02h, as many lists as it takes)."""
        return PORTAL.run(self.wrapped.active_namespaces())

    def namespace_descriptors(self, nsid: int) -> list[NamespaceDescriptor]:
        """Return the identifiers of a namespace (CNS 03h): EUI64, NGUID, UUID, command set."""
        return PORTAL.run(self.wrapped.namespace_descriptors(nsid))

    def identify_nvm_limits(self) -> NvmCommandSetLimits:
        """Return the limits of the NVM command set (CNS 06h), decoded: VSL, WZSL, DMRL and so on."""
        return PORTAL.run(self.wrapped.identify_nvm_limits())

    def get_log(
        self,
        page: int,
        length_bytes: int,
        offset: int = 0,
        *,
        nsid: int = NSID_ALL,
        lsp: int = 0,
        lsi: int = 0,
        csi: int = 0,
        rae: bool = False,
        chunk_bytes: int = LOG_CHUNK_BYTES,
    ) -> bytes:
        """Return ``length_bytes`` of a log page from byte ``offset`` (both multiples of 4), in pieces of
        ``chunk_bytes``.

        ``lsp``, ``lsi``: the log specific parameter and identifier; ``csi``: the command set. ``rae`` retains the
        asynchronous event that the page belongs to; a page that takes several pieces retains it until the last.
        """
        return PORTAL.run(
            self.wrapped.get_log(
                page, length_bytes, offset, nsid=nsid, lsp=lsp, lsi=lsi, csi=csi, rae=rae, chunk_bytes=chunk_bytes
            )
        )

    def smart_log(self, nsid: int = NSID_ALL) -> SmartLog:
        """Return the SMART / Health Information log page, decoded: ``log.composite_temperature`` in kelvin, and so
        on.
        """
        return PORTAL.run(self.wrapped.smart_log(nsid))

    def error_log(self, entries: int = 1) -> list[ErrorLogEntry]:
        """Return the newest ``entries`` of the Error Information log page, decoded; entries never used are left out."""
        return PORTAL.run(self.wrapped.error_log(entries))

    def ana_log(self) -> AnaLog:
        """Return the ANA log page: the state of each group on this path, all of one change count. Raises
        :class:`NvmeofError` for a controller without ANA, for an invalid log, or when its change count keeps changing.
        """
        return PORTAL.run(self.wrapped.ana_log())

    @overload
    def get_feature(self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0) -> int: ...

    @overload
    def get_feature(
        self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0, data_bytes: int
    ) -> tuple[int, bytes]: ...

    def get_feature(
        self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0, data_bytes: int = 0
    ) -> int | tuple[int, bytes]:
        """Return a feature's value, DW0; with ``data_bytes`` a pair of DW0 and the feature's data."""
        return PORTAL.run(self.wrapped.get_feature(fid, select, nsid=nsid, cdw11=cdw11, data_bytes=data_bytes))

    def set_feature(
        self, fid: int, value: int, *, save: bool = False, nsid: int = 0, cdw12: int = 0, data: Buffer | None = None
    ) -> int:
        """Set a feature (``value`` is CDW11); DW0 of the completion."""
        return PORTAL.run(self.wrapped.set_feature(fid, value, save=save, nsid=nsid, cdw12=cdw12, data=data))

    def set_number_of_queues(self, queues: int) -> int:
        """Ask for ``queues`` I/O queue pairs; how many there may be."""
        return PORTAL.run(self.wrapped.set_number_of_queues(queues))

    @property
    def state(self) -> HostState:
        """Where the association is."""
        return self.wrapped.state

    @property
    def error(self) -> NvmeofError | None:
        """Why the association ended; None while it has not."""
        return self.wrapped.error

    @property
    def cntlid(self) -> int:
        """The controller identifier that Connect gave."""
        return self.wrapped.cntlid

    @property
    def info(self) -> IdentifyController:
        """Identify Controller as read when connecting. Raises LocalProtocolError before."""
        return self.wrapped.info

    @property
    def identified(self) -> IdentifyController | None:
        """Identify Controller, None where the association ended before it was read."""
        return self.wrapped.identified

    def namespace(self, nsid: int) -> Namespace:
        """Return the namespace ``nsid``, to read and write it. Its own methods identify it when that is first needed.

        What of it is known without that (``size_bytes``) needs ``namespace.refresh()`` before; those that
        :meth:`HostController.namespaces` lists are identified. Raises LocalProtocolError for an invalid NSID.
        """
        return Namespace(PORTAL.run_function(self.wrapped.namespace, nsid))

    def io_fused(self, halves: tuple[bytes, bytes], compare: Buffer, write: Buffer, *, hold: bool = True) -> None:
        """Send the halves of a fused operation on the next queue."""
        PORTAL.run(self.wrapped.io_fused(halves, compare, write, hold=hold))

    @property
    def is_discovery(self) -> bool:
        """A discovery controller: no I/O queues."""
        return self.wrapped.is_discovery

    def authenticate(self) -> None:
        """Authenticate all queues again, with I/O going on: as writing ``dhchap_secret`` does in Linux.

        Raises :class:`AuthenticationError`; the controller ends the connection then.
        """
        PORTAL.run(self.wrapped.authenticate())

    def nvm_limits(self) -> NvmLimits:
        """Return the limits of commands without data (Identify CNS 06h); read once, when first needed."""
        return PORTAL.run(self.wrapped.nvm_limits())

    def abandon(self, error: NvmeofError) -> None:
        """Close all queues at once, without a word to the controller, and release the device. Safe to call again."""
        PORTAL.run(self.wrapped.abandon(error))

    def disable(self) -> bool:
        """End the association by a controller reset, as Linux does before it reconnects.

        The I/O queues are closed first, so that outstanding commands fail at once; then CC.EN is cleared, and the
        connection of the admin queue is closed when CSTS.RDY is 0 or CAP.TO has passed. Return whether the controller
        confirmed it: then it executes no further command of this association, and ``quiesced`` is set. Never raises for
        errors of the controller; safe to call after a loss.
        """
        return PORTAL.run(self.wrapped.disable())

    @property
    def events(self) -> Generator[AsyncEvent, None, None]:
        """The events of the controller from now on, one after the other; ends when it is disconnected."""
        return PORTAL.iterate(PORTAL.run_function(aiter, self.wrapped.events))

    def describe(self) -> list[QueueFacts]:
        """Return one mapping per queue, the admin queue first: ``qid``, entries, load, and what the device says now."""
        return PORTAL.run_function(self.wrapped.describe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()


class HostSubsystem(Blocking[_HostSubsystem]):
    """A subsystem over several paths, for blocking programs: what :func:`connect_multipath` gives.

    Ends with its ``with`` block. Namespaces are used as those of a controller. The admin commands (identify, log
    pages, features) are its methods too, and go over any path that is live; ``member.controller`` has those of one
    path. ``core`` is the subsystem without an event loop.
    """

    __slots__ = ()

    @property
    def subnqn(self) -> str:
        """NQN of the subsystem."""
        return self.wrapped.subnqn

    @property
    def paths(self) -> list[Member]:
        """The paths, in the order in which they were added."""
        return self.wrapped.paths

    @property
    def iopolicy(self) -> str:
        """The I/O policy: numa, round-robin, queue-depth or service-time. Setting it takes effect at once."""
        return self.wrapped.iopolicy

    @iopolicy.setter
    def iopolicy(self, name: str) -> None:
        PORTAL.run_function(setattr, self.wrapped, "iopolicy", name)

    def add_path(self, where: PathSpec) -> Member:
        """Connect one more path, and use it. Raises as :func:`connect_multipath` does; I/O is not disturbed then."""
        return PORTAL.run(self.wrapped.add_path(where))

    def remove_path(self, member: Member) -> None:
        """Remove a path: let its commands end, and shut its controller down. Raises ConfigurationError."""
        PORTAL.run(self.wrapped.remove_path(member))

    def path(self, traddr: str, trsvcid: int | None = None) -> Member:
        """Return the path to an address. Raises ConfigurationError where there is none, or several and no
        ``trsvcid``.
        """
        return PORTAL.run_function(self.wrapped.path, traddr, trsvcid)

    def namespace(self, nsid: int, path: Member | None = None) -> Namespace:
        """Return the namespace ``nsid``, over all of its paths; ``path``: that of a private namespace, or the only one
        to use.

        Raises :class:`NvmeStatusError` where there is none, ConfigurationError where there are several.
        """
        return Namespace(PORTAL.run_function(self.wrapped.namespace, nsid, path))

    def namespaces(self) -> list[Namespace]:
        """Return all namespaces, identified; one that is deleted during the call is left out."""
        return [Namespace(each) for each in PORTAL.run(self.wrapped.namespaces())]

    def disconnect(self) -> None:
        """Shut all controllers down in order and close all connections. Safe to call twice."""
        PORTAL.run(self.wrapped.disconnect())

    def property_get(self, offset: int, size: int = 4) -> int:
        """Return a controller property of 4 or 8 bytes."""
        return PORTAL.run(self.wrapped.property_get(offset, size))

    def property_set(self, offset: int, value: int, size: int = 4) -> None:
        """Set a controller property of 4 or 8 bytes."""
        PORTAL.run(self.wrapped.property_set(offset, value, size))

    def identify_raw(self, cns: int, nsid: int = 0, cntid: int = 0, csi: int = 0) -> bytes:
        """Return any Identify data structure: 4,096 bytes."""
        return PORTAL.run(self.wrapped.identify_raw(cns, nsid, cntid, csi))

    def identify(self) -> IdentifyController:
        """Identify Controller (CNS 01h), decoded: ``info.mn``, or ``info["mn"]``, is the model number."""
        return PORTAL.run(self.wrapped.identify())

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace (CNS 00h), decoded. All zero for a namespace that is not active."""
        return PORTAL.run(self.wrapped.identify_namespace(nsid))

    def active_namespaces(self) -> list[int]:
        """Return the NSIDs of the active namespaces, ascending (CNS 02h, as many lists as it takes)."""
        return PORTAL.run(self.wrapped.active_namespaces())

    def namespace_descriptors(self, nsid: int) -> list[NamespaceDescriptor]:
        """Return the identifiers of a namespace (CNS 03h): EUI64, NGUID, UUID, command set."""
        return PORTAL.run(self.wrapped.namespace_descriptors(nsid))

    def identify_nvm_limits(self) -> NvmCommandSetLimits:
        """Return the limits of the NVM command set (CNS 06h), decoded: VSL, WZSL, DMRL and so on."""
        return PORTAL.run(self.wrapped.identify_nvm_limits())

    def get_log(
        self,
        page: int,
        length_bytes: int,
        offset: int = 0,
        *,
        nsid: int = NSID_ALL,
        lsp: int = 0,
        lsi: int = 0,
        csi: int = 0,
        rae: bool = False,
        chunk_bytes: int = LOG_CHUNK_BYTES,
    ) -> bytes:
        """Return ``length_bytes`` of a log page from byte ``offset`` (both multiples of 4), in pieces of
        ``chunk_bytes``.

        ``lsp``, ``lsi``: the log specific parameter and identifier; ``csi``: the command set. ``rae`` retains the
        asynchronous event that the page belongs to; a page that takes several pieces retains it until the last.
        """
        return PORTAL.run(
            self.wrapped.get_log(
                page, length_bytes, offset, nsid=nsid, lsp=lsp, lsi=lsi, csi=csi, rae=rae, chunk_bytes=chunk_bytes
            )
        )

    def smart_log(self, nsid: int = NSID_ALL) -> SmartLog:
        """Return the SMART / Health Information log page, decoded: ``log.composite_temperature`` in kelvin, and so
        on.
        """
        return PORTAL.run(self.wrapped.smart_log(nsid))

    def error_log(self, entries: int = 1) -> list[ErrorLogEntry]:
        """Return the newest ``entries`` of the Error Information log page, decoded; entries never used are left out."""
        return PORTAL.run(self.wrapped.error_log(entries))

    def ana_log(self) -> AnaLog:
        """Return the ANA log page: the state of each group on this path, all of one change count. Raises
        :class:`NvmeofError` for a controller without ANA, for an invalid log, or when its change count keeps changing.
        """
        return PORTAL.run(self.wrapped.ana_log())

    @overload
    def get_feature(self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0) -> int: ...

    @overload
    def get_feature(
        self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0, data_bytes: int
    ) -> tuple[int, bytes]: ...

    def get_feature(
        self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0, data_bytes: int = 0
    ) -> int | tuple[int, bytes]:
        """Return a feature's value, DW0; with ``data_bytes`` a pair of DW0 and the feature's data."""
        return PORTAL.run(self.wrapped.get_feature(fid, select, nsid=nsid, cdw11=cdw11, data_bytes=data_bytes))

    def set_feature(
        self, fid: int, value: int, *, save: bool = False, nsid: int = 0, cdw12: int = 0, data: Buffer | None = None
    ) -> int:
        """Set a feature (``value`` is CDW11); DW0 of the completion."""
        return PORTAL.run(self.wrapped.set_feature(fid, value, save=save, nsid=nsid, cdw12=cdw12, data=data))

    def set_number_of_queues(self, queues: int) -> int:
        """Ask for ``queues`` I/O queue pairs; how many there may be."""
        return PORTAL.run(self.wrapped.set_number_of_queues(queues))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()
