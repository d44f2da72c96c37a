"""MPTCP's fallbacks in all forms: connections work, one line is logged, and describe() is true."""

from __future__ import annotations

import asyncio
import errno
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from nvmeof.errors import TransportError
from nvmeof.transport import mptcp, mptcp_info

from .conftest import connected, listening, receive, send, wait_for


def mptcp_works() -> bool:
    try:
        mptcp.new_socket(socket.AF_INET).close()
    except OSError:
        return False
    return True


needs_mptcp = pytest.mark.skipif(
    not mptcp_works(), reason="no MPTCP here: Linux 5.6 or later with sysctl net.mptcp.enabled=1 has it"
)


@needs_mptcp
async def test_protocol_token_and_one_subflow() -> None:
    async with connected("mptcp") as (near, far):
        await asyncio.gather(send(near, bytes(200_000)), receive(far, 200_000))
        here, there = near.describe(), far.describe()
        assert here.token != there.token and here.token and there.token
        assert here.mptcp_retransmits == 0
        assert here.subflows[0].bytes_sent is not None and here.subflows[0].bytes_sent >= 200_000
        assert there.subflows[0].bytes_received == 200_000


@needs_mptcp
@pytest.mark.parametrize("count", [0, 511])
async def test_the_end_of_the_stream_is_not_an_available_byte(count: int) -> None:
    async with connected("mptcp") as (near, far):
        assert near.available() == 0
        await send(far, bytes(count + 1))
        await receive(near, 1)
        await wait_for(lambda: near.available() == count)
        far.shutdown()
        ended = select.poll()
        ended.register(near.fileno(), select.POLLRDHUP)
        await wait_for(lambda: bool(ended.poll(0)))
        assert near.available() == count
        assert near.recv_into(bytearray(1000)) == count
        assert near.available() == 0


@needs_mptcp
async def test_a_plain_client_at_an_mptcp_listener(caplog: pytest.LogCaptureFixture) -> None:
    async with listening("mptcp") as (listeners, accepted):
        raw = [socket.create_connection(("127.0.0.1", listeners[0].address.port)) for _ in range(3)]
        await wait_for(lambda: len(accepted) == 3)
        raw[0].sendall(b"hello")
        assert await receive(accepted[0], 5) == b"hello"
        info = accepted[0].describe()
        assert (info.transport, info.protocol, info.fallback) == ("mptcp", "tcp", True)
        assert info.fallback_reason == mptcp.FALLBACK_PEER
        assert info.token is None
        assert info.nodelay is True
        assert (info.bytes_received, len(info.subflows)) == (5, 1)
        assert not listeners[0].describe().fallback
        for sock in raw:
            sock.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"using TCP in place of MPTCP with 127.0.0.1: {mptcp.FALLBACK_PEER}"
    ]
    assert caplog.records[0].levelname == "INFO", "ordinary hosts are no reason to warn"


@needs_mptcp
async def test_an_mptcp_client_at_a_plain_listener(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with connected("mptcp", target_name="tcp") as (near, far):
            await asyncio.gather(send(near, b"hello"), receive(far, 5))
            info = near.describe()
            assert (info.transport, info.protocol, info.fallback) == ("mptcp", "tcp", True)
            assert info.fallback_reason == mptcp.FALLBACK_PEER
            assert (info.bytes_sent, info.nodelay, info.token) == (5, True, None)
            assert (far.describe().transport, far.describe().fallback) == ("tcp", False)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EINVAL, mptcp.FALLBACK_KERNEL),
        (errno.EPROTONOSUPPORT, mptcp.FALLBACK_KERNEL),
        (errno.ENOPROTOOPT, mptcp.FALLBACK_SYSCTL),
    ],
)
async def test_a_kernel_that_opens_no_mptcp_socket(
    code: int, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(family: socket.AddressFamily) -> socket.socket:
        raise OSError(code, "")

    monkeypatch.setattr(mptcp, "new_socket", refuse)
    for _ in range(2):
        async with connected("mptcp") as (near, far):
            await asyncio.gather(send(near, b"hello"), receive(far, 5))
            for end in (near, far):
                info = end.describe()
                assert (info.transport, info.protocol, info.fallback) == ("mptcp", "tcp", True)
                assert info.fallback_reason == reason
                assert info.nodelay is True
    async with listening("mptcp") as (listeners, _):
        told = listeners[0].describe()
        assert (told.transport, told.protocol, told.fallback_reason) == ("mptcp", "tcp", reason)
    assert [record.getMessage() for record in caplog.records] == [f"using TCP in place of MPTCP: {reason}"]


async def test_other_errors_of_opening_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(family: socket.AddressFamily) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(mptcp, "new_socket", refuse)
    with pytest.raises(TransportError, match="too many open files"):
        async with connected("mptcp"):
            pass


@needs_mptcp
async def test_a_fallback_in_mid_connection_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected("mptcp") as (near, _):
        assert near.describe().protocol == "mptcp"

        def gone(sock: socket.socket) -> dict[str, int | None]:
            raise OSError(errno.EOPNOTSUPP, "")

        monkeypatch.setattr(mptcp_info, "mptcp_info", gone)
        monkeypatch.setattr(mptcp, "speaks_mptcp", lambda sock: False)
        for _ in range(2):
            info = near.describe()
            assert (info.protocol, info.fallback, info.fallback_reason) == ("tcp", True, mptcp.FALLBACK_LATER)
    assert len(caplog.records) == 1


@needs_mptcp
async def test_a_kernel_without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.16 there is no MPTCP_INFO: the connection counts as MPTCP, and no figure is invented."""
    monkeypatch.setattr(mptcp_info, "SOL_MPTCP", 9999)
    async with connected("mptcp") as (near, far):
        await asyncio.gather(send(near, b"hello"), receive(far, 5))
        info = near.describe()
        assert (info.protocol, info.fallback, info.token, info.subflows) == ("mptcp", False, None, ())
        assert info.nodelay is True
        assert info.bytes_sent is None


@needs_mptcp
async def test_before_full_info_two_calls_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected("mptcp") as (near, far):
        await asyncio.gather(send(near, bytes(10_000)), receive(far, 10_000))
        (new,) = near.describe().subflows
        real: Callable[..., int] = mptcp_info._getsockopt

        def old_kernel(sock: socket.socket, option: int, buffer: object) -> int:
            if option == mptcp_info.MPTCP_FULL_INFO:
                raise OSError(errno.EOPNOTSUPP, "")
            return real(sock, option, buffer)

        monkeypatch.setattr(mptcp_info, "_getsockopt", old_kernel)
        (old,) = near.describe().subflows
        assert old.id is None
        assert (old.local, old.peer, old.bytes_sent) == (new.local, new.peer, new.bytes_sent)


@needs_mptcp
async def test_a_closed_first_subflow_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lists it as long as the connection exists, with its last figures, round-trip time too."""
    async with connected("mptcp") as (near, far):
        await asyncio.gather(send(near, bytes(10_000)), receive(far, 10_000))
        (first,) = near.describe().subflows
        closed = replace(first, state="CLOSE", rtt_us=1, bytes_received=70, retransmits=3)
        second = replace(first, rtt_us=500, bytes_received=5, retransmits=1)
        monkeypatch.setattr(mptcp_info, "subflows", lambda _: (closed, second))
        monkeypatch.setattr(mptcp_info, "mptcp_info", lambda _: {"mptcpi_token": 1})  # as before Linux 6.5
        info = near.describe()
        assert info.subflows == (second,)
        assert info.rtt_us == 500
        assert (info.bytes_received, info.retransmits) == (75, 4), "what it moved was moved"
        monkeypatch.setattr(mptcp_info, "subflows", lambda _: (closed,))
        assert (near.describe().subflows, near.describe().rtt_us) == ((), None)


@needs_mptcp
async def test_more_subflows_than_room_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected("mptcp") as (near, _):
        monkeypatch.setattr(mptcp_info, "_SUBFLOWS_FIRST_TRY", 0)
        (flow,) = near.describe().subflows
        assert flow.local == near.local_address


def test_memory_of_causes_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    for i in range(1000):
        mptcp.say_fallback(mptcp.FALLBACK_PEER, f"10.0.{i // 256}.{i % 256}")
    assert len(caplog.records) == 256 == len(mptcp._said_causes)


SWITCHED_OFF = """
import asyncio, logging, sys
from nvmeof.transport import SocketOptions, get
from nvmeof.aio.runloop import run

async def main():
    accepted = []
    (listener,) = await get("mptcp").listen("127.0.0.1", 0, SocketOptions(), accepted.append)
    near = await get("mptcp").connect("127.0.0.1", listener.address.port, SocketOptions())
    while not accepted:
        await asyncio.sleep(0.01)
    near.sendmsg([b"hello"])
    await asyncio.sleep(0.05)
    buffer = bytearray(10)
    assert accepted[0].recv_into(buffer) == 5
    for end in (near, accepted[0]):
        info = end.describe()
        print(info.protocol, info.fallback, info.nodelay, info.fallback_reason, sep="|")
        end.close()
    listener.close()

logging.basicConfig(format="%(name)s|%(message)s", stream=sys.stdout)
run(main(), uvloop=sys.argv[1] == "uvloop" or False)
"""


@needs_mptcp
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_switched_off_by_sysctl(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="pip install uvloop")
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare (util-linux) and ip (iproute2)")
    script = 'ip link set lo up && echo 0 > /proc/sys/net/mptcp/enabled && exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["unshare", "-rnm", "sh", "-c", script, sys.executable, SWITCHED_OFF, loop],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if "unshare" in done.stderr or "Read-only" in done.stderr or "ermission denied" in done.stderr:
        pytest.skip(f"needs a user namespace (kernel.unprivileged_userns_clone=1): {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    reason = mptcp.FALLBACK_SYSCTL
    assert done.stdout.splitlines() == [
        f"nvmeof.transport|using TCP in place of MPTCP: {reason}",
        f"tcp|True|True|{reason}",
        f"tcp|True|True|{reason}",
    ]
