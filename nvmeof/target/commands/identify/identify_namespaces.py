"""Identify: the data structures and lists of namespaces, active and allocated (NVMe Base and NVM Command Set)."""

from __future__ import annotations

from collections.abc import Callable

from nvmeof.errors import CommandError
from nvmeof.spec.enums import IDENTIFY_BYTES, NSID_ALL, AnaState, Cns, Csi, NamespaceIdType, Nmic, Nsattr, Nsfeat
from nvmeof.spec.identify import (
    IdentifyCommand,
    NamespaceDescriptor,
    build_controller_list,
    build_namespace_descriptors,
    build_namespace_list,
    valid_namespace_list_start,
)
from nvmeof.spec.identify_namespace import (
    DLFEAT_READS_ZEROES,
    DLFEAT_WRITE_ZEROES_DEALLOCATES,
    FPI_SUPPORTED,
    IDENTIFY_NAMESPACE,
    IDENTIFY_NAMESPACE_INDEPENDENT,
    INDEPENDENT_NSFEAT_VOLATILE_WRITE_CACHE_ABSENT,
    NSTAT_READY,
)
from nvmeof.spec.namespace_management import build_granularity_list
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.base import check_nsid, not_active
from nvmeof.target.commands.io.copy import COPY_LIMIT_BYTES, COPY_RANGE_LIMIT_BYTES, COPY_RANGES_MAX
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.commands.rows.structures import CommandSetTable, IdentifySpec
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.endurance_group import ENDURANCE_GROUP_ID, GRANULARITY_BYTES, occupied_bytes
from nvmeof.target.namespaces.lba_formats import LBA_FORMATS, identify_formats, lookup
from nvmeof.target.namespaces.namespace import ATOMIC_WRITE_BYTES, Namespace
from nvmeof.wire import build_cached

_NO_CAPACITY = frozenset({AnaState.INACCESSIBLE, AnaState.PERSISTENT_LOSS})
_CNTID = SQE.error_location("cdw10", 16)
_CNSSI = SQE.error_location("cdw11")
_CSI = SQE.error_location("cdw11", 24)
_NSID = SQE.error_location("nsid")

Find = Callable[[AdminContext, Controller, int], Namespace | None]
"""The namespace of an NSID; None for one that could be there but is not: its structures are all zero. Raises
Invalid Namespace or Format for one that cannot be."""


def _active(ctx: AdminContext, controller: Controller, nsid: int) -> Namespace | None:
    check_nsid(ctx, nsid)
    return ctx.namespaces.get(nsid)


def _allocated(ctx: AdminContext, controller: Controller, nsid: int) -> Namespace | None:
    check_nsid(ctx, nsid)
    return controller.subsystem.namespaces.get(nsid)


def _common(controller: Controller, nsid: int) -> bool:
    """Return whether the command is for the common values of all namespaces (NSID FFFFFFFFh), where hosts may create
    one."""
    return nsid == NSID_ALL and controller.subsystem.manager is not None


# One namespace


def namespace_structure(namespace: Namespace, *, accessible: bool = True) -> bytes:
    """Return CNS 00h and 11h of one namespace.

    `accessible`: False in the ANA states Inaccessible and Persistent Loss, in which NUSE and NVMCAP are cleared (NVMe
    Base 8.1.1.6). NSZE and NCAP stay, as with nvmet: for Linux a namespace whose NCAP is 0 has gone.
    """
    capabilities = namespace.backend.capabilities
    preferred = max(capabilities.preferred_bytes >> namespace.block_shift, 1) - 1
    deallocation = DLFEAT_READS_ZEROES if capabilities.deallocated_reads_zero else 0
    if capabilities.can_write_zeroes and capabilities.can_deallocate:
        deallocation |= DLFEAT_WRITE_ZEROES_DEALLOCATES
    return build_cached(
        IDENTIFY_NAMESPACE,
        nsze=namespace.size_blocks,
        ncap=namespace.capacity_blocks,
        nuse=min(-(-namespace.backend.used_bytes >> namespace.block_shift), namespace.capacity_blocks) * accessible,
        fpi=FPI_SUPPORTED | namespace.format_remaining,
        nsfeat=Nsfeat.OPTIMAL_PERFORMANCE | Nsfeat.NAMESPACE_ATOMICS,
        dlfeat=deallocation,
        nmic=Nmic.SHARED if namespace.shared else 0,
        rescap=namespace.reservations.capabilities,
        nvmcap=occupied_bytes(namespace) * accessible,
        nawun=(ATOMIC_WRITE_BYTES >> namespace.block_shift) - 1,
        nacwu=(ATOMIC_WRITE_BYTES >> namespace.block_shift) - 1,
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
        endgid=ENDURANCE_GROUP_ID,
        nguid=namespace.nguid,
        eui64=namespace.eui64,
        **identify_formats(namespace.block_bytes),
    )


def independent_structure(namespace: Namespace) -> bytes:
    """Return CNS 08h and 1Fh of one namespace."""
    cached = namespace.backend.capabilities.volatile_cache
    return build_cached(
        IDENTIFY_NAMESPACE_INDEPENDENT,
        nsfeat=0 if cached else INDEPENDENT_NSFEAT_VOLATILE_WRITE_CACHE_ABSENT,
        nmic=Nmic.SHARED if namespace.shared else 0,
        rescap=namespace.reservations.capabilities,
        anagrpid=namespace.anagrpid,
        nsattr=Nsattr.WRITE_PROTECTED if namespace.read_only else 0,
        endgid=ENDURANCE_GROUP_ID,
        fpi=FPI_SUPPORTED | namespace.format_remaining,
        nstat=NSTAT_READY if namespace.blocked_status is None else 0,
    )


def format_structure(block_bytes: int) -> bytes:
    """Return the common values of namespaces of one format, and the list of formats."""
    return build_cached(IDENTIFY_NAMESPACE, **{**identify_formats(block_bytes), "flbas": 0})


def _namespace(find: Find) -> Callable[[AdminContext, Controller, IdentifyCommand, int], bytes]:
    def structure(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
        if find is _active and _common(controller, nsid):
            return format_structure(LBA_FORMATS[0])
        namespace = find(ctx, controller, nsid)
        if namespace is None:
            return bytes(IDENTIFY_BYTES)
        controller.subsystem.revalidate(namespace)
        state = controller.ana.state(namespace.anagrpid)
        return namespace_structure(namespace, accessible=state not in _NO_CAPACITY)

    return structure


def _independent(find: Find) -> Callable[[AdminContext, Controller, IdentifyCommand, int], bytes]:
    def structure(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
        namespace = find(ctx, controller, nsid)
        return bytes(IDENTIFY_BYTES) if namespace is None else independent_structure(namespace)

    return structure


def _specific(find: Find) -> Callable[[AdminContext, Controller, IdentifyCommand, int], bytes]:
    def structure(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
        command_set = ctx.tables[CommandSetTable][command.csi]
        if find is _active and _common(controller, nsid):
            return command_set.namespace(None)
        namespace = find(ctx, controller, nsid)
        if namespace is None:
            return bytes(IDENTIFY_BYTES)
        # What has other command sets here builds upon the NVM Command Set, whose structure holds for it too.
        if command.csi not in (Csi.NVM, namespace.csi):
            raise CommandError(
                Status.INVALID_FIELD,
                _CSI,
                message=f"namespace {nsid} is not of I/O command set {command.csi}, but of {namespace.csi}",
            )
        return command_set.namespace(namespace)

    return structure


def _descriptors(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    namespace = _active(ctx, controller, nsid)
    if namespace is None:
        raise not_active(ctx, nsid)
    descriptors = []
    if any(namespace.eui64):
        descriptors.append(NamespaceDescriptor(NamespaceIdType.EUI64, namespace.eui64))
    if any(namespace.nguid):
        descriptors.append(NamespaceDescriptor(NamespaceIdType.NGUID, namespace.nguid))
    descriptors.append(NamespaceDescriptor(NamespaceIdType.UUID, namespace.uuid.bytes))
    descriptors.append(NamespaceDescriptor(NamespaceIdType.CSI, bytes([namespace.csi])))
    return build_namespace_descriptors(descriptors)


# Formats


def _format(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return format_structure(_format_bytes(command))


def _specific_format(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    _format_bytes(command)
    return ctx.tables[CommandSetTable][command.csi].namespace(None)


def _format_bytes(command: IdentifyCommand) -> int:
    """Return the block size, in bytes, of the format of a command. Raises Invalid Field for an index without a
    format."""
    try:
        return lookup(command.cnssi)
    except CommandError as error:
        raise CommandError(Status.INVALID_FIELD, _CNSSI, message=str(error)) from None


def _granularity(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    if command.csi not in ctx.tables[CommandSetTable]:
        raise CommandError(
            Status.INVALID_IO_COMMAND_SET, _CSI, message=f"I/O command set {command.csi} is not supported"
        )
    # One descriptor, for all formats alike.
    return build_granularity_list([(GRANULARITY_BYTES, GRANULARITY_BYTES)])


# Lists


def _active_list(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return _list(ctx.namespaces, nsid)


def _active_list_of(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return _list(_of_set(ctx.namespaces, command.csi), nsid)


def _allocated_list(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return _list(controller.subsystem.namespaces, nsid)


def _allocated_list_of(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return _list(_of_set(controller.subsystem.namespaces, command.csi), nsid)


def _of_set(namespaces: dict[int, Namespace], csi: int) -> list[int]:
    return [nsid for nsid, namespace in namespaces.items() if namespace.csi == csi]


def _list(nsids: dict[int, Namespace] | list[int], after: int) -> bytes:
    if not valid_namespace_list_start(after):
        raise CommandError(Status.INVALID_NAMESPACE, _NSID, message=f"a list cannot start after {after:X}h")
    return build_namespace_list(nsids, after)


def _attached_controllers(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    if nsid == NSID_ALL:
        raise CommandError(Status.INVALID_FIELD, _NSID, message="controllers are attached to one namespace each time")
    check_nsid(ctx, nsid)
    return build_controller_list(controller.subsystem.attached_controllers(nsid), command.cntid)


def _controllers(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    return build_controller_list(controller.subsystem.controllers, command.cntid)


def _endurance_groups(ctx: AdminContext, controller: Controller, command: IdentifyCommand, nsid: int) -> bytes:
    # The list has the form of a list of controllers.
    return build_controller_list([ENDURANCE_GROUP_ID], command.cnssi)


ROWS = Rows(
    structures=(
        IdentifySpec(Cns.NAMESPACE, "Namespace (NVM Command Set)", _namespace(_active)),
        IdentifySpec(Cns.ACTIVE_NAMESPACES, "Active Namespace ID list", _active_list),
        IdentifySpec(Cns.NAMESPACE_DESCRIPTORS, "Namespace Identification Descriptor list", _descriptors),
        IdentifySpec(Cns.CSI_NAMESPACE, "I/O Command Set specific Namespace", _specific(_active), csi=True),
        IdentifySpec(
            Cns.CSI_ACTIVE_NAMESPACES, "I/O Command Set specific Active Namespace ID list", _active_list_of, csi=True
        ),
        IdentifySpec(Cns.INDEPENDENT_NAMESPACE, "I/O Command Set Independent Namespace", _independent(_active)),
        IdentifySpec(Cns.FORMAT_NAMESPACE, "Namespace for a Format Index", _format, csi=True),
        IdentifySpec(
            Cns.CSI_FORMAT_NAMESPACE,
            "I/O Command Set specific Namespace for a Format Index",
            _specific_format,
            csi=True,
        ),
        IdentifySpec(Cns.ALLOCATED_NAMESPACES, "Allocated Namespace ID list", _allocated_list),
        IdentifySpec(Cns.ALLOCATED_NAMESPACE, "Namespace for an Allocated Namespace ID", _namespace(_allocated)),
        IdentifySpec(Cns.ATTACHED_CONTROLLERS, "Controllers attached to a namespace", _attached_controllers),
        IdentifySpec(Cns.CONTROLLERS, "Controllers of the NVM subsystem", _controllers),
        IdentifySpec(Cns.NAMESPACE_GRANULARITY, "Namespace Granularity list", _granularity),
        IdentifySpec(Cns.ENDURANCE_GROUPS, "Endurance Group list", _endurance_groups),
        IdentifySpec(
            Cns.CSI_ALLOCATED_NAMESPACES,
            "I/O Command Set specific Allocated Namespace ID list",
            _allocated_list_of,
            csi=True,
        ),
        IdentifySpec(
            Cns.CSI_ALLOCATED_NAMESPACE,
            "I/O Command Set specific Namespace for an Allocated Namespace ID",
            _specific(_allocated),
            csi=True,
        ),
        IdentifySpec(
            Cns.INDEPENDENT_ALLOCATED_NAMESPACE,
            "I/O Command Set Independent Namespace for an Allocated Namespace ID",
            _independent(_allocated),
        ),
    ),
)
