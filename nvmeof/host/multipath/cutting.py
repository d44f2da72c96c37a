"""A Read or Write that is larger than a path takes, as several commands.

Namespaces split what they send by the smallest limit of all paths. A command that was sent before a path with a smaller
limit was added, and fails over to that path, is cut here; in Linux the queue of each path splits its requests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nvmeof.errors import NvmeofError
from nvmeof.host.multipath.requests import Carrier, HeadRequest
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.sqe import SQE

_CUT = frozenset({NvmOpcode.READ, NvmOpcode.WRITE})
_RANGE = struct.Struct("<QI")
_RANGE_AT = SQE.offsets["cdw10"]
_NLB_MASK = 0xFFFF


def can_be_cut(request: HeadRequest) -> bool:
    """Return whether several commands may do what the request does: Reads and Writes."""
    return request.sqe[0] in _CUT


class Cut:
    """The pieces of ``whole``, none larger than ``most_bytes``; ``whole`` ends when all of them have ended.

    The data is not copied. After a failed Write of more than one piece the content of the blocks is undefined, as after
    any failed Write.
    """

    __slots__ = ("_error", "_under_way", "_whole")

    def __init__(self, carrier: Carrier, whole: HeadRequest, most_bytes: int, block_bytes: int) -> None:
        self._whole = whole
        self._error: NvmeofError | None = None
        self._under_way = {
            CutPiece(self, carrier, *part): None for part in _parts(whole, max(most_bytes, block_bytes), block_bytes)
        }
        whole.cut = self

    @property
    def pieces(self) -> list[CutPiece]:
        """The pieces that have not ended."""
        return list(self._under_way)

    def ended(self, piece: CutPiece, error: NvmeofError | None) -> None:
        """Count a piece as ended. The last piece ends the whole, with the first error of all pieces."""
        self._under_way.pop(piece, None)
        self._error = self._error or error
        if not self._under_way and self._whole.cut is self:
            self._whole.cut = None
            self._whole.ended(0, self._error)

    def cancel(self) -> bool:
        """Give all pieces up. Return whether their buffers are free at once; otherwise :meth:`HeadRequest.ended` is
        called later.
        """
        for piece in self.pieces:
            if piece.cancel():
                self._under_way.pop(piece, None)
        if self._under_way:
            return False
        self._whole.cut = None
        return True


class CutPiece(HeadRequest):
    """One piece."""

    __slots__ = ("_cut",)

    def __init__(self, cut: Cut, carrier: Carrier, sqe: bytes, data_out: memoryview | None, data_in: memoryview | None):
        super().__init__(carrier, sqe, data_out, data_in)
        self._cut = cut

    def ended(self, result: int, error: NvmeofError | None) -> None:
        self._cut.ended(self, error)


def _parts(
    whole: HeadRequest, most_bytes: int, block_bytes: int
) -> Iterator[tuple[bytes, memoryview | None, memoryview | None]]:
    sqe, step = whole.sqe, most_bytes // block_bytes * block_bytes
    slba, cdw12 = _RANGE.unpack_from(sqe, _RANGE_AT)
    data_in, data_out = whole.data_in, None if whole.data_out is None else memoryview(whole.data_out)
    for begin in range(0, whole.size_bytes, step):
        end = min(begin + step, whole.size_bytes)
        blocks = (end - begin) // block_bytes
        piece = bytearray(sqe)
        _RANGE.pack_into(piece, _RANGE_AT, slba + begin // block_bytes, cdw12 & ~_NLB_MASK | blocks - 1)
        yield (
            bytes(piece),
            None if data_out is None else data_out[begin:end],
            None if data_in is None else data_in[begin:end],
        )
