"""``rbd:POOL/IMAGE[@SNAPSHOT]``: an image of Ceph RBD as a namespace, through librbd."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.core.metadata import DATA_SECTIONS, MetadataStore
from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend, Capabilities, SizeChangedError, SourceError
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.rbd.image import ClusterOptions, Image, ImageName, RbdRequest
from nvmeof.target.storage.rbd.library import load
from nvmeof.target.storage.remote import RemoteBackend, block_size, not_in_time

logger = logging.getLogger("nvmeof.target")

TIMEOUT_SECONDS: Final = 45.0
"""Longer than Ceph takes to fence a client that died, for which a write may wait: about 30 s."""
OPTIONS: Final = ("conf", "user", "timeout", "block-size", "read-only", "kept")
SUMMARY: Final = "an image of Ceph RBD: rbd:POOL/IMAGE,conf=/etc/ceph/ceph.conf"
COMPARE_AND_WRITE_BYTES: Final = 512
"""What librbd can compare and write as one."""
_REOPEN_SECONDS: Final = 1.0
_PIECE_BYTES: Final = 256 << 20


class RbdBackend(RemoteBackend):
    """Storage in an RBD image: ``RbdBackend("rbd/disk", conf="/etc/ceph/ceph.conf")``.

    librbd's cache is off: a completed write is on the OSDs. `timeout`: seconds for connecting and for each request; a
    change that is not answered in time ends with `OutcomeUnknownError`. A client that Ceph has fenced (blocklisted)
    opens the image anew; until then requests fail with ESHUTDOWN. Opening raises `ConfigurationError`.
    """

    native_fua = True

    def __init__(
        self,
        image: str,
        *,
        conf: str | None = None,
        user: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        block_bytes: int | None = None,
        read_only: bool = False,
        metadata_store: MetadataStore | None = None,
    ) -> None:
        super().__init__(metadata_store)
        self._name = ImageName.parse(image)
        self._library = load()
        self._options = ClusterOptions(conf, user, timeout)
        self._block_bytes = block_bytes
        self._read_only = read_only or self._name.snapshot is not None
        self._image: Image | None = None
        self._size_bytes = 0
        self._reopening: asyncio.Task[None] | None = None

    @property
    def description(self) -> str:
        return f"RBD image {self._name}"

    async def open(self) -> None:
        if self._image is not None:
            return
        try:
            image = await self._open_image()
            size = image.size_bytes
        except OSError as error:
            raise ConfigurationError(f"rbd:{self._name} cannot be used: {error.strerror or error}") from error
        try:
            block_bytes = block_size(self._block_bytes, 512, size, self.description)
        except ConfigurationError:
            await image.close()
            raise
        self._image, self._size_bytes = image, size
        self._capabilities = Capabilities(
            size_bytes=size - size % block_bytes,
            block_bytes=block_bytes,
            can_write=not self._read_only,
            can_deallocate=True,
            can_write_zeroes=True,
            preferred_bytes=max(4096, block_bytes),
        )

    async def _open_image(self) -> Image:
        """Open the image in a thread; librados's own limit of time ends that."""
        image = Image(self._library, self._name, self._options)
        try:
            await asyncio.to_thread(image.open, read_only=self._read_only)
        except BaseException:
            await asyncio.to_thread(image.close_now)
            raise
        image.start()
        return image

    async def close(self) -> None:
        image, self._image = self._image, None
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.gather(self._reopening, return_exceptions=True)
        if image is not None and not await image.close():
            logger.error("%s: the cluster does not answer; the image was left open", self.description)
        if isinstance(self.metadata_store, JsonFileStore):
            await self.metadata_store.close()

    def revalidate(self) -> str:
        if self._image is None or self._image.ended:
            return ""
        before, self._size_bytes = self.capabilities.size_bytes, self._image.size_bytes
        size = self._size_bytes - self._size_bytes % self.capabilities.block_bytes
        if size == before:
            return ""
        self._capabilities = replace(self.capabilities, size_bytes=size)
        verb = "grown" if size > before else "become shorter"
        return f"{self.description} has {verb}, from {before} to {size} bytes"

    # Requests

    def _opened(self, offset: int, length: int) -> Image:
        """Return the image for a request. librbd would cut a write that ends beyond the image, and answer 0."""
        image = self._image
        if image is None or image.ended:
            raise OSError(errno.ESHUTDOWN, f"{self.description} is being opened anew")
        if offset + length > image.size_bytes:
            raise SizeChangedError(errno.EIO, f"{self.description} has become shorter than its namespace")
        return image

    async def _ended(self, request: RbdRequest, length: int | None = None) -> None:
        """Await a request. Raises what it failed with, in our terms."""
        try:
            await request
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                raise not_in_time(self.description, self._options.timeout, changing=request.changing) from error
            if error.errno == errno.ESHUTDOWN:
                self._fenced()
            raise
        if length is not None and request.answer != length:
            raise SizeChangedError(errno.EIO, f"{self.description} has become shorter than its namespace")

    def begin_read(self, offset: int, view: memoryview) -> asyncio.Future[None]:
        request = self._opened(offset, len(view)).read(offset, view)
        return asyncio.ensure_future(self._ended(request, len(view)))

    def begin_write(self, offset: int, data: memoryview, fua: bool) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._ended(self._opened(offset, len(data)).write(offset, data)))

    async def _fill(self, offset: int, view: memoryview) -> None:
        await self._ended(self._opened(offset, len(view)).read(offset, view), len(view))

    async def _put(self, offset: int, data: memoryview, fua: bool) -> None:
        await self._ended(self._opened(offset, len(data)).write(offset, data))

    async def zero(self, offset: int, length: int, *, deallocate: bool, fua: bool) -> None:
        for start in range(offset, offset + length, _PIECE_BYTES):
            size = min(_PIECE_BYTES, offset + length - start)
            await self._ended(self._opened(start, size).write_zeroes(start, size, deallocate=deallocate))

    async def trim(self, offset: int, length: int) -> None:
        # Discards below the image's granularity do nothing and say success: only write_zeroes keeps the promise.
        await self.zero(offset, length, deallocate=True, fua=False)

    async def sync(self) -> None:
        await self._ended(self._opened(0, 0).flush())

    async def compare_and_write(self, offset: int, compare: memoryview, data: memoryview, *, fua: bool = False) -> bool:
        # Other targets may serve the image: only what the OSD does as one is atomic.
        if len(data) != COMPARE_AND_WRITE_BYTES:
            raise OSError(errno.EOPNOTSUPP, f"RBD compares and writes {COMPARE_AND_WRITE_BYTES} bytes as one, no more")
        async with self._locked(offset, offset + len(data), exclusive=True):
            request = self._opened(offset, len(data)).compare_and_write(offset, compare, data)
            try:
                await self._ended(request)
            except OSError as error:
                if error.errno == errno.EILSEQ:
                    return False
                if error.errno in (errno.EIO, errno.ENOENT):
                    raise SourceError(error.errno, error.strerror) from error
                raise
        return True

    # Fencing

    def _fenced(self) -> None:
        """Open the image anew: Ceph has put this client on its blocklist, for good."""
        if self._image is not None and (self._reopening is None or self._reopening.done()):
            logger.error("%s: another client has taken it over and fenced this one; opening it anew", self.description)
            self._reopening = asyncio.get_running_loop().create_task(self._reopen(self._image))

    async def _reopen(self, old: Image) -> None:
        await old.close()
        while self._image is old:
            try:
                self._image = await self._open_image()
            except OSError as error:
                logger.warning("%s cannot be opened: %s", self.description, error.strerror or error)
                await asyncio.sleep(_REOPEN_SECONDS)
            else:
                logger.warning("%s is open again", self.description)


def make(arguments: Arguments) -> Backend:
    """Make the backend from the text of a namespace. Raises `ConfigurationError`."""
    kept = arguments.text("kept")
    return RbdBackend(
        arguments.value,
        conf=arguments.text("conf"),
        user=arguments.text("user"),
        timeout=arguments.seconds("timeout", TIMEOUT_SECONDS),
        block_bytes=arguments.size("block-size"),
        read_only=arguments.flag("read-only"),
        metadata_store=None if kept is None else JsonFileStore(Path(kept), sections=DATA_SECTIONS),
    )
