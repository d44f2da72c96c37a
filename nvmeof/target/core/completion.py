"""The outcome of a command, before a queue turns it into a CQE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvmeof.wire import Buffer


@dataclass(slots=True)
class Completion:
    """Status, result dwords and, for a controller-to-host transfer, the data.

    `status` is a `Status` value (SCT << 8 | SC). `data` stays valid until `release` is called (when there is one); the
    sender of the completion calls it exactly once. `stable` False: the data may still change, see `Lease`. `more`: the
    Error Information log has an entry of it. `ends`: why the queue ends once this completion has been sent; empty: it
    goes on.
    `forgotten`: it is not sent, since its CID has become another command's.
    """

    status: int = 0
    dnr: bool = False
    dw0: int = 0
    dw1: int = 0
    data: Buffer | None = None
    release: Callable[[], None] | None = None
    stable: bool = True
    more: bool = False
    ends: str = ""
    forgotten: bool = False


__all__ = ["Completion"]
