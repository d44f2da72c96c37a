"""Fabrics commands: Connect, Property Get and Set, Disconnect (NVMe Base, Fabrics Command Set)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial

from nvmeof.errors import CommandError
from nvmeof.security.tls.key import TlsKey
from nvmeof.spec.connect import (
    CONNECT,
    CONNECT_DATA,
    CONNECT_DATA_BYTES,
    DISCONNECT,
    PROPERTY_GET,
    PROPERTY_SET,
    RECORD_FORMAT,
    Authreq,
    Cattr,
    connect_invalid_dw0,
)
from nvmeof.spec.enums import CNTLID_DYNAMIC, FabricsType
from nvmeof.spec.nqn import has_control_characters, terminated_nqn, unnamed_host
from nvmeof.spec.properties import (
    CAP_OFFSET,
    CC_OFFSET,
    CRTO_OFFSET,
    CSTS_OFFSET,
    NSSD_ABRUPT,
    NSSD_NORMAL,
    NSSD_OFFSET,
    NSSR_OFFSET,
    NSSR_RESET,
    PROPERTIES,
    VS_OFFSET,
)
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext, ConnectContext
from nvmeof.target.commands.context import CommandContext, IoContext
from nvmeof.target.commands.dispatch.base import CommandRow, Completion, Decoded, Direction, decoded, fixed
from nvmeof.target.commands.io.nvm import run_all
from nvmeof.target.commands.logs.logs_health import snapshot
from nvmeof.target.commands.managing import check_managing, tell
from nvmeof.target.commands.rows.feature_commands import restore_features
from nvmeof.target.commands.rows.features import FeatureTable
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import VERSION, Controller, ControllerHooks
from nvmeof.target.controller.effects import QueueEffects
from nvmeof.target.controller.keep_alive import check_kato
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.core.states import LIVE_STATES, UNCONNECTED_ONLY, ControllerState, QueueState
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.projection.authentication import QueueAuthentication
from nvmeof.target.subsystem.config import TLS_OFF
from nvmeof.target.subsystem.subsystem import Association, Subsystem
from nvmeof.target.subsystem.tls_psks import why_channel_is_wrong
from nvmeof.wire import layout

logger = logging.getLogger(__name__)
_LONGEST_CONNECT_BYTES = 4096
"""A host may send a whole page for Connect: what follows the 1,024 bytes is not looked at."""
_MAX_ADMIN_ENTRIES = 4096
# Plain numbers: what an IntFlag makes of each CNTLID that it is joined with would be remembered by its class.
_AUTHENTICATE = int(Authreq.ATR)
_AUTHENTICATE_FOR_TLS = int(Authreq.ATR | Authreq.ASCR)
_DATA_LAYOUT = layout(CONNECT_DATA)


def _invalid(field: str, message: str) -> CommandError:
    """Connect Invalid Parameters, with IPO and IATTR of the field at fault."""
    location = CONNECT.offsets.get(field, 0xFFFF)
    return CommandError(Status.CONNECT_INVALID_PARAMETERS, location, message=message, dw0=connect_invalid_dw0(field))


@dataclass(frozen=True, slots=True)
class ConnectFields:
    """The own fields of Connect: RECFMT, QID, SQSIZE (raw, 0's-based), CATTR, KATO in milliseconds."""

    recfmt: int
    qid: int
    sqsize: int
    cattr: int
    kato_ms: int

    @classmethod
    def parse(cls, sqe: Sqe) -> ConnectFields:
        """Read CDW10 to CDW12 (NVMe Base, Connect command)."""
        return cls(sqe.cdw10 & 0xFFFF, sqe.cdw10 >> 16, sqe.cdw11 & 0xFFFF, sqe.cdw11 >> 16 & 0xFF, sqe.cdw12)


def check_connect(ctx: ConnectContext, request: Decoded[ConnectFields]) -> None:
    """Check the fields of Connect that do not depend on its data (NVMe Base, Connect command)."""
    recfmt, qid, sqsize = request.fields.recfmt, request.fields.qid, request.fields.sqsize
    if recfmt != RECORD_FORMAT:
        raise CommandError(
            Status.CONNECT_INCOMPATIBLE_FORMAT,
            CONNECT.error_location("recfmt"),
            message=f"Connect record format {recfmt} is not known",
        )
    if sqsize == 0:
        raise _invalid("sqsize", "Connect asks for a queue of one entry (SQSIZE 0)")
    if qid == 0 and sqsize >= _MAX_ADMIN_ENTRIES:
        raise _invalid("sqsize", f"an admin queue of {sqsize + 1} entries is larger than {_MAX_ADMIN_ENTRIES}")


def connect(ctx: ConnectContext, request: Decoded[ConnectFields], data: memoryview | None) -> Completion:
    """Make this queue the admin queue of a new controller, or an I/O queue of an existing one. DW0: CNTLID."""
    assert data is not None
    audit, host, subnqn = ctx.peer_log.audit, "", ""
    told = None if audit is None else partial(audit, AuditEvent.CONNECT, peer=ctx.peer, queue=request.fields.qid)
    try:
        found = _, _, subnqn, host = _connect_data(data)
        completion = _connect(ctx, request, found)
    except CommandError as error:
        if told is not None:
            told(granted=False, host=host, subsystem=subnqn, status=f"{error.status:#x}", reason=str(error))
        raise
    if told is not None:
        told(granted=True, host=host, subsystem=subnqn, cntlid=completion.dw0 & 0xFFFF)
    return completion


def _connect(
    ctx: ConnectContext, request: Decoded[ConnectFields], connect_data: tuple[bytes, int, str, str]
) -> Completion:
    hostid, wanted_cntlid, subnqn, named = connect_data
    host_nqn = named or unnamed_host(hostid)
    if has_control_characters(named):
        # It goes into log lines.
        raise _invalid("hostnqn", "the Connect data's HOSTNQN contains control characters")
    subsystem = ctx.registry.find(subnqn, ctx.port)
    if subsystem is None:
        raise _invalid("subnqn", f"there is no subsystem {subnqn!r} here (host {host_nqn!r})")
    if not subsystem.host_allowed(named):
        # The answer is that of a subsystem that is not there: who may not use one need not know that it is.
        raise _invalid("subnqn", f"host {host_nqn!r} is not allowed to use {subsystem.nqn}")
    may_begin = ctx.port.tls != TLS_OFF and request.fields.qid == 0
    wrong = why_channel_is_wrong(ctx.secured, subsystem, subnqn, named, may_begin=may_begin)
    if wrong is not None:
        raise CommandError(Status.CONNECT_INVALID_HOST, message=wrong, dw0=connect_invalid_dw0("hostnqn"))
    qid, sqsize = request.fields.qid, request.fields.sqsize
    flow_control = not request.fields.cattr & Cattr.DISABLE_SQ_FLOW_CONTROL
    _check_room(ctx, subsystem, host_nqn)
    accepted: AdminContext | IoContext
    if qid == 0:
        controller = _new_association(ctx, subsystem, wanted_cntlid, host_nqn, hostid, request.fields.kato_ms)
        accepted = AdminContext(ctx, controller, entries=sqsize + 1, flow_control=flow_control)
        association: Association = controller
    else:
        try:
            association = _join_association(ctx, subsystem, qid, sqsize, wanted_cntlid, named)
        except CommandError as error:
            _log_failure(ctx, subsystem.controllers.get(wanted_cntlid), request, error, named)
            raise
        _compare_hostid(ctx, association, qid, hostid)
        effects = association.effects(qid, ctx.queue, ctx.port.trtype)
        accepted = IoContext(ctx, association.view, effects, qid=qid, entries=sqsize + 1, flow_control=flow_control)
    association.attach_queue(qid, ctx.queue, accepted.figures, ctx.connection)
    ctx.accepted = accepted
    return Completion(dw0=association.cntlid | _demand_authentication(ctx, subsystem, accepted))


def _check_room(ctx: ConnectContext, subsystem: Subsystem, host_nqn: str) -> None:
    """Raise Controller Busy where too many queues wait for their host's authentication already."""
    if host_nqn in subsystem.hosts.keys and ctx.registry.authentication.full(ctx.peer):
        raise CommandError(
            Status.CONNECT_CONTROLLER_BUSY, dnr=False, message="too many queues wait for their host's authentication"
        )


def _demand_authentication(ctx: ConnectContext, subsystem: Subsystem, accepted: AdminContext | IoContext) -> int:
    """Demand on every queue that a host authenticates itself for which there are keys; return Connect's AUTHREQ.

    Not on a discovery controller's, as nvmet. On I/O queues too, since a Connect that names a host and a controller is
    otherwise all that it takes to join the association of another.
    """
    keys_now = partial(subsystem.hosts.keys.get, accepted.host_nqn)
    if keys_now() is None or subsystem.discovery or (ctx.secured is not None and ctx.secured.kind == "G"):
        return 0  # a generated TLS key proves that its host has authenticated itself
    only_channel = subsystem.hosts.tls_required and ctx.secured is None
    accepted.authentication = QueueAuthentication(
        ctx.runtime,
        ctx.registry.authentication,
        ctx.queue,
        keys_now,
        ctx.peer_log,
        peer=ctx.peer,
        hostnqn=accepted.host_nqn,
        subnqn=subsystem.nqn,
        qid=accepted.qid,
        reauthentication_seconds=subsystem.config.reauthentication_seconds,
        channel=_channel(ctx, subsystem.nqn, accepted),
        only_channel=only_channel,
    )
    accepted.queue_state = QueueState.CONNECTED
    return _AUTHENTICATE_FOR_TLS if only_channel else _AUTHENTICATE


def _channel(ctx: ConnectContext, subnqn: str, accepted: AdminContext | IoContext) -> Callable[[TlsKey], None] | None:
    """Return what takes a TLS key that a host makes of its authentication, for its next connections; None where there
    is no TLS, on an I/O queue, and where there is a secure channel already."""
    if ctx.port.tls == TLS_OFF or ctx.secured is not None or accepted.qid:
        return None
    registry, runtime, hostnqn = ctx.registry, ctx.runtime, accepted.host_nqn
    return lambda key: registry.generated.add(key.psk(hostnqn, subnqn), runtime.now())


def _connect_data(data: memoryview) -> tuple[bytes, int, str, str]:
    """Return HOSTID, CNTLID, SUBNQN and HOSTNQN of Connect data: `CONNECT_DATA`, of which this reads only what is
    named.

    A name has its NUL at byte 223 or before; HOSTNQN may be empty, as for Linux.
    """
    names = []
    for name in ("subnqn", "hostnqn"):
        field = _field(data, name)
        if not terminated_nqn(field) and (name == "subnqn" or field[0]):
            empty = "empty or " if name == "subnqn" else ""
            raise _invalid(name, f"the Connect data's {name.upper()} is {empty}not terminated")
        names.append(field.partition(b"\0")[0].decode("utf-8", "backslashreplace"))
    return _field(data, "hostid"), int.from_bytes(_field(data, "cntlid"), "little"), names[0], names[1]


def _field(data: memoryview, name: str) -> bytes:
    start, width = _DATA_LAYOUT[name]
    return bytes(data[start : start + width])


def _compare_hostid(ctx: ConnectContext, controller: Association, qid: int, hostid: bytes) -> None:
    """Log once that a host sends another HOSTID for an I/O queue: the HOSTID of the admin queue's Connect counts."""
    if hostid != controller.hostid and not controller.hostid_differs:
        controller.hostid_differs = True
        logger.info(
            "%s: the Connect of I/O queue %d has HOSTID %s, the admin queue's has %s, which is used for all queues",
            ctx.peer,
            qid,
            hostid.hex(),
            controller.hostid.hex(),
        )


def _same_host(controller: Association, host_nqn: str) -> bool:
    """Return whether an I/O queue's Connect names the controller's host; an empty name matches only an empty one."""
    return controller.host_nqn == (host_nqn or unnamed_host(controller.hostid))


def _new_association(
    ctx: ConnectContext, subsystem: Subsystem, cntlid: int, host_nqn: str, hostid: bytes, kato_ms: int
) -> Controller:
    if cntlid != CNTLID_DYNAMIC:
        raise _invalid("cntlid", f"controllers are allocated dynamically; CNTLID {cntlid:#06x} cannot be asked for")
    subsystem.check_room(host_nqn)
    check_kato(subsystem.config, kato_ms, CONNECT.error_location("kato"))
    return Controller(
        ctx.runtime,
        subsystem,
        subsystem.allocate_cntlid(),
        host_nqn=host_nqn,
        hostid=hostid,
        port=ctx.port,
        kato_ms=kato_ms,
        hooks=ControllerHooks(
            effects=partial(QueueEffects, ctx.tables),
            restore=partial(restore_features, ctx.tables[FeatureTable]),
            periodic=snapshot,
        ),
        secured=ctx.secured is not None,
    )


def _log_failure(
    ctx: ConnectContext,
    controller: Association | None,
    request: Decoded[ConnectFields],
    error: CommandError,
    host_nqn: str,
) -> None:
    """Add a refused Connect of an I/O queue to its controller's Error Information log, if the controller is that
    host's, and not where that is a claim of somebody else."""
    claimed = controller is not None and controller.secured and ctx.secured is None
    if controller is not None and _same_host(controller, host_nqn) and not claimed:
        sqe, qid, trtype = request.sqe, request.fields.qid, ctx.port.trtype
        controller.connect_refused(qid, sqe.cid, error, trtype=trtype, opcode=sqe.opcode)


def _join_association(
    ctx: ConnectContext, subsystem: Subsystem, qid: int, sqsize: int, cntlid: int, host_nqn: str
) -> Association:
    config = subsystem.config
    if subsystem.discovery:
        raise _invalid("qid", "a discovery controller has no I/O queues")
    if qid > config.max_io_queues:
        raise _invalid("qid", f"queue {qid} is beyond the {config.max_io_queues} I/O queues of a controller")
    controller = subsystem.controllers.get(cntlid)
    if controller is None:
        error = _invalid("cntlid", f"{subsystem.nqn} has no controller {cntlid}")
        # One of before a restart: its host may be about to find out, and shall connect anew (Linux gives up at DNR).
        error.dnr = not subsystem.is_retired(cntlid)
        raise error
    if not _same_host(controller, host_nqn):
        raise _invalid("hostnqn", f"host {host_nqn!r} is not the one of controller {cntlid} ({controller.host_nqn!r})")
    if controller.secured and ctx.secured is None:
        # In clear a name is a claim: whoever knows it and guesses a CNTLID would be in the association of another.
        text = f"controller {cntlid} was connected by TLS, and I/O queue {qid} comes in clear"
        raise CommandError(Status.CONNECT_INVALID_HOST, message=text, dw0=connect_invalid_dw0("hostnqn"))
    if controller.state is not ControllerState.READY:
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR,
            CONNECT.error_location("qid"),
            message=f"I/O queue {qid} before controller {cntlid} is ready ({controller.state.value})",
        )
    controller.check_entry_sizes(CONNECT.error_location("qid"))
    if sqsize >= config.max_queue_entries:
        raise _invalid("sqsize", f"a queue of {sqsize + 1} entries is larger than {config.max_queue_entries}")
    controller.check_qid_free(qid, CONNECT.error_location("qid"))
    return controller


_READ_PROPERTY: dict[int, Callable[[Controller], int]] = {
    CAP_OFFSET: lambda controller: controller.cap,
    VS_OFFSET: lambda controller: VERSION.encode(),
    CC_OFFSET: lambda controller: controller.cc,
    CSTS_OFFSET: lambda controller: controller.csts,
    CRTO_OFFSET: lambda controller: controller.crto,
    NSSR_OFFSET: lambda controller: 0,
    NSSD_OFFSET: lambda controller: 0,
}
_OF_THE_SUBSYSTEM = (NSSR_OFFSET, NSSD_OFFSET)  # not for discovery controllers
SUPPORTED_PROPERTIES = frozenset(_READ_PROPERTY)


@dataclass(frozen=True, slots=True)
class PropertyFields:
    """The own fields of Property Get and Property Set: the size (ATTRIB), the offset (OFST), the value to be set."""

    attrib: int
    offset: int
    value: int

    @classmethod
    def parse(cls, sqe: Sqe) -> PropertyFields:
        """Read CDW10 to CDW12 (NVMe Base, Property Get command and Property Set command)."""
        return cls(sqe.cdw10 & 7, sqe.cdw11, sqe.cdw12)


def _property(
    controller: Controller, fields: PropertyFields, record_offsets: dict[str, int], known: Container[int]
) -> int:
    """Return the property's offset, after a check of its size."""
    attrib, offset = fields.attrib, fields.offset
    if offset not in known or (offset in _OF_THE_SUBSYSTEM and controller.discovery):
        raise CommandError(
            Status.INVALID_FIELD, record_offsets["ofst"], message=f"there is no such property at offset {offset:#x}"
        )
    if attrib > 1 or PROPERTIES[offset].size != (8 if attrib else 4):
        raise CommandError(
            Status.INVALID_FIELD,
            record_offsets["attrib"],
            message=f"{PROPERTIES[offset].name} has {PROPERTIES[offset].size} bytes",
        )
    return offset


def property_get(ctx: AdminContext, request: Decoded[PropertyFields], data: memoryview | None) -> Completion:
    """Execute Property Get: the value in DW0 and DW1."""
    offset = _property(ctx.controller, request.fields, PROPERTY_GET.offsets, SUPPORTED_PROPERTIES)
    value = _READ_PROPERTY[offset](ctx.controller)
    return Completion(dw0=value & 0xFFFFFFFF, dw1=value >> 32)


def property_set(
    ctx: AdminContext, request: Decoded[PropertyFields], data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Execute Property Set by the property's own function."""
    offset = _property(ctx.controller, request.fields, PROPERTY_SET.offsets, WRITABLE_PROPERTIES)
    return _WRITE_PROPERTY[offset](ctx, ctx.controller, request.fields.value)


def _write_cc(ctx: AdminContext, controller: Controller, value: int) -> Completion | Awaitable[Completion]:
    """Write CC; the completion of a shutdown waits until everything is flushed."""
    if not controller.write_cc(value):
        return Completion()
    token = controller.shutdown_token
    return _flush(ctx.namespaces.values(), lambda: controller.shutdown_complete(token))


def _write_csts(ctx: AdminContext, controller: Controller, value: int) -> Completion:
    controller.clear_csts(value)
    return Completion()


def _write_nssr(ctx: AdminContext, controller: Controller, value: int) -> Completion:
    """Write NSSR: the value "NVMe" starts an NVM Subsystem Reset, any other has no effect."""
    if value == NSSR_RESET:
        check_managing(ctx, "NVM Subsystem Reset")
        tell(ctx, "NVM Subsystem Reset", 0)
        controller.subsystem.reset()
    return Completion()


def _write_nssd(ctx: AdminContext, controller: Controller, value: int) -> Completion | Awaitable[Completion]:
    """Write NSSD: start an NVM Subsystem Shutdown; an abrupt one flushes as well. Any other value has no effect."""
    if value not in (NSSD_NORMAL, NSSD_ABRUPT):
        return Completion()
    check_managing(ctx, "NVM Subsystem Shutdown")
    tell(ctx, "NVM Subsystem Shutdown", 0)
    subsystem = controller.subsystem
    token = subsystem.begin_shutdown()
    if token is None:
        return Completion()
    return _flush(subsystem.namespaces.values(), lambda: subsystem.shutdown_complete(token))


_WRITE_PROPERTY: dict[int, Callable[[AdminContext, Controller, int], Completion | Awaitable[Completion]]] = {
    CC_OFFSET: _write_cc,
    CSTS_OFFSET: _write_csts,
    NSSR_OFFSET: _write_nssr,
    NSSD_OFFSET: _write_nssd,
}
WRITABLE_PROPERTIES = frozenset(_WRITE_PROPERTY)


def _flush(namespaces: Iterable[Namespace], done: Callable[[], None]) -> Completion | Awaitable[Completion]:
    """Flush for a shutdown, then call `done`; a flush that fails does not prevent the shutdown."""
    try:
        flushed = run_all(namespace.flush for namespace in namespaces)
    except CommandError:
        flushed = Completion()
    if isinstance(flushed, Completion):
        done()
        return Completion()
    return _flush_later(flushed, done)


async def _flush_later(flushed: Awaitable[Completion], done: Callable[[], None]) -> Completion:
    with contextlib.suppress(CommandError):
        await flushed
    done()
    return Completion()


def _record_format(sqe: Sqe) -> int:
    """Read RECFMT of CDW10 (NVMe Base, Disconnect command)."""
    return sqe.cdw10 & 0xFFFF


def disconnect(ctx: CommandContext, request: Decoded[int], data: memoryview | None) -> Completion:
    """Disconnect: this I/O queue ends once the completion is sent."""
    if request.fields != RECORD_FORMAT:
        raise CommandError(Status.CONNECT_INCOMPATIBLE_FORMAT, DISCONNECT.error_location("recfmt"))
    if ctx.qid == 0:
        raise CommandError(
            Status.DISCONNECT_INVALID_QUEUE_TYPE, message="an admin queue cannot be disconnected by a command"
        )
    return Completion(ends="disconnected by the host")


_CONNECT = CommandRow(
    opcode=FabricsType.CONNECT,
    name="Connect",
    handler=connect,
    decode=decoded(ConnectFields.parse),
    direction=Direction.HOST_TO_CONTROLLER,
    transfer_bytes=fixed(CONNECT_DATA_BYTES),
    longer_sgl_bytes=_LONGEST_CONNECT_BYTES,
    check=check_connect,
    states=LIVE_STATES,
    queue_states=UNCONNECTED_ONLY,
)
_DISCONNECT = CommandRow(
    opcode=FabricsType.DISCONNECT,
    name="Disconnect",
    handler=disconnect,
    decode=decoded(_record_format),
    states=LIVE_STATES,
)

ROWS = Rows(
    fabrics_admin=(
        CommandRow(
            opcode=FabricsType.PROPERTY_SET,
            name="Property Set",
            handler=property_set,
            decode=decoded(PropertyFields.parse),
            states=LIVE_STATES,
        ),
        _CONNECT,
        CommandRow(
            opcode=FabricsType.PROPERTY_GET,
            name="Property Get",
            handler=property_get,
            decode=decoded(PropertyFields.parse),
            states=LIVE_STATES,
        ),
        _DISCONNECT,
    ),
    fabrics_io=(_CONNECT, _DISCONNECT),
)
