"""Get Features and Set Features: one row per feature (NVMe Base, Feature definitions).

No feature is saveable or namespace specific. A row's `apply` validates what the host sends and makes it so; its `read`
gives the current value. Both the Features Supported and Effects log and docs/supported.md are made from the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, FeatureId, FeatureSelect
from nvmeof.spec.features import (
    FEATURE_DATA_BYTES,
    HOST_BEHAVIOR_SUPPORT,
    TIMESTAMP,
    TIMESTAMP_ORIGIN_HOST,
    FeatureCapabilities,
    NumberOfQueues,
    build_timestamp,
)
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.base import Completion
from nvmeof.target.context import QueueContext
from nvmeof.target.controller import Controller
from nvmeof.target.events import SMART_CRITICAL_WARNINGS
from nvmeof.target.health import WARNING_KELVIN, report_temperature
from nvmeof.wire import build

_CDW10 = SQE.error_location("cdw10")
_CDW11 = SQE.error_location("cdw11")


@dataclass(frozen=True, slots=True)
class Value:
    """What Get Features answers: DW0 and, for some features, a data structure."""

    dw0: int = 0
    data: bytes | None = None


Read = Callable[[Controller, Sqe], Value]
Apply = Callable[[Controller, Sqe, "memoryview | None"], int]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A row. `read` and `default` answer Get Features; `apply` does Set Features and returns its DW0.

    `apply` None: not changeable; `refusal` is then the status. `supported` says whether this controller has it.
    """

    fid: int
    name: str
    read: Read
    default: Read
    apply: Apply | None = None
    discovery: bool = False  # also on discovery controllers
    supported: Callable[[Controller], bool] = lambda controller: True
    condition: str = ""  # `supported` in words
    refusal: Status = Status.FEATURE_NOT_CHANGEABLE

    @property
    def data_bytes(self) -> int:
        """Length of its data structure, 0 for none."""
        return FEATURE_DATA_BYTES.get(self.fid, 0)

    @property
    def capabilities(self) -> int:
        """DW0 of Get Features with SEL 011b."""
        return FeatureCapabilities.CHANGEABLE if self.apply is not None else FeatureCapabilities(0)


def _invalid(message: str, location: int = _CDW11) -> CommandError:
    return CommandError(Status.INVALID_FIELD, location, message=message)


def _constant(value: int) -> Read:
    return lambda controller, sqe: Value(value)


def _dword_row(fid: FeatureId, name: str, mask: int, default: int, *, discovery: bool = False) -> FeatureSpec:
    """A feature that is one dword, remembered, whose bits outside `mask` must be zero."""

    def apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
        if sqe.cdw11 & ~mask:
            raise _invalid(f"{name}: {sqe.cdw11:#x} has unsupported bits")
        controller.features.dwords[fid] = sqe.cdw11
        return 0

    return FeatureSpec(
        fid,
        name,
        lambda controller, sqe: Value(controller.features.dwords.get(fid, default)),
        _constant(default),
        apply,
        discovery,
    )


def _temperature_key(sqe: Sqe) -> tuple[int, int]:
    """TMPSEL and THSEL; only the composite temperature exists."""
    selected, kind = sqe.cdw11 >> 16 & 0xF, sqe.cdw11 >> 20 & 3
    if selected not in (0, 0xF):
        raise _invalid(f"there is no temperature sensor {selected}")
    if kind > 1:
        raise _invalid(f"threshold type {kind} is reserved")
    return selected, kind


def _temperature_default(controller: Controller, sqe: Sqe) -> Value:
    _, kind = _temperature_key(sqe)
    return Value(0 if kind else WARNING_KELVIN)


def _temperature_read(controller: Controller, sqe: Sqe) -> Value:
    _, kind = _temperature_key(sqe)
    return Value(controller.features.thresholds.get(kind, _temperature_default(controller, sqe).dw0))


def _temperature_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    _, kind = _temperature_key(sqe)
    controller.features.thresholds[kind] = sqe.cdw11 & 0xFFFF
    report_temperature(controller)
    return 0


def _power_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    if sqe.cdw11 & 0x1F:
        raise _invalid(f"there is no power state {sqe.cdw11 & 0x1F}")
    controller.features.dwords[FeatureId.POWER_MANAGEMENT] = sqe.cdw11 & 0xFF
    return 0


def _cache_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    controller.features.dwords[FeatureId.VOLATILE_WRITE_CACHE] = sqe.cdw11 & 1
    return 0


def _queues_granted(controller: Controller) -> int:
    limit = controller.subsystem.config.max_io_queues
    return NumberOfQueues(submission_queues=limit, completion_queues=limit).encode()


def _queues_read(controller: Controller, sqe: Sqe) -> Value:
    granted = controller.features.dwords.get(FeatureId.NUMBER_OF_QUEUES)
    return Value(_queues_granted(controller) if granted is None else granted)


def _queues_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    wanted = sqe.cdw11
    if wanted & 0xFFFF == 0xFFFF or wanted >> 16 == 0xFFFF:
        raise _invalid("a number of queues of FFFFh is reserved")
    if any(qid for qid in controller.queues):
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR, _CDW10, message="Number of Queues is set after I/O queues were created"
        )
    most = controller.subsystem.config.max_io_queues - 1
    granted = min(wanted & 0xFFFF, most) | min(wanted >> 16, most) << 16
    controller.features.dwords[FeatureId.NUMBER_OF_QUEUES] = granted
    return granted


def _events_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    allowed = controller.events.supported_bits | (0 if controller.discovery else SMART_CRITICAL_WARNINGS)
    if sqe.cdw11 & ~allowed:
        raise _invalid(f"asynchronous events {sqe.cdw11 & ~allowed:#x} are not supported")
    controller.events.enabled = sqe.cdw11
    report_temperature(controller)
    return 0


def _keep_alive_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    controller.set_kato(sqe.cdw11)
    return 0


def _timestamp_read(controller: Controller, sqe: Sqe) -> Value:
    features = controller.features
    elapsed = controller.runtime.now() - features.timestamp_set_at
    return Value(0, build_timestamp(features.timestamp_ms / 1000 + elapsed, origin=features.timestamp_origin))


def _timestamp_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    assert data is not None
    features = controller.features
    features.timestamp_ms = TIMESTAMP.parse(bytes(data)).milliseconds
    features.timestamp_set_at = controller.runtime.now()
    features.timestamp_origin = TIMESTAMP_ORIGIN_HOST
    return 0


def _behavior_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    assert data is not None
    fields = HOST_BEHAVIOR_SUPPORT.parse(bytes(data))
    if fields.acre > 1 or fields.lbafee > 1:
        raise _invalid("host behavior support takes 0 or 1", SQE.error_location("sgl_address"))
    if fields.etdas or fields.hdisns or fields.cdfe:
        raise _invalid("telemetry, dispersed namespaces and Copy are not supported", SQE.error_location("sgl_address"))
    controller.features.behavior = build(HOST_BEHAVIOR_SUPPORT, acre=fields.acre, lbafee=fields.lbafee)
    return 0


def _host_identifier(controller: Controller, sqe: Sqe) -> Value:
    if not sqe.cdw11 & 1:
        raise _invalid("over fabrics a host identifier has 128 bits (EXHID)")
    return Value(0, controller.hostid)


def _profile_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    if sqe.cdw11 & 0x1FF:
        raise CommandError(
            Status.IO_COMMAND_SET_COMBINATION_REJECTED,
            _CDW11,
            message=f"there is no I/O command set combination {sqe.cdw11 & 0x1FF}",
        )
    return 0


def _has_cache(controller: Controller) -> bool:
    return controller.subsystem.volatile_cache


FEATURES: dict[int, FeatureSpec] = {
    row.fid: row
    for row in (
        _dword_row(FeatureId.ARBITRATION, "Arbitration", 0xFFFFFF07, 0x07),
        FeatureSpec(
            FeatureId.POWER_MANAGEMENT,
            "Power Management",
            lambda controller, sqe: Value(controller.features.dwords.get(FeatureId.POWER_MANAGEMENT, 0)),
            _constant(0),
            _power_apply,
        ),
        FeatureSpec(
            FeatureId.TEMPERATURE_THRESHOLD,
            "Temperature Threshold",
            _temperature_read,
            _temperature_default,
            _temperature_apply,
        ),
        # DULBE needs namespaces that can tell deallocated blocks (NSFEAT.DAE): not here.
        _dword_row(FeatureId.ERROR_RECOVERY, "Error Recovery", 0xFFFF, 0),
        FeatureSpec(
            FeatureId.VOLATILE_WRITE_CACHE,
            "Volatile Write Cache",
            lambda controller, sqe: Value(int(controller.write_cache_enabled)),
            _constant(1),
            _cache_apply,
            supported=_has_cache,
            condition="where a namespace has a volatile write cache",
        ),
        FeatureSpec(
            FeatureId.NUMBER_OF_QUEUES,
            "Number of Queues",
            _queues_read,
            lambda controller, sqe: Value(_queues_granted(controller)),
            _queues_apply,
        ),
        _dword_row(FeatureId.WRITE_ATOMICITY_NORMAL, "Write Atomicity Normal", 1, 0),
        FeatureSpec(
            FeatureId.ASYNC_EVENT_CONFIGURATION,
            "Asynchronous Event Configuration",
            lambda controller, sqe: Value(controller.events.enabled),
            _constant(0),
            _events_apply,
            discovery=True,
        ),
        FeatureSpec(
            FeatureId.TIMESTAMP,
            "Timestamp",
            _timestamp_read,
            lambda controller, sqe: Value(0, build_timestamp(0, origin=0)),
            _timestamp_apply,
        ),
        FeatureSpec(
            FeatureId.KEEP_ALIVE_TIMER,
            "Keep Alive Timer",
            lambda controller, sqe: Value(controller.kato_ms),
            _constant(0),
            _keep_alive_apply,
            discovery=True,
        ),
        FeatureSpec(
            FeatureId.HOST_BEHAVIOR_SUPPORT,
            "Host Behavior Support",
            lambda controller, sqe: Value(0, controller.features.behavior),
            lambda controller, sqe: Value(0, bytes(512)),
            _behavior_apply,
        ),
        FeatureSpec(
            FeatureId.IO_COMMAND_SET_PROFILE, "I/O Command Set Profile", _constant(0), _constant(0), _profile_apply
        ),
        FeatureSpec(
            FeatureId.HOST_IDENTIFIER,
            "Host Identifier",
            _host_identifier,
            _host_identifier,
            # Connect has set it already, and it can't be set twice.
            refusal=Status.COMMAND_SEQUENCE_ERROR,
        ),
    )
}


def add_features(*rows: FeatureSpec) -> None:
    """Add features that other modules make; each has one row."""
    for row in rows:
        if row.fid in FEATURES:
            raise ValueError(f"{row.name}: {row.fid:02X}h has a row already")
        FEATURES[row.fid] = row


def _row(ctx: QueueContext, sqe: Sqe) -> FeatureSpec:
    controller = ctx.controller
    assert controller is not None
    row = FEATURES.get(sqe.cdw10 & 0xFF)
    if row is None or not row.supported(controller) or (controller.discovery and not row.discovery):
        raise _invalid(f"feature {sqe.cdw10 & 0xFF:#04x} is not supported", _CDW10)
    return row


def _select(sqe: Sqe) -> int:
    return sqe.cdw10 >> 8 & 7


def get_bytes(ctx: QueueContext, sqe: Sqe) -> int:
    """Length rule of Get Features."""
    return 0 if _select(sqe) == FeatureSelect.SUPPORTED_CAPABILITIES else _row(ctx, sqe).data_bytes


def set_bytes(ctx: QueueContext, sqe: Sqe) -> int:
    """Length rule of Set Features."""
    return _row(ctx, sqe).data_bytes


def get_features(ctx: QueueContext, sqe: Sqe, data: memoryview | None) -> Completion:
    """Current, default or saved value, or the capabilities. What cannot be saved has its default as saved value."""
    row, select = _row(ctx, sqe), _select(sqe)
    if select > FeatureSelect.SUPPORTED_CAPABILITIES:
        raise _invalid(f"SEL {select} is reserved", SQE.error_location("cdw10", 8))
    if select == FeatureSelect.SUPPORTED_CAPABILITIES:
        return Completion(dw0=row.capabilities)
    assert ctx.controller is not None
    value = (row.read if select == FeatureSelect.CURRENT else row.default)(ctx.controller, sqe)
    return Completion(dw0=value.dw0, data=value.data)


def check_set_features(ctx: QueueContext, sqe: Sqe) -> None:
    """Everything that does not need the data: known, changeable, not to be saved, not for one namespace."""
    row = _row(ctx, sqe)
    if row.apply is None:
        raise CommandError(row.refusal, _CDW10, message=f"{row.name} cannot be changed")
    if sqe.cdw10 >> 31:
        raise CommandError(
            Status.FEATURE_NOT_SAVEABLE, SQE.error_location("cdw10", 31), message=f"{row.name} cannot be saved"
        )
    if sqe.nsid not in (0, NSID_ALL):
        raise CommandError(
            Status.FEATURE_NOT_NAMESPACE_SPECIFIC,
            SQE.error_location("nsid"),
            message=f"{row.name} is not namespace specific",
        )


def set_features(ctx: QueueContext, sqe: Sqe, data: memoryview | None) -> Completion:
    """Change a feature's current value, until the controller is reset."""
    row = _row(ctx, sqe)
    assert ctx.controller is not None and row.apply is not None
    return Completion(dw0=row.apply(ctx.controller, sqe, data))
