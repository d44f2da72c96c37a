"""OpenSSL's libssl by ctypes: the one place that knows which library does TLS.

Why not :mod:`ssl`: it has PSKs from Python 3.13 on, and then neither a choice of the cipher suite nor a PSK of SHA-384
nor identities above 255 bytes; why not pyOpenSSL: it cannot switch NewSessionTicket off, which ends a connection of
Linux. So libssl itself is called, which Python is linked to anyway, over a pair of BIOs: their rings are read from and
written to in place, so that the bytes of a record are copied no more often than OpenSSL does it itself.

The library is called without giving up the GIL: a call takes microseconds, at most those of one batch.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p
from functools import cache
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.security.tls.keylog import keylog_open, write_line

TLS1_3: Final = 0x0304
ERROR_SSL: Final = 1
ERROR_WANT_READ: Final = 2
ERROR_WANT_WRITE: Final = 3
ERROR_ZERO_RETURN: Final = 6
_CTRL_SET_MIN_PROTO: Final = 123

_SYSTEM_NAMES: Final = ("libssl.so.3", "libssl.so.1.1", "libssl.so")
_NEEDED: Final = (
    "TLS with a pre-shared key needs OpenSSL 1.1.1 or newer as a shared library (libssl), which was not found: "
    "install the package libssl3 (openssl-libs), or use a Python that is linked to it"
)

FIND_SESSION: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_void_p)
"""``int find(SSL *, const unsigned char *identity, size_t length, SSL_SESSION **)``, a server's."""
USE_SESSION: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
"""``int use(SSL *, const EVP_MD *, const unsigned char **id, size_t *length, SSL_SESSION **)``, a client's."""
_KEYLOG: Final = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)

_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "TLS_method": (c_void_p, ()),
    "SSL_CTX_new": (c_void_p, (c_void_p,)),
    "SSL_CTX_free": (None, (c_void_p,)),
    "SSL_CTX_ctrl": (c_long, (c_void_p, c_int, c_long, c_void_p)),
    "SSL_CTX_set_num_tickets": (c_int, (c_void_p, c_size_t)),
    "SSL_CTX_set_psk_find_session_callback": (None, (c_void_p, FIND_SESSION)),
    "SSL_CTX_set_psk_use_session_callback": (None, (c_void_p, USE_SESSION)),
    "SSL_CTX_set_keylog_callback": (None, (c_void_p, _KEYLOG)),
    "SSL_new": (c_void_p, (c_void_p,)),
    "SSL_free": (None, (c_void_p,)),
    "SSL_set_accept_state": (None, (c_void_p,)),
    "SSL_set_connect_state": (None, (c_void_p,)),
    "SSL_set_ciphersuites": (c_int, (c_void_p, c_char_p)),
    "SSL_set_bio": (None, (c_void_p, c_void_p, c_void_p)),
    "SSL_do_handshake": (c_int, (c_void_p,)),
    "SSL_read": (c_int, (c_void_p, c_void_p, c_int)),
    "SSL_write": (c_int, (c_void_p, c_char_p, c_int)),
    "SSL_pending": (c_int, (c_void_p,)),
    "SSL_key_update": (c_int, (c_void_p, c_int)),
    "SSL_shutdown": (c_int, (c_void_p,)),
    "SSL_get_error": (c_int, (c_void_p, c_int)),
    "SSL_get_current_cipher": (c_void_p, (c_void_p,)),
    "SSL_CIPHER_get_name": (c_char_p, (c_void_p,)),
    "SSL_CIPHER_find": (c_void_p, (c_void_p, c_char_p)),
    "SSL_session_reused": (c_int, (c_void_p,)),
    "SSL_SESSION_new": (c_void_p, ()),
    "SSL_SESSION_free": (None, (c_void_p,)),
    "SSL_SESSION_set1_master_key": (c_int, (c_void_p, c_char_p, c_size_t)),
    "SSL_SESSION_set_cipher": (c_int, (c_void_p, c_void_p)),
    "SSL_SESSION_set_protocol_version": (c_int, (c_void_p, c_int)),
    "BIO_new_bio_pair": (c_int, (c_void_p, c_size_t, c_void_p, c_size_t)),
    "BIO_free": (c_int, (c_void_p,)),
    "BIO_nread0": (c_int, (c_void_p, c_void_p)),
    "BIO_nread": (c_int, (c_void_p, c_void_p, c_int)),
    "BIO_nwrite0": (c_int, (c_void_p, c_void_p)),
    "BIO_nwrite": (c_int, (c_void_p, c_void_p, c_int)),
    "BIO_ctrl_pending": (c_size_t, (c_void_p,)),
    "ERR_clear_error": (None, ()),
    "ERR_get_error": (c_ulong, ()),
    "ERR_reason_error_string": (c_char_p, (c_ulong,)),
}


def _find() -> ctypes.PyDLL:
    """Return the libssl that :mod:`ssl` is linked to, else the system's. Raises `ConfigurationError`."""
    try:
        path = getattr(importlib.import_module("_ssl"), "__file__", None)
    except ImportError:
        path = None
    system = ctypes.util.find_library("ssl") if path is None else None
    for name in (path, system, *_SYSTEM_NAMES):
        if name is None:
            continue
        try:
            # Beside an OpenSSL that is linked into the program, the library's own symbols go first.
            library = ctypes.PyDLL(name, os.RTLD_LOCAL | (0 if name is path else getattr(os, "RTLD_DEEPBIND", 0)))
        except OSError:
            continue
        if hasattr(library, "SSL_CTX_set_psk_find_session_callback"):
            return library
    raise ConfigurationError(_NEEDED)


class Library:
    """The functions of libssl, and the address that each of its objects is known by. Raises `ConfigurationError`."""

    def __init__(self) -> None:
        loaded = _find()
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(loaded, name)
            except AttributeError:
                raise ConfigurationError(_NEEDED) from None
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        view = ctypes.pythonapi.PyMemoryView_FromMemory
        view.restype, view.argtypes = ctypes.py_object, (c_void_p, ctypes.c_ssize_t, c_int)
        self.memory: Any = view
        self._keylog = _KEYLOG(lambda _, line: write_line(line))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # the functions are set by name: this tells a type checker of them

    def context(self) -> int:
        """Return a new SSL_CTX: TLS 1.3 alone, no session tickets, key log on."""
        context: int | None = self.SSL_CTX_new(self.TLS_method())
        if not context:
            raise ConfigurationError(f"OpenSSL gives no TLS context: {self.reason()}")
        self.SSL_CTX_ctrl(context, _CTRL_SET_MIN_PROTO, TLS1_3, None)
        self.SSL_CTX_set_num_tickets(context, 0)
        if keylog_open():
            self.SSL_CTX_set_keylog_callback(context, self._keylog)
        return context

    def reason(self) -> str:
        """Return what the first error in the library's queue says, and empty the queue."""
        code = self.ERR_get_error()
        text: bytes | None = self.ERR_reason_error_string(code) if code else None
        self.ERR_clear_error()
        return "" if text is None else text.decode("ascii", "replace")


@cache
def library() -> Library:
    """Return the library, loaded once. Raises `ConfigurationError` that says what to install."""
    return Library()
