"""What the properties of a controller may be set to, and what they say of it (NVMe Base, Controller Properties)."""

from __future__ import annotations

from nvmeof.errors import CommandError
from nvmeof.spec.connect import PROPERTY_SET
from nvmeof.spec.properties import Cap, CapCss, Cc, CcCss, Crms
from nvmeof.spec.status import Status
from nvmeof.target.subsystem.config import SubsystemConfig

SQE_BYTES = 64
CQE_BYTES = 16
CC_WRITABLE = 0x00FFFFF1
"""The rest of CC is reserved, or (CRIME) read-only and zero."""

_CAPABLE_COMMAND_SETS = (CcCss.NVM, CcCss.ALL_SUPPORTED)
_WHEN_DISABLED = 0x3FF0  # CSS, MPS, AMS
_ENTRY_SIZES = 0xFF0000  # IOSQES, IOCQES
_SHN_BIT = 14


def capabilities(config: SubsystemConfig, *, discovery: bool) -> Cap:
    """Return CAP, the Controller Capabilities property."""
    return Cap(
        mqes_entries=config.max_queue_entries,
        cqr=True,
        timeout_seconds=config.ready_timeout_seconds,
        nssrs=not discovery,
        nsss=not discovery,
        nsses=not discovery,
        css=CapCss.NVM | CapCss.IO_COMMAND_SETS,
        crms=Crms.WITH_MEDIA,
    )


def usable(configuration: Cc, *, discovery: bool) -> bool:
    """Return whether a controller can be enabled with these values of CC. Entry sizes may be set later; a discovery
    controller has none."""
    if configuration.css not in _CAPABLE_COMMAND_SETS or configuration.mps_bytes != 4096 or configuration.ams:
        return False
    return discovery or (configuration.iosqes_bytes in (SQE_BYTES, 1) and configuration.iocqes_bytes in (CQE_BYTES, 1))


def check_cc(old: int, new: int, *, io_queues: bool) -> None:
    """Raise Invalid Field in Command, at its bit, for a change of CC that is not allowed now (NVMe Base, Controller
    Configuration)."""
    if new >> _SHN_BIT & 3 == 3:
        raise CommandError(
            Status.INVALID_FIELD, PROPERTY_SET.error_location("value", _SHN_BIT), message="CC.SHN 11b is reserved"
        )
    fixed = (_WHEN_DISABLED if old & new & 1 else 0) | (_ENTRY_SIZES if new & 1 and io_queues else 0)
    changed = (old ^ new) & fixed
    if changed:
        bit = (changed & -changed).bit_length() - 1
        raise CommandError(
            Status.INVALID_FIELD,
            PROPERTY_SET.error_location("value", bit),
            message=f"CC from {old:#x} to {new:#x}: that cannot be changed while the controller is enabled",
        )
