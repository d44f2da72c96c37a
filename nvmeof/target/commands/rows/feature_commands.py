"""Get Features and Set Features: the way of both through a feature's row (NVMe Base, Feature definitions).

Which NSID goes with which scope, what SEL chooses, what SV saves, and what a reset leaves, is alike for all features.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.runtime import settled
from nvmeof.spec.enums import NSID_ALL, AdminOpcode, AnaState, FeatureSelect
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.admission import check_path
from nvmeof.target.commands.dispatch.base import Completion, check_nsid, not_active
from nvmeof.target.commands.managing import audited, check_managing
from nvmeof.target.commands.rows.feature_saving import note_change, save_change
from nvmeof.target.commands.rows.features import FeatureSpec, FeatureTable, Scope, metadata_store_of
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.feature_values import Saved, Value, load, load_all, save

_FID = SQE.error_location("cdw10")
_SEL = SQE.error_location("cdw10", 8)
_SV = SQE.error_location("cdw10", 31)
_NSID = SQE.error_location("nsid")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """A Get Features or Set Features command, decoded. `row`: None for a feature that the target does not have.

    `select` is SEL of Get Features, `save` SV of Set Features. What the other dwords mean is the row's to know.
    """

    row: FeatureSpec | None
    fid: int
    select: int
    save: bool
    sqe: Sqe


def decode_features(ctx: AdminContext, sqe: Sqe) -> FeatureRequest:
    """Decode CDW10, and look the feature up."""
    fid = sqe.cdw10 & 0xFF
    return FeatureRequest(ctx.tables[FeatureTable].get(fid), fid, sqe.cdw10 >> 8 & 7, bool(sqe.cdw10 >> 31), sqe)


def _row(ctx: AdminContext, request: FeatureRequest) -> FeatureSpec:
    row, controller = request.row, ctx.controller
    if row is None or not row.supported(controller) or (controller.discovery and not row.discovery):
        raise CommandError(Status.INVALID_FIELD, _FID, message=f"feature {request.fid:#04x} is not supported")
    return row


def _check_attached(ctx: AdminContext, sqe: Sqe) -> None:
    """Check the NSID of a feature with the scope NAMESPACE (NVMe Base, Set Features command)."""
    if sqe.nsid not in ctx.namespaces:
        raise not_active(ctx, sqe.nsid)


def get_bytes(ctx: AdminContext, request: FeatureRequest) -> int:
    """Return the bytes of Get Features' data."""
    return 0 if request.select == FeatureSelect.SUPPORTED_CAPABILITIES else _row(ctx, request).data_bytes


def set_bytes(ctx: AdminContext, request: FeatureRequest) -> int:
    """Return the bytes of Set Features' data."""
    row = _row(ctx, request)
    return row.data_bytes if row.transfer_bytes is None else row.transfer_bytes(request.sqe)


def check_get_features(ctx: AdminContext, request: FeatureRequest) -> None:
    """Check FID, SEL, and the NSID of a feature with the scope NAMESPACE (NVMe Base, Get Features command)."""
    row, select, sqe = _row(ctx, request), request.select, request.sqe
    if select > FeatureSelect.SUPPORTED_CAPABILITIES:
        raise CommandError(Status.INVALID_FIELD, _SEL, message=f"SEL {select} is reserved")
    if row.scope is Scope.NAMESPACE and select != FeatureSelect.SUPPORTED_CAPABILITIES:
        if sqe.nsid == NSID_ALL:
            raise CommandError(row.all_refusal, _NSID, message=f"{row.name} cannot be reported for NSID FFFFFFFFh")
        _check_attached(ctx, sqe)
        if row.needs_access:
            check_path(ctx, sqe.nsid)


def get_features(ctx: AdminContext, request: FeatureRequest, data: memoryview | None) -> Completion:
    """Return the current, default or saved value, or the capabilities. If no value was saved, the default is returned
    as the saved value."""
    row, select, sqe, controller = _row(ctx, request), request.select, request.sqe, ctx.controller
    if select == FeatureSelect.SUPPORTED_CAPABILITIES:
        return Completion(dw0=row.capabilities)
    # What the command means is looked at by `default` as well: a wrong selector has no saved value either.
    value = (row.read if select == FeatureSelect.CURRENT else row.default)(controller, sqe)
    if select == FeatureSelect.SAVED and (row.saveable or row.persistent):
        stored = load(metadata_store_of(row.scope, controller, sqe), row.fid, row.selector(sqe))
        value = value if stored is None else stored.value
    return Completion(dw0=value.dw0, data=value.data)


def _targets(ctx: AdminContext, row: FeatureSpec, sqe: Sqe) -> list[Sqe]:
    """Return the command once for each namespace that it applies to."""
    if row.scope is not Scope.NAMESPACE or sqe.nsid != NSID_ALL:
        return [sqe]
    return [dataclasses.replace(sqe, nsid=nsid) for nsid in ctx.namespaces]


def _check_set_access(ctx: AdminContext, row: FeatureSpec, sqe: Sqe) -> None:
    """Raise the path related status where the ANA state is in the way of a Set Features (NVMe Base 8.1.1.10).

    Nothing is saved then, nothing is set for all namespaces, and nothing at all in Persistent Loss.
    """
    saves = row.persistent or bool(sqe.cdw10 >> 31)
    lost = any(
        ctx.controller.ana.state(ctx.namespaces[nsid].anagrpid) is AnaState.PERSISTENT_LOSS
        for nsid in (ctx.namespaces if sqe.nsid == NSID_ALL else (sqe.nsid,))
    )
    if row.needs_access or saves or lost or sqe.nsid == NSID_ALL:
        check_path(ctx, sqe.nsid)


def check_set_features(ctx: AdminContext, request: FeatureRequest) -> None:
    """Check what does not depend on the data: FID, changeable, saveable, NSID (NVMe Base, Set Features command)."""
    row, sqe = _row(ctx, request), request.sqe
    if row.managing:
        check_managing(ctx, row.name)
    if row.apply is None:
        raise CommandError(row.refusal, _FID, message=f"{row.name} cannot be changed")
    if request.save and not row.saveable:
        raise CommandError(Status.FEATURE_NOT_SAVEABLE, _SV, message=f"{row.name} cannot be saved")
    if row.scope is Scope.NAMESPACE:
        if sqe.nsid != NSID_ALL or not row.for_all:
            _check_attached(ctx, sqe)
        _check_set_access(ctx, row, sqe)
    elif sqe.nsid not in (0, NSID_ALL):
        check_nsid(ctx, sqe.nsid)
        raise CommandError(
            Status.FEATURE_NOT_NAMESPACE_SPECIFIC, _NSID, message=f"{row.name} is not namespace specific"
        )
    for each in _targets(ctx, row, sqe):
        row.check(ctx.controller, each)


def set_features(
    ctx: AdminContext, request: FeatureRequest, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Change a feature's current value, and its saved value when SV asks for that."""
    check_set_features(ctx, request)
    row = _row(ctx, request)
    return (audited(row.name, _set) if row.managing else _set)(ctx, request, data)


def _set(ctx: AdminContext, request: FeatureRequest, data: memoryview | None) -> Completion | Awaitable[Completion]:
    row = _row(ctx, request)
    targets = _targets(ctx, row, request.sqe)
    if len(targets) != 1:
        return _set_all(ctx, row, targets, data)
    result = _set_one(ctx, row, targets[0], data)
    return Completion(dw0=result) if isinstance(result, int) else _set_later(result)


async def _set_later(pending: Awaitable[int]) -> Completion:
    return Completion(dw0=await pending)


async def _set_all(ctx: AdminContext, row: FeatureSpec, targets: list[Sqe], data: memoryview | None) -> Completion:
    done: list[tuple[Sqe, Value]] = []
    for sqe in targets:
        # A namespace that was deleted during the save needs no value.
        if sqe.nsid in ctx.namespaces:
            before = row.read(ctx.controller, sqe)
            try:
                result = _set_one(ctx, row, sqe, data)
                if not isinstance(result, int):
                    await result
            except CommandError:
                await _take_back(ctx.controller, row, done)
                raise
            done.append((sqe, before))
    return Completion()


async def _take_back(controller: Controller, row: FeatureSpec, done: list[tuple[Sqe, Value]]) -> None:
    """Give namespaces the values that they had: the command has failed for another one."""
    for sqe, before in reversed(done):
        if row.restore is None or sqe.nsid not in controller.namespaces:
            continue
        row.restore(controller, sqe, before)
        if row.persistent or sqe.cdw10 >> 31:
            store, saved = (
                metadata_store_of(row.scope, controller, sqe),
                Saved((before.dw0, 0, 0, 0, 0), before.data, before),
            )
            try:
                await settled(save(store, row.fid, row.selector(sqe), saved))
            except OSError as error:
                logger.error("%s of namespace %d is stored as a failed command set it: %s", row.name, sqe.nsid, error)


def _set_one(ctx: AdminContext, row: FeatureSpec, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    saves = row.persistent or bool(sqe.cdw10 >> 31)
    return (save_change if saves else note_change)(ctx.controller, row, sqe, data)


def restore_features(features: FeatureTable, controller: Controller) -> None:
    """Make the saved values of the subsystem's controllers current in this one, which is new or was just reset."""
    for fid, saved in load_all(controller.subsystem.metadata_store):
        row = features.get(fid)
        if row is None or row.apply is None or row.scope is not Scope.CONTROLLER:
            continue
        if not row.supported(controller) or (controller.discovery and not row.discovery):
            continue
        words = {f"cdw{11 + i}": dword for i, dword in enumerate(saved.dwords)}
        sqe = Sqe(opcode=AdminOpcode.SET_FEATURES, cdw10=fid, **words)
        try:
            row.apply(controller, sqe, None if saved.data is None else memoryview(saved.data))
        except CommandError:
            continue  # saved when the target was configured in another way: the default it is
