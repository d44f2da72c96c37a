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
from nvmeof.target.commands.features import (
    FeatureSpec,
    Scope,
    Value,
    add_features,
    check_bits,
    constant,
    invalid,
    namespace_of,
)
from nvmeof.target.controller import Controller
from nvmeof.target.namespace import Namespace

_STATE_MASK = 0b111


def _read(controller: Controller, sqe: Sqe) -> Value:
    return Value(WriteProtection.PROTECTED if namespace_of(controller, sqe).write_protected else WriteProtection.NONE)


def _check(controller: Controller, sqe: Sqe) -> None:
    check_bits("Namespace Write Protection Config", sqe.cdw11, _STATE_MASK)
    if sqe.cdw11 > WriteProtection.PROTECTED:
        raise invalid(f"the write protection state {sqe.cdw11} is not supported")


def _apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    namespace = namespace_of(controller, sqe)
    if not sqe.cdw11:
        namespace.protect(False)
        return 0
    # No write comes after this, and what came before is on the media when it completes.
    before = namespace.write_protected
    namespace.protect(True)
    try:
        pending = namespace.flush()
    except CommandError:
        namespace.protect(before)
        raise
    return 0 if pending is None else _flushed(namespace, before, pending)


async def _flushed(namespace: Namespace, before: bool, pending: Awaitable[None]) -> int:
    try:
        await pending
    except CommandError:
        namespace.protect(before)
        raise
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
