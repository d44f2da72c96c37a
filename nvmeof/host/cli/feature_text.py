"""The meaning of a feature's value in words, from the declarations of the specification's features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from nvmeof.spec import features as spec
from nvmeof.spec.enums import FeatureId, FeatureSelect

_DECODERS: dict[int, Callable[[int], Any]] = {
    FeatureId.ARBITRATION: spec.Arbitration.decode,
    FeatureId.POWER_MANAGEMENT: spec.PowerManagement.decode,
    FeatureId.TEMPERATURE_THRESHOLD: spec.TemperatureThreshold.decode,
    FeatureId.ERROR_RECOVERY: spec.ErrorRecovery.decode,
    FeatureId.VOLATILE_WRITE_CACHE: spec.VolatileWriteCache.decode,
    FeatureId.NUMBER_OF_QUEUES: spec.NumberOfQueues.decode,
    FeatureId.WRITE_ATOMICITY_NORMAL: spec.WriteAtomicityNormal.decode,
    FeatureId.KEEP_ALIVE_TIMER: spec.KeepAliveTimer.decode,
    FeatureId.IO_COMMAND_SET_PROFILE: spec.IoCommandSetProfile.decode,
    FeatureId.RESERVATION_PERSISTENCE: spec.ReservationPersistence.decode,
}


def feature_name(fid: int) -> str:
    """Return the feature's name, or that it is unknown."""
    try:
        return FeatureId(fid).name.replace("_", " ").capitalize().replace("Io ", "I/O ")
    except ValueError:
        return "vendor specific" if fid >= 0xC0 else "unknown"


def feature_lines(fid: int, value: int, data: bytes, sel: int) -> Iterator[tuple[str, str]]:
    """Yield name and text of each part of a feature's value; nothing where the parts are not known."""
    if sel == FeatureSelect.SUPPORTED_CAPABILITIES:
        for flag in spec.FeatureCapabilities:
            yield str(flag.name).lower().replace("_", " "), "yes" if value & flag else "no"
        return
    if fid == FeatureId.ASYNC_EVENT_CONFIGURATION:
        yield "smart warnings", f"{value & 0xFF:#04x}"
        for event in spec.AsyncEventConfig:
            if event > 0xFF:
                yield str(event.name).lower().replace("_", " "), "on" if value & event else "off"
        return
    if fid == FeatureId.TIMESTAMP and len(data) >= spec.TIMESTAMP_BYTES:
        when = datetime.fromtimestamp(spec.parse_timestamp(data[: spec.TIMESTAMP_BYTES]), UTC)
        yield "time", when.isoformat(timespec="milliseconds")
        return
    decoder = _DECODERS.get(fid)
    if decoder is None:
        return
    try:
        decoded = decoder(value)
    except ValueError:
        return
    if is_dataclass(decoded):
        for each in fields(decoded):
            part = getattr(decoded, each.name)
            if isinstance(part, bool):
                part = "yes" if part else "no"
            yield each.name.replace("_", " "), "no limit" if part is None else str(part)
