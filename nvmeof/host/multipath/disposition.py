"""The next step of a command that a controller completed with an error: Linux's rules, as a function without state.

Source: nvme_decide_disposition, nvme_is_path_error, nvme_is_ana_error and nvme_retry_req of drivers/nvme/host (Linux
6.12). :func:`decide` says where this host differs, and why. Commands whose connection was lost before their
completion are not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.status import Status, path_error, split_status

MAX_RETRIES: Final = 5
"""How often a command is retried: nvme_core.max_retries."""
CRDT_SECONDS: Final = 0.1
"""Unit of the Command Retry Delay Times of Identify Controller."""
ANA_ERRORS: Final = frozenset({Status.ANA_TRANSITION, Status.ANA_INACCESSIBLE, Status.ANA_PERSISTENT_LOSS})
"""The controller works, but cannot reach the namespace: its ANA log is read again (nvme_is_ana_error)."""
BLOCK_LAYER: Final = frozenset(
    {NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.FLUSH, NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT}
)
"""The commands that Linux's block layer sends. All are idempotent: executed twice in a row they leave the same data."""


class Disposition(Enum):
    """The next step of a completed command."""

    COMPLETE = "completed: the caller gets its status"
    RETRY = "sent again on the same path"
    FAILOVER = "sent again on another path"


def decide(field: int, opcode: int, *, retries: int = 0) -> Disposition:
    """Decide the next step of a command, given the 16-bit status word ``field`` of its CQE (phase bit 0).

    ``opcode``: of the I/O command. ``retries``: how often it was sent again on its path, or after
    a path error that is no ANA state.

    Three differences from Linux. Authentication Required (191h) is completed, since no further authentication is
    possible. Commands that the block layer does not send (Compare, reservations, Zone Append, passthrough) are never
    retried, as in Linux; but after an ANA status they are sent over another path, which Linux leaves to the caller: the
    status says that the command was not executed. Path errors that are no ANA state count as retries: Linux sends such
    a command from path to path without limit.
    """
    if field < 2:
        return Disposition.COMPLETE
    status, dnr, _more = split_status(field)
    if dnr or status == Status.AUTHENTICATION_REQUIRED:
        return Disposition.COMPLETE
    if status in ANA_ERRORS:
        return Disposition.FAILOVER
    if opcode not in BLOCK_LAYER or retries >= MAX_RETRIES:
        return Disposition.COMPLETE
    return Disposition.FAILOVER if path_error(status) else Disposition.RETRY


def is_ana_error(field: int) -> bool:
    """Return whether a CQE's status word says that the namespace cannot be reached through this controller now."""
    return split_status(field)[0] in ANA_ERRORS


def retry_delay(field: int, crdt: Sequence[int]) -> float:
    """Return the seconds until a retry: CRD of the status word chooses one of ``crdt`` (CRDT1 to CRDT3, in 100 ms); 0
    for none."""
    index = field >> 12 & 3
    return crdt[index - 1] * CRDT_SECONDS if index else 0.0
