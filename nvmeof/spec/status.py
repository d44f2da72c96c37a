"""Status of a command (NVMe Base, Status Field definitions; NVM Command Set; NVMe over Fabrics).

A :class:`Status` is ``SCT << 8 | SC``, without the DNR and More bits; :func:`status_field` makes the 16-bit word of a
CQE out of it. Command-specific values from 180h to 1BFh mean one thing for Fabrics commands and another for commands
of an I/O command set; the enumeration's own names are those of Fabrics, the others are aliases, and
:func:`describe_status` takes the difference into account.
"""

from __future__ import annotations

from enum import IntEnum

from nvmeof.errors import NvmeStatusError

STATUS_DNR = 1 << 15
"""Do Not Retry, in the CQE's status word."""
STATUS_MORE = 1 << 14
"""More information is in the Error Information log."""
STATUS_CRD_SHIFT = 12
"""Command Retry Delay, two bits."""
_STATUS_MASK = 0x7FF


class StatusCodeType(IntEnum):
    """SCT: the upper three bits of a status."""

    GENERIC = 0
    COMMAND_SPECIFIC = 1
    MEDIA_AND_DATA_INTEGRITY = 2
    PATH_RELATED = 3
    VENDOR_SPECIFIC = 7


class Status(IntEnum):
    """Every status of the Base 2.x, NVM and Fabrics specifications. ``description``: one short sentence in words."""

    description: str

    def __new__(cls, value: int, description: str = "") -> Status:
        member = int.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    @property
    def sct(self) -> int:
        """Status Code Type."""
        return self._value_ >> 8

    @property
    def sc(self) -> int:
        """Status Code."""
        return self._value_ & 0xFF

    # Generic command status
    SUCCESS = 0x000, "the command completed without error"
    INVALID_OPCODE = 0x001, "the opcode is not supported here"
    INVALID_FIELD = 0x002, "a field has a reserved or unsupported value"
    COMMAND_ID_CONFLICT = 0x003, "the command identifier is already in use on this queue"
    DATA_TRANSFER_ERROR = 0x004, "data or metadata could not be transferred"
    POWER_LOSS_ABORTED = 0x005, "aborted because power is about to be lost"
    INTERNAL_ERROR = 0x006, "the controller failed internally"
    ABORTED_BY_REQUEST = 0x007, "aborted by an Abort or Cancel command"
    ABORTED_SQ_DELETION = 0x008, "aborted because its submission queue was deleted"
    ABORTED_FAILED_FUSED = 0x009, "aborted because the other command of the fused pair failed"
    ABORTED_MISSING_FUSED = 0x00A, "aborted because the other command of the fused pair is missing"
    INVALID_NAMESPACE = 0x00B, "the namespace or its format is invalid for this command"
    COMMAND_SEQUENCE_ERROR = 0x00C, "commands came in an order that the protocol does not allow"
    INVALID_SGL_SEGMENT = 0x00D, "an SGL segment descriptor is invalid"
    INVALID_SGL_COUNT = 0x00E, "the number of SGL descriptors is invalid"
    DATA_SGL_LENGTH_INVALID = 0x00F, "the data SGL is too short or too long"
    METADATA_SGL_LENGTH_INVALID = 0x010, "the metadata SGL is too short or too long"
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011, "the SGL descriptor's type is not supported"
    INVALID_CMB_USE = 0x012, "the controller memory buffer is used in a way that is not supported"
    PRP_OFFSET_INVALID = 0x013, "a PRP entry has an invalid offset"
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014, "the length is larger than the atomic write unit"
    OPERATION_DENIED = 0x015, "the command lacks access rights"
    SGL_OFFSET_INVALID = 0x016, "an SGL descriptor's offset is invalid"
    HOST_ID_INCONSISTENT_FORMAT = 0x018, "host identifiers of 64 and of 128 bits are mixed"
    KEEP_ALIVE_EXPIRED = 0x019, "the keep-alive timer expired"
    KEEP_ALIVE_INVALID = 0x01A, "the keep-alive timeout is invalid"
    ABORTED_PREEMPT = 0x01B, "aborted by a reservation's Preempt and Abort"
    SANITIZE_FAILED = 0x01C, "the last sanitize operation failed and was not recovered from"
    SANITIZE_IN_PROGRESS = 0x01D, "not allowed while a sanitize operation runs"
    SGL_GRANULARITY_INVALID = 0x01E, "an SGL data block's address or length granularity is invalid"
    COMMAND_NOT_SUPPORTED_IN_CMB = 0x01F, "not supported for a queue in the controller memory buffer"
    NAMESPACE_WRITE_PROTECTED = 0x020, "the namespace is write protected"
    COMMAND_INTERRUPTED = 0x021, "the controller interrupted the command; it may be retried"
    TRANSIENT_TRANSPORT_ERROR = 0x022, "the transport failed for this command; it may be retried"
    PROHIBITED_BY_LOCKDOWN = 0x023, "prohibited by command and feature lockdown"
    ADMIN_COMMAND_MEDIA_NOT_READY = 0x024, "needs media that is not ready yet"
    INVALID_KEY_TAG = 0x025, "the key tag is invalid"
    HOST_DISPERSED_NAMESPACE_NOT_ENABLED = 0x026, "the host has not enabled dispersed namespaces"
    HOST_ID_NOT_INITIALIZED = 0x027, "the host identifier has not been set"
    INCORRECT_KEY = 0x028, "the key is incorrect"
    FDP_DISABLED = 0x029, "Flexible Data Placement is disabled"
    INVALID_PLACEMENT_HANDLE_LIST = 0x02A, "the placement handle list is invalid"
    LBA_OUT_OF_RANGE = 0x080, "the logical block range ends beyond the namespace"
    CAPACITY_EXCEEDED = 0x081, "the namespace's capacity is exceeded"
    NAMESPACE_NOT_READY = 0x082, "the namespace cannot be accessed now"
    RESERVATION_CONFLICT = 0x083, "another host's reservation is in conflict"
    FORMAT_IN_PROGRESS = 0x084, "a format operation runs on the namespace"
    INVALID_VALUE_SIZE = 0x085, "the value's size is invalid"
    INVALID_KEY_SIZE = 0x086, "the key's size is invalid"
    KEY_DOES_NOT_EXIST = 0x087, "the key does not exist"
    UNRECOVERED_ERROR = 0x088, "an error could not be recovered from"
    KEY_EXISTS = 0x089, "the key exists already"

    # Command specific status
    COMPLETION_QUEUE_INVALID = 0x100, "the completion queue does not exist"
    INVALID_QUEUE_ID = 0x101, "the queue identifier is invalid or in use"
    INVALID_QUEUE_SIZE = 0x102, "the queue size is invalid"
    ABORT_LIMIT_EXCEEDED = 0x103, "too many Abort commands are outstanding"
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105, "too many Asynchronous Event Requests are outstanding"
    INVALID_FIRMWARE_SLOT = 0x106, "the firmware slot is invalid or read-only"
    INVALID_FIRMWARE_IMAGE = 0x107, "the firmware image is invalid"
    INVALID_INTERRUPT_VECTOR = 0x108, "the interrupt vector is invalid"
    INVALID_LOG_PAGE = 0x109, "the log page is not supported or invalid here"
    INVALID_FORMAT = 0x10A, "the LBA format is not supported"
    FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x10B, "the firmware is activated by a conventional reset"
    INVALID_QUEUE_DELETION = 0x10C, "the queue cannot be deleted now"
    FEATURE_NOT_SAVEABLE = 0x10D, "the feature cannot be saved"
    FEATURE_NOT_CHANGEABLE = 0x10E, "the feature cannot be changed"
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F, "the feature is not namespace specific"
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x110, "the firmware is activated by an NVM subsystem reset"
    FIRMWARE_NEEDS_CONTROLLER_RESET = 0x111, "the firmware is activated by a controller reset"
    FIRMWARE_NEEDS_MAX_TIME_VIOLATION = 0x112, "activating the firmware at once would take too long"
    FIRMWARE_ACTIVATION_PROHIBITED = 0x113, "this firmware may not be activated"
    OVERLAPPING_RANGE = 0x114, "ranges overlap"
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115, "not enough unallocated capacity for the namespace"
    NAMESPACE_ID_UNAVAILABLE = 0x116, "no further namespace identifier is available"
    NAMESPACE_ALREADY_ATTACHED = 0x118, "the namespace is already attached"
    NAMESPACE_IS_PRIVATE = 0x119, "the namespace is private and attached elsewhere"
    NAMESPACE_NOT_ATTACHED = 0x11A, "the namespace is not attached"
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B, "thin provisioning is not supported"
    CONTROLLER_LIST_INVALID = 0x11C, "the controller list is invalid"
    SELF_TEST_IN_PROGRESS = 0x11D, "a device self-test is running"
    BOOT_PARTITION_WRITE_PROHIBITED = 0x11E, "the boot partition is locked"
    INVALID_CONTROLLER_ID = 0x11F, "the controller identifier is invalid"
    INVALID_SECONDARY_CONTROLLER_STATE = 0x120, "the secondary controller's state does not allow it"
    INVALID_CONTROLLER_RESOURCES = 0x121, "the number of controller resources is invalid"
    INVALID_RESOURCE_ID = 0x122, "the resource identifier is invalid"
    SANITIZE_PROHIBITED_PMR = 0x123, "sanitize is prohibited while the persistent memory region is enabled"
    ANA_GROUP_ID_INVALID = 0x124, "the ANA group identifier is invalid"
    ANA_ATTACH_FAILED = 0x125, "the namespace could not be attached because of its ANA state"
    INSUFFICIENT_CAPACITY = 0x126, "not enough capacity"
    NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x127, "too many namespaces are attached"
    LOCKDOWN_NOT_SUPPORTED = 0x128, "prohibiting that command or feature is not supported"
    IO_COMMAND_SET_NOT_SUPPORTED = 0x129, "the I/O command set is not supported"
    IO_COMMAND_SET_NOT_ENABLED = 0x12A, "the I/O command set is not enabled"
    IO_COMMAND_SET_COMBINATION_REJECTED = 0x12B, "the combination of I/O command sets is not supported"
    INVALID_IO_COMMAND_SET = 0x12C, "the I/O command set is invalid here"
    ID_UNAVAILABLE = 0x12D, "no further identifier is available"
    NAMESPACE_IS_DISPERSED = 0x12E, "the namespace is dispersed"
    INVALID_DISCOVERY_INFORMATION = 0x12F, "the discovery information is invalid"
    ZONING_DATA_STRUCTURE_LOCKED = 0x130, "the fabric zoning data structure is locked"
    ZONING_DATA_STRUCTURE_NOT_FOUND = 0x131, "the fabric zoning data structure does not exist"
    INSUFFICIENT_DISCOVERY_RESOURCES = 0x132, "not enough resources in the discovery controller"
    REQUESTED_FUNCTION_DISABLED = 0x133, "the function is disabled"
    ZONEGROUP_ORIGINATOR_INVALID = 0x134, "the zone group belongs to another originator"
    INVALID_HOST = 0x135, "the host NQN is unknown"
    INVALID_NVM_SUBSYSTEM = 0x136, "the NVM subsystem is unknown"
    INVALID_CONTROLLER_DATA_QUEUE = 0x137, "the controller data queue does not exist"
    NOT_ENOUGH_RESOURCES = 0x138, "not enough resources"
    CONTROLLER_SUSPENDED = 0x139, "the controller is suspended"
    CONTROLLER_NOT_SUSPENDED = 0x13A, "the controller is not suspended"
    CONTROLLER_DATA_QUEUE_FULL = 0x13B, "the controller data queue is full"

    # Command specific status of Fabrics commands
    CONNECT_INCOMPATIBLE_FORMAT = 0x180, "the record format is not supported"
    CONNECT_CONTROLLER_BUSY = 0x181, "the controller is already associated with a host, or none is free"
    CONNECT_INVALID_PARAMETERS = 0x182, "a parameter of the Connect command or its data is invalid"
    CONNECT_RESTART_DISCOVERY = 0x183, "the subsystem is not here; start again with discovery"
    CONNECT_INVALID_HOST = 0x184, "the host is not allowed to connect to this subsystem"
    DISCONNECT_INVALID_QUEUE_TYPE = 0x185, "this queue cannot be disconnected by a command"
    DISCOVER_RESTART = 0x190, "the discovery log changed while it was read; read it again"
    AUTHENTICATION_REQUIRED = 0x191, "the queue must be authenticated first"

    # Command specific status of I/O command sets: aliases where Fabrics has the same value
    CONFLICTING_ATTRIBUTES = 0x180, "attributes of the command exclude each other"
    INVALID_PROTECTION_INFORMATION = 0x181, "the protection information settings are invalid"
    READ_ONLY_RANGE = 0x182, "the range is read-only"
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183, "the command is larger than the controller's limit"
    INVALID_COMMAND_ID = 0x184, "the command identifier to cancel is invalid"
    INCOMPATIBLE_NAMESPACE = 0x185, "the namespaces' formats do not fit each other"
    FAST_COPY_NOT_POSSIBLE = 0x186, "a fast copy is not possible"
    OVERLAPPING_IO_RANGE = 0x187, "source and destination ranges overlap"
    NAMESPACE_NOT_REACHABLE = 0x188, "the other namespace cannot be reached"
    INSUFFICIENT_RESOURCES = 0x189, "not enough resources for the command"
    ZONED_BOUNDARY_ERROR = 0x1B8, "the range crosses a zone boundary"
    ZONE_IS_FULL = 0x1B9, "the zone is full"
    ZONE_IS_READ_ONLY = 0x1BA, "the zone is read-only"
    ZONE_IS_OFFLINE = 0x1BB, "the zone is offline"
    ZONE_INVALID_WRITE = 0x1BC, "the write does not start at the write pointer"
    TOO_MANY_ACTIVE_ZONES = 0x1BD, "too many zones are active"
    TOO_MANY_OPEN_ZONES = 0x1BE, "too many zones are open"
    INVALID_ZONE_STATE_TRANSITION = 0x1BF, "the zone's state does not allow it"

    # Media and data integrity errors
    WRITE_FAULT = 0x280, "data could not be committed to the media"
    UNRECOVERED_READ_ERROR = 0x281, "data could not be read back from the media"
    GUARD_CHECK_ERROR = 0x282, "the end-to-end guard check failed"
    APPLICATION_TAG_CHECK_ERROR = 0x283, "the end-to-end application tag check failed"
    REFERENCE_TAG_CHECK_ERROR = 0x284, "the end-to-end reference tag check failed"
    COMPARE_FAILURE = 0x285, "the data differs"
    ACCESS_DENIED = 0x286, "access to the range is denied"
    DEALLOCATED_OR_UNWRITTEN = 0x287, "a deallocated or unwritten logical block was read"
    STORAGE_TAG_CHECK_ERROR = 0x288, "the end-to-end storage tag check failed"

    # Path related status
    INTERNAL_PATH_ERROR = 0x300, "the controller lost its way to the namespace"
    ANA_PERSISTENT_LOSS = 0x301, "the namespace is lost for good through this controller"
    ANA_INACCESSIBLE = 0x302, "the namespace is not accessible through this controller"
    ANA_TRANSITION = 0x303, "the namespace's access state is changing"
    CONTROLLER_PATHING_ERROR = 0x360, "the controller found a path error"
    HOST_PATHING_ERROR = 0x370, "the host found a path error"
    ABORTED_BY_HOST = 0x371, "the host gave the command up"


_IO_COMMAND_SET_TEXT = {
    0x180: ("Conflicting Attributes", "attributes of the command exclude each other"),
    0x181: ("Invalid Protection Information", "the protection information settings are invalid"),
    0x182: ("Attempted Write To Read Only Range", "the range is read-only"),
    0x183: ("Command Size Limit Exceeded", "the command is larger than the controller's limit"),
    0x184: ("Invalid Command ID", "the command identifier to cancel is invalid"),
    0x185: ("Incompatible Namespace Or Format", "the namespaces' formats do not fit each other"),
}
"""What I/O commands mean by the values that Fabrics commands use too."""

_TITLES = {
    Status.SUCCESS: "Successful Completion",
    Status.INVALID_OPCODE: "Invalid Command Opcode",
    Status.INVALID_FIELD: "Invalid Field in Command",
    Status.INVALID_NAMESPACE: "Invalid Namespace or Format",
    Status.ABORTED_BY_REQUEST: "Command Abort Requested",
    Status.ABORTED_SQ_DELETION: "Command Aborted due to SQ Deletion",
    Status.ABORTED_FAILED_FUSED: "Command Aborted due to Failed Fused Command",
    Status.ABORTED_MISSING_FUSED: "Command Aborted due to Missing Fused Command",
    Status.POWER_LOSS_ABORTED: "Commands Aborted due to Power Loss Notification",
    Status.KEEP_ALIVE_EXPIRED: "Keep Alive Timer Expired",
    Status.KEEP_ALIVE_INVALID: "Keep Alive Timeout Invalid",
    Status.ABORTED_PREEMPT: "Command Aborted due to Preempt and Abort",
    Status.NAMESPACE_WRITE_PROTECTED: "Namespace is Write Protected",
    Status.INVALID_QUEUE_ID: "Invalid Queue Identifier",
    Status.ABORT_LIMIT_EXCEEDED: "Abort Command Limit Exceeded",
    Status.ASYNC_EVENT_LIMIT_EXCEEDED: "Asynchronous Event Request Limit Exceeded",
    Status.FEATURE_NOT_SAVEABLE: "Feature Identifier Not Saveable",
    Status.INVALID_CONTROLLER_ID: "Invalid Controller Identifier",
    Status.CONNECT_CONTROLLER_BUSY: "Connect Controller Busy",
    Status.ANA_PERSISTENT_LOSS: "Asymmetric Access Persistent Loss",
    Status.ANA_INACCESSIBLE: "Asymmetric Access Inaccessible",
    Status.ANA_TRANSITION: "Asymmetric Access Transition",
    Status.ABORTED_BY_HOST: "Command Aborted By Host",
    Status.DEALLOCATED_OR_UNWRITTEN: "Deallocated or Unwritten Logical Block",
}
"""The specifications' own names, where they differ from the member's in words."""

_ACRONYMS = {"Id": "ID", "Io": "I/O", "Sgl": "SGL", "Prp": "PRP", "Lba": "LBA", "Ana": "ANA", "Cmb": "CMB", "Sq": "SQ",
             "Fdp": "FDP", "Pmr": "PMR", "Nvm": "NVM"}  # fmt: skip


def status_name(status: int, *, fabrics: bool | None = None) -> str:
    """Return the standard name of a status, as ``Invalid Field in Command``; see :func:`describe_status`."""
    return _name_and_text(int(status), fabrics)[0]


def _name_and_text(status: int, fabrics: bool | None) -> tuple[str, str]:
    if fabrics is not True and status in _IO_COMMAND_SET_TEXT:
        name, text = _IO_COMMAND_SET_TEXT[status]
        if fabrics is False:
            return name, text
        other = Status(status)
        return f"{name} / {_title(other)}", f"{text}, or {other.description}"
    try:
        known = Status(status)
    except ValueError:
        return _unknown(status), ""
    return _title(known), known.description


def _title(status: Status) -> str:
    if status in _TITLES:
        return _TITLES[status]
    words = (word.capitalize() for word in status.name.split("_"))
    return " ".join(_ACRONYMS.get(word, word) for word in words)


def _unknown(status: int) -> str:
    sct, sc = status >> 8 & 7, status & 0xFF
    if sct == StatusCodeType.VENDOR_SPECIFIC or sc >= 0xC0:
        return f"Vendor Specific (SCT {sct:#x}, SC {sc:#04x})"
    return f"Unknown Status (SCT {sct:#x}, SC {sc:#04x})"


def describe_status(status: int, *, dnr: bool = False, fabrics: bool | None = None) -> str:
    """Describe a status for a person: name, what it means, number, and whether a retry makes sense.

    ``status``: SCT << 8 | SC. ``fabrics``: True when the command was a Fabrics command, False when it was one of an
    I/O command set, None when that is not known; it matters for 180h-185h only.
    """
    name, text = _name_and_text(int(status), fabrics)
    meaning = f": {text}" if text else ""
    return f"{name}{meaning} ({int(status):#05x}{', do not retry' if dnr else ''})"


def status_field(status: int, dnr: bool = False, more: bool = False) -> int:
    """Return the CQE's 16-bit status word, phase bit 0."""
    return (status & _STATUS_MASK) << 1 | more << 14 | dnr << 15


def split_status(field: int) -> tuple[int, bool, bool]:
    """Return status (SCT << 8 | SC), DNR and More of a CQE's 16-bit status word; phase and CRD are left out."""
    return field >> 1 & _STATUS_MASK, bool(field & STATUS_DNR), bool(field & STATUS_MORE)


def status_error(field: int, what: str = "", *, dw0: int = 0, fabrics: bool | None = None) -> NvmeStatusError:
    """Make the exception for a completion whose 16-bit status word is not success.

    ``what``: the command's name for the message, as ``Read`` or ``Connect to nqn...``.
    """
    status, dnr, _more = split_status(field)
    text = describe_status(status, dnr=dnr, fabrics=fabrics)
    return NvmeStatusError(status, f"{what} failed: {text}" if what else text, dnr=dnr, dw0=dw0)


def path_error(status: int) -> bool:
    """Return whether the status says that the path, not the command, failed: another path may be tried at once."""
    return int(status) >> 8 == StatusCodeType.PATH_RELATED
