"""The events of a connection, for its driver. Views into the receive buffer hold until the next ``next_buffer``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..errors import PduError
from ..pdu.capsule import CAPSULE_CMD_BYTES
from ..pdu.header import CH_BYTES
from .transfers import R2tTransfer


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The results of ICReq and ICResp, in bytes and counts (0's based values are converted)."""

    header_digest: bool
    data_digest: bool
    send_pda_bytes: int
    """Alignment of the data that we send."""
    receive_pda_bytes: int
    """Alignment of the data that we receive."""
    maxr2t: int
    """R2Ts that the target may have outstanding for one command."""
    maxh2cdata_bytes: int
    """The most data that one H2CData may bring."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is done."""

    parameters: Negotiated


@dataclass(slots=True)
class CommandBatch:
    """Target: ``count`` commands without data in their capsules; capsule i begins at ``view[i * stride]``."""

    view: memoryview
    count: int
    stride: int


@dataclass(slots=True)
class CommandData:
    """Target: one command with data in its capsule. ``digest_ok`` is false when the data's digest is not its own."""

    sqe: memoryview
    data: memoryview
    digest_ok: bool


@dataclass(slots=True)
class CommandDataRun:
    """Target: ``count`` commands with equally long data in their capsules, all of whose digests are right.

    Capsule i begins at ``view[i * stride]``, its data, ``length`` bytes, ``offset`` bytes later.
    """

    view: memoryview
    count: int
    stride: int
    offset: int
    length: int

    def data(self) -> list[memoryview]:
        """Return the data of each command."""
        view, length = self.view, self.length
        return [view[at : at + length] for at in range(self.offset, self.count * self.stride, self.stride)]

    def commands(self) -> list[CommandData]:
        """Return the commands one by one."""
        view, stride, begin, end = self.view, self.stride, CH_BYTES, CAPSULE_CMD_BYTES
        return [
            CommandData(view[at + begin : at + end], data, True)
            for at, data in zip(range(0, self.count * stride, stride), self.data(), strict=True)
        ]


@dataclass(slots=True)
class Completions:
    """Host: (CID, status field as in the CQE, DW0, DW1) of commands that have ended, in the order of arrival."""

    entries: list[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Terminated:
    """The peer sent a TermReq: nothing more will come of this connection."""

    fes: int
    fei: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ProtocolFailure:
    """The peer broke a rule. The TermReq is queued: send it, then close."""

    error: PduError


@dataclass(frozen=True, slots=True)
class Deviation:
    """The peer departs from the specification in a way that is tolerated; reported once per connection."""

    message: str


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer has closed its side."""


Event: TypeAlias = (
    Ready
    | CommandBatch
    | CommandData
    | CommandDataRun
    | R2tTransfer
    | Completions
    | Terminated
    | ProtocolFailure
    | Deviation
    | PeerClosed
)
