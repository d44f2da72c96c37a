"""Opcodes, identifiers and other numbers of NVMe Base 2.x, NVM Command Set 1.x and NVMe over Fabrics.

Only numbers and their names: no structure, no behaviour. Members may be compared with the raw integers of a command.
The bit masks of :mod:`nvmeof.spec.flags` are here by name too.
"""

from __future__ import annotations

from enum import IntEnum

from nvmeof.spec.flags import Cmic as Cmic
from nvmeof.spec.flags import CommandEffects as CommandEffects
from nvmeof.spec.flags import Ctratt as Ctratt
from nvmeof.spec.flags import Lpa as Lpa
from nvmeof.spec.flags import Nmic as Nmic
from nvmeof.spec.flags import Nsattr as Nsattr
from nvmeof.spec.flags import Nsfeat as Nsfeat
from nvmeof.spec.flags import Oacs as Oacs
from nvmeof.spec.flags import Oaes as Oaes
from nvmeof.spec.flags import Oncs as Oncs
from nvmeof.spec.flags import Sgls as Sgls

NSID_ALL = 0xFFFFFFFF
"""The broadcast NSID."""

FABRICS_OPCODE = 0x7F
"""Opcode of all Fabrics commands, on admin and I/O queues; the command is in FCTYPE."""

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
"""The well-known NQN of the discovery service."""

NVME_PORT = 4420
"""Registered TCP port of NVMe over Fabrics."""

DISCOVERY_PORT = 8009
"""Registered TCP port of the NVMe/TCP discovery service."""

CNTLID_DYNAMIC = 0xFFFF
"""Connect: the controller is allocated by the subsystem."""

CNTLID_STATIC_ANY = 0xFFFE
"""Connect in the static controller model: any controller. Also the discovery entry's CNTLID for that model."""

CNTLID_MAX = 0xFFEF
"""The largest controller ID that a subsystem may allocate."""

IDENTIFY_BYTES = 4096
"""Length of every Identify data structure."""


class AdminOpcode(IntEnum):
    """Admin commands (NVMe Base, Opcodes for Admin Commands). Bits 1:0 are the data direction."""

    DELETE_IO_SQ = 0x00
    CREATE_IO_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_IO_CQ = 0x04
    CREATE_IO_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_IMAGE_DOWNLOAD = 0x11
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DIRECTIVE_SEND = 0x19
    DIRECTIVE_RECEIVE = 0x1A
    VIRTUALIZATION_MANAGEMENT = 0x1C
    NVME_MI_SEND = 0x1D
    NVME_MI_RECEIVE = 0x1E
    CAPACITY_MANAGEMENT = 0x20
    DISCOVERY_INFORMATION_MANAGEMENT = 0x21
    FABRIC_ZONING_RECEIVE = 0x22
    LOCKDOWN = 0x24
    FABRIC_ZONING_LOOKUP = 0x25
    CLEAR_EXPORTED_NVM_RESOURCE_CONFIGURATION = 0x28
    FABRIC_ZONING_SEND = 0x29
    CREATE_EXPORTED_NVM_SUBSYSTEM = 0x2A
    MANAGE_EXPORTED_NVM_SUBSYSTEM = 0x2D
    MANAGE_EXPORTED_NAMESPACE = 0x31
    MANAGE_EXPORTED_PORT = 0x35
    SEND_DISCOVERY_LOG_PAGE = 0x39
    TRACK_SEND = 0x3D
    TRACK_RECEIVE = 0x3E
    MIGRATION_SEND = 0x41
    MIGRATION_RECEIVE = 0x42
    CONTROLLER_DATA_QUEUE = 0x45
    DOORBELL_BUFFER_CONFIG = 0x7C
    FABRICS = 0x7F
    FORMAT_NVM = 0x80
    SECURITY_SEND = 0x81
    SECURITY_RECEIVE = 0x82
    SANITIZE = 0x84
    GET_LBA_STATUS = 0x86


class NvmOpcode(IntEnum):
    """I/O commands (NVM Command Set, Opcodes for NVM Commands; those of the Base specification included)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    IO_MANAGEMENT_RECEIVE = 0x12
    RESERVATION_RELEASE = 0x15
    CANCEL = 0x18
    COPY = 0x19
    IO_MANAGEMENT_SEND = 0x1D
    ZONE_MANAGEMENT_SEND = 0x79
    ZONE_MANAGEMENT_RECEIVE = 0x7A
    ZONE_APPEND = 0x7D
    FABRICS = 0x7F


class FabricsType(IntEnum):
    """FCTYPE, byte 4 of a Fabrics command."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    AUTH_SEND = 0x05
    AUTH_RECEIVE = 0x06
    DISCONNECT = 0x08


class DataTransfer(IntEnum):
    """Bits 1:0 of an opcode (or of FCTYPE): which way data goes."""

    NONE = 0
    HOST_TO_CONTROLLER = 1
    CONTROLLER_TO_HOST = 2
    BIDIRECTIONAL = 3


class Cns(IntEnum):
    """What Identify asks for: CDW10 bits 7:0."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NVM_SETS = 0x04
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    FORMAT_NAMESPACE = 0x09
    CSI_FORMAT_NAMESPACE = 0x0A
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    ATTACHED_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    PRIMARY_CONTROLLER_CAPABILITIES = 0x14
    SECONDARY_CONTROLLERS = 0x15
    NAMESPACE_GRANULARITY = 0x16
    UUIDS = 0x17
    DOMAINS = 0x18
    ENDURANCE_GROUPS = 0x19
    CSI_ALLOCATED_NAMESPACES = 0x1A
    CSI_ALLOCATED_NAMESPACE = 0x1B
    IO_COMMAND_SETS = 0x1C
    UNDERLYING_NAMESPACES = 0x1D
    PORTS = 0x1E
    INDEPENDENT_ALLOCATED_NAMESPACE = 0x1F
    SUPPORTED_CONTROLLER_STATE_FORMATS = 0x20


class Csi(IntEnum):
    """I/O Command Set Identifier."""

    NVM = 0
    KEY_VALUE = 1
    ZONED = 2
    SUBSYSTEM_LOCAL_MEMORY = 3
    COMPUTATIONAL_PROGRAMS = 4


class LogPageId(IntEnum):
    """Log page identifiers: CDW10 bits 7:0 of Get Log Page."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART_HEALTH = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_SUPPORTED_AND_EFFECTS = 0x05
    DEVICE_SELF_TEST = 0x06
    TELEMETRY_HOST = 0x07
    TELEMETRY_CONTROLLER = 0x08
    ENDURANCE_GROUP = 0x09
    PREDICTABLE_LATENCY_PER_NVM_SET = 0x0A
    PREDICTABLE_LATENCY_EVENTS = 0x0B
    ANA = 0x0C
    PERSISTENT_EVENTS = 0x0D
    LBA_STATUS = 0x0E
    ENDURANCE_GROUP_EVENTS = 0x0F
    MEDIA_UNIT_STATUS = 0x10
    SUPPORTED_CAPACITY_CONFIGURATIONS = 0x11
    FEATURES_SUPPORTED_AND_EFFECTS = 0x12
    NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS = 0x13
    COMMAND_AND_FEATURE_LOCKDOWN = 0x14
    BOOT_PARTITION = 0x15
    ROTATIONAL_MEDIA = 0x16
    DISPERSED_NAMESPACE_NVM_SUBSYSTEMS = 0x17
    MANAGEMENT_ADDRESS_LIST = 0x18
    PHY_RX_EYE_MEASUREMENT = 0x19
    REACHABILITY_GROUPS = 0x1A
    REACHABILITY_ASSOCIATIONS = 0x1B
    CHANGED_ALLOCATED_NAMESPACES = 0x1C
    FDP_CONFIGURATIONS = 0x20
    RECLAIM_UNIT_HANDLE_USAGE = 0x21
    FDP_STATISTICS = 0x22
    FDP_EVENTS = 0x23
    DISCOVERY = 0x70
    HOST_DISCOVERY = 0x71
    AVE_DISCOVERY = 0x72
    PULL_MODEL_DDC_REQUEST = 0x73
    RESERVATION_NOTIFICATION = 0x80
    SANITIZE_STATUS = 0x81
    CHANGED_ZONES = 0xBF


class FeatureId(IntEnum):
    """Feature identifiers: CDW10 bits 7:0 of Get and Set Features."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    LBA_RANGE_TYPE = 0x03
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY_NORMAL = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    AUTONOMOUS_POWER_STATE_TRANSITION = 0x0C
    HOST_MEMORY_BUFFER = 0x0D
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10
    NON_OPERATIONAL_POWER_STATE_CONFIG = 0x11
    READ_RECOVERY_LEVEL_CONFIG = 0x12
    PREDICTABLE_LATENCY_MODE_CONFIG = 0x13
    PREDICTABLE_LATENCY_MODE_WINDOW = 0x14
    LBA_STATUS_REPORT_INTERVAL = 0x15
    HOST_BEHAVIOR_SUPPORT = 0x16
    SANITIZE_CONFIG = 0x17
    ENDURANCE_GROUP_EVENT_CONFIGURATION = 0x18
    IO_COMMAND_SET_PROFILE = 0x19
    SPINUP_CONTROL = 0x1A
    POWER_LOSS_SIGNALING_CONFIG = 0x1B
    PERFORMANCE_CHARACTERISTICS = 0x1C
    FLEXIBLE_DATA_PLACEMENT = 0x1D
    FLEXIBLE_DATA_PLACEMENT_EVENTS = 0x1E
    NAMESPACE_ADMIN_LABEL = 0x1F
    CONTROLLER_DATA_QUEUE = 0x21
    EMBEDDED_MANAGEMENT_CONTROLLER_ADDRESS = 0x78
    HOST_MANAGEMENT_AGENT_ADDRESS = 0x79
    ENHANCED_CONTROLLER_METADATA = 0x7D
    CONTROLLER_METADATA = 0x7E
    NAMESPACE_METADATA = 0x7F
    SOFTWARE_PROGRESS_MARKER = 0x80
    HOST_IDENTIFIER = 0x81
    RESERVATION_NOTIFICATION_MASK = 0x82
    RESERVATION_PERSISTENCE = 0x83
    NAMESPACE_WRITE_PROTECTION_CONFIG = 0x84
    BOOT_PARTITION_WRITE_PROTECTION_CONFIG = 0x85


class FeatureSelect(IntEnum):
    """SEL of Get Features: CDW10 bits 10:8."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    SUPPORTED_CAPABILITIES = 3


class Trtype(IntEnum):
    """Transport type of a discovery entry. 4 for NVMe over MPTCP is provisional (proposed for Linux, not allocated)."""

    UNSPECIFIED = 0
    RDMA = 1
    FC = 2
    TCP = 3
    MPTCP = 4
    LOOP = 254


class Adrfam(IntEnum):
    """Address family of a discovery entry."""

    PCI = 0
    IPV4 = 1
    IPV6 = 2
    IB = 3
    FC = 4
    LOOP = 254


class SubType(IntEnum):
    """What a discovery entry refers to."""

    REFERRAL = 1
    NVM = 2
    CURRENT_DISCOVERY = 3


class TcpProtocol(IntEnum):
    """Protocol below NVMe/TCP: TSAS byte 1 in an early form of NVMe over MPTCP for Linux; reserved in the standard."""

    TCP = 0
    MPTCP = 1


class Treq(IntEnum):
    """Transport requirements: secure channel, bits 1:0; bit 2 says that SQ flow control may be disabled."""

    NOT_SPECIFIED = 0
    SECURE_CHANNEL_REQUIRED = 1
    SECURE_CHANNEL_NOT_REQUIRED = 2
    DISABLE_SQ_FLOW_CONTROL = 4


TREQ_SECURE_CHANNEL = 3
"""Bits 1:0 of TREQ."""


class SecType(IntEnum):
    """TSAS of NVMe/TCP, byte 0: security type."""

    NONE = 0
    TLS_1_2 = 1
    TLS_1_3 = 2


class ControllerType(IntEnum):
    """CNTRLTYPE of Identify Controller."""

    NOT_REPORTED = 0
    IO = 1
    DISCOVERY = 2
    ADMINISTRATIVE = 3


class DiscoveryControllerType(IntEnum):
    """DCTYPE of Identify Controller."""

    NOT_REPORTED = 0
    DDC = 1
    CDC = 2


class AsyncEventType(IntEnum):
    """Asynchronous Event Request completion, DW0 bits 2:0."""

    ERROR_STATUS = 0
    SMART_HEALTH = 1
    NOTICE = 2
    IMMEDIATE = 3
    ONE_SHOT = 4
    IO_COMMAND_SET_SPECIFIC = 6
    VENDOR_SPECIFIC = 7


class AsyncErrorInfo(IntEnum):
    """Event information of :attr:`AsyncEventType.ERROR_STATUS`."""

    INVALID_DOORBELL_REGISTER = 0
    INVALID_DOORBELL_VALUE = 1
    DIAGNOSTIC_FAILURE = 2
    PERSISTENT_INTERNAL_ERROR = 3
    TRANSIENT_INTERNAL_ERROR = 4
    FIRMWARE_IMAGE_LOAD_ERROR = 5


class AsyncSmartInfo(IntEnum):
    """Event information of :attr:`AsyncEventType.SMART_HEALTH`."""

    NVM_SUBSYSTEM_RELIABILITY = 0
    TEMPERATURE_THRESHOLD = 1
    SPARE_BELOW_THRESHOLD = 2


class AsyncNoticeInfo(IntEnum):
    """Event information of :attr:`AsyncEventType.NOTICE`."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00
    FIRMWARE_ACTIVATION_STARTING = 0x01
    TELEMETRY_LOG_CHANGED = 0x02
    ANA_CHANGE = 0x03
    PREDICTABLE_LATENCY_EVENT = 0x04
    LBA_STATUS_INFORMATION = 0x05
    ENDURANCE_GROUP_EVENT = 0x06
    REACHABILITY_GROUP_CHANGE = 0x07
    REACHABILITY_ASSOCIATION_CHANGE = 0x08
    ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED = 0x09
    ZONE_DESCRIPTOR_CHANGED = 0xEF
    DISCOVERY_LOG_CHANGE = 0xF0
    HOST_DISCOVERY_LOG_CHANGE = 0xF1
    AVE_DISCOVERY_LOG_CHANGE = 0xF2
    PULL_MODEL_DDC_REQUEST = 0xF3


class AsyncCommandSetInfo(IntEnum):
    """Event information of :attr:`AsyncEventType.IO_COMMAND_SET_SPECIFIC`."""

    RESERVATION_LOG_AVAILABLE = 0
    SANITIZE_COMPLETED = 1
    SANITIZE_COMPLETED_UNEXPECTED_DEALLOCATION = 2


class AnaState(IntEnum):
    """Asymmetric Namespace Access state of a group."""

    OPTIMIZED = 0x1
    NON_OPTIMIZED = 0x2
    INACCESSIBLE = 0x3
    PERSISTENT_LOSS = 0x4
    CHANGE = 0xF


class NamespaceIdType(IntEnum):
    """NIDT of a namespace identification descriptor (Identify CNS 03h)."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    CSI = 4
