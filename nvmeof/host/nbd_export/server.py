"""The NBD server: listeners, clients, negotiation with or without TLS, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from nvmeof.address import Address
from nvmeof.address_shares import AddressShares
from nvmeof.errors import ConfigurationError, NvmeofError, TransportError
from nvmeof.host.nbd_export.budget import Budget
from nvmeof.host.nbd_export.disk import ExportedDisk
from nvmeof.host.nbd_export.transmission import BUFFER_BYTES, Transmission
from nvmeof.log_rate import LogRate, left_out_text
from nvmeof.nbd.numbers import NBD_PORT
from nvmeof.nbd.option_data import NbdProtocolError
from nvmeof.nbd.server_negotiation import OPTION_MAX_BYTES, ServerNegotiation
from nvmeof.nbd.steps import ExportFacts, Lookup, Receive, Send, StartTls
from nvmeof.transport.unix import PrivateListener

log = logging.getLogger("nvmeof.nbd")

MEMORY_BYTES: Final = 128 << 20
"""For the data of all clients' requests together."""
CLIENTS_MAX: Final = 128
NEGOTIATING_MAX: Final = 96
"""Clients on TCP that have not agreed on an export yet, shared out by address: the other places are for those that
have."""
NEGOTIATION_SECONDS: Final = 30.0
LINGER_SECONDS: Final = 1.0
"""How long a client that has ended its negotiation may take the answers to it."""
_WRITE_HIGH_BYTES: Final = 1 << 20
_WRITE_LOW_BYTES: Final = 256 << 10
_AHEAD_BYTES: Final = BUFFER_BYTES - 2 * OPTION_MAX_BYTES
"""What a client sends ahead of the end of its negotiation, up to this and one more receive, is taken over by the
transmission as a whole."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server listens: a Unix socket, or an address. ``unix:/run/nbd.sock``, ``tcp:127.0.0.1:10809``."""

    path: str | None = None
    address: Address | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read a place. Raises :class:`ConfigurationError`."""
        kind, colon, rest = text.partition(":")
        if kind == "unix" and rest:
            return cls(path=rest)
        if kind == "tcp" and colon:
            return cls(address=Address.parse(rest, NBD_PORT))
        raise ConfigurationError(f"{text!r} is no place for an NBD server: write unix:/PATH or tcp:ADDRESS[:PORT]")

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else f"tcp:{self.address}"


def server_tls(folder: str, *, verify: bool = False) -> ssl.SSLContext:
    """Return the context of a folder with server-cert.pem and server-key.pem (nbdkit's names).

    ``verify``: clients must have a certificate of the authority in ca-cert.pem. Raises :class:`ConfigurationError`.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority, certificate, key = (Path(folder) / f"{name}.pem" for name in ("ca-cert", "server-cert", "server-key"))
    try:
        context.load_cert_chain(certificate, key)
        if verify:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the certificates in {folder} cannot be used: {error}; it has server-cert.pem and server-key.pem"
        ) from error
    return context


class NbdServer:
    """Serves disks by name; the one named "" , or the first, is the default export.

    ::

        server = NbdServer([ExportedDisk(namespace)])
        await server.listen(Place.parse("unix:/run/nbd.sock"))
        ...
        await server.close()

    ``tls``: a context for TLS; ``tls_required``: clients without it are refused. ``memory_bytes``: for the data of all
    requests together.
    """

    def __init__(
        self,
        disks: Sequence[ExportedDisk],
        *,
        tls: ssl.SSLContext | None = None,
        tls_required: bool = False,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.disks: Mapping[str, ExportedDisk] = {disk.name: disk for disk in disks}
        if len(self.disks) != len(disks):
            raise ConfigurationError("two exports have one name: give each its own")
        self.default = self.disks.get("", disks[0])
        self.budget = Budget(memory_bytes)
        self.context = tls
        self.tls = None if tls is None else tls_required
        self.clients: set[NbdClientProtocol] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.negotiating = AddressShares(NEGOTIATING_MAX)
        self._rate = LogRate(burst=20, per_second=0.2)
        self._servers: list[asyncio.Server] = []
        self._listeners: list[PrivateListener] = []

    async def listen(self, place: Place) -> str:
        """Listen at a place; where, with the real port. A Unix socket is made with mode 0600, so that nobody else can
        connect at any moment. Raises :class:`TransportError`, and :class:`ConfigurationError` for a path that cannot be
        one."""
        loop = asyncio.get_running_loop()
        try:
            if place.path is not None:
                listener = PrivateListener(place.path)
                self._listeners.append(listener)
                server = await loop.create_unix_server(lambda: NbdClientProtocol(self), sock=listener.socket)
                self._servers.append(server)
                return str(place)
            assert place.address is not None
            host = place.address.host or None
            server = await loop.create_server(lambda: NbdClientProtocol(self), host, place.address.port)
        except (OSError, TransportError) as error:
            raise TransportError(f"cannot listen at {place}: {getattr(error, 'strerror', None) or error}") from error
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        return f"tcp:{Address(place.address.host, port)}"

    def say(self, kind: str, address: str, text: str) -> None:
        """Log what a client has caused, unless there are too many lines of that kind about its address."""
        left_out = self._rate.admit((kind, address), asyncio.get_running_loop().time())
        if left_out is not None:
            log.warning("%s%s", text, left_out_text(left_out))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a request to its end, whatever becomes of its client."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a request of an NBD client failed in an unexpected way: %s: %s", type(error).__name__, error)
            log.debug("where that happened", exc_info=error)

    async def close(self) -> None:
        """Stop listening, let requests end, disconnect all clients."""
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        for client in list(self.clients):
            client.stop()
        while self.tasks:
            await asyncio.gather(*self.tasks, return_exceptions=True)
        for client in list(self.clients):
            client.abort()
            await client.ended.wait()
        self._servers.clear()
        self._listeners.clear()

    async def facts(self, name: str) -> ExportFacts | None:
        """Return what an export is now; None for one that is not there."""
        disk = self.disk(name)
        if disk is None:
            return None
        try:
            return await disk.facts()
        except NvmeofError as error:
            log.warning("the NBD export %r cannot be used now: %s", name, error)
            return None

    def disk(self, name: str) -> ExportedDisk | None:
        """Return the disk of an export; that of the empty name is the default one."""
        return self.disks.get(name, self.default if not name else None)


class NbdClientProtocol(asyncio.BufferedProtocol):
    """One client's connection: negotiation, then transmission."""

    def __init__(self, server: NbdServer) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._transmission: Transmission | None = None
        # A view: asyncio over TLS slices it, and of a bytearray that would be a copy.
        self._buffer = memoryview(bytearray(OPTION_MAX_BYTES))
        self._data = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = asyncio.Event()
        """Set when the connection is gone."""
        self._choked = False
        self._address = ""
        self._counted = False  # it is one of those that negotiate

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's
        self._transport = stream = cast(asyncio.Transport, transport)
        server, peer = self._server, stream.get_extra_info("peername")
        remote = isinstance(peer, tuple)
        self._address = str(peer[0]) if remote else ""
        if len(server.clients) >= CLIENTS_MAX or (remote and not server.negotiating.take(self._address)):
            why = f"there are {CLIENTS_MAX} already, or too many of its address have not agreed on an export yet"
            server.say("refused", self._address, f"an NBD client was refused: {why}")
            stream.abort()
            return
        self._counted = remote
        server.clients.add(self)
        stream.set_write_buffer_limits(_WRITE_HIGH_BYTES, _WRITE_LOW_BYTES)
        self._server.spawn(self._negotiate())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer if self._transmission is None else self._transmission.next_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._transmission is not None:
            self._feed(nbytes)
            return
        self._data += self._buffer[:nbytes]
        if len(self._data) > _AHEAD_BYTES:  # a client that does not wait for the answers to its options
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._server.clients.discard(self)
        self._agreed()
        self._wake()
        if self._transmission is not None:
            self._transmission.ended()

    def pause_writing(self) -> None:
        self._choked = True
        if self._transmission is not None:
            self._transmission.choked()

    def resume_writing(self) -> None:
        self._choked = False
        self._wake()
        if self._transmission is not None:
            self._transmission.flowing()

    # Negotiation

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _agreed(self) -> None:
        """Count no longer as one of those that negotiate."""
        if self._counted:
            self._counted = False
            self._server.negotiating.give(self._address)

    async def _taken(self) -> None:
        """Wait until the client has taken the answers to its options: it gets no further ones before."""
        while self._choked:
            if self.ended.is_set():
                raise ConnectionResetError
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def _receive(self, count: int) -> bytes:
        while len(self._data) < count:
            if self.ended.is_set():
                raise ConnectionResetError
            self._transport.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    async def _negotiate(self) -> None:
        server = self._server
        names = [(disk.name, f"namespace {disk.namespace.nsid}") for disk in server.disks.values()]
        negotiation = ServerNegotiation(names, tls=server.tls)
        try:
            async with asyncio.timeout(NEGOTIATION_SECONDS):
                await self._drive(negotiation)
        except TimeoutError:
            log.info("an NBD client was disconnected: it did not negotiate within %g s", NEGOTIATION_SECONDS)
            self._transport.abort()
            return
        except (NbdProtocolError, ssl.SSLError) as error:
            self._broken(error)
            return
        except OSError:  # it hung up
            self._transport.abort()
            return
        session = negotiation.session
        disk = None if session is None else server.disk(session.export.name)
        if session is None or disk is None:
            self._transport.close()
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)
            return
        self._agreed()
        self._transmission = Transmission(session, disk, self._transport, server.budget, server.spawn)
        if self._choked:
            self._transmission.choked()
        data, self._data = bytes(self._data), bytearray()
        self._transport.resume_reading()
        try:
            self._transmission.preload(data)
        except NbdProtocolError as error:
            self._broken(error)

    async def _drive(self, negotiation: ServerNegotiation) -> None:
        steps = negotiation.run()
        answer: bytes | ExportFacts | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Receive):
                answer = await self._receive(step.count)
            elif isinstance(step, Send):
                self._transport.write(step.data)
                await self._taken()
            elif isinstance(step, Lookup):
                answer = await self._server.facts(step.name)
            else:
                await self._start_tls(step)

    async def _start_tls(self, step: StartTls) -> None:
        if self._data:
            raise NbdProtocolError("it sends bytes in clear behind its request for TLS")
        assert self._server.context is not None
        self._transport.write(step.data)
        # Nothing is read between the two: the handshake's first bytes go to TLS.
        secure = await asyncio.get_running_loop().start_tls(
            self._transport, self, self._server.context, server_side=True
        )
        if secure is None:
            raise ConnectionResetError
        self._transport = secure
        secure.set_write_buffer_limits(_WRITE_HIGH_BYTES, _WRITE_LOW_BYTES)

    # Transmission

    def _feed(self, count: int) -> None:
        assert self._transmission is not None
        try:
            self._transmission.received(count)
        except NbdProtocolError as error:
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        self._server.say("broken", self._address, f"an NBD client was disconnected: {error}")
        self._transport.abort()

    def stop(self) -> None:
        """Take no more requests; those that were begun are answered."""
        if self._transmission is None:
            self._transport.abort()
        else:
            self._transmission.stop()

    def abort(self) -> None:
        """Disconnect now."""
        self._transport.abort()
