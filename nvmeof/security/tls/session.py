"""One TLS 1.3 connection with a pre-shared key, without I/O: bytes in, bytes out.

::

    wire -> space(), received(n) -> [TLS] -> read_into(buffer)
    wire <- output(), sent(n)    <- [TLS] <- write(data)

Both sides of the wire are views of the session's own rings, so that a socket reads and writes in place. They hold until
the next call of the session. The session is not thread-safe.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Final

from nvmeof.errors import NvmeofError
from nvmeof.security.tls import library as openssl
from nvmeof.security.tls.key import Psk
from nvmeof.security.tls.suites import Suite

BATCH_BYTES: Final = 256 * 1024
"""Plain bytes of one `write`, at the most: 16 records of 16 KiB."""
_RECORD_OVERHEAD: Final = 5 + 1 + 16
_SLACK_BYTES: Final = 8 * 1024
"""Room for what TLS itself says beside a batch: alerts, answers to a KeyUpdate."""
OUT_BYTES: Final = BATCH_BYTES + BATCH_BYTES // 16384 * _RECORD_OVERHEAD + _SLACK_BYTES
IN_BYTES: Final = 160 * 1024
"""Received bytes that wait to be decrypted, at the most; one receive brings no more."""
_READ_ONLY: Final = 0x100
_WRITABLE: Final = 0x200
_REFUSED: Final = (
    "the peer refuses the pre-shared key: its identity or the key is not known there, or is another one ({})"
)
_EXPLAINED: Final = {
    "tlsv1 alert decrypt error": _REFUSED,
    "tlsv1 alert unknown psk identity": _REFUSED,
    "tlsv1 unknown psk identity": _REFUSED,
    "sslv3 alert handshake failure": _REFUSED,
    "ssl/tls alert handshake failure": _REFUSED,
    "sslv3 alert illegal parameter": _REFUSED,
    "ssl/tls alert illegal parameter": _REFUSED,
    "tlsv1 alert access denied": _REFUSED,
    "wrong version number": "the peer does not speak TLS ({})",
    "no shared cipher": "both sides have no cipher suite in common ({})",
    "binder does not verify": "the peer's pre-shared key is another one ({})",
    "decryption failed or bad record mac": "a record was damaged, or made with another key ({})",
}


class TlsError(NvmeofError):
    """TLS has failed, and the connection with it; one sentence that says why, and nothing of a key."""


class TlsSession:
    """A connection of TLS 1.3 that begins with its handshake.

    ``server``: which end; ``psk``: the key, and the identity that it has (a server takes that identity and no other);
    ``suites``: the cipher suites, all of one hash function; a server has one. Raises `ConfigurationError` without an
    OpenSSL, `TlsError` where it refuses.
    """

    def __init__(self, psk: Psk, suites: Sequence[Suite], *, server: bool) -> None:
        self._lib = lib = openssl.library()
        self.psk = psk
        self.closed_by_peer = False
        """The peer has sent close_notify: what is read is complete."""
        self.drained = True
        """All that was received is read: only more bytes from the wire help."""
        self.blocked = False
        """Reading waits until output has gone: TLS has to say something, and the ring is full."""
        self._freed = False
        self._failure: TlsError | None = None
        self._pointer = ctypes.c_void_p()
        self._at = ctypes.byref(self._pointer)
        lib.ERR_clear_error()
        self._ssl: int = lib.SSL_new(_context(server))
        near, far = ctypes.c_void_p(), ctypes.c_void_p()
        if not self._ssl or not lib.BIO_new_bio_pair(ctypes.byref(near), OUT_BYTES, ctypes.byref(far), IN_BYTES):
            raise TlsError(f"OpenSSL has no memory for a connection: {lib.reason()}")
        self._near, self._far = near.value, far.value
        lib.SSL_set_bio(self._ssl, self._near, self._near)
        names = ":".join(each.name for each in suites)
        if not lib.SSL_set_ciphersuites(self._ssl, names.encode()):
            why = lib.reason()
            self.free()
            raise TlsError(f"OpenSSL does not have the cipher suite {names}: {why}")
        (lib.SSL_set_accept_state if server else lib.SSL_set_connect_state)(self._ssl)
        _sessions[self._ssl] = (psk.identity.encode(), psk.key, suites[0])

    # -- the wire ------------------------------------------------------------------------------------------------

    def space(self) -> memoryview:
        """Return where received bytes go. Empty only while 160 KiB of them wait to be read."""
        count: int = self._lib.BIO_nwrite0(self._far, self._at)
        view: memoryview = self._lib.memory(self._pointer, max(count, 0), _WRITABLE)
        return view

    def received(self, count: int) -> None:
        """Take note of bytes that were put into `space()`."""
        self._lib.BIO_nwrite(self._far, self._at, count)
        self.drained = False

    def feed(self, data: bytes | bytearray) -> None:
        """Take received bytes that are elsewhere, as many as `space()` has room for."""
        self.space()[: len(data)] = data
        self.received(len(data))

    @property
    def pending(self) -> int:
        """How many bytes wait to be sent."""
        count: int = self._lib.BIO_ctrl_pending(self._far)
        return count

    def output(self) -> memoryview:
        """Return bytes that are to be sent: all, or those up to the end of the ring. Empty: there are none."""
        count: int = self._lib.BIO_nread0(self._far, self._at)
        view: memoryview = self._lib.memory(self._pointer, max(count, 0), _READ_ONLY)
        return view

    def sent(self, count: int) -> None:
        """Take note of bytes of `output()` that the wire has taken."""
        self._lib.BIO_nread(self._far, self._at, count)

    @property
    def cipher(self) -> str:
        """The cipher suite in use, once the handshake is complete; else an empty text."""
        current = self._lib.SSL_get_current_cipher(self._ssl)
        name: bytes | None = self._lib.SSL_CIPHER_get_name(current) if current else None
        return "" if name is None else name.decode()

    # -- TLS -----------------------------------------------------------------------------------------------------

    def handshake(self) -> bool:
        """Go on with the handshake, as far as what was received reaches; whether it is complete. Raises `TlsError`."""
        lib = self._lib
        lib.ERR_clear_error()
        result: int = lib.SSL_do_handshake(self._ssl)
        if result == 1:
            _sessions.pop(self._ssl, None)
            if not lib.SSL_session_reused(self._ssl):
                raise self._failed("the peer did not take the pre-shared key")
            return True
        code = lib.SSL_get_error(self._ssl, result)
        if code in (openssl.ERROR_WANT_READ, openssl.ERROR_WANT_WRITE):
            return False
        raise self._failed()

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt what was received into a writable buffer; how many bytes. Raises `TlsError`.

        Fewer than there is room for: see `drained`, `closed_by_peer` and `blocked`.
        """
        if self._failure is not None:
            raise self._failure
        size = len(buffer)
        if not size or self.closed_by_peer or self.drained:
            return 0
        lib, ssl = self._lib, self._ssl
        anchor = ctypes.c_char.from_buffer(buffer)
        address, done, read = ctypes.addressof(anchor), 0, lib.SSL_read
        lib.ERR_clear_error()
        while done < size:
            n: int = read(ssl, address + done, size - done)
            if n <= 0:
                failure = self._stopped(lib.SSL_get_error(ssl, n))
                if failure is not None and not done:
                    raise failure
                break
            done += n
        return done

    def _stopped(self, code: int) -> TlsError | None:
        """Take note of why a read brought nothing, and return the error if it is one."""
        if code == openssl.ERROR_WANT_READ:
            self.drained = True
        elif code == openssl.ERROR_ZERO_RETURN:
            self.closed_by_peer = True
        elif code == openssl.ERROR_WANT_WRITE:
            self.blocked = True
        else:
            return self._failed()
        return None

    def write(self, data: bytes) -> None:
        """Encrypt at most `BATCH_BYTES`; they are in `output()` then. All before must have gone. Raises `TlsError`."""
        if self._failure is not None:
            raise self._failure
        if data:
            self._lib.ERR_clear_error()
            if self._lib.SSL_write(self._ssl, data, len(data)) <= 0:
                raise self._failed()

    def update_key(self) -> None:
        """Go over to a new key for what is sent from now on, and ask the peer for the same (RFC 8446, section 4.6.3).

        Linux before 6.14 ends the connection on one.
        """
        self._lib.SSL_key_update(self._ssl, 1)
        self._lib.SSL_do_handshake(self._ssl)

    def close(self) -> None:
        """Say close_notify; it is in `output()` then."""
        if self._failure is None:
            self._lib.ERR_clear_error()
            self._lib.SSL_shutdown(self._ssl)

    def free(self) -> None:
        """Free what OpenSSL holds. The session must not be used any longer. Idempotent."""
        if self._freed:
            return
        self._freed = True
        self._failure = self._failure or TlsError("the connection is closed")
        _sessions.pop(self._ssl, None)
        self._lib.SSL_free(self._ssl)
        self._lib.BIO_free(self._far)

    def __del__(self) -> None:
        if not getattr(self, "_freed", True) and hasattr(self, "_far"):
            self.free()

    @property
    def buffered(self) -> bool:
        """Whether received bytes are waiting that were not read yet, perhaps the beginning of a record only."""
        return bool(self._lib.SSL_pending(self._ssl) or self._lib.BIO_ctrl_pending(self._near))

    def _failed(self, what: str = "") -> TlsError:
        """Note why TLS failed, and return the error."""
        reason = self._lib.reason() or "the connection broke off"
        self._failure = TlsError(what or _EXPLAINED.get(reason.lower(), "{}").format(reason))
        return self._failure


# -- what OpenSSL calls back ------------------------------------------------------------------------------------------

_sessions: dict[int, tuple[bytes, bytes, Suite]] = {}
"""Identity, key and suite of each handshake under way, by the address of its SSL."""


def _psk_session(ssl: int, key: bytes, suite: Suite) -> int | None:
    """Return a new SSL_SESSION that stands for an external PSK; None when OpenSSL has none."""
    lib = openssl.library()
    session: int | None = lib.SSL_SESSION_new()
    cipher = lib.SSL_CIPHER_find(ssl, suite.number.to_bytes(2, "big"))
    if not session or not cipher:
        return None
    if (
        lib.SSL_SESSION_set1_master_key(session, key, len(key))
        and lib.SSL_SESSION_set_cipher(session, cipher)
        and lib.SSL_SESSION_set_protocol_version(session, openssl.TLS1_3)
    ):
        return session
    lib.SSL_SESSION_free(session)
    return None


def _find(ssl: int, identity: int, length: int, out: int) -> int:
    """Give a server the session of an identity; none for an identity that is not the handshake's."""
    ctypes.c_void_p.from_address(out).value = None
    known = _sessions.get(ssl)
    if known is not None and ctypes.string_at(identity, length) == known[0]:
        ctypes.c_void_p.from_address(out).value = _psk_session(ssl, known[1], known[2])
    return 1


def _use(ssl: int, digest: int, identity: int, length: int, out: int) -> int:
    """Give a client the session that it offers. The identity lies in `_sessions` until the handshake has ended."""
    ctypes.c_void_p.from_address(out).value = None
    known = _sessions.get(ssl)
    session = None if known is None else _psk_session(ssl, known[1], known[2])
    if known is None or session is None:
        return 0
    name = ctypes.cast(ctypes.c_char_p(known[0]), ctypes.c_void_p)
    ctypes.c_void_p.from_address(identity).value = name.value
    ctypes.c_size_t.from_address(length).value = len(known[0])
    ctypes.c_void_p.from_address(out).value = session
    return 1


_FIND: Final = openssl.FIND_SESSION(_find)
_USE: Final = openssl.USE_SESSION(_use)


@cache
def _context(server: bool) -> int:
    """Return the SSL_CTX of all connections of one end, which lives as long as the process."""
    lib = openssl.library()
    context = lib.context()
    if server:
        lib.SSL_CTX_set_psk_find_session_callback(context, _FIND)
    else:
        lib.SSL_CTX_set_psk_use_session_callback(context, _USE)
    return context
