"""Serving from the command line: what the target's process does with its heap."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest

from nvmeof.target.cli import serve as module
from nvmeof.target.cli.serve import serve


class Enough(Exception):
    """The test has seen what it came for."""


class Node:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.me = self


class StubTarget:
    """Makes garbage and something that stays while it starts."""

    config = SimpleNamespace(max_connections=16)

    def __init__(self) -> None:
        self.stays: list[Node] = []
        self.garbage: weakref.ref[Node]
        self.frozen_before = gc.get_freeze_count()
        self.administration = SimpleNamespace(describe=lambda: None)

    async def start(self) -> None:
        self.garbage = weakref.ref(Node())
        self.stays = [Node() for _ in range(1000)]
        self.frozen_before = gc.get_freeze_count()

    async def stop(self) -> None:
        pass


async def test_what_is_there_after_the_start_is_kept_from_the_collector(monkeypatch):
    """A full collection would look at all of it, every time; what is garbage by then is not kept for ever."""
    target = StubTarget()
    seen = []

    def facts(*given: object) -> None:
        seen.append((gc.get_freeze_count() - target.frozen_before, target.garbage()))
        raise Enough

    monkeypatch.setattr(module, "make_target", lambda options, audit: target)
    monkeypatch.setattr(module, "facts", facts)
    gc.disable()
    try:
        with pytest.raises(Enough):
            await serve(
                SimpleNamespace(output="text", config=None, mdns=False, metrics=None, control=None, audit_log=None)
            )
        [(frozen, garbage)] = seen
        assert frozen >= len(target.stays)
        assert garbage is None
        assert not any(isinstance(each, Node) for each in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.enable()
