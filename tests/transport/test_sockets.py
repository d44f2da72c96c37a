"""Connecting and moving bytes over real sockets: tcp and mptcp, IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from nvmeof.errors import ConfigurationError, ConnectTimeout, NvmeofError, TransportError
from nvmeof.transport import Address, Endpoint, SocketOptions, get, options
from nvmeof.transport.sockets import IOV_MAX, SocketEndpoint
from nvmeof.transport.window import STEPS

from .conftest import connected, listening, receive, send, wait_for

TRANSPORTS = pytest.mark.parametrize("name", ["tcp", "mptcp"])
HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])


def sock_of(endpoint: Endpoint) -> socket.socket:
    assert isinstance(endpoint, SocketEndpoint)
    return endpoint._sock


@TRANSPORTS
@HOSTS
async def test_bytes_both_ways_and_the_facts(name: str, host: str) -> None:
    async with connected(name, host) as (near, far):
        data = os.urandom(3_000_001)
        _, got = await asyncio.gather(send(near, data), receive(far, len(data)))
        assert got == data
        _, got = await asyncio.gather(send(far, b"answer"), receive(near, 6))
        assert got == b"answer"
        assert near.peer_address == far.local_address
        assert near.local_address == far.peer_address
        assert near.transport_name == name
        assert near.fileno() == sock_of(near).fileno() >= 0
        for end, sent, received in ((near, len(data), 6), (far, 6, len(data))):
            info = end.describe()
            assert (info.transport, info.protocol, info.fallback) == (name, name, False)
            assert (info.local, info.peer) == (end.local_address, end.peer_address)
            assert info.nodelay is True
            assert (info.bytes_sent, info.bytes_received) == (sent, received)
            assert info.retransmits is not None
            assert info.congestion
            assert info.rtt_us and info.sndbuf_bytes and info.rcvbuf_bytes
            (flow,) = info.subflows
            assert (flow.local, flow.peer, flow.state) == (info.local, info.peer, "ESTABLISHED")
            assert (info.token is not None) == (name == "mptcp")


@TRANSPORTS
async def test_nodelay_is_on_at_both_ends(name: str) -> None:
    async with connected(name) as (near, far):
        for end in (near, far):
            assert sock_of(end).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@TRANSPORTS
async def test_the_hot_path_is_the_sockets_own(name: str) -> None:
    async with connected(name) as (near, far):
        # of MPTCP only after its window was opened: see test_window
        if name == "mptcp":
            await asyncio.gather(send(far, bytes(STEPS[-1][0] + 1)), receive(near, STEPS[-1][0] + 1))
            await asyncio.gather(send(far, b"1"), receive(near, 1))
        assert near.recv_into == sock_of(near).recv_into


@TRANSPORTS
async def test_more_buffers_than_the_kernel_takes(name: str) -> None:
    async with connected(name) as (near, far):
        buffers = [bytes([i % 251]) * 3 for i in range(3 * IOV_MAX)]
        assert near.sendmsg(buffers) == 3 * IOV_MAX
        assert near.sendmsg(tuple(buffers)) == 3 * IOV_MAX
        assert await receive(far, 6 * IOV_MAX) == b"".join(buffers[:IOV_MAX]) * 2


@TRANSPORTS
async def test_would_block_both_ways(name: str) -> None:
    async with connected(name, settings=SocketOptions(sndbuf_bytes=65536)) as (near, far):
        with pytest.raises(BlockingIOError):
            near.recv_into(bytearray(1))
        sent, calls = 0, 0
        with pytest.raises(BlockingIOError):
            while calls < 10_000:
                sent += near.sendmsg([bytes(50_000)])
                calls += 1
        assert 0 < sent < 50_000 * 10_000
        writable: list[int] = []
        near.set_writer(lambda: writable.append(1))
        await asyncio.sleep(0.02)
        assert not writable
        assert len(await receive(far, sent)) == sent
        await wait_for(lambda: writable)
        near.set_writer(None)


@TRANSPORTS
async def test_close_delivers_sent_data_in_spite_of_unread_data(name: str) -> None:
    async with connected(name) as (near, far):
        await send(far, bytes(10_000))
        await asyncio.sleep(0.02)
        near.sendmsg([b"last words"])
        near.close()
        near.close()
        assert near.closed and near.fileno() == -1
        assert await receive(far, 100) == b"last words"
        with pytest.raises(ConnectionAbortedError):
            near.recv_into(bytearray(1))
        with pytest.raises(ConnectionAbortedError):
            near.sendmsg([b"x"])
        with pytest.raises(ConnectionAbortedError):
            near.set_reader(lambda: None)
        near.set_reader(None)
        near.shutdown()
        near.abort()


@TRANSPORTS
async def test_abort_resets_the_peer(name: str) -> None:
    async with connected(name) as (near, far):
        near.abort()
        near.abort()
        assert near.closed
        with pytest.raises(ConnectionResetError):
            await receive(far, 1)


@TRANSPORTS
async def test_shutdown_closes_one_direction(name: str) -> None:
    async with connected(name) as (near, far):
        near.sendmsg([b"all"])
        near.shutdown()
        assert await receive(far, 10) == b"all"
        far.sendmsg([b"still here"])
        assert await receive(near, 10) == b"still here"


@TRANSPORTS
async def test_callbacks_stop_with_the_endpoint(name: str) -> None:
    async with connected(name) as (near, far):
        calls: list[int] = []
        near.set_reader(lambda: calls.append(1))
        near.set_writer(lambda: calls.append(2))
        await wait_for(lambda: calls)
        near.close()
        calls.clear()
        far.sendmsg([b"x"])
        await asyncio.sleep(0.02)
        assert not calls


@TRANSPORTS
async def test_describe_after_close_gives_the_last_facts(name: str) -> None:
    async with connected(name) as (near, far):
        near.sendmsg([b"12345"])
        far.close()
        assert far.describe().closed
        before = near.describe()
        near.close()
        after = near.describe()
        assert after.closed and not before.closed
        assert after.bytes_sent == before.bytes_sent == 5
        assert "closed" in repr(near)


@TRANSPORTS
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_options_reach_the_sockets(name: str, host: str) -> None:
    settings = SocketOptions(tos=0x28, priority=5, congestion="reno", sndbuf_bytes=90_000, rcvbuf_bytes=80_000)
    async with connected(name, host, settings, settings) as (near, far):
        for end in (near, far):
            sock = sock_of(end)
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x28
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 5
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 180_000
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 160_000
            assert end.describe().congestion == "reno"
            if sock.family == socket.AF_INET6 and name == "tcp":
                assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 0x28


async def test_a_refused_traffic_class_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Sock:
        family = socket.AF_INET6

        def setsockopt(self, level: int, option: int, value: int) -> None:
            if level == socket.IPPROTO_IPV6:
                raise OSError(errno.EOPNOTSUPP, "")

    for _ in range(2):
        options.set_tos(Sock(), 8)  # type: ignore[arg-type]
    assert len(caplog.records) == 1


@TRANSPORTS
async def test_bad_congestion_control_lists_the_good(name: str) -> None:
    bad = SocketOptions(congestion="nosuch")
    with pytest.raises(ConfigurationError, match=r"'nosuch' is not there: this kernel offers .*reno"):
        await get(name).listen("127.0.0.1", 0, bad, lambda endpoint: None)
    with pytest.raises(ConfigurationError, match="nosuch"):
        await get(name).connect("127.0.0.1", 1, bad)


@TRANSPORTS
async def test_source_address_and_interface(name: str) -> None:
    settings = SocketOptions(host_traddr="127.0.0.9", host_iface="lo")
    async with connected(name, settings=settings) as (near, far):
        assert near.local_address.host == "127.0.0.9" == far.peer_address.host
        assert sock_of(near).getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).startswith(b"lo")


async def test_source_address_chooses_the_family() -> None:
    async with listening("tcp", "*") as (listeners, _):
        near = await get("tcp").connect("localhost", listeners[0].address.port, SocketOptions(host_traddr="127.0.0.1"))
        assert near.local_address.host == "127.0.0.1"
        near.close()
    with pytest.raises(TransportError, match="different families"):
        await get("tcp").connect("127.0.0.1", 1, SocketOptions(host_traddr="::1"))


@TRANSPORTS
@pytest.mark.parametrize(
    ("host", "settings", "sentence"),
    [
        ("127.0.0.1", SocketOptions(), "connection refused by 127.0.0.1:1: is a target listening there?"),
        ("::1", SocketOptions(), "connection refused by [::1]:1: is a target listening there?"),
        ("127.0.0.1", SocketOptions(host_traddr="192.0.2.1"), "no interface here has that address"),
        ("127.0.0.1", SocketOptions(host_traddr="no such name"), "cannot find the address of 'no such name'"),
        ("127.0.0.1", SocketOptions(host_iface="nosuch0"), "there is no network interface 'nosuch0'"),
        ("no-such-host.invalid", SocketOptions(), "cannot find the address of 'no-such-host.invalid'"),
        ("x" * 300, SocketOptions(), "cannot find the address"),
        ("a\0b", SocketOptions(), "cannot find the address"),
        ("", SocketOptions(), "no address to connect to"),
    ],
)
async def test_why_a_connection_fails(name: str, host: str, settings: SocketOptions, sentence: str) -> None:
    with pytest.raises(NvmeofError) as caught:
        await get(name).connect(host, 1, settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536])
async def test_port_out_of_range(port: int) -> None:
    with pytest.raises(TransportError, match="is not a port"):
        await get("tcp").connect("127.0.0.1", port, SocketOptions())


@TRANSPORTS
async def test_silence_ends_in_a_timeout(name: str) -> None:
    """A listener whose backlog is full drops further SYNs."""
    full = [socket.socket() for _ in range(4)]
    try:
        full[0].bind(("127.0.0.1", 0))
        full[0].listen(0)
        for sock in full[1:]:
            sock.setblocking(False)
            sock.connect_ex(full[0].getsockname())
        port = full[0].getsockname()[1]
        with pytest.raises(ConnectTimeout, match=rf"no answer from 127.0.0.1:{port} within 0.2 s"):
            await get(name).connect("127.0.0.1", port, SocketOptions(connect_timeout_seconds=0.2))
    finally:
        for sock in full:
            sock.close()


async def test_a_connect_can_be_cancelled() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    full = [socket.socket() for _ in range(4)]
    try:
        full[0].bind(("127.0.0.1", 0))
        full[0].listen(0)
        for sock in full[1:]:
            sock.setblocking(False)
            sock.connect_ex(full[0].getsockname())
        task = asyncio.ensure_future(get("tcp").connect("127.0.0.1", full[0].getsockname()[1], SocketOptions()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        for sock in full:
            sock.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Make every host name stand for ``addresses``."""

    async def resolve(
        host: str, port: int, *, passive: bool = False, interface: str | None = None
    ) -> list[options.Resolved]:
        return [
            (socket.AF_INET6, (each, port, 0, 0)) if ":" in each else (socket.AF_INET, (each, port)) for each in hosts
        ]

    monkeypatch.setattr(options, "resolve", resolve)


@TRANSPORTS
async def test_addresses_are_tried_in_turn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(name, "127.0.0.3") as (listeners, _):
        await resolve_to(monkeypatch, "127.0.0.1", "::1", "127.0.0.3")
        near = await get(name).connect("name", listeners[0].address.port, SocketOptions())
        assert near.peer_address.host == "127.0.0.3"
        near.close()


async def test_all_addresses_failing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    await resolve_to(monkeypatch, "127.0.0.1", "::1")
    with pytest.raises(TransportError) as caught:
        await get("tcp").connect("name", 1, SocketOptions())
    assert str(caught.value) == (
        "none of the 2 addresses of name:1 could be used: connection refused by 127.0.0.1:1;"
        " connection refused by [::1]:1"
    )


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ECONNREFUSED, TransportError, "refused"),
        (errno.ETIMEDOUT, ConnectTimeout, "no answer"),
        (errno.EHOSTUNREACH, TransportError, "no route"),
        (errno.ENETUNREACH, TransportError, "no route"),
        (errno.ECONNRESET, TransportError, "dropped"),
        (errno.EADDRNOTAVAIL, TransportError, "no local address or port"),
        (errno.EACCES, TransportError, "not permitted"),
        (errno.EPERM, TransportError, "firewall"),
        (errno.EAFNOSUPPORT, TransportError, "has no IPv4"),
        (errno.EMFILE, TransportError, "too many open files"),
        (errno.EPIPE, TransportError, "broken pipe"),
    ],
)
def test_each_error_has_its_sentence(code: int, kind: type[TransportError], words: str) -> None:
    error = options.connect_error(OSError(code, ""), Address("1.2.3.4", 5), SocketOptions(), 3)
    assert type(error) is kind
    assert words in str(error)
    assert "1.2.3.4:5" in str(error)
