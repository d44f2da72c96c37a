"""The Endurance Group Information log page, 09h (NVMe Base 2.x)."""

from __future__ import annotations

import construct as c

from nvmeof.wire import U8, U16, U128

ENDURANCE_GROUP = c.Struct(
    "egcw" / U8,
    "egfeat" / U8,
    c.Padding(1),
    "avsp" / U8,
    "avspt" / U8,
    "pused" / U8,
    "did" / U16,
    c.Padding(24),
    "ee" / U128,
    "dur" / U128,
    "duw" / U128,
    "muw" / U128,
    "hrc" / U128,
    "hwc" / U128,
    "mdie" / U128,
    "neile" / U128,
    "tegcap" / U128,
    "uegcap" / U128,
    c.Padding(320),
)
"""512 bytes. ``ee dur duw muw``: billions of bytes, rounded up, 0 where not reported. ``tegcap uegcap``: bytes."""
UNIT_BYTES = 1_000_000_000
"""Of the fields in billions."""
