"""What one end of a queue connection asks for and allows, and who listens in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import LocalProtocolError
from ..pdu.handshake import MIN_MAXH2CDATA_BYTES
from ..pdu.header import PDA_MAX_BYTES, PDA_UNIT_BYTES
from ..wire import Buffer

BACKLOG_BYTES: Final = 8 << 20
"""A target stops reading while more than this, or so many buffers, wait to be sent."""
BACKLOG_BUFFERS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionConfig:
    """The options and limits of this end of a connection. All sizes in bytes."""

    header_digest: bool = False
    """Host: ask for header digests. Target: grant them when asked."""
    data_digest: bool = False
    """The same for data digests."""
    pda_bytes: int = 4
    """Alignment that we ask of the data that arrives (HPDA or CPDA): a multiple of 4, at most 128."""
    maxr2t: int = 1
    """Host: how many R2Ts one command may have outstanding."""
    maxh2cdata_bytes: int = 1 << 20
    """Target: the most data that one H2CData may bring (at least 4,096)."""
    r2t_bytes: int | None = None
    """Target: the most data that one R2T asks for; None asks for all at once."""
    incapsule_bytes: int = 8192
    """The most data in a command capsule, until ``set_incapsule`` says otherwise."""
    receive_buffer_bytes: int = 32 * 1024

    def __post_init__(self) -> None:
        if self.pda_bytes % PDA_UNIT_BYTES or not PDA_UNIT_BYTES <= self.pda_bytes <= PDA_MAX_BYTES:
            raise LocalProtocolError(f"data alignment of {self.pda_bytes} bytes: it must be a multiple of 4 up to 128")
        if not 1 <= self.maxr2t <= 1 << 32:
            raise LocalProtocolError(f"MAXR2T of {self.maxr2t}: it must be at least 1 and fit 32 bits")
        if self.maxh2cdata_bytes % 4 or not MIN_MAXH2CDATA_BYTES <= self.maxh2cdata_bytes < 1 << 32:
            raise LocalProtocolError(
                f"MAXH2CDATA of {self.maxh2cdata_bytes} bytes: not a multiple of 4 from {MIN_MAXH2CDATA_BYTES} on"
            )
        if self.r2t_bytes is not None and (self.r2t_bytes % 4 or self.r2t_bytes < 4):
            raise LocalProtocolError(f"R2Ts of {self.r2t_bytes} bytes: it must be a positive multiple of 4")


class Tap:
    """Sees all bytes of a connection as they pass; `received` and `sent` get views that hold only for the call."""

    def received(self, data: memoryview) -> None:
        """Take bytes from the peer, before they are parsed."""

    def sent(self, data: Buffer) -> None:
        """Take the bytes that the socket has accepted."""

    def passed(self) -> None:
        """Note the end of one receive or one send, after all its bytes were passed."""
