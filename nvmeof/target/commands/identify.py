"""Identify: one row per data structure (NVMe Base and NVM Command Set, Identify command)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.spec.enums import (
    IDENTIFY_BYTES,
    Cmic,
    Cns,
    ControllerType,
    Csi,
    Ctratt,
    DiscoveryControllerType,
    Lpa,
    NamespaceIdType,
    Nmic,
    Nsattr,
    Nsfeat,
    Oncs,
    Sgls,
)
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    IDENTIFY_CONTROLLER_NVM,
    IO_COMMAND_SETS,
    IdentifyCommand,
    NamespaceDescriptor,
    build_controller_list,
    build_namespace_descriptors,
    build_namespace_list,
    mdts_field,
    valid_namespace_list_start,
)
from nvmeof.spec.identify_namespace import (
    DLFEAT_READS_ZEROES,
    DLFEAT_WRITE_ZEROES_DEALLOCATES,
    IDENTIFY_NAMESPACE,
    IDENTIFY_NAMESPACE_INDEPENDENT,
    IDENTIFY_NAMESPACE_NVM,
    INDEPENDENT_NSFEAT_VOLATILE_WRITE_CACHE_ABSENT,
    NSTAT_READY,
)
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.base import Completion
from nvmeof.target.commands.copy import COPY_LIMIT_BYTES, COPY_RANGE_LIMIT_BYTES, COPY_RANGES_MAX
from nvmeof.target.commands.registry import ADMIN, NVM
from nvmeof.target.commands.verify import VERIFY_LIMIT_BYTES
from nvmeof.target.context import QueueContext
from nvmeof.target.controller import KEEP_ALIVE_GRANULARITY_SECONDS, VERSION, Controller
from nvmeof.target.error_log import ERROR_LOG_ENTRIES
from nvmeof.target.health import CRITICAL_KELVIN, WARNING_KELVIN
from nvmeof.target.namespace import Namespace
from nvmeof.wire import build

ABORT_LIMIT = 4
"""How many Abort commands may be outstanding (ACL + 1)."""
SHUTDOWN_MICROSECONDS = 30_000_000
"""RTD3E: how long a normal shutdown, which flushes, may take."""
ANA_TRANSITION_SECONDS = 10
_CDW10 = SQE.error_location("cdw10")
_NSID = SQE.error_location("nsid")
_VWC_FLUSH_ALL = 0b11 << 1  # Flush takes FFFFFFFFh
_VWC_PRESENT = 1
_ANA_STATES = 0b11111  # all five states are reported
_ANA_GROUP_FIXED = 1 << 6  # ANAGRPID does not change
_FRMW_ONE_READ_ONLY_SLOT = 1 << 1 | 1
_OFCS_DISCONNECT = 1
_COPY_FORMAT_0 = 1

Builder = Callable[[QueueContext, Controller, IdentifyCommand, int], bytes]


@dataclass(frozen=True, slots=True)
class IdentifySpec:
    """A row. `build(ctx, controller, command, nsid)` makes the 4096 bytes; `csi`: only the NVM Command Set is there."""

    cns: int
    name: str
    build: Builder
    csi: bool = False
    discovery: bool = False


def _oncs() -> int:
    result = int(Oncs.SAVE_AND_SELECT | Oncs.TIMESTAMP)
    for spec in NVM.values():
        result |= spec.oncs
    return result


def _oacs() -> int:
    result = 0
    for spec in ADMIN.values():
        result |= spec.oacs
    return result


def _controller(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    config = controller.subsystem.config
    common: dict[str, object] = {
        "sn": config.serial_number,
        "mn": config.model,
        "fr": config.firmware,
        "cntlid": controller.cntlid,
        "ver": VERSION.encode(),
        "mdts": mdts_field(config.max_transfer_bytes),
        "oaes": controller.events.supported_bits,
        "aerl": config.max_async_events - 1,
        "acl": ABORT_LIMIT - 1,
        "elpe": ERROR_LOG_ENTRIES - 1,
        "kas": round(KEEP_ALIVE_GRANULARITY_SECONDS * 10),
        "maxcmd": min(config.max_queue_entries, 0xFFFF),
        "sgls": Sgls.NO_ALIGNMENT | Sgls.ADDRESS_AS_OFFSET,
        "subnqn": controller.subsystem.nqn,
        "lpa": Lpa.EXTENDED_DATA | Lpa.SUPPORTED_LOG_PAGES,
        "ioccsz": (64 + config.incapsule_bytes) // 16,
        "iorcsz": 1,
        "msdbd": 1,
    }
    attributes = Ctratt.HOST_ID_128_BIT | Ctratt.TRAFFIC_BASED_KEEP_ALIVE
    if controller.discovery:
        kind: dict[str, object] = {
            "cntrltype": ControllerType.DISCOVERY,
            "ctratt": attributes,
            "dctype": DiscoveryControllerType.DDC,
        }
    else:
        kind = {"cntrltype": ControllerType.IO, "ctratt": attributes, **_io_fields(controller)}
    return build(IDENTIFY_CONTROLLER, **{**common, **kind})


def _io_fields(controller: Controller) -> dict[str, object]:
    """What only a controller with I/O queues has to say."""
    config = controller.subsystem.config
    return {
        "cmic": Cmic.MULTIPLE_PORTS | Cmic.MULTIPLE_CONTROLLERS | Cmic.ANA_REPORTING,
        "rtd3e": SHUTDOWN_MICROSECONDS,
        "oacs": _oacs(),
        "frmw": _FRMW_ONE_READ_ONLY_SLOT,
        "lpa": Lpa.SMART_PER_NAMESPACE
        | Lpa.COMMANDS_SUPPORTED_AND_EFFECTS
        | Lpa.EXTENDED_DATA
        | Lpa.SUPPORTED_LOG_PAGES,
        "wctemp": WARNING_KELVIN,
        "cctemp": CRITICAL_KELVIN,
        "anatt": ANA_TRANSITION_SECONDS,
        "anacap": _ANA_STATES | _ANA_GROUP_FIXED,
        "anagrpmax": 1,
        "nanagrpid": 1,
        "sqes": 0x66,
        "cqes": 0x44,
        "nn": config.max_namespaces,
        "mnan": config.max_namespaces,
        "oncs": _oncs(),
        "cdfs": _COPY_FORMAT_0,
        "vwc": _VWC_FLUSH_ALL | (_VWC_PRESENT if controller.subsystem.volatile_cache else 0),
        "ofcs": _OFCS_DISCONNECT,
    }


def _valid(controller: Controller, nsid: int) -> None:
    if not 1 <= nsid <= controller.subsystem.config.max_namespaces:
        raise CommandError(Status.INVALID_NAMESPACE, _NSID, message=f"namespace {nsid:#x} cannot exist here")


def _active(ctx: QueueContext, controller: Controller, nsid: int) -> Namespace | None:
    """The namespace, or None for one that could exist but does not: its structures are then all zero."""
    _valid(controller, nsid)
    return ctx.namespaces.get(nsid)


def _namespace(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    namespace = _active(ctx, controller, nsid)
    if namespace is None:
        return bytes(IDENTIFY_BYTES)
    capabilities = namespace.backend.capabilities
    preferred = max(capabilities.preferred_bytes >> namespace.block_shift, 1) - 1
    deallocation = DLFEAT_READS_ZEROES if capabilities.deallocated_reads_zero else 0
    if capabilities.can_write_zeroes and capabilities.can_deallocate:
        deallocation |= DLFEAT_WRITE_ZEROES_DEALLOCATES
    return build(
        IDENTIFY_NAMESPACE,
        nsze=namespace.size_blocks,
        ncap=namespace.size_blocks,
        nuse=namespace.size_blocks,
        nsfeat=Nsfeat.OPTIMAL_PERFORMANCE,
        dlfeat=deallocation,
        nmic=Nmic.SHARED,
        nvmcap=namespace.size_blocks << namespace.block_shift,
        npwg=preferred,
        npwa=preferred,
        npdg=preferred,
        npda=preferred,
        nows=preferred,
        mssrl=COPY_RANGE_LIMIT_BYTES >> namespace.block_shift,
        mcl=COPY_LIMIT_BYTES >> namespace.block_shift,
        msrc=COPY_RANGES_MAX - 1,
        anagrpid=namespace.anagrpid,
        nsattr=Nsattr.WRITE_PROTECTED if namespace.read_only else 0,
        nguid=namespace.nguid,
        eui64=namespace.eui64,
        lbaf=[{"lbads": namespace.block_shift}],
    )


def _namespace_nvm(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    _valid(controller, nsid)
    return build(IDENTIFY_NAMESPACE_NVM)


def _namespace_independent(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    namespace = _active(ctx, controller, nsid)
    if namespace is None:
        return bytes(IDENTIFY_BYTES)
    cached = namespace.backend.capabilities.volatile_cache
    return build(
        IDENTIFY_NAMESPACE_INDEPENDENT,
        nsfeat=0 if cached else INDEPENDENT_NSFEAT_VOLATILE_WRITE_CACHE_ABSENT,
        nmic=Nmic.SHARED,
        anagrpid=namespace.anagrpid,
        nsattr=Nsattr.WRITE_PROTECTED if namespace.read_only else 0,
        nstat=NSTAT_READY,
    )


def _descriptors(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    namespace = _active(ctx, controller, nsid)
    if namespace is None:
        raise CommandError(Status.INVALID_NAMESPACE, _NSID, message=f"namespace {nsid} is not active")
    descriptors = []
    if any(namespace.eui64):
        descriptors.append(NamespaceDescriptor(NamespaceIdType.EUI64, namespace.eui64))
    if any(namespace.nguid):
        descriptors.append(NamespaceDescriptor(NamespaceIdType.NGUID, namespace.nguid))
    descriptors.append(NamespaceDescriptor(NamespaceIdType.UUID, namespace.uuid.bytes))
    descriptors.append(NamespaceDescriptor(NamespaceIdType.CSI, bytes([Csi.NVM])))
    return build_namespace_descriptors(descriptors)


def _namespace_list(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    if not valid_namespace_list_start(nsid):
        raise CommandError(Status.INVALID_NAMESPACE, _NSID, message=f"a list cannot start after {nsid:X}h")
    return build_namespace_list(ctx.namespaces, nsid)


def _controller_nvm(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    # The other limits are zero: none of their own for Write Zeroes and Dataset Management.
    return build(IDENTIFY_CONTROLLER_NVM, vsl=mdts_field(VERIFY_LIMIT_BYTES))


def _attached_controllers(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    _valid(controller, nsid)
    attached = controller.subsystem.controllers if nsid in ctx.namespaces else ()
    return build_controller_list(attached, command.cntid)


def _controllers(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return build_controller_list(controller.subsystem.controllers, command.cntid)


def _command_sets(ctx: QueueContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return build(IO_COMMAND_SETS, combinations=[1 << Csi.NVM])


IDENTIFY: dict[int, IdentifySpec] = {
    row.cns: row
    for row in (
        IdentifySpec(Cns.NAMESPACE, "Namespace (NVM Command Set)", _namespace),
        IdentifySpec(Cns.CONTROLLER, "Controller", _controller, discovery=True),
        IdentifySpec(Cns.ACTIVE_NAMESPACES, "Active Namespace ID list", _namespace_list),
        IdentifySpec(Cns.NAMESPACE_DESCRIPTORS, "Namespace Identification Descriptor list", _descriptors),
        IdentifySpec(Cns.CSI_NAMESPACE, "I/O Command Set specific Namespace", _namespace_nvm, csi=True),
        IdentifySpec(Cns.CSI_CONTROLLER, "I/O Command Set specific Controller", _controller_nvm, csi=True),
        IdentifySpec(
            Cns.CSI_ACTIVE_NAMESPACES, "I/O Command Set specific Active Namespace ID list", _namespace_list, csi=True
        ),
        IdentifySpec(Cns.INDEPENDENT_NAMESPACE, "I/O Command Set Independent Namespace", _namespace_independent),
        IdentifySpec(Cns.ALLOCATED_NAMESPACES, "Allocated Namespace ID list", _namespace_list),
        IdentifySpec(Cns.ALLOCATED_NAMESPACE, "Namespace for an Allocated Namespace ID", _namespace),
        IdentifySpec(Cns.ATTACHED_CONTROLLERS, "Controllers attached to a namespace", _attached_controllers),
        IdentifySpec(Cns.CONTROLLERS, "Controllers of the NVM subsystem", _controllers),
        IdentifySpec(Cns.IO_COMMAND_SETS, "I/O Command Set combinations", _command_sets),
    )
}


def add_structures(*rows: IdentifySpec) -> None:
    """Add data structures that other modules make; each has one row."""
    for row in rows:
        if row.cns in IDENTIFY:
            raise ValueError(f"{row.name}: {row.cns:02X}h has a row already")
        IDENTIFY[row.cns] = row


def check_identify(ctx: QueueContext, sqe: Sqe) -> None:
    """A structure that exists here, of the NVM Command Set where it is specific to one."""
    assert ctx.controller is not None
    command = IdentifyCommand.decode(sqe.cdw10, sqe.cdw11, sqe.cdw14)
    row = IDENTIFY.get(command.cns)
    if row is None or (ctx.controller.discovery and not row.discovery):
        raise CommandError(Status.INVALID_FIELD, _CDW10, message=f"Identify CNS {command.cns:02X}h is not supported")
    if row.csi and command.csi != Csi.NVM:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw11", 24),
            message=f"I/O command set {command.csi} is not supported",
        )


def identify(ctx: QueueContext, sqe: Sqe, data: memoryview | None) -> Completion:
    """Always 4096 bytes."""
    assert ctx.controller is not None
    command = IdentifyCommand.decode(sqe.cdw10, sqe.cdw11, sqe.cdw14)
    return Completion(data=IDENTIFY[command.cns].build(ctx, ctx.controller, command, sqe.nsid))
