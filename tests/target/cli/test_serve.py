"""Serving from the command line: the heap of the target's process."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest

from nvmeof.target.cli import serve as module
from nvmeof.target.cli.serve import serve


class Enough(Exception):
    """Ends the test, which has seen enough."""


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.me = self


class StubTarget:
    """A target that makes garbage and lasting objects while it starts."""

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


async def test_objects_of_the_start_are_hidden_from_the_collector(monkeypatch):
    """A full collection would visit all of these objects every time; garbage of the start is collected."""
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
