"""Commands that can still be given up: what each of them waits for is shown by its CID."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Generator
from typing import Any, Protocol, TypeVar, runtime_checkable

from nvmeof.errors import CommandError
from nvmeof.spec.status import Status

T = TypeVar("T")


@runtime_checkable
class Abandonable(Protocol):
    """An awaited operation that can be abandoned, such as a file backend's in the queue of its threads."""

    def abandon(self) -> bool:
        """Abandon the operation. True: it is never executed, and fails at once with `ECANCELED`. False: it has begun,
        and may stop between two pieces with the same error.
        """
        ...

    def keep(self) -> None:
        """Make the command uninterruptible."""
        ...


def _wait(pending: Awaitable[Any], seen: Callable[[object], None]) -> Generator[Any, Any, Any]:
    """Await something; each future that is waited for on the way is shown to `seen` first."""
    inner = pending.__await__()
    try:
        future = next(inner)
        while True:
            seen(future)
            try:
                sent = yield future
            except BaseException as error:
                future = inner.throw(error)
            else:
                future = inner.send(sent)
    except StopIteration as stop:
        return stop.value
    finally:
        pending = inner = future = None  # type: ignore[assignment]  # an error that the future holds refers to this frame


class AbortableAwait:
    """An await that an abort can end: `waiting[cid]` is the future while it is awaited. A command that is in `aborting`
    at its first await ends there.
    """

    __slots__ = ("_aborting", "_cid", "_pending", "_waiting")

    def __init__(
        self, waiting: dict[int, object], cid: int, pending: Awaitable[T], aborting: Container[int] = ()
    ) -> None:
        self._waiting = waiting
        self._cid = cid
        self._pending: Awaitable[Any] = pending
        self._aborting: Container[int] | None = aborting

    def _seen(self, future: object) -> None:
        self._waiting[self._cid] = future
        if self._aborting is not None:
            aborting, self._aborting = self._aborting, None
            if self._cid in aborting:
                abandon(future)

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            return (yield from _wait(self._pending, self._seen))
        finally:
            self._waiting.pop(self._cid, None)
            del self._pending  # as in `_wait`


class Uninterruptible:
    """An await that an abort cannot end."""

    __slots__ = ("_pending",)

    def __init__(self, pending: Awaitable[T]) -> None:
        self._pending: Awaitable[Any] = pending

    def __await__(self) -> Generator[Any, Any, Any]:
        pending = self._pending
        del self._pending  # as in `_wait`; it is awaited once
        return _wait(pending, _keep)


def _keep(future: object) -> None:
    if isinstance(future, Abandonable):
        future.keep()


def abandon(waiting: object) -> bool:
    """Abandon the operation that a command waits for, if that is possible; return whether it was."""
    return isinstance(waiting, Abandonable) and waiting.abandon()


def aborted_by_request(message: str = "aborted by request") -> CommandError:
    """Make the error of a command that an Abort or Cancel command named."""
    return CommandError(Status.ABORTED_BY_REQUEST, dnr=False, message=message)
