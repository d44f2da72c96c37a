"""Telemetry: captures of a controller's state, as text that a person or a program can read (docs/telemetry.md).

A capture is up to four JSON objects, one in a separate line for each data area. A line is filled up with spaces to
whole blocks, so that an area is always complete text, wherever its reader stops.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from nvmeof.spec.enums import LogPageId
from nvmeof.spec.telemetry import AREAS, BLOCK_BYTES, Scope, build_telemetry
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.error_log import ErrorEntry
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.subsystem.ana import state_word
from nvmeof.target.subsystem.lifetime_counters import Totals
from nvmeof.target.subsystem.persistent_events import watch

SECTION: Final = "telemetry"
FORMAT: Final = "nvmeof-telemetry-1"
QUIET_SECONDS: Final = 60.0
"""Whatever happens so soon after a capture by the controller is taken for more of the same."""
SHORT_LIST: Final = 64
"""Entries of each list in areas 1 to 3. Area 4 has all entries."""
AREA_BYTES_MAX: Final = 256 * 1024
_KEPT_AREAS: Final = 3

logger = logging.getLogger(__name__)

FeatureList = Callable[[Controller], dict[str, Any]]


@dataclass(slots=True)
class Capture:
    """`areas`: what each adds, whole blocks. `generation` counts captures, 8 bits."""

    areas: list[bytes] = field(default_factory=list)
    generation: int = 0
    reason: str = ""

    def take(self, areas: list[bytes], reason: str) -> None:
        """Store a newer capture."""
        self.areas, self.reason = areas, reason
        self.generation = (self.generation + 1) & 0xFF


class HostInitiated(Capture):
    """The capture that a controller's host requested last. A reset keeps it."""

    def reset(self) -> None:
        """Keep the capture: a Controller Reset does not change it."""


class ControllerInitiated(Capture):
    """The subsystem's capture of the last thing that went wrong on any controller; it outlives the process.

    `available`: no host has acknowledged it yet.
    """

    def __init__(self, metadata_store: MetadataStore) -> None:
        super().__init__()
        self._metadata_store = metadata_store
        self._taken_at: float | None = None
        self.available = False
        stored = metadata_store.get(SECTION)
        try:
            if stored is not None:
                self.areas = [str(text).encode("ascii") for text in stored["areas"]]
                self.generation, self.reason = int(stored["generation"]) & 0xFF, str(stored["reason"])
                self.available = bool(stored["available"])
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("the stored telemetry cannot be read (%s)", error)
            self.areas = []

    def due(self, now: float) -> bool:
        """Return whether a failure at `now` (seconds) is to be captured."""
        return self._taken_at is None or now - self._taken_at >= QUIET_SECONDS

    def store(self, areas: list[bytes], reason: str, now: float) -> None:
        """Take a capture, and keep it but for area 4."""
        self._taken_at = now
        self.available = True
        self.take(areas, reason)
        self._save()

    def acknowledge(self) -> None:
        """Note that a host has read the capture with RAE = 0."""
        if self.available:
            self.available = False
            self._save()

    def _save(self) -> None:
        areas = [area.decode("ascii") for area in self.areas[:_KEPT_AREAS]]
        value = {"areas": areas, "generation": self.generation, "reason": self.reason, "available": self.available}
        try:
            watch(self._metadata_store.put(SECTION, value), "telemetry")
        except OSError as error:
            logger.warning("telemetry could not be stored: %s", error)


def telemetry_of(controller: Controller) -> ControllerInitiated:
    """Return the controller-initiated capture of a controller's subsystem."""
    subsystem = controller.subsystem
    if subsystem.telemetry is None:
        subsystem.telemetry = ControllerInitiated(subsystem.metadata_store)
    assert isinstance(subsystem.telemetry, ControllerInitiated)
    return subsystem.telemetry


# What is captured


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    if len(text) > AREA_BYTES_MAX:
        short = {key: value for key, value in content.items() if not isinstance(value, list | dict)}
        text = json.dumps({**short, "left_out": "too long"}).encode("ascii")
    length = -(-(len(text) + 1) // BLOCK_BYTES) * BLOCK_BYTES
    return text.ljust(length - 1) + b"\n"


def dump(controller: Controller, reason: str, features: FeatureList, *, areas: int) -> list[bytes]:
    """Capture a controller's state, up to data area `areas`. It contains addresses and names of hosts, never data."""
    makers = (_area_1, _area_2, _area_3, _area_4)
    head = {"format": FORMAT, "area": 1, "reason": reason}
    first = {**head, **_area_1(controller)}
    found = [_line(first)]
    for number in range(2, min(areas, AREAS) + 1):
        content = makers[number - 1](controller)
        if number == 2:
            content["features"] = features(controller)
        found.append(_line({"format": FORMAT, "area": number, **content}))
    return found


def _area_1(controller: Controller) -> dict[str, Any]:
    now = controller.runtime.now()
    subsystem = controller.subsystem
    return {
        "subsystem": {
            "nqn": subsystem.nqn,
            "serial": subsystem.config.serial_number,
            "model": subsystem.config.model,
            "firmware": subsystem.config.firmware,
            "power_cycles": subsystem.lifetime.power_cycles,
            "unsafe_shutdowns": subsystem.lifetime.unsafe_shutdowns,
            "power_on_seconds": round(subsystem.lifetime.power_on_seconds(now), 3),
            "busy_seconds": round(subsystem.lifetime.busy_seconds(now), 3),
        },
        "controller": {
            "cntlid": controller.cntlid,
            "state": controller.state.value,
            "cc": controller.cc,
            "csts": controller.csts,
            "host_nqn": controller.host_nqn,
            "port": controller.port.portid,
            "transport": controller.port.transport,
            "timestamp": controller.timestamp.hex(),
            "keep_alive_ms": controller.kato_ms,
            "errors": controller.error_log.count,
            "async_event_requests": controller.events.held,
        },
        "queues": [
            {"qid": qid, **(controller.figures[qid]() if qid in controller.figures else {})}
            for qid in sorted(controller.queues)[:SHORT_LIST]
        ],
    }


def _namespace(namespace: Namespace) -> dict[str, Any]:
    totals = Totals.of([namespace])
    return {
        "nsid": namespace.nsid,
        "backend": namespace.backend.description,
        "size_blocks": namespace.size_blocks,
        "block_bytes": namespace.block_bytes,
        "read_only": namespace.read_only,
        "ana_group": namespace.anagrpid,
        "uuid": str(namespace.uuid),
        "reads": totals.reads,
        "writes": totals.writes,
        "copies": totals.copies,
        "verifies": totals.verifies,
        "bytes_read": totals.bytes_read,
        "bytes_written": totals.bytes_written,
        "media_errors": totals.media_errors,
    }


def _area_2(controller: Controller) -> dict[str, Any]:
    subsystem = controller.subsystem
    return {
        "controllers": [
            {"cntlid": each.cntlid, "host_nqn": each.host_nqn}
            for each in list(subsystem.controllers.values())[:SHORT_LIST]
        ],
        "ana_states": {
            str(group): state_word(controller.ana.state(group)) for group in sorted(subsystem.ana.groups)[:SHORT_LIST]
        },
        "namespaces": [_namespace(each) for each in list(subsystem.namespaces.values())[:SHORT_LIST]],
        "attached": sorted(controller.namespaces)[: 16 * SHORT_LIST],
    }


def _error(entry: ErrorEntry) -> dict[str, Any]:
    return {
        "count": entry.error_count,
        "sqid": entry.sqid,
        "cid": entry.cid,
        "opcode": entry.opcode,
        "status": entry.status_field >> 1,
        "location": entry.error_location,
        "nsid": entry.nsid,
        "lba": entry.lba,
    }


def _events(controller: Controller, limit: int | None) -> list[dict[str, Any]]:
    newest = list(reversed(controller.subsystem.history.events))[:limit]
    return [
        {"type": event.type, "cntlid": event.cntlid, "timestamp": event.timestamp.hex(), "data": event.data[:64].hex()}
        for event in newest
    ]


def _area_3(controller: Controller) -> dict[str, Any]:
    return {
        "error_log": [_error(entry) for entry in controller.error_log.newest()[:SHORT_LIST]],
        "history": _events(controller, SHORT_LIST),
        "connections": [
            {"qid": qid, **controller.connections[qid]()} for qid in sorted(controller.connections)[:SHORT_LIST]
        ],
    }


def _area_4(controller: Controller) -> dict[str, Any]:
    return {
        "namespaces": [_namespace(each) for each in controller.subsystem.namespaces.values()],
        "history": _events(controller, None),
    }


# The pages


def host_page(controller: Controller, capture: Capture, *, area_4: bool) -> bytes:
    """Log page 07h."""
    initiated = telemetry_of(controller)
    return build_telemetry(
        LogPageId.TELEMETRY_HOST,
        capture.areas[: 4 if area_4 else 3],
        scope=Scope.CONTROLLER,
        generation=capture.generation,
        controller_available=initiated.available,
        controller_generation=initiated.generation,
        reason=capture.reason.encode("ascii", "replace"),
        host=True,
    )


def controller_page(controller: Controller, *, area_4: bool) -> bytes:
    """Log page 08h."""
    initiated = telemetry_of(controller)
    return build_telemetry(
        LogPageId.TELEMETRY_CONTROLLER,
        initiated.areas[: 4 if area_4 else 3],
        scope=Scope.NVM_SUBSYSTEM,
        generation=0,
        controller_available=initiated.available,
        controller_generation=initiated.generation,
        reason=initiated.reason.encode("ascii", "replace"),
        host=False,
    )
