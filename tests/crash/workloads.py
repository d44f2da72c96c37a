"""Workloads on a file namespace, plain and zoned, by one host that remembers what it was told; and a look at what is
left of them."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nvmeof.errors import CommandError
from nvmeof.runtime import settled
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ZoneInput
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.storage.file import FileBackend
from tests.crash.block_layer import Chooser, Journal, everything, journal_of, nothing_more
from tests.crash.history import History

BLOCK = 512
BLOCKS = 16
ZONE = 16  # blocks
ZONES = 4
GEOMETRY = ZoneGeometry(zone_bytes=ZONE * BLOCK)
IDENTIFIERS = NamespaceIdentifiers.derive("nqn.2026-01.org.example:crash", 1)
UNREADABLE = b"unreadable"
HOST = bytes(range(16))
Command = tuple[str, int, int]
"""What is done (`mark`, `write`, `fua`, `zeroes`, `flush`; `append`, `fua`, `finish`, `reset`, `flush`), where, and to
how many blocks."""


@dataclass
class Power:
    """A directory whose power can go, with the journal of what was done there."""

    root: Path
    journal: Journal
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.journal)

    def images(self, seed: int, *, most: int = 250, first: int = 0) -> Iterator[tuple[int, Path]]:
        """Yield directories with what may be left after a cut, and the cut: up to `most` of them, from `first` on."""
        draw = random.Random(seed)
        ways: list[Chooser] = [nothing_more, everything, draw.randrange]
        cases = [(cut, way) for cut in range(first, len(self.journal.entries) + 1) for way in ways]
        step = max(1, len(cases) // most)
        for cut, choose in cases[draw.randrange(step) :: step]:
            with tempfile.TemporaryDirectory() as image:
                self.journal.image(cut, Path(image), choose)
                yield cut, Path(image)


@contextmanager
def power(patch: pytest.MonkeyPatch, blocks: int = 0) -> Iterator[Power]:
    """A directory with a file of so many blocks of zeroes, unless it is 0."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        if blocks:
            (root / "disk").write_bytes(bytes(blocks * BLOCK))
        yield Power(root, journal_of(root, patch))


def power_on(patch: pytest.MonkeyPatch) -> None:
    """End the journal; from here on what is synced need not be, so that it takes no time."""
    patch.undo()
    for name in ("fsync", "fdatasync"):
        patch.setattr(os, name, lambda fd: None)


def content(number: int) -> bytes:
    """Return a block unlike that of any other number."""
    return number.to_bytes(4, "big") * (BLOCK // 4)


async def held(namespace: Namespace, slba: int) -> bytes:
    """Return what a block holds, or `UNREADABLE`."""
    try:
        lease = await settled(namespace.read(slba, 1))
    except CommandError as error:
        assert error.status == Status.UNRECOVERED_READ_ERROR, error
        return UNREADABLE
    data = bytes(lease.view)
    lease.release()
    return data


class Host:
    """A host of one namespace."""

    def __init__(self, namespace: Namespace, history: History) -> None:
        self.namespace = namespace
        self.history = history
        self.errors: list[CommandError] = []
        namespace.lost_writes.connected(HOST, 0)

    async def run(self, turns: Sequence[Sequence[Command]]) -> None:
        """Send the commands of each turn at once; a command may fail."""
        for turn in turns:
            await asyncio.gather(*(self._run(command) for command in turn))

    async def _run(self, command: Command) -> None:
        try:
            await self.command(*command)
        except CommandError as error:
            self.errors.append(error)

    async def command(self, what: str, at: int, nlb: int) -> None:
        raise NotImplementedError

    def tell(self, failed: CommandError | None = None) -> None:
        """Do as the command layer does at the end of a Flush or write with FUA."""
        error = self.namespace.tell_lost(HOST) or failed
        if error is not None:
            self.history.lost()
            raise error

    async def flush(self) -> None:
        about = self.history.flushing()
        try:
            await settled(self.namespace.flush())
        except CommandError as error:
            self.tell(error)
        self.tell()
        self.history.flushed(about)


class PlainHost(Host):
    """Writes blocks, and marks some as uncorrectable."""

    async def command(self, what: str, at: int, nlb: int) -> None:
        nlb = min(nlb, BLOCKS - at)
        namespace, history = self.namespace, self.history
        if what == "flush":
            await self.flush()
            return
        data = [content(len(history.writes) * 8 + index + 1) for index in range(nlb)]
        each = {"mark": [UNREADABLE] * nlb, "zeroes": [bytes(BLOCK)] * nlb}.get(what, data)
        blocks = {at + index: held for index, held in enumerate(each)}
        written = history.sent(blocks, fua=what in ("mark", "fua"))
        try:
            if what == "mark":
                await settled(namespace.mark_uncorrectable(at, nlb))
            elif what == "zeroes":
                await settled(namespace.write_zeroes(at, nlb, deallocate=True))
            else:
                await settled(namespace.write(at, memoryview(bytearray(b"".join(data))), fua=what == "fua"))
        except CommandError as error:
            if what == "fua":
                self.tell(error)
            raise
        if what == "fua":
            self.tell()
        history.completed(written)


class ZonedHost(Host):
    """Appends to zones, resets and finishes them."""

    namespace: ZonedNamespace

    async def command(self, what: str, at: int, nlb: int) -> None:
        zslba, history = at * ZONE, self.history
        if what == "flush":
            await self.flush()
        elif what == "reset":
            written = history.sent({zslba + index: bytes(BLOCK) for index in range(ZONE)}, fua=True)
            await settled(self.namespace.manage(ZoneInput.RESET, zslba))
            history.completed(written)
        elif what == "finish":
            about = [write for write in history.flushing() if write.within(zslba, ZONE)]
            await settled(self.namespace.manage(ZoneInput.FINISH, zslba))
            if not self.namespace.backend.sync_failures:
                history.flushed(about)
        else:
            await self._append(zslba, nlb, fua=what == "fua")

    async def _append(self, zslba: int, nlb: int, *, fua: bool) -> None:
        zone, history = self.namespace.zones.at(zslba), self.history
        at = zone.pointer
        nlb = min(nlb, zslba + ZONE - at)
        if nlb <= 0 or zone.state.name == "FULL":
            return
        data = [content(len(history.writes) * 8 + index + 1) for index in range(nlb)]
        # The write pointer that is stored with FUA stands behind all that was written to the zone before.
        before = history.flushing()
        written = history.sent({at + index: held for index, held in enumerate(data)}, fua=fua)
        try:
            where, pending = self.namespace.append(zslba, memoryview(bytearray(b"".join(data))), fua=fua)
            assert where == at
            await settled(pending)
        except CommandError as error:
            if fua:
                self.tell(error)
            raise
        if fua:
            self.tell()
        history.completed(written)
        if fua:
            history.flushed([write for write in before if write.within(zslba, ZONE)])


async def work(it: Power, turns: Sequence[Sequence[Command]], *, zoned: bool = False) -> list[CommandError]:
    """Open the file, play the turns, close it; return the errors of commands. Raises `ConfigurationError` when it
    cannot be opened."""
    backend = FileBackend(it.root / "disk")
    await backend.open()
    try:
        if zoned:
            host: Host = ZonedHost(ZonedNamespace(1, backend, IDENTIFIERS, GEOMETRY), it.history)
        else:
            host = PlainHost(Namespace(1, backend, IDENTIFIERS), it.history)
        await host.run(turns)
        return host.errors
    finally:
        it.journal.note("closing")
        await backend.close()


async def look(it: Power, cut: int, image: Path, *, zoned: bool = False) -> None:
    """Open what is left after a cut, and compare each block with what it may hold."""
    backend = FileBackend(image / "disk")
    await backend.open()
    try:
        if zoned:
            namespace: Namespace = ZonedNamespace(1, backend, IDENTIFIERS, GEOMETRY)
        else:
            namespace = Namespace(1, backend, IDENTIFIERS)
        blocks = [await held(namespace, slba) for slba in range(namespace.size_blocks)]
        for slba, found in enumerate(blocks):
            allowed = it.history.allowed(slba, cut, bytes(BLOCK))
            assert found in allowed, (cut, slba, found[:4], [each[:4] for each in allowed])
        if isinstance(namespace, ZonedNamespace):
            for zone in namespace.zones.zones:
                # No hole below the write pointer: each block there was written. A finished zone says less.
                written = blocks[zone.start : zone.pointer] if zone.state.name != "FULL" else []
                assert all(any(block) for block in written), (cut, zone)
    finally:
        await backend.close()
