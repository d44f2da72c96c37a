"""Which commands another host's reservation stands in the way of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import Access, CommandSpec
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Group

_OPCODE = SQE.error_location("opcode")

ACCESS_GROUPS: Final[Mapping[Access, Group]] = {
    Access.NONE: Group.OTHER,
    Access.READ: Group.READ,
    Access.WRITE: Group.WRITE,
    # A host that may write may read. Each source of a Copy is checked separately, as a Read.
    Access.READ_WRITE: Group.WRITE,
}


def group_of(spec: CommandSpec) -> Group:
    """Return a command's group for reservations: its row's, else derived from its effect on data."""
    return ACCESS_GROUPS[spec.access] if spec.reservation is None else spec.reservation


def _check(namespace: Namespace, hostid: bytes, group: Group) -> None:
    state = namespace.reservations.state
    if state.bars(hostid, group):
        raise CommandError(
            Status.RESERVATION_CONFLICT,
            _OPCODE,
            message=f"namespace {namespace.nsid} is reserved, and host {hostid.hex()} is a"
            f" {state.standing(hostid).value} ({group.value})",
        )


def gate(ctx: CommandContext, spec: CommandSpec, sqe: Sqe) -> None:
    """Refuse a command that conflicts with a reservation; one for all namespaces if any of them is reserved by another
    host."""
    if ctx.qid:
        # Every command to a file comes along here.
        namespace = ctx.namespaces.get(sqe.nsid)
        if namespace is not None and namespace.reservations.state.rtype is None:
            return
    group = group_of(spec)
    if group is Group.OTHER:
        return
    for namespace in spec.concerned(ctx, sqe):
        _check(namespace, ctx.hostid, group)
