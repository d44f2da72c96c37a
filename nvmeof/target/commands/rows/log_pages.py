"""Get Log Page: the execution of the command, and the table that has one row per log page (NVMe Base, Get Log Page
command).

The rows are in the `ROWS` of the modules that make the pages: :mod:`nvmeof.target.commands.logs`, and those of a
function that has a page of its own, such as :mod:`nvmeof.target.commands.media.self_test`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, Csi, Lpa
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.spec.properties import Cc, CcCss
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.base import Completion, check_nsid, not_active
from nvmeof.target.commands.rows.uuid_selection import check_uuid_index
from nvmeof.target.controller.controller import Controller

LSP = SQE.error_location("cdw10", 8)
LSI = SQE.error_location("cdw11", 16)
_LID = SQE.error_location("cdw10")
_NUMDL = SQE.error_location("cdw10", 16)
_OFFSET = SQE.error_location("cdw12")
_OT = SQE.error_location("cdw14", 23)
_CSI = SQE.error_location("cdw14", 24)
_NSID = SQE.error_location("nsid")

Builder = Callable[[AdminContext, Controller, GetLogPage, int], bytes]
PageCheck = Callable[[Controller, GetLogPage], None]


def no_page_check(controller: Controller, command: GetLogPage) -> None:
    """Accept any value of the fields that a page without parameters ignores."""


@dataclass(frozen=True, slots=True)
class LogPageSpec:
    """A log page. `build(ctx, controller, command, nsid)` makes the whole page; `lid` is its identifier.

    `io`, `discovery`: which kinds of controllers have it; only I/O controllers unless it says otherwise.
    `per_namespace`: an NSID may name a namespace, and `build` looks whether it does; other pages belong to the
    controller or the subsystem. `check` runs before anything else of the page and raises `CommandError`.
    `acknowledge` is called when the page was read with RAE = 0.
    `entries`: offsets of the page's entries, in bytes, for a page that takes an index as offset (OT).
    `lidsp`: its LID Specific Parameter in the Supported Log Pages log. `csi`: it is of one I/O command set.
    `whole`: an offset and a length that are not multiples of so many bytes are refused.
    """

    lid: int
    name: str
    build: Builder
    io: bool = True
    discovery: bool = False
    per_namespace: bool = False
    check: PageCheck = no_page_check
    acknowledge: Callable[[Controller], None] | None = None
    entries: Callable[[bytes], list[int]] | None = None
    lidsp: int = 0
    csi: bool = False
    whole: int = 4
    lpa: int = 0  # its bits in Identify Controller's LPA
    during_sanitize: bool = False  # whether it is read during a sanitize operation, and after one has failed
    remark: str = ""  # for docs/supported.md

    def here(self, controller: Controller) -> bool:
        """Return whether this kind of controller has the page."""
        return self.discovery if controller.discovery else self.io


class LogPageTable(dict[int, LogPageSpec]):
    """The log pages of a target, by LID."""


def log_attributes(ctx: AdminContext, controller: Controller) -> Lpa:
    """Make LPA of Identify Controller from the rows."""
    attributes = Lpa.EXTENDED_DATA
    for row in ctx.tables[LogPageTable].values():
        if row.here(controller):
            attributes |= row.lpa
    return attributes


def command_set(controller: Controller, command: GetLogPage) -> int:
    """Return the I/O command set of a page; unless CC.CSS is 110b, the NVM Command Set."""
    return command.csi if Cc.decode(controller.cc).css == CcCss.ALL_SUPPORTED else Csi.NVM


@dataclass(frozen=True, slots=True)
class LogPageRequest:
    """A Get Log Page command, decoded. `row`: None for a page that the target does not have."""

    row: LogPageSpec | None
    command: GetLogPage
    nsid: int


def decode_log_page(ctx: AdminContext, sqe: Sqe) -> LogPageRequest:
    """Convert the units of the command's dwords, and look its page up."""
    command = GetLogPage.decode(sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14)
    return LogPageRequest(ctx.tables[LogPageTable].get(command.lid), command, sqe.nsid)


def log_bytes(ctx: AdminContext, request: LogPageRequest) -> int:
    """Return the bytes of NUMD dwords."""
    return request.command.length_bytes


def page_during_sanitize(ctx: AdminContext, request: LogPageRequest) -> bool:
    """Return whether the page may be read during a sanitize operation (NVMe Base, Sanitize Operation Restrictions)."""
    return request.row is not None and request.row.during_sanitize


def _invalid(location: int, message: str) -> CommandError:
    return CommandError(Status.INVALID_FIELD, location, message=message)


def check_get_log_page(ctx: AdminContext, request: LogPageRequest) -> None:
    """Check that the page is supported, its NSID, a length within MDTS, and the kind of offset (NVMe Base, Get Log Page
    command). Fields that a page does not use (LSP, LSI, CSI) are ignored.
    """
    controller = ctx.controller
    row, command = request.row, request.command
    if row is None or not row.here(controller):
        raise CommandError(Status.INVALID_LOG_PAGE, _LID, message=f"log page {command.lid:#04x} is not supported")
    _check_nsid(ctx, row, request.nsid)
    check_uuid_index(controller, command.uuid_index)
    limit = ctx.limits.transfer_bytes
    if command.length_bytes > limit:
        raise _invalid(_NUMDL, f"{command.length_bytes} bytes of a log page are more than MDTS ({limit})")
    if command.length_bytes % row.whole:
        raise _invalid(_NUMDL, f"{row.name} is read in multiples of {row.whole} bytes, not {command.length_bytes}")
    if command.index_offset:
        if row.entries is None:
            raise _invalid(_OT, f"{row.name} takes no index as offset (OT)")
    elif command.offset_bytes % row.whole:
        raise _invalid(_OFFSET, f"the offset {command.offset_bytes} is not a multiple of {row.whole}")
    if row.csi and command_set(controller, command) not in list(Csi):
        raise _invalid(_CSI, f"I/O command set {command.csi} does not exist")
    row.check(controller, command)


def _check_nsid(ctx: AdminContext, row: LogPageSpec, nsid: int) -> None:
    if nsid in (0, NSID_ALL) or row.per_namespace:
        return
    check_nsid(ctx, nsid)
    raise _invalid(_NSID, f"{row.name} is not of a namespace (NSID {nsid})")


def namespaces_of(ctx: AdminContext, nsid: int) -> list[int]:
    """Return the NSIDs that a page with `per_namespace` reports: one, or all with 0h and FFFFFFFFh."""
    if nsid in (0, NSID_ALL):
        return list(ctx.namespaces)
    if nsid in ctx.namespaces:
        return [nsid]
    raise not_active(ctx, nsid)


def _start(row: LogPageSpec, command: GetLogPage, page: bytes) -> int:
    """Return the offset in the page, in bytes, where the answer begins."""
    if command.index_offset:
        assert row.entries is not None
        offsets = row.entries(page)
        if command.offset_bytes >= len(offsets):
            raise _invalid(_OFFSET, f"index {command.offset_bytes} of {row.name}, which has {len(offsets)} entries")
        return offsets[command.offset_bytes]
    if command.offset_bytes > len(page):
        raise _invalid(_OFFSET, f"offset {command.offset_bytes} is beyond the {len(page)} bytes of {row.name}")
    return command.offset_bytes


def get_log_page(ctx: AdminContext, request: LogPageRequest, data: memoryview | None) -> Completion:
    """Return a part of a page; bytes beyond its end are zeroes. RAE = 0 unmasks its events."""
    row, command, controller = request.row, request.command, ctx.controller
    assert row is not None
    page = row.build(ctx, controller, command, request.nsid)
    if not page:
        # The offset is beyond the content. All data that the SGL describes is sent: hosts treat less data as a transfer
        # error.
        return Completion(data=bytes(command.length_bytes))
    start = _start(row, command, page)
    if not command.retain:
        controller.events.log_page_read(command.lid)
        if row.acknowledge is not None:
            row.acknowledge(controller)
    return Completion(data=page[start : start + command.length_bytes].ljust(command.length_bytes, b"\0"))
