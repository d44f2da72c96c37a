"""Compare: the host's data against that of the namespace (NVM Command Set, Compare command)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.enums import Csi, NvmOpcode, Oncs
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import Access, CommandRow, Completion, Direction, IoRows, NsidRule
from nvmeof.target.commands.io.nvm import active_namespace, block_bytes, check_transfer, committed


def compare(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Compare. Raises Compare Failure when the data differs."""
    assert data is not None
    namespace = active_namespace(ctx, sqe)
    result = committed(sqe, namespace, lambda: namespace.compare(sqe.slba, data))
    return _compared(sqe, result) if isinstance(result, bool) else _compare_later(sqe, result)


def compare_failure(sqe: Sqe) -> CommandError:
    """Make the error of a Compare whose blocks hold other data."""
    return CommandError(
        Status.COMPARE_FAILURE,
        message=f"blocks {sqe.slba}..{sqe.slba + sqe.transfer_blocks - 1} of namespace {sqe.nsid} hold other data",
    )


def _compared(sqe: Sqe, same: bool) -> Completion:
    if not same:
        raise compare_failure(sqe)
    return Completion()


async def _compare_later(sqe: Sqe, pending: Awaitable[bool]) -> Completion:
    return _compared(sqe, await pending)


ROWS: Final = IoRows(
    {
        Csi.NVM: (
            CommandRow(
                opcode=NvmOpcode.COMPARE,
                access=Access.READ,
                name="Compare",
                lba_in_cdw10=True,
                abortable=True,
                handler=compare,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=block_bytes,
                check=check_transfer,
                nsid=NsidRule.ACTIVE,
                oncs=Oncs.COMPARE,
                remark="also fused with Write, up to the memory that is reserved for both (docs/isolation.md); "
                "ACWU is 32 KiB",
            ),
        )
    }
)
