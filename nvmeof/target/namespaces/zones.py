"""The zones of one namespace: states, write pointers, limits. No data, no waiting.

What may happen to a zone in which state is in :mod:`nvmeof.target.namespaces.zone_states`. A write takes its place at
the write pointer when it begins (`begin_write`, `begin_append`), in one step with all checks, and ends with `end` when
its data is there: many may be under way in one zone.

A write that fails leaves a gap. When no other write behind it has succeeded the write pointer goes back to the gap's
start, as if nothing had been; else the zone becomes read only, and an event reports that to hosts.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from nvmeof.errors import CommandError
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.spec.zns import (
    NO_WRITE_POINTER,
    REPORTED_STATES,
    ZONE_DESCRIPTOR,
    ZONE_DESCRIPTOR_BYTES,
    ZONE_REPORT_HEADER_BYTES,
    ZONE_TYPE_SEQUENTIAL_WRITE_REQUIRED,
    ZoneAttributes,
    ZoneState,
)
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ACTIVE_STATES, OPEN_STATES, SELECTED, TRANSITIONS, ZoneInput
from nvmeof.target.storage.zone_store import ZoneRecord, ZoneStore

SLBA = SQE.error_location("cdw10")
_NO_POINTER = frozenset({ZoneState.FULL, ZoneState.READ_ONLY, ZoneState.OFFLINE})


class Zone:
    """One zone. `pointer`: where the next write goes; `written`: up to where there is data; `on_media`: up to where it
    is on the media, as far as a sync has shown it; `limit`: the end of what can be written. All are LBAs.
    """

    __slots__ = (
        "attributes", "failed_from", "generation", "in_flight", "index", "limit", "on_media", "pointer", "start",
        "state", "written",
    )  # fmt: skip

    def __init__(self, index: int, start: int, limit: int) -> None:
        self.index = index
        self.start = start
        self.limit = limit
        self.state = ZoneState.EMPTY
        self.attributes = 0
        self.pointer = self.written = self.on_media = start
        self.generation = 0  # incremented with every reset: earlier writes do not affect the zone
        self.in_flight = 0
        self.failed_from: int | None = None  # the first block of a gap

    @property
    def record(self) -> ZoneRecord:
        """Return the record to store. A zone is not stored as full while some of its data is still to be written."""
        state = self.state
        if state is ZoneState.FULL and self.pointer == self.limit != self.written:
            state = ZoneState.CLOSED
        return ZoneRecord(state, self.attributes, self.written - self.start)

    @property
    def shown_pointer(self) -> int:
        """WP as a report has it."""
        return NO_WRITE_POINTER if self.state in _NO_POINTER else self.pointer


class ZoneBefore(NamedTuple):
    """A zone as it was before a command."""

    zone: Zone
    state: ZoneState
    attributes: int
    pointer: int
    written: int
    on_media: int
    generation: int
    in_flight: int
    failed_from: int | None

    @classmethod
    def of(cls, zone: Zone) -> ZoneBefore:
        """Copy the state of a zone."""
        return cls(zone, *(getattr(zone, name) for name in cls._fields[1:]))


@dataclass(slots=True)
class Reservation:
    """A write's place: blocks `start` to `end` of a zone."""

    zone: Zone
    generation: int
    start: int
    end: int


class Zones:
    """`active`, `opened`: how many there are now. `changed(zslba)` is called when a zone's descriptor changes without
    a command's doing.
    """

    def __init__(self, geometry: ZoneGeometry, store: ZoneStore) -> None:
        self.geometry = geometry
        self.store = store
        self.layout = layout = store.layout
        self.zone_blocks = layout.zone_blocks
        self.capacity_blocks = layout.capacity_blocks
        self.active = 0
        self.opened = 0
        self.changed: Callable[[int], None] = lambda zslba: None
        self.dirty: dict[int, tuple[int, ZoneRecord]] = {}
        """Zones that are not committed as they are now: generation and record by number."""
        self._implicit: dict[int, None] = {}  # implicitly opened ones, the one written last at the end
        self.zones: list[Zone] = []
        self._take_up(store.load())

    def _take_up(self, records: list[ZoneRecord]) -> None:
        for record in records:
            zone = self._add()
            zone.attributes = record.attributes
            zone.pointer = zone.written = zone.on_media = zone.start + record.written
            state = TRANSITIONS[ZoneInput.RESTART][record.state]
            extended = record.attributes & ZoneAttributes.EXTENSION_VALID
            if state is ZoneState.CLOSED and not record.written and not extended:
                state = ZoneState.EMPTY
            assert isinstance(state, ZoneState)
            self._enter(zone, state)
            if zone.record != record:
                self.save(zone)

    def _add(self) -> Zone:
        start = len(self.zones) * self.zone_blocks
        zone = Zone(len(self.zones), start, start + self.capacity_blocks)
        self.zones.append(zone)
        return zone

    def __len__(self) -> int:
        return len(self.zones)

    def __getitem__(self, index: int) -> Zone:
        return self.zones[index]

    def resize(self, count: int) -> None:
        """Change the number of zones; new zones are empty. Raises `OSError`."""
        if count == len(self.zones):
            return
        self.store.resize(count)
        for zone in self.zones[count:]:
            self._enter(zone, ZoneState.OFFLINE)
            zone.generation += 1
            self.dirty.pop(zone.index, None)
        del self.zones[count:]
        while len(self.zones) < count:
            self._add()

    # Finding

    def containing(self, slba: int) -> Zone:
        """Return the zone that contains a block of the namespace."""
        return self.zones[slba // self.zone_blocks]

    def at(self, zslba: int) -> Zone:
        """Return the zone that begins at `zslba`. Raises LBA Out of Range, or Invalid Field for a block inside a
        zone."""
        index, inside = divmod(zslba, self.zone_blocks)
        if index >= len(self.zones):
            raise CommandError(Status.LBA_OUT_OF_RANGE, SLBA, message=f"block {zslba} is beyond the last zone")
        if inside:
            raise CommandError(Status.INVALID_FIELD, SLBA, message=f"no zone begins at block {zslba}")
        return self.zones[index]

    # Changing states

    def _enter(self, zone: Zone, state: ZoneState) -> None:
        old = zone.state
        self.active += (state in ACTIVE_STATES) - (old in ACTIVE_STATES)
        self.opened += (state in OPEN_STATES) - (old in OPEN_STATES)
        if old is ZoneState.IMPLICITLY_OPENED:
            del self._implicit[zone.index]
        if state is ZoneState.IMPLICITLY_OPENED:
            self._implicit[zone.index] = None
        zone.state = state

    def _next(self, zone: Zone, what: ZoneInput) -> ZoneState:
        """Return the next state of a zone. Raises `CommandError` for a transition that is not allowed."""
        following = TRANSITIONS[what][zone.state]
        if isinstance(following, ZoneState):
            return following
        state = zone.state.name.lower().replace("_", " ")
        raise CommandError(following, SLBA, message=f"the zone at block {zone.start} is {state}: {what.value}")

    def _make_room(self, zone: Zone, following: ZoneState) -> None:
        """Raise Too Many Active (or Open) Zones when there may not be one more; implicitly opened ones are closed."""
        limit = self.geometry.max_active
        if limit and following in ACTIVE_STATES and zone.state not in ACTIVE_STATES and self.active >= limit:
            raise CommandError(Status.TOO_MANY_ACTIVE_ZONES, SLBA, message=f"{limit} zones are active already")
        limit = self.geometry.max_open
        if limit and following in OPEN_STATES and zone.state not in OPEN_STATES and self.opened >= limit:
            self._release(limit)

    def _release(self, limit: int) -> None:
        oldest = next(iter(self._implicit), None)
        if oldest is None:
            raise CommandError(Status.TOO_MANY_OPEN_ZONES, SLBA, message=f"{limit} zones are open already")
        self._enter(self.zones[oldest], self._next(self.zones[oldest], ZoneInput.RELEASE))

    def _go(self, zone: Zone, what: ZoneInput) -> None:
        following = self._next(zone, what)
        self._make_room(zone, following)
        self._enter(zone, following)

    # Writing

    def begin_write(self, slba: int, nlb: int) -> Reservation:
        """Take the slot of a write inside the namespace. Raises `CommandError` when the zone does not allow it."""
        zone = self.containing(slba)
        if slba + nlb > zone.start + self.zone_blocks:
            raise self._boundary(slba, nlb)
        return self._begin(zone, slba, nlb)

    def begin_append(self, zslba: int, nlb: int) -> Reservation:
        """Take the slot of a Zone Append's data. Raises `CommandError` when the zone does not allow it."""
        return self._begin(self.at(zslba), None, nlb)

    def _begin(self, zone: Zone, slba: int | None, nlb: int) -> Reservation:
        following = self._next(zone, ZoneInput.WRITE)
        if zone.failed_from is not None:
            raise CommandError(
                Status.COMMAND_INTERRUPTED, dnr=False, message=f"writing to the zone at block {zone.start} is failing"
            )
        start = zone.pointer
        if slba is not None and slba != start:
            raise CommandError(
                Status.ZONE_INVALID_WRITE, SLBA, message=f"a write at block {slba}, the write pointer is at {start}"
            )
        if start + nlb > zone.limit:
            raise self._boundary(start, nlb)
        self._make_room(zone, following)
        self._enter(zone, following)
        zone.pointer = start + nlb
        zone.in_flight += 1
        if zone.pointer == zone.limit:
            self._enter(zone, self._next(zone, ZoneInput.FILL))
        return Reservation(zone, zone.generation, start, zone.pointer)

    @staticmethod
    def _boundary(slba: int, nlb: int) -> CommandError:
        return CommandError(
            Status.ZONED_BOUNDARY_ERROR, SLBA, message=f"blocks {slba}..{slba + nlb - 1} are beyond what a zone holds"
        )

    def end(self, place: Reservation, *, good: bool) -> None:
        """End a write; unless `good`, the content of its slot is undefined.

        Raises `OSError` of the store; then the write has failed.
        """
        zone = place.zone
        if zone.generation != place.generation:
            return
        zone.in_flight -= 1
        failure: OSError | None = None
        if good:
            before, zone.written = zone.written, max(zone.written, place.end)
            try:
                self.save(zone)
            except OSError as error:
                zone.written, failure = before, error
        if (failure is not None or not good) and (zone.failed_from is None or place.start < zone.failed_from):
            zone.failed_from = place.start
        if zone.failed_from is not None and not zone.in_flight:
            self._settle(zone, zone.failed_from)
            if good and failure is None:
                self.save(zone)
        if failure is not None:
            raise failure

    def _settle(self, zone: Zone, gap: int) -> None:
        """Update a zone when all its writes have ended; from block `gap` on some have failed."""
        zone.failed_from = None
        filled = zone.state is ZoneState.FULL and zone.pointer == zone.limit
        if zone.written > gap:
            self.degrade(zone)
        elif filled and self.geometry.max_active and self.active >= self.geometry.max_active:
            self.degrade(zone)  # another zone has taken its place since
        elif filled or zone.state in ACTIVE_STATES:
            if filled:
                self._enter(zone, self._next(zone, ZoneInput.UNFILL))
            zone.pointer = gap

    def save(self, zone: Zone) -> None:
        """Store the present record of a zone. Raises `OSError`."""
        record = zone.record
        self.store.put(zone.index, record)
        if self.store.durable:
            self.dirty[zone.index] = (zone.generation, record)

    def committed(self, records: dict[int, tuple[int, ZoneRecord]]) -> None:
        """Note that records were committed; zones that have changed since stay dirty."""
        for index, saved in records.items():
            if self.dirty.get(index) == saved:
                del self.dirty[index]
            generation, record = saved
            if index < len(self.zones) and (zone := self.zones[index]).generation == generation:
                zone.on_media = min(zone.start + record.written, zone.written)  # less: a sync has failed meanwhile

    def lose_unsynced(self) -> None:
        """Take write pointers back to what is on the media, after a sync that failed: later ones may succeed without
        what that one has lost. A zone that is being written goes back, or becomes read only, when its writes end.
        """
        for zone in [self.zones[index] for index in self.dirty]:
            if zone.written <= zone.on_media:
                continue
            zone.written = zone.on_media
            if zone.in_flight:
                zone.failed_from = zone.on_media
                continue
            with contextlib.suppress(OSError):
                self._settle(zone, zone.on_media)
                self._tell(zone)

    # Reading

    def check_read(self, slba: int, nlb: int) -> None:
        """Raise `CommandError` unless the zones allow a read of these blocks (ZNS, Zone States)."""
        first, last = slba // self.zone_blocks, (slba + nlb - 1) // self.zone_blocks
        if first != last and not self.geometry.read_across:
            raise self._boundary(slba, nlb)
        for zone in self.zones[first : last + 1]:
            self._next(zone, ZoneInput.READ)

    def check_deallocate(self, slba: int, nlb: int) -> None:
        """Raise `CommandError` unless the zones allow deallocating these blocks (ZNS, Zone States)."""
        for zone in self.zones[slba // self.zone_blocks : -(-(slba + nlb) // self.zone_blocks)]:
            if zone.state in (ZoneState.READ_ONLY, ZoneState.OFFLINE):
                self._next(zone, ZoneInput.WRITE)

    def pieces(self, slba: int, nlb: int) -> Iterator[tuple[int, int, bool]]:
        """Yield a range in pieces: first block, number of blocks, whether they were written. Other blocks read as
        zeroes."""
        end = slba + nlb
        while slba < end:
            zone = self.containing(slba)
            there = zone.written > slba
            stop = min(end, zone.written if there else zone.start + self.zone_blocks)
            yield slba, stop - slba, there
            slba = stop

    # Zone Management Send

    def manage(self, what: ZoneInput, zslba: int, *, select_all: bool = False) -> list[Zone]:
        """Close, finish, open, reset or take offline one zone, or all that it is for; returns those that changed."""
        if not select_all:
            return [zone] if self._manage(zone := self.at(zslba), what) else []
        chosen = self.selected(what)
        limit = self.geometry.max_open
        if what is ZoneInput.OPEN and limit and self.opened - len(self._implicit) + len(chosen) > limit:
            raise CommandError(
                Status.TOO_MANY_OPEN_ZONES, SLBA, message=f"to open {len(chosen)} more zones would exceed {limit}"
            )
        return [zone for zone in chosen if self._manage(zone, what)]

    def selected(self, what: ZoneInput) -> list[Zone]:
        """Return the zones that a command with Select All applies to."""
        return [zone for zone in self.zones if zone.state in SELECTED[what]]

    def take_back(self, before: list[ZoneBefore]) -> None:
        """Restore the previous state of zones, after their new state could not be stored; store the old one if
        possible."""
        limit = self.geometry.max_active
        for zone, state, attributes, pointer, written, on_media, generation, in_flight, failed_from in before:
            if limit and state in ACTIVE_STATES and zone.state not in ACTIVE_STATES and self.active >= limit:
                continue  # another zone has taken its place since
            self._enter(zone, state)
            zone.attributes, zone.pointer, zone.written, zone.on_media = attributes, pointer, written, on_media
            zone.generation, zone.in_flight, zone.failed_from = generation, in_flight, failed_from
            with contextlib.suppress(OSError):
                self.save(zone)

    def _manage(self, zone: Zone, what: ZoneInput) -> bool:
        if self._next(zone, what) is zone.state:
            return False
        self._go(zone, what)
        if what is ZoneInput.RESET:
            self._clear(zone)
        elif zone.state is ZoneState.OFFLINE:
            zone.attributes = 0
        return True

    def _clear(self, zone: Zone) -> None:
        zone.attributes = 0
        zone.pointer = zone.written = zone.on_media = zone.start
        zone.generation += 1
        zone.in_flight = 0
        zone.failed_from = None

    def reset_all(self) -> list[Zone]:
        """Make every zone empty, whatever its state: the namespace is formatted or sanitized. Returns all of them."""
        for zone in self.zones:
            self._enter(zone, ZoneState.EMPTY)
            self._clear(zone)
        return list(self.zones)

    def set_extension(self, zslba: int, extension: bytes) -> Zone:
        """Set Zone Descriptor Extension. Raises `OSError` of the store."""
        zone = self.at(zslba)
        following = self._next(zone, ZoneInput.SET_EXTENSION)
        self._make_room(zone, following)
        self.store.put_extension(zone.index, extension)
        self._enter(zone, following)
        zone.attributes |= ZoneAttributes.EXTENSION_VALID
        return zone

    # What happens without a command

    def degrade(self, zone: Zone, *, readable: bool = True) -> None:
        """Make a zone read only, or offline, and report the change to hosts. Raises `OSError` of the store."""
        self._go(zone, ZoneInput.DEGRADE if readable else ZoneInput.LOSE)
        if zone.state is ZoneState.OFFLINE:
            zone.attributes = 0
        self._tell(zone)

    def finish(self, zone: Zone) -> None:
        """Finish a zone by the controller, and report the change to hosts. Raises `CommandError` in a state that cannot
        be finished."""
        if zone.state is ZoneState.FULL:
            return
        self._go(zone, ZoneInput.FINISH)
        zone.attributes |= ZoneAttributes.FINISHED_BY_CONTROLLER
        self._tell(zone)

    def recommend(self, zone: Zone, attributes: ZoneAttributes) -> None:
        """Set the attributes with which hosts are asked to reset or finish a zone (or clear them), and report the
        change."""
        which = ZoneAttributes.FINISH_RECOMMENDED | ZoneAttributes.RESET_RECOMMENDED
        zone.attributes = (zone.attributes & ~which) | (attributes & which)
        self._tell(zone)

    def _tell(self, zone: Zone) -> None:
        self.save(zone)
        self.changed(zone.start)

    # Zone Management Receive

    def report(self, slba: int, which: int, length_bytes: int, *, partial: bool, extended: bool) -> bytes:
        """Return the first `length_bytes` of a zone report from the zone of block `slba` on.

        Number of Zones counts all that match, or with `partial` those whose descriptors are there in full.
        """
        state = REPORTED_STATES[which]
        extension_bytes = self.layout.extension_bytes if extended else 0
        stride = ZONE_DESCRIPTOR_BYTES + extension_bytes
        room = max(length_bytes - ZONE_REPORT_HEADER_BYTES, 0)
        matching = (zone for zone in self.zones[slba // self.zone_blocks :] if state is None or zone.state is state)
        listed = list(islice(matching, -(-room // stride)))  # the last one may be cut
        number = min(len(listed), room // stride) if partial else len(listed) + sum(1 for _ in matching)
        report = bytearray(ZONE_REPORT_HEADER_BYTES)
        for zone in listed:
            self._describe(zone, report, extension_bytes)
        struct.pack_into("<Q", report, 0, number)
        return bytes(report[:length_bytes]).ljust(length_bytes, b"\0")

    def _describe(self, zone: Zone, report: bytearray, extension_bytes: int) -> None:
        report += ZONE_DESCRIPTOR.struct.pack(
            ZONE_TYPE_SEQUENTIAL_WRITE_REQUIRED,
            zone.state << 4,
            zone.attributes,
            0,
            self.capacity_blocks,
            zone.start,
            zone.shown_pointer,
        )
        if extension_bytes:
            valid = zone.attributes & ZoneAttributes.EXTENSION_VALID
            report += self.store.extension(zone.index) if valid else bytes(extension_bytes)
