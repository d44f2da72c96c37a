"""What a host's queue reports to the trace hook. A queue without one has None in this object's place."""

from __future__ import annotations

from struct import Struct
from typing import Final

from nvmeof.spec.status import split_status
from nvmeof.trace import CommandCompleted, CommandSent, QueueTrace, command_key
from nvmeof.wire import Buffer

_OPCODE_AND_NSID: Final = Struct("<B3xI")


def _what(sqe: bytes) -> tuple[int, int | None, int]:
    return command_key(*_OPCODE_AND_NSID.unpack_from(sqe))


def _data_bytes(data_out: Buffer | None, data_in: Buffer | None) -> int:
    data = data_in if data_out is None else data_out
    return 0 if data is None else len(data)


class CommandTrace(QueueTrace):
    """Reports the commands of one queue: when they are sent, and when they are completed."""

    __slots__ = ()

    def sent(self, cid: int, sqe: bytes, data_out: Buffer | None, data_in: Buffer | None) -> None:
        """Report that a command is given to the device."""
        now = self._began[cid] = self._now()
        self._trace(CommandSent(self.queue, now, *_what(sqe), (cid,), _data_bytes(data_out, data_in)))

    def completed(self, cid: int, sqe: bytes, data_out: Buffer | None, data_in: Buffer | None, status: int) -> None:
        """Report a completion. ``status``: the CQE's status word."""
        now = self._now()
        seconds = now - self._began.pop(cid, now)
        data_bytes, code = _data_bytes(data_out, data_in), split_status(status)[0]
        self._trace(CommandCompleted(self.queue, now, *_what(sqe), (cid,), data_bytes, code, seconds))
