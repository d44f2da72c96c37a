"""What is kept beside the data, and a loss of power at any point: state files, marks of blocks, zones, pools."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.runtime import settled
from nvmeof.target.core.metadata import DATA_SECTIONS
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.storage import zone_file
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.json_file_store import JsonFileStore
from tests.crash.workloads import (
    BLOCK,
    BLOCKS,
    GEOMETRY,
    IDENTIFIERS,
    ZONE,
    ZONES,
    Command,
    Power,
    content,
    look,
    power,
    power_on,
    work,
)
from tests.target.storage.test_pools import Life

SLOW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
        power_on(patch)
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


@given(MARKS, st.integers(0, 1 << 32))
@SLOW
def test_a_mark_stays_until_what_replaces_it_is_on_the_media(turns: list[list[Command]], seed: int) -> None:
    marks(turns, seed)


def test_a_write_beside_another_that_takes_the_mark_back() -> None:
    """It is complete when that is stored, not when it is only known."""
    marks([[("mark", 0, 1)], [("mark", 1, 1), ("write", 0, 1), ("fua", 0, 1)]], 0, most=10_000)


def marks(turns: list[list[Command]], seed: int, most: int = 40) -> None:
    with pytest.MonkeyPatch.context() as patch, power(patch, BLOCKS) as it:
        assert not asyncio.run(work(it, turns))
        power_on(patch)
        for cut, image in it.images(seed, most=most):
            asyncio.run(look(it, cut, image))


# Zones

ZONE_COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "fua", "flush", "finish", "reset"]),
        st.integers(0, ZONES - 1),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=14,
)


@given(st.lists(ZONE_COMMANDS, min_size=1, max_size=5), st.integers(0, 1 << 32))
@SLOW
def test_zones_of_commands_that_are_under_way_together(turns: list[list[Command]], seed: int) -> None:
    """Of the writes of a turn each is to a zone of its own, since a host does not know the order of others."""
    zones([[*{command[1]: command for command in turn}.values()] for turn in turns], seed)


@given(ZONE_COMMANDS, st.integers(0, 1 << 32))
@SLOW
def test_a_write_pointer_stands_behind_what_was_flushed_and_before_what_is_lost(
    commands: list[Command], seed: int
) -> None:
    zones([[each] for each in commands], seed)


def zones(turns: list[list[Command]], seed: int, most: int = 40) -> None:
    boots = [b"1" * 16]
    with pytest.MonkeyPatch.context() as patch, power(patch, ZONES * ZONE) as it:
        patch.setattr(zone_file, "boot_id", lambda: boots[0])
        assert not asyncio.run(work(it, turns, zoned=True))
        power_on(patch)
        patch.setattr(zone_file, "boot_id", lambda: b"2" * 16)
        for cut, image in it.images(seed, most=most):
            asyncio.run(look(it, cut, image, zoned=True))


# Making and removing

Step = Callable[[Path], Awaitable[None]]


async def _file(root: Path) -> None:
    backend = FileBackend(root / "disk", size="64K", block_bytes=4096)
    await backend.open()
    await settled(backend.write(0, memoryview(bytearray(b"x" * 4096)), fua=True))
    await backend.close()


async def _zoned_file(root: Path) -> None:
    backend = FileBackend(root / "disk", size=ZONES * ZONE * BLOCK)
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
        power_on(monkeypatch)
        found = 0
        for _, image in it.images(1, most=90):
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
        power_on(monkeypatch)
        for cut, image in it.images(2, most=90):
            asyncio.run(look(it, cut, image))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nvmeof.target.storage.syscalls.sync_directory", lambda path: None),
        ("nvmeof.target.namespaces.namespace.Namespace.flush", lambda self: None),
        ("nvmeof.target.namespaces.unreadable.UnreadableBlocks.durable", False),
    ],
)
def test_marks_without_one_of_their_syncs_are_found_to_be_wrong(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has teeth."""
    monkeypatch.setattr(name, value)
    with pytest.raises(AssertionError):
        marks([[("fua", 0, 3)], [("mark", 0, 3)], [("write", 1, 1)], [("flush", 0, 0)]], 1, most=10_000)


def test_zones_that_are_stored_before_their_data_are_found_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeof.target.storage.file_calls.FileCalls._sync", lambda self, since: None)
    with pytest.raises(AssertionError):
        zones([[("append", 0, 3)], [("flush", 0, 0)], [("append", 0, 1)]], 1, most=10_000)
