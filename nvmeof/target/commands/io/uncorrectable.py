"""Write Uncorrectable: blocks that cannot be read until they are written (NVM Command Set)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from nvmeof.spec.enums import CommandEffects, Csi, NvmOpcode, Oncs
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import Access, CommandRow, Completion, IoRows, NsidRule
from nvmeof.target.commands.io.nvm import active_namespace, check_directive, completed


def check_write_uncorrectable(ctx: IoContext, sqe: Sqe) -> None:
    """Check the range, of any size (WUSL 0), and that the namespace may be written (NVM Command Set, Write
    Uncorrectable command)."""
    namespace = active_namespace(ctx, sqe)
    check_directive(sqe)
    namespace.check_range(sqe.slba, sqe.transfer_blocks)
    namespace.check_writable()


def write_uncorrectable(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Write Uncorrectable."""
    return completed(active_namespace(ctx, sqe).mark_uncorrectable(sqe.slba, sqe.transfer_blocks))


ROWS: Final = IoRows(
    {
        Csi.NVM: (
            CommandRow(
                opcode=NvmOpcode.WRITE_UNCORRECTABLE,
                access=Access.WRITE,
                name="Write Uncorrectable",
                lba_in_cdw10=True,
                handler=write_uncorrectable,
                check=check_write_uncorrectable,
                nsid=NsidRule.ACTIVE,
                effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
                oncs=Oncs.WRITE_UNCORRECTABLE,
                remark="stored beside the data of a file",
            ),
        )
    }
)
