"""Events of a target's connection, with runs taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nvmeof.protocol.events import CommandDataRun, Event


def one_by_one(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the events, each command with data in its capsule as a separate one."""
    for event in events:
        if isinstance(event, CommandDataRun):
            yield from event.commands()
        else:
            yield event
