"""Which event loop: uvloop where it is installed, else asyncio's own. Nothing in this package needs either."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from nvmeof.errors import ConfigurationError

T = TypeVar("T")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def loop_factory(*, uvloop: bool | None = None) -> LoopFactory | None:
    """Return the factory of the loop; None stands for asyncio's.

    `uvloop`: True demands it (ConfigurationError where it is not installed), False avoids it, None takes it where it
    exists.
    """
    if uvloop is False:
        return None
    try:
        module = importlib.import_module("uvloop")
    except ImportError:
        if uvloop:
            raise ConfigurationError("uvloop is not installed: pip install 'nvmeof-mptcp[fast]' adds it") from None
        return None
    factory: LoopFactory = module.new_event_loop
    return factory


def run(coroutine: Coroutine[Any, Any, T], *, uvloop: bool | None = None) -> T:
    """Run a coroutine as `asyncio.run` does, on uvloop where it is installed (see `loop_factory`)."""
    try:
        factory = loop_factory(uvloop=uvloop)
    except ConfigurationError:
        coroutine.close()
        raise
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)


def loop_name() -> str:
    """Return 'uvloop' or 'asyncio': the running loop, or the one that `run` would use."""
    try:
        module = type(asyncio.get_running_loop()).__module__
    except RuntimeError:
        return "asyncio" if loop_factory() is None else "uvloop"
    return module.partition(".")[0]
