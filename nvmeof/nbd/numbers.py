"""NBD's numbers: magic values, flags, options, commands, errors (NBD protocol, "Values")."""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from typing import Final

NBD_PORT: Final = 10809
"""The port that IANA has assigned."""

INIT_MAGIC: Final = 0x4E42444D41474943  # NBDMAGIC
OPTION_MAGIC: Final = 0x49484156454F5054  # IHAVEOPT
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
OLDSTYLE_MAGIC: Final = 0x00420281861253
REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

MAX_STRING_BYTES: Final = 4096
"""No export name, context or message is longer."""
DEFAULT_MAX_PAYLOAD_BYTES: Final = 32 << 20
"""What a client may send or ask for in one request of a server that announces no maximum."""
MAX_REQUEST_BYTES: Final = 0xFFFFFFFF
"""The length field of a request that is not extended."""
BASE_ALLOCATION: Final = "base:allocation"


class HandshakeFlags(IntFlag):
    """Of the server, and of the client in its answer."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlags(IntFlag):
    """The capabilities of an export (NBD_FLAG_*)."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12


class Option(IntEnum):
    """NBD_OPT_*."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReplyType(IntEnum):
    """NBD_REP_*; errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_BLOCK_SIZE_REQD = 0x80000008
    ERR_TOO_BIG = 0x80000009
    ERR_EXT_HEADER_REQD = 0x8000000A


OPTION_ERROR: Final = 1 << 31


class Info(IntEnum):
    """NBD_INFO_*: the pieces of information of INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """NBD_CMD_*."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlags(IntFlag):
    """NBD_CMD_FLAG_*."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


REPLY_DONE: Final = 1 << 0
"""The flag of the last chunk of a structured or extended reply."""


class Chunk(IntEnum):
    """NBD_REPLY_TYPE_*; errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


CHUNK_ERROR: Final = 1 << 15


class AllocationFlags(IntFlag):
    """The status of a range in the context base:allocation."""

    HOLE = 1 << 0
    ZERO = 1 << 1


class NbdError(IntEnum):
    """NBD_E*: the errors of the wire."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


_ERRNO: Final = {
    NbdError.EPERM: errno.EPERM,
    NbdError.EIO: errno.EIO,
    NbdError.ENOMEM: errno.ENOMEM,
    NbdError.EINVAL: errno.EINVAL,
    NbdError.ENOSPC: errno.ENOSPC,
    NbdError.EOVERFLOW: errno.EOVERFLOW,
    NbdError.ENOTSUP: errno.EOPNOTSUPP,
    NbdError.ESHUTDOWN: errno.ESHUTDOWN,
}


def errno_of(error: int) -> int:
    """Return this system's errno for an error of the wire. One that the document does not have counts as EINVAL."""
    return _ERRNO.get(NbdError(error), errno.EINVAL) if error in _ERRNO else errno.EINVAL
