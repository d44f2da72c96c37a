"""One request to an NBD server, from a backend's operation to its reply."""

from __future__ import annotations

from typing import Final

from nvmeof.nbd.numbers import Command
from nvmeof.target.storage.remote import EngineRequest

CHANGING: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})
_NOTHING: Final = memoryview(b"")


class NbdRequest(EngineRequest):
    """Done when the server has answered it; fails with `OSError`. `view`: the data to write, or where a read lands."""

    def __init__(
        self, command: int, offset: int = 0, length: int = 0, view: memoryview = _NOTHING, flags: int = 0
    ) -> None:
        super().__init__()
        self.command = command
        self.offset = offset
        self.length = length
        self.view = view
        self.flags = flags
        self.sent = 0.0  # the loop's time
        self.deadline = 0.0  # until when it waits for a connection
        self.received = 0  # bytes of a read
        self.error: OSError | None = None  # of a chunk; the reply has not ended yet
        self.extents: list[tuple[int, int]] = []  # of a block status: lengths and flags

    @property
    def changing(self) -> bool:
        """Whether it changes data."""
        return self.command in CHANGING

    def fail(self, error: OSError) -> None:
        """End it with an error, unless it has ended."""
        if not self.done():
            self.set_exception(error)

    def succeed(self) -> None:
        """End it, with the error of its chunks if there was one."""
        if self.done():
            return
        if self.error is not None:
            self.set_exception(self.error)
        else:
            self.set_result(None)
