"""Verify: blocks are read, and nothing is transferred (NVM Command Set, Verify command)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.enums import Csi, NvmOpcode, Oncs
from nvmeof.spec.sqe import CDW12_PRACT, SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import Access, CommandRow, Completion, IoRows, NsidRule
from nvmeof.target.commands.io.nvm import active_namespace, check_extension, committed, completed

VERIFY_LIMIT_BYTES = 8 << 20
"""Upper bound per Verify (VSL), so that one command cannot occupy a worker thread for long."""


def check_verify(ctx: IoContext, sqe: Sqe) -> None:
    """Check that the range is within VSL (MDTS does not apply) and the namespace (NVM Command Set, Verify command).
    PRACT has no effect without protection information."""
    namespace = active_namespace(ctx, sqe)
    check_extension(sqe)
    if sqe.cdw12 & CDW12_PRACT:
        raise CommandError(Status.INVALID_FIELD, SQE.error_location("cdw12", 29), message="Verify with PRACT")
    length = sqe.transfer_blocks << namespace.block_shift
    if length > VERIFY_LIMIT_BYTES:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw12"),
            message=f"to verify {length} bytes is more than VSL ({VERIFY_LIMIT_BYTES} bytes)",
        )
    namespace.check_range(sqe.slba, sqe.transfer_blocks)


def verify(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Verify."""
    namespace = active_namespace(ctx, sqe)
    return completed(committed(sqe, namespace, lambda: namespace.verify(sqe.slba, sqe.transfer_blocks)))


ROWS: Final = IoRows(
    {
        Csi.NVM: (
            CommandRow(
                opcode=NvmOpcode.VERIFY,
                access=Access.READ,
                name="Verify",
                lba_in_cdw10=True,
                abortable=True,
                handler=verify,
                check=check_verify,
                nsid=NsidRule.ACTIVE,
                oncs=Oncs.VERIFY,
            ),
        )
    }
)
