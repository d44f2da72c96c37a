"""What happens in a target, for those who want to watch it: connections, refusals, changes of what there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

logger = logging.getLogger("nvmeof.target")

Facts: TypeAlias = Mapping[str, object]
"""What is told of an event, in the types of JSON."""
Listener: TypeAlias = Callable[[str, Facts], object]
"""It is called with an event's kind and facts, in the middle of the work: it must be quick and must not wait."""


class Happenings:
    """The events of one target. Without a listener each place that tells one costs a call and a test.

    No event is about a single command of a queue that is connected: those have the trace hook (`nvmeof.trace`).
    """

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call a listener at each event from now on; return what ends that."""
        self._listeners = (*self._listeners, listener)

        def end() -> None:
            self._listeners = tuple(each for each in self._listeners if each is not listener)

        return end

    def tell(self, kind: str, **facts: object) -> None:
        """Tell all listeners of an event. A listener that raises is logged and removed."""
        for listener in self._listeners:
            try:
                listener(kind, facts)
            except Exception as error:
                self._listeners = tuple(each for each in self._listeners if each is not listener)
                logger.error("a listener failed and is called no more: %s: %s", type(error).__name__, error)
                logger.debug("%r", listener, exc_info=error)
