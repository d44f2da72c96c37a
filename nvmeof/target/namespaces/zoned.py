"""A zoned namespace: commands on its blocks follow the rules of their zones.

Every write takes its place at a write pointer before the backend is asked, in one step with all checks, and the pointer
is stored before the write completes. Blocks that were not written read as zeroes, whatever the backend holds there.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.runtime import settled
from nvmeof.spec.enums import Csi
from nvmeof.target.core.aborting import Uninterruptible
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ZoneInput
from nvmeof.target.namespaces.zones import Reservation, Zone, ZoneBefore, Zones
from nvmeof.target.storage.base import Backend, Lease
from nvmeof.target.storage.zone_store import ZoneLayout, ZoneRecord

Pending = Awaitable[None] | None
Records = dict[int, tuple[int, ZoneRecord]]
"""Generations and records of zones by their number."""


class ZonedNamespace(Namespace):
    """`zone_changed(zslba)` is called when a zone has changed without a command's doing.

    It never shows its memory: no write may pass by a write pointer.
    """

    __slots__ = ("_failures_settled", "geometry", "zone_changed", "zones")

    zones: Zones

    def __init__(
        self,
        nsid: int,
        backend: Backend,
        identifiers: NamespaceIdentifiers,
        geometry: ZoneGeometry,
        *,
        read_only: bool = False,
        anagrpid: int = 1,
        shared: bool = True,
    ) -> None:
        self.geometry = geometry
        self.zone_changed: Callable[[int], None] = lambda zslba: None
        self._failures_settled = backend.sync_failures
        capabilities = backend.capabilities
        geometry.check(capabilities.block_bytes, capabilities.size_bytes)
        super().__init__(
            nsid, backend, identifiers, read_only=read_only, anagrpid=anagrpid, csi=Csi.ZONED, shared=shared
        )

    def refresh(self) -> None:
        """Take size and block size over from the backend: whole zones of it.

        A resize adds empty zones or drops the last ones.
        """
        super().refresh()
        geometry, shift = self.geometry, self.block_shift
        count = geometry.check(self.block_bytes, self.size_blocks << shift)
        layout = ZoneLayout(self.block_bytes, geometry.zone_bytes, geometry.capacity, geometry.extension_bytes)
        zones = getattr(self, "zones", None)
        if zones is None or zones.layout != layout:
            try:
                store = self.backend.zone_store(layout, count)
                if store.layout != layout:
                    store.set_block_bytes(self.block_bytes)
                self.zones = Zones(geometry, store)
            except OSError as error:
                raise ConfigurationError(f"zones of {self.backend.description}: {error.strerror}") from error
            self.zones.changed = self._zone_changed
        self.zones.resize(count)
        self.size_blocks = count * layout.zone_blocks

    def fits(self, block_bytes: int) -> bool:
        """Return whether the namespace could have blocks of that size, in bytes: zones are whole blocks."""
        return not (self.geometry.zone_bytes % block_bytes or self.geometry.capacity % block_bytes)

    def check_size(self, size_bytes: int) -> None:
        """Raise `ConfigurationError` for a size in bytes below one zone, or with too many zones."""
        self.geometry.check(self.block_bytes, size_bytes)

    def _zone_changed(self, zslba: int) -> None:
        self.zone_changed(zslba)

    def _show_memory(self) -> None:
        self.admission_tokens.withdraw()
        self.memory = self.runs = None

    @property
    def capacity_blocks(self) -> int:
        """How many blocks can be written."""
        return len(self.zones) * self.zones.capacity_blocks

    # Writing

    def _end(self, place: Reservation, *, good: bool) -> None:
        try:
            self.zones.end(place, good=good)
        except OSError as error:
            raise self._command_error(error, True, None) from error

    def _in(self, place: Reservation, operation: Callable[[], Pending], *, fua: bool) -> Pending:
        """Execute `operation`, which writes the data of a slot; the write pointer is stored when the data is
        written."""
        try:
            result = operation()
        except BaseException:
            self._end(place, good=False)
            raise
        if result is not None:
            return self._in_later(place, result, fua)
        self._end(place, good=True)
        return self.flush() if fua else None

    async def _in_later(self, place: Reservation, pending: Awaitable[None], fua: bool) -> None:
        try:
            # Once it has a place it is not given up: for a gap before what was written the zone would be read only.
            await Uninterruptible(pending)
        except BaseException:
            self._end(place, good=False)
            raise
        self._end(place, good=True)
        # What was written before must be on the media too, or the write pointer could not be.
        if fua:
            await settled(self.flush())

    def _check_write(self, slba: int, nlb: int) -> None:
        self.check_range(slba, nlb)
        self.check_writable()

    def write(self, slba: int, data: memoryview, *, fua: bool = False) -> Pending:
        """Write whole blocks at the write pointer. `data` is borrowed until the result is there."""
        nlb = len(data) >> self.block_shift
        self._check_write(slba, nlb)
        place = self.zones.begin_write(slba, nlb)
        return self._in(place, lambda: Namespace.write(self, slba, data), fua=fua)

    def append(self, zslba: int, data: memoryview, *, fua: bool = False) -> tuple[int, Pending]:
        """Write whole blocks wherever the write pointer of a zone is; returns where, and when it is done."""
        self._check_write(zslba, 1)
        place = self.zones.begin_append(zslba, len(data) >> self.block_shift)
        return place.start, self._in(place, lambda: Namespace.write(self, place.start, data), fua=fua)

    def write_zeroes(self, slba: int, nlb: int, *, deallocate: bool, fua: bool = False) -> Pending:
        """Write zeroes at the write pointer."""
        self._check_write(slba, nlb)
        place = self.zones.begin_write(slba, nlb)
        return self._in(place, lambda: Namespace.write_zeroes(self, slba, nlb, deallocate=deallocate), fua=fua)

    def mark_uncorrectable(self, slba: int, nlb: int) -> Pending:
        """Let the blocks at the write pointer be unreadable: they count as written."""
        self._check_write(slba, nlb)
        place = self.zones.begin_write(slba, nlb)
        return self._in(place, lambda: Namespace.mark_uncorrectable(self, slba, nlb), fua=False)

    def copy(self, source: int, slba: int, nlb: int, *, fua: bool = False) -> Pending:
        """Copy blocks from `source` to the write pointer."""
        self._check_write(slba, nlb)
        self._check_readable(source, nlb)
        place = self.zones.begin_write(slba, nlb)
        if all(written for _, _, written in self.zones.pieces(source, nlb)):
            return self._in(place, lambda: Namespace.copy(self, source, slba, nlb), fua=fua)
        return self._in(place, lambda: self._copy_pieces(source, slba, nlb), fua=fua)

    async def _copy_pieces(self, source: int, slba: int, nlb: int) -> None:
        lease = await self._gather(source, nlb)
        self.counters.blocks_copied += nlb
        await settled(Namespace.write(self, slba, lease.view))

    def deallocate(self, slba: int, nlb: int) -> Pending:
        """Give the space of blocks back, in zones whose data may change."""
        self.check_range(slba, nlb)
        self.zones.check_deallocate(slba, nlb)
        return super().deallocate(slba, nlb)

    # Reading

    def _check_readable(self, slba: int, nlb: int) -> None:
        super()._check_readable(slba, nlb)
        self.zones.check_read(slba, nlb)

    def _whole(self, slba: int, nlb: int) -> bool:
        """Return whether all blocks were written."""
        self._check_readable(slba, nlb)
        return all(written for _, _, written in self.zones.pieces(slba, nlb))

    def read(self, slba: int, nlb: int) -> Lease | Awaitable[Lease]:
        """Read `nlb` blocks; blocks that were not written read as zeroes. Release the lease when it has been sent."""
        if self._whole(slba, nlb):
            return super().read(slba, nlb)
        self.counters.reads += 1
        self.counters.blocks_read += nlb
        if any(written for _, _, written in self.zones.pieces(slba, nlb)):
            return self._gather(slba, nlb)
        return Lease(memoryview(bytes(nlb << self.block_shift)), stable=True)

    async def _gather(self, slba: int, nlb: int) -> Lease:
        """Read blocks of which some were not written into a new buffer."""
        shift = self.block_shift
        buffer = memoryview(bytearray(nlb << shift))
        for start, count, written in list(self.zones.pieces(slba, nlb)):
            if not written:
                continue
            lease = await settled(self._read_piece(start, count))
            try:
                buffer[start - slba << shift : start - slba + count << shift] = lease.view
            finally:
                lease.release()
        return Lease(buffer, stable=True)

    def _read_piece(self, slba: int, nlb: int) -> Lease | Awaitable[Lease]:
        shift = self.block_shift
        return self._call(lambda: self.backend.acquire_read(slba << shift, nlb << shift), read=(slba, nlb))

    def compare(self, slba: int, data: memoryview) -> bool | Awaitable[bool]:
        """Return whether the blocks from `slba` hold `data`. `data` is borrowed until the result is there."""
        nlb = len(data) >> self.block_shift
        if self._whole(slba, nlb):
            return super().compare(slba, data)
        self.counters.reads += 1
        self.counters.blocks_read += nlb
        return self._compare_pieces(slba, data)

    async def _compare_pieces(self, slba: int, data: memoryview) -> bool:
        lease = await self._gather(slba, len(data) >> self.block_shift)
        return bytearray(data) == lease.view

    def read_into(self, slba: int, view: memoryview) -> Pending:
        """Read whole blocks into `view`, for a Copy."""
        if self._whole(slba, len(view) >> self.block_shift):
            return super().read_into(slba, view)
        return self._gather_into(slba, view)

    async def _gather_into(self, slba: int, view: memoryview) -> None:
        lease = await self._gather(slba, len(view) >> self.block_shift)
        view[:] = lease.view

    def compare_and_write(
        self, slba: int, compare: memoryview, data: memoryview, *, fua: bool = False
    ) -> bool | Awaitable[bool]:
        """Write whole blocks at the write pointer if they hold `compare`; whether it was so.

        There are none but unwritten blocks at a write pointer: where others are to be written, the write is refused
        whatever comes between.
        """
        nlb = len(data) >> self.block_shift
        self._check_readable(slba, nlb)
        if any(written for _, _, written in self.zones.pieces(slba, nlb)):
            return self._compare_and_write(slba, compare, data, fua)
        self.counters.reads += 1
        self.counters.blocks_read += nlb
        if any(compare):
            return False
        pending = self._write_compared(slba, data, fua)
        return True if pending is None else _true(pending)

    def _write_compared(self, slba: int, data: memoryview, fua: bool) -> Pending:
        try:
            return self.write(slba, data, fua=fua)
        except CommandError as error:
            # By its cause it is known which of the two has failed.
            raise error from OSError(errno.EINVAL, "a zone does not take the write")

    async def _compare_and_write(self, slba: int, compare: memoryview, data: memoryview, fua: bool) -> bool:
        if not await settled(self.compare(slba, compare)):
            return False
        await settled(self._write_compared(slba, data, fua))
        return True

    # Flushing

    def flush(self) -> Pending:
        """Commit all completed writes, and the write pointers after them, to non-volatile media."""
        try:
            pending = self._flush()
        except CommandError:
            self._settle_failures()
            raise
        return None if pending is None else self._flush_later(pending)

    async def _flush_later(self, pending: Awaitable[None]) -> None:
        try:
            await pending
        except CommandError:
            self._settle_failures()
            raise

    def _settle_failures(self) -> None:
        """Take write pointers back after a sync that failed, once for each failure."""
        failures = self.backend.sync_failures
        if failures != self._failures_settled:
            self._failures_settled = failures
            self.zones.lose_unsynced()

    def _flush(self) -> Pending:
        dirty, failures = dict(self.zones.dirty), self.backend.sync_failures
        flushed = super().flush()
        return self._commit_after(flushed, dirty, failures) if dirty else flushed

    async def _commit_after(self, flushed: Pending, dirty: Records, failures: int) -> None:
        await settled(flushed)
        if self.backend.sync_failures != failures:
            return  # this sync has succeeded without the data that another one has lost
        # A zone that was reset since has been committed as an empty one.
        zones = self.zones.zones
        await self._commit(
            {
                index: (generation, record)
                for index, (generation, record) in dirty.items()
                if index < len(zones) and zones[index].generation == generation
            }
        )

    async def _commit(self, records: Records) -> None:
        """Commit the records of zones up to the data that is on the media."""
        store = self.zones.store
        committed = {index: item[1] for index, item in records.items()}
        await settled(self._call(lambda: store.commit(committed), writing=True))
        self.zones.committed(records)

    # Zone Management Send

    def manage(self, what: ZoneInput, zslba: int, *, select_all: bool = False) -> Pending:
        """Close, finish, open, reset or take offline a zone, or all that it is for."""
        self._check_write(0 if select_all else zslba, 1)
        chosen = self.zones.selected(what) if select_all else [self.zones.at(zslba)]
        before = [ZoneBefore.of(zone) for zone in chosen]
        changed = self.zones.manage(what, zslba, select_all=select_all)
        if not changed:
            return None
        undo = self._undo(before, changed)
        self._save(changed, undo)
        if what is ZoneInput.RESET:
            return self._emptied(changed, undo)
        if not self.zones.store.durable or what in (ZoneInput.OPEN, ZoneInput.CLOSE):
            return None
        # A finished zone's data has to be on the media before the zone may be said to be full.
        if what is ZoneInput.FINISH:
            return self._or_back(self._flush, undo)
        return self._or_back(lambda: self._commit(self._records(changed)), undo)

    def set_extension(self, zslba: int, extension: bytes) -> Pending:
        """Give an empty zone a descriptor extension."""
        self._check_write(zslba, 1)
        before = [ZoneBefore.of(self.zones.at(zslba))]
        try:
            zone = self.zones.set_extension(zslba, extension)
        except OSError as error:
            raise self._command_error(error, True, None) from error
        undo = self._undo(before, [zone])
        self._save([zone], undo)
        return self._or_back(lambda: self._commit(self._records([zone])), undo) if self.zones.store.durable else None

    def _undo(self, before: list[ZoneBefore], changed: list[Zone]) -> Callable[[], None]:
        """Return what takes a command back, for the zones that have not changed since."""
        after = {zone.index: ZoneBefore.of(zone) for zone in changed}

        def undo() -> None:
            self.zones.take_back([each for each in before if after.get(each.zone.index) == ZoneBefore.of(each.zone)])

        return undo

    def _or_back(self, operation: Callable[[], Pending], undo: Callable[[], None]) -> Pending:
        """Execute the save of a command; when it fails the command has no effect."""
        try:
            pending = operation()
        except CommandError:
            undo()
            self._settle_failures()
            raise
        return None if pending is None else self._or_back_later(pending, undo)

    async def _or_back_later(self, pending: Awaitable[None], undo: Callable[[], None]) -> None:
        try:
            await pending
        except CommandError:
            undo()
            self._settle_failures()
            raise

    def erased(self) -> Pending:
        """Make all zones empty, after the data was erased. Done when that is stored."""
        zones = self.zones.reset_all()
        for zone in zones:
            self.zones.save(zone)
        records = self._records(zones)
        committed = self.zones.store.commit({index: item[1] for index, item in records.items()})
        forgotten = super().erased()
        return forgotten if committed is None else self._erased_later(committed, forgotten, records)

    async def _erased_later(self, committed: Awaitable[None], forgotten: Pending, records: Records) -> None:
        await committed
        self.zones.committed(records)
        await settled(forgotten)

    @staticmethod
    def _records(zones: list[Zone]) -> Records:
        return {zone.index: (zone.generation, zone.record) for zone in zones}

    def _save(self, zones: list[Zone], undo: Callable[[], None]) -> None:
        try:
            for zone in zones:
                self.zones.save(zone)
        except OSError as error:
            undo()
            raise self._command_error(error, True, None) from error

    def _emptied(self, zones: list[Zone], undo: Callable[[], None]) -> Pending:
        """Store that zones were reset, and deallocate their space."""
        if self.zones.store.durable:
            return self._emptied_later(zones, undo)
        pending = [result for run in _runs(zones) if (result := self._drop(*run)) is not None]
        return _all(pending) if pending else None

    async def _emptied_later(self, zones: list[Zone], undo: Callable[[], None]) -> None:
        # Not before that is on the media: with the power lost, a zone that still is what it was has its data.
        await settled(self._or_back(lambda: self._commit(self._records(zones)), undo))
        # Data written since stays; later writes follow it.
        for start, end in _runs(zones):
            await settled(self._drop(start, end))

    def _drop(self, start: int, end: int) -> Pending:
        if self.backend.capabilities.can_deallocate:
            return Namespace.deallocate(self, start, end - start)
        return self._rewritten(start, end - start, None, self.backend.sync_failures)


async def _true(pending: Awaitable[None]) -> bool:
    await pending
    return True


def _runs(zones: list[Zone]) -> list[tuple[int, int]]:
    """Return the ranges of blocks of zones, in order, that hold no data."""
    runs: list[tuple[int, int]] = []
    for zone in zones:
        start, end = zone.pointer, zone.limit
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        elif start < end:
            runs.append((start, end))
    return runs


async def _all(pending: list[Awaitable[None]]) -> None:
    for each in pending:
        await each


def make_namespace(
    nsid: int,
    backend: Backend,
    identifiers: NamespaceIdentifiers,
    zoned: ZoneGeometry | None,
    *,
    read_only: bool = False,
    anagrpid: int = 1,
    shared: bool = True,
) -> Namespace:
    """Make a namespace, a zoned one when `zoned` gives a geometry. Raises `ConfigurationError` for stored zones without
    a geometry."""
    if zoned is not None:
        return ZonedNamespace(nsid, backend, identifiers, zoned, read_only=read_only, anagrpid=anagrpid, shared=shared)
    if backend.has_zones:
        raise ConfigurationError(
            f"{backend.description} holds zones: say how large they are (zoned,zone-size=...), or remove the file that "
            "keeps them"
        )
    return Namespace(nsid, backend, identifiers, read_only=read_only, anagrpid=anagrpid, shared=shared)
