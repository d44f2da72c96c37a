"""The submission queue entries that a host sends, packed from the SQE's own declaration.

CID, PSDT and SGL1 stay zero: the queue device fills them in. All numbers that a caller gives are counts and bytes;
the 0's-based values of the wire are made here.
"""

from __future__ import annotations

from struct import Struct

from nvmeof.spec.connect import (
    AUTHENTICATION,
    CONNECT,
    DISCONNECT,
    PROPERTY_GET,
    PROPERTY_SET,
    Authentication,
    Cattr,
    Connect,
    Disconnect,
    PropertyGet,
    PropertySet,
)
from nvmeof.spec.enums import AdminOpcode, FabricsType, NvmOpcode
from nvmeof.spec.reservations import REPORT_EXTENDED
from nvmeof.spec.sqe import CDW12_DEALLOCATE, CDW12_FUA, COPY_FORMAT_SHIFT, DSM_DEALLOCATE, SQE, SQE_BYTES, Sqe
from nvmeof.spec.zns import ZoneReceive, ZoneSend

_IO = SQE.select("opcode", "nsid", "cdw10", "cdw11", "cdw12", size=SQE_BYTES)
_pack_io = _IO.pack
# with SLBA, CDW10 and CDW11, as one number
_AT = SQE.offsets
_BLOCK_IO = Struct(f"<B{_AT['nsid'] - 1}xI{_AT['cdw10'] - _AT['nsid'] - 4}xQI{SQE_BYTES - _AT['cdw13']}x")
_pack_block_io = _BLOCK_IO.pack

READ = int(NvmOpcode.READ)
WRITE = int(NvmOpcode.WRITE)


def read(nsid: int, lba: int, blocks: int) -> bytes:
    """Read ``blocks`` logical blocks."""
    return _pack_block_io(READ, nsid, lba, blocks - 1)


def write(nsid: int, lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """Write ``blocks`` logical blocks; ``fua``: to the medium before the completion."""
    return _pack_block_io(WRITE, nsid, lba, blocks - 1 | CDW12_FUA if fua else blocks - 1)


def write_zeroes(nsid: int, lba: int, blocks: int, *, deallocate: bool = False) -> bytes:
    """Zero ``blocks`` logical blocks; ``deallocate``: by deallocation where that reads as zeroes."""
    cdw12 = blocks - 1 | (CDW12_DEALLOCATE if deallocate else 0)
    return _pack_io(NvmOpcode.WRITE_ZEROES, nsid, lba & 0xFFFFFFFF, lba >> 32, cdw12)


def compare(nsid: int, lba: int, blocks: int) -> bytes:
    """Compare ``blocks`` logical blocks with data that travels along."""
    return _pack_block_io(NvmOpcode.COMPARE, nsid, lba, blocks - 1)


def verify(nsid: int, lba: int, blocks: int) -> bytes:
    """Verify ``blocks`` logical blocks: read them, and transfer nothing."""
    return _pack_block_io(NvmOpcode.VERIFY, nsid, lba, blocks - 1)


def write_uncorrectable(nsid: int, lba: int, blocks: int) -> bytes:
    """Mark ``blocks`` logical blocks as unreadable."""
    return _pack_block_io(NvmOpcode.WRITE_UNCORRECTABLE, nsid, lba, blocks - 1)


def copy(nsid: int, lba: int, ranges: int, *, descriptor_format: int = 0, fua: bool = False) -> bytes:
    """Copy ``ranges`` source ranges, which travel as data, to ``lba`` and the blocks behind it."""
    cdw12 = ranges - 1 | descriptor_format << COPY_FORMAT_SHIFT | (CDW12_FUA if fua else 0)
    return _pack_block_io(NvmOpcode.COPY, nsid, lba, cdw12)


def reservation(opcode: int, nsid: int, cdw10: int) -> bytes:
    """Build Reservation Register, Acquire or Release; the keys travel as data."""
    return _sqe(opcode=opcode, nsid=nsid, cdw10=cdw10)


def reservation_report(nsid: int, length_bytes: int) -> bytes:
    """Build Reservation Report of ``length_bytes``, a multiple of 4, with host identifiers of 128 bits."""
    cdw10 = length_bytes // 4 - 1
    return _sqe(opcode=NvmOpcode.RESERVATION_REPORT, nsid=nsid, cdw10=cdw10, cdw11=REPORT_EXTENDED)


def zone_send(nsid: int, lba: int, action: int, *, select_all: bool = False) -> bytes:
    """Build Zone Management Send: ``action`` on the zone that begins at ``lba``, or on all that it can be done to."""
    return _sqe(
        opcode=NvmOpcode.ZONE_MANAGEMENT_SEND,
        nsid=nsid,
        cdw10=lba & 0xFFFFFFFF,
        cdw11=lba >> 32,
        cdw13=ZoneSend(action, select_all).encode(),
    )


def zone_receive(nsid: int, lba: int, length_bytes: int, action: int, which: int, *, partial: bool) -> bytes:
    """Build Zone Management Receive: a report of ``length_bytes``, a multiple of 4, from the zone of ``lba`` on."""
    return _sqe(
        opcode=NvmOpcode.ZONE_MANAGEMENT_RECEIVE,
        nsid=nsid,
        cdw10=lba & 0xFFFFFFFF,
        cdw11=lba >> 32,
        cdw12=length_bytes // 4 - 1,
        cdw13=ZoneReceive(action, which, partial).encode(),
    )


def zone_append(nsid: int, lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """Append ``blocks`` logical blocks to the zone that begins at ``lba``."""
    return _pack_block_io(NvmOpcode.ZONE_APPEND, nsid, lba, blocks - 1 | (CDW12_FUA if fua else 0))


def get_lba_status(nsid: int, lba: int, blocks: int, length_bytes: int, action: int) -> bytes:
    """Get LBA Status of ``blocks`` logical blocks (0: to the end), an answer of ``length_bytes``, a multiple of 4."""
    return _sqe(
        opcode=AdminOpcode.GET_LBA_STATUS,
        nsid=nsid,
        cdw10=lba & 0xFFFFFFFF,
        cdw11=lba >> 32,
        cdw12=length_bytes // 4 - 1,
        cdw13=blocks | action << 24,
    )


def flush(nsid: int) -> bytes:
    """Build Flush."""
    return _pack_io(NvmOpcode.FLUSH, nsid, 0, 0, 0)


def dataset_management(nsid: int, ranges: int, attributes: int = DSM_DEALLOCATE) -> bytes:
    """Build Dataset Management over ``ranges`` ranges, which travel as data."""
    return _pack_io(NvmOpcode.DATASET_MANAGEMENT, nsid, ranges - 1, attributes, 0)


def identify(cns: int, nsid: int = 0, cntid: int = 0, csi: int = 0) -> bytes:
    """Identify: 4,096 bytes of data."""
    return _sqe(opcode=AdminOpcode.IDENTIFY, nsid=nsid, cdw10=cns | cntid << 16, cdw11=csi << 24)


def get_log_page(
    page: int,
    length_bytes: int,
    offset: int = 0,
    *,
    nsid: int = 0,
    lsp: int = 0,
    rae: bool = False,
    lsi: int = 0,
    uuid: int = 0,
    csi: int = 0,
) -> bytes:
    """Get Log Page: ``length_bytes``, a multiple of 4, from byte ``offset``. ``rae`` retains the asynchronous event."""
    dwords = length_bytes // 4 - 1
    return _sqe(
        opcode=AdminOpcode.GET_LOG_PAGE,
        nsid=nsid,
        cdw10=page | lsp << 8 | rae << 15 | (dwords & 0xFFFF) << 16,
        cdw11=dwords >> 16 | lsi << 16,
        cdw12=offset & 0xFFFFFFFF,
        cdw13=offset >> 32,
        cdw14=uuid | csi << 24,
    )


def get_features(fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0) -> bytes:
    """Get Features; ``select``: current, default, saved value or capabilities."""
    return _sqe(opcode=AdminOpcode.GET_FEATURES, nsid=nsid, cdw10=fid | select << 8, cdw11=cdw11)


def set_features(fid: int, value: int, *, save: bool = False, nsid: int = 0, cdw12: int = 0) -> bytes:
    """Set Features: ``value`` is CDW11."""
    return _sqe(opcode=AdminOpcode.SET_FEATURES, nsid=nsid, cdw10=fid | save << 31, cdw11=value, cdw12=cdw12)


def abort(sqid: int, cid: int) -> bytes:
    """Abort the command ``cid`` of queue ``sqid``."""
    return _sqe(opcode=AdminOpcode.ABORT, cdw10=sqid | cid << 16)


def async_event_request() -> bytes:
    """Build Asynchronous Event Request, which completes with an event."""
    return _sqe(opcode=AdminOpcode.ASYNC_EVENT_REQUEST)


def keep_alive() -> bytes:
    """Keep Alive."""
    return _sqe(opcode=AdminOpcode.KEEP_ALIVE)


def connect(qid: int, entries: int, *, kato_ms: int = 0, disable_sqflow: bool = False) -> bytes:
    """Build Fabrics Connect for queue ``qid`` with ``entries`` SQ entries; its 1,024 bytes of data go along in
    capsule."""
    cattr = Cattr.DISABLE_SQ_FLOW_CONTROL if disable_sqflow else 0
    return CONNECT.pack(Connect(qid=qid, sqsize=entries - 1, kato=kato_ms, cattr=cattr))


def property_get(offset: int, size: int) -> bytes:
    """Build Property Get of a 4- or 8-byte property."""
    return PROPERTY_GET.pack(PropertyGet(attrib=int(size == 8), ofst=offset))


def property_set(offset: int, size: int, value: int) -> bytes:
    """Build Property Set of a 4- or 8-byte property."""
    return PROPERTY_SET.pack(PropertySet(attrib=int(size == 8), ofst=offset, value=value))


def auth_send(length_bytes: int) -> bytes:
    """Build Authentication Send of a message of ``length_bytes``, which travels as data."""
    return AUTHENTICATION.pack(Authentication(fctype=FabricsType.AUTH_SEND, length=length_bytes))


def auth_receive(length_bytes: int) -> bytes:
    """Build Authentication Receive of a message of at most ``length_bytes``."""
    return AUTHENTICATION.pack(Authentication(fctype=FabricsType.AUTH_RECEIVE, length=length_bytes))


def disconnect() -> bytes:
    """Build Fabrics Disconnect, which deletes the I/O queue that it is sent on."""
    return DISCONNECT.pack(Disconnect())


def _sqe(**fields: int) -> bytes:
    return SQE.pack(Sqe(**fields))
