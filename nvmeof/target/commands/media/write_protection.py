"""Namespace Write Protection Config, Feature 84h (NVMe Base, Namespace Write Protection).

The states Write Protect Until Power Cycle and Permanent Write Protect are not offered: they are controlled through a
Replay Protected Memory Block, and there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable

from nvmeof.errors import CommandError
from nvmeof.spec.enums import FeatureId
from nvmeof.spec.media import WriteProtection
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.rows.features import (
    FeatureSpec,
    Scope,
    Value,
    add_features,
    check_bits,
    constant,
    invalid,
    namespace_of,
)
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.namespace import Namespace

_STATE_MASK = 0b111


def _read(controller: Controller, sqe: Sqe) -> Value:
    return Value(WriteProtection.PROTECTED if namespace_of(controller, sqe).write_protected else WriteProtection.NONE)


def _check(controller: Controller, sqe: Sqe) -> None:
    check_bits("Namespace Write Protection Config", sqe.cdw11, _STATE_MASK)
    if sqe.cdw11 > WriteProtection.PROTECTED:
        raise invalid(f"the write protection state {sqe.cdw11} is not supported")


def _apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    namespace = namespace_of(controller, sqe)
    before, wanted = namespace.write_protected, bool(sqe.cdw11)
    if wanted == before:
        return 0
    namespace.protect(wanted)
    # No write comes after this, and what came before is on the media when it completes.
    try:
        pending = namespace.flush() if wanted else None
    except CommandError:
        namespace.protect(before)
        raise
    if pending is not None:
        return _flushed(controller, namespace, pending)
    controller.subsystem.attributes_changed(namespace)
    return 0


async def _flushed(controller: Controller, namespace: Namespace, pending: Awaitable[None]) -> int:
    try:
        await pending
    except CommandError:
        namespace.protect(False)
        raise
    controller.subsystem.attributes_changed(namespace)
    return 0


add_features(
    FeatureSpec(
        FeatureId.NAMESPACE_WRITE_PROTECTION_CONFIG,
        "Namespace Write Protection Config",
        _read,
        constant(WriteProtection.NONE),
        _apply,
        scope=Scope.NAMESPACE,
        persistent=True,
        check=_check,
    )
)
