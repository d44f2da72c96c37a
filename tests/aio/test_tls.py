"""TLS on an endpoint: both ends over memory, byte by byte and in lumps; what is refused, cut off, or too slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.aio.tls import ServerHandshake, TlsEndpoint, connect_tls
from nvmeof.errors import AuthenticationError, ConnectTimeout, TransportError
from nvmeof.security.tls.credentials import TlsCredentials
from nvmeof.security.tls.key import Derivation, TlsKey, generate_tls_key
from nvmeof.security.tls.session import BATCH_BYTES
from nvmeof.security.tls.suites import AES_256_GCM, CHACHA20, SUITES, Suite
from nvmeof.spec.auth import HashId
from nvmeof.transport.base import Endpoint
from nvmeof.transport.memory import memory_pair

HOST, SUBSYSTEM = "nqn.2026-01.org.example:host", "nqn.2026-01.org.example:disk"
KEY = generate_tls_key()
Result = TlsEndpoint | TransportError


class Server:
    """Shakes hands on every endpoint that a client reaches; `results` are in their order."""

    def __init__(
        self,
        key: TlsKey | None = KEY,
        *,
        capacity: int = 1 << 20,
        max_chunk: int | None = None,
        suites: tuple[Suite, ...] = SUITES,
        seconds: float = 5.0,
        plain: Callable[[Endpoint], object] | None = None,
    ) -> None:
        self.results: list[Result] = []
        self.handshakes: list[ServerHandshake] = []
        self.clients: list[Endpoint] = []
        self._key, self._suites, self._seconds, self._plain = key, suites, seconds, plain
        self._capacity, self._max_chunk = capacity, max_chunk

    async def reach(self) -> Endpoint:
        ours, theirs = memory_pair(capacity_bytes=self._capacity, max_chunk_bytes=self._max_chunk)
        handshake = ServerHandshake(
            ours, self._lookup, self._suites, self.results.append, self._seconds, plain=self._plain
        )
        self.handshakes.append(handshake)
        handshake.start()
        self.clients.append(theirs)
        return theirs

    def _lookup(self, identity: str) -> list:  # type: ignore[type-arg]
        return [] if self._key is None else self._key.candidates(identity, HOST, SUBSYSTEM)

    async def connect(self, key: TlsKey = KEY, seconds: float = 5.0) -> tuple[TlsEndpoint, TlsEndpoint]:
        """Return both ends of a connection: the client's, the server's."""
        client = await connect_tls(self.reach, TlsCredentials(key), HOST, SUBSYSTEM, seconds)
        while not self.results:  # noqa: ASYNC110
            await asyncio.sleep(0)
        server = self.results[-1]
        assert isinstance(server, TlsEndpoint)
        return client, server


async def receive(endpoint: Endpoint, count: int, room: int = 50_000) -> bytes:
    """Receive so many bytes as a driver does: when it is told that there is something."""
    got, ended = bytearray(), asyncio.get_running_loop().create_future()
    buffer = memoryview(bytearray(room))

    def readable() -> None:
        try:
            n = endpoint.recv_into(buffer[: min(room, count - len(got))])
        except BlockingIOError:
            return
        except OSError as error:
            if not ended.done():
                ended.set_exception(error)
            return
        got.extend(buffer[:n])
        if (not n or len(got) == count) and not ended.done():
            endpoint.set_reader(None)
            ended.set_result(None)

    endpoint.set_reader(readable)
    async with asyncio.timeout(10):
        await ended
    return bytes(got)


async def send(endpoint: Endpoint, data: bytes) -> None:
    """Send all of it, as a driver does: waiting while nothing is taken."""
    left, loop = memoryview(data), asyncio.get_running_loop()
    while left:
        try:
            left = left[endpoint.sendmsg([left[:3], left[3:]]) :]
        except BlockingIOError:
            room = loop.create_future()
            endpoint.set_writer(lambda room=room: room.done() or room.set_result(None))  # type: ignore[misc]
            async with asyncio.timeout(10):
                await room
            endpoint.set_writer(None)


@pytest.mark.parametrize(
    ("capacity", "max_chunk", "room"),
    [(1 << 20, None, 1 << 20), (1 << 20, None, 4096), (5000, None, 50_000), (70_000, 1000, 7), (300, 1, 100)],
)
async def test_both_directions(capacity: int, max_chunk: int | None, room: int) -> None:
    """Whatever the pieces are that the wire carries and the reader takes, nothing is lost and nobody waits."""
    client, server = await Server(capacity=capacity, max_chunk=max_chunk).connect()
    size = 20_000 if room < 1000 else 3 * BATCH_BYTES + 17
    data = bytes(range(251)) * (size // 251)
    for source, sink in ((client, server), (server, client)):
        sending = asyncio.create_task(send(source, data))
        assert await receive(sink, len(data), room) == data
        await sending
    client.close()
    assert await receive(server, 1) == b"", "close_notify is the end of the stream"
    server.close()


async def test_decrypted_bytes_that_wait_are_read_without_the_wire() -> None:
    """One record fills the reader's buffer several times: the wire has nothing more to say."""
    client, server = await Server().connect()
    client.sendmsg([bytes(10_000)])
    assert len(await receive(server, 10_000, room=64)) == 10_000


async def test_a_reader_that_comes_later_finds_what_waits() -> None:
    client, server = await Server().connect()
    client.sendmsg([b"12345678"])
    assert await receive(server, 2) == b"12"
    await asyncio.sleep(0.01)
    assert await receive(server, 6) == b"345678"


async def test_two_buffers_are_filled() -> None:
    client, server = await Server().connect()
    client.sendmsg([b"a" * 100, b"b" * 100])
    await asyncio.sleep(0)
    first, behind = memoryview(bytearray(100)), memoryview(bytearray(200))
    assert server.recv_both(first, behind) == 200
    assert bytes(first) == b"a" * 100 and bytes(behind[:100]) == b"b" * 100


async def test_what_was_taken_is_delivered_although_the_endpoint_is_closed() -> None:
    client, server = await Server(capacity=20_000).connect()
    assert client.sendmsg([bytes(100_000)]) == 100_000, "a batch is taken as a whole"
    with pytest.raises(BlockingIOError):
        client.sendmsg([b"more"])
    client.close()
    with pytest.raises(ConnectionAbortedError):
        client.sendmsg([b"x"])
    assert len(await receive(server, 100_001)) == 100_000


async def test_a_stream_that_is_cut_off_is_an_error() -> None:
    server = Server()
    client, other = await server.connect()
    client.sendmsg([b"half"])
    server.clients[0].close()  # the wire ends without close_notify
    assert await receive(other, 4) == b"half"
    with pytest.raises(ConnectionResetError, match="without close_notify"):
        await receive(other, 1)


async def test_bytes_that_were_changed_on_the_way_are_an_error() -> None:
    server = Server()
    client, other = await server.connect()
    server.clients[0].sendmsg([b"\x17\x03\x03\x00\x20" + bytes(32)])
    with pytest.raises(ConnectionAbortedError, match=r"TLS failed: .*damaged"):
        await receive(other, 1)
    assert client.cipher


async def test_facts_of_the_connection() -> None:
    client, server = await Server().connect()
    assert client.describe().tls == server.describe().tls == "TLS_AES_128_GCM_SHA256"
    assert server.psk_identity == KEY.identity(HOST, SUBSYSTEM)
    assert client.available() == 0 and client.transport_name == "memory"
    client.abort()
    client.abort()
    client.close()
    assert client.closed
    with pytest.raises(OSError):
        await receive(server, 1)


# -- handshakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "attempts", "cipher"),
    [(SUITES, 1, AES_256_GCM), ((CHACHA20,), 2, CHACHA20)],
)
async def test_a_host_tries_the_other_hash(allowed: tuple[Suite, ...], attempts: int, cipher: Suite) -> None:
    """As with Linux's tlshd, which makes the binder of a 48-byte key with SHA-256."""
    key = generate_tls_key(HashId.SHA384)
    server = Server(key, suites=allowed)
    client, _ = await server.connect(key)
    assert client.cipher == cipher.name and len(server.results) == attempts


@pytest.mark.parametrize(
    ("key", "says"),
    [(None, "TLS was refused: its PSK identity is not known here"), (generate_tls_key(), "identity is not known here")],
)
async def test_one_answer_for_every_stranger(key: TlsKey | None, says: str) -> None:
    server = Server(key)
    with pytest.raises(AuthenticationError, match=r"memory.*refuses the pre-shared key.*decrypt error"):
        await server.connect()
    assert len(server.results) == 2, "the host has tried both derivations"
    for refusal in server.results:
        assert isinstance(refusal, TransportError) and says in str(refusal)


async def test_a_host_finds_the_derivation_that_a_target_knows() -> None:
    """As nvmet does, whose keys are from nvme-cli of Debian 13; later connections begin with what has worked."""
    server = Server()
    old = [KEY.psk(HOST, SUBSYSTEM, derivation=Derivation.LIBNVME_1_14)]
    server._lookup = lambda identity: [psk for psk in old if psk.identity == identity]  # type: ignore[method-assign]
    credentials = TlsCredentials(KEY)
    for attempts in (2, 3):
        client = await connect_tls(server.reach, credentials, HOST, SUBSYSTEM, 5)
        assert client.psk_identity == old[0].identity and len(server.results) == attempts


async def test_a_peer_that_does_not_speak_tls() -> None:
    server = Server()
    client = await server.reach()
    client.sendmsg([bytes(128)])
    with contextlib.suppress(OSError):
        assert await receive(client, 1) == b""
    (refusal,) = server.results
    assert "does not speak TLS, which is required here" in str(refusal)


async def test_a_plain_peer_where_both_are_allowed() -> None:
    plain: list[Endpoint] = []
    server = Server(plain=plain.append)
    client = await server.reach()
    client.sendmsg([b"\0plain bytes"])
    while not plain:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await receive(plain[0], 12) == b"\0plain bytes" and not server.results
    client.sendmsg([b"and more"])
    assert await receive(plain[0], 8) == b"and more"


async def test_the_first_byte_alone_of_a_plain_peer() -> None:
    plain: list[Endpoint] = []
    client = await Server(plain=plain.append).reach()
    client.sendmsg([b"\0"])
    while not plain:  # noqa: ASYNC110
        await asyncio.sleep(0)
    buffer, behind = memoryview(bytearray(4)), memoryview(bytearray(4))
    assert plain[0].recv_both(buffer, behind) == 1
    with pytest.raises(BlockingIOError):
        plain[0].recv_both(buffer, behind)


@pytest.mark.parametrize("first", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_takes_its_time_at_most(first: bytes) -> None:
    server = Server(seconds=0.05)
    client = await server.reach()
    if first:
        client.sendmsg([first])
    await asyncio.sleep(0.1)
    (refusal,) = server.results
    assert isinstance(refusal, ConnectTimeout) and "within 0.05 s" in str(refusal)


async def test_a_client_does_not_wait_for_ever() -> None:
    async def reach() -> Endpoint:
        return memory_pair()[0]

    with pytest.raises(ConnectTimeout, match=r"memory.*not complete within"):
        await connect_tls(reach, TlsCredentials(KEY), HOST, SUBSYSTEM, 0.1)


@pytest.mark.parametrize("ends", ["close", "abort"])
async def test_a_peer_that_goes_away_in_the_middle(ends: str) -> None:
    server = Server()
    client = await server.reach()
    client.sendmsg([b"\x16\x03\x01\x02\x00\x01"])
    await asyncio.sleep(0)
    getattr(client, ends)()
    await asyncio.sleep(0.01)
    (refusal,) = server.results
    assert "in the TLS handshake" in str(refusal)


async def test_a_client_that_is_cancelled_leaves_nothing() -> None:
    ends: list[Endpoint] = []

    async def reach() -> Endpoint:
        ends.extend(memory_pair())
        return ends[0]

    connecting: Awaitable[TlsEndpoint] = connect_tls(reach, TlsCredentials(KEY), HOST, SUBSYSTEM, 5)
    task = asyncio.ensure_future(connecting)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ends[0].closed


async def test_a_cancelled_handshake_of_a_server_says_nothing() -> None:
    server = Server()
    client = await server.reach()
    server.handshakes[0].cancel()
    server.handshakes[0].cancel()
    with pytest.raises(OSError):
        await receive(client, 1)
    assert not server.results


class HandTurns:
    """Turns that come when they are told to."""

    open = False

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []

    def clock(self) -> float:
        return 0.0

    def spend(self, seconds: float) -> None:
        pass

    def add(self, owner: object, work: Callable[[], object]) -> None:
        self.work.append(work)


async def test_a_handshake_waits_for_its_turn() -> None:
    turns, results = HandTurns(), list[Result]()
    ours, theirs = memory_pair()
    lookup = lambda identity: KEY.candidates(identity, HOST, SUBSYSTEM)  # noqa: E731
    ServerHandshake(ours, lookup, SUITES, results.append, 5.0, turns=turns).start()  # type: ignore[arg-type]

    async def reach() -> Endpoint:
        return theirs

    connecting = asyncio.ensure_future(connect_tls(reach, TlsCredentials(KEY), HOST, SUBSYSTEM, 5))
    await asyncio.sleep(0.02)
    assert len(turns.work) == 1 and not connecting.done()
    while not (connecting.done() and results):
        await asyncio.sleep(0.001)
        while turns.work:
            turns.work.pop(0)()
    assert isinstance(results[0], TlsEndpoint) and (await connecting).cipher


async def test_a_shutdown_behind_what_the_peer_has_not_taken() -> None:
    client, server = await Server(capacity=20_000).connect()
    client.sendmsg([bytes(100_000)])
    client.shutdown()
    assert len(await receive(server, 100_001)) == 100_000
    server.sendmsg([b"still heard"])
    assert await receive(client, 11) == b"still heard"


async def test_a_peer_that_takes_nothing_does_not_keep_a_closed_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeof.aio.tls.LINGER_SECONDS", 0.05)
    server = Server(capacity=20_000)
    client, _ = await server.connect()
    client.sendmsg([bytes(100_000)])
    client.close()
    assert client.closed and not server.clients[0].closed
    async with asyncio.timeout(10):
        while not server.clients[0].closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200), max_size=6), st.booleans())
def test_any_bytes_of_a_stranger(pieces: list[bytes], as_tls: bool) -> None:
    """One result at the most, and nothing raised, whatever comes in whatever pieces."""

    async def main() -> None:
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        server = Server(seconds=0.02)
        client = await server.reach()
        if as_tls:
            client.sendmsg([b"\x16\x03\x01"])
        for piece in pieces:
            with contextlib.suppress(OSError):
                client.sendmsg([piece])
            await asyncio.sleep(0)
        while not server.results:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert len(server.results) == 1 and isinstance(server.results[0], TransportError) and not problems

    asyncio.run(main())
