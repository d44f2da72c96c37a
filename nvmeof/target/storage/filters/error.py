"""``error:kind=write,errno=ENOSPC,rate=0.01``: a part of the operations fails, the same ones in every run.

The draws come from a generator with a fixed seed, so a run with the same operations fails at the same ones. With
``after=N`` the first N operations of the kind succeed; with ``count=N`` at most N fail.
"""

from __future__ import annotations

import errno as errno_module
import os
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.filter import Kind, OperationFilter

T = TypeVar("T")
OPTIONS: Final = ("kind", "errno", "rate", "after", "count", "seed")
SUMMARY: Final = "operations fail: error:kind=write,errno=ENOSPC,rate=0.01"
_MOST: Final = 1 << 62


class ErrorFilter(OperationFilter):
    """Fail operations of `kinds` with an `errno`, each with the probability `rate` (0 to 1), drawn from `seed`.

    `after` operations are left alone first; at most `count` fail (None: without a limit). `failed` counts them.
    """

    label = "error"

    def __init__(
        self,
        next: Backend,
        *,
        kinds: Collection[Kind] = tuple(Kind),
        errno: int = errno_module.EIO,
        rate: float = 1.0,
        after: int = 0,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(next)
        self.kinds = frozenset(kinds)
        self.errno = errno
        self.rate = rate
        self.failed = 0
        self._flushes_failed = 0
        self._after = after
        self._count = count
        self._random = random.Random(seed)

    def around(self, kind: Kind, offset: int, length: int, call: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T]:
        if kind in self.kinds and self._fails():
            self.failed += 1
            self._flushes_failed += kind is Kind.FLUSH
            raise OSError(self.errno, os.strerror(self.errno))
        return call()

    @property
    def sync_failures(self) -> int:  # type: ignore[override]
        """Count the failed Flushes, after which data may be lost: each host gets an error once."""
        return self.next.sync_failures + self._flushes_failed

    @property
    def sync_error(self) -> OSError | None:  # type: ignore[override]
        return self.next.sync_error or OSError(self.errno, os.strerror(self.errno))

    def _fails(self) -> bool:
        if self._after:
            self._after -= 1
            return False
        return (self._count is None or self.failed < self._count) and self._random.random() < self.rate


def make(next: Backend, arguments: Arguments) -> Backend:
    """Make the filter from the text of a namespace."""
    kinds = {"all": tuple(Kind), **{kind.value: (kind,) for kind in Kind}}
    name = arguments.text("errno", "EIO") or "EIO"
    code = getattr(errno_module, name, None)
    if not isinstance(code, int):
        raise ConfigurationError(f"error: errno is a name such as EIO or ENOSPC, not {name!r}")
    count = arguments.number("count", -1, least=0, most=_MOST)
    return ErrorFilter(
        next,
        kinds=arguments.choice("kind", kinds, "all"),
        errno=code,
        rate=arguments.number("rate", 1.0, least=0, most=1),
        after=int(arguments.number("after", 0, least=0, most=_MOST)),
        count=None if count < 0 else int(count),
        seed=int(arguments.number("seed", 0, least=0, most=_MOST)),
    )
