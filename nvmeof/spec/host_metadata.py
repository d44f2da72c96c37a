"""The Host Metadata data structure (NVMe Base, Enhanced Controller, Controller and Namespace Metadata features)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from nvmeof.wire import Buffer

HOST_METADATA_BYTES = 4096
ELEMENT_TYPE_MAX = 0x1F
"""Element types are 01h to 1Fh; those from 18h are vendor specific."""
_HEADER_BYTES = 2
_DESCRIPTOR_BYTES = 4


class ElementAction(IntEnum):
    """EA: CDW11 bits 14:13 of Set Features."""

    ADD_OR_REPLACE = 0
    DELETE_MULTIPLE = 1
    ADD_MULTIPLE = 2


class MetadataElement(NamedTuple):
    """One metadata element descriptor: ET, ER, EVAL (ELEN is its length)."""

    type: int
    revision: int
    value: bytes


def parse_host_metadata(data: Buffer) -> list[MetadataElement]:
    """Parse the descriptors of the structure. `ValueError` for one that ends beyond it, or is not of a type that
    exists."""
    view = bytes(data)
    elements: list[MetadataElement] = []
    position = _HEADER_BYTES
    for _ in range(view[0]):
        head = view[position : position + _DESCRIPTOR_BYTES]
        if len(head) < _DESCRIPTOR_BYTES:
            raise ValueError("a metadata element descriptor begins beyond the data")
        length = int.from_bytes(head[2:], "little")
        position += _DESCRIPTOR_BYTES
        if position + length > len(view):
            raise ValueError(f"a metadata element of {length} bytes ends beyond the data")
        kind = head[0] & 0x3F
        if not 1 <= kind <= ELEMENT_TYPE_MAX:
            raise ValueError(f"there is no metadata element type {kind:02X}h")
        elements.append(MetadataElement(kind, head[1] & 0xF, view[position : position + length]))
        position += length
    return elements


def build_host_metadata(elements: Iterable[MetadataElement]) -> bytes:
    """Build the 4096 bytes. `ValueError` when the descriptors do not fit."""
    chosen = list(elements)
    body = b"".join(
        bytes((element.type, element.revision)) + len(element.value).to_bytes(2, "little") + element.value
        for element in chosen
    )
    if len(chosen) > 255 or _HEADER_BYTES + len(body) > HOST_METADATA_BYTES:
        raise ValueError(f"{len(chosen)} metadata elements of {len(body)} bytes do not fit into the data structure")
    return (bytes((len(chosen), 0)) + body).ljust(HOST_METADATA_BYTES, b"\0")
