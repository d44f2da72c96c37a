"""Data in a command capsule, and the SGL that should describe it."""

from __future__ import annotations

from typing import Final

from nvmeof.errors import CommandError
from nvmeof.protocol.events import CommandData
from nvmeof.spec.sgl import DATA_BLOCK_IN_CAPSULE
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status

_LOCATION: Final = SQE.error_location("sgl_length")


def capsule_data(sqe: Sqe, length: int, capsule: CommandData | None) -> memoryview | None:
    """Return a command's in-capsule data. Raises `CommandError` when SGL1 does not match the capsule."""
    in_capsule = length > 0 and sqe.sgl_type == DATA_BLOCK_IN_CAPSULE
    if capsule is None:
        if in_capsule:
            raise CommandError(
                Status.DATA_SGL_LENGTH_INVALID, _LOCATION, message=f"{length} bytes should be in the capsule"
            )
        return None
    first = sqe.sgl_address  # an offset in the capsule, as SGLS says
    if not in_capsule or len(capsule.data) < first + length:
        raise CommandError(
            Status.DATA_SGL_LENGTH_INVALID,
            _LOCATION,
            message=f"{len(capsule.data)} bytes are in a capsule whose SGL says {length if in_capsule else 'none'}",
        )
    if not capsule.digest_ok:
        raise CommandError(
            Status.TRANSIENT_TRANSPORT_ERROR, dnr=False, message="the digest of in-capsule data is wrong"
        )
    return capsule.data[first : first + length]
