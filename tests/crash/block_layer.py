"""A fake block layer: system calls that change files are noted, so that a loss of power can be played at each point.

The calls are executed as well, on real files. The journal knows of each when it began and when it ended, and from that
`Journal.image` makes what the media may hold after a loss of power at any point of it, by the weakest rules that POSIX
leaves:

- A sector (512 bytes) is written whole or not at all. What was written before an fsync or fdatasync of its file began
  is on the media when that has ended; so is a write with RWF_DSYNC when it has ended, by itself. Anything else that was
  begun may be there or not, each sector by itself, in any order.
- What a sync that failed was about is not brought to the media by a later one that succeeds, as in Linux: the kernel
  takes its pages for clean.
- The size of a file is on the media from the next sync of the file on; until then it may be any of those in between.
- A name is on the media from the next fsync of its directory on; until then it may stand for any of the files that it
  stood for since, or for none, each name by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from nvmeof.target.storage import kernel_aio, syscalls

SECTOR: Final = 512
Chooser = Callable[[int], int]
"""Gets a number of possibilities, the oldest first, and returns the index of one."""


def nothing_more(count: int) -> int:
    """Choose what was synced, and nothing else."""
    return 0


def everything(count: int) -> int:
    """Choose what was done last."""
    return count - 1


@dataclass(eq=False)
class File:
    """An inode; `base`: its content when the journal began."""

    number: int
    base: bytes = b""


@dataclass(eq=False)
class Step:
    """One change: data of a file (`offset`, `data`), its size, or what a name stands for."""

    file: File | None
    offset: int = 0
    data: bytes | None = None
    size: int | None = None
    name: tuple[Path, str] | None = None
    dsync: bool = False


@dataclass(eq=False)
class Sync:
    """An fsync of a file or directory; `covers`: the changes that had ended when it began."""

    covers: list[Step]


@dataclass
class Entry:
    """`what` is "begin" or "end" of a step, "synced", "failed" of a sync, or "note"."""

    what: str
    of: Any


@dataclass
class Journal:
    """What was done below `root`, in order."""

    root: Path
    entries: list[Entry] = field(default_factory=list)
    files: dict[int, File] = field(default_factory=dict)  # by the number of the real inode, now
    names: dict[tuple[Path, str], File | None] = field(default_factory=dict)  # as they were when it began
    lock: threading.RLock = field(default_factory=threading.RLock)
    fails: Callable[[str, int], OSError | None] = lambda call, fd: None
    """Asked before each call by its name; what it returns is raised in place of it."""

    def note(self, what: object) -> None:
        """Put a mark into the journal: a command that was sent, or completed."""
        with self.lock:
            self.entries.append(Entry("note", what))

    def begin(self, *steps: Step) -> None:
        with self.lock:
            self.entries += [Entry("begin", step) for step in steps]

    def end(self, *steps: Step) -> None:
        with self.lock:
            self.entries += [Entry("end", step) for step in steps]

    def ended(self, concerns: Callable[[Step], bool]) -> list[Step]:
        return [each.of for each in self.entries if each.what == "end" and concerns(each.of)]

    def file_of(self, fd: int) -> File:
        """Return the file of a descriptor, known from its first use on."""
        with self.lock:
            number = os.fstat(fd).st_ino
            if number not in self.files:
                self.files[number] = File(number, _read(fd))
            return self.files[number]

    def made(self, path: Path, fd: int) -> None:
        """Note a new file. Its number may have been that of one that has gone."""
        with self.lock:
            file = self.files[os.fstat(fd).st_ino] = File(os.fstat(fd).st_ino)
            self.rename(path, file)

    def rename(self, path: Path, file: File | None) -> None:
        step = Step(file, name=(path.parent, path.name))
        self.begin(step)
        self.end(step)

    def catch_up(self, fd: int) -> None:
        """Note what was written to a file by other ways than the calls that are known (Python's buffered files)."""
        with self.lock:
            file = self.file_of(fd)
            now = _read(fd)
            known = self._content(file)
            if now != known:
                step = Step(file, 0, now, size=len(now))
                self.begin(step)
                self.end(step)

    def _content(self, file: File) -> bytes:
        content = bytearray(file.base)
        for step in self.ended(lambda step: step.file is file and step.name is None):
            _apply(content, step)
        return bytes(content)

    # Losing power

    def image(self, cut: int, target: Path, choose: Chooser) -> None:
        """Make in `target`, an empty directory, what a loss of power after `cut` entries may leave of the root."""
        begun, durable = self._state(cut)
        contents: dict[File, bytes] = {}
        for (directory, name), first in self._all_names(begun).items():
            changes = [step for step in begun if step.name == (directory, name)]
            possible = [first, *[step.file for step in changes]]
            oldest = max((index + 1 for index, step in enumerate(changes) if step in durable), default=0)
            file = possible[oldest + choose(len(possible) - oldest)]
            if file is not None:
                if file not in contents:
                    contents[file] = self._media(file, begun, durable, choose)
                where = target / directory.relative_to(self.root) / name
                where.parent.mkdir(parents=True, exist_ok=True)
                where.write_bytes(contents[file])

    def media_of(self, file: File, cut: int, choose: Chooser) -> bytes:
        """Return what the media may hold of one file."""
        begun, durable = self._state(cut)
        return self._media(file, begun, durable, choose)

    def _state(self, cut: int) -> tuple[list[Step], set[Step]]:
        begun, durable, lost = list[Step](), set[Step](), set[Step]()
        for entry in self.entries[:cut]:
            if entry.what == "begin":
                begun.append(entry.of)
            elif entry.what == "synced":
                durable.update(set(entry.of.covers) - lost)
            elif entry.what == "failed":
                lost.update(set(entry.of.covers) - durable)
            elif entry.what == "end" and entry.of.dsync:
                durable.add(entry.of)
        return begun, durable

    def _all_names(self, begun: list[Step]) -> dict[tuple[Path, str], File | None]:
        names = dict(self.names)
        for step in begun:
            if step.name is not None:
                names.setdefault(step.name, None)
        return names

    @staticmethod
    def _media(file: File, begun: list[Step], durable: set[Step], choose: Chooser) -> bytes:
        steps = [step for step in begun if step.file is file and step.name is None]
        content = bytearray(file.base)
        sizes = [len(file.base)]
        pending: dict[int, list[bytes]] = {}
        for step in steps:
            if step.size is not None:
                sizes = [step.size] if step in durable else [*sizes, step.size]
            if step.data is None:
                continue
            for at in range(step.offset, step.offset + len(step.data), SECTOR):
                part = step.data[at - step.offset :][:SECTOR]
                assert at % SECTOR == 0 or len(part) <= SECTOR - at % SECTOR, "two sectors in one piece"
                if step in durable:
                    _put(content, at, part)
                    # what was begun before and has not ended may come later, but then it is of the same range's owner
                    pending.pop(at, None)
                else:
                    pending.setdefault(at, []).append(part)
        for at, parts in pending.items():
            chosen = choose(len(parts) + 1)
            if chosen:
                _put(content, at, parts[chosen - 1])
        size = sizes[choose(len(sizes))]
        return bytes(content[:size].ljust(size, b"\0"))


def _read(fd: int) -> bytes:
    return Path(f"/proc/self/fd/{fd}").read_bytes()  # also when the descriptor is for writing alone


def _put(content: bytearray, at: int, part: bytes) -> None:
    if len(content) < at + len(part):
        content.extend(bytes(at + len(part) - len(content)))
    content[at : at + len(part)] = part


def _apply(content: bytearray, step: Step) -> None:
    if step.data is not None:
        _put(content, step.offset, step.data)
    if step.size is not None:
        del content[step.size :]
        content.extend(bytes(step.size - len(content)))


class Calls:
    """The system calls of the storage, with a journal of them; `install` puts them in the place of the real ones."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.real = {name: getattr(os, name) for name in _OS}
        self.fallocate = syscalls.fallocate

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put them in place for as long as the patch lasts; runs of writes come one by one."""
        patch.setattr(kernel_aio, "_NUMBERS", {})
        for name in _OS:
            patch.setattr(os, name, getattr(self, name))
        patch.setattr(syscalls, "fallocate", self._fallocate)

    def _ours(self, fd: int) -> bool:
        try:
            return Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(self.journal.root)
        except OSError:
            return False

    def _fail(self, call: str, fd: int = -1) -> None:
        error = self.journal.fails(call, fd)
        if error is not None:
            raise error

    # data

    def _written(self, fd: int, call: Callable[[], int], data: bytes, offset: int, *, dsync: bool) -> int:
        self._fail("write", fd)
        file = self.journal.file_of(fd)
        # Each sector by itself: pieces begin where sectors do, but for the first.
        head = -offset % SECTOR
        pieces = [(offset, data[:head])] if head else []
        pieces.append((offset + min(head, len(data)), data[head:]))
        grown = max(os.fstat(fd).st_size, offset + len(data))
        size = grown if grown > os.fstat(fd).st_size else None
        steps = [Step(file, at, part, size=size, dsync=dsync) for at, part in pieces if part]
        self.journal.begin(*steps)
        count = call()
        assert count == len(data), "a short write is not played"
        self.journal.end(*steps)
        return count

    def pwritev(self, fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        data = b"".join(bytes(each) for each in buffers)
        return self._written(
            fd, lambda: self.real["pwritev"](fd, buffers, offset, flags & ~os.RWF_DSYNC), data, offset,
            dsync=bool(flags & os.RWF_DSYNC),
        )  # fmt: skip

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._written(fd, lambda: self.real["pwrite"](fd, data, offset), bytes(data), offset, dsync=False)

    def _fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        self._fail("fallocate", fd)

        def call() -> int:
            self.fallocate(fd, mode, offset, length)
            return length

        self._written(fd, call, bytes(length), offset, dsync=False)

    def _sized(self, fd: int, size: int, call: Callable[[], None]) -> None:
        self._fail("truncate", fd)
        step = Step(self.journal.file_of(fd), size=size)
        self.journal.begin(step)
        call()
        self.journal.end(step)

    def ftruncate(self, fd: int, size: int) -> None:
        self._sized(fd, size, lambda: self.real["ftruncate"](fd, size))

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        self._sized(
            fd, max(offset + length, os.fstat(fd).st_size), lambda: self.real["posix_fallocate"](fd, offset, length)
        )

    # syncs

    def _sync(self, fd: int, name: str) -> None:
        if not self._ours(fd):
            self.real[name](fd)
            return
        path = Path(f"/proc/self/fd/{fd}").readlink()
        with self.journal.lock:
            if path.is_dir():
                sync = Sync(self.journal.ended(lambda step: step.name is not None and step.name[0] == path))
            else:
                self.journal.catch_up(fd)
                file = self.journal.file_of(fd)
                sync = Sync(self.journal.ended(lambda step: step.file is file and step.name is None))
            self.journal.entries.append(Entry("sync begins", sync))
        with self.journal.lock:
            try:
                self._fail(name, fd)
            except OSError:
                self.journal.entries.append(Entry("failed", sync))
                raise
            self.journal.entries.append(Entry("synced", sync))

    def fsync(self, fd: int) -> None:
        self._sync(fd, "fsync")

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, "fdatasync")

    # names

    def open(self, path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        ours = not rest and isinstance(path, str | os.PathLike) and self._below(path)
        new = bool(ours and flags & os.O_CREAT and not Path(path).exists())
        if new:
            self._fail("create")
        fd: int = self.real["open"](path, flags, mode, **rest)
        if new:
            self.journal.made(Path(path), fd)
        elif ours and flags & os.O_TRUNC:
            self.journal.catch_up(fd)
        return fd

    def _below(self, path: Any) -> bool:
        return Path(path).is_relative_to(self.journal.root)

    def _moved(self, name: str, old: Any, new: Any, *, gone: bool) -> None:
        if not self._below(new):
            self.real[name](old, new)
            return
        self._fail(name)
        fd = self.real["open"](old, os.O_RDONLY)
        try:
            self.journal.catch_up(fd)
            file = self.journal.file_of(fd)
        finally:
            os.close(fd)
        self.real[name](old, new)
        self.journal.rename(Path(new), file)
        if gone:
            self.journal.rename(Path(old), None)

    def replace(self, old: Any, new: Any, **rest: Any) -> None:
        self._moved("replace", old, new, gone=True)

    def rename(self, old: Any, new: Any, **rest: Any) -> None:
        self._moved("rename", old, new, gone=True)

    def link(self, old: Any, new: Any, **rest: Any) -> None:
        self._moved("link", old, new, gone=False)

    def unlink(self, path: Any, **rest: Any) -> None:
        self._fail("unlink")
        self.real["unlink"](path, **rest)
        if self._below(path):
            self.journal.rename(Path(path), None)


_OS: Final = (
    "pwritev", "pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "open", "replace", "rename", "link",
    "unlink",
)  # fmt: skip


def journal_of(root: Path, patch: pytest.MonkeyPatch) -> Journal:
    """Begin a journal of what happens below a directory; what is there is on the media."""
    journal = Journal(root)
    for path in root.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            journal.names[path.parent, path.name] = journal.file_of(fd)
            os.close(fd)
    Calls(journal).install(patch)
    return journal
