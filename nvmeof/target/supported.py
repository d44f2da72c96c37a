"""docs/supported.md, made from the very tables that commands go through.

`python -m nvmeof.target.supported` prints it; a test compares it with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any

from nvmeof.spec.enums import AdminOpcode, Cns, Csi, FabricsType, FeatureId, LogPageId, NvmOpcode
from nvmeof.spec.properties import PROPERTIES
from nvmeof.target.commands.dispatch.base import CommandSpec, Direction, NsidRule
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.fabrics import SUPPORTED_PROPERTIES, WRITABLE_PROPERTIES
from nvmeof.target.commands.rows.features import FeatureSpec, FeatureTable
from nvmeof.target.commands.rows.log_pages import LogPageSpec, LogPageTable
from nvmeof.target.commands.rows.structures import IdentifySpec, IdentifyTable
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.core.tables import Tables

_NO_NAMESPACE = "as in every other state: it is for no namespace"
_PCIE = "for PCI Express only"
_LATER = "not there yet"
_NO_SETS = "no NVM sets or domains, and one endurance group that has nothing to configure"
_NO_FDP = "no Flexible Data Placement: memory and files have no reclaim units to choose from"
_NO_HARDWARE = "says something of hardware that a program does not have"
_NO_FIRMWARE = "the firmware is this program: a host must not replace it"
_NO_DIRECTIVES = "memory and files make no use of streams or placement hints"
_NO_WINDOWS = "no NVM sets, and no background work that could be kept out of a window"
_ONE_POWER_STATE = "one power state: a program saves no power that a host could choose"
_NO_CENTRAL = "for centralized discovery controllers"
_NO_MIGRATION = "for controllers that move with a virtual machine"
_NO_MI = "no management interface (NVMe-MI): a program is managed by the machine that it runs on"
_NO_LOCKDOWN = "nothing could lift it again: there is no management interface; who may connect is configured"
_ONE_GROUP = "every namespace can be reached from every other: nothing to tell"
_NO_EXPORT = "subsystems, ports and who may connect are configured where the target is started"

_WHY_ADMIN: dict[int, str] = {
    AdminOpcode.DELETE_IO_SQ: _PCIE,
    AdminOpcode.CREATE_IO_SQ: _PCIE,
    AdminOpcode.DELETE_IO_CQ: _PCIE,
    AdminOpcode.CREATE_IO_CQ: _PCIE,
    AdminOpcode.FIRMWARE_COMMIT: _NO_FIRMWARE,
    AdminOpcode.FIRMWARE_IMAGE_DOWNLOAD: _NO_FIRMWARE,
    AdminOpcode.DIRECTIVE_SEND: _NO_DIRECTIVES,
    AdminOpcode.DIRECTIVE_RECEIVE: _NO_DIRECTIVES,
    AdminOpcode.VIRTUALIZATION_MANAGEMENT: _PCIE,
    AdminOpcode.NVME_MI_SEND: _NO_MI,
    AdminOpcode.NVME_MI_RECEIVE: _NO_MI,
    AdminOpcode.CAPACITY_MANAGEMENT: _NO_SETS,
    AdminOpcode.DISCOVERY_INFORMATION_MANAGEMENT: _NO_CENTRAL,
    AdminOpcode.FABRIC_ZONING_RECEIVE: _NO_CENTRAL,
    AdminOpcode.FABRIC_ZONING_LOOKUP: _NO_CENTRAL,
    AdminOpcode.FABRIC_ZONING_SEND: _NO_CENTRAL,
    AdminOpcode.SEND_DISCOVERY_LOG_PAGE: _NO_CENTRAL,
    AdminOpcode.LOCKDOWN: _NO_LOCKDOWN,
    AdminOpcode.CLEAR_EXPORTED_NVM_RESOURCE_CONFIGURATION: _NO_EXPORT,
    AdminOpcode.CREATE_EXPORTED_NVM_SUBSYSTEM: _NO_EXPORT,
    AdminOpcode.MANAGE_EXPORTED_NVM_SUBSYSTEM: _NO_EXPORT,
    AdminOpcode.MANAGE_EXPORTED_NAMESPACE: _NO_EXPORT,
    AdminOpcode.MANAGE_EXPORTED_PORT: _NO_EXPORT,
    AdminOpcode.TRACK_SEND: _NO_MIGRATION,
    AdminOpcode.TRACK_RECEIVE: _NO_MIGRATION,
    AdminOpcode.MIGRATION_SEND: _NO_MIGRATION,
    AdminOpcode.MIGRATION_RECEIVE: _NO_MIGRATION,
    AdminOpcode.CONTROLLER_DATA_QUEUE: _NO_MIGRATION,
    AdminOpcode.DOORBELL_BUFFER_CONFIG: _PCIE,
    AdminOpcode.SECURITY_SEND: "no security protocols besides those of Fabrics",
    AdminOpcode.SECURITY_RECEIVE: "no security protocols besides those of Fabrics",
}
_WHY_NVM: dict[int, str] = {
    NvmOpcode.IO_MANAGEMENT_RECEIVE: _NO_FDP,
    NvmOpcode.IO_MANAGEMENT_SEND: _NO_FDP,
}
_WHY_FABRICS: dict[int, str] = {}
_WHY_IDENTIFY: dict[int, str] = {
    Cns.NVM_SETS: _NO_SETS,
    Cns.PRIMARY_CONTROLLER_CAPABILITIES: _PCIE,
    Cns.SECONDARY_CONTROLLERS: _PCIE,
    Cns.DOMAINS: _NO_SETS,
    Cns.UNDERLYING_NAMESPACES: _NO_EXPORT,
    Cns.PORTS: _NO_EXPORT,
    Cns.SUPPORTED_CONTROLLER_STATE_FORMATS: _NO_MIGRATION,
}
_WHY_LOG: dict[int, str] = {
    LogPageId.PREDICTABLE_LATENCY_PER_NVM_SET: _NO_SETS,
    LogPageId.PREDICTABLE_LATENCY_EVENTS: _NO_SETS,
    LogPageId.ENDURANCE_GROUP_EVENTS: "the endurance group has no events: nothing wears out",
    LogPageId.MEDIA_UNIT_STATUS: "no media units: a namespace is memory or a file",
    LogPageId.SUPPORTED_CAPACITY_CONFIGURATIONS: _NO_SETS,
    LogPageId.COMMAND_AND_FEATURE_LOCKDOWN: _NO_LOCKDOWN,
    LogPageId.BOOT_PARTITION: _NO_HARDWARE,
    LogPageId.ROTATIONAL_MEDIA: _NO_HARDWARE,
    LogPageId.PHY_RX_EYE_MEASUREMENT: _NO_HARDWARE,
    LogPageId.DISPERSED_NAMESPACE_NVM_SUBSYSTEMS: "a namespace belongs to one subsystem",
    LogPageId.MANAGEMENT_ADDRESS_LIST: _NO_MI,
    LogPageId.REACHABILITY_GROUPS: _ONE_GROUP,
    LogPageId.REACHABILITY_ASSOCIATIONS: _ONE_GROUP,
    LogPageId.FDP_CONFIGURATIONS: _NO_FDP,
    LogPageId.RECLAIM_UNIT_HANDLE_USAGE: _NO_FDP,
    LogPageId.FDP_STATISTICS: _NO_FDP,
    LogPageId.FDP_EVENTS: _NO_FDP,
    LogPageId.HOST_DISCOVERY: _NO_CENTRAL,
    LogPageId.AVE_DISCOVERY: _NO_CENTRAL,
    LogPageId.PULL_MODEL_DDC_REQUEST: _NO_CENTRAL,
}
_WHY_FEATURE: dict[int, str] = {
    FeatureId.INTERRUPT_COALESCING: _PCIE,
    FeatureId.INTERRUPT_VECTOR_CONFIGURATION: _PCIE,
    FeatureId.AUTONOMOUS_POWER_STATE_TRANSITION: _ONE_POWER_STATE,
    FeatureId.HOST_MEMORY_BUFFER: _PCIE,
    FeatureId.HOST_CONTROLLED_THERMAL_MANAGEMENT: "a program has no temperature to bring down",
    FeatureId.NON_OPERATIONAL_POWER_STATE_CONFIG: _ONE_POWER_STATE,
    FeatureId.READ_RECOVERY_LEVEL_CONFIG: "reads are not recovered: what cannot be read cannot be read later either",
    FeatureId.PREDICTABLE_LATENCY_MODE_CONFIG: _NO_WINDOWS,
    FeatureId.PREDICTABLE_LATENCY_MODE_WINDOW: _NO_WINDOWS,
    FeatureId.ENDURANCE_GROUP_EVENT_CONFIGURATION: "the endurance group has no events: nothing wears out",
    FeatureId.SPINUP_CONTROL: "nothing spins",
    FeatureId.POWER_LOSS_SIGNALING_CONFIG: "there is no signal that power is about to go",
    FeatureId.PERFORMANCE_CHARACTERISTICS: "memory and files of others have no performance to promise",
    FeatureId.FLEXIBLE_DATA_PLACEMENT: _NO_FDP,
    FeatureId.FLEXIBLE_DATA_PLACEMENT_EVENTS: _NO_FDP,
    FeatureId.CONTROLLER_DATA_QUEUE: _NO_MIGRATION,
    FeatureId.EMBEDDED_MANAGEMENT_CONTROLLER_ADDRESS: _NO_MI,
    FeatureId.HOST_MANAGEMENT_AGENT_ADDRESS: _NO_MI,
    FeatureId.BOOT_PARTITION_WRITE_PROTECTION_CONFIG: "no boot partitions: a host cannot read them over fabrics",
}
_NSID_WORDS = {
    NsidRule.UNUSED: "",
    NsidRule.ZERO: "",
    NsidRule.ACTIVE: "NSID: an active namespace",
    NsidRule.ACTIVE_OR_ALL: "NSID: an active namespace, or FFFFFFFFh for all",
    NsidRule.HANDLER: "",
}
_DIRECTION_WORDS = {
    Direction.NONE: "no data",
    Direction.HOST_TO_CONTROLLER: "data to the controller",
    Direction.CONTROLLER_TO_HOST: "data to the host",
}

_ACRONYMS = frozenset(
    {"ANA", "AVE", "CSI", "DDC", "FDP", "IO", "LBA", "NVM", "NVME", "PHY", "SQ", "CQ", "MI", "RX", "ID"}
)

_INTRODUCTION = """# What the target supports

Made from the target's tables by `python -m nvmeof.target.supported`; a test keeps this page equal to them. What is
marked "no" is refused with Invalid Command Opcode, Invalid Field in Command or Invalid Log Page. "io" and "discovery"
name the kind of controller. Where the target is stricter than Linux, and when a refusal says "do not retry":
[stricter-than-linux.md](stricter-than-linux.md), [do-not-retry.md](do-not-retry.md).
"""


def _title(member: IntEnum) -> str:
    words = member.name.split("_")
    return " ".join(word if word in _ACRONYMS else word.capitalize() for word in words).replace("IO", "I/O")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _command_remark(spec: CommandSpec) -> str:
    parts = [_DIRECTION_WORDS[spec.direction], _NSID_WORDS[spec.nsid], spec.remark]
    return "; ".join(part for part in parts if part)


def _rows(
    members: Iterable[IntEnum], there: Mapping[int, Any], why: Mapping[int, str], remark: Callable[[Any], str]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield the members that are `there`, with a remark on each row, then the others with the reason `why`."""
    for member in members:
        row = there.get(member)
        if row is None:
            yield f"{member:02X}h", _title(member), "no", why.get(member, _LATER)
        else:
            yield f"{member:02X}h", row.name, "yes", remark(row)


def _commands(
    kind: type[IntEnum], table: Mapping[int, CommandSpec], why: Mapping[int, str], zoned: Mapping[int, CommandSpec]
) -> Iterator[str]:
    # Fabrics and zones have sections of their own.
    members = [each for each in kind if each.name != "FABRICS" and not (kind is NvmOpcode and each in zoned)]
    return _table(("opcode", "command", "", "remark"), _rows(members, table, why, _command_remark))


def _ana(commands: CommandTables, zoned: Mapping[int, CommandSpec], features: FeatureTable) -> Iterator[str]:
    """Yield how commands are treated in the states Inaccessible, Persistent Loss and Change, by their rows."""
    yield "While the ANA group of a command's namespace is inaccessible (302h), lost (301h) or changing (303h) on the"
    yield "port of its controller (NVMe Base 8.1.1.10; [howto/ana.md](howto/ana.md)):"
    yield ""
    tables = (("admin", commands.admin), ("I/O", commands.nvm), ("I/O, zoned", zoned))
    without = (NsidRule.UNUSED, NsidRule.ZERO)
    yield from _table(
        ("opcode", "command", "effect"),
        (
            (f"{kind} {opcode:02X}h", spec.name, _NO_NAMESPACE if spec.nsid in without else spec.ana.value)
            for kind, table in tables
            for opcode, spec in sorted(table.items())
        ),
    )
    unavailable = ", ".join(f"{row.name} ({fid:02X}h)" for fid, row in sorted(features.items()) if row.needs_access)
    yield ""
    yield f"Features that are not available then: {unavailable}."


def _zoned_commands(zoned: Mapping[int, CommandSpec]) -> Iterator[str]:
    yield "All of the NVM Command Set, by the rules of zones, and:"
    yield ""
    yield from _table(
        ("opcode", "command", "", "remark"),
        ((f"{opcode:02X}h", spec.name, "yes", _command_remark(spec)) for opcode, spec in sorted(zoned.items())),
    )


def _where(io: bool, discovery: bool) -> str:
    return ", ".join(name for name, there in (("io", io), ("discovery", discovery)) if there)


def _identify_remark(row: IdentifySpec) -> str:
    return _where(True, row.discovery) + ("; of the NVM and the Zoned Namespace Command Set" if row.csi else "")


def _log_page_remark(row: LogPageSpec) -> str:
    remark = _where(row.io, row.discovery) + ("; also per namespace" if row.per_namespace else "")
    return remark + (f"; {row.remark}" if row.remark else "")


def _feature_remark(row: FeatureSpec) -> str:
    remark = f"{_where(True, row.discovery)}; of the {row.scope.word}; "
    remark += "changeable" if row.apply is not None else "not changeable"
    remark += ", saveable" if row.saveable else ", always saved" if row.persistent else ""
    return remark + (f"; {row.condition}" if row.condition else "")


def _properties() -> Iterator[str]:
    rows = []
    for offset, info in PROPERTIES.items():
        if offset in SUPPORTED_PROPERTIES:
            access = "read and write" if offset in WRITABLE_PROPERTIES else "read"
            rows.append((f"{offset:02X}h", info.name, "yes", f"{info.size} bytes, {access}"))
        else:
            rows.append((f"{offset:02X}h", info.name, "no", "CAP does not offer it"))
    return _table(("offset", "property", "", "remark"), rows)


def render(tables: Tables) -> str:
    """Make the whole page, ending with a newline."""
    commands = tables[CommandTables]
    zoned = commands.beside_nvm(Csi.ZONED)
    fabrics = {**commands.fabrics_admin, **commands.fabrics_io}
    identify = _rows(Cns, tables[IdentifyTable], _WHY_IDENTIFY, _identify_remark)
    log_pages = _rows(LogPageId, tables[LogPageTable], _WHY_LOG, _log_page_remark)
    features = _rows(FeatureId, tables[FeatureTable], _WHY_FEATURE, _feature_remark)
    sections = (
        ("Fabrics commands", _commands(FabricsType, fabrics, _WHY_FABRICS, zoned)),
        ("Properties", _properties()),
        ("Admin commands", _commands(AdminOpcode, commands.admin, _WHY_ADMIN, zoned)),
        ("I/O commands (NVM Command Set)", _commands(NvmOpcode, commands.nvm, _WHY_NVM, zoned)),
        ("I/O commands of zoned namespaces (Zoned Namespace Command Set)", _zoned_commands(zoned)),
        ("Commands and ANA states", _ana(commands, zoned, tables[FeatureTable])),
        ("Identify data structures", _table(("CNS", "structure", "", "remark"), identify)),
        ("Log pages", _table(("LID", "log page", "", "remark"), log_pages)),
        ("Features", _table(("FID", "feature", "", "remark"), features)),
    )
    parts = [_INTRODUCTION]
    for title, lines in sections:
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(render(standard_tables()), end="")
