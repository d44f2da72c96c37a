"""Features of a controller that every target has: their rows."""

from __future__ import annotations

from nvmeof.errors import CommandError
from nvmeof.spec.enums import FeatureId
from nvmeof.spec.features import (
    HOST_BEHAVIOR_SUPPORT,
    TIMESTAMP,
    TIMESTAMP_ORIGIN_HOST,
    NumberOfQueues,
    build_timestamp,
)
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.features import (
    FeatureSpec,
    Value,
    add_features,
    check_bits,
    constant,
    dword,
    invalid,
    invalid_data,
    remembered,
)
from nvmeof.target.controller import Controller
from nvmeof.target.events import SMART_CRITICAL_WARNINGS
from nvmeof.target.health import WARNING_KELVIN, report_temperature
from nvmeof.wire import build

_CDW10 = SQE.error_location("cdw10")
_CDW11 = SQE.error_location("cdw11")


def _temperature_key(sqe: Sqe) -> tuple[int, int]:
    """TMPSEL and THSEL; only the composite temperature exists."""
    selected, kind = sqe.cdw11 >> 16 & 0xF, sqe.cdw11 >> 20 & 3
    if selected not in (0, 0xF):
        raise invalid(f"there is no temperature sensor {selected}")
    if kind > 1:
        raise invalid(f"threshold type {kind} is reserved")
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


def _power(controller: Controller, sqe: Sqe, data: bytes | None) -> Value:
    if sqe.cdw11 & 0x1F:
        raise invalid(f"there is no power state {sqe.cdw11 & 0x1F}")
    check_bits("Power Management", sqe.cdw11, 0xE0)
    return Value(sqe.cdw11)


def _queues_granted(controller: Controller) -> int:
    limit = controller.subsystem.config.max_io_queues
    return NumberOfQueues(submission_queues=limit, completion_queues=limit).encode()


def _queues_read(controller: Controller, sqe: Sqe) -> Value:
    granted = controller.features.values.get((FeatureId.NUMBER_OF_QUEUES, 0))
    return Value(_queues_granted(controller)) if granted is None else granted


def _queues_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    wanted = sqe.cdw11
    if wanted & 0xFFFF == 0xFFFF or wanted >> 16 == 0xFFFF:
        raise invalid("a number of queues of FFFFh is reserved")
    if any(qid for qid in controller.queues):
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR, _CDW10, message="Number of Queues is set after I/O queues were created"
        )
    most = controller.subsystem.config.max_io_queues - 1
    granted = min(wanted & 0xFFFF, most) | min(wanted >> 16, most) << 16
    controller.features.values[FeatureId.NUMBER_OF_QUEUES, 0] = Value(granted)
    return granted


def _events_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    allowed = controller.events.supported_bits | (0 if controller.discovery else SMART_CRITICAL_WARNINGS)
    if sqe.cdw11 & ~allowed:
        raise invalid(f"asynchronous events {sqe.cdw11 & ~allowed:#x} are not supported")
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
        raise invalid_data("host behavior support takes 0 or 1")
    if fields.etdas or fields.hdisns or fields.cdfe:
        raise invalid_data("telemetry, dispersed namespaces and Copy are not supported")
    controller.features.behavior = build(HOST_BEHAVIOR_SUPPORT, acre=fields.acre, lbafee=fields.lbafee)
    return 0


def _host_identifier(controller: Controller, sqe: Sqe) -> Value:
    if not sqe.cdw11 & 1:
        raise invalid("over fabrics a host identifier has 128 bits (EXHID)")
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


add_features(
    *(
        dword(FeatureId.ARBITRATION, "Arbitration", 0xFFFFFF07, 0x07, saveable=True),
        remembered(FeatureId.POWER_MANAGEMENT, "Power Management", constant(0), _power, saveable=True),
        FeatureSpec(
            FeatureId.TEMPERATURE_THRESHOLD,
            "Temperature Threshold",
            _temperature_read,
            _temperature_default,
            _temperature_apply,
        ),
        # DULBE needs namespaces that can tell deallocated blocks (NSFEAT.DAE): not here.
        dword(FeatureId.ERROR_RECOVERY, "Error Recovery", 0xFFFF, 0),
        dword(
            FeatureId.VOLATILE_WRITE_CACHE,
            "Volatile Write Cache",
            1,
            1,
            saveable=True,
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
        dword(FeatureId.WRITE_ATOMICITY_NORMAL, "Write Atomicity Normal", 1, 0, saveable=True),
        FeatureSpec(
            FeatureId.ASYNC_EVENT_CONFIGURATION,
            "Asynchronous Event Configuration",
            lambda controller, sqe: Value(controller.events.enabled),
            constant(0),
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
            constant(0),
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
            FeatureId.IO_COMMAND_SET_PROFILE, "I/O Command Set Profile", constant(0), constant(0), _profile_apply
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
)
