"""CapsuleCmd and CapsuleResp (NVMe TCP Transport specification, sections 3.6.2.6 and 3.6.2.7).

A capsule's header is the common header and, after it, the SQE or CQE; those are declared in :mod:`nvmeof.spec`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from ..spec.cqe import CQE
from ..spec.sqe import SQE
from .header import CH, CH_BYTES, CommonHeader, PduType

CAPSULE_CMD_BYTES: Final = CH_BYTES + SQE.size
CAPSULE_RESP_BYTES: Final = CH_BYTES + CQE.size

# A whole CapsuleResp in one pack: the common header's fields, then the CQE's.
CAPSULE_RESP: Final = Struct(CH.struct.format + CQE.struct.format.removeprefix("<"))


def command_header(flags: int, pdo: int, plen: int) -> bytes:
    """Build the common header of a CapsuleCmd."""
    return CH.pack(CommonHeader(PduType.CAPSULE_CMD, flags, CAPSULE_CMD_BYTES, pdo, plen))
