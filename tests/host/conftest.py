"""Fixtures of the host's tests: the in-memory device and controllers connected over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from nvmeof.host.client import HostController, connect
from nvmeof.host.device_registry import DeviceRegistry

from .fake_device import SUBNQN, FakeDevice

HOSTNQN = "nqn.2026-01.org.example:host"
Connect = Callable[..., Awaitable[HostController]]


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
async def connected(device: FakeDevice) -> AsyncIterator[Connect]:
    """``await connected(**options)``: a controller over ``device``, disconnected at the end."""
    made: list[HostController] = []

    async def run(**options: Any) -> HostController:
        registry = DeviceRegistry()
        registry.register(device)
        chosen = {"subnqn": SUBNQN, "transport": "fake", "hostnqn": HOSTNQN, "registry": registry, **options}
        controller = await connect("memory", **chosen)
        made.append(controller)
        return controller

    yield run
    device.intercept = None
    for controller in made:
        await controller.disconnect()
