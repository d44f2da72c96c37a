"""The way of a command through its row: look up, check, execute.

A queue calls `prepare` for every command before any data moves, and `execute` when the data (if any) is there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping

from nvmeof.errors import CommandError
from nvmeof.spec.connect import CONNECT
from nvmeof.spec.enums import FABRICS_OPCODE, Csi
from nvmeof.spec.sgl import DATA_BLOCK_IN_CAPSULE, TRANSPORT_DATA_BLOCK, Psdt
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.admission import admit
from nvmeof.target.commands.dispatch.base import CommandSpec, Completion, Direction, always
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.io.fused import FUSED_OPCODES
from nvmeof.target.core.aborting import AbortableAwait
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.states import UNCONNECTED_ONLY

ADMIN_INCAPSULE_BYTES = 8192
"""What an admin capsule may carry: fixed by the NVMe/TCP transport."""

logger = logging.getLogger(__name__)
_OPCODE = SQE.error_location("opcode")
_FCTYPE = CONNECT.error_location("fctype")
_SGL = SQE.error_location("sgl_address")
_SGL_LENGTH = SQE.error_location("sgl_length")
_SGL_TYPE = SQE.error_location("sgl_type")


def lookup(ctx: CommandContext, sqe: Sqe) -> CommandSpec:
    """The row of a command on this queue. Raises Invalid Opcode, or Command Sequence Error before Connect."""
    opcode, commands = sqe.opcode, ctx.tables[CommandTables]
    if opcode == FABRICS_OPCODE:
        spec = (commands.fabrics_io if ctx.qid else commands.fabrics_admin).get(sqe.fctype)
        if spec is None:
            raise CommandError(
                Status.INVALID_OPCODE, _FCTYPE, message=f"fabrics command {sqe.fctype:02X}h is not supported here"
            )
        return spec
    controller = ctx.controller
    if controller is None:
        raise CommandError(Status.COMMAND_SEQUENCE_ERROR, _OPCODE, message=f"command {opcode:02X}h before Connect")
    table: Mapping[int, CommandSpec]
    if ctx.qid:
        namespace = ctx.namespaces.get(sqe.nsid)
        table = commands.io[Csi.NVM if namespace is None else namespace.csi]
    else:
        table = commands.discovery if controller.discovery else commands.admin
    spec = table.get(opcode)
    if spec is None or (spec.offered is not always and not spec.offered(controller.subsystem)):
        kind = "I/O" if ctx.qid else "admin"
        raise CommandError(Status.INVALID_OPCODE, _OPCODE, message=f"{kind} command {opcode:02X}h is not supported")
    return spec


def _out_of_state(ctx: CommandContext, spec: CommandSpec) -> CommandError:
    if spec.states is UNCONNECTED_ONLY:  # as nvmet: nothing but authentication and properties follows a Connect
        return CommandError(Status.INVALID_OPCODE, _FCTYPE, message=f"{spec.name} on a queue that is connected")
    return CommandError(
        Status.COMMAND_SEQUENCE_ERROR, _OPCODE, message=f"{spec.name} while the controller is {ctx.state.value}"
    )


def _check_sgl(ctx: CommandContext, sqe: Sqe, spec: CommandSpec, expected: int) -> int:
    """How many bytes move. SGL1 must be of a kind that this direction has, and describe what the command needs."""
    length = sqe.sgl_length
    if sqe.sgl_type == DATA_BLOCK_IN_CAPSULE and spec.direction is Direction.HOST_TO_CONTROLLER:
        limit = ADMIN_INCAPSULE_BYTES
        if ctx.qid and ctx.subsystem is not None:
            limit = ctx.subsystem.config.incapsule_bytes
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


def prepare(ctx: CommandContext, sqe: Sqe) -> tuple[CommandSpec, int]:
    """All checks that come before data: the row, and how many bytes of data move (0: none).

    Raises `CommandError`; its completion is made by `ctx.refuse(sqe, error)`.
    """
    spec = lookup(ctx, sqe)
    if ctx.state not in spec.states:
        raise _out_of_state(ctx, spec)
    if sqe.fuse and (not ctx.qid or FUSED_OPCODES.get(sqe.fuse) != sqe.opcode):
        raise CommandError(
            Status.INVALID_FIELD, SQE.error_location("flags"), message=f"{spec.name} cannot be fused so ({sqe.fuse})"
        )
    if sqe.opcode != FABRICS_OPCODE:
        if sqe.psdt != Psdt.SGL_CONTIGUOUS_METADATA:
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


def check_again(ctx: CommandContext, spec: CommandSpec, sqe: Sqe) -> None:
    """What may have changed since `prepare`, for a command whose data came some time later. Raises `CommandError`."""
    if ctx.state not in spec.states:
        raise _out_of_state(ctx, spec)
    if sqe.opcode != FABRICS_OPCODE:
        admit(ctx, spec, sqe)
        expected = spec.transfer_bytes(ctx, spec.command(ctx, sqe))
        if expected != sqe.sgl_length:
            # It has blocks of another size now: the data that was asked for is not what the command needs any more.
            _check_sgl(ctx, sqe, spec, expected)


def execute(
    ctx: CommandContext, spec: CommandSpec, sqe: Sqe, data: memoryview | None = None
) -> Completion | Awaitable[Completion]:
    """Run a prepared command. Never raises: errors are completions, also those that come later.

    An awaitable must be awaited to its end, and not be cancelled while `data` could still be used.
    """
    ctx.counters.commands += 1
    try:
        result = spec.handler(ctx, sqe if spec.decode is None else spec.command(ctx, sqe), data)
    except CommandError as error:
        return ctx.refuse(sqe, error)
    except Exception as error:
        return _failed(ctx, spec, sqe, error)
    if isinstance(result, Completion):
        return result
    if spec.abortable:
        result = AbortableAwait(ctx.waiting, sqe.cid, result, ctx.aborting)
    return _finish(ctx, spec, sqe, result)


async def _finish(ctx: CommandContext, spec: CommandSpec, sqe: Sqe, pending: Awaitable[Completion]) -> Completion:
    lifetime = ctx.subsystem.lifetime if ctx.qid and ctx.subsystem is not None else None
    if lifetime is not None:
        lifetime.begin(ctx.runtime.now())
    try:
        return await pending
    except CommandError as error:
        return ctx.refuse(sqe, error)
    except Exception as error:
        return _failed(ctx, spec, sqe, error)
    finally:
        if lifetime is not None:
            lifetime.end(ctx.runtime.now())


def _failed(ctx: CommandContext, spec: CommandSpec, sqe: Sqe, error: Exception) -> Completion:
    """A defect of ours: one command fails, and says so in the log; the others go on."""
    left_out = ctx.registry.peer_log.hosts.admit(ctx.peer, ctx.runtime.now())
    if left_out is not None:
        kind = type(error).__name__
        logger.error("%s failed on queue %d: %s: %s%s", spec.name, ctx.qid, kind, error, left_out_text(left_out))
    logger.debug("%s", spec.name, exc_info=error)
    return ctx.refuse(sqe, CommandError(Status.INTERNAL_ERROR, message=str(error)))


__all__ = ["check_again", "execute", "lookup", "prepare"]
