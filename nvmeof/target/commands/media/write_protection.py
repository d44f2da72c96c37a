"""Namespace Write Protection Config, Feature 84h (NVMe Base, Namespace Write Protection).

The states Write Protect Until Power Cycle and Permanent Write Protect are not offered: they are controlled through a
Replay Protected Memory Block, and there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable

from nvmeof.spec.enums import FeatureId
from nvmeof.spec.media import WriteProtection
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.rows.features import (
    FeatureSpec,
    Scope,
    Value,
    check_bits,
    constant,
    invalid,
    namespace_of,
)
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller

_STATE_MASK = 0b111


def _read(controller: Controller, sqe: Sqe) -> Value:
    return Value(WriteProtection.PROTECTED if namespace_of(controller, sqe).write_protected else WriteProtection.NONE)


def _check(controller: Controller, sqe: Sqe) -> None:
    check_bits("Namespace Write Protection Config", sqe.cdw11, _STATE_MASK)
    if sqe.cdw11 > WriteProtection.PROTECTED:
        raise invalid(f"the write protection state {sqe.cdw11} is not supported")


def _apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    """Protect at once; an end of the protection takes effect when it is stored."""
    namespace = namespace_of(controller, sqe)
    if not sqe.cdw11 or namespace.write_protected:
        return 0
    namespace.protect(True)
    # No write comes after this, and what came before is on the media when it completes.
    pending = namespace.flush()
    return 0 if pending is None else _flushed(pending)


async def _flushed(pending: Awaitable[None]) -> int:
    await pending
    return 0


def _restore(controller: Controller, sqe: Sqe, value: Value) -> None:
    namespace_of(controller, sqe).protect(bool(value.dw0))


def _stored(controller: Controller, sqe: Sqe) -> None:
    namespace = namespace_of(controller, sqe)
    if not sqe.cdw11 and namespace.write_protected:
        namespace.protect(False)
    controller.subsystem.attributes_changed(namespace)


ROWS = Rows(
    features=(
        FeatureSpec(
            FeatureId.NAMESPACE_WRITE_PROTECTION_CONFIG,
            "Namespace Write Protection Config",
            _read,
            constant(WriteProtection.NONE),
            _apply,
            scope=Scope.NAMESPACE,
            persistent=True,
            managing=True,
            check=_check,
            restore=_restore,
            stored=_stored,
            to_keep=lambda controller, sqe: Value(sqe.cdw11),
        ),
    ),
)
