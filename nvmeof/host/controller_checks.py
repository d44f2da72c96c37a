"""What a host refuses of a controller while it connects, and how it says so."""

from __future__ import annotations

from typing import Final

from nvmeof.errors import NvmeofError, NvmeStatusError, TransportError
from nvmeof.host.options import ConnectOptions
from nvmeof.host.results import IdentifyController
from nvmeof.spec.connect import describe_connect_invalid
from nvmeof.spec.status import Status

MIN_IOCCSZ: Final = 4
"""IOCCSZ of capsules that hold an SQE and no data."""
MIN_IORCSZ: Final = 1


def check_fabrics_limits(info: IdentifyController, name: str) -> None:
    """Refuse a controller that no I/O queue can work with, as nvme_check_ctrl_fabric_info of Linux does.

    Raises :class:`TransportError`, one sentence.
    """
    if info.icdoff:
        raise TransportError(f"{name} puts in-capsule data at an offset (ICDOFF {info.icdoff}), which is not supported")
    if not info.kas:
        raise TransportError(f"{name} has no keep alive (KAS 0), which is mandatory over fabrics: update the target")
    if info.ioccsz < MIN_IOCCSZ:
        raise TransportError(
            f"{name} takes I/O command capsules of {info.ioccsz * 16} bytes (IOCCSZ {info.ioccsz}), "
            f"and a command has {MIN_IOCCSZ * 16}: update the target"
        )
    if info.iorcsz < MIN_IORCSZ:
        raise TransportError(
            f"{name} sends I/O response capsules of 0 bytes (IORCSZ 0), and a completion has {MIN_IORCSZ * 16}: "
            "update the target"
        )


def connect_refused(error: NvmeStatusError, qid: int, options: ConnectOptions) -> NvmeofError:
    """Make the error of a refused Connect, with the parameter that it names (DW0: IPO, and IATTR in bit 16)."""
    invalid = error.status == Status.CONNECT_INVALID_PARAMETERS
    where = f" (it names {describe_connect_invalid(error.dw0)})" if invalid else ""
    queue = "the controller" if qid == 0 else f"I/O queue {qid}"
    return NvmeStatusError(
        error.status, f"{options.subnqn} refused {queue}: {error}{where}", dnr=error.dnr, dw0=error.dw0
    )
