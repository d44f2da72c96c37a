"""librados and librbd by ctypes (Ceph, ``rados/librados.h``, ``rbd/librbd.h``): any Python, no binding to build."""

from __future__ import annotations

import ctypes as c
from functools import cache
from typing import Any, Final

from nvmeof.errors import ConfigurationError

EVENT_TYPE_EVENTFD: Final = 2
THICK_PROVISION: Final = 1
"""RBD_WRITE_ZEROES_FLAG_THICK_PROVISION: zeroes take space."""

_HANDLE = c.c_void_p
_RADOS: Final[dict[str, tuple[Any, ...]]] = {
    "rados_create": (c.POINTER(_HANDLE), c.c_char_p),
    "rados_conf_read_file": (_HANDLE, c.c_char_p),
    "rados_conf_set": (_HANDLE, c.c_char_p, c.c_char_p),
    "rados_connect": (_HANDLE,),
    "rados_shutdown": (_HANDLE,),
    "rados_ioctx_create": (_HANDLE, c.c_char_p, c.POINTER(_HANDLE)),
    "rados_ioctx_set_namespace": (_HANDLE, c.c_char_p),
    "rados_ioctx_destroy": (_HANDLE,),
}
_RBD: Final[dict[str, tuple[Any, ...]]] = {
    "rbd_open": (_HANDLE, c.c_char_p, c.POINTER(_HANDLE), c.c_char_p),
    "rbd_open_read_only": (_HANDLE, c.c_char_p, c.POINTER(_HANDLE), c.c_char_p),
    "rbd_close": (_HANDLE,),
    "rbd_get_size": (_HANDLE, c.POINTER(c.c_uint64)),
    "rbd_set_image_notification": (_HANDLE, c.c_int, c.c_int),
    "rbd_poll_io_events": (_HANDLE, c.POINTER(_HANDLE), c.c_int),
    "rbd_aio_create_completion": (_HANDLE, _HANDLE, c.POINTER(_HANDLE)),
    "rbd_aio_release": (_HANDLE,),
    "rbd_aio_read": (_HANDLE, c.c_uint64, c.c_size_t, _HANDLE, _HANDLE),
    "rbd_aio_write": (_HANDLE, c.c_uint64, c.c_size_t, _HANDLE, _HANDLE),
    "rbd_aio_write_zeroes": (_HANDLE, c.c_uint64, c.c_size_t, _HANDLE, c.c_int, c.c_int),
    "rbd_aio_flush": (_HANDLE, _HANDLE),
}
_LENGTHS: Final[dict[str, tuple[Any, ...]]] = {
    "rbd_aio_get_return_value": (_HANDLE,),
    "rbd_compare_and_write": (_HANDLE, c.c_uint64, c.c_size_t, _HANDLE, _HANDLE, c.POINTER(c.c_uint64), c.c_int),
}
"""Those that return a length."""
_NO_RESULT: Final = frozenset({"rados_shutdown", "rados_ioctx_destroy", "rbd_aio_release"})


class Library:
    """The functions by name; each returns an int, negative errno for an error."""

    def __init__(self, rados: c.CDLL, rbd: c.CDLL) -> None:
        for functions, library in ((_RADOS, rados), (_RBD, rbd)):
            for name, arguments in functions.items():
                function = getattr(library, name)
                function.argtypes = arguments
                function.restype = None if name in _NO_RESULT else c.c_int
                setattr(self, name, function)
        for name, arguments in _LENGTHS.items():
            function = getattr(rbd, name)
            function.argtypes = arguments
            function.restype = c.c_ssize_t
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@cache
def load() -> Library:
    """Load both libraries. Raises `ConfigurationError` that says what to install."""
    try:
        return Library(c.CDLL("librados.so.2"), c.CDLL("librbd.so.1"))
    except (OSError, AttributeError) as error:
        raise ConfigurationError(
            f"rbd: librbd 16.2 or newer is needed ({error}): install the Debian package librbd1"
        ) from error
