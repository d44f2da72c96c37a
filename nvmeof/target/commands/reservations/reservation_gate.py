"""Which commands another host's reservation stands in the way of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, AdminOpcode, NvmOpcode
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import Access, CommandSpec
from nvmeof.target.commands.dispatch.command_tables import register_gate
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Group

_OPCODE = SQE.error_location("opcode")

ADMIN_GROUPS: Final[Mapping[int, Group]] = {
    AdminOpcode.CAPACITY_MANAGEMENT: Group.WRITE,
    AdminOpcode.FORMAT_NVM: Group.WRITE,
    AdminOpcode.NAMESPACE_ATTACHMENT: Group.WRITE,
    AdminOpcode.NAMESPACE_MANAGEMENT: Group.WRITE,
    AdminOpcode.SANITIZE: Group.WRITE,
    AdminOpcode.SECURITY_SEND: Group.WRITE,
    AdminOpcode.SECURITY_RECEIVE: Group.READ,
}
"""Admin commands that a reservation may bar; all others are free."""
ACCESS_GROUPS: Final[Mapping[Access, Group]] = {
    Access.NONE: Group.OTHER,
    Access.READ: Group.READ,
    Access.WRITE: Group.WRITE,
    # Who may write may read. For each source of a Copy there is a question of its own, as for a Read.
    Access.READ_WRITE: Group.WRITE,
}


def group_of(ctx: CommandContext, spec: CommandSpec) -> Group:
    """What a command is to a reservation: I/O commands by what they do to data, and Flush writes."""
    if not ctx.qid:
        return ADMIN_GROUPS.get(spec.opcode, Group.OTHER)
    return Group.WRITE if spec.opcode == NvmOpcode.FLUSH else ACCESS_GROUPS[spec.access]


def _check(namespace: Namespace, hostid: bytes, group: Group) -> None:
    state = namespace.reservations.state
    if state.bars(hostid, group):
        raise CommandError(
            Status.RESERVATION_CONFLICT,
            _OPCODE,
            message=f"namespace {namespace.nsid} is reserved, and host {hostid.hex()} is a"
            f" {state.standing(hostid).value} ({group.value})",
        )


def _concerned(ctx: CommandContext, spec: CommandSpec, sqe: Sqe) -> Iterable[Namespace]:
    assert ctx.subsystem is not None
    if not ctx.qid and spec.opcode == AdminOpcode.SANITIZE:
        return ctx.subsystem.namespaces.values()
    if sqe.nsid == NSID_ALL:
        return (ctx.namespaces if ctx.qid else ctx.subsystem.namespaces).values()
    namespace = ctx.subsystem.namespaces.get(sqe.nsid)
    return () if namespace is None else (namespace,)


def gate(ctx: CommandContext, spec: CommandSpec, sqe: Sqe) -> None:
    """A command for all namespaces is refused when one of them is reserved for others."""
    if ctx.qid:
        # Every command to a file comes along here.
        namespace = ctx.namespaces.get(sqe.nsid)
        if namespace is not None and namespace.reservations.state.rtype is None:
            return
    group = group_of(ctx, spec)
    if group is Group.OTHER or ctx.subsystem is None:
        return
    for namespace in _concerned(ctx, spec, sqe):
        _check(namespace, ctx.hostid, group)


register_gate(gate)
