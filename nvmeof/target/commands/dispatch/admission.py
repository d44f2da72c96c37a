"""What lets a command through to its namespace: the NSID, the ANA state, and the rules of others.

Every command comes along here before any data moves, once more when its data came later, and a Copy for each source.
"""

from __future__ import annotations

import logging

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import AnaRule, CommandSpec, NsidRule, not_active
from nvmeof.target.commands.dispatch.command_tables import CommandTables

logger = logging.getLogger("nvmeof.target.commands.table")
_ACTIVE = NsidRule.ACTIVE


def admit(ctx: CommandContext, spec: CommandSpec, sqe: Sqe) -> None:
    """Raise `CommandError` unless the NSID is what the row wants, and neither ANA nor another rule is in the way."""
    rule = spec.nsid
    if rule is _ACTIVE or (rule is NsidRule.ACTIVE_OR_ALL and sqe.nsid != NSID_ALL):
        namespace = ctx.namespaces.get(sqe.nsid)
        if namespace is None:
            raise not_active(ctx, sqe.nsid)
        ana = ctx.view.ana
        if ana.barred and spec.ana is AnaRule.ABORTED:
            ana.check(namespace)
    elif rule is NsidRule.ZERO and sqe.nsid:
        raise CommandError(Status.INVALID_FIELD, SQE.error_location("nsid"), message=f"{spec.name} is for no namespace")
    elif rule is NsidRule.UNUSED:
        if sqe.nsid:
            # The specification only advises to refuse it, and neither nvmet nor SPDK does.
            logger.debug("%s: %s with NSID %#x, which it does not use", ctx.peer, spec.name, sqe.nsid)
            sqe.nsid = 0
    elif spec.ana is AnaRule.ABORTED:
        check_path(ctx, sqe.nsid)
    for check in ctx.tables[CommandTables].admission:
        check(ctx, spec, sqe)


def check_path(ctx: CommandContext, nsid: int) -> None:
    """Raise the path related status of a namespace's ANA group, unless its state allows commands (NVMe Base, ANA).

    FFFFFFFFh stands for all namespaces of the controller: one that cannot be reached is enough. The NSID of no
    namespace passes.
    """
    ana = ctx.view.ana
    if not ana.barred:
        return
    if nsid == NSID_ALL:
        for namespace in ctx.namespaces.values():
            ana.check(namespace)
        return
    found = ctx.find(nsid)
    if found is not None:
        ana.check(found)
