"""The Protocol of what carries a namespace's I/O, so that namespace and controller do not know each other.

:class:`nvmeof.host.controller.Controller` is one: its I/O goes over its own queues. A
:class:`nvmeof.host.multipath.head.NamespaceHead` is another: it has several controllers of one subsystem, picks one of
them for each command, and sends the command again over another when a path fails. Namespaces and their users do not see
the difference.

This module must not know queues, devices or connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from nvmeof.host.batch import IoBatch
from nvmeof.host.requests import DEFAULT_OPTIONS, CommandPart, RequestOptions
from nvmeof.host.results import IdentifyNamespace
from nvmeof.runtime import Runtime
from nvmeof.spec.sqe import DSM_MAX_RANGES
from nvmeof.wire import Buffer


@dataclass(frozen=True, slots=True)
class NvmLimits:
    """Limits of commands without data and of Dataset Management (Identify CNS 06h, NVM Command Set).

    0 bytes: no limit.
    """

    write_zeroes_bytes: int = 0
    dsm_ranges: int = DSM_MAX_RANGES
    dsm_range_blocks: int = 0xFFFFFFFF
    verify_bytes: int = 0
    write_uncorrectable_bytes: int = 0
    compare_and_write: bool = True
    """FUSES of Identify Controller: the fused operation is supported."""

    @classmethod
    def common(cls, limits: Iterable[NvmLimits]) -> NvmLimits:
        """Return the limits that hold under all of ``limits``, at least one."""
        known = list(limits)

        def least(values: Iterable[int]) -> int:
            return min((value for value in values if value), default=0)

        return cls(
            least(each.write_zeroes_bytes for each in known),
            min(each.dsm_ranges for each in known),
            min(each.dsm_range_blocks for each in known),
            least(each.verify_bytes for each in known),
            least(each.write_uncorrectable_bytes for each in known),
            all(each.compare_and_write for each in known),
        )


class IoPort(Protocol):
    """Carries the commands of namespaces to a subsystem. Its methods raise :class:`NvmeofError` as commands do."""

    @property
    def subnqn(self) -> str:
        """NQN of the subsystem, for messages."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Starts what a namespace does beside its caller, such as reading ahead."""
        ...

    @property
    def max_transfer_bytes(self) -> int:
        """Most bytes that one command may transfer: MDTS and the device's own limit."""
        ...

    async def io(
        self,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        """Send one I/O command; return DW0 | DW1 << 32 of its completion."""
        ...

    async def io_transfer(self, parts: Iterator[CommandPart], *, hold: bool = True) -> int:
        """Send many I/O commands as one operation; the results of all, or'ed."""
        ...

    async def io_batch(self, batch: IoBatch) -> None:
        """Send Reads or Writes of one length as one operation. After an error ``batch.unfinished`` says which are left.

        A port that has no better way sends ``batch.parts()`` with :meth:`io_transfer`.
        """
        ...

    async def io_fused(self, halves: tuple[bytes, bytes], compare: Buffer, write: Buffer, *, hold: bool = True) -> None:
        """Send the halves of a fused operation, each with its data, as one operation on one queue."""
        ...

    async def execute_admin(
        self,
        sqe: bytes,
        /,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        """Send one admin command that only reads, and so may be repeated; return DW0 | DW1 << 32 of its completion."""
        ...

    async def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace (CNS 00h); all zero for a namespace that is not active."""
        ...

    async def nvm_limits(self) -> NvmLimits:
        """Return the limits of Write Zeroes and Dataset Management; read from the controller when first needed."""
        ...
