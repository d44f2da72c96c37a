"""TLS on an endpoint: the handshake of both ends, and the `Endpoint` around another one that comes of it.

A server looks at one byte first, which tells TLS (16h, a handshake record) from NVMe/TCP (00h, ICReq); it reads the
ClientHello itself, and OpenSSL is called only for a client that has proved in it to have the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn

from nvmeof.errors import AuthenticationError, ConfigurationError, ConnectTimeout, TransportError
from nvmeof.security.tls.credentials import Lookup, TlsCredentials, match_hello
from nvmeof.security.tls.hello import HANDSHAKE_RECORD, HELLO_BYTES_MOST, HelloError, complete_hello
from nvmeof.security.tls.session import BATCH_BYTES, TlsError, TlsSession
from nvmeof.security.tls.suites import Suite
from nvmeof.transport.base import Buffer, ConnectionInfo, Endpoint, Turns

LINGER_SECONDS: Final = 2.0
"""How long a closed endpoint waits for the peer to take what was sent."""
IDLE_MOST: Final = 2
"""Receives of one turn of the loop that bring hardly any data, but what TLS says to itself or records of a byte: who
sends them without an end gets no more of a turn than others."""
_BUSY: Final = (BlockingIOError, InterruptedError)
_ALERT: Final = bytes((0x15, 3, 3, 0, 2, 2, 51))
"""A fatal decrypt_error in clear: the one answer to every ClientHello that is refused, which tells a stranger nothing
(RFC 8446, section 4.2.11, has it for a wrong binder and for an unknown identity)."""


class TlsEndpoint(Endpoint):
    """An endpoint that encrypts what it sends by another one, which it owns from now on.

    What `sendmsg` took is delivered, also when the peer takes it later. The end of the stream without close_notify is
    an error (ConnectionResetError): somebody may have cut it.
    """

    def __init__(self, inner: Endpoint, session: TlsSession, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._session = session
        self._loop = loop
        self._reader: Callable[[], object] | None = None
        self._writer: Callable[[], object] | None = None
        self._waiting = False  # the inner endpoint tells when it takes more
        self._again = False  # the reader is called in the next turn of the loop: decrypted data waits
        self._linger: asyncio.TimerHandle | None = None
        self._shut = False  # what is sent ends here
        self._closed = False
        self.cipher = session.cipher
        self.psk_identity = session.psk.identity
        self.transport_name = inner.transport_name
        self.local_address, self.peer_address = inner.local_address, inner.peer_address
        self.recv_into = self._recv_into
        self.recv_both = self._recv_both
        self.sendmsg = self._sendmsg
        self._more = session.buffered
        self._flush()

    def fileno(self) -> int:
        return self._inner.fileno()

    @property
    def closed(self) -> bool:
        return self._closed

    def describe(self) -> ConnectionInfo:
        return dataclasses.replace(self._inner.describe(), tls=self.cipher)

    # -- in ------------------------------------------------------------------------------------------------------

    def _recv_into(self, buffer: memoryview | bytearray) -> int:
        session, inner = self._session, self._inner
        view = memoryview(buffer)
        got, wanted, dry = 0, len(view), False
        due, idle = 0, 0
        self._more = False
        try:
            while True:
                got += session.read_into(view[got:] if got else view)
                if got == wanted:
                    self._wake_for_more()
                    return got
                if session.blocked:
                    if self._unblock():
                        continue
                    break
                if got < due:
                    idle += 1
                if dry or session.closed_by_peer or idle > IDLE_MOST:
                    break
                space = session.space()
                n = inner.recv_into(space)
                if not n:
                    self._cut_off(got)
                    break
                session.received(n)
                dry = n < len(space)  # a further receive would find nothing
                due = got + n // 16
        except _BUSY:
            if not got:
                raise
        except TlsError as error:
            self._flush()  # the alert that says so
            if not got:
                raise ConnectionAbortedError(errno.ECONNABORTED, f"TLS failed: {error}") from None
        if session.pending:
            self._flush()  # what TLS answers by itself
        if not got and not session.closed_by_peer:
            raise BlockingIOError(errno.EAGAIN, "no data")
        return got

    def _recv_both(self, buffer: memoryview, behind: memoryview) -> int:
        got = self._recv_into(buffer)
        if got == len(buffer) and self._more:
            with contextlib.suppress(OSError):  # it comes again with the next receive
                got += self._recv_into(behind)
        return got

    def _cut_off(self, got: int) -> None:
        """Raise for the end of the stream that TLS knows nothing of; after data, the next receive meets it again."""
        if not got:
            raise ConnectionResetError(errno.ECONNRESET, "the TLS stream was cut off: it ended without close_notify")

    def _unblock(self) -> bool:
        """Send what keeps TLS from reading on; whether there is room now."""
        self._flush()
        self._session.blocked = bool(self._session.pending)
        return not self._session.blocked

    def _wake_for_more(self) -> None:
        """See to it that data which waits here is read: the inner endpoint does not know of it."""
        self._more = self._session.buffered
        if self._more and self._reader is not None and not self._again:
            self._again = True
            self._loop.call_soon(self._read_again)

    def _read_again(self) -> None:
        self._again = False
        if self._more and self._reader is not None:
            self._reader()

    def set_reader(self, callback: Callable[[], object] | None) -> None:
        self._reader = callback
        self._inner.set_reader(callback)
        if callback is not None and self._more:
            self._wake_for_more()

    # -- out -----------------------------------------------------------------------------------------------------

    def _sendmsg(self, buffers: Sequence[Buffer]) -> int:
        session = self._session
        if session.pending and not self._flush():
            raise BlockingIOError(errno.EAGAIN, "the peer takes nothing")
        total = 0
        for index, buffer in enumerate(buffers):
            total += len(buffer)
            if total >= BATCH_BYTES:
                rest = BATCH_BYTES - (total - len(buffer))
                buffers = [*buffers[:index], memoryview(buffer)[:rest]]
                total = BATCH_BYTES
                break
        try:
            session.write(b"".join(buffers))
        except TlsError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"TLS failed: {error}") from None
        self._flush(raising=True)
        return total

    def _flush(self, *, raising: bool = False) -> bool:
        """Send what is encrypted; whether all of it has gone. What is left goes when the inner endpoint takes more."""
        session, inner = self._session, self._inner
        try:
            while len(output := session.output()):
                session.sent(inner.sendmsg([output]))
        except _BUSY:
            if not self._waiting:
                self._waiting = True
                inner.set_writer(self._writable)
            return False
        except OSError:
            if raising:
                raise
        return True

    def _writable(self) -> None:
        if self._session.pending and not self._flush():
            return
        if self._shut:
            self._inner.shutdown()
        if self._linger is not None:
            self._release()
        elif self._writer is not None:
            self._writer()
        else:
            self._waiting = False
            self._inner.set_writer(None)
        if not self._closed and self._session.blocked and self._reader is not None:
            self._reader()

    def set_writer(self, callback: Callable[[], object] | None) -> None:
        self._writer = callback
        if callback is not None:
            self._waiting = True
            self._inner.set_writer(self._writable)
        elif self._waiting and not self._session.pending:
            self._waiting = False
            self._inner.set_writer(None)

    # -- endings -------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        if self._closed:
            return
        self._shut = True
        self._session.close()
        if self._flush():
            self._inner.shutdown()

    def close(self) -> None:
        if self._closed:
            return
        self._session.close()
        gone = self._flush()
        self._close_methods()
        if gone or self._loop.is_closed():
            self._release()
        else:
            self._linger = self._loop.call_later(LINGER_SECONDS, self._release)

    def abort(self) -> None:
        if not self._closed:
            self._close_methods()
            self._inner.abort()
            self._session.free()

    def _close_methods(self) -> None:
        self._closed = True
        self._reader = self._writer = None
        self._inner.set_reader(None)
        self.recv_into, self.recv_both, self.sendmsg = _closed, _closed, _closed

    def _release(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._inner.close()
        self._session.free()


def _closed(*_: object) -> NoReturn:
    raise ConnectionAbortedError(errno.ECONNABORTED, "the endpoint is closed")


class Handshake:
    """A handshake over an endpoint: ``done`` is called once, with a `TlsEndpoint` or with why there is none.

    On failure the endpoint has been closed, and the peer told by an alert. It takes ``seconds`` at the most.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        session: TlsSession | None,
        done: Callable[[TlsEndpoint | TransportError], object],
        seconds: float,
    ) -> None:
        self.endpoint = endpoint
        self._session = session
        self._done = done
        self._ended = False
        self._turns: Turns | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._late, seconds)

    def start(self) -> None:
        """Begin; a client sends its ClientHello."""
        self.endpoint.set_reader(self._readable)
        if self._session is not None:
            self._step()

    def cancel(self) -> None:
        """End without a word: `done` is not called."""
        if not self._ended:
            self._finish()
            self.endpoint.abort()
            if self._session is not None:
                self._session.free()

    def _late(self, seconds: float) -> None:
        self._fail(ConnectTimeout(f"the TLS handshake was not complete within {seconds:g} s"))

    def _finish(self) -> None:
        self._ended = True
        self._timer.cancel()
        self.endpoint.set_reader(None)
        self.endpoint.set_writer(None)

    def _fail(self, error: TransportError, alert: bytes = b"") -> None:
        if self._ended:
            return
        self._finish()
        with contextlib.suppress(OSError):
            self.endpoint.sendmsg([alert])
        self.endpoint.close()
        if self._session is not None:
            self._session.free()
        self._done(error)

    def _readable(self) -> None:
        """Go on with what has arrived, now or in turn with other work of the loop."""
        turns = self._turns
        if turns is None:
            self._read()
        elif turns.open:
            began = turns.clock()
            self._read()
            turns.spend(turns.clock() - began)
        else:
            self.endpoint.set_reader(None)
            turns.add(self.endpoint.peer_address.host, self._read_in_turn)

    def _read_in_turn(self) -> None:
        if not self._ended:
            self.endpoint.set_reader(self._readable)
            self._read()

    def _read(self) -> None:
        try:
            count = self._receive()
        except _BUSY:
            return
        except OSError as error:
            self._fail(TransportError(f"the connection was lost in the TLS handshake: {error.strerror or error}"))
            return
        if not count:
            self._fail(TransportError("the peer closed the connection in the TLS handshake"))
        elif not self._ended and self._session is not None:
            self._step()

    def _receive(self) -> int:
        assert self._session is not None
        count = self.endpoint.recv_into(self._session.space())
        self._session.received(count)
        return count

    def _step(self) -> None:
        session = self._session
        assert session is not None
        try:
            complete = session.handshake()
        except TlsError as error:
            self._fail(AuthenticationError(f"the TLS handshake failed: {error}"), bytes(session.output()))
            return
        if complete:
            self._finish()
            self._done(TlsEndpoint(self.endpoint, session, self._loop))
        else:
            self._send()

    def _send(self) -> None:
        """Send what TLS has to say; what the peer does not take goes when it does."""
        session = self._session
        assert session is not None
        try:
            while len(output := session.output()):
                session.sent(self.endpoint.sendmsg([output]))
        except _BUSY:
            self.endpoint.set_writer(self._send)
        except OSError as error:
            self._fail(TransportError(f"the connection was lost in the TLS handshake: {error.strerror or error}"))
        else:
            self.endpoint.set_writer(None)


class ServerHandshake(Handshake):
    """A server's handshake: ``lookup`` has the PSKs of an identity, ``suites`` the cipher suites that are allowed.

    ``plain``: called in place of ``done`` for a peer that does not begin with TLS, with the endpoint as if nothing had
    been read; None: such a peer is refused. ``turns``: what shares out the loop's time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        lookup: Lookup,
        suites: Sequence[Suite],
        done: Callable[[TlsEndpoint | TransportError], object],
        seconds: float,
        *,
        plain: Callable[[Endpoint], object] | None = None,
        turns: Turns | None = None,
    ) -> None:
        super().__init__(endpoint, None, done, seconds)
        self._turns = turns
        self._lookup = lookup
        self._suites = suites
        self._plain = plain
        self._received = bytearray()

    def _receive(self) -> int:
        if self._session is not None:
            return super()._receive()
        buffer = bytearray(HELLO_BYTES_MOST if self._received else 1)
        count = self.endpoint.recv_into(buffer)
        first = not self._received
        self._received += buffer[:count]
        if count and first and self._received[0] != HANDSHAKE_RECORD:
            self._not_tls()
        elif count and not first:
            self._read_hello()
        return count

    def _not_tls(self) -> None:
        if self._plain is None:
            self._fail(TransportError("it does not speak TLS, which is required here"))
            return
        self._finish()
        unread(self.endpoint, bytes(self._received))
        self._plain(self.endpoint)

    def _read_hello(self) -> None:
        """Begin TLS once the ClientHello is complete, for a client that has proved in it to have a key."""
        try:
            message = complete_hello(self._received)
            if message is None:
                return
            psk, suite = match_hello(message, self._lookup, self._suites)
            self._session = TlsSession(psk, (suite,), server=True)
        except (HelloError, TlsError, ConfigurationError) as error:
            self._fail(TransportError(f"TLS was refused: {error}"), _ALERT)
            return
        self._session.feed(self._received)
        self._received.clear()


def unread(endpoint: Endpoint, data: bytes) -> None:
    """Give an endpoint bytes back that were read of it: they come first with its next receive."""
    recv_into, recv_both = endpoint.recv_into, endpoint.recv_both

    def first(buffer: memoryview | bytearray) -> int:
        endpoint.recv_into, endpoint.recv_both = recv_into, recv_both
        view, size = memoryview(buffer), len(data)
        view[:size] = data
        try:
            return size + recv_into(view[size:])
        except _BUSY:
            return size

    endpoint.recv_into = first
    endpoint.recv_both = lambda buffer, behind: first(buffer)


async def connect_tls(
    reach: Callable[[], Awaitable[Endpoint]],
    credentials: TlsCredentials,
    hostnqn: str,
    subnqn: str,
    seconds: float,
) -> TlsEndpoint:
    """Connect, and speak TLS as a client.

    ``reach`` is an asynchronous function that returns a connected endpoint; it is called once for each handshake that
    is tried (`TlsCredentials.attempts`). Raises `TransportError`, the last one; `ConfigurationError` without OpenSSL.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    attempts = credentials.attempts(hostnqn, subnqn)
    for attempt in attempts:
        endpoint = await reach()
        try:
            session = TlsSession(attempt.psk, attempt.suites, server=False)
            found = await _handshake(endpoint, session, max(deadline - loop.time(), 0.1))
        except ConnectTimeout:
            raise
        except TransportError:
            if attempt is attempts[-1]:
                raise
        else:
            credentials.worked(attempt)
            return found
    raise AssertionError("credentials have at least one handshake to try")


async def _handshake(endpoint: Endpoint, session: TlsSession, seconds: float) -> TlsEndpoint:
    ended: asyncio.Future[TlsEndpoint | TransportError] = asyncio.get_running_loop().create_future()

    def done(result: TlsEndpoint | TransportError) -> None:
        if not ended.done():
            ended.set_result(result)
        elif isinstance(result, TlsEndpoint):
            result.abort()

    handshake = Handshake(endpoint, session, done, seconds)
    handshake.start()
    try:
        result = await ended
    except BaseException:
        handshake.cancel()
        raise
    if isinstance(result, TransportError):
        raise type(result)(f"{endpoint.peer_address}: {result}")
    return result
