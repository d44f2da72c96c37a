"""The control socket: who may use it, what it says to garbage, and that nothing a client does harms the target."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof import connect
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.target.control import ControlClient, ControlError
from nvmeof.target.control import server as server_module
from nvmeof.target.control.jsonrpc import REQUEST_BYTES, Code
from nvmeof.target.control.server import CLIENTS_MOST, EVENT_BYTES, ControlServer
from nvmeof.transport.unix import PATH_BYTES, PeerCredentials, PrivateListener, connected_socket, peer_credentials
from tests.target.control.tools import HOST, NQN, controlled

HELLO = b'{"jsonrpc":"2.0","id":1,"method":"hello"}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def exchange(path: Path, data: bytes, answers: int = 1) -> list[Any]:
    """What the target answers to some bytes, so many lines of it."""
    reader, writer = await asyncio.open_unix_connection(path, limit=8 << 20)
    writer.write(data)
    found = [json.loads(await asyncio.wait_for(reader.readline(), 10)) for _ in range(answers)]
    writer.close()
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for ten seconds at the most."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come about in ten seconds")


async def serves(path: Path) -> None:
    """The target answers somebody else."""
    (answer,) = await exchange(path, HELLO)
    assert answer["result"]["protocol"] == 1


# -- the socket itself ------------------------------------------------------------------------------------------------


def test_nobody_else_could_connect_at_any_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket gets its mode in a directory that others cannot enter, and only then its name."""
    seen: list[tuple[str, int]] = []
    listen = socket.socket.listen

    def watched(self: socket.socket, *backlog: int) -> None:
        (private,) = [each for each in path.parent.iterdir() if each.is_dir()]
        seen.append(("directory", stat.S_IMODE(private.stat().st_mode)))
        seen.append(("socket", stat.S_IMODE((private / "s").stat().st_mode)))
        assert not path.exists()
        listen(self, *backlog)

    monkeypatch.setattr(socket.socket, "listen", watched)
    before = os.umask(0)
    try:
        listener = PrivateListener(path)
    finally:
        os.umask(before)
    assert seen == [("directory", 0o700), ("socket", 0o600)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name], "nothing else is left"
    listener.close()
    assert not path.exists()


def test_the_socket_of_a_dead_process_is_replaced_and_that_of_a_live_one_is_not(path: Path) -> None:
    script = (
        f"from nvmeof.transport.unix import PrivateListener; PrivateListener({str(path)!r}); import os; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert path.is_socket(), "left by a process that could not remove it"
    first = PrivateListener(path)
    with pytest.raises(TransportError, match=r"another process listens at .*: end it, or choose another path"):
        PrivateListener(path)
    assert path.is_socket()
    first.close()


def test_what_another_has_put_there_stays(path: Path) -> None:
    first = PrivateListener(path)
    path.unlink()
    second = PrivateListener(path)
    first.close()
    assert path.is_socket(), "that of the second one"
    second.close()


def test_a_path_that_cannot_be_used_is_said(path: Path, tmp_path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="is no socket: choose another path"):
        PrivateListener(path)
    assert path.read_text() == "precious"
    with pytest.raises(ConfigurationError, match=f"at most {PATH_BYTES} bytes"):
        PrivateListener(tmp_path / ("x" * 120))
    with pytest.raises(TransportError, match="cannot be made: No such file"):
        PrivateListener(tmp_path / "none" / "x")


def test_the_longest_path_is_taken(tmp_path: Path) -> None:
    long = tmp_path / ("x" * (PATH_BYTES - len(str(tmp_path)) - 1))
    listener = PrivateListener(long)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(long))
    listener.close()


def test_the_kernel_says_who_connects() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_credentials(ours.fileno()) == PeerCredentials(os.getpid(), os.getuid(), os.getgid())
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x", "the socket is not closed by that"


@pytest.mark.parametrize(("uid", "served"), [(0, True), (os.geteuid(), True), (os.geteuid() + 4711, False)])
async def test_other_users_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, served: bool) -> None:
    monkeypatch.setattr(server_module, "peer_credentials", lambda descriptor: PeerCredentials(1, uid, 1))
    async with controlled(path), ControlClient(path) as client:
        if served:
            assert (await client.call("hello"))["protocol"] == 1
        else:
            with pytest.raises(ControlError, match=f"user {uid} may not control this target") as raised:
                await client.call("hello")
            assert raised.value.code == Code.FORBIDDEN


async def test_a_client_says_where_no_target_is(path: Path) -> None:
    with pytest.raises(TransportError, match=r"there is no control socket .*: start the target with --control"):
        await ControlClient(path).open()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(TransportError, match="no target listens"):
        await ControlClient(path).open()


# -- what is answered -------------------------------------------------------------------------------------------------


async def test_calls_batches_and_notifications(path: Path) -> None:
    async with controlled(path):
        data = b'{"jsonrpc":"2.0","method":"log-level"}\n' + HELLO
        (answer,) = await exchange(path, data)
        assert answer["id"] == 1, "a notification has no answer"
        batch = json.dumps(
            [json.loads(HELLO), 7, {"jsonrpc": "2.0", "id": "b", "method": "host.list", "params": [NQN]}]
        )
        ((first, second, third),) = await exchange(path, batch.encode() + b"\n")
        assert first["result"]["protocol"] == 1 and third["result"]["nqn"] == NQN
        assert second["error"]["code"] == Code.INVALID_REQUEST


async def test_requests_of_a_client_are_executed_in_their_order(path: Path) -> None:
    names = ["namespace.add", "namespace.disable", "namespace.enable", "namespace.remove"]
    params: list[dict[str, Any]] = [{"storage": "ramdisk:1M", "nsid": 9}, {"nsid": 9}, {"nsid": 9}, {"nsid": 9}]
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": number, "method": name, "params": given}).encode()
        for number, (name, given) in enumerate(zip(names * 5, params * 5, strict=True))
    ]
    async with controlled(path):
        answers = await exchange(path, b"\n".join(lines) + b"\n", len(lines))
        assert [each["id"] for each in answers] == list(range(len(lines)))
        assert not [each for each in answers if "error" in each]


async def test_events_are_told_to_those_who_watch(path: Path) -> None:
    async with controlled(path) as server, ControlClient(path) as client, ControlClient(path) as other:
        await client.call("watch", {"kinds": ["connected", "disconnected", "refused", "ana-changed", "called"]})
        where = server.control.target.address
        host = await connect(where.host, where.port, subnqn=NQN, transport="tcp", hostnqn=HOST, nr_io_queues=1)
        await other.call("ana.set", {"group": 1, "state": "non-optimized"})
        await other.call("host.any", {"allowed": False})
        with pytest.raises(Exception, match=r"(?i)connect|not allowed|denied|host"):
            await connect(where.host, where.port, subnqn=NQN, transport="tcp", hostnqn=HOST + "x", connect_timeout=5)
        await host.disconnect()
        seen: list[dict[str, Any]] = []
        async for event in client.events():
            seen.append(event)
            if event["kind"] == "refused":
                break
        assert [each["number"] for each in seen] == list(range(1, len(seen) + 1))
        kinds = [each["kind"] for each in seen]
        assert kinds[:2] == ["connected", "connected"] and {each["host"] for each in seen[:2]} == {HOST}
        (changed,) = [each for each in seen if each["kind"] == "ana-changed"]
        assert (changed["group"], changed["state"], changed["ports"]) == (1, "non-optimized", [1])
        ended = [each for each in seen if each["kind"] == "disconnected"]
        assert ended and all("no longer allowed" in each["reason"] for each in ended)
        assert "verb" in next(each for each in seen if each["kind"] == "called")
        await client.call("watch", {"kinds": []})
        assert not server.control.target.registry.happenings._listeners, "an empty list is the end of watching"


# -- hostile clients --------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300) | st.just(HELLO), max_size=5))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_is_answered_and_ends_nothing(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("c") / "s"

    async def run() -> None:
        async with controlled(path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"\n".join(pieces) + b"\n" + HELLO)
            while True:
                answer = json.loads(await asyncio.wait_for(reader.readline(), 10))
                if isinstance(answer, dict) and answer.get("id") == 1 and "result" in answer:
                    break
                assert isinstance(answer, list) or "error" in answer or "result" in answer
            writer.close()
            await serves(path)

    asyncio.run(run())


async def test_a_huge_request_closes_its_own_connection_alone(path: Path) -> None:
    async with controlled(path):
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(8):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
        error = json.loads(await asyncio.wait_for(reader.readline(), 10))["error"]
        assert (error["code"], str(REQUEST_BYTES) in error["message"]) == (Code.INVALID_REQUEST, True)
        assert await asyncio.wait_for(reader.read(), 10) == b"", "closed"
        writer.close()
        longest = HELLO.replace(b"\n", b" " * (REQUEST_BYTES - len(HELLO)) + b"\n")
        (answer_,) = await exchange(path, longest)
        assert "result" in answer_, "one that is as long as it may be is taken"
        await serves(path)


async def test_a_client_that_reads_no_answers_is_cut(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with controlled(path, slow_seconds=0.2) as server:
        with socket.socket(socket.AF_UNIX) as slow:
            slow.setblocking(False)
            slow.connect(str(path))
            request = b'{"jsonrpc":"2.0","id":1,"method":"verbs"}\n'
            for _ in range(200):
                try:
                    slow.send(request * 20)
                except BlockingIOError:
                    pass
                await asyncio.sleep(0.01)
                if not server.clients and "took no answer within 0.2 s" in caplog.text:
                    break
            assert "took no answer within 0.2 s" in caplog.text
            assert not server.clients
        await serves(path)


async def test_a_watcher_that_reads_nothing_is_cut_and_costs_no_more_than_its_share(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with controlled(path) as server:
        target = server.control.target
        with socket.socket(socket.AF_UNIX) as slow:
            slow.connect(str(path))
            slow.sendall(b'{"jsonrpc":"2.0","method":"watch"}\n')
            await until(lambda: bool(target.registry.happenings._listeners))
            for _ in range(3 * EVENT_BYTES // 1000):
                target.registry.happenings.tell("connected", peer="x" * 1000)
            assert not target.registry.happenings._listeners
            assert "did not read events" in caplog.text
        await serves(path)


async def test_half_a_request_and_no_more_keeps_nobody_from_anything(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with controlled(path, slow_seconds=0.2) as server:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            silent.sendall(HELLO[:10])
            await serves(path)
            async with ControlClient(path) as client:
                await client.call("hello")
                await until(lambda: "it made no request within 0.2 s" in caplog.text)
                assert len(server.clients) == 1, "one that has made a request may be silent for as long as it likes"


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs a hard limit of 4096 open files: ulimit -Hn 4096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_thousand_clients_while_a_host_works(path: Path, many_files: None) -> None:
    async with controlled(path) as server:
        where = server.control.target.address
        host = await connect(where.host, where.port, subnqn=NQN, transport="tcp", hostnqn=HOST, nr_io_queues=1)
        disk, done, stop = host.namespace(1), 0, asyncio.Event()

        async def work() -> None:
            nonlocal done
            while not stop.is_set():
                data = done.to_bytes(8, "little") * 64
                await disk.write(done % 1024, data)
                assert bytes(await disk.read(done % 1024, 1)) == data
                done += 1

        working = asyncio.create_task(work())
        clients = await asyncio.gather(*(_client(path) for _ in range(1000)))
        assert len(server.clients) <= CLIENTS_MOST
        answers = await asyncio.gather(*(_answer(reader, writer) for reader, writer in clients))
        served = [each for each in answers if each and "result" in each]
        refused = [each for each in answers if each and each.get("error", {}).get("code") == Code.CROWDED]
        assert 0 < len(served) <= CLIENTS_MOST
        assert len(refused) >= CLIENTS_MOST, "those that the target has time for are told why"
        assert len(served) + len(refused) + answers.count(None) == 1000
        before = done
        while done < before + 20:
            assert not working.done(), working
            await asyncio.sleep(0.005)
        for _, writer in clients:
            writer.close()
        await until(lambda: not server.clients)
        await serves(path)
        stop.set()
        await working
        await host.disconnect()


async def _client(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(sock=connected_socket(path))
        except BlockingIOError:  # the backlog is full for a moment
            await asyncio.sleep(0.005)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
    """What a client hears: an answer, or why it is refused; null where it was closed before it could hear that."""
    try:
        writer.write(HELLO)
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), 30)
    except OSError:
        line = b""
    return json.loads(line or b"null")


# -- its life ---------------------------------------------------------------------------------------------------------


async def test_the_stop_ends_clients_and_verbs_and_removes_the_socket(path: Path) -> None:
    async with controlled(path) as server:
        async with ControlClient(path) as client:
            waiting = asyncio.create_task(
                client.call("ana.set", {"group": 1, "state": "inaccessible", "change_seconds": 10})
            )
            await until(lambda: bool(server.clients))
            await server.stop()
            with pytest.raises(TransportError, match="has closed the control connection"):
                await waiting
        assert not path.exists() and not server.clients  # noqa: ASYNC240
        await server.stop()
        await server.start()
        await serves(path)


async def test_two_targets_cannot_have_one_socket(path: Path) -> None:
    async with controlled(path) as server:
        with pytest.raises(TransportError, match="another process listens"):
            await ControlServer(server.control, path).start()
        await serves(path)


async def test_a_client_that_ends_its_half_and_reads_nothing_is_let_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did not read would keep a descriptor that no limit counts any longer."""
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.1)
    writers: list[asyncio.StreamWriter] = []
    serve = server_module._Client.serve

    async def watched(self: Any) -> None:
        writers.append(self._writer)
        await serve(self)

    monkeypatch.setattr(server_module._Client, "serve", watched)
    async with controlled(path) as server:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.sendall(b'{"jsonrpc":"2.0","id":1,"method":"watch"}\n')
        await until(lambda: bool(writers) and bool(server.control.target.registry.happenings._listeners))
        for _ in range(9):
            server.control.target.registry.happenings.tell("refused", reason="x" * 100_000)
        assert writers[0].transport.get_write_buffer_size() > 100_000
        client.shutdown(socket.SHUT_WR)
        await until(lambda: not server.clients)
        await until(lambda: writers[0].transport.get_write_buffer_size() == 0)
        await serves(path)
        client.close()
