"""Formatting a namespace: erase it, give it blocks of another size, and see to it that this outlasts the process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from nvmeof.errors import CommandError
from nvmeof.runtime import Runtime, settled
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import FORMAT_SECTION, MetadataStore, formatted_block_bytes
from nvmeof.target.namespaces.namespace import Namespace, status_of_os_error
from nvmeof.target.storage.erase import bytes_to_erase, erase

logger = logging.getLogger(__name__)


def can_format(namespace: Namespace, block_bytes: int) -> bool:
    """Return whether a namespace and its backend support blocks of this size, in bytes."""
    backend, now = namespace.backend, namespace.block_bytes
    if block_bytes == now:
        return True
    if not namespace.fits(block_bytes):
        return False
    try:
        backend.set_block_bytes(block_bytes)
        backend.set_block_bytes(now)
    except OSError:
        return False
    return True


def _metadata_store(namespace: Namespace) -> MetadataStore | None:
    return namespace.backend.metadata_store if namespace.unreadable_blocks.durable else None


async def _put(metadata_store: MetadataStore | None, value: Any) -> None:
    if metadata_store is not None:
        await settled(metadata_store.put(FORMAT_SECTION, value))


async def format_namespace(
    runtime: Runtime, namespace: Namespace, block_bytes: int, *, secure: bool, ready: Callable[[], object]
) -> None:
    """Format a namespace, from blocking access to allowing it again, with the new blocks or, after a failure, the old
    ones. `ready` is called when the new format is in effect, before hosts may use it. Raises `CommandError`.
    """
    metadata_store = _metadata_store(namespace)
    before = _before(metadata_store)
    afterwards: Status | None = None
    begun = False
    old_block_bytes = namespace.block_bytes
    namespace.block_access(Status.FORMAT_IN_PROGRESS)
    namespace.format_remaining = 100
    try:
        await _put(metadata_store, {"block_bytes": block_bytes, "erase": int(secure)})
        begun = True
        await _erase(runtime, namespace, secure)
        if block_bytes != namespace.block_bytes:
            namespace.backend.set_block_bytes(block_bytes)
        await settled(namespace.erased())
        await _put(metadata_store, {"block_bytes": block_bytes})
    except OSError as error:
        if not await _undo(metadata_store, before, namespace, old_block_bytes) and begun:
            # The next start would go on with the erase, and erase what is written until then: allow no writes.
            afterwards = Status.NAMESPACE_NOT_READY
        status, dnr = status_of_os_error(error, writing=True)
        raise CommandError(
            status, dnr=dnr, message=f"formatting namespace {namespace.nsid} failed: {error.strerror or error}"
        ) from error
    else:
        if metadata_store is None and namespace.backend.overwrite_to_erase and block_bytes != old_block_bytes:
            logger.warning(
                "namespace %d: nothing keeps that %s has blocks of %d bytes now: give it --block-size the next time",
                namespace.nsid,
                namespace.backend.description,
                block_bytes,
            )
        ready()
    finally:
        namespace.format_remaining = 0
        if namespace.blocked_status is Status.FORMAT_IN_PROGRESS:
            namespace.block_access(afterwards)


def _before(metadata_store: MetadataStore | None) -> Any:
    """Return the stored format to restore after a failure. A format that was interrupted is not tried a third time."""
    block_bytes = None if metadata_store is None else formatted_block_bytes(metadata_store)
    return None if block_bytes is None else {"block_bytes": block_bytes}


async def _undo(metadata_store: MetadataStore | None, before: Any, namespace: Namespace, block_bytes: int) -> bool:
    """Restore the old format; return whether everything but the data is as before."""
    try:
        if namespace.backend.capabilities.block_bytes != block_bytes:
            namespace.backend.set_block_bytes(block_bytes)
        await _put(metadata_store, before)
    except OSError as error:
        logger.error("namespace %d: its old format could not be stored: %s", namespace.nsid, error.strerror or error)
        return False
    return True


async def _erase(runtime: Runtime, namespace: Namespace, secure: bool) -> None:
    total = max(bytes_to_erase(namespace.backend, secure=secure), 1)
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        namespace.format_remaining = 100 - min(done * 100 // total, 100)

    await erase(runtime, namespace.backend, secure=secure, report=report)


def interrupted(namespace: Namespace) -> bool | None:
    """Return None unless a format was interrupted, else whether that format was to be a secure one."""
    metadata_store = _metadata_store(namespace)
    stored = None if metadata_store is None else metadata_store.get(FORMAT_SECTION)
    try:
        return None if stored is None or stored.get("erase") is None else bool(stored["erase"])
    except AttributeError:
        return None


async def forget_interrupted(namespace: Namespace) -> None:
    """Forget a format that was interrupted. Raises `OSError` when that cannot be stored."""
    if interrupted(namespace) is not None:
        await _put(_metadata_store(namespace), {"block_bytes": namespace.block_bytes})


async def resume(runtime: Runtime, namespace: Namespace, *, secure: bool, ready: Callable[[], object]) -> None:
    """Finish a format that the end of the last process has interrupted: the backend has the new blocks already."""
    logger.warning("namespace %d: a format was interrupted, and goes on", namespace.nsid)
    try:
        await format_namespace(runtime, namespace, namespace.block_bytes, secure=secure, ready=ready)
    except CommandError as error:
        logger.error("%s", error)
