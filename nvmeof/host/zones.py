"""Zones of a namespace, as its host sees and manages them (Zoned Namespace Command Set specification)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nvmeof.errors import LocalProtocolError, NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.buffers import plain_view
from nvmeof.host.io_port import IoPort
from nvmeof.host.results import IdentifyNamespace, IdentifyNamespaceZns, LbaFormatExtension
from nvmeof.spec.enums import IDENTIFY_BYTES, Cns, Csi, LogPageId
from nvmeof.spec.identify_namespace import format_index
from nvmeof.spec.zns import (
    CHANGED_ZONES_BYTES,
    EXTENSION_UNIT_BYTES,
    NO_WRITE_POINTER,
    REPORTED_STATES,
    ZONE_DESCRIPTOR_BYTES,
    ZONE_REPORT_HEADER_BYTES,
    ZoneAttributes,
    ZoneReceiveAction,
    ZoneSendAction,
    ZoneState,
    parse_changed_zones,
    parse_zone_report,
)
from nvmeof.wire import Buffer

REPORT_BYTES = 64 * 1024
"""One piece of a report, where the controller's MDTS does not ask for less."""


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone of a report. ``start``, ``capacity``, ``write_pointer``: logical blocks.

    ``write_pointer`` is None in a state without one (full, read only, offline). ``extension``: the descriptor
    extension, where it was asked for and the zone has a valid one.
    """

    start: int
    capacity: int
    write_pointer: int | None
    state: ZoneState
    attributes: ZoneAttributes
    extension: bytes = b""


class Zones:
    """Zones of a namespace (:attr:`Namespace.zones`): report, manage and append to the zones of a zoned namespace.

    ::

    first, *others = await namespace.zones.report() lba = await namespace.zones.append(first.start, bytes(4096)) await
    namespace.zones.finish(first.start)

    Zones are named by their first block. A namespace without zones refuses these commands.
    """

    def __init__(self, port: IoPort, nsid: int, identified: Callable[[], Awaitable[IdentifyNamespace]]) -> None:
        self._port = port
        self._nsid = nsid
        self._identified = identified
        self._format: LbaFormatExtension | None = None

    async def info(self) -> IdentifyNamespaceZns:
        """Identify Namespace of the Zoned Namespace Command Set (CNS 05h), decoded."""
        data = bytearray(IDENTIFY_BYTES)
        sqe = sqe_builders.identify(Cns.CSI_NAMESPACE, self._nsid, csi=Csi.ZONED)
        await self._port.execute_admin(sqe, data_in=memoryview(data))
        return IdentifyNamespaceZns.parse(data)

    async def _zone_format(self) -> LbaFormatExtension:
        if self._format is None:
            namespace = await self._identified()
            chosen = (await self.info()).lbafe[format_index(namespace.flbas)]
            if not chosen.zsze:
                raise NvmeofError(f"namespace {self._nsid} claims zones of 0 blocks")
            self._format = chosen
        return self._format

    async def report(
        self, lba: int = 0, *, state: ZoneState | None = None, extended: bool = False, limit: int | None = None
    ) -> list[Zone]:
        """Return the zones from the one that holds block ``lba`` on, at most ``limit``; with ``state`` those in it.

        ``extended``: with their descriptor extensions. The report of many zones takes several commands, between which
        their states may change.
        """
        form = await self._zone_format()
        which = next(number for number, each in REPORTED_STATES.items() if each == state)
        extension = form.zdes * EXTENSION_UNIT_BYTES if extended else 0
        stride = ZONE_DESCRIPTOR_BYTES + extension
        action = ZoneReceiveAction.EXTENDED_REPORT if extended else ZoneReceiveAction.REPORT
        most = (min(REPORT_BYTES, self._port.max_transfer_bytes) - ZONE_REPORT_HEADER_BYTES) // stride
        found: list[Zone] = []
        end = (await self._identified()).nsze
        while lba < end and (limit is None or len(found) < limit):
            wanted = most if limit is None else min(most, limit - len(found))
            data = bytearray(ZONE_REPORT_HEADER_BYTES + wanted * stride)
            sqe = sqe_builders.zone_receive(self._nsid, lba, len(data), action, which, partial=True)
            await self._port.io(sqe, data_in=memoryview(data))
            _, descriptors = parse_zone_report(data, extension)
            for index, each in enumerate(descriptors):
                at = ZONE_REPORT_HEADER_BYTES + index * stride + ZONE_DESCRIPTOR_BYTES
                valid = each.za & ZoneAttributes.EXTENSION_VALID
                found.append(
                    Zone(
                        each.zslba,
                        each.zcap,
                        None if each.wp == NO_WRITE_POINTER else each.wp,
                        each.state,
                        ZoneAttributes(each.za),
                        bytes(data[at : at + extension]) if valid else b"",
                    )
                )
            if len(descriptors) < wanted or not descriptors:
                break
            following = descriptors[-1].zslba + form.zsze
            if following <= lba:
                raise NvmeofError(f"the zone report of namespace {self._nsid} does not ascend")
            lba = following
        return found

    async def open(self, lba: int | None = None) -> None:
        """Open the zone explicitly; None: all that are closed."""
        await self._manage(ZoneSendAction.OPEN, lba)

    async def close(self, lba: int | None = None) -> None:
        """Close the zone; None: all that are open."""
        await self._manage(ZoneSendAction.CLOSE, lba)

    async def finish(self, lba: int | None = None) -> None:
        """Make the zone full; None: all that are open or closed."""
        await self._manage(ZoneSendAction.FINISH, lba)

    async def reset(self, lba: int | None = None) -> None:
        """Make the zone empty: its data is gone; None: all zones."""
        await self._manage(ZoneSendAction.RESET, lba)

    async def offline(self, lba: int | None = None) -> None:
        """Take the read-only zone offline; None: all that are read only."""
        await self._manage(ZoneSendAction.OFFLINE, lba)

    async def _manage(self, action: ZoneSendAction, lba: int | None) -> None:
        await self._port.io(sqe_builders.zone_send(self._nsid, lba or 0, action, select_all=lba is None))

    async def set_extension(self, lba: int, data: Buffer) -> None:
        """Give an empty zone its descriptor extension, which closes it. ``data`` has ``zdes`` times 64 bytes."""
        wanted = (await self._zone_format()).zdes * EXTENSION_UNIT_BYTES
        view = plain_view(data)
        if len(view) != wanted:
            raise LocalProtocolError(
                f"zones of namespace {self._nsid} have a descriptor extension of {wanted} bytes, not {len(view)}"
            )
        sqe = sqe_builders.zone_send(self._nsid, lba, ZoneSendAction.SET_EXTENSION)
        await self._port.io(sqe, data_out=view)

    async def append(self, lba: int, data: Buffer, *, fua: bool = False) -> int:
        """Append ``data``, a whole number of blocks, to the zone that begins at ``lba``; return where it went.

        It is one command, up to ZASL of the controller. It is not sent again when a connection is lost: whether it took
        place, and where, is not known then.
        """
        namespace = await self._identified()
        block_bytes = 1 << namespace.lbaf[format_index(namespace.flbas)].lbads
        view = plain_view(data)
        blocks, rest = divmod(len(view), block_bytes)
        if rest or not blocks:
            raise LocalProtocolError(f"{len(view)} bytes are no multiple of the block size, {block_bytes} bytes")
        if len(view) > self._port.max_transfer_bytes or blocks > 1 << 16:
            raise LocalProtocolError(
                f"{len(view)} bytes are more than one Zone Append takes ({self._port.max_transfer_bytes} bytes): "
                "append in several pieces"
            )
        return await self._port.io(sqe_builders.zone_append(self._nsid, lba, blocks, fua=fua), data_out=view)

    async def changed(self) -> list[int] | None:
        """Return the first blocks of the zones that changed by themselves since the last call (log page BFh).

        None: too many to list; read a whole :meth:`report`.
        """
        data = bytearray(CHANGED_ZONES_BYTES)
        sqe = sqe_builders.get_log_page(LogPageId.CHANGED_ZONES, len(data), nsid=self._nsid, csi=Csi.ZONED)
        await self._port.execute_admin(sqe, data_in=memoryview(data))
        return parse_changed_zones(data)
