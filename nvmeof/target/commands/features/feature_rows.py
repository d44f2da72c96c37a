"""Features of a controller that every target has: their rows."""

from __future__ import annotations

from nvmeof.errors import CommandError
from nvmeof.spec.enums import AdminOpcode, FeatureId
from nvmeof.spec.features import (
    HOST_BEHAVIOR_SUPPORT,
    TIMESTAMP,
    TIMESTAMP_ORIGIN_HOST,
    NumberOfQueues,
    build_timestamp,
)
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.io.copy import COPY_FORMATS_TO_ENABLE
from nvmeof.target.commands.rows.features import (
    FeatureSpec,
    Value,
    check_bits,
    constant,
    dword,
    invalid,
    invalid_data,
    remembered,
)
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.events import SMART_CRITICAL_WARNINGS
from nvmeof.target.controller.health import WARNING_KELVIN, report_warnings
from nvmeof.target.controller.keep_alive import check_kato
from nvmeof.target.subsystem.persistent_events import timestamp_change
from nvmeof.wire import build

_ALL_SENSORS = 0xF
_HOST_IDENTIFIER_BYTES = 16
_CDW10 = SQE.error_location("cdw10")
_CDW11 = SQE.error_location("cdw11")


def _temperature(sqe: Sqe) -> int:
    """Return THSEL after a check of the whole dword. Only the composite temperature exists, and it has no
    hysteresis."""
    selected, kind = sqe.cdw11 >> 16 & 0xF, sqe.cdw11 >> 20 & 3
    if selected and not (selected == _ALL_SENSORS and sqe.opcode == AdminOpcode.SET_FEATURES):
        raise invalid(f"there is no temperature sensor {selected}", bit=16)
    if kind > 1:
        raise invalid(f"threshold type {kind} is reserved", bit=20)
    check_bits("Temperature Threshold", sqe.cdw11, 0x3FFFFF)
    return kind


def _temperature_default(controller: Controller, sqe: Sqe) -> Value:
    return Value(0 if _temperature(sqe) else WARNING_KELVIN)


def _temperature_read(controller: Controller, sqe: Sqe) -> Value:
    kelvin = controller.features.thresholds.get(_temperature(sqe))
    return _temperature_default(controller, sqe) if kelvin is None else Value(kelvin)


def _temperature_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    controller.features.thresholds[_temperature(sqe)] = sqe.cdw11 & 0xFFFF
    report_warnings(controller)
    return 0


def _temperature_restore(controller: Controller, sqe: Sqe, value: Value) -> None:
    controller.features.thresholds[_temperature(sqe)] = value.dw0


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
        raise invalid("a number of queues of FFFFh is reserved", bit=16 if wanted & 0xFFFF != 0xFFFF else 0)
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
    check_bits("Asynchronous Event Configuration", sqe.cdw11, allowed)
    controller.events.enabled = sqe.cdw11
    report_warnings(controller)
    return 0


def _keep_alive_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    check_kato(controller.subsystem.config, sqe.cdw11, _CDW11)
    controller.set_kato(sqe.cdw11)
    return 0


def _timestamp_read(controller: Controller, sqe: Sqe) -> Value:
    return Value(0, controller.timestamp)


def _timestamp_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    assert data is not None
    features = controller.features
    before = controller.timestamp
    since_reset_ms = int((controller.runtime.now() - features.reset_at) * 1000)
    features.timestamp_ms = TIMESTAMP.parse(bytes(data)).milliseconds
    features.timestamp_set_at = controller.runtime.now()
    features.timestamp_origin = TIMESTAMP_ORIGIN_HOST
    controller.record(EventType.TIMESTAMP_CHANGE, timestamp_change(before, since_reset_ms))
    return 0


def _behavior_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    """Store the behaviors that the host supports (Host Behavior Support)."""
    assert data is not None
    fields = HOST_BEHAVIOR_SUPPORT.parse(bytes(data))
    flags = {name: fields[name] for name in ("acre", "etdas", "lbafee", "hdisns")}
    for name, value in flags.items():
        if value > 1:
            raise invalid_data(f"{name.upper()} of Host Behavior Support is 0 or 1, not {value}")
    if fields.cdfe & ~COPY_FORMATS_TO_ENABLE:
        raise invalid_data(f"CDFE {fields.cdfe:#06x} of Host Behavior Support enables Copy formats that are not there")
    controller.features.behavior = build(HOST_BEHAVIOR_SUPPORT, cdfe=fields.cdfe, **flags)
    controller.project()
    return 0


def _host_identifier(controller: Controller, sqe: Sqe) -> Value:
    if not sqe.cdw11 & 1:
        raise invalid("over fabrics a host identifier has 128 bits (EXHID)")
    return Value(0, controller.hostid)


def _profile_apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    check_bits("I/O Command Set Profile", sqe.cdw11, 0x1FF)
    if sqe.cdw11:
        raise CommandError(
            Status.IO_COMMAND_SET_COMBINATION_REJECTED,
            _CDW11,
            message=f"there is no I/O command set combination {sqe.cdw11}",
        )
    return 0


def _has_cache(controller: Controller) -> bool:
    return controller.subsystem.volatile_cache


ROWS = Rows(
    features=(
        dword(FeatureId.ARBITRATION, "Arbitration", 0xFFFFFF07, 0x07, saveable=True),
        remembered(
            FeatureId.POWER_MANAGEMENT, "Power Management", constant(0), _power, saveable=True, in_history=False
        ),
        FeatureSpec(
            FeatureId.TEMPERATURE_THRESHOLD,
            "Temperature Threshold",
            _temperature_read,
            _temperature_default,
            _temperature_apply,
            saveable=True,
            selector=_temperature,
            restore=_temperature_restore,
        ),
        dword(
            FeatureId.VOLATILE_WRITE_CACHE,
            "Volatile Write Cache",
            1,
            1,
            saveable=True,
            changed=lambda controller, sqe: controller.project(),
            supported=_has_cache,
            condition="where a namespace has a volatile write cache",
        ),
        FeatureSpec(
            FeatureId.NUMBER_OF_QUEUES,
            "Number of Queues",
            _queues_read,
            lambda controller, sqe: Value(_queues_granted(controller)),
            _queues_apply,
            in_history=False,
        ),
        dword(FeatureId.WRITE_ATOMICITY_NORMAL, "Write Atomicity Normal", 1, 0, saveable=True),
        FeatureSpec(
            FeatureId.ASYNC_EVENT_CONFIGURATION,
            "Asynchronous Event Configuration",
            lambda controller, sqe: Value(controller.events.enabled),
            constant(0),
            _events_apply,
            discovery=True,
            in_history=False,
        ),
        FeatureSpec(
            FeatureId.TIMESTAMP,
            "Timestamp",
            _timestamp_read,
            lambda controller, sqe: Value(0, build_timestamp(0, origin=0)),
            _timestamp_apply,
            data_bytes=TIMESTAMP.sizeof(),
            in_history=False,
        ),
        FeatureSpec(
            FeatureId.KEEP_ALIVE_TIMER,
            "Keep Alive Timer",
            lambda controller, sqe: Value(controller.kato_ms),
            constant(0),
            _keep_alive_apply,
            discovery=True,
            in_history=False,
        ),
        FeatureSpec(
            FeatureId.HOST_BEHAVIOR_SUPPORT,
            "Host Behavior Support",
            lambda controller, sqe: Value(0, controller.features.behavior),
            lambda controller, sqe: Value(0, bytes(HOST_BEHAVIOR_SUPPORT.sizeof())),
            _behavior_apply,
            data_bytes=HOST_BEHAVIOR_SUPPORT.sizeof(),
            in_history=False,
        ),
        FeatureSpec(
            FeatureId.IO_COMMAND_SET_PROFILE, "I/O Command Set Profile", constant(0), constant(0), _profile_apply
        ),
        dword(
            FeatureId.SOFTWARE_PROGRESS_MARKER,
            "Software Progress Marker",
            0xFF,
            saveable=True,
            persistent=True,
            in_history=False,
        ),
        FeatureSpec(
            FeatureId.HOST_IDENTIFIER,
            "Host Identifier",
            _host_identifier,
            _host_identifier,
            # Connect has set it already, and it can't be set twice.
            refusal=Status.COMMAND_SEQUENCE_ERROR,
            data_bytes=_HOST_IDENTIFIER_BYTES,
            private=True,
        ),
    ),
)
