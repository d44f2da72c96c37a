"""A future of something that a thread is to do, and that may be given up for as long as no thread has begun it."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TypeVar

T = TypeVar("T")


class Operation(asyncio.Future[T]):
    """Belongs to the running loop. Exactly one of `begin` and `abandon` succeeds, even when they race in different
    threads."""

    def __init__(self) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._claim = [None]  # taking its one element is atomic
        self.half_done = False
        """A part has been done already: it must come to its end."""
        self.stopping = False
        """Who does it may stop between two pieces, and fail with `ECANCELED`."""

    def begin(self) -> bool:
        """Claim the operation just before it is executed, once. False: it was abandoned and must not be executed."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    def abandon(self) -> bool:
        """Abandon the operation. True: it is not executed, and has failed with `ECANCELED`. False: it has begun
        already."""
        if self.half_done:
            return False
        self.stopping = True
        if self.done() or not self.begin():
            return False
        self.set_exception(OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))
        return True

    def keep(self) -> None:
        """Make the operation uninterruptible: `abandon` has no effect from now on."""
        self.half_done = True

    def check(self) -> None:
        """Raise `OSError` (`ECANCELED`) between two pieces when the operation was abandoned."""
        if self.stopping:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
