"""What is kept beside the data, and a loss of power at any point: state files, marks of blocks, zones, pools."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.errors import CommandError
from nvmeof.runtime import settled
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import DATA_SECTIONS
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ZoneInput
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.storage import zone_file
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.json_file_store import JsonFileStore
from tests.crash.block_layer import Journal, everything, journal_of, nothing_more
from tests.crash.history import History
from tests.target.storage.test_pools import Life

BLOCK = 512
BLOCKS = 16
IDENTIFIERS = NamespaceIdentifiers.derive("nqn.2026-01.org.example:crash", 1)
UNREADABLE = b"unreadable"
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Power:
    """A directory whose power can go. `images`: what may be left after each point."""

    root: Path
    journal: Journal
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.journal)

    def images(self, seed: int, *, most: int = 250) -> Iterator[tuple[int, Path]]:
        draw = random.Random(seed)
        ways: list[Callable[[int], int]] = [nothing_more, everything, draw.randrange]
        cuts = range(len(self.journal.entries) + 1)
        step = max(1, len(cuts) * len(ways) // most)
        chosen = [(cut, way) for cut in cuts for way in ways][draw.randrange(step) :: step]
        for cut, choose in chosen:
            # Beside the root, so that a path in it is as long; and by its name no part of the journal.
            with tempfile.TemporaryDirectory() as image:
                self.journal.image(cut, Path(image), choose)
                yield cut, Path(image)


@contextmanager
def power(patch: pytest.MonkeyPatch, prepare: Callable[[Path], None] = lambda root: None) -> Iterator[Power]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        prepare(root)
        yield Power(root, journal_of(root, patch))


# State files

PUTS = st.lists(
    st.lists(
        st.tuples(st.sampled_from(sorted(DATA_SECTIONS)[:3]), st.one_of(st.none(), st.integers(0, 1 << 30))),
        min_size=1,
        max_size=4,
        unique_by=lambda put: put[0],
    ),
    min_size=1,
    max_size=5,
)


@given(PUTS, st.booleans(), st.integers(0, 1 << 32))
@SLOW
def test_a_state_file_holds_what_was_kept_before_or_what_is_kept(
    turns: list[list[tuple[str, Any]]], held: bool, seed: int
) -> None:
    sections = sorted({section for turn in turns for section, _ in turn})

    async def keep(power: Power) -> None:
        store = JsonFileStore(power.root / "state", sections=DATA_SECTIONS)
        if held:
            store.hold()

        async def put(section: str, value: Any) -> None:
            written = power.history.sent({sections.index(section): repr(value).encode()}, fua=True)
            await store.put(section, value)
            power.history.completed(written)

        for turn in turns:
            await asyncio.gather(*(put(*each) for each in turn))
        await store.release()

    with pytest.MonkeyPatch.context() as patch, power(patch) as it:
        asyncio.run(keep(it))
        patch.undo()
        for cut, image in it.images(seed):
            store = JsonFileStore(image / "state", sections=DATA_SECTIONS)  # raises for a file that is torn
            for number, section in enumerate(sections):
                assert repr(store.get(section)).encode() in it.history.allowed(number, cut, b"None"), (cut, section)


# Blocks that cannot be read

MARKS = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["mark", "write", "write", "fua", "zeroes", "flush"]),
            st.integers(0, BLOCKS - 1),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)


def make(root: Path, **options: Any) -> FileBackend:
    return FileBackend(root / "disk", **options)


async def held(namespace: Namespace, slba: int) -> bytes:
    try:
        lease = await settled(namespace.read(slba, 1))
    except CommandError as error:
        assert error.status == Status.UNRECOVERED_READ_ERROR
        return UNREADABLE
    data = bytes(lease.view)
    lease.release()
    return data


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * (BLOCK // 4)


@given(MARKS, st.integers(0, 1 << 32))
@SLOW
def test_a_mark_stays_until_what_replaces_it_is_on_the_media(
    turns: list[list[tuple[str, int, int]]], seed: int
) -> None:
    async def work(it: Power) -> None:
        backend = make(it.root)
        await backend.open()
        namespace = Namespace(1, backend, IDENTIFIERS)
        history = it.history

        async def command(what: str, slba: int, nlb: int) -> None:
            nlb = min(nlb, BLOCKS - slba)
            if what == "flush":
                about = history.flushing()
                await settled(namespace.flush())
                history.flushed(about)
                return
            data = [content(len(history.writes) * 8 + index + 1) for index in range(nlb)]
            each = {"mark": [UNREADABLE] * nlb, "zeroes": [bytes(BLOCK)] * nlb}.get(what, data)
            written = history.sent({slba + index: held for index, held in enumerate(each)}, fua=what in ("mark", "fua"))
            if what == "mark":
                await settled(namespace.mark_uncorrectable(slba, nlb))
            elif what == "zeroes":
                await settled(namespace.write_zeroes(slba, nlb, deallocate=True))
            else:
                await settled(namespace.write(slba, memoryview(bytearray(b"".join(data))), fua=what == "fua"))
            history.completed(written)

        for turn in turns:
            await asyncio.gather(*(command(*each) for each in turn))
        await backend.close()

    async def look(it: Power, cut: int, image: Path) -> None:
        backend = make(image)
        await backend.open()
        namespace = Namespace(1, backend, IDENTIFIERS)
        for slba in range(BLOCKS):
            assert await held(namespace, slba) in it.history.allowed(slba, cut, bytes(BLOCK)), (cut, slba)
        await backend.close()

    def disk(root: Path) -> None:
        (root / "disk").write_bytes(bytes(BLOCKS * BLOCK))

    with pytest.MonkeyPatch.context() as patch, power(patch, disk) as it:
        asyncio.run(work(it))
        patch.undo()
        for cut, image in it.images(seed, most=80):
            asyncio.run(look(it, cut, image))


# Zones

ZONE = 16
ZONES = 4
GEOMETRY = ZoneGeometry(zone_bytes=ZONE * BLOCK)
ZONE_COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "fua", "flush", "finish", "reset"]),
        st.integers(0, ZONES - 1),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=14,
)


async def _zone_command(namespace: ZonedNamespace, history: History, what: str, zone: int, nlb: int) -> None:
    zslba = zone * ZONE
    if what == "flush":
        about = history.flushing()
        await settled(namespace.flush())
        history.flushed(about)
    elif what == "reset":
        written = history.sent({zslba + index: bytes(BLOCK) for index in range(ZONE)}, fua=True)
        await settled(namespace.manage(ZoneInput.RESET, zslba))
        history.completed(written)
    elif what == "finish":
        about = [write for write in history.flushing() if all(zslba <= each < zslba + ZONE for each in write.blocks)]
        await settled(namespace.manage(ZoneInput.FINISH, zslba))
        history.flushed(about)
    else:
        at = namespace.zones.zones[zone].pointer
        nlb = min(nlb, zslba + ZONE - at)
        if nlb <= 0 or namespace.zones.zones[zone].state.name == "FULL":
            return
        data = [content(len(history.writes) * 8 + index + 1) for index in range(nlb)]
        # A write with FUA secures all that was written to the namespace before: the write pointer stands behind it.
        before = history.flushing()
        written = history.sent({at + index: held for index, held in enumerate(data)}, fua=what == "fua")
        where, pending = namespace.append(zslba, memoryview(bytearray(b"".join(data))), fua=what == "fua")
        assert where == at
        await settled(pending)
        history.completed(written)
        if what == "fua":
            history.flushed([write for write in before if all(zslba <= each < zslba + ZONE for each in write.blocks)])


@given(ZONE_COMMANDS, st.integers(0, 1 << 32))
@SLOW
def test_a_write_pointer_stands_behind_what_was_flushed_and_before_what_is_lost(
    commands: list[tuple[str, int, int]], seed: int
) -> None:
    async def work(it: Power) -> None:
        backend = make(it.root)
        await backend.open()
        namespace = ZonedNamespace(1, backend, IDENTIFIERS, GEOMETRY)
        for command in commands:
            await _zone_command(namespace, it.history, *command)
        await backend.close()

    async def look(it: Power, cut: int, image: Path) -> None:
        backend = make(image)
        await backend.open()
        namespace = ZonedNamespace(1, backend, IDENTIFIERS, GEOMETRY)
        for slba in range(ZONES * ZONE):
            found = await held(namespace, slba)
            assert found in it.history.allowed(slba, cut, bytes(BLOCK)), (cut, slba, found[:4])
        for zone in namespace.zones.zones:
            written = zone.pointer - zone.start
            if zone.state.name == "FULL":
                continue  # behind what was written it may be finished
            # no hole below the write pointer: each block there was written
            assert all([any(await held(namespace, zone.start + index)) for index in range(written)]), (cut, zone)
        await backend.close()

    def disk(root: Path) -> None:
        (root / "disk").write_bytes(bytes(ZONES * ZONE * BLOCK))

    boots = [b"1" * 16]
    with pytest.MonkeyPatch.context() as patch, power(patch, disk) as it:
        patch.setattr(zone_file, "boot_id", lambda: boots[0])
        asyncio.run(work(it))
        patch.undo()
        patch.setattr(zone_file, "boot_id", lambda: b"2" * 16)
        for cut, image in it.images(seed, most=80):
            asyncio.run(look(it, cut, image))


# Making and removing

Step = Callable[[Path], Awaitable[None]]


async def _file(root: Path) -> None:
    backend = make(root, size="64K", block_bytes=4096)
    await backend.open()
    await settled(backend.write(0, memoryview(bytearray(b"x" * 4096)), fua=True))
    await backend.close()


async def _zoned_file(root: Path) -> None:
    backend = make(root, size=ZONES * ZONE * BLOCK)
    await backend.open()
    namespace = ZonedNamespace(1, backend, IDENTIFIERS, GEOMETRY)
    await settled(namespace.append(0, memoryview(bytearray(content(1))), fua=True)[1])
    await backend.close()


async def _pool(root: Path) -> None:
    async with Life(root / "pool") as life:
        for nsid in sorted(life.subsystem.namespaces):
            await life.delete(nsid)
        first, second = await life.create(1 << 16), await life.create(1 << 16)
        await life.attach(second)
        await life.write(second, b"w" * 512)
        await life.delete(first)


async def _state(root: Path) -> None:
    store = JsonFileStore(root / "state", sections=DATA_SECTIONS)
    store.hold()
    await store.put("reservations", {"a": 1})
    await store.release()


@pytest.mark.parametrize("life", [_file, _zoned_file, _pool, _state])
def test_whatever_is_left_of_a_start_the_next_one_takes(life: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    with power(monkeypatch) as it:
        asyncio.run(life(it.root))
        monkeypatch.undo()
        found = 0
        for _, image in it.images(1, most=400):
            asyncio.run(life(image))
            found += 1
        assert found > 20


def test_a_pool_has_the_namespaces_whose_creation_has_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And their data; and none whose deletion has."""
    names: dict[int, str] = {}

    async def work(it: Power) -> None:
        async with Life(it.root / "pool") as life:
            for number in (1, 2):
                written = it.history.sent({number: b"made"}, fua=True)
                nsid = await life.create(1 << 16)
                names[number] = str(life.subsystem.namespaces[nsid].uuid)
                it.history.completed(written)
            written = it.history.sent({1: b"gone"}, fua=True)
            await life.delete(1)
            it.history.completed(written)

    async def look(it: Power, cut: int, image: Path) -> None:
        async with Life(image / "pool") as life:
            there = {str(each.uuid) for each in life.subsystem.namespaces.values()}
            for number, name in names.items():
                allowed = it.history.allowed(number, cut, b"gone")
                assert (b"made" if name in there else b"gone") in allowed, (cut, number)

    with power(monkeypatch) as it:
        asyncio.run(work(it))
        monkeypatch.undo()
        for cut, image in it.images(2, most=300):
            asyncio.run(look(it, cut, image))
