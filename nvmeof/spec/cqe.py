"""The completion queue entry, 16 bytes (NVMe Base, Common Completion Queue Entry Layout; Fabrics Response Capsule)."""

from __future__ import annotations

from dataclasses import dataclass

import construct as c

from nvmeof.wire import U16, U32, Record


@dataclass(slots=True)
class Cqe:
    """One completion. ``status`` is the 16-bit word: phase (0 over fabrics), SC, SCT, CRD, M, DNR from bit 0 up."""

    dw0: int = 0
    dw1: int = 0
    sqhd: int = 0
    sqid: int = 0
    cid: int = 0
    status: int = 0

    @property
    def result(self) -> int:
        """DW0 and DW1 as one 64-bit value (Property Get of an 8-byte property)."""
        return self.dw0 | self.dw1 << 32


CQE: Record[Cqe] = Record(
    c.Struct("dw0" / U32, "dw1" / U32, "sqhd" / U16, "sqid" / U16, "cid" / U16, "status" / U16),
    Cqe,
)
CQE_BYTES = 16
