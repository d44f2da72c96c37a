"""``nbd:URI``: an export of any NBD server as a namespace (NBD protocol; through qemu-nbd or nbdkit whatever those
reach)."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.nbd.client_negotiation import ClientSession
from nvmeof.nbd.numbers import AllocationFlags, Command, CommandFlags, TransmissionFlags
from nvmeof.nbd.option_data import NbdProtocolError
from nvmeof.nbd.uri import NbdUri
from nvmeof.target.core.metadata import DATA_SECTIONS, MetadataStore
from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend, Capabilities, SizeChangedError
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.nbd.client import NbdClient
from nvmeof.target.storage.nbd.request import NbdRequest
from nvmeof.target.storage.remote import RemoteBackend, block_size

CONNECTIONS: Final = 2
CONNECTIONS_MAX: Final = 16
TIMEOUT_SECONDS: Final = 30.0
WAIT_SECONDS: Final = 10.0
OPTIONS: Final = ("block-size", "read-only", "connections", "timeout", "wait", "kept")
SUMMARY: Final = "an export of an NBD server: nbd:nbd://192.0.2.1/export, nbd:nbd+unix:///?socket=/run/nbd.sock"
_PIECE_BYTES: Final = 256 << 20
"""Zeroes and deallocations are cut to this, so that one request does not take as long as the time limit."""
_STATUS_BYTES: Final = 1 << 30
_TLS_PARAMETERS: Final = ("tls-certificates", "tls-verify-peer", "tls-hostname")


def tls_context(uri: NbdUri) -> ssl.SSLContext | None:
    """Return the context for TLS of a URI's parameters, after libnbd's; None for a URI without TLS.

    ``tls-certificates``: a folder with ca-cert.pem, and client-cert.pem and client-key.pem where the server wants them.
    Raises `ConfigurationError`.
    """
    parameters = dict(uri.parameters)
    unknown = [name for name in parameters if not (uri.tls and name in _TLS_PARAMETERS)]
    if unknown:
        known = f"known with nbds are {', '.join(_TLS_PARAMETERS)}"
        raise ConfigurationError(f"the parameter {unknown[0]!r} of the NBD URI is not known here; {known}")
    if not uri.tls:
        return None
    context = ssl.create_default_context()
    if parameters.get("tls-verify-peer", "true").lower() in ("false", "0"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif uri.path is not None and "tls-hostname" not in parameters:
        context.check_hostname = False  # a socket of this machine has no name
    folder = parameters.get("tls-certificates")
    if folder is not None:
        authority, certificate, key = (
            Path(folder) / f"{name}.pem" for name in ("ca-cert", "client-cert", "client-key")
        )
        try:
            if authority.exists():
                context.load_verify_locations(authority)
            if certificate.exists():
                context.load_cert_chain(certificate, key)
            elif not authority.exists():
                raise ConfigurationError(f"there is neither ca-cert.pem nor client-cert.pem in {folder}")
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"the certificates in {folder} cannot be used: {error}") from error
    return context


class NbdBackend(RemoteBackend):
    """Storage behind an NBD server: ``NbdBackend("nbd://192.0.2.1/disk")``.

    `connections`: how many, where the server announces multi-conn. `timeout`: seconds after which a request counts as
    lost. `wait`: seconds that a request waits for a server that has gone away. `block_bytes`: None for the smallest
    that the server can do. Opening raises `ConfigurationError` when the server cannot be used.
    """

    def __init__(
        self,
        uri: str,
        *,
        block_bytes: int | None = None,
        read_only: bool = False,
        connections: int = CONNECTIONS,
        timeout: float = TIMEOUT_SECONDS,
        wait: float = WAIT_SECONDS,
        metadata_store: MetadataStore | None = None,
    ) -> None:
        super().__init__(metadata_store)
        self.uri = NbdUri.parse(uri)
        self._block_bytes = block_bytes
        self._read_only = read_only
        self._client = NbdClient(
            self.uri,
            context=tls_context(self.uri),
            connections=connections,
            timeout=timeout,
            wait=wait,
            session_changed=self._take_session,
            writes_lost=self._lost_writes,
        )
        self._session: ClientSession | None = None
        self._size_bytes = 0  # of the server; the capabilities follow with `revalidate`

    @property
    def description(self) -> str:
        return f"NBD export {self.uri}"

    async def open(self) -> None:
        if self._session is not None:
            return
        try:
            session = await self._client.open()
        except (OSError, NbdProtocolError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ConfigurationError(
                f"{self.uri} cannot be used: {reason}; start the NBD server first, or correct the URI"
            ) from error
        try:
            self._capabilities = self._capabilities_of(session)
            # It stays: hosts know the namespace by it.
            self._block_bytes = self._capabilities.block_bytes
        except BaseException:
            await self._client.close()
            raise
        self._take_session(session)

    async def close(self) -> None:
        self._session = None
        await self._client.close()
        if isinstance(self.metadata_store, JsonFileStore):
            await self.metadata_store.close()

    def _capabilities_of(self, session: ClientSession) -> Capabilities:
        export, flags = session.export, session.export.flags
        block_bytes = block_size(self._block_bytes, export.minimum, export.size, str(self.uri))
        zeroes = bool(flags & TransmissionFlags.SEND_WRITE_ZEROES)
        return Capabilities(
            size_bytes=export.size - export.size % block_bytes,
            block_bytes=block_bytes,
            can_write=not (self._read_only or flags & TransmissionFlags.READ_ONLY),
            can_deallocate=bool(flags & TransmissionFlags.SEND_TRIM),
            can_write_zeroes=zeroes,
            volatile_cache=bool(flags & TransmissionFlags.SEND_FLUSH),
            deallocated_reads_zero=zeroes,
            preferred_bytes=max(export.preferred, block_bytes),
        )

    def _take_session(self, session: ClientSession) -> None:
        """Take over what a server says, at the first time and when it has come back."""
        self._session = session
        self._size_bytes = session.export.size
        self.max_bytes = min(session.export.maximum, 32 << 20)
        self.native_fua = bool(session.export.flags & TransmissionFlags.SEND_FUA)

    def _lost_writes(self, error: OSError) -> None:
        self.sync_failures += 1
        self.sync_error = error

    def revalidate(self) -> str:
        if self._session is None or self._capabilities is None:
            return ""
        before = self._capabilities
        after = self._capabilities_of(self._session)
        size = after.size_bytes
        if size == before.size_bytes:
            return ""
        self._capabilities = after
        verb = "grown" if size > before.size_bytes else "become shorter"
        return f"{self.description} has {verb}, from {before.size_bytes} to {size} bytes"

    # Requests

    def _flag(self, flag: TransmissionFlags) -> bool:
        return self._session is not None and bool(self._session.export.flags & flag)

    def _begin(self, command: Command, offset: int, view: memoryview, flags: int = 0) -> NbdRequest:
        length = len(view)
        if offset + length > self._size_bytes:
            raise SizeChangedError(errno.EIO, f"{self.description} has become shorter than its namespace")
        return self._client.begin(NbdRequest(command, offset, length, view, flags))

    def begin_read(self, offset: int, view: memoryview) -> asyncio.Future[None]:
        return self._begin(Command.READ, offset, view)

    def begin_write(self, offset: int, data: memoryview, fua: bool) -> asyncio.Future[None]:
        return self._begin(Command.WRITE, offset, data, CommandFlags.FUA if fua else 0)

    def changed(self) -> None:
        self._client.wrote()

    async def _over(self, command: Command, offset: int, length: int, flags: int) -> None:
        """Send a command without data for a range, in pieces."""
        for start, size in _cut(offset, length, _PIECE_BYTES):
            await self._client.begin(NbdRequest(command, start, size, flags=flags))

    async def zero(self, offset: int, length: int, *, deallocate: bool, fua: bool) -> None:
        if self._flag(TransmissionFlags.SEND_WRITE_ZEROES):
            flags = (0 if deallocate else CommandFlags.NO_HOLE) | (CommandFlags.FUA if fua else 0)
            try:
                await self._over(Command.WRITE_ZEROES, offset, length, flags)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        await self.write_zeroes_as_data(offset, length, fua)

    async def trim(self, offset: int, length: int) -> None:
        # What TRIM leaves is not defined, and hosts are told that deallocated blocks read as zeroes where they can.
        if self.capabilities.deallocated_reads_zero:
            await self.zero(offset, length, deallocate=True, fua=False)
        else:
            await self._over(Command.TRIM, offset, length, 0)

    async def sync(self) -> None:
        if self._flag(TransmissionFlags.SEND_FLUSH):
            await self._client.flush()

    async def allocated(self, offset: int, length: int) -> list[tuple[int, int]]:
        if self._session is None or self._session.context is None:
            return [(offset, offset + length)]
        found: list[tuple[int, int]] = []
        end = offset + length
        while offset < end:
            request = NbdRequest(Command.BLOCK_STATUS, offset, min(end - offset, _STATUS_BYTES))
            await self._client.begin(request)
            if not request.extents:  # a server that came back without block status
                return [*found, (offset, end)]
            for size, flags in request.extents:
                stop = min(offset + size, end)
                if not flags & AllocationFlags.ZERO and offset < stop:
                    if found and found[-1][1] == offset:
                        found[-1] = (found[-1][0], stop)
                    else:
                        found.append((offset, stop))
                offset = stop
        return found


def _cut(offset: int, length: int, piece: int) -> Iterator[tuple[int, int]]:
    for start in range(offset, offset + length, piece):
        yield start, min(piece, offset + length - start)


def make(arguments: Arguments) -> Backend:
    """Make the backend from the text of a namespace. Raises `ConfigurationError`."""
    kept = arguments.text("kept")
    return NbdBackend(
        arguments.value,
        block_bytes=arguments.size("block-size"),
        read_only=arguments.flag("read-only"),
        connections=int(arguments.number("connections", CONNECTIONS, least=1, most=CONNECTIONS_MAX)),
        timeout=arguments.seconds("timeout", TIMEOUT_SECONDS),
        wait=arguments.seconds("wait", WAIT_SECONDS),
        metadata_store=None if kept is None else JsonFileStore(Path(kept), sections=DATA_SECTIONS),
    )
