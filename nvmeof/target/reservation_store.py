"""Where a namespace's reservations live: the value that holds now, and what is kept of it through a power loss."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.reservations import ALL_TYPES, Rescap
from nvmeof.spec.status import Status
from nvmeof.target.keeper import Keeper, damaged
from nvmeof.target.reservations import Reservations
from nvmeof.target.runtime import settled

_SECTION: Final = "reservations"


class ReservationStore:
    """`changed` is called whenever other hosts may be barred than before.

    With PTPL set everything is in the keeper, else nothing. Raises `ConfigurationError` for a keeper's section that is
    not what was put there: a namespace must not be served without reservations that somebody relies on.
    """

    __slots__ = ("_changed", "_keeper", "state")

    def __init__(self, keeper: Keeper, changed: Callable[[], None]) -> None:
        self._keeper = keeper
        self._changed = changed
        kept = keeper.get(_SECTION)
        try:
            self.state = Reservations() if kept is None else Reservations.from_document(kept)
        except (ValueError, OverflowError) as error:
            raise damaged(keeper, _SECTION, error) from error

    @property
    def durable(self) -> bool:
        """Whether reservations can persist through a power loss."""
        return self._keeper.durable

    @property
    def capabilities(self) -> Rescap:
        """RESCAP."""
        persistence = Rescap.PERSIST_THROUGH_POWER_LOSS if self.durable else Rescap(0)
        return ALL_TYPES | Rescap.IGNORE_EXISTING_KEY_1_3 | persistence

    def change(self, state: Reservations) -> Awaitable[None] | None:
        """Let it hold from now on; done when it is on non-volatile media, where it has to be.

        Raises or ends with `CommandError` when it cannot be kept: what held before holds again then, unless there was
        another change since.
        """
        before, self.state = self.state, state
        if state is not before:
            self._changed()
        # Also what was so already is kept: it may still be on its way, and is relied on when this is done.
        return self._keep(before, state) if state.persistent or before.persistent else None

    def _put(self) -> Awaitable[None] | None:
        return self._keeper.put(_SECTION, self.state.document() if self.state.persistent else None)

    def _keep(self, before: Reservations, after: Reservations) -> Awaitable[None] | None:
        try:
            pending = self._put()
        except OSError as error:
            self._back(before, after)
            raise self._failed(error) from error
        return None if pending is None else self._kept(pending, before, after)

    async def _kept(self, pending: Awaitable[None], before: Reservations, after: Reservations) -> None:
        try:
            await pending
        except OSError as error:
            if self._back(before, after):
                # The keeper's own copy goes back too: a later write must not make the failed change durable.
                with contextlib.suppress(OSError):
                    await settled(self._put())
            raise self._failed(error) from error

    def _back(self, before: Reservations, after: Reservations) -> bool:
        if self.state is not after or before is after:
            return False
        self.state = before
        self._changed()
        return True

    @staticmethod
    def _failed(error: OSError) -> CommandError:
        return CommandError(
            Status.INTERNAL_ERROR,
            dnr=False,
            message=f"the reservations cannot be kept through a power loss: {error.strerror or error}",
        )
