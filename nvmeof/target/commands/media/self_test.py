"""Device Self-test and its log page (NVMe Base, Device Self-test command)."""

from __future__ import annotations

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, AdminOpcode, CommandEffects, LogPageId, Oacs
from nvmeof.spec.log_pages import DEVICE_SELF_TEST, GetLogPage
from nvmeof.spec.media import SELF_TEST_RESULTS, SelfTestCode, SelfTestResult
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.admission import check_path
from nvmeof.target.commands.dispatch.base import (
    AnaRule,
    CommandRow,
    Completion,
    Decoded,
    NsidRule,
    decoded,
    not_active,
)
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.health import critical_warning
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.wire import build

_BYTES_PER_SECOND = 500_000_000
_CODE = SQE.error_location("cdw10")


def extended_minutes(subsystem: Subsystem) -> int:
    """Return EDSTT: the nominal minutes of an extended test of all namespaces."""
    size_bytes = sum(each.backend.capabilities.size_bytes for each in subsystem.namespaces.values())
    return min(size_bytes // (_BYTES_PER_SECOND * 60) + 1, 0xFFFF)


def _code(sqe: Sqe) -> int:
    """Read the self-test code (STC) of CDW10 (NVMe Base, Device Self-test command)."""
    return sqe.cdw10 & 0xF


def _chosen(ctx: AdminContext, sqe: Sqe) -> list[int]:
    """Return the NSIDs of the namespaces to test."""
    if sqe.nsid == 0:
        return []
    if sqe.nsid == NSID_ALL:
        return list(ctx.namespaces)
    if sqe.nsid in ctx.namespaces:
        return [sqe.nsid]
    raise not_active(ctx, sqe.nsid)


def check_self_test(ctx: AdminContext, request: Decoded[int]) -> None:
    """Check the self-test code and the NSID, and that no other self-test is running (NVMe Base, Device Self-test
    command)."""
    sqe, code = request.sqe, request.fields
    if code == SelfTestCode.ABORT:
        return
    if code not in (SelfTestCode.SHORT, SelfTestCode.EXTENDED):
        raise CommandError(Status.INVALID_FIELD, _CODE, message=f"there is no self-test {code:X}h")
    nsids = _chosen(ctx, sqe)
    check_path(ctx, sqe.nsid)
    if ctx.subsystem.self_test.running:
        raise CommandError(Status.SELF_TEST_IN_PROGRESS, dnr=False, message="a device self-test is in progress already")
    for nsid in nsids:
        blocked_status = ctx.namespaces[nsid].blocked_status
        if blocked_status is not None:
            raise CommandError(blocked_status, dnr=False, message=f"namespace {nsid}: {blocked_status.description}")


def self_test(ctx: AdminContext, request: Decoded[int], data: memoryview | None) -> Completion:
    """Execute Device Self-test. The test that it starts goes on after its completion."""
    check_self_test(ctx, request)
    sqe, controller = request.sqe, ctx.controller
    tests = controller.subsystem.self_test
    code = SelfTestCode(request.fields)
    if code is SelfTestCode.ABORT:
        tests.abort(SelfTestResult.ABORTED_BY_COMMAND)
        return Completion()
    tests.healthy = lambda: critical_warning(controller) == 0
    nsids = _chosen(ctx, sqe)
    tests.start(ctx.runtime, code, nsids, chosen=sqe.nsid not in (0, NSID_ALL), cntlid=controller.cntlid)
    return Completion()


def _log(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    tests = controller.subsystem.self_test
    results: list[dict[str, object]] = [
        {
            "status": result.result | result.code << 4,
            "segment": result.segment,
            "valid": result.valid,
            "power_on_hours": result.power_on_hours,
            "nsid": result.nsid,
            "failing_lba": result.lba,
            "sct": result.status >> 8,
            "sc": result.status & 0xFF,
        }
        for result in tests.results
    ]
    results += [{"status": SelfTestResult.NOT_USED} for _ in range(SELF_TEST_RESULTS - len(results))]
    return build(DEVICE_SELF_TEST, operation=tests.running, completion=tests.percent, results=results)


ROWS = Rows(
    admin=(
        CommandRow(
            opcode=AdminOpcode.DEVICE_SELF_TEST,
            name="Device Self-test",
            handler=self_test,
            decode=decoded(_code),
            check=check_self_test,
            nsid=NsidRule.HANDLER,
            effects=CommandEffects.SUPPORTED | CommandEffects.SUBSYSTEM_SCOPE,
            ana=AnaRule.FIELDS,
            oacs=Oacs.DEVICE_SELF_TEST,
            remark="short (samples of every namespace) and extended (every block), one at a time per subsystem",
        ),
    ),
    log_pages=(LogPageSpec(LogPageId.DEVICE_SELF_TEST, "Device Self-test", _log),),
)
