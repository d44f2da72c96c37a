"""`cp`: its engine between places in memory, and the command between files, namespaces and pipes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof import Ramdisk, Target
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.__main__ import main
from nvmeof.host.cli import copying
from nvmeof.host.cli.copying import HOLE_BYTES, Copy, Job, Progress, State, runs, verify
from nvmeof.host.cli.places import Extent, FilePlace, Place

from .blocking_target import serving


class Memory(Place):
    """A place in memory that completes pieces out of order; ``fails_at``: where a write fails."""

    def __init__(self, data: bytearray, *, block_bytes: int = 1, holes: list[Extent] | None = None) -> None:
        self.name = "memory"
        self.data = data
        self.size_bytes = len(data)
        self.block_bytes = block_bytes
        self.holes = holes or []
        self.keeps_holes = True
        self.fails_at: int | None = None
        self.written = 0
        self.zeroed = 0

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        for hole in self.holes:
            if hole.offset >= end or hole.offset + hole.length <= offset:
                continue
            begin, stop = max(hole.offset, offset), min(hole.offset + hole.length, end)
            if begin > offset:
                yield Extent(offset, begin - offset)
            yield Extent(begin, stop - begin, hole=True)
            offset = stop
        if offset < end:
            yield Extent(offset, end - offset)

    async def read_into(self, offset: int, view: memoryview) -> int:
        await asyncio.sleep(0)
        piece = self.data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    async def write(self, offset: int, view: memoryview) -> None:
        for _ in range(offset // 7 % 3):
            await asyncio.sleep(0)
        if self.fails_at is not None and offset <= self.fails_at < offset + len(view):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        assert offset % self.block_bytes == 0
        self.data[offset : offset + len(view)] = view
        self.written += len(view)

    async def zero(self, offset: int, length: int) -> None:
        assert offset % self.block_bytes == 0
        self.data[offset : offset + length] = bytes(length)
        self.zeroed += length


stretches = st.lists(st.tuples(st.booleans(), st.integers(1, 3 * HOLE_BYTES)), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(stretches, st.integers(1, 9), st.integers(1, 3), st.booleans(), st.booleans())
def test_the_destination_equals_the_source(
    parts: list[tuple[bool, int]], depth: int, blocks: int, sparse: bool, verified: bool
) -> None:
    data, holes = bytearray(), []
    for hole, length in parts:
        if hole:
            holes.append(Extent(len(data), length, hole=True))
        data += bytes(length) if hole else os.urandom(1) * length
    source = Memory(data, holes=holes)
    target = Memory(bytearray(b"x" * len(data)))
    job = Job(
        source, target, 0, 0, len(data), blocks * HOLE_BYTES, depth, sparse, None, {} if verified else None
    )  # fmt: skip
    copy = Copy(job)

    async def whole() -> None:
        copied = await copy.run()
        assert copied.done_bytes == copied.end == copy.progress.mark == len(data)
        await verify(job, copied.end)
        target.data[len(data) // 2] ^= 0xFF
        with pytest.raises(NvmeofError, match="differs from memory within bytes"):
            await verify(job, copied.end)
        target.data[len(data) // 2] ^= 0xFF

    asyncio.run(whole())
    assert target.data == data
    if sparse:
        assert target.zeroed >= sum(each.length for each in holes if each.length >= HOLE_BYTES)


@given(st.binary(max_size=20), st.lists(st.integers(0, 40), max_size=4))
def test_runs_cover_a_piece_once(head: bytes, places: list[int]) -> None:
    buffer = bytearray(head + bytes(5 * HOLE_BYTES // 2))
    for each in places:
        buffer[each * HOLE_BYTES // 16 % len(buffer)] = 1
    found = runs(buffer, len(buffer))
    assert [start for start, _, _ in found] == [sum(length for _, length, _ in found[:i]) for i in range(len(found))]
    assert sum(length for _, length, _ in found) == len(buffer)
    for start, length, zero in found:
        assert not zero or not any(buffer[start : start + length])


@given(st.permutations(range(12)))
def test_all_pieces_before_the_mark_are_done(order: list[int]) -> None:
    progress, done = Progress(0), set()
    for each in order:
        progress.add(each * 10, 10)
        done.add(each)
        assert progress.mark == 10 * next((number for number in range(13) if number not in done), 12)


async def test_a_copy_is_resumed_where_it_stopped() -> None:
    data = bytearray(os.urandom(40 * HOLE_BYTES))
    target = Memory(bytearray(len(data)))
    target.fails_at = 25 * HOLE_BYTES
    copy = Copy(Job(Memory(data), target, length=len(data), piece_bytes=HOLE_BYTES, depth=4))
    with pytest.raises(OSError, match="No space left"):
        await copy.run()
    mark = copy.progress.mark
    assert 0 < mark <= target.fails_at and target.data[:mark] == data[:mark]
    target.fails_at = None
    target.written = 0
    await Copy(copy.job, mark).run()
    assert target.data == data and target.written == len(data) - mark


def test_a_state_belongs_to_one_copy(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    state = State.load(path)
    assert state.begin({"source": "a", "size": 5}) == 0
    state.save(3, Path("x.partial"))
    again = State.load(path)
    assert (again.begin({"source": "a", "size": 5}), again.partial) == (3, "x.partial")
    with pytest.raises(ConfigurationError, match="of another copy \\(size changed\\)"):
        State.load(path).begin({"source": "a", "size": 6})
    (tmp_path / "state").write_text("{}")
    with pytest.raises(ConfigurationError, match="no state of an interrupted copy"):
        State.load(path)


# -- the command


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with serving(Ramdisk("8M"), Ramdisk("8M", block_bytes=4096), trtype="tcp") as found:
        yield found


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def url(target: Target, nsid: int = 1, **options: int) -> str:
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return f"nvme+tcp://127.0.0.1:{target.address.port}/{target.subnqn}?nsid={nsid}{more}"


@pytest.mark.parametrize("size", [1, 511, 512, 4097, (1 << 20) + 1, 3_000_000])
@pytest.mark.parametrize("nsid", [1, 2])
def test_a_file_goes_to_a_namespace_and_back(target: Target, size: int, nsid: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    Path("data").write_bytes(data)
    assert main(["cp", "data", url(target, nsid), "--verify"]) == 0
    rounded = -(-size // 4096) * 4096
    assert main(["cp", url(target, nsid), "back", "-z", str(rounded), "--verify"]) == 0
    back = Path("back").read_bytes()
    assert back[:size] == data and len(back) == rounded
    assert not any(back[size : -(-size // 512) * 512])
    assert {each.name for each in tmp_path.iterdir()} - {"config"} == {"back", "data"}


def test_namespaces_are_copied_to_each_other(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").write_bytes(os.urandom(1 << 20))
    assert main(["cp", "data", url(target)]) == 0
    capsys.readouterr()
    assert main(["cp", url(target), url(target, 2), "-z", "1M", "--verify", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["bytes"], told["verified"]) == (1 << 20, True)
    assert main(["cp", url(target, 2), "back", "-z", "1M"]) == 0
    assert Path("back").read_bytes() == Path("data").read_bytes()


def test_holes_stay_holes_both_ways(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("sparse").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(os.urandom(200_000))
    assert main(["cp", "sparse", url(target), "--verify", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == 8 << 20 and told["hole_bytes"] > 7 << 20
    assert main(["cp", url(target), "back", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["hole_bytes"] > 7 << 20
    assert Path("back").read_bytes() == Path("sparse").read_bytes()
    assert Path("back").stat().st_blocks * 512 < 1 << 20
    assert main(["cp", "sparse", url(target), "--no-sparse", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["hole_bytes"] == 0


def test_pipes(target: Target) -> None:
    data = os.urandom(1_234_567)
    command = [sys.executable, "-m", "nvmeof.host", "cp"]
    there = subprocess.run([*command, "-", url(target), "--verify"], input=data, capture_output=True, check=True)
    assert b"verified" in there.stderr
    size = str(-(-len(data) // 512) * 512)
    back = subprocess.run([*command, url(target), "-", "-z", size], capture_output=True, check=True)
    assert back.stdout[: len(data)] == data
    early = subprocess.run(f"{' '.join(command)} '{url(target)}' - | head -c 10", shell=True, capture_output=True)
    assert len(early.stdout) == 10 and b"Traceback" not in early.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing", "URL"], 1, "nothing: No such file or directory"),
        (["URL", "no/file"], 1, "no/file: No such file or directory"),
        (["URL", "/dev/full"], 1, "/dev/full: No space left on device"),
        (["/dev/zero", "URL"], 1, "is longer than the 8388608 bytes"),
        (["URL", "out", "--skip", "100"], 2, "100 is no multiple"),
        (["URL", "out", "-z", "100"], 2, "100 is no multiple"),
        (["URL", "out", "-z", "9M"], 2, "8388608 bytes, fewer than"),
        (["large", "URL"], 2, "has room for 8388608 bytes"),
        (["URL", "URL"], 2, "onto itself"),
        (["/", "URL"], 2, "is a directory"),
        (["-", "out", "--resume", "state"], 2, "leave --resume out"),
        (["nvme+tcp://127.0.0.1:1/a", "out"], 1, "connection refused"),
        (["nvme+tcp://h/a?b", "out"], 2, "unknown option 'b'"),
    ],
)
def test_a_copy_that_cannot_be_made_is_one_sentence(
    arguments: list[str], code: int, words: str, target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("large").open("wb") as file:
        file.truncate((8 << 20) + 1)
    assert main(["cp", *(url(target) if each == "URL" else each for each in arguments)]) == code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("\n") <= 2
    assert not list(Path().glob("*.partial")) or code == 1


def test_an_interrupted_copy_is_resumed(
    target: Target, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = os.urandom(8 << 20)
    Path("data").write_bytes(data)
    assert main(["cp", "data", url(target)]) == 0
    whole = FilePlace.write

    async def write(self: FilePlace, offset: int, view: memoryview) -> None:
        if offset >= 5 << 20:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        await whole(self, offset, view)

    monkeypatch.setattr(FilePlace, "write", write)
    assert main(["cp", url(target), "back", "--resume", "state", "-d", "2"]) == 130
    error = capsys.readouterr().err
    assert "stopped after" in error and "--resume state goes on there" in error
    assert not Path("back").exists() and Path("back.1.partial").exists()
    written: list[int] = []

    async def counted(self: FilePlace, offset: int, view: memoryview) -> None:
        written.append(offset)
        await whole(self, offset, view)

    monkeypatch.setattr(FilePlace, "write", counted)
    assert main(["cp", url(target), "back", "--resume", "state", "--verify"]) == 0
    assert Path("back").read_bytes() == data and min(written) > 0
    assert not Path("state").exists() and not Path("back.1.partial").exists()
    assert "goes on at byte" in capsys.readouterr().err


def test_saved_names_and_files_are_distinguished(target: Target) -> None:
    assert main(["saved", "add", "lab", url(target)]) == 0
    Path("data").write_bytes(b"a" * 512)
    assert main(["cp", "data", "lab"]) == 0
    assert main(["cp", "lab", "./lab", "-z", "512"]) == 0
    assert Path("lab").read_bytes() == b"a" * 512


def test_verify_finds_missing_data(
    target: Target, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forget(self: copying.Copy, extent: Extent, buffer: bytearray, view: memoryview) -> int:
        return 0

    Path("data").write_bytes(os.urandom(4096))
    monkeypatch.setattr(copying.Copy, "_put", forget)
    assert main(["cp", "data", url(target), "--verify"]) == 1
    assert "differs from data within bytes 0 to 4095" in capsys.readouterr().err
