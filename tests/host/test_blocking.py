"""The blocking API against a target in another thread: the same names, several threads, Ctrl-C, forks."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nvmeof
from nvmeof import ConnectTimeout, LocalProtocolError, NvmeofError, NvmeStatusError, Ramdisk, Target, TransportError
from nvmeof.errors import ConnectionLost
from nvmeof.host import blocking
from nvmeof.host.blocking.portal import PORTAL, Portal
from nvmeof.host.host_subsystem import HostSubsystem, connect_multipath
from nvmeof.host.results import SmartLog
from nvmeof.host.zones import Zones
from nvmeof.spec.reservations import ReservationType
from nvmeof.target.subsystem.config import SubsystemConfig

from .blocking_target import serving
from .conftest import HOSTNQN

ROOT = Path(nvmeof.__file__).parents[1]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with serving(Ramdisk("16M"), Ramdisk("1M"), listen=["127.0.0.1:0", "127.0.0.2:0"]) as target:
        yield target


@pytest.fixture
def controller(target: Target) -> Iterator[blocking.HostController]:
    with connected(target) as controller:
        yield controller


def connected(target: Target, **options: Any) -> blocking.HostController:
    chosen = {"subnqn": target.subnqn, "transport": "tcp", "hostnqn": HOSTNQN, **options}
    return blocking.connect(target.address.host, target.address.port, **chosen)


def test_the_classes_match_the_asyncio_ones() -> None:
    script = ROOT / "tools" / "blocking_api.py"
    made = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (blocking.Namespace, nvmeof.Namespace),
        (blocking.HostController, nvmeof.HostController),
        (blocking.Zones, Zones),
        (blocking.HostSubsystem, HostSubsystem),
        (blocking.DiscoveryWatch, nvmeof.DiscoveryWatch),
    ],
)
def test_every_coroutine_has_a_blocking_one(ours: type, theirs: type) -> None:
    inner = {"connect", "shutdown", "io", "io_transfer", "io_batch", "execute_admin", "start_paths"}
    for name, method in inspect.getmembers(theirs, inspect.iscoroutinefunction):
        if not name.startswith("_") and name not in inner:
            mine = getattr(ours, name)
            assert not inspect.iscoroutinefunction(mine)
            assert list(inspect.signature(mine).parameters) == list(inspect.signature(method).parameters), name
            assert inspect.getdoc(mine)


@pytest.mark.parametrize(
    "theirs", [nvmeof.connect, nvmeof.discover, nvmeof.discover_all, nvmeof.watch_discovery, connect_multipath]
)
def test_functions_take_the_same_arguments(theirs: Callable[..., Any]) -> None:
    ours, theirs = inspect.signature(getattr(blocking, theirs.__name__)), inspect.signature(theirs)
    assert [(each.name, each.kind, each.default) for each in ours.parameters.values()] == [
        (each.name, each.kind, each.default) for each in theirs.parameters.values()
    ]


def test_each_kind_of_call_once(target: Target, controller: blocking.HostController) -> None:
    entries = blocking.discover(target.address.host, target.address.port, transport="tcp", hostnqn=HOSTNQN)
    assert target.subnqn in {entry.subnqn for entry in entries}
    assert [each.nsid for each in controller.namespaces()] == [1, 2]
    assert controller.namespace(1) == controller.namespaces()[0] != controller.namespace(2)
    namespace = controller.namespace(1)
    data = os.urandom(5000 * 512)
    namespace.write(3, data)
    assert namespace.read(3, 5000) == data
    into = bytearray(1024)
    namespace.read_into(4, into)
    assert into == data[512:1536]
    assert namespace.read_many([3, 4], 1) == data[:1024]
    namespace.writev(0, [b"a" * 100, b"b" * 412])
    assert namespace.read(0) == b"a" * 100 + b"b" * 412
    assert namespace.compare(3, data) and not namespace.compare(2, data)
    assert b"".join(namespace.chunks(3, 5000, chunk_bytes=70_000)) == data
    assert list(namespace.split(0, 10)) == [(0, 10)]
    assert (namespace.block_bytes, namespace.size_bytes) == (512, 16 << 20)
    assert isinstance(controller.smart_log(), SmartLog) and json.dumps(controller.info)
    assert controller.get_feature(7) >= 0 and controller.get_feature(0x16, data_bytes=512)[1]
    assert controller.io_passthru(2, nsid=1, data_bytes=512, cdw10=3).data == data[:512]
    assert [each["qid"] for each in controller.describe()] == [0, 1]
    namespace.reservations.register(5)
    namespace.reservations.acquire(5, ReservationType.WRITE_EXCLUSIVE)
    assert namespace.reservations.report().registrants[0].key == 5
    namespace.reservations.clear(5)
    with pytest.raises(NvmeStatusError):
        namespace.zones.report()
    with pytest.raises(NvmeStatusError, match="LBA Out Of Range"):
        namespace.read(1 << 40)
    assert repr(namespace).startswith("<blocking <Namespace 1:")


def test_several_paths(target: Target) -> None:
    where = [str(address) for address in target.addresses]
    with blocking.connect_multipath(*where, subnqn=target.subnqn, transport="tcp", hostnqn=HOSTNQN) as subsystem:
        assert len(subsystem.paths) == 2
        subsystem.iopolicy = "round-robin"
        assert subsystem.iopolicy == "round-robin"
        namespace = subsystem.namespace(1)
        namespace.write_many([10, 20], bytes(512) + b"\x01" * 512)
        assert namespace.read_many([20, 10]) == b"\x01" * 512 + bytes(512)
        assert namespace.lba_status() == []
        with blocking.open(namespace, "r+b") as file:
            file.write(b"over several paths")
        assert namespace.read(0).startswith(b"over several paths")
        assert [each.nsid for each in subsystem.namespaces()] == [1, 2]


def test_a_chunk_loop_that_is_left(controller: blocking.HostController) -> None:
    for chunk in controller.namespace(1).chunks(chunk_bytes=4096, read_ahead=4):
        assert len(chunk) == 4096
        break
    assert controller.namespace(1).read(0)


def test_errors_are_those_of_the_asyncio_api(target: Target) -> None:
    with pytest.raises(NvmeStatusError, match="refused the controller"):
        connected(target, subnqn="nqn.2026-01.org.example:nowhere")
    with pytest.raises(TransportError):
        blocking.connect("127.0.0.1", 1, subnqn=target.subnqn, transport="tcp", hostnqn=HOSTNQN)
    with pytest.raises(NvmeofError, match="unknown connect option"):
        connected(target, speed=5)
    controller = connected(target)
    controller.disconnect()
    controller.disconnect()
    with pytest.raises(ConnectionLost, match="the host disconnected"):
        controller.namespace(1).read(0)
    assert issubclass(ConnectTimeout, TimeoutError)


def test_several_threads(controller: blocking.HostController) -> None:
    """Each thread writes and reads its own blocks, all through one controller, while others connect."""
    namespace = controller.namespace(1)

    def work(number: int) -> bool:
        first = 1000 + number * 8
        for turn in range(40):
            data = bytes([number, turn]) * 2048
            namespace.write(first, data)
            if namespace.read(first, 8) != data:
                return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_connections_of_several_threads(target: Target) -> None:
    def work(number: int) -> int:
        with connected(target) as controller:
            return len(controller.namespace(1).read(number))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [512] * 8


async def test_within_a_thread_that_has_a_loop(controller: blocking.HostController) -> None:
    """As in a notebook, whose cells run in an event loop."""
    assert controller.namespace(1).read(0)


def test_events_of_a_controller(target: Target, controller: blocking.HostController) -> None:
    events = controller.events
    closing = threading.Thread(target=controller.disconnect)
    closing.start()
    assert list(events) == []
    closing.join()


def test_a_call_from_the_loops_own_thread_is_refused(controller: blocking.HostController) -> None:
    namespace = controller.namespace(1)
    with pytest.raises(LocalProtocolError, match="would wait for itself"):
        PORTAL.run_function(namespace.read, 0)


def test_a_portal_that_ends_fails_waiting_calls() -> None:
    portal, began = Portal(), threading.Event()

    async def forever() -> None:
        began.set()
        await asyncio.Event().wait()

    def wait() -> str:
        with pytest.raises(ConnectionLost, match="event loop has ended"):
            portal.run(forever())
        return "ended"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        began.wait()
        portal.stop()
        assert waiting.result(timeout=30) == "ended"
    portal.stop()
    assert portal.run_function(lambda: 7) == 7  # a new one is started
    portal.stop()


def run_script(text: str) -> str:
    """Run a program that begins with a target and a controller connected to it; return what it printed."""
    head = """
        import os, signal, sys, threading, time
        from nvmeof import FileBackend, LocalProtocolError, Ramdisk
        from nvmeof.host import blocking
        from nvmeof.target.storage.filter import Kind
        from nvmeof.target.storage.filters.delay import DelayFilter
        from tests.host.blocking_target import serving

        def connect(target, host="script", **options):
            return blocking.connect(target.address.host, target.address.port, subnqn=target.subnqn, transport="tcp",
                                    hostnqn=f"nqn.2026-01.org.example:{host}", **options)
        """
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(head) + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_ctrl_c_ends_the_call_that_waits_and_nothing_else() -> None:
    """SIGINT as soon as the slow command is outstanding: the command is aborted, and the connection stays."""
    out = run_script(
        """
        def interrupt(controller):
            while not any(each["outstanding"] for each in controller.describe()[1:]):
                pass
            os.kill(os.getpid(), signal.SIGINT)

        slow = DelayFilter(Ramdisk("1M"), {Kind.READ: 60.0, Kind.WRITE: 60.0})
        with serving(slow, Ramdisk("1M")) as target:
            calls = {
                "reads": lambda slow: slow.read(0),
                "writes": lambda slow: slow.write(0, bytearray(512)),
                "iterates": lambda slow: list(slow.chunks()),
            }
            for name, call in calls.items():  # a target lets a host that comes back wait for its writes
                with connect(target, name, nr_io_queues=2) as controller:
                    slow, fast = controller.namespace(1), controller.namespace(2)
                    slow.refresh()
                    thread = threading.Thread(target=interrupt, args=(controller,))
                    thread.start()
                    try:
                        call(slow)
                    except KeyboardInterrupt:
                        print("interrupted")
                    thread.join()
                    fast.write(1, b"x" * 512)
                    print(fast.read(1) == b"x" * 512, controller.state.value)
        """
    )
    assert out.split() == ["interrupted", "True", "live"] * 3


def test_a_forked_process_connects_again() -> None:
    out = run_script(
        """
        with serving(Ramdisk("1M")) as target, connect(target) as controller:
            namespace = controller.namespace(1)
            namespace.write(0, b"p" * 512)
            sys.stdout.flush()
            if (child := os.fork()) == 0:
                try:
                    namespace.read(0)
                except LocalProtocolError as error:
                    print(str(error)[:43])
                with connect(target) as mine:
                    print(mine.namespace(1).read(0)[:1])
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(child, 0)
            print(namespace.read(0)[:1])
        """
    )
    assert out.splitlines() == ["this connection was made before a fork and ", "b'p'", "b'p'"]


def test_a_program_that_forgets_to_disconnect_ends() -> None:
    out = run_script(
        """
        context = serving(Ramdisk("1M"))
        target = context.__enter__()
        controller = connect(target)
        print(len(controller.namespace(1).read(0)))
        context.__exit__(None, None, None)
        """
    )
    assert out.strip() == "512"


def test_discovery_is_watched() -> None:
    other = "nqn.2026-01.org.example:other"

    async def serve() -> Target:
        made = Target(namespaces=[Ramdisk("1M")], trtype="tcp", listen="127.0.0.1:0")
        await made.start()
        return made

    async def add(target: Target) -> None:
        await target.administration.add_subsystem(SubsystemConfig(nqn=other))
        target.administration.link_all_subsystems(1)

    target = PORTAL.run(serve())
    options: Any = {"transport": "tcp", "hostnqn": HOSTNQN}
    try:
        found = blocking.discover_all(target.address.host, target.address.port, **options)
        with blocking.watch_discovery(target.address.host, target.address.port, **options) as watch:
            assert (watch.service.trsvcid, watch.recovery.reconnect_delay) == (target.address.port, 10.0)
            changes = iter(watch)
            assert list(next(changes).added) == found.entries
            PORTAL.run(add(target))
            assert [entry.subnqn for entry in next(changes).added] == [other]
        watch.close()
    finally:
        PORTAL.run(target.stop())
