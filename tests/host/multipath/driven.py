"""A subsystem over the paths of the model, for tests in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress, connect_multipath

from .model import BLOCK_BYTES, SUBNQN, ModelDevice
from .virtual import run

HOSTNQN = "nqn.2026-01.org.example:host"


async def connected(device: ModelDevice, *ports: int, **options: Any) -> HostSubsystem:
    where = [PathAddress(f"p{port}") for port in ports or range(len(device.ports))]
    chosen = {"subnqn": SUBNQN, "transport": "model", "hostnqn": HOSTNQN, "registry": DeviceRegistry(device)}
    return await connect_multipath(*where, **{**chosen, **options})


def drive(device: ModelDevice, body: Callable[[HostSubsystem], Awaitable[None]], **options: Any) -> None:
    """Run ``body`` with a subsystem over all ports, in virtual time."""

    async def whole() -> None:
        async with await connected(device, **options) as subsystem:
            await body(subsystem)

    run(whole())


def block(value: int) -> bytes:
    return bytes([value]) * BLOCK_BYTES


def executed(device: ModelDevice) -> list[int]:
    return [port.executed for port in device.ports]
