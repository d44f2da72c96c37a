"""TLS without I/O: handshakes, what each end makes of the other's bytes, and what is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.security.tls import library as openssl
from nvmeof.security.tls.credentials import TlsCredentials, match_hello
from nvmeof.security.tls.hello import HelloError, complete_hello, parse_hello
from nvmeof.security.tls.key import Derivation, Psk, TlsKey, generate_tls_key
from nvmeof.security.tls.session import BATCH_BYTES, TlsError, TlsSession, _context
from nvmeof.security.tls.suites import AES_128_GCM, AES_256_GCM, CHACHA20, SUITES, Suite, parse_suites
from nvmeof.spec.auth import HashId

HOST, SUBSYSTEM = "nqn." + "h" * 219, "nqn." + "s" * 219
KEY_256, KEY_384 = generate_tls_key(), generate_tls_key(HashId.SHA384)


def move(source: TlsSession, sink: TlsSession, most: int = 1 << 20) -> int:
    """Carry bytes from one session to the other; how many."""
    moved = 0
    while moved < most and len(output := source.output()):
        space = sink.space()
        count = min(len(output), len(space), most - moved)
        if not count:
            break
        space[:count] = output[:count]
        sink.received(count)
        source.sent(count)
        moved += count
    return moved


def read_all(session: TlsSession, room: int = 1 << 20) -> bytes:
    buffer = bytearray(room)
    return bytes(buffer[: session.read_into(memoryview(buffer))])


def pair(psk: Psk, suites: Sequence[Suite], server: Suite | None = None) -> tuple[TlsSession, TlsSession]:
    """Return a client and a server whose handshake is complete."""
    client, other = TlsSession(psk, suites, server=False), TlsSession(psk, (server or suites[0],), server=True)
    done = [False, False]
    for _ in range(6):
        done[0] = done[0] or client.handshake()
        move(client, other)
        done[1] = done[1] or other.handshake()
        move(other, client)
    assert done == [True, True]
    return client, other


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("key", "suite"), [(KEY_256, AES_128_GCM), (KEY_256, CHACHA20), (KEY_384, AES_256_GCM), (KEY_384, CHACHA20)]
)
def test_both_directions(key: TlsKey, suite: Suite, version: int) -> None:
    psk = key.psk(HOST, SUBSYSTEM, version=version)
    client, server = pair(psk, (suite,))
    assert client.cipher == server.cipher == suite.name
    for source, sink in ((client, server), (server, client)):
        data = bytes(range(256)) * 400
        source.write(data)
        move(source, sink)
        assert read_all(sink) == data and sink.drained


def test_a_server_sends_no_session_ticket() -> None:
    """A NewSessionTicket ends the connection of a Linux host."""
    client, server = pair(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))
    client.write(b"first")
    move(client, server)
    assert read_all(server) == b"first" and server.pending == 0
    assert read_all(client) == b"" and not client.buffered


@pytest.mark.parametrize("size", [1, 16384, 16385, 131072, BATCH_BYTES])
def test_batches_are_records_of_16_kib(size: int) -> None:
    _, server = pair(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))
    server.write(bytes(size))
    records = -(-size // 16384)
    assert server.pending == size + records * (5 + 1 + 16)
    assert len(server.output()) == server.pending, "one send takes the whole batch"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 70000), min_size=1, max_size=6), st.lists(st.integers(1, 40000), min_size=1, max_size=8))
def test_pieces_of_any_size(writes: list[int], pieces: list[int]) -> None:
    client, server = pair(KEY_384.psk(HOST, SUBSYSTEM), (AES_256_GCM,))
    sent, got, turn = b"", b"", 0
    for index, size in enumerate(writes):
        data = bytes([index + 1]) * size
        sent += data
        server.write(data)
        while server.pending:
            move(server, client, pieces[turn % len(pieces)])
            got += read_all(client, pieces[(turn + 1) % len(pieces)])
            turn += 1
    while more := read_all(client, 1000):
        got += more
    assert got == sent


def test_an_update_of_the_key_is_followed_and_answered() -> None:
    client, server = pair(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))
    client.update_key()
    client.write(b"with the new key")
    move(client, server)
    assert read_all(server) == b"with the new key"
    server.write(b"and back")
    move(server, client)
    assert read_all(client) == b"and back"


def test_close_notify_is_an_end_and_nothing_else_is() -> None:
    client, server = pair(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))
    client.write(b"last")
    client.close()
    assert not server.closed_by_peer
    move(client, server)
    assert read_all(server) == b"last" and server.closed_by_peer
    assert read_all(server) == b""


@pytest.mark.parametrize("place", [0, 5, 20, -1])
def test_a_damaged_record_ends_the_connection(place: int) -> None:
    client, server = pair(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))
    client.write(b"x" * 100)
    record = bytearray(client.output())
    record[place] ^= 1
    server.feed(record)
    with pytest.raises(TlsError):
        read_all(server)
    with pytest.raises(TlsError):
        server.write(b"more")


def test_freed_sessions_and_what_they_raise() -> None:
    client, _ = pair(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))
    client.free()
    client.free()
    with pytest.raises(TlsError, match="closed"):
        client.write(b"x")
    with pytest.raises(TlsError, match="closed"):
        read_all(client)


# -- what a server reads of a ClientHello ----------------------------------------------------------------------------


def hello_of(psk: Psk, suites: Sequence[Suite]) -> bytes:
    client = TlsSession(psk, suites, server=False)
    assert not client.handshake()
    return bytes(client.output())


@pytest.mark.parametrize(("key", "suites"), [(KEY_256, (AES_128_GCM, CHACHA20)), (KEY_384, (AES_256_GCM,))])
def test_a_hello_is_read(key: TlsKey, suites: Sequence[Suite]) -> None:
    psk = key.psk(HOST, SUBSYSTEM)
    data = hello_of(psk, suites)
    message = complete_hello(data)
    assert message is not None
    hello = parse_hello(message)
    assert [each.identity for each in hello.offered] == [psk.identity]
    assert hello.offered[0].hash_name == suites[0].hash_name
    assert hello.suites[: len(suites)] == tuple(each.number for each in suites)
    assert hello.binder_matches(hello.offered[0], psk.key)
    assert not hello.binder_matches(hello.offered[0], bytes(len(psk.key)))
    assert match_hello(message, lambda _: [psk], SUITES) == (psk, suites[0])


@pytest.mark.parametrize("end", [0, 1, 4, 5, 8, 100, -1])
def test_the_beginning_of_a_hello_is_not_enough(end: int) -> None:
    assert complete_hello(hello_of(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))[:end]) is None


def test_a_hello_in_several_records() -> None:
    whole = hello_of(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,))
    message = whole[5:]
    split = b"".join(
        b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
        for piece in (message[at : at + 100] for at in range(0, len(message), 100))
    )
    assert complete_hello(split) == message


@pytest.mark.parametrize(
    ("lookup", "suites", "says"),
    [
        ([], SUITES, "its PSK identity is not known here: NVMe1R01"),
        ([Psk("x", bytes(32))], SUITES, "its TLS key is not the one of NVMe1R01"),
        (None, (AES_256_GCM,), "no cipher suite of SHA256 that is allowed here"),
    ],
)
def test_hellos_that_are_refused(lookup: list[Psk] | None, suites: Sequence[Suite], says: str) -> None:
    psk = KEY_256.psk("nqn.host", "nqn.sub")
    message = complete_hello(hello_of(psk, (AES_128_GCM,)))
    assert message is not None
    with pytest.raises(HelloError, match=says) as caught:
        match_hello(message, lambda _: [psk] if lookup is None else lookup, suites)
    assert psk.identity.split(" ")[3] not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_hello_raises_nothing_else(data: st.DataObject) -> None:
    psk = KEY_256.psk("nqn.host", "nqn.sub")
    changed = bytearray(_HELLO)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed
    try:
        message = complete_hello(cut)
        if message is not None:
            match_hello(message, lambda _: [psk], SUITES)
    except HelloError:
        pass


_HELLO = hello_of(KEY_256.psk("nqn.host", "nqn.sub"), (AES_128_GCM,))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_as_a_hello(data: bytes) -> None:
    for each in (data, b"\x16\x03\x01" + data, b"\x16\x03\x01" + len(data).to_bytes(2, "big") + b"\x01" + data):
        try:
            message = complete_hello(each)
            if message is not None:
                parse_hello(message)
        except HelloError:
            pass


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_in_place_of_a_handshake(data: bytes) -> None:
    client = TlsSession(KEY_256.psk(HOST, SUBSYSTEM), (AES_128_GCM,), server=False)
    client.handshake()
    client.feed(data)
    try:
        assert not client.handshake()
    except TlsError as error:
        assert str(error)


# -- refusals of the library -----------------------------------------------------------------------------------------


def refused(client: TlsSession, server: TlsSession) -> tuple[str, str]:
    """Return what each end says of a handshake that cannot be completed."""
    said = ["", ""]
    for _ in range(4):
        for index, (one, other) in enumerate(((client, server), (server, client))):
            try:
                one.handshake()
            except TlsError as error:
                said[index] = said[index] or str(error)
            move(one, other)
    return said[0], said[1]


def test_a_wrong_key() -> None:
    psk = KEY_256.psk(HOST, SUBSYSTEM)
    other = Psk(psk.identity, bytes(32))
    client, server = refused(
        TlsSession(psk, (AES_128_GCM,), server=False), TlsSession(other, (AES_128_GCM,), server=True)
    )
    assert "refuses the pre-shared key" in client and "is another one" in server


def test_nothing_below_tls_1_3() -> None:
    """A peer that speaks no more than TLS 1.2 finds no version in common."""
    lib = openssl.library()
    assert lib.SSL_CTX_ctrl(lib.context(), 130, 0, None) == 0x0304  # SSL_CTRL_GET_MIN_PROTO_VERSION
    hello = bytearray(_HELLO)
    at = hello.index(b"\x00\x2b\x00\x03\x02\x03\x04")
    hello[at + 6] = 3  # supported_versions: TLS 1.2 alone
    message = complete_hello(hello)
    assert message is not None
    with pytest.raises(HelloError, match=r"does not offer TLS 1\.3"):
        parse_hello(message)


def test_attempts_of_a_host() -> None:
    credentials = TlsCredentials(KEY_384)
    first, second, third, fourth = credentials.attempts(HOST, SUBSYSTEM)
    assert [each.suites for each in (first, second)] == [(AES_256_GCM,), (CHACHA20, AES_128_GCM)]
    assert [third[0], fourth[0]] == [KEY_384.psk(HOST, SUBSYSTEM, derivation=Derivation.LIBNVME_1_14)] * 2
    credentials.worked(fourth)
    assert credentials.attempts(HOST, SUBSYSTEM) == [fourth, first, second, third]
    credentials.worked(fourth)
    assert credentials.attempts(HOST, SUBSYSTEM)[0] == fourth
    credentials.worked(second)
    assert credentials.attempts(HOST, SUBSYSTEM) == [second, first, third, fourth]
    (attempt,) = TlsCredentials(KEY_256, derivation=Derivation.RFC8446).attempts(HOST, SUBSYSTEM)
    assert attempt[1] == (AES_128_GCM, CHACHA20)
    with pytest.raises(ConfigurationError, match="none of the cipher suites fits a key for SHA256"):
        TlsCredentials(KEY_256, suites=(AES_256_GCM,))
    with pytest.raises(ConfigurationError, match="version 0 or 1"):
        TlsCredentials(KEY_256, version=2)


def test_suites_by_name() -> None:
    assert parse_suites("aes_256_gcm_sha384:TLS_AES_128_GCM_SHA256") == (AES_256_GCM, AES_128_GCM)
    with pytest.raises(ConfigurationError, match="not 'AES_128_CCM_SHA256'"):
        parse_suites("AES_128_CCM_SHA256")


def test_without_an_openssl_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> ctypes.PyDLL:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(ctypes, "PyDLL", none)
    with pytest.raises(ConfigurationError, match="install the package libssl3"):
        openssl.Library()


def test_the_library_of_the_system_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a Python whose OpenSSL is linked into it, so that there is no shared library to ask."""
    monkeypatch.setattr(openssl.importlib, "import_module", lambda _: object())  # type: ignore[attr-defined]
    try:
        found = openssl.Library()
    except ConfigurationError:
        pytest.skip("this system has no libssl of its own: install libssl3 to run this")
    monkeypatch.setattr(openssl, "library", lambda: found)
    _context.cache_clear()
    try:
        client, server = pair(KEY_384.psk(HOST, SUBSYSTEM), (AES_256_GCM,))
        client.write(b"by the system's library")
        move(client, server)
        assert read_all(server) == b"by the system's library"
        client.free()
        server.free()
    finally:
        _context.cache_clear()
