"""Which logical blocks a command changes: what a replayed write may be overtaken by, and what not."""

from __future__ import annotations

from typing import Final

from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.sqe import SQE

_EVERYTHING: Final = (0, 1 << 64)
_ONE_RANGE: Final = frozenset({NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES})


def footprint(sqe: bytes) -> tuple[int, int] | None:
    """Return the first block that an I/O command changes and the block after the last; None where it changes none.

    Dataset Management counts as changing everything: its ranges are in its data.
    """
    opcode = sqe[0]
    if opcode in _ONE_RANGE:
        command = SQE.unpack_from(sqe)
        return command.slba, command.slba + command.transfer_blocks
    return _EVERYTHING if opcode == NvmOpcode.DATASET_MANAGEMENT else None


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two footprints have a block in common."""
    return one[0] < other[1] and other[0] < one[1]
