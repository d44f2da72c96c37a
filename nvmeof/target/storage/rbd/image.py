"""An open RBD image: requests are begun by librbd's asynchronous calls, an eventfd tells that some have ended.

No thread of librbd enters Python, and data is read in place.
"""

from __future__ import annotations

import asyncio
import ctypes as c
import errno
import os
from dataclasses import dataclass
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.rbd.library import EVENT_TYPE_EVENTFD, THICK_PROVISION, Library
from nvmeof.target.storage.remote import EngineRequest

_AT_ONCE: Final = 64
CLOSE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class ImageName:
    """``POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]``."""

    pool: str
    namespace: str
    image: str
    snapshot: str | None = None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a name as the rbd command has it. Raises `ConfigurationError`."""
        path, at, snapshot = text.partition("@")
        parts = path.split("/")
        if len(parts) not in (2, 3) or not all(parts) or (at and not snapshot):
            raise ConfigurationError(f"rbd: {text!r} is no image; write rbd:POOL/IMAGE or rbd:POOL/IMAGE@SNAPSHOT")
        return cls(parts[0], parts[1] if len(parts) == 3 else "", parts[-1], snapshot if at else None)

    def __str__(self) -> str:
        path = "/".join(part for part in (self.pool, self.namespace, self.image) if part)
        return path if self.snapshot is None else f"{path}@{self.snapshot}"


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How the cluster is found: a ceph.conf (None: the default places), a user, and a limit in seconds."""

    conf: str | None = None
    user: str | None = None
    timeout: float = 30.0


class RbdRequest(EngineRequest):
    """Done when librbd has answered; fails with `OSError`. `answer`: what it returned, 0 or a length."""

    answer = 0
    changing = False
    buffers: tuple[Any, ...] = ()  # held until librbd is done with them


def rbd_error(result: int, what: str) -> OSError:
    """Return the error for a negative result."""
    return OSError(-result, f"{what}: {os.strerror(-result)}")


class Image:
    """See the module. `open` blocks, and belongs in a thread; all else belongs to the event loop."""

    def __init__(self, library: Library, name: ImageName, options: ClusterOptions) -> None:
        self._library = library
        self._name = name
        self._options = options
        self._cluster, self._pool, self._image = c.c_void_p(), c.c_void_p(), c.c_void_p()
        self._eventfd = -1
        self._requests: dict[int, RbdRequest] = {}
        self._in_thread: set[asyncio.Future[int]] = set()
        self._completions = (c.c_void_p * _AT_ONCE)()
        self.ended = False

    def open(self, *, read_only: bool) -> None:
        """Connect to the cluster and open the image. Blocks. Raises `OSError`."""
        library, options, name = self._library, self._options, self._name

        def check(result: int, what: str) -> None:
            if result < 0:
                raise rbd_error(result, what)

        user = None if options.user is None else options.user.encode()
        check(library.rados_create(c.byref(self._cluster), user), "librados cannot be used")
        conf = None if options.conf is None else options.conf.encode()
        result = library.rados_conf_read_file(self._cluster, conf)
        check(result, f"{options.conf or 'ceph.conf'} cannot be read")
        seconds = str(max(round(options.timeout), 1))
        for option, value in (
            ("client_mount_timeout", seconds),
            ("rados_mon_op_timeout", seconds),
            ("rados_osd_op_timeout", seconds),
            # With librbd's cache a completed write may be lost, and another opener may not see it.
            ("rbd_cache", "false"),
        ):
            check(library.rados_conf_set(self._cluster, option.encode(), value.encode()), f"{option} = {value}")
        check(library.rados_connect(self._cluster), "the Ceph cluster cannot be reached")
        result = library.rados_ioctx_create(self._cluster, name.pool.encode(), c.byref(self._pool))
        check(result, f"the pool {name.pool}")
        if name.namespace:
            library.rados_ioctx_set_namespace(self._pool, name.namespace.encode())
        snapshot = None if name.snapshot is None else name.snapshot.encode()
        function = library.rbd_open_read_only if read_only or snapshot else library.rbd_open
        check(function(self._pool, name.image.encode(), c.byref(self._image), snapshot), f"the image {name}")
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        result = library.rbd_set_image_notification(self._image, self._eventfd, EVENT_TYPE_EVENTFD)
        check(result, "librbd does not notify of completions")

    def start(self) -> None:
        """Take completions on the running event loop from now on."""
        asyncio.get_running_loop().add_reader(self._eventfd, self._ready)

    @property
    def size_bytes(self) -> int:
        """The image's size as librbd knows it now; a resize by others is known when it has ended."""
        size = c.c_uint64()
        result = self._library.rbd_get_size(self._image, c.byref(size))
        if result < 0:
            raise rbd_error(result, f"the size of {self._name}")
        return size.value

    def _ready(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        library = self._library
        count = _AT_ONCE
        while count == _AT_ONCE:
            count = library.rbd_poll_io_events(self._image, self._completions, _AT_ONCE)
            for index in range(max(count, 0)):
                completion = self._completions[index] or 0
                result = library.rbd_aio_get_return_value(completion)
                library.rbd_aio_release(completion)
                self._done(self._requests.pop(completion), result)

    def _done(self, request: RbdRequest, result: int) -> None:
        request.buffers = ()
        request.answer = result
        if request.done():
            return
        if result < 0:
            request.set_exception(rbd_error(result, f"RBD image {self._name}"))
        else:
            request.set_result(None)

    def _begin(self, name: str, *arguments: Any, buffers: tuple[Any, ...] = (), changing: bool = False) -> RbdRequest:
        """Call an asynchronous function; None among the arguments is where its completion belongs."""
        request = RbdRequest()
        request.begin()
        request.changing = changing
        request.buffers = buffers
        if self.ended:
            request.set_exception(OSError(errno.ESHUTDOWN, f"RBD image {self._name} has been closed"))
            return request
        completion = c.c_void_p()
        result = self._library.rbd_aio_create_completion(None, None, c.byref(completion))
        if result >= 0:
            handle = completion.value
            assert handle is not None
            self._requests[handle] = request
            call = getattr(self._library, name)
            result = call(self._image, *(completion if each is None else each for each in arguments))
            if result < 0:
                del self._requests[handle]
                self._library.rbd_aio_release(completion)
        if result < 0:
            self._done(request, result)
        return request

    def read(self, offset: int, view: memoryview) -> RbdRequest:
        """Begin to fill `view`; `answer` is how many bytes there were."""
        buffer = (c.c_char * len(view)).from_buffer(view)
        return self._begin("rbd_aio_read", offset, len(view), buffer, None, buffers=(buffer, view))

    def write(self, offset: int, data: memoryview) -> RbdRequest:
        """Begin to write `data`."""
        buffer = _pointed(data)
        return self._begin("rbd_aio_write", offset, len(data), buffer, None, buffers=(buffer, data), changing=True)

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> RbdRequest:
        """Begin to write zeroes."""
        flags = 0 if deallocate else THICK_PROVISION
        return self._begin("rbd_aio_write_zeroes", offset, length, None, flags, 0, changing=True)

    def flush(self) -> RbdRequest:
        """Begin a flush."""
        return self._begin("rbd_aio_flush", None)

    def compare_and_write(self, offset: int, compare: memoryview, data: memoryview) -> RbdRequest:
        """Begin to compare and write 512 bytes; fails with EILSEQ where they differ.

        In a thread: librbd's asynchronous form never tells the eventfd that it has ended (16.2).
        """
        request = RbdRequest()
        request.begin()
        request.changing = True
        old, new, mismatch = _pointed(compare), _pointed(data), c.c_uint64()
        request.buffers = (old, new, mismatch, compare, data)
        work = asyncio.get_running_loop().run_in_executor(
            None, self._library.rbd_compare_and_write, self._image, offset, len(data), old, new, c.byref(mismatch), 0
        )
        self._in_thread.add(work)

        def ended(work: asyncio.Future[int]) -> None:
            self._in_thread.discard(work)
            self._done(request, work.result())

        work.add_done_callback(ended)
        return request

    async def close(self) -> bool:
        """Close image and connection, in a thread; False: the cluster does not answer, and they were left open."""
        if self.ended:
            return True
        self.ended = True
        pending: list[asyncio.Future[Any]] = [*self._requests.values(), *self._in_thread]
        if pending:
            await asyncio.wait(pending, timeout=self._options.timeout + 1)
        if self._eventfd >= 0:
            asyncio.get_running_loop().remove_reader(self._eventfd)
        closing = asyncio.ensure_future(asyncio.to_thread(self.close_now))
        done, _ = await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        return bool(done)

    def close_now(self) -> None:
        """Close what is open. Blocks."""
        self.ended = True
        if self._image:
            self._library.rbd_close(self._image)
        if self._pool:
            self._library.rados_ioctx_destroy(self._pool)
        if self._cluster:
            self._library.rados_shutdown(self._cluster)
        if self._eventfd >= 0:
            os.close(self._eventfd)
            self._eventfd = -1


def _pointed(data: memoryview) -> Any:
    """Return what ctypes passes as the address of `data`; a copy of memory that may not be written."""
    if data.readonly:
        return c.create_string_buffer(bytes(data), len(data))
    return (c.c_char * len(data)).from_buffer(data)
