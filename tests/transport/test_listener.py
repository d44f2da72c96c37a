"""Listening: addresses, ports, and survival of failing connections."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

import pytest

from nvmeof.errors import TransportError
from nvmeof.transport import Address, Endpoint, SocketOptions, get, options, sockets

from .conftest import listening, receive, wait_for

TRANSPORTS = pytest.mark.parametrize("name", ["tcp", "mptcp"])


@TRANSPORTS
async def test_both_families_share_a_port(name: str) -> None:
    async with listening(name, "0.0.0.0") as (four, _):
        port = four[0].address.port
        with pytest.raises(TransportError, match=r"cannot listen on 0\.0\.0\.0"):
            await get(name).listen("[::]", port, SocketOptions(), lambda endpoint: None)
        async with listening(name, "[::]", SocketOptions(ipv6_only=True), port=port) as (six, _):
            assert [each.address for each in four + six] == [Address("0.0.0.0", port), Address("::", port)]
            near4 = await get(name).connect("127.0.0.1", port, SocketOptions())
            near6 = await get(name).connect("::1", port, SocketOptions())
            await wait_for(lambda: four[0].describe().accepted == six[0].describe().accepted == 1)
            near4.close()
            near6.close()


@TRANSPORTS
@pytest.mark.parametrize("host", ["*", "", "[::]", "::0"])
async def test_wildcard_is_both_families_on_one_port(name: str, host: str) -> None:
    async with listening(name, host) as (listeners, accepted):
        assert [each.address.host for each in listeners] == (["::", "0.0.0.0"] if ":" in host else ["0.0.0.0", "::"])
        assert len({each.address.port for each in listeners}) == 1
        near = await get(name).connect("localhost", listeners[0].address.port, SocketOptions())
        await wait_for(lambda: accepted)
        assert accepted[0].local_address == near.peer_address
        near.close()


async def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    async def resolve(
        host: str, port: int, *, passive: bool = False, interface: str | None = None
    ) -> list[options.Resolved]:
        return [
            (socket.AF_INET6, (each, port, 0, 0)) if ":" in each else (socket.AF_INET, (each, port)) for each in hosts
        ]

    monkeypatch.setattr(options, "resolve", resolve)


@TRANSPORTS
async def test_addresses_of_a_name_get_one_port_even_when_the_first_pick_is_taken(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2", "::1")
    taken: list[socket.socket] = []
    real = sockets.SocketTransport._bind

    def bind(self: Any, family: Any, sockaddr: Any, settings: Any) -> Any:
        if sockaddr[0] == "127.0.0.2" and len(taken) < 3:
            blocker = socket.socket()
            blocker.bind(("127.0.0.2", sockaddr[1]))
            blocker.listen()
            taken.append(blocker)
        return real(self, family, sockaddr, settings)

    monkeypatch.setattr(sockets.SocketTransport, "_bind", bind)
    async with listening(name, "name") as (listeners, _):
        assert len(listeners) == 3
        assert len({each.address.port for each in listeners}) == 1
        assert len(taken) == 3
    for blocker in taken:
        blocker.close()


async def test_an_address_of_a_name_that_is_not_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    await resolve_to(monkeypatch, "2001:db8::1", "127.0.0.1")
    async with listening("tcp", "name") as (listeners, _):
        assert [each.address.host for each in listeners] == ["127.0.0.1"]
    await resolve_to(monkeypatch, "2001:db8::1", "192.0.2.1")
    with pytest.raises(TransportError, match="no interface of this machine has that address"):
        await get("tcp").listen("name", 0, SocketOptions(), lambda endpoint: None)


@TRANSPORTS
@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:4420: no interface of this machine has that address"),
        ("2001:db8::1", "cannot listen on [2001:db8::1]:4420: no interface of this machine has that address"),
        ("no-such-host.invalid", "cannot find the address of 'no-such-host.invalid'"),
    ],
)
async def test_why_listening_fails(name: str, host: str, sentence: str) -> None:
    with pytest.raises(TransportError) as caught:
        await get(name).listen(host, 4420, SocketOptions(), lambda endpoint: None)
    assert sentence in str(caught.value)


@TRANSPORTS
@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
async def test_port_in_use(name: str, host: str) -> None:
    async with listening(name, host) as (listeners, _):
        port = listeners[0].address.port
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(TransportError, match=rf":{port}: the port is in use by another program"):
            await get(name).listen(host, port, SocketOptions(), lambda endpoint: None)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "not permitted to listen"),
        (errno.EPERM, "not permitted to listen"),
        (errno.EAFNOSUPPORT, "this machine has no IPv6"),
        (errno.EMFILE, "too many open files"),
        (errno.ENOBUFS, "no buffer space available"),
    ],
)
def test_each_error_has_its_sentence(code: int, words: str) -> None:
    error = sockets.listen_failure(OSError(code, ""), "[::1]", 80)
    assert words in str(error)
    assert "[::1]:80" in str(error)


@TRANSPORTS
async def test_a_port_can_be_used_again_at_once(name: str) -> None:
    async with listening(name) as (listeners, accepted):
        port = listeners[0].address.port
        near = await get(name).connect("127.0.0.1", port, SocketOptions())
        await wait_for(lambda: accepted)
        accepted[0].close()  # this side goes through TIME_WAIT
        assert await receive(near, 1) == b""
        near.close()
    async with listening(name, port=port) as (listeners, _):
        assert listeners[0].address.port == port


@TRANSPORTS
async def test_closing_keeps_the_connections(name: str) -> None:
    async with listening(name) as (listeners, accepted):
        port = listeners[0].address.port
        near = await get(name).connect("127.0.0.1", port, SocketOptions())
        await wait_for(lambda: accepted)
        listeners[0].close()
        listeners[0].close()
        assert listeners[0].describe().closed
        near.sendmsg([b"alive"])
        assert await receive(accepted[0], 5) == b"alive"
        with pytest.raises(TransportError, match="refused"):
            await get(name).connect("127.0.0.1", port, SocketOptions())
        near.close()


@TRANSPORTS
async def test_many_at_once(name: str) -> None:
    async with listening(name) as (listeners, accepted):
        port = listeners[0].address.port
        near = await asyncio.gather(*(get(name).connect("127.0.0.1", port, SocketOptions()) for _ in range(200)))
        await wait_for(lambda: len(accepted) == 200)
        assert {end.local_address for end in near} == {end.peer_address for end in accepted}
        assert listeners[0].describe().accepted == 200
        for end in near:
            end.abort()


@TRANSPORTS
async def test_a_failing_callback_costs_only_its_connection(name: str, caplog: pytest.LogCaptureFixture) -> None:
    accepted: list[Endpoint] = []

    def accept(endpoint: Endpoint) -> None:
        accepted.append(endpoint)
        if len(accepted) == 1:
            raise RuntimeError("no room")

    (listener,) = await get(name).listen("127.0.0.1", 0, SocketOptions(), accept)
    first = socket.create_connection(("127.0.0.1", listener.address.port))
    await wait_for(lambda: accepted)
    with pytest.raises(ConnectionResetError):
        first.recv(1)
    second = await get(name).connect("127.0.0.1", listener.address.port, SocketOptions())
    await wait_for(lambda: len(accepted) == 2)
    assert accepted[0].closed and not accepted[1].closed
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.getMessage().endswith("was dropped: RuntimeError: no room")
    assert line.exc_info is None
    for each in (listener, first, second, accepted[1]):
        each.close()


async def test_closing_within_the_callback_ends_the_batch() -> None:
    accepted: list[Endpoint] = []

    def accept(endpoint: Endpoint) -> None:
        accepted.append(endpoint)
        listener.close()

    (listener,) = await get("tcp").listen("127.0.0.1", 0, SocketOptions(), accept)
    raw = [socket.socket() for _ in range(3)]
    for sock in raw:
        sock.connect(("127.0.0.1", listener.address.port))
    await wait_for(lambda: accepted)
    await asyncio.sleep(0.02)
    assert len(accepted) == 1
    accepted[0].close()
    for sock in raw:
        sock.close()


class ByHand:
    """Turns of the loop that the test gives."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.clock = lambda: 0.0
        self.waiting: list[Callable[[], object]] = []

    @property
    def open(self) -> bool:
        return self.at_once > 0

    def spend(self, seconds: float) -> None:
        self.at_once -= 1

    def add(self, owner: object, work: Callable[[], object]) -> None:
        assert isinstance(owner, sockets.SocketListener)
        self.waiting.append(work)


@TRANSPORTS
async def test_connections_are_accepted_in_turn_with_other_work(name: str) -> None:
    """Some connections are accepted at once, the others one by one in the listener's turns; then it listens again."""
    async with listening(name, "127.0.0.1") as ((listener,), accepted):
        turns = ByHand(2)
        raw = [socket.socket() for _ in range(5)]
        for sock in raw:  # all connect before the loop runs
            sock.connect(("127.0.0.1", listener.address.port))
        listener.turns = turns
        await wait_for(lambda: turns.waiting)
        assert len(accepted) == 2
        await asyncio.sleep(0.01)
        assert len(accepted) == 2 and len(turns.waiting) == 1, "it does not listen in between"
        for there in (3, 4, 5):
            turns.waiting.pop()()
            assert len(accepted) == there and len(turns.waiting) == 1
        turns.waiting.pop()()
        assert not turns.waiting, "none was left"
        turns.at_once = 5
        with socket.create_connection(("127.0.0.1", listener.address.port)):
            await wait_for(lambda: len(accepted) == 6)
        for sock in raw:
            sock.close()


async def test_a_listener_that_waits_for_its_turn_can_be_closed() -> None:
    async with listening("tcp") as ((listener,), accepted):
        listener.turns = turns = ByHand(0)
        with socket.create_connection(("127.0.0.1", listener.address.port)):
            await wait_for(lambda: turns.waiting)
            listener.close()
            turns.waiting.pop()()
            assert not turns.waiting and not accepted


async def test_a_listener_in_turn_pauses_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "ACCEPT_PAUSE_SECONDS", (0.01, 0.03))
    async with listening("tcp") as ((listener,), accepted):
        assert isinstance(listener, sockets.SocketListener)
        listener.turns = turns = ByHand(0)
        listener._sock = FaultySocket(listener._sock, [errno.EMFILE])  # type: ignore[assignment]
        near = await get("tcp").connect("127.0.0.1", listener.address.port, SocketOptions())
        await wait_for(lambda: turns.waiting)
        turns.waiting.pop()()
        assert listener.describe().paused and not turns.waiting
        await wait_for(lambda: turns.waiting)  # after the pause
        turns.waiting.pop()()
        assert len(accepted) == 1
        near.close()


class FaultySocket:
    """A listening socket whose accept fails with given errors, then works."""

    def __init__(self, sock: socket.socket, codes: list[int]) -> None:
        self._sock, self._codes = sock, codes

    def accept(self) -> Any:
        if self._codes:
            raise OSError(self._codes.pop(0), "out of luck")
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


async def test_connections_that_died_early_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    async with listening("tcp") as ((listener,), accepted):
        assert isinstance(listener, sockets.SocketListener)
        codes = [errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH]
        listener._sock = FaultySocket(listener._sock, codes)  # type: ignore[assignment]
        near = await get("tcp").connect("127.0.0.1", listener.address.port, SocketOptions())
        await wait_for(lambda: accepted)
        assert not codes and not caplog.records
        near.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_out_of_resources_pauses_longer_each_time(
    code: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "ACCEPT_PAUSE_SECONDS", (0.01, 0.03))
    async with listening("tcp") as ((listener,), accepted):
        assert isinstance(listener, sockets.SocketListener)
        listener._sock = FaultySocket(listener._sock, [code] * 4)  # type: ignore[assignment]
        loop = asyncio.get_running_loop()
        start = loop.time()
        near = await get("tcp").connect("127.0.0.1", listener.address.port, SocketOptions())
        await wait_for(lambda: listener.describe().paused)
        await wait_for(lambda: accepted)
        assert 0.08 <= loop.time() - start < 2  # 10 + 20 + 30 + 30 ms
        assert len(caplog.records) == 1
        assert "accepts no connections for a moment" in caplog.text
        assert not listener.describe().paused
        near.close()


async def test_a_paused_listener_can_be_closed() -> None:
    async with listening("tcp") as ((listener,), _):
        assert isinstance(listener, sockets.SocketListener)
        listener._sock = FaultySocket(listener._sock, [errno.EMFILE])  # type: ignore[assignment]
        near = await get("tcp").connect("127.0.0.1", listener.address.port, SocketOptions())
        await wait_for(lambda: listener.describe().paused)
        listener.close()
        await asyncio.sleep(0.15)
        near.close()


@TRANSPORTS
async def test_survives_a_real_lack_of_descriptors(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with listening(name) as (listeners, accepted):
        raw = [socket.socket() for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(each) for each in os.listdir("/proc/self/fd"))  # noqa: PTH208
        spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
        for each in spare:
            if each > used + 4:
                os.close(each)
        spare = [each for each in spare if each <= used + 4]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, hard))
            for sock in raw:
                sock.connect(("127.0.0.1", listeners[0].address.port))
            await wait_for(lambda: "accepts no connections" in caplog.text)
            assert len(accepted) < 3
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await wait_for(lambda: len(accepted) == 3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in spare:
                os.close(each)
            for sock in raw:
                sock.close()


async def test_listening_needs_no_lookup_for_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", fail, raising=False)
    assert await options.resolve("127.0.0.1", 5) == [(socket.AF_INET, ("127.0.0.1", 5))]
    assert await options.resolve("[::1]", 5) == [(socket.AF_INET6, ("::1", 5, 0, 0))]
    scoped = await options.resolve("fe80::1%lo", 5)
    assert scoped[0][1][3] == socket.if_nametoindex("lo")
