"""Invariants of every plain construct structure of the package."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import construct as c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nvmeof.spec
from nvmeof.wire import PaddedText, build, plain

VARIABLE = {("nvmeof.spec.log_pages", "ANA_GROUP")} | {
    ("nvmeof.spec.auth", name) for name in ("NEGOTIATE", "CHALLENGE", "REPLY", "SUCCESS1")
}
"""The structures of variable length."""


def _declared() -> dict[str, c.Struct]:
    found: dict[str, c.Struct] = {}
    for info in pkgutil.iter_modules(nvmeof.spec.__path__, "nvmeof.spec."):
        for name, value in vars(import_module(info.name)).items():
            if isinstance(value, c.Struct) and (info.name, name) not in VARIABLE:
                found[name] = value
    return found


DECLARED = _declared()


def _bare(subcon: Any) -> Any:
    while isinstance(subcon, c.Renamed):
        subcon = subcon.subcon
    return subcon


def _normal(declaration: c.Struct, raw: bytes) -> bytes:
    """Return ``raw`` with reserved bytes zero and text in ASCII, which a round trip must preserve."""
    parts: list[bytes] = []
    position = 0
    for subcon in declaration.subcons:
        size = subcon.sizeof()
        piece = raw[position : position + size]
        bare = _bare(subcon)
        if subcon.name is None:
            piece = bytes(size)
        elif isinstance(bare, PaddedText):
            piece = b"text".ljust(size, bare.fill)
        elif isinstance(bare, c.Array):
            item = _bare(bare.subcon)
            step = item.sizeof()
            if isinstance(item, c.Struct):
                piece = b"".join(_normal(item, piece[i : i + step]) for i in range(0, size, step))
            elif isinstance(item, PaddedText):
                piece = b"text".ljust(step, item.fill) * (size // step)
        parts.append(piece)
        position += size
    return b"".join(parts)


def test_the_structures_are_found() -> None:
    assert len(DECLARED) > 25
    assert {"IDENTIFY_CONTROLLER", "IDENTIFY_NAMESPACE", "SMART_HEALTH", "CONNECT_DATA"} <= set(DECLARED)


@pytest.mark.parametrize("name", sorted(DECLARED))
@settings(max_examples=15, deadline=None)
@given(seed=st.binary(min_size=64, max_size=64))
def test_bytes_survive_a_round_trip(name: str, seed: bytes) -> None:
    declaration = DECLARED[name]
    size = declaration.sizeof()
    raw = _normal(declaration, (seed * (size // len(seed) + 1))[:size])
    parsed = declaration.parse(raw)
    assert declaration.build(parsed) == raw
    assert build(declaration, **plain(parsed)) == raw


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_defaults_build_to_the_declared_size(name: str) -> None:
    declaration = DECLARED[name]
    data = build(declaration)
    assert len(data) == declaration.sizeof()
    assert not data.strip(b"\0 ")


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_short_data_is_refused(name: str) -> None:
    declaration = DECLARED[name]
    with pytest.raises(c.ConstructError):
        declaration.parse(bytes(declaration.sizeof() - 1))
