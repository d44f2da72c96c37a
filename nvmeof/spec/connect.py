"""The Fabrics commands: Connect and its data, Property Get and Set, Disconnect, Authentication Send and Receive.

NVMe Base 2.x, Fabrics Commands. Each command's own fields are a :class:`~nvmeof.wire.Record` over the whole 64-byte
SQE. The command flags and SGL1 are left to the queue connection, which knows how the data travels: SGL1 is skipped on
unpacking and zero on packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import construct as c

from nvmeof.spec.enums import FABRICS_OPCODE, FabricsType
from nvmeof.wire import U8, U16, U32, U64, PaddedText, Record, layout

NQN_FIELD_BYTES = 256
CONNECT_DATA_BYTES = 1024
RECORD_FORMAT = 0
"""The only RECFMT of Connect and Disconnect."""


class Cattr(IntFlag):
    """Connect Attributes. Bits 1:0 are the queue's priority class."""

    PRIORITY_HIGH = 1
    PRIORITY_MEDIUM = 2
    PRIORITY_LOW = 3
    DISABLE_SQ_FLOW_CONTROL = 1 << 2
    IO_QUEUE_DELETION = 1 << 3


class Authreq(IntFlag):
    """Authentication requirements in DW0 of a successful Connect, above the CNTLID."""

    ATR = 1 << 17
    """Authentication transaction required."""
    ASCR = 1 << 18
    """Authentication and secure channel required."""


@dataclass(slots=True)
class Connect:
    """The Connect command. ``sqsize``: 0's-based entries. ``kato``: milliseconds, 0 for none. ``cattr``: Cattr."""

    opcode: int = FABRICS_OPCODE
    flags: int = 0
    cid: int = 0
    fctype: int = FabricsType.CONNECT
    recfmt: int = RECORD_FORMAT
    qid: int = 0
    sqsize: int = 0
    cattr: int = 0
    kato: int = 0

    @property
    def entries(self) -> int:
        """Size of the submission queue, 1-based."""
        return self.sqsize + 1

    @property
    def kato_seconds(self) -> float:
        """Keep-alive timeout; 0 for none."""
        return self.kato / 1000

    @property
    def flow_control(self) -> bool:
        """Whether SQ flow control stays on."""
        return not self.cattr & Cattr.DISABLE_SQ_FLOW_CONTROL


CONNECT: Record[Connect] = Record(
    c.Struct(
        "opcode" / U8,
        "flags" / U8,
        "cid" / U16,
        "fctype" / U8,
        c.Padding(35),
        "recfmt" / U16,
        "qid" / U16,
        "sqsize" / U16,
        "cattr" / U8,
        c.Padding(1),
        "kato" / U32,
        c.Padding(12),
    ),
    Connect,
)

CONNECT_DATA = c.Struct(
    "hostid" / c.Bytes(16),
    "cntlid" / U16,
    c.Padding(238),
    "subnqn" / PaddedText(NQN_FIELD_BYTES),
    "hostnqn" / PaddedText(NQN_FIELD_BYTES),
    c.Padding(256),
)
"""Data of the Connect command, 1024 bytes."""


def connect_invalid_dw0(field: str) -> int:
    """Return DW0 of a Connect refused with Connect Invalid Parameters: IPO, and IATTR for a field of the data.

    ``field``: a name in :data:`CONNECT_DATA` or :class:`Connect`. ``KeyError`` when it is in neither.
    """
    data = layout(CONNECT_DATA)
    if field in data:
        return 1 << 16 | data[field][0]
    return CONNECT.offsets[field]


def describe_connect_invalid(dw0: int) -> str:
    """Return the field that DW0 of Connect Invalid Parameters points at, for a message: ``subnqn in the Connect
    data``."""
    offset, in_data = dw0 & 0xFFFF, bool(dw0 >> 16 & 1)
    offsets = {start: name for name, (start, _) in layout(CONNECT_DATA).items()} if in_data else {
        start: name for name, start in CONNECT.offsets.items()
    }  # fmt: skip
    where = "the Connect data" if in_data else "the Connect command"
    return f"{offsets.get(offset, f'byte {offset}')} in {where}"


@dataclass(slots=True)
class PropertyGet:
    """Property Get. ``attrib`` bits 2:0: 0 for 4 bytes, 1 for 8 bytes. ``ofst``: the property's offset."""

    opcode: int = FABRICS_OPCODE
    flags: int = 0
    cid: int = 0
    fctype: int = FabricsType.PROPERTY_GET
    attrib: int = 0
    ofst: int = 0

    @property
    def size_bytes(self) -> int:
        """4 or 8; 0 for a reserved size."""
        return {0: 4, 1: 8}.get(self.attrib & 7, 0)


PROPERTY_GET: Record[PropertyGet] = Record(
    c.Struct(
        "opcode" / U8,
        "flags" / U8,
        "cid" / U16,
        "fctype" / U8,
        c.Padding(35),
        "attrib" / U8,
        c.Padding(3),
        "ofst" / U32,
        c.Padding(16),
    ),
    PropertyGet,
)


@dataclass(slots=True)
class PropertySet:
    """Property Set: as Property Get, with the value; of a 4-byte property the low half counts."""

    opcode: int = FABRICS_OPCODE
    flags: int = 0
    cid: int = 0
    fctype: int = FabricsType.PROPERTY_SET
    attrib: int = 0
    ofst: int = 0
    value: int = 0

    @property
    def size_bytes(self) -> int:
        """4 or 8; 0 for a reserved size."""
        return {0: 4, 1: 8}.get(self.attrib & 7, 0)


PROPERTY_SET: Record[PropertySet] = Record(
    c.Struct(
        "opcode" / U8,
        "flags" / U8,
        "cid" / U16,
        "fctype" / U8,
        c.Padding(35),
        "attrib" / U8,
        c.Padding(3),
        "ofst" / U32,
        "value" / U64,
        c.Padding(8),
    ),
    PropertySet,
)


@dataclass(slots=True)
class Disconnect:
    """Disconnect: deletes the I/O queue that it is sent on."""

    opcode: int = FABRICS_OPCODE
    flags: int = 0
    cid: int = 0
    fctype: int = FabricsType.DISCONNECT
    recfmt: int = RECORD_FORMAT


DISCONNECT: Record[Disconnect] = Record(
    c.Struct(
        "opcode" / U8,
        "flags" / U8,
        "cid" / U16,
        "fctype" / U8,
        c.Padding(35),
        "recfmt" / U16,
        c.Padding(22),
    ),
    Disconnect,
)


@dataclass(slots=True)
class Authentication:
    """Authentication Send or Receive. ``length``: TL or AL, bytes. ``secp``: security protocol, E9h for NVMe."""

    opcode: int = FABRICS_OPCODE
    flags: int = 0
    cid: int = 0
    fctype: int = FabricsType.AUTH_SEND
    spsp0: int = 1
    spsp1: int = 1
    secp: int = 0xE9
    length: int = 0


AUTHENTICATION: Record[Authentication] = Record(
    c.Struct(
        "opcode" / U8,
        "flags" / U8,
        "cid" / U16,
        "fctype" / U8,
        c.Padding(36),
        "spsp0" / U8,
        "spsp1" / U8,
        "secp" / U8,
        "length" / U32,
        c.Padding(16),
    ),
    Authentication,
)
