"""The execution of a command by its row: look up, check, execute.

A queue calls `prepare` for every command before any data moves, and `execute` when the data (if any) is there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from nvmeof.errors import CommandError
from nvmeof.spec.connect import CONNECT
from nvmeof.spec.enums import FABRICS_OPCODE, Csi
from nvmeof.spec.sgl import DATA_BLOCK_IN_CAPSULE, TRANSPORT_DATA_BLOCK, Psdt
from nvmeof.spec.sqe import FUSE_MASK, PSDT_SHIFT, SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext, AnyContext, ConnectContext
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.admission import admit
from nvmeof.target.commands.dispatch.base import CommandSpec, Completion, Direction, always
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.io.fused import FUSED_OPCODES
from nvmeof.target.core.aborting import AbortableAwait
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.states import UNCONNECTED_ONLY, QueueState

ADMIN_INCAPSULE_BYTES = 8192
"""The most data of an admin capsule, in bytes: fixed by the NVMe/TCP transport."""

logger = logging.getLogger(__name__)
_OPCODE = SQE.error_location("opcode")
_FCTYPE = CONNECT.error_location("fctype")
_SGL_PSDT = int(Psdt.SGL_CONTIGUOUS_METADATA)
_SGL = SQE.error_location("sgl_address")
_SGL_LENGTH = SQE.error_location("sgl_length")
_SGL_TYPE = SQE.error_location("sgl_type")


def lookup(ctx: AnyContext, sqe: Sqe) -> CommandSpec:
    """Return the row of a command on this queue. Raises Invalid Opcode, or Command Sequence Error before Connect."""
    opcode, commands = sqe.opcode, ctx.tables[CommandTables]
    if opcode == FABRICS_OPCODE:
        spec = (commands.fabrics_io if ctx.qid else commands.fabrics_admin).get(sqe.fctype)
        if spec is None:
            raise CommandError(
                Status.INVALID_OPCODE, _FCTYPE, message=f"fabrics command {sqe.fctype:02X}h is not supported here"
            )
        return spec
    if isinstance(ctx, ConnectContext):
        raise CommandError(Status.COMMAND_SEQUENCE_ERROR, _OPCODE, message=f"command {opcode:02X}h before Connect")
    table: Mapping[int, CommandSpec]
    if isinstance(ctx, AdminContext):
        table = commands.discovery if ctx.controller.discovery else commands.admin
        offered = ctx.subsystem
    else:
        namespace = ctx.namespaces.get(sqe.nsid)
        table = commands.io[Csi.NVM if namespace is None else namespace.csi]
        offered = None
    spec = table.get(opcode)
    if spec is None or (offered is not None and spec.offered is not always and not spec.offered(offered)):
        kind = "I/O" if ctx.qid else "admin"
        raise CommandError(Status.INVALID_OPCODE, _OPCODE, message=f"{kind} command {opcode:02X}h is not supported")
    return spec


def _check_states(ctx: AnyContext, spec: CommandSpec) -> None:
    """Raise `CommandError` for a command that is not legal in the state of its queue or of its controller."""
    state = ctx.queue_state
    if state not in spec.queue_states:
        if state is QueueState.UNCONNECTED:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR, _OPCODE, message=f"{spec.name} before Connect")
        if spec.queue_states is UNCONNECTED_ONLY:
            # As nvmet: nothing but authentication and properties follows a Connect.
            raise CommandError(Status.INVALID_OPCODE, _FCTYPE, message=f"{spec.name} on a queue that is connected")
        raise CommandError(
            Status.AUTHENTICATION_REQUIRED, message=f"{spec.name} on a queue whose host has not authenticated itself"
        )
    if ctx.state not in spec.states:
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR, _OPCODE, message=f"{spec.name} while the controller is {ctx.state.value}"
        )


def _check_sgl(ctx: AnyContext, sqe: Sqe, spec: CommandSpec, expected: int) -> int:
    """Return the bytes to transfer, after a check that SGL1 has a type for this direction and describes what the
    command needs."""
    length = sqe.sgl_length
    if sqe.sgl_type == DATA_BLOCK_IN_CAPSULE and spec.direction is Direction.HOST_TO_CONTROLLER:
        limit = ADMIN_INCAPSULE_BYTES
        if isinstance(ctx, IoContext):
            limit = ctx.limits.incapsule_bytes
        if sqe.sgl_address + length > limit:
            raise CommandError(
                Status.SGL_OFFSET_INVALID,
                _SGL,
                message=f"in-capsule data of {length} bytes at offset {sqe.sgl_address}; up to {limit} bytes are taken",
            )
    elif sqe.sgl_type != TRANSPORT_DATA_BLOCK:
        raise CommandError(
            Status.SGL_DESCRIPTOR_TYPE_INVALID,
            _SGL_TYPE,
            message=f"SGL descriptor type {sqe.sgl_type:02X}h cannot be used for {spec.name}",
        )
    if length != expected and not expected <= length <= spec.longer_sgl_bytes:
        raise CommandError(
            Status.DATA_SGL_LENGTH_INVALID,
            _SGL_LENGTH,
            message=f"{spec.name} moves {expected} bytes, its SGL describes {length}",
        )
    return length


def prepare(ctx: AnyContext, sqe: Sqe) -> tuple[CommandSpec, int]:
    """Execute all checks that come before data; return the row and the bytes of data to transfer (0: none).

    Raises `CommandError`; its completion is made by `ctx.refuse(sqe, error)`.
    """
    spec = lookup(ctx, sqe)
    _check_states(ctx, spec)
    if sqe.flags & FUSE_MASK and (not ctx.qid or FUSED_OPCODES.get(sqe.fuse) != sqe.opcode):
        raise CommandError(
            Status.INVALID_FIELD, SQE.error_location("flags"), message=f"{spec.name} cannot be fused so ({sqe.fuse})"
        )
    if sqe.opcode != FABRICS_OPCODE and not isinstance(ctx, ConnectContext):
        if sqe.flags >> PSDT_SHIFT != _SGL_PSDT:
            raise CommandError(
                Status.INVALID_FIELD,
                SQE.error_location("flags", 6),
                message="data over fabrics is described by SGLs (PSDT 01b)",
            )
        admit(ctx, spec, sqe)
    command = sqe if spec.decode is None else spec.command(ctx, sqe)
    spec.check(ctx, command)
    expected = spec.transfer_bytes(ctx, command)
    if expected == 0:
        return spec, 0
    return spec, _check_sgl(ctx, sqe, spec, expected)


def check_again(ctx: AnyContext, spec: CommandSpec, sqe: Sqe) -> None:
    """Repeat the checks whose result may have changed since `prepare`, for a command whose data came later. Raises
    `CommandError`."""
    _check_states(ctx, spec)
    if sqe.opcode != FABRICS_OPCODE and not isinstance(ctx, ConnectContext):
        admit(ctx, spec, sqe)
        expected = spec.transfer_bytes(ctx, spec.command(ctx, sqe))
        if expected != sqe.sgl_length:
            # The namespace has another block size now: the data that was requested does not fit the command.
            _check_sgl(ctx, sqe, spec, expected)


def execute(
    ctx: AnyContext, spec: CommandSpec, sqe: Sqe, data: memoryview | None = None
) -> Completion | Awaitable[Completion]:
    """Run a prepared command. Never raises: errors are completions, also those that come later.

    An awaitable must be awaited to its end, and not be cancelled while `data` could still be used.
    """
    ctx.counters.commands += 1
    try:
        command: Any = sqe
        if spec.decode is not None:
            command = spec.command(ctx, sqe)
            sqe.keep_decoded(None)  # the two would refer to each other in a circle
        result = spec.handler(ctx, command, data)
    except CommandError as error:
        return ctx.refuse(sqe, error)
    except Exception as error:
        return _failed(ctx, spec, sqe, error)
    if isinstance(result, Completion):
        return result
    if spec.abortable:
        result = AbortableAwait(ctx.waiting, sqe.cid, result, ctx.aborting)
    return _finish(ctx, spec, sqe, result)


async def _finish(ctx: AnyContext, spec: CommandSpec, sqe: Sqe, pending: Awaitable[Completion]) -> Completion:
    effects = ctx.effects if isinstance(ctx, IoContext) else None
    if effects is not None:
        effects.begun(ctx.runtime.now())
    try:
        return await pending
    except CommandError as error:
        return ctx.refuse(sqe, error)
    except Exception as error:
        return _failed(ctx, spec, sqe, error)
    finally:
        if effects is not None:
            effects.done(ctx.runtime.now())


def _failed(ctx: AnyContext, spec: CommandSpec, sqe: Sqe, error: Exception) -> Completion:
    """Make the completion of a command that failed by a defect of the target: it is logged, and other
    commands go on."""
    left_out = ctx.peer_log.hosts.admit(ctx.peer, ctx.runtime.now())
    if left_out is not None:
        kind = type(error).__name__
        logger.error("%s failed on queue %d: %s: %s%s", spec.name, ctx.qid, kind, error, left_out_text(left_out))
    logger.debug("%s", spec.name, exc_info=error)
    return ctx.refuse(sqe, CommandError(Status.INTERNAL_ERROR, message=str(error)))


__all__ = ["check_again", "execute", "lookup", "prepare"]
