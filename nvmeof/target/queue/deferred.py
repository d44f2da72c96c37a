"""Commands that wait for their data: the contexts of their `R2tTransfer`.

A command of the general path has a `DeferredCommand`; a Write of the fast path has its `CommandTemplate` and its SLBA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.target.commands.dispatch.base import CommandSpec
from nvmeof.target.core.admission import AdmissionToken
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.storage.base import Runs

NO_BUFFER: Final = memoryview(b"")
COLUMN_ROWS: Final = 512
"""As many commands as a batch may have."""


@dataclass(slots=True, eq=False)
class DeferredCommand:
    """Context of a transfer for a command of the general path: what is executed when the data has arrived."""

    spec: CommandSpec
    sqe: Sqe


@dataclass(slots=True)
class CommandTemplate:
    """A checked command of the general path; the fast path changes only its CID and SLBA."""

    word: int
    nsid: int
    sgl: int
    cdw12: int
    namespace: Namespace
    memory: memoryview  # empty for a backend with runs
    runs: Runs | None
    admission_token: AdmissionToken
    length: int
    shift: int
    max_slba: int
    spec: CommandSpec
    staged: bool  # its data is collected before any of it goes to the memory
    block_bytes: int
    blocks: int
    raw: bytes  # its SQE
    columns: tuple[memoryview, memoryview, memoryview, memoryview] | None = None
    """The result of `columns_of`."""

    def sqe(self, cid: int, slba: int) -> Sqe:
        """Return the command with another CID and SLBA."""
        return replace(SQE.unpack_from(self.raw), cid=cid, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32)


@lru_cache(maxsize=64)
def _column(value: bytes, kind: str) -> memoryview:
    return memoryview(value * COLUMN_ROWS).cast(kind)  # type: ignore[call-overload, no-any-return]


def columns_of(template: CommandTemplate) -> tuple[memoryview, memoryview, memoryview, memoryview]:
    """Make the columns that a run is compared with: opcode and flags, NSID, SGL1's length and type, CDW12 and 13."""
    raw = template.raw
    columns = _column(raw[:2], "H"), _column(raw[4:8], "I"), _column(raw[32:40], "Q"), _column(raw[48:56], "Q")
    template.columns = columns
    return columns


def command_of(transfer: R2tTransfer) -> tuple[CommandSpec, Sqe]:
    """Return the row and the command that a transfer is for."""
    context = transfer.context
    if isinstance(context, DeferredCommand):
        return context.spec, context.sqe
    template, slba = shortened(transfer)
    return template.spec, template.sqe(transfer.cid, slba)


def shortened(transfer: R2tTransfer) -> tuple[CommandTemplate, int]:
    """Return template and SLBA of a Write that took the fast path."""
    context: Any = transfer.context
    template: CommandTemplate = context[0]
    return template, context[1]


def nsid_of(transfer: R2tTransfer) -> int:
    """Return the NSID of the command that a transfer is for."""
    context = transfer.context
    return context.sqe.nsid if isinstance(context, DeferredCommand) else shortened(transfer)[0].nsid


def staging_of(transfer: R2tTransfer) -> memoryview | None:
    """Return the pool's memory that the data is staged in; None when it goes straight to the namespace."""
    if isinstance(transfer.context, DeferredCommand) or shortened(transfer)[0].staged:
        return transfer.buffer
    return None
