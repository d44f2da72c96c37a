"""Compare and Write, the fused operation of the NVM Command Set (Fused Operation, Compare and Write).

The queue brings both commands' data together; here they are executed as one.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.sqe import FUSE_FIRST, FUSE_SECOND, SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import Completion
from nvmeof.target.commands.io.compare import compare_failure
from nvmeof.target.commands.io.nvm import active_namespace, committed, through
from nvmeof.target.core.aborting import AbortableAwait
from nvmeof.target.storage.base import SourceError

FUSED_OPCODES = {FUSE_FIRST: NvmOpcode.COMPARE, FUSE_SECOND: NvmOpcode.WRITE}
"""The commands that may come first and second."""

Completions = tuple[Completion, Completion]
logger = logging.getLogger(__name__)


def mismatch(first: Sqe, second: Sqe) -> CommandError | None:
    """Return the error of two commands that are no halves of one operation: another namespace or range."""
    for field, values in (
        ("nsid", (first.nsid, second.nsid)),
        ("cdw10", (first.slba, second.slba)),
        ("cdw12", (first.transfer_blocks, second.transfer_blocks)),
    ):
        if values[0] != values[1]:
            return CommandError(
                Status.INVALID_FIELD,
                SQE.error_location(field),
                message=f"the halves of a fused operation differ in {field}: {values[0]:#x} and {values[1]:#x}",
            )
    return None


def failed_fused() -> CommandError:
    """Make the refusal of the half whose other half failed. Without DNR: sent again, the pair may succeed."""
    return CommandError(Status.ABORTED_FAILED_FUSED, dnr=False, message="the other half of the fused operation failed")


def missing_fused() -> CommandError:
    """Make the refusal of a half that is alone. Without DNR: sent again, the pair may succeed."""
    return CommandError(
        Status.ABORTED_MISSING_FUSED, dnr=False, message="the other half of the fused operation is not beside it"
    )


def compare_and_write(
    ctx: IoContext, first: Sqe, second: Sqe, compare: memoryview, data: memoryview
) -> Completions | Awaitable[Completions]:
    """Execute both halves. Never raises: errors are completions."""
    ctx.counters.commands += 2
    try:
        namespace = active_namespace(ctx, first)
        fua = through(ctx, second)
        result = committed(first, namespace, lambda: namespace.compare_and_write(first.slba, compare, data, fua=fua))
    except Exception as error:
        return _failed(ctx, first, second, error)
    if isinstance(result, bool):
        return _compared(ctx, first, second, result)
    return _later(ctx, first, second, result)


async def _later(ctx: IoContext, first: Sqe, second: Sqe, pending: Awaitable[bool]) -> Completions:
    try:
        same = await AbortableAwait(ctx.waiting, first.cid, pending)
    except Exception as error:
        return _failed(ctx, first, second, error)
    return _compared(ctx, first, second, same)


def _compared(ctx: IoContext, first: Sqe, second: Sqe, same: bool) -> Completions:
    if same:
        lost = _lost(ctx, second)
        return Completion(), Completion() if lost is None else ctx.refuse(second, lost)
    return ctx.refuse(first, compare_failure(first)), ctx.refuse(second, failed_fused())


def _lost(ctx: IoContext, second: Sqe) -> CommandError | None:
    """Return the error of a write with FUA whose host has yet to learn that earlier writes may be lost."""
    namespace = ctx.namespaces.get(second.nsid)
    return namespace.tell_lost(ctx.hostid) if namespace is not None and through(ctx, second) else None


def _failed(ctx: IoContext, first: Sqe, second: Sqe, error: Exception) -> Completions:
    """Make the completions after an error: that of the comparison fails the first half, that of the write only the
    second."""
    if not isinstance(error, CommandError):
        logger.error("Compare and Write failed on queue %d: %s: %s", ctx.qid, type(error).__name__, error)
        logger.debug("Compare and Write", exc_info=error)
        error = CommandError(Status.INTERNAL_ERROR, message=str(error))
    elif isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EOPNOTSUPP:
        error = CommandError(Status.INVALID_FIELD, SQE.error_location("flags"), message="this backend cannot fuse")
    elif (
        isinstance(error.__cause__, OSError)
        and not isinstance(error.__cause__, SourceError)
        and error.status != Status.ABORTED_BY_REQUEST
    ):
        _lost(ctx, second)  # its completion ends with the error
        return Completion(), ctx.refuse(second, error)
    return ctx.refuse(first, error), ctx.refuse(second, failed_fused())
