"""Where a namespace's reservations live: the value that holds now, and what is stored of it through a power loss."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from nvmeof.errors import CommandError
from nvmeof.spec.reservations import ALL_TYPES, Rescap
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import KeptValue, MetadataStore, damaged
from nvmeof.target.namespaces.reservations import Reservations

_SECTION: Final = "reservations"


class ReservationStore:
    """Reservations that outlive the process when PTPL is set. `changed` is called when other hosts may conflict than
    before. Raises `ConfigurationError` for an invalid section of the metadata store: a namespace must not be served
    without the reservations that its hosts rely on.
    """

    __slots__ = ("_metadata_store", "_stored")

    def __init__(self, metadata_store: MetadataStore, changed: Callable[[], None]) -> None:
        self._metadata_store = metadata_store
        stored = metadata_store.get(_SECTION)
        try:
            state = Reservations() if stored is None else Reservations.from_document(stored)
        except (ValueError, OverflowError) as error:
            raise damaged(metadata_store, _SECTION, error) from error
        self._stored = KeptValue(metadata_store, _SECTION, state, _document, changed)

    @property
    def state(self) -> Reservations:
        """The present registrants and reservation."""
        return self._stored.now

    def document(self) -> dict[str, Any] | None:
        """Return all registrants and the reservation as a JSON value, for a process that takes the target over; None
        where there are none."""
        state = self.state
        if not (state.registrants or state.generation):
            return None
        return {**state.document(), "persistent": state.persistent}

    def take_over(self, document: dict[str, Any]) -> None:
        """Have what `document` has returned. Raises `ValueError` for another value."""
        state = Reservations.from_document(document)
        if state != self.state:
            self._stored.replace(replace(state, persistent=bool(document.get("persistent"))))

    @property
    def durable(self) -> bool:
        """Whether reservations can persist through a power loss."""
        return self._metadata_store.durable

    @property
    def capabilities(self) -> Rescap:
        """RESCAP."""
        persistence = Rescap.PERSIST_THROUGH_POWER_LOSS if self.durable else Rescap(0)
        return ALL_TYPES | Rescap.IGNORE_EXISTING_KEY_1_3 | persistence

    def change(self, state: Reservations) -> Awaitable[None] | None:
        """Make a new state current. Done when it is on non-volatile media, if it has to be. Raises or ends with
        `CommandError` when it cannot be stored: the state before is current again then, unless it has changed since.
        """
        before = self._stored.now
        # Also what was so already is stored: it may still be on its way, and is relied on when this is done.
        if not (state.persistent or before.persistent):
            self._stored.replace(state)
            return None
        try:
            pending = self._stored.set(state)
        except OSError as error:
            raise self._failed(error) from error
        return None if pending is None else self._finish(pending)

    async def _finish(self, pending: Awaitable[None]) -> None:
        try:
            await pending
        except OSError as error:
            raise self._failed(error) from error

    @staticmethod
    def _failed(error: OSError) -> CommandError:
        return CommandError(
            Status.INTERNAL_ERROR,
            dnr=False,
            message=f"the reservations cannot be stored through a power loss: {error.strerror or error}",
        )


def _document(state: Reservations) -> dict[str, Any] | None:
    return state.document() if state.persistent else None
