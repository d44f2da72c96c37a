"""Admin and property commands as methods: what they send, how long their data is, and what comes back decoded.

:class:`AdminCommands` knows neither queues nor connections: it is given a function that carries one admin command.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol, overload

from nvmeof.errors import LocalProtocolError, NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.requests import DEFAULT_OPTIONS, RequestOptions
from nvmeof.host.results import (
    AnaLog,
    ErrorLogEntry,
    IdentifyController,
    IdentifyNamespace,
    NvmCommandSetLimits,
    SmartLog,
)
from nvmeof.spec.enums import IDENTIFY_BYTES, NSID_ALL, Cns, FeatureId, LogPageId
from nvmeof.spec.identify import (
    NAMESPACE_LIST_MAX,
    NamespaceDescriptor,
    parse_namespace_descriptors,
    parse_namespace_list,
    valid_namespace_list_start,
)
from nvmeof.spec.log_pages import ANA_GROUP_BYTES, ANA_HEADER, ANA_HEADER_BYTES, parse_ana_log
from nvmeof.spec.persistent_events import LogAction
from nvmeof.spec.telemetry import CREATE
from nvmeof.wire import Buffer

LOG_CHUNK_BYTES = 4096
"""Bytes of a log page that one command reads at most: what the smallest MDTS allows."""
ANA_LOG_MAX_BYTES = 1 << 30
ANA_ATTEMPTS = 10


def _continued(page: int, lsp: int) -> int:
    """Return the log specific parameter of the pieces after the first: a capture is requested once."""
    if page == LogPageId.TELEMETRY_HOST and lsp & CREATE:
        return 0
    if page == LogPageId.PERSISTENT_EVENTS and lsp & 3 == LogAction.ESTABLISH_AND_READ:
        return LogAction.READ
    return lsp


class Execute(Protocol):
    """A function that sends one admin command and returns DW0 | DW1 << 32 of its completion. Raises
    :class:`NvmeStatusError` and others."""

    async def __call__(
        self,
        sqe: bytes,
        /,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int: ...


class AdminCommands:
    """The commands of an admin queue, sent with ``execute``.

    Each raises :class:`NvmeStatusError` when the controller completes it with another status than success, and
    :class:`ConnectionLost` when the admin queue died.
    """

    def __init__(self, execute: Execute) -> None:
        self.admin = execute

    async def property_get(self, offset: int, size: int = 4) -> int:
        """Return a controller property of 4 or 8 bytes."""
        value = await self.admin(sqe_builders.property_get(offset, size))
        return value if size == 8 else value & 0xFFFFFFFF

    async def property_set(self, offset: int, value: int, size: int = 4) -> None:
        """Set a controller property of 4 or 8 bytes."""
        await self.admin(sqe_builders.property_set(offset, size, value))

    async def identify_raw(self, cns: int, nsid: int = 0, cntid: int = 0, csi: int = 0) -> bytes:
        """Return any Identify data structure: 4,096 bytes."""
        data = bytearray(IDENTIFY_BYTES)
        await self.admin(sqe_builders.identify(cns, nsid, cntid, csi), data_in=memoryview(data))
        return bytes(data)

    async def identify(self) -> IdentifyController:
        """Identify Controller (CNS 01h), decoded: ``info.mn``, or ``info["mn"]``, is the model number."""
        return IdentifyController.parse(await self.identify_raw(Cns.CONTROLLER))

    async def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace (CNS 00h), decoded. All zero for a namespace that is not active."""
        return IdentifyNamespace.parse(await self.identify_raw(Cns.NAMESPACE, nsid))

    async def active_namespaces(self) -> list[int]:
        """Return the NSIDs of the active namespaces, ascending (CNS 02h, as many lists as it takes)."""
        found: list[int] = []
        while True:
            raw = await self.identify_raw(Cns.ACTIVE_NAMESPACES, found[-1] if found else 0)
            page = parse_namespace_list(raw)
            for nsid in page:
                # a list that does not ascend would never end
                if (found and nsid <= found[-1]) or not valid_namespace_list_start(nsid):
                    return found
                found.append(nsid)
            if len(page) < NAMESPACE_LIST_MAX:
                return found

    async def namespace_descriptors(self, nsid: int) -> list[NamespaceDescriptor]:
        """Return the identifiers of a namespace (CNS 03h): EUI64, NGUID, UUID, command set."""
        return parse_namespace_descriptors(await self.identify_raw(Cns.NAMESPACE_DESCRIPTORS, nsid))

    async def identify_nvm_limits(self) -> NvmCommandSetLimits:
        """Return the limits of the NVM command set (CNS 06h), decoded: VSL, WZSL, DMRL and so on."""
        return NvmCommandSetLimits.parse(await self.identify_raw(Cns.CSI_CONTROLLER))

    async def get_log(
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
        if length_bytes <= 0 or length_bytes % 4 or offset < 0 or offset % 4:
            raise LocalProtocolError(f"a log page is read in multiples of 4 bytes, not {length_bytes} from {offset}")
        data = memoryview(bytearray(length_bytes))
        for start in range(0, length_bytes, chunk_bytes):
            piece = data[start : start + chunk_bytes]
            keep = rae or start + len(piece) < length_bytes
            specific = _continued(page, lsp) if start else lsp
            sqe = sqe_builders.get_log_page(
                page, len(piece), offset + start, nsid=nsid, lsp=specific, lsi=lsi, csi=csi, rae=keep
            )
            await self.admin(sqe, data_in=piece)
        return bytes(data)

    async def smart_log(self, nsid: int = NSID_ALL) -> SmartLog:
        """Return the SMART / Health Information log page, decoded: ``log.composite_temperature`` in kelvin, and so
        on."""
        return SmartLog.parse(await self.get_log(LogPageId.SMART_HEALTH, SmartLog.size_bytes(), nsid=nsid))

    async def error_log(self, entries: int = 1) -> list[ErrorLogEntry]:
        """Return the newest ``entries`` of the Error Information log page, decoded; entries never used are left out."""
        size = ErrorLogEntry.size_bytes()
        raw = await self.get_log(LogPageId.ERROR_INFORMATION, entries * size)
        parsed = [ErrorLogEntry.parse(raw[start : start + size]) for start in range(0, len(raw), size)]
        return [entry for entry in parsed if entry.error_count]

    async def ana_log(self) -> AnaLog:
        """Return the ANA log page: the state of each group on this path, all of one change count. Raises
        :class:`NvmeofError` for a controller without ANA, for an invalid log, or when its change count keeps changing.
        """
        info = await self.identify()
        if not info.nanagrpid:
            raise NvmeofError("the controller does not report Asymmetric Namespace Access")
        # every group, and every namespace in one of them (Base specification, Asymmetric Namespace Access log)
        most = ANA_HEADER_BYTES + info.nanagrpid * ANA_GROUP_BYTES + 4 * (info.mnan or info.nn)
        for _ in range(ANA_ATTEMPTS):
            log = await self._read_ana_log(min(most, ANA_LOG_MAX_BYTES))
            if log is not None:
                return log
        raise NvmeofError(
            f"the controller's ANA log changed {ANA_ATTEMPTS} times while it was read: read it again later"
        )

    async def _read_ana_log(self, most_bytes: int) -> AnaLog | None:
        """Read the log piece by piece; return None if it changed in between."""
        data = b""
        while len(data) < most_bytes:
            # the log may be shorter than its longest, and an offset beyond its end is an error
            data += await self.get_log(LogPageId.ANA, LOG_CHUNK_BYTES, len(data), nsid=0)
            with suppress(ValueError):
                log = AnaLog(*parse_ana_log(data))
                if len(data) > LOG_CHUNK_BYTES:
                    again = ANA_HEADER.parse(await self.get_log(LogPageId.ANA, ANA_HEADER_BYTES, nsid=0))
                    return log if again.chgcnt == log.change_count else None
                return log
        raise NvmeofError(f"the controller's ANA log is invalid: it does not end within {len(data)} bytes")

    @overload
    async def get_feature(self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0) -> int: ...

    @overload
    async def get_feature(
        self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0, data_bytes: int
    ) -> tuple[int, bytes]: ...

    async def get_feature(
        self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0, data_bytes: int = 0
    ) -> int | tuple[int, bytes]:
        """Return a feature's value, DW0; with ``data_bytes`` a pair of DW0 and the feature's data."""
        sqe = sqe_builders.get_features(fid, select, nsid=nsid, cdw11=cdw11)
        if not data_bytes:
            return await self.admin(sqe) & 0xFFFFFFFF
        data = bytearray(data_bytes)
        value = await self.admin(sqe, data_in=memoryview(data))
        return value & 0xFFFFFFFF, bytes(data)

    async def set_feature(
        self, fid: int, value: int, *, save: bool = False, nsid: int = 0, cdw12: int = 0, data: Buffer | None = None
    ) -> int:
        """Set a feature (``value`` is CDW11); DW0 of the completion."""
        sqe = sqe_builders.set_features(fid, value, save=save, nsid=nsid, cdw12=cdw12)
        return await self.admin(sqe, data_out=data) & 0xFFFFFFFF

    async def set_number_of_queues(self, queues: int) -> int:
        """Ask for ``queues`` I/O queue pairs; how many there may be."""
        value = await self.set_feature(FeatureId.NUMBER_OF_QUEUES, (queues - 1) | (queues - 1) << 16)
        return min((value & 0xFFFF) + 1, (value >> 16) + 1)
