"""Identify: one row per data structure (NVMe Base and NVM Command Set, Identify command)."""

from __future__ import annotations

from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.spec.enums import (
    CNTLID_DYNAMIC,
    Cmic,
    Cns,
    ControllerType,
    Csi,
    Ctratt,
    DiscoveryControllerType,
    Oncs,
    Sgls,
)
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    IDENTIFY_CONTROLLER_NVM,
    IO_COMMAND_SETS,
    IdentifyCommand,
    mdts_field,
)
from nvmeof.spec.identify_namespace import (
    IDENTIFY_NAMESPACE_NVM,
)
from nvmeof.spec.media import DSTO_ONE_AT_A_TIME, NWPC_WRITE_PROTECT
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.spec.uuid_list import build_uuid_list
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.base import Completion
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.io.copy import COPY_FORMATS
from nvmeof.target.commands.io.verify import VERIFY_LIMIT_BYTES
from nvmeof.target.commands.logs.logs_events import PELS
from nvmeof.target.commands.media.format_nvm import FNA
from nvmeof.target.commands.media.sanitize import SANICAP
from nvmeof.target.commands.media.self_test import extended_minutes
from nvmeof.target.commands.rows.log_pages import log_attributes
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.commands.rows.structures import (
    CommandSetStructures,
    CommandSetTable,
    IdentifySpec,
    IdentifyTable,
)
from nvmeof.target.commands.rows.uuid_selection import UUIDS
from nvmeof.target.controller.controller import KEEP_ALIVE_GRANULARITY_SECONDS, VERSION, Controller
from nvmeof.target.controller.error_log import ERROR_LOG_ENTRIES
from nvmeof.target.controller.health import CRITICAL_KELVIN, WARNING_KELVIN
from nvmeof.target.namespaces.endurance_group import ENDURANCE_GROUP_ID
from nvmeof.target.namespaces.namespace import ATOMIC_WRITE_BYTES, Namespace
from nvmeof.target.storage.base import BLOCK_BYTES_CHOICES
from nvmeof.target.subsystem.ana import ANA_TRANSITION_SECONDS
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.wire import build_cached

ABORT_LIMIT = 4
"""How many Abort commands may be outstanding (ACL + 1)."""
SHUTDOWN_MICROSECONDS = 30_000_000
"""RTD3E: how long a normal shutdown, which flushes, may take."""
_CDW10 = SQE.error_location("cdw10")
_NSID = SQE.error_location("nsid")
_VWC_FLUSH_ALL = 0b11 << 1  # Flush takes FFFFFFFFh
_VWC_PRESENT = 1
_ANA_STATES = 0b11111  # all five states are reported; ANAGIDCS (bit 6) is 0: namespaces move between groups
_FRMW_ONE_READ_ONLY_SLOT = 1 << 1 | 1
_OFCS_DISCONNECT = 1
_ANA_GROUP_IN_MANAGEMENT = 1 << 7  # a namespace may be created with an ANAGRPID
_ATTRIBUTES = Ctratt.HOST_ID_128_BIT | Ctratt.TRAFFIC_BASED_KEEP_ALIVE
_FUSES_COMPARE_AND_WRITE = 1


def _oncs(commands: CommandTables) -> int:
    result = int(Oncs.SAVE_AND_SELECT | Oncs.TIMESTAMP)
    for spec in commands.nvm.values():
        result |= spec.oncs
    return result


def _oacs(commands: CommandTables, subsystem: Subsystem) -> int:
    result = 0
    for spec in commands.admin.values():
        if spec.offered(subsystem):
            result |= spec.oacs
    return result


def _controller(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    config = controller.subsystem.config
    common: dict[str, object] = {
        "sn": config.serial_number,
        "mn": config.model,
        "fr": config.firmware,
        "cntlid": controller.cntlid,
        "ver": VERSION.encode(),
        "mdts": mdts_field(config.max_transfer_bytes or None),
        "oaes": controller.events.oaes,
        "aerl": config.max_async_events - 1,
        "acl": ABORT_LIMIT - 1,
        "elpe": ERROR_LOG_ENTRIES - 1,
        "kas": round(KEEP_ALIVE_GRANULARITY_SECONDS * 10),
        "maxcmd": min(config.max_queue_entries, 0xFFFF),
        "sgls": Sgls.NO_ALIGNMENT | Sgls.ADDRESS_AS_OFFSET,
        "subnqn": controller.subsystem.nqn,
        "lpa": log_attributes(ctx, controller),
        "ioccsz": (64 + config.incapsule_bytes) // 16,
        "iorcsz": 1,
        "msdbd": 1,
    }
    if controller.discovery:
        kind: dict[str, object] = {
            "cntrltype": ControllerType.DISCOVERY,
            "ctratt": _ATTRIBUTES,
            "dctype": DiscoveryControllerType.DDC,
        }
    else:
        kind = {"cntrltype": ControllerType.IO, **_io_fields(controller, ctx.tables[CommandTables])}
    return build_cached(IDENTIFY_CONTROLLER, **{**common, **kind})


def _io_fields(controller: Controller, commands: CommandTables) -> dict[str, object]:
    """Return the fields that only a controller with I/O queues has."""
    subsystem, config = controller.subsystem, controller.subsystem.config
    return {
        "ctratt": _ATTRIBUTES
        | Ctratt.ENDURANCE_GROUPS
        | Ctratt.UUID_LIST
        | Ctratt.RESERVATIONS_AND_HOST_ID
        | (Ctratt.NAMESPACE_GRANULARITY if subsystem.manager is not None else 0),
        "cmic": Cmic.MULTIPLE_PORTS | Cmic.MULTIPLE_CONTROLLERS | Cmic.ANA_REPORTING,
        "rtd3e": SHUTDOWN_MICROSECONDS,
        "oacs": _oacs(commands, subsystem),
        "tnvmcap": subsystem.total_bytes,
        "unvmcap": subsystem.unallocated_bytes,
        "pels": PELS,
        "endgidmax": ENDURANCE_GROUP_ID,
        "maxcna": config.max_attached,
        "frmw": _FRMW_ONE_READ_ONLY_SLOT,
        "wctemp": WARNING_KELVIN,
        "cctemp": CRITICAL_KELVIN,
        "edstt": extended_minutes(subsystem),
        "dsto": DSTO_ONE_AT_A_TIME,
        "sanicap": SANICAP,
        "anatt": ANA_TRANSITION_SECONDS,
        "anacap": _ANA_STATES | (_ANA_GROUP_IN_MANAGEMENT if subsystem.manager is not None else 0),
        "cqt": round(config.command_quiesce_seconds * 1000),
        "anagrpmax": config.max_ana_groups,
        "nanagrpid": config.max_ana_groups,
        "sqes": 0x66,
        "cqes": 0x44,
        "nn": config.max_namespaces,
        "mnan": config.max_namespaces,
        "oncs": _oncs(commands),
        "fuses": _FUSES_COMPARE_AND_WRITE,
        # Units are blocks of any format. At a power failure only single blocks are atomic (AWUPF 0).
        "awun": ATOMIC_WRITE_BYTES // max(BLOCK_BYTES_CHOICES) - 1,
        "acwu": ATOMIC_WRITE_BYTES // max(BLOCK_BYTES_CHOICES) - 1,
        "cdfs": COPY_FORMATS,
        "fna": FNA,
        "nwpc": NWPC_WRITE_PROTECT,
        "vwc": _VWC_FLUSH_ALL | (_VWC_PRESENT if controller.subsystem.volatile_cache else 0),
        "ofcs": _OFCS_DISCONNECT,
    }


def _nvm_namespace(namespace: Namespace | None) -> bytes:
    return build_cached(IDENTIFY_NAMESPACE_NVM)


def _nvm_controller(controller: Controller) -> bytes:
    # The other limits are zero: none of their own for Write Zeroes and Dataset Management.
    return build_cached(IDENTIFY_CONTROLLER_NVM, vsl=mdts_field(VERIFY_LIMIT_BYTES))


def _specific_controller(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return ctx.tables[CommandSetTable][command.csi].controller(controller)


def _uuids(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return build_uuid_list(UUIDS)


def _command_sets(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    if command.cntid != CNTLID_DYNAMIC and command.cntid not in controller.subsystem.controllers:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw10", 16),
            message=f"there is no controller {command.cntid:#06x}",
        )
    return build_cached(IO_COMMAND_SETS, combinations=[sum(1 << csi for csi in ctx.tables[CommandSetTable])])


@dataclass(frozen=True, slots=True)
class IdentifyRequest:
    """An Identify command, decoded. `row`: None for a data structure that the target does not have."""

    row: IdentifySpec | None
    command: IdentifyCommand
    nsid: int


def decode_identify(ctx: AdminContext, sqe: Sqe) -> IdentifyRequest:
    """Decode the command's dwords, and look its data structure up."""
    command = IdentifyCommand.decode(sqe.cdw10, sqe.cdw11, sqe.cdw14)
    return IdentifyRequest(ctx.tables[IdentifyTable].get(command.cns), command, sqe.nsid)


def check_identify(ctx: AdminContext, request: IdentifyRequest) -> None:
    """Check that CNS, and the CSI where it matters, name a supported structure (NVMe Base, Identify command)."""
    row, command = request.row, request.command
    if row is None or (ctx.controller.discovery and not row.discovery):
        raise CommandError(Status.INVALID_FIELD, _CDW10, message=f"Identify CNS {command.cns:02X}h is not supported")
    if row.csi and command.csi not in ctx.tables[CommandSetTable]:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw11", 24),
            message=f"I/O command set {command.csi} is not supported",
        )


def identify(ctx: AdminContext, request: IdentifyRequest, data: memoryview | None) -> Completion:
    """Return the structure, always 4096 bytes."""
    assert request.row is not None
    return Completion(data=request.row.build(ctx, ctx.controller, request.command, request.nsid))


ROWS = Rows(
    structures=(
        IdentifySpec(Cns.CONTROLLER, "Controller", _controller, discovery=True),
        IdentifySpec(Cns.CSI_CONTROLLER, "I/O Command Set specific Controller", _specific_controller, csi=True),
        IdentifySpec(Cns.UUIDS, "UUID List", _uuids),
        IdentifySpec(Cns.IO_COMMAND_SETS, "I/O Command Set combinations", _command_sets),
    ),
    command_sets=(CommandSetStructures(Csi.NVM, _nvm_namespace, _nvm_controller),),
)
