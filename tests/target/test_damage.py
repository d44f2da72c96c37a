"""What is kept for the next process, damaged: one sentence that says how to go on, or it is served all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.target.__main__ import EXIT_USAGE, main
from nvmeof.target.backend.file import FileBackend
from nvmeof.target.backend.file_keeper import FileKeeper
from nvmeof.target.backend.ramdisk import Ramdisk
from nvmeof.target.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.target.server import Target
from tests.conformance.rawhost import association

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NSID_1 = "3b241101-e2bb-4255-8caf-4136c566a962"
OF_A_FILE: dict[str, Any] = {
    "format": {"block_bytes": 4096, "erase": 0},
    "features": {"84.0": {"dwords": [1, 0, 0, 0, 0], "data": None, "dw0": 1, "value": None}},
    "uncorrectable": {"block_bytes": 512, "ranges": [[1, 2]]},
    "sanitize": {"state": "failed", "cdw10": 2, "cdw11": 0, "left": False},
    "reservations": {"generation": 1, "type": 1, "holder": "00" * 16, "registrants": {"00" * 16: 5}},
}
OF_A_SUBSYSTEM: dict[str, Any] = {
    "history": {"generation": 3, "events": [[4, "0000000000000000", 65535, None, "MC4xLjAgICA="]]},
    "lifetime": {
        "power_cycles": 1, "unsafe_shutdowns": 0, "power_on_seconds": 1.5, "busy_seconds": 0.0, "clean": True,
        "errors": 0, "namespaces": {NSID_1: {"reads": 5}}, "gone": {"writes": 3},
    },
    "self-test": {"results": [[1, 0, 5, 0, 0, 0, 0, 0]], "running": [1]},
    "features": {"0b.0": {"dwords": [256, 0, 0, 0, 0], "data": None, "dw0": 256, "value": None}},
    "telemetry": {"areas": ["x" * 512, "y" * 512, "z" * 512], "generation": 1, "reason": "r", "available": True},
    "sanitize": {"state": "failed", "cdw10": 2, "cdw11": 0, "left": False, "namespaces": [[NSID_1, "x"]]},
}  # fmt: skip


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, each in inner for found in parts(each, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    if isinstance(value, dict):
        return {key: replaced(each, path[1:], by) if key == path[0] else each for key, each in value.items()}
    return [replaced(each, path[1:], by) if key == path[0] else each for key, each in enumerate(value)]


def write(path: Path, kept: Any) -> None:
    path.write_text(json.dumps({"nvmeof": 1, "kept": kept}))


async def starts(state: Path, *backends: Any) -> bool:
    """Whether a target starts and serves with it; else it has said why."""
    try:
        namespaces = tuple(NamespaceConfig(backend=each) for each in backends)
        subsystem = SubsystemConfig(nqn="nqn.2026-01.org.example:d", namespaces=namespaces, keeper=FileKeeper(state))
        config = TargetConfig(subsystems=(subsystem,), ports=(PortConfig(transport="tcp", host="127.0.0.1", port=0),))
        async with Target(config) as target:
            admin, io = await association(target)
            for page, length in ((2, 512), (5, 4096), (6, 564), (7, 512), (8, 2048), (0xD, 512), (0x81, 512)):
                await admin.log_page(page, length)
            await io.read(1, 0, 1)
            await admin.close()
            await io.close()
    except ConfigurationError as error:
        assert "cannot be read" in str(error) or "is not what" in str(error)
        return False
    return True
