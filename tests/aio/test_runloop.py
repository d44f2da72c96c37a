"""Choosing the event loop."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from nvmeof.aio import runloop
from nvmeof.errors import ConfigurationError


async def name() -> str:
    return runloop.loop_name()


def test_stock_asyncio_on_demand() -> None:
    assert runloop.run(name(), uvloop=False) == "asyncio"


def test_uvloop_where_it_exists() -> None:
    pytest.importorskip("uvloop", reason="pip install uvloop")
    assert runloop.run(name()) == "uvloop"
    assert runloop.run(name(), uvloop=True) == "uvloop"
    assert runloop.loop_name() == "uvloop"


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def import_module(wanted: str, package: str | None = None) -> Any:
        if wanted == "uvloop":
            raise ImportError(wanted)
        return real(wanted, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert runloop.run(name()) == "asyncio"
    assert runloop.loop_name() == "asyncio"
    with pytest.raises(ConfigurationError, match="uvloop is not installed"):
        runloop.run(name(), uvloop=True)


async def test_name_of_the_running_loop(request: pytest.FixtureRequest) -> None:
    assert runloop.loop_name() in request.node.name


def test_result_and_error_pass() -> None:
    async def fail() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        runloop.run(fail())
