"""Enhanced Controller, Controller and Namespace Metadata: what a host notes down about itself, read back as it was.

Not saveable: a controller level reset forgets it, for the host that comes next is another one.
"""

from __future__ import annotations

from functools import partial

from nvmeof.spec.enums import FeatureId
from nvmeof.spec.host_metadata import (
    ElementAction,
    MetadataElement,
    build_host_metadata,
    parse_host_metadata,
)
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.rows.features import (
    FeatureSpec,
    Scope,
    Value,
    check_bits,
    constant,
    invalid,
    invalid_data,
)
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller

_EA_SHIFT = 13
_EMPTY = build_host_metadata(())


def _key(fid: int, sqe: Sqe) -> tuple[int, int]:
    """Return the key of a namespace's metadata: per controller and namespace."""
    return fid, sqe.nsid if fid == FeatureId.NAMESPACE_METADATA else 0


def _read(fid: int, controller: Controller, sqe: Sqe) -> Value:
    return controller.features.values.get(_key(fid, sqe), Value(0, _EMPTY))


def _check(fid: int, controller: Controller, sqe: Sqe) -> None:
    check_bits("Host Metadata", sqe.cdw11, 3 << _EA_SHIFT)
    action = sqe.cdw11 >> _EA_SHIFT & 3
    enhanced = fid == FeatureId.ENHANCED_CONTROLLER_METADATA
    if action != ElementAction.DELETE_MULTIPLE and action != (
        ElementAction.ADD_MULTIPLE if enhanced else ElementAction.ADD_OR_REPLACE
    ):
        raise invalid(f"element action {action:02b}b is not for feature {fid:02X}h", bit=_EA_SHIFT)


def _changed(current: list[MetadataElement], given: list[MetadataElement], action: int) -> list[MetadataElement]:
    if action == ElementAction.ADD_MULTIPLE:
        return current + given
    gone = {element.type for element in given}
    remaining = [element for element in current if element.type not in gone]
    if action == ElementAction.DELETE_MULTIPLE:
        if any(element.value for element in given):
            raise ValueError("a metadata element that is to be deleted has a value")
        return remaining
    if len(gone) != len(given):
        raise ValueError("two metadata elements are of one type")
    return remaining + given


def _apply(fid: int, controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    """Apply all descriptors or none."""
    assert data is not None
    current = _read(fid, controller, sqe).data
    assert current is not None
    try:
        elements = _changed(parse_host_metadata(current), parse_host_metadata(data), sqe.cdw11 >> _EA_SHIFT & 3)
        result = build_host_metadata(elements)
    except ValueError as error:
        raise invalid_data(str(error)) from None
    controller.features.values[_key(fid, sqe)] = Value(0, result)
    return 0


def _row(fid: FeatureId, name: str, scope: Scope) -> FeatureSpec:
    return FeatureSpec(
        fid,
        name,
        partial(_read, fid),
        constant(0, _EMPTY),
        partial(_apply, fid),
        discovery=False,
        scope=scope,
        check=partial(_check, fid),
        data_bytes=len(_EMPTY),
    )


ROWS = Rows(
    features=(
        _row(FeatureId.ENHANCED_CONTROLLER_METADATA, "Enhanced Controller Metadata", Scope.CONTROLLER),
        _row(FeatureId.CONTROLLER_METADATA, "Controller Metadata", Scope.CONTROLLER),
        _row(FeatureId.NAMESPACE_METADATA, "Namespace Metadata", Scope.NAMESPACE),
    ),
)
