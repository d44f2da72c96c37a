"""Commands that can still be given up: what each of them waits for is shown by its CID."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Protocol, TypeVar, runtime_checkable

from nvmeof.errors import CommandError
from nvmeof.spec.status import Status

T = TypeVar("T")


@runtime_checkable
class Abandonable(Protocol):
    """Something that is waited for and may be given up, such as a file backend's operation in its threads' queue."""

    def abandon(self) -> bool:
        """Give it up. True: it is not done, now or later, and fails at once with `ECANCELED`.

        False: it has begun; it may stop on its way, and fail so.
        """
        ...

    def keep(self) -> None:
        """Never give it up from now on, nor stop on its way."""
        ...


class Watched:
    """Awaits something; meanwhile `waiting[cid]` is the very future that is waited for."""

    __slots__ = ("_cid", "_pending", "_waiting")

    def __init__(self, waiting: dict[int, object], cid: int, pending: Awaitable[T]) -> None:
        self._waiting = waiting
        self._cid = cid
        self._pending: Awaitable[Any] = pending

    def __await__(self) -> Generator[Any, Any, Any]:
        waiting, cid = self._waiting, self._cid
        inner = self._pending.__await__()
        try:
            future = next(inner)
            while True:
                waiting[cid] = future
                try:
                    sent = yield future
                except BaseException as error:
                    future = inner.throw(error)
                else:
                    future = inner.send(sent)
        except StopIteration as stop:
            return stop.value
        finally:
            waiting.pop(cid, None)


class ToItsEnd:
    """Awaits something that is not given up any more: what others have done meanwhile goes by it."""

    __slots__ = ("_pending",)

    def __init__(self, pending: Awaitable[T]) -> None:
        self._pending: Awaitable[Any] = pending

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._pending.__await__()
        try:
            future = next(inner)
            while True:
                if isinstance(future, Abandonable):
                    future.keep()
                try:
                    sent = yield future
                except BaseException as error:
                    future = inner.throw(error)
                else:
                    future = inner.send(sent)
        except StopIteration as stop:
            return stop.value


def abandon(waiting: object) -> bool:
    """Give up what a command waits for, if that is possible."""
    return isinstance(waiting, Abandonable) and waiting.abandon()


def aborted_by_request(message: str = "aborted by request") -> CommandError:
    """For a command that an Abort or Cancel command named."""
    return CommandError(Status.ABORTED_BY_REQUEST, dnr=False, message=message)
