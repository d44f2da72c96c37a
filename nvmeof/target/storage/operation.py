"""A future of something that a thread is to do, and that may be given up for as long as no thread has begun it."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TypeVar

T = TypeVar("T")


class Operation(asyncio.Future[T]):
    """Belongs to the running loop. Exactly one of `begin` and `abandon` wins, whatever thread they are called in."""

    def __init__(self) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._claim = [None]  # taking its one element is atomic
        self.half_done = False
        """A part has been done already: it must come to its end."""
        self.stopping = False
        """Who does it may stop between two pieces, and fail with `ECANCELED`."""

    def begin(self) -> bool:
        """Called once by who is about to do it; False: it was given up, and must not be done."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    def abandon(self) -> bool:
        """Give it up. True: it is not done at all, and has failed with `ECANCELED`. False: somebody is at it."""
        if self.half_done:
            return False
        self.stopping = True
        if self.done() or not self.begin():
            return False
        self.set_exception(OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))
        return True

    def keep(self) -> None:
        """It must come to its end: `abandon` does nothing any more."""
        self.half_done = True

    def check(self) -> None:
        """Between two pieces: raises `OSError` (`ECANCELED`) when it shall go no further."""
        if self.stopping:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
