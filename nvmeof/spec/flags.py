"""Bit masks of Identify data and of the effects log pages (NVMe Base 2.x, NVM Command Set 1.x)."""

from __future__ import annotations

from enum import IntFlag


class Oncs(IntFlag):
    """Optional NVM Command Support, Identify Controller bytes 521:520."""

    COMPARE = 1 << 0
    WRITE_UNCORRECTABLE = 1 << 1
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    SAVE_AND_SELECT = 1 << 4
    RESERVATIONS = 1 << 5
    TIMESTAMP = 1 << 6
    VERIFY = 1 << 7
    COPY = 1 << 8
    COPY_SINGLE_ATOMICITY = 1 << 9
    ALL_FAST_COPY = 1 << 10
    WRITE_ZEROES_DEALLOCATE = 1 << 11
    NAMESPACE_ZEROES = 1 << 12


class Oacs(IntFlag):
    """Optional Admin Command Support, Identify Controller bytes 257:256."""

    SECURITY = 1 << 0
    FORMAT_NVM = 1 << 1
    FIRMWARE = 1 << 2
    NAMESPACE_MANAGEMENT = 1 << 3
    DEVICE_SELF_TEST = 1 << 4
    DIRECTIVES = 1 << 5
    NVME_MI = 1 << 6
    VIRTUALIZATION_MANAGEMENT = 1 << 7
    DOORBELL_BUFFER_CONFIG = 1 << 8
    GET_LBA_STATUS = 1 << 9
    COMMAND_AND_FEATURE_LOCKDOWN = 1 << 10
    HOST_MANAGED_LIVE_MIGRATION = 1 << 11


class Oaes(IntFlag):
    """Optional Asynchronous Events Supported, Identify Controller bytes 95:92; bits 8 up also of Feature 0Bh."""

    NAMESPACE_ATTRIBUTE = 1 << 8
    FIRMWARE_ACTIVATION = 1 << 9
    ANA_CHANGE = 1 << 11
    PREDICTABLE_LATENCY = 1 << 12
    LBA_STATUS = 1 << 13
    ENDURANCE_GROUP = 1 << 14
    NORMAL_SHUTDOWN = 1 << 15
    TEMPERATURE_HYSTERESIS = 1 << 16
    REACHABILITY_GROUP = 1 << 17
    REACHABILITY_ASSOCIATION = 1 << 18
    ALLOCATED_NAMESPACE_ATTRIBUTE = 1 << 19
    ZONE_DESCRIPTOR = 1 << 27
    DISCOVERY_LOG = 1 << 31


class Ctratt(IntFlag):
    """Controller Attributes, Identify Controller bytes 99:96."""

    HOST_ID_128_BIT = 1 << 0
    NON_OPERATIONAL_POWER_STATE = 1 << 1
    NVM_SETS = 1 << 2
    READ_RECOVERY_LEVELS = 1 << 3
    ENDURANCE_GROUPS = 1 << 4
    PREDICTABLE_LATENCY_MODE = 1 << 5
    TRAFFIC_BASED_KEEP_ALIVE = 1 << 6
    NAMESPACE_GRANULARITY = 1 << 7
    SQ_ASSOCIATIONS = 1 << 8
    UUID_LIST = 1 << 9
    MULTI_DOMAIN = 1 << 10
    FIXED_CAPACITY_MANAGEMENT = 1 << 11
    VARIABLE_CAPACITY_MANAGEMENT = 1 << 12
    DELETE_ENDURANCE_GROUP = 1 << 13
    DELETE_NVM_SET = 1 << 14
    EXTENDED_LBA_FORMATS = 1 << 15
    MDTS_EXCLUDES_METADATA = 1 << 16
    HMB_RESTRICT_NON_OPERATIONAL = 1 << 17
    RESERVATIONS_AND_HOST_ID = 1 << 18
    FLEXIBLE_DATA_PLACEMENT = 1 << 19


class Cmic(IntFlag):
    """Controller Multi-Path I/O and Namespace Sharing Capabilities, Identify Controller byte 76."""

    MULTIPLE_PORTS = 1 << 0
    MULTIPLE_CONTROLLERS = 1 << 1
    SRIOV = 1 << 2
    ANA_REPORTING = 1 << 3
    NO_ANA_LOG_TIMEOUT = 1 << 4


class Lpa(IntFlag):
    """Log Page Attributes, Identify Controller byte 261."""

    SMART_PER_NAMESPACE = 1 << 0
    COMMANDS_SUPPORTED_AND_EFFECTS = 1 << 1
    EXTENDED_DATA = 1 << 2
    TELEMETRY = 1 << 3
    PERSISTENT_EVENTS = 1 << 4
    SUPPORTED_LOG_PAGES = 1 << 5
    TELEMETRY_DATA_AREA_4 = 1 << 6


class Sgls(IntFlag):
    """SGL Support, Identify Controller bytes 539:536; bits 1:0 are the alignment rule (1: none, 2: dword)."""

    NO_ALIGNMENT = 1
    DWORD_ALIGNMENT = 2
    KEYED_DATA_BLOCK = 1 << 2
    BIT_BUCKET = 1 << 16
    METADATA_BYTE_ALIGNED = 1 << 17
    LONGER_THAN_DATA = 1 << 18
    MPTR_SGL = 1 << 19
    ADDRESS_AS_OFFSET = 1 << 20
    TRANSPORT_DATA_BLOCK = 1 << 21


class Nsfeat(IntFlag):
    """Namespace Features, Identify Namespace byte 24."""

    THIN_PROVISIONING = 1 << 0
    NAMESPACE_ATOMICS = 1 << 1
    DEALLOCATED_ERROR = 1 << 2
    UID_REUSE = 1 << 3
    OPTIMAL_PERFORMANCE = 1 << 4
    OPTIMAL_PERFORMANCE_LARGE = 1 << 5
    MULTIPLE_ATOMICITY_MODE = 1 << 6
    OPTIMAL_READ_PERFORMANCE = 1 << 7


class Nmic(IntFlag):
    """Namespace Multi-path I/O and Namespace Sharing Capabilities, Identify Namespace byte 30."""

    SHARED = 1 << 0
    DISPERSED = 1 << 1


class Nsattr(IntFlag):
    """Namespace Attributes, Identify Namespace byte 99."""

    WRITE_PROTECTED = 1 << 0


class CommandEffects(IntFlag):
    """One entry of the Commands Supported and Effects log (also the Features log, where CCC is absent)."""

    SUPPORTED = 1 << 0
    LOGICAL_BLOCK_CONTENT_CHANGE = 1 << 1
    NAMESPACE_CAPABILITY_CHANGE = 1 << 2
    NAMESPACE_INVENTORY_CHANGE = 1 << 3
    CONTROLLER_CAPABILITY_CHANGE = 1 << 4
    COMMAND_SUBMISSION_NO_OTHER_ON_NAMESPACE = 1 << 16
    COMMAND_SUBMISSION_NO_OTHER = 2 << 16
    UUID_SELECTION = 1 << 19
    NAMESPACE_SCOPE = 1 << 20
    CONTROLLER_SCOPE = 1 << 21
    SUBSYSTEM_SCOPE = 1 << 25
