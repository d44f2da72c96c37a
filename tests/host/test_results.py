"""Decoded results: every field is typed, json takes them, and names are those of the declarations."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from typing import get_type_hints

import pytest

import nvmeof
from nvmeof.errors import LocalProtocolError
from nvmeof.host import results
from nvmeof.host.facts import QueueFacts, SubflowFacts
from nvmeof.host.results import (
    Decoded,
    ErrorLogEntry,
    HexText,
    IdentifyController,
    IdentifyNamespace,
    LbaFormat,
    NvmCommandSetLimits,
    PowerState,
    SmartLog,
)
from nvmeof.transport.base import ConnectionInfo, SubflowInfo
from nvmeof.wire import layout

from .conftest import Connect
from .fake_device import FakeDevice

STRUCTURES = [IdentifyController, IdentifyNamespace, NvmCommandSetLimits, SmartLog, ErrorLogEntry]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_annotations_are_the_declaration(structure: type[Decoded]) -> None:
    hints = {name: kind for name, kind in get_type_hints(structure).items() if not name.startswith("_")}
    assert list(hints) == list(layout(structure._DECLARATION))
    parsed = structure.parse(bytes(structure.size_bytes()))
    for name, kind in hints.items():
        wanted = getattr(kind, "__origin__", kind)
        assert type(parsed[name]) is wanted, name
        for part in parsed[name] if wanted is list else ():
            assert type(part) is kind.__args__[0]


@pytest.mark.parametrize("part", [PowerState, LbaFormat])
def test_annotations_of_parts(part: type[Decoded]) -> None:
    owner, name = (IdentifyController, "psd") if part is PowerState else (IdentifyNamespace, "lbaf")
    parsed = owner.parse(bytes(owner.size_bytes()))[name][0]
    assert [field for field in get_type_hints(part) if not field.startswith("_")] == list(parsed)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_results_are_json_serializable(structure: type[Decoded]) -> None:
    data = (bytes(range(1, 251)) * 40)[: structure.size_bytes()]
    parsed = structure.parse(data)
    assert json.loads(json.dumps(parsed)) == parsed


def test_attributes_are_items() -> None:
    log = SmartLog.parse(bytes(1) + (300).to_bytes(2, "little") + bytes(509))
    assert log.composite_temperature == log["composite_temperature"] == 300
    assert "composite_temperature" in dir(log)
    with pytest.raises(AttributeError, match=r"SmartLog has no field 'temperature'; it has critical_warning"):
        _ = log.temperature
    with pytest.raises(AttributeError):
        log.composite_temperature = 3


def test_bytes_are_hexadecimal_text() -> None:
    raw = bytearray(4096)
    raw[104:120] = bytes(range(16))
    nguid = IdentifyNamespace.parse(raw).nguid
    assert nguid == "000102030405060708090a0b0c0d0e0f"
    assert bytes(nguid) == bytes(range(16))
    assert nguid.hex() == nguid
    assert isinstance(nguid, HexText)


async def test_the_host_returns_typed_results(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    assert isinstance(await controller.identify(), IdentifyController)
    assert isinstance(controller.info, IdentifyController)
    assert isinstance(await controller.identify_namespace(1), IdentifyNamespace)
    assert isinstance(await controller.identify_nvm_limits(), NvmCommandSetLimits)
    assert isinstance(await controller.smart_log(), SmartLog)
    assert json.dumps([await controller.smart_log(), await controller.identify(), *await controller.error_log(3)])


async def test_unknown_fields_are_reported(connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    assert "not identified yet" in repr(namespace)
    for name in ("size_bytes", "size_blocks", "block_bytes", "info"):
        with pytest.raises(LocalProtocolError, match=r"namespace 1 is not identified yet: await its refresh\(\)"):
            getattr(namespace, name)
    await namespace.read(0)
    assert (namespace.size_bytes, namespace.size_blocks, namespace.block_bytes) == (4096 * 512, 4096, 512)
    for nsid in (0, -1, 0xFFFFFFFF):
        with pytest.raises(LocalProtocolError, match="NSID"):
            controller.namespace(nsid)


def test_public_names_are_there() -> None:
    for name in ("SmartLog", "IdentifyController", "IdentifyNamespace", "ErrorLogEntry"):
        assert getattr(nvmeof, name) is getattr(results, name)


def test_the_facts_of_a_queue_are_those_of_its_connection() -> None:
    """The declared keys are those of the transport, and those that the host adds."""
    own = {"qid", "entries", "outstanding", "completed", "hdr_digest", "data_digest"}
    connection = {field.name for field in fields(ConnectionInfo)}
    assert set(QueueFacts.__annotations__) == own | connection
    assert set(SubflowFacts.__annotations__) == {field.name for field in fields(SubflowInfo)}


@pytest.mark.parametrize("kind", [IdentifyController, IdentifyNamespace, NvmCommandSetLimits, SmartLog, ErrorLogEntry])
def test_a_type_checker_knows_every_field(kind: type[Decoded]) -> None:
    """The declared fields are the decoded ones: no field is Any."""
    declared = {name for each in kind.__mro__ for name in vars(each).get("__annotations__", {})}
    decoded = set(kind.parse(bytes(kind.size_bytes())))
    assert decoded <= declared


@pytest.mark.parametrize(
    "public", [nvmeof.connect, nvmeof.discover, nvmeof.HostController, nvmeof.Namespace, nvmeof.DiscoveryEntry]
)
def test_public_annotations_have_no_any(public: object) -> None:
    functions = [public] if inspect.isfunction(public) else [
        member for name, member in inspect.getmembers(public, inspect.isfunction) if name[0] != "_"
    ]  # fmt: skip
    assert functions
    for function in functions:
        words = re.findall(r"\w+", " ".join(map(str, function.__annotations__.values())))
        assert "Any" not in words, function.__qualname__
