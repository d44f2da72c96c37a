"""Features of a namespace: LBA Range Type, Error Recovery, Namespace Admin Label.

Their values are the namespace's for all controllers. A controller's reset leaves them; saved ones are stored with the
namespace's data.
"""

from __future__ import annotations

import itertools

from nvmeof.errors import CommandError
from nvmeof.spec.enums import FeatureId
from nvmeof.spec.features import LBA_RANGE_TYPE, NAMESPACE_ADMIN_LABEL_BYTES
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.rows.features import (
    Scope,
    Value,
    check_bits,
    constant,
    dword,
    invalid,
    invalid_data,
    namespace_of,
    remembered,
)
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.wire import build

_RANGE_BYTES = LBA_RANGE_TYPE.sizeof()
_RANGES_BYTES = 64 * _RANGE_BYTES
_RANGE_TYPES = frozenset((*range(5), *range(0x80, 0x100)))  # 00h general purpose to 04h swap, and vendor specific ones
_OVERWRITABLE = 1
_TLER = 0xFFFF
_DATA = SQE.error_location("sgl_address")


def _whole_namespace(controller: Controller, sqe: Sqe) -> Value:
    last = max(namespace_of(controller, sqe).size_blocks - 1, 0)
    return Value(0, build(LBA_RANGE_TYPE, attributes=_OVERWRITABLE, nlb=last).ljust(_RANGES_BYTES, b"\0"))


def _lba_ranges(controller: Controller, sqe: Sqe, data: bytes | None) -> Value:
    assert data is not None
    check_bits("LBA Range Type", sqe.cdw11, 0x3F)
    used = (sqe.cdw11 + 1) * _RANGE_BYTES
    size_blocks = namespace_of(controller, sqe).size_blocks
    taken: list[tuple[int, int]] = []
    for offset in range(0, used, _RANGE_BYTES):
        entry = LBA_RANGE_TYPE.parse(data[offset : offset + _RANGE_BYTES])
        if entry.type not in _RANGE_TYPES or entry.attributes > 3:
            raise invalid_data(f"LBA range {offset // _RANGE_BYTES}: type {entry.type}, attributes {entry.attributes}")
        end = entry.slba + entry.nlb + 1
        if end > size_blocks:
            raise CommandError(
                Status.LBA_OUT_OF_RANGE, _DATA, message=f"LBA range {entry.slba}..{end - 1}, of {size_blocks} blocks"
            )
        taken.append((entry.slba, end))
    taken.sort()
    for (_, end), (start, _) in itertools.pairwise(taken):
        if start < end:
            raise CommandError(Status.OVERLAPPING_RANGE, _DATA, message=f"block {start} is in two LBA ranges")
    return Value(sqe.cdw11, data[:used].ljust(_RANGES_BYTES, b"\0"))


def _label(controller: Controller, sqe: Sqe, data: bytes | None) -> Value:
    assert data is not None
    text, end, _ = data.partition(b"\0")
    if not end:
        raise invalid_data("the namespace's label is not terminated")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid_data(f"the namespace's label is not UTF-8: {error.reason}") from None
    return Value(0, data)


def _check_label(controller: Controller, sqe: Sqe) -> None:
    if not sqe.cdw10 >> 31:
        raise invalid("a namespace's label is always saved (SV)", "cdw10", 31)


ROWS = Rows(
    features=(
        remembered(
            FeatureId.LBA_RANGE_TYPE,
            "LBA Range Type",
            _whole_namespace,
            _lba_ranges,
            scope=Scope.NAMESPACE,
            saveable=True,
            for_all=False,
            data_bytes=_RANGES_BYTES,
        ),
        # TLER limits how long an error is recovered from: here nothing is tried twice, so any limit holds.
        dword(
            FeatureId.ERROR_RECOVERY,
            "Error Recovery",
            _TLER,
            scope=Scope.NAMESPACE,
            saveable=True,
            needs_access=True,
            condition="without DULBE: memory that was written at full speed does not tell which blocks are deallocated",
        ),
        remembered(
            FeatureId.NAMESPACE_ADMIN_LABEL,
            "Namespace Admin Label",
            constant(0, bytes(NAMESPACE_ADMIN_LABEL_BYTES)),
            _label,
            scope=Scope.NAMESPACE,
            saveable=True,
            check=_check_label,
            data_bytes=NAMESPACE_ADMIN_LABEL_BYTES,
        ),
    ),
)
