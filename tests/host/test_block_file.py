"""A namespace as a file: against a bytearray of the same size, with several writers, and as the standard library's."""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof import Ramdisk, Target
from nvmeof.host import blocking
from nvmeof.host.blocking.range_lock import RangeLock
from nvmeof.spec.enums import NvmOpcode

from .blocking_target import serving
from .conftest import HOSTNQN

SIZE = 16384
BLOCK = 512


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with serving(Ramdisk(SIZE), Ramdisk("64k", block_bytes=4096), Ramdisk("4M")) as target:
        yield target


@pytest.fixture(scope="module")
def controller(target: Target) -> Iterator[blocking.HostController]:
    where = target.address
    with blocking.connect(
        where.host, where.port, subnqn=target.subnqn, transport="tcp", hostnqn=HOSTNQN, nr_io_queues=2
    ) as controller:
        yield controller


@pytest.fixture(params=[1, 2], ids=["blocks of 512", "blocks of 4096"])
def namespace(controller: blocking.HostController, request: pytest.FixtureRequest) -> blocking.Namespace:
    namespace = controller.namespace(request.param)
    namespace.refresh()
    namespace.write(0, bytes(namespace.size_bytes))
    return namespace


class Model:
    """The behaviour of a file on a device of a fixed size."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.position = 0

    def seek(self, offset: int, whence: int) -> int | None:
        position = [0, self.position, len(self.data)][whence] + offset
        if position < 0:
            return None
        self.position = position
        return position

    def read(self, count: int) -> bytes:
        found = bytes(self.data[self.position : self.position + count])
        self.position += len(found)
        return found

    def write(self, data: bytes) -> bool:
        """Write; return whether there is room."""
        end = self.position + len(data)
        if end > len(self.data):
            return False
        self.data[self.position : end] = data
        self.position = end
        return True


LENGTHS = st.one_of(st.integers(0, 40), st.sampled_from([511, 512, 513, 1024, 4095, 4096, 5000, 9000]))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(-700, SIZE + 700), st.sampled_from([0, 1, 2])),
        st.tuples(st.just("read"), LENGTHS, st.just(0)),
        st.tuples(st.just("write"), LENGTHS, st.integers(1, 255)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@given(operations=OPERATIONS, buffering=st.sampled_from([0, 1, 100, 512, 700, 4096, -1]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_is_a_bytearray(
    namespace: blocking.Namespace, operations: list[tuple[str, int, int]], buffering: int
) -> None:
    namespace.write(0, bytes(namespace.size_bytes))
    model = Model(namespace.size_bytes)
    with blocking.open(namespace, "r+b", buffering) as file:
        for name, number, how in operations:
            if name == "seek":
                position = model.seek(number, how)
                if position is None:
                    with pytest.raises(OSError):
                        file.seek(number, how)
                else:
                    assert file.seek(number, how) == position
            elif name == "read":
                wanted, found = model.read(number), b""
                while len(found) < len(wanted):  # a raw file may give less at once
                    part = file.read(number - len(found))
                    assert part
                    found += part
                assert found == wanted
            elif name == "write":
                data = bytes([how]) * number
                if model.position + number > len(model.data):
                    continue
                assert model.write(data)
                written = 0
                while written < number:
                    written += file.write(data[written:])
            else:
                file.flush()
            assert file.tell() == model.position
    assert namespace.read(0, namespace.size_blocks) == model.data


def test_the_end(namespace: blocking.Namespace) -> None:
    size = namespace.size_bytes
    with blocking.open(namespace, "r+b", 0) as raw:
        assert isinstance(raw, blocking.BlockIO)
        assert raw.seek(-10, os.SEEK_END) == size - 10
        assert raw.write(b"0123456789abc") == 10
        with pytest.raises(OSError, match="the end of namespace") as caught:
            raw.write(b"x")
        assert caught.value.errno == errno.ENOSPC
        assert raw.write(b"") == 0
        assert raw.read(10) == b""
        raw.seek(size + 5)
        assert raw.read() == b""
        raw.seek(size - 10)
        assert raw.readall() == b"0123456789"
    with blocking.open(namespace, "r+b") as file, pytest.raises(OSError) as caught:
        file.seek(size - 1)
        file.write(b"too much")
        try:
            file.flush()
        finally:
            file.raw.close()  # data that cannot be written must not be tried again at the end
    assert caught.value.errno == errno.ENOSPC


def test_the_attributes_of_a_file(namespace: blocking.Namespace) -> None:
    with blocking.open(namespace) as file:
        assert (file.readable(), file.writable(), file.seekable()) == (True, False, True)
        assert file.name.startswith(f"namespace {namespace.nsid} of nqn.")
        assert file.mode == "rb" and not file.isatty()
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="closed file"):
        file.read(1)
    with blocking.open(namespace, "rb+") as both:
        assert (both.readable(), both.writable(), both.seekable()) == (True, True, True)
        for size in (0, None, 1 << 30):
            with pytest.raises(io.UnsupportedOperation, match="cannot be truncated: its size is its subsystem's"):
                both.truncate(size)
        with pytest.raises(OSError):
            both.seek(-1)
        with pytest.raises(ValueError):
            both.seek(0, 7)
        both.raw.sync()
    raw = blocking.open(namespace, "rb", 0)
    assert "mode='rb'" in repr(raw)
    with pytest.raises(io.UnsupportedOperation, match='open it with mode "r\\+b"'):
        raw.write(b"x")
    raw.close()
    for call in (raw.tell, raw.readable, raw.writable, raw.seekable, raw.truncate, raw.sync):
        with pytest.raises(ValueError, match="closed file"):
            call()


@pytest.mark.parametrize("mode", ["wb", "w+b", "ab", "xb", "r", "r+", "rt", "", "bb", "rbU"])
def test_other_modes_are_refused(namespace: blocking.Namespace, mode: str) -> None:
    with pytest.raises(ValueError, match='"rb"'):
        blocking.open(namespace, mode)


def test_copyfileobj_both_ways(controller: blocking.HostController, tmp_path: Path) -> None:
    namespace = controller.namespace(3)
    data = os.urandom(3_000_001)
    (tmp_path / "image").write_bytes(data)
    with (tmp_path / "image").open("rb") as image, blocking.open(namespace, "r+b") as disk:
        disk.seek(1000)
        shutil.copyfileobj(image, disk)
    with (tmp_path / "copy").open("wb") as copy, blocking.open(namespace) as disk:
        disk.seek(1000)
        shutil.copyfileobj(disk, copy)
    assert (tmp_path / "copy").read_bytes()[: len(data)] == data
    with blocking.open(namespace) as source, blocking.open(namespace, "r+b", 5000) as disk:
        source.seek(1000)
        disk.seek(3_500_000)
        disk.write(source.read(100_000))
    with blocking.open(namespace) as disk:
        disk.seek(3_500_000)
        assert disk.read(100_000) == data[:100_000]
    with io.TextIOWrapper(blocking.open(namespace, "r+b"), encoding="latin-1") as text:
        text.write("line one\nline two\n")
    with io.TextIOWrapper(blocking.open(namespace), encoding="latin-1") as text:
        assert [text.readline(), text.readline()] == ["line one\n", "line two\n"]


def test_writers_of_parts_of_the_same_blocks_lose_nothing(target: Target, namespace: blocking.Namespace) -> None:
    """Each writer writes every eighth byte, over connections of two controllers."""
    writers, length = 8, 640
    where = target.address
    with blocking.connect(where.host, where.port, subnqn=target.subnqn, transport="tcp", hostnqn=HOSTNQN) as other:
        faces = [namespace, other.namespace(namespace.nsid)]
        barrier = threading.Barrier(writers)

        def work(number: int) -> None:
            with blocking.open(faces[number % 2], "r+b", 0) as file:
                barrier.wait()
                for position in range(number, length, writers):
                    file.seek(position)
                    assert file.write(bytes([number + 1])) == 1

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(work, range(writers)))
    blocks = -(-length // namespace.block_bytes)
    assert namespace.read(0, blocks)[:length] == bytes(range(1, writers + 1)) * (length // writers)


def test_one_object_in_several_threads(namespace: blocking.Namespace) -> None:
    """A buffered file serialises its users: each write is in one piece, at any place."""
    records = [bytes([number]) * 100 for number in range(1, 101)]
    with blocking.open(namespace, "r+b", 700) as file, ThreadPoolExecutor(8) as pool:
        list(pool.map(file.write, records))
    data = namespace.read(0, namespace.size_blocks)[: 100 * 100]
    assert sorted(data[at : at + 100] for at in range(0, len(data), 100)) == records


def test_whole_blocks_are_not_read_first(namespace: blocking.Namespace, controller: blocking.HostController) -> None:
    seen: list[int] = []
    port = namespace.wrapped.port
    queue = port.io_queues[0].__class__  # type: ignore[attr-defined]
    send = queue._send

    def spy(self: object, request: object, cid: int, more: bool) -> None:
        seen.append(request.sqe[0])  # type: ignore[attr-defined]
        send(self, request, cid, more)

    queue._send = spy
    try:
        with blocking.open(namespace, "r+b", 0) as raw:
            seen.clear()
            raw.write(bytes(2 * namespace.block_bytes))
    finally:
        queue._send = send
    assert seen == [NvmOpcode.WRITE]


def test_range_locks_are_first_in_first_out() -> None:
    lock, log = RangeLock(), list[str]()
    entered, leave = threading.Event(), threading.Event()

    def hold(name: str, first: int, end: int) -> None:
        with lock.held(first, end):
            log.append(name)
            if name == "first":
                entered.set()
                leave.wait()

    threads = [threading.Thread(target=hold, args=("first", 0, 10))]
    threads[0].start()
    entered.wait()
    hold("beside", 10, 20)  # does not overlap: at once
    for count, (name, first, end) in enumerate([("second", 5, 15), ("third", 12, 13)], start=2):
        threads.append(threading.Thread(target=hold, args=(name, first, end)))
        threads[-1].start()
        while len(lock._asked) < count:
            pass
    assert log == ["first", "beside"]  # the third waits for the second, which waits
    leave.set()
    for thread in threads:
        thread.join()
    assert log == ["first", "beside", "second", "third"] and not lock._asked
    with pytest.raises(ZeroDivisionError), lock.held(0, 5):
        _ = 1 / 0
    assert not lock._asked
