"""Admin commands: their table rows, and the handlers that are too short for a module of their own."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

from nvmeof.spec.enums import IDENTIFY_BYTES, AdminOpcode, CommandEffects
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.base import (
    AnaRule,
    CommandRow,
    Completion,
    Decoded,
    Direction,
    NsidRule,
    decoded,
    fixed,
    processed_during_sanitize,
)
from nvmeof.target.commands.identify.identify import check_identify, decode_identify, identify
from nvmeof.target.commands.rows.feature_commands import (
    check_get_features,
    check_set_features,
    decode_features,
    get_bytes,
    get_features,
    set_bytes,
    set_features,
)
from nvmeof.target.commands.rows.log_pages import (
    check_get_log_page,
    decode_log_page,
    get_log_page,
    log_bytes,
    page_during_sanitize,
)
from nvmeof.target.commands.rows.rows import Rows

_NOT_ABORTED = 1


@dataclass(frozen=True, slots=True)
class AbortFields:
    """The own fields of Abort: SQID and CID of the command to abort."""

    sqid: int
    cid: int

    @classmethod
    def parse(cls, sqe: Sqe) -> AbortFields:
        """Read CDW10 (NVMe Base, Abort command)."""
        return cls(sqe.cdw10 & 0xFFFF, sqe.cdw10 >> 16)


def abort(ctx: AdminContext, request: Decoded[AbortFields], data: memoryview | None) -> Completion:
    """Abort. DW0 bit 0 says that it was not done, or not yet.

    Aborted are Asynchronous Event Requests, and what the queue can end at once: see `AbortableCommands.abort`. This
    command is done in the step in which it comes, so that the Abort Command Limit is never exceeded.
    """
    sqid, cid = request.fields.sqid, request.fields.cid
    if sqid == 0 and ctx.controller.events.abort(cid):
        return Completion()
    queue = ctx.controller.queues.get(sqid)
    if queue is not None and queue.abort(cid):
        return Completion()
    return Completion(dw0=_NOT_ABORTED)


def async_event_request(ctx: AdminContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Hold an Asynchronous Event Request until an event is reported."""
    return ctx.controller.events.request(sqe.cid)


def keep_alive(ctx: AdminContext, sqe: Sqe, data: memoryview | None) -> Completion:
    """Restart the keep alive timer."""
    ctx.controller.keep_alive()
    return Completion()


_IDENTIFY = CommandRow(
    opcode=AdminOpcode.IDENTIFY,
    name="Identify",
    handler=identify,
    decode=decode_identify,
    direction=Direction.CONTROLLER_TO_HOST,
    transfer_bytes=fixed(IDENTIFY_BYTES),
    check=check_identify,
    nsid=NsidRule.HANDLER,
    during_sanitize=processed_during_sanitize,
    ana=AnaRule.UNAFFECTED,
)
_GET_LOG_PAGE = CommandRow(
    opcode=AdminOpcode.GET_LOG_PAGE,
    name="Get Log Page",
    handler=get_log_page,
    decode=decode_log_page,
    direction=Direction.CONTROLLER_TO_HOST,
    transfer_bytes=log_bytes,
    check=check_get_log_page,
    nsid=NsidRule.HANDLER,
    during_sanitize=page_during_sanitize,
    ana=AnaRule.UNAFFECTED,
    effects=CommandEffects.SUPPORTED | CommandEffects.UUID_SELECTION,
)
_ABORT = CommandRow(
    opcode=AdminOpcode.ABORT,
    name="Abort",
    handler=abort,
    decode=decoded(AbortFields.parse),
    during_sanitize=processed_during_sanitize,
    remark="of commands that wait for an event, for memory, for their other half or for a backend, and between steps",
)
_SET_FEATURES = CommandRow(
    opcode=AdminOpcode.SET_FEATURES,
    name="Set Features",
    handler=set_features,
    decode=decode_features,
    direction=Direction.HOST_TO_CONTROLLER,
    transfer_bytes=set_bytes,
    check=check_set_features,
    nsid=NsidRule.HANDLER,
    during_sanitize=processed_during_sanitize,
    effects=CommandEffects.SUPPORTED
    | CommandEffects.SUBSYSTEM_SCOPE
    | CommandEffects.CONTROLLER_SCOPE
    | CommandEffects.NAMESPACE_SCOPE,
    ana=AnaRule.FIELDS,
)
_GET_FEATURES = CommandRow(
    opcode=AdminOpcode.GET_FEATURES,
    name="Get Features",
    handler=get_features,
    decode=decode_features,
    direction=Direction.CONTROLLER_TO_HOST,
    transfer_bytes=get_bytes,
    check=check_get_features,
    nsid=NsidRule.HANDLER,
    during_sanitize=processed_during_sanitize,
    ana=AnaRule.FIELDS,
)
_ASYNC_EVENT_REQUEST = CommandRow(
    opcode=AdminOpcode.ASYNC_EVENT_REQUEST,
    name="Asynchronous Event Request",
    handler=async_event_request,
    during_sanitize=processed_during_sanitize,
)
_KEEP_ALIVE = CommandRow(
    opcode=AdminOpcode.KEEP_ALIVE, name="Keep Alive", handler=keep_alive, during_sanitize=processed_during_sanitize
)

_ROWS = (
    _GET_LOG_PAGE,
    _IDENTIFY,
    _ABORT,
    _SET_FEATURES,
    _GET_FEATURES,
    _ASYNC_EVENT_REQUEST,
    _KEEP_ALIVE,
)
# A discovery controller has the same commands; its rows of Identify, log pages and features are fewer.

ROWS = Rows(
    admin=_ROWS,
    discovery=_ROWS,
)
