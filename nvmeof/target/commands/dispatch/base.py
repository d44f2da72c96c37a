"""The shape of a command's table row: everything that the target knows of a command stands in one place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, CommandEffects
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext, IoContext
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.states import QUEUE_READY_ONLY, READY_ONLY, ControllerState, QueueState
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Group

_NSID = SQE.error_location("nsid")


class Direction(Enum):
    """Where a command's data goes; the value is the opcode's bits 1:0 (NVMe Base, Opcode format)."""

    NONE = 0
    HOST_TO_CONTROLLER = 1
    CONTROLLER_TO_HOST = 2


class NsidRule(Enum):
    """The rule of a command's NSID."""

    UNUSED = "not used"
    ZERO = "0h: not used, and a host that gives one means something else"
    ACTIVE = "an active namespace"
    ACTIVE_OR_ALL = "an active namespace, or FFFFFFFFh for all"
    HANDLER = "depends on the command's other fields"


class AnaRule(Enum):
    """The effect of an ANA state that allows no command on a command of its group's namespaces (NVMe Base,
    8.1.1.10)."""

    ABORTED = "aborted with the status of the group's state"
    UNAFFECTED = "as in every other state"
    FIELDS = "depends on the command's other fields"


class Access(Enum):
    """The access of a command to its namespace's data, which decides the reservations and locks that apply."""

    NONE = "none"
    READ = "reads"
    WRITE = "writes"
    READ_WRITE = "reads and writes"


C = TypeVar("C")
T = TypeVar("T")
Fields = TypeVar("Fields")


@dataclass(frozen=True, slots=True)
class Decoded(Generic[Fields]):
    """A command whose row's functions need both its own dwords, as `fields`, and the SQE."""

    sqe: Sqe
    fields: Fields


def decoded(parse: Callable[[Sqe], Fields]) -> Callable[[object, Sqe], Decoded[Fields]]:
    """Make the `decode` of a row whose `parse` reads the command's own dwords."""
    return lambda ctx, sqe: Decoded(sqe, parse(sqe))


def no_data(ctx: object, command: object) -> int:
    """Return 0: the length rule of a command without data."""
    return 0


class Offering(Protocol):
    """What a row may ask of a subsystem: whether hosts manage its namespaces (it has a `manager` then)."""

    @property
    def manager(self) -> object | None: ...


def always(subsystem: Offering) -> bool:
    """Return True: every subsystem has the command."""
    return True


def no_check(ctx: object, command: object) -> None:
    """Accept the command: its handler checks its fields, or all values are legal."""


def never(command: object) -> bool:
    """Return False for any fields of the command."""
    return False


def aborted_by_sanitize(ctx: object, command: object) -> bool:
    """Return False: the command is aborted during a sanitize operation."""
    return False


def processed_during_sanitize(ctx: object, command: object) -> bool:
    """Return True: the command is processed during a sanitize operation (NVMe Base, Sanitize Operation
    Restrictions)."""
    return True


def namespaces_named(ctx: CommandContext, sqe: Sqe) -> Iterable[Namespace]:
    """Find the namespaces that a command's NSID names. FFFFFFFFh: all, for an I/O command all that are active."""
    return ctx.named(sqe.nsid)


def fixed(length: int) -> Callable[[object, object], int]:
    """Make the length rule of a command that always moves `length` bytes."""

    def transfer_bytes(ctx: object, command: object) -> int:
        return length

    return transfer_bytes


def check_nsid(ctx: CommandContext, nsid: int) -> None:
    """Raise Invalid Namespace or Format for an NSID that no namespace can have: 0h, or beyond NN (NVMe Base, Common
    Command Format)."""
    if not 1 <= nsid <= ctx.limits.max_namespaces:
        raise CommandError(Status.INVALID_NAMESPACE, _NSID, message=f"namespace {nsid:#x} cannot exist here")


def not_active(ctx: CommandContext, nsid: int) -> CommandError:
    """Make the error of a command for a namespace that is not active (NVMe Base, Common Command Format).

    Invalid Field in Command for an NSID that a namespace could have, and for FFFFFFFFh where it has no meaning.
    `check_nsid` refuses all others here.
    """
    if nsid == NSID_ALL:
        return CommandError(Status.INVALID_FIELD, _NSID, message="it is no command for all namespaces")
    check_nsid(ctx, nsid)
    return CommandError(Status.INVALID_FIELD, _NSID, message=f"namespace {nsid} is not active")


@dataclass(frozen=True)  # no slots: `CommandRow[C, X](...)` cannot be made with them
class CommandRow(Generic[C, T]):
    """A row: opcode, handler, data, NSID and state rules, effects.

    Its functions get the context of the queue as their first argument: `IoContext` for a row of an I/O command set,
    `AdminContext` for an admin command, `ConnectContext` for Connect. `states` and `queue_states` are those of the
    controller and of the queue in which the command is legal.

    `decode` makes of an SQE, once, what `check`, `transfer_bytes`, `handler` and `during_sanitize` get; without it they
    get the SQE itself. It raises nothing: what is wrong is for `check` to say, after the checks that come before it.

    `transfer_bytes` gives how many bytes the command moves. With `longer_sgl_bytes` the SGL may describe more than
    that, up to so many bytes (Dataset Management: hosts send a whole page whatever the number of ranges); otherwise it
    must describe exactly that many. `check` runs before any data moves and raises `CommandError`.
    `abortable`: the handler waits for one operation at a time, and does nothing more when that is given up.
    The handler's `data` is complete host data (digest checked) and valid only until the completion is given.

    Who stands in the command's way: `access` is what it does to data; `reservation` what it is to another host's
    reservation (None: by its access), which may be one of `concerned`; `during_sanitize` whether it is processed
    during a sanitize operation and after one has failed; `deletes` whether it takes namespaces away.

    What the logs say of the command: `effects` (a scope in it is its own, an admin command without one has the scope of
    its controller), `events` which types of persistent events exist because of the command, `lba_in_cdw10` whether
    CDW10 and CDW11 are a logical block address.
    """

    opcode: int
    name: str
    handler: Callable[[C, T, memoryview | None], Completion | Awaitable[Completion]]
    decode: Callable[[C, Sqe], T] | None = None
    direction: Direction = Direction.NONE
    transfer_bytes: Callable[[C, T], int] = no_data
    check: Callable[[C, T], None] = no_check
    nsid: NsidRule = NsidRule.UNUSED
    states: frozenset[ControllerState] = READY_ONLY
    queue_states: frozenset[QueueState] = QUEUE_READY_ONLY
    effects: CommandEffects = CommandEffects.SUPPORTED
    access: Access = Access.NONE
    reservation: Group | None = None
    concerned: Callable[[CommandContext, Sqe], Iterable[Namespace]] = namespaces_named
    during_sanitize: Callable[[C, T], bool] = aborted_by_sanitize
    deletes: Callable[[T], bool] = never
    events: tuple[EventType, ...] = ()
    lba_in_cdw10: bool = False
    ana: AnaRule = AnaRule.ABORTED  # of no meaning for a command without a namespace
    longer_sgl_bytes: int = 0
    abortable: bool = False
    oncs: int = 0  # its bit in Identify Controller's ONCS
    oacs: int = 0  # and in OACS
    offered: Callable[[Offering], bool] = always  # whether a subsystem has the admin command; else it is unknown there
    remark: str = ""  # for docs/supported.md

    def command(self, ctx: C, sqe: Sqe) -> T:
        """Return the argument of the row's functions: the result of `decode` for a command, computed once."""
        command: Any = sqe
        if self.decode is not None:
            command = sqe.decoded
            if command is None:
                command = self.decode(ctx, sqe)
                sqe.keep_decoded(command)
        result: T = command
        return result


CommandSpec: TypeAlias = CommandRow[Any, Any]
"""A row of whatever command, as tables and queues see it."""
IoSpec: TypeAlias = CommandRow[IoContext, Any]
"""A row of an I/O command."""


class IoRows(dict[int, tuple[IoSpec, ...]]):
    """The rows of a module that has I/O commands alone, by the CSI of their command set."""


__all__ = [
    "Access",
    "AnaRule",
    "CommandRow",
    "CommandSpec",
    "Completion",
    "Decoded",
    "Direction",
    "IoRows",
    "IoSpec",
    "NsidRule",
    "Offering",
    "aborted_by_sanitize",
    "always",
    "check_nsid",
    "decoded",
    "fixed",
    "namespaces_named",
    "never",
    "no_check",
    "no_data",
    "not_active",
    "processed_during_sanitize",
]
