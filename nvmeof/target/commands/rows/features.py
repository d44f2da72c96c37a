"""The row of a feature, and what rows are made with (NVMe Base, Feature definitions).

A row's `apply` validates what the host sends and makes it so; its `read` gives the current value. The rest is alike
for all, and is in `feature_commands`. The Feature Identifiers and Effects log and docs/supported.md are made from the
rows.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypedDict, Unpack

from nvmeof.errors import CommandError
from nvmeof.spec.enums import AdminOpcode, CommandEffects
from nvmeof.spec.features import FeatureCapabilities
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.controller.controller import Controller
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.namespaces.feature_values import Value, Values, load
from nvmeof.target.namespaces.namespace import Namespace

_FID = SQE.error_location("cdw10")
_SEL = SQE.error_location("cdw10", 8)
_SV = SQE.error_location("cdw10", 31)
_NSID = SQE.error_location("nsid")

logger = logging.getLogger(__name__)

Read = Callable[[Controller, Sqe], Value]
Apply = Callable[[Controller, Sqe, "memoryview | None"], "int | Awaitable[int]"]
Check = Callable[[Controller, Sqe], None]
Restore = Callable[[Controller, Sqe, Value], None]


class Scope(Enum):
    """The scope of a feature's value; the value is its bit of FSP in the Feature Identifiers and Effects log."""

    NAMESPACE = 1 << 20
    CONTROLLER = 1 << 21
    ENDURANCE_GROUP = 1 << 23
    SUBSYSTEM = 1 << 25

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", " ")


def no_selector(sqe: Sqe) -> int:
    """Return 0, for a feature that has one value."""
    return 0


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A row. `read` and `default` answer Get Features; `apply` does Set Features and returns its DW0, now or later.

    `apply` None: not changeable; `refusal` is then the status. `check` is called before any data moves, and again
    before `apply`. `supported` says whether this controller has it.

    Of a feature with the scope NAMESPACE all of these see commands whose NSID is that of one attached namespace
    (`namespace_of`): a Set Features for FFFFFFFFh comes once for each of them, after `check` has passed for all. What a
    Get Features for FFFFFFFFh is refused with is `all_refusal`.

    `saveable`: SV keeps a value over resets and restarts (of all controllers of the subsystem, or of the namespace).
    `persistent`: every value is saved, without SV, which is refused. A value that cannot be stored is taken back:
    `restore` makes the one before current again. `stored` is called when it is durable, for what must wait for that;
    `to_keep` tells the value where `read` does not show it before that. `selector` names which of several values of the
    feature a command means (temperature sensors); each is saved for itself.

    `in_history`: a change is a persistent event. The specification wants some features not to be there, and others are
    set by every host with every connection. `private`: telemetry does not show the value.
    """

    fid: int
    name: str
    read: Read
    default: Read
    apply: Apply | None = None
    discovery: bool = False  # also on discovery controllers
    supported: Callable[[Controller], bool] = lambda controller: True
    condition: str = ""  # `supported` in words
    refusal: Status = Status.FEATURE_NOT_CHANGEABLE
    scope: Scope = Scope.CONTROLLER
    saveable: bool = False
    persistent: bool = False
    selector: Callable[[Sqe], int] = no_selector
    check: Check = lambda controller, sqe: None
    restore: Restore | None = None
    stored: Check = lambda controller, sqe: None
    to_keep: Read | None = None
    all_refusal: Status = Status.INVALID_NAMESPACE
    needs_access: bool = False  # not available while the ANA state forbids access (NVMe Base 8.1.1.10)
    for_all: bool = True  # whether Set Features takes FFFFFFFFh
    effects: CommandEffects = CommandEffects.SUPPORTED  # without the scope
    data_bytes: int = 0  # length of its data structure, 0 for none
    transfer_bytes: Callable[[Sqe], int] | None = None  # of Set Features, where it depends on the command
    in_history: bool = True
    private: bool = False
    managing: bool = False  # only hosts that may manage the subsystem set it (`commands.managing`)

    @property
    def capabilities(self) -> int:
        """DW0 of Get Features with SEL 011b."""
        result = FeatureCapabilities(0)
        if self.apply is not None:
            result |= FeatureCapabilities.CHANGEABLE
        if self.saveable:
            result |= FeatureCapabilities.SAVEABLE
        if self.scope is Scope.NAMESPACE:
            result |= FeatureCapabilities.NAMESPACE_SPECIFIC
        return result

    @property
    def log_entry(self) -> int:
        """Its dword of the Feature Identifiers and Effects log."""
        return self.effects | self.scope.value


class FeatureTable(dict[int, FeatureSpec]):
    """The features of a target, by FID."""


# What rows are made with


def invalid(message: str, field: str = "cdw11", bit: int = 0) -> CommandError:
    """Make Invalid Field in Command, with its error location."""
    return CommandError(Status.INVALID_FIELD, SQE.error_location(field, bit), message=message)


def invalid_data(message: str) -> CommandError:
    """Make Invalid Field in Command for the data: the error location is the data pointer."""
    return invalid(message, "sgl_address")


def check_bits(name: str, value: int, allowed: int, field: str = "cdw11") -> None:
    """Raise Invalid Field in Command at the lowest bit of `value` that is not `allowed` (NVMe Base, Set Features
    command)."""
    wrong = value & ~allowed
    if wrong:
        bit = (wrong & -wrong).bit_length() - 1
        raise invalid(f"{name}: bit {bit} of {value:#x} is not supported", field, bit)


def constant(dw0: int = 0, data: bytes | None = None) -> Read:
    """Return a default that is the same for all controllers."""
    value = Value(dw0, data)
    return lambda controller, sqe: value


def namespace_of(controller: Controller, sqe: Sqe) -> Namespace:
    """Return the namespace that a command for a feature with the scope NAMESPACE is for."""
    return controller.namespaces[sqe.nsid]


def _values(scope: Scope, controller: Controller, sqe: Sqe) -> Values:
    if scope is Scope.NAMESPACE:
        return namespace_of(controller, sqe).features
    return controller.features.values if scope is Scope.CONTROLLER else controller.subsystem.features


def current_value(
    features: FeatureTable, controller: Controller, fid: int, nsid: int = 0, selector: int = 0, *, cdw11: int = 0
) -> Value:
    """Return a feature's current value, for code that depends on it. `nsid`: of a feature with the scope NAMESPACE."""
    row = features[fid]
    return row.read(controller, Sqe(opcode=AdminOpcode.GET_FEATURES, nsid=nsid, cdw10=fid, cdw11=cdw11))


def metadata_store_of(scope: Scope, controller: Controller, sqe: Sqe) -> MetadataStore:
    """Return where values of a scope are stored: with the namespace, or with the subsystem."""
    return (
        namespace_of(controller, sqe).backend.metadata_store
        if scope is Scope.NAMESPACE
        else controller.subsystem.metadata_store
    )


class Options(TypedDict, total=False):
    """The fields of a row that `remembered` and `dword` take beside those that they make."""

    needs_access: bool
    discovery: bool
    supported: Callable[[Controller], bool]
    condition: str
    scope: Scope
    saveable: bool
    persistent: bool
    selector: Callable[[Sqe], int]
    check: Check
    all_refusal: Status
    for_all: bool
    effects: CommandEffects
    data_bytes: int
    in_history: bool


def remembered(
    fid: int,
    name: str,
    default: Read,
    decode: Callable[[Controller, Sqe, bytes | None], Value],
    *,
    changed: Callable[[Controller, Sqe], None] = lambda controller, sqe: None,
    **options: Unpack[Options],
) -> FeatureSpec:
    """Make a row for a feature that is a value, remembered.

    `decode` makes the value of a Set Features, or raises `CommandError`; `changed` is called after it was set. The
    `options` are fields of `FeatureSpec`.
    """
    scope = options.get("scope", Scope.CONTROLLER)
    selector = options.get("selector", no_selector)

    def read(controller: Controller, sqe: Sqe) -> Value:
        chosen = selector(sqe)
        value = _values(scope, controller, sqe).get((fid, chosen))
        if value is None and scope is not Scope.CONTROLLER:
            # Of a controller the saved values become current with its reset; of what outlives controllers, at once.
            stored = load(metadata_store_of(scope, controller, sqe), fid, chosen)
            value = None if stored is None else stored.value
        return default(controller, sqe) if value is None else value

    def restore(controller: Controller, sqe: Sqe, value: Value) -> None:
        _values(scope, controller, sqe)[fid, selector(sqe)] = value
        changed(controller, sqe)

    def apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
        restore(controller, sqe, decode(controller, sqe, None if data is None else bytes(data)))
        return 0

    return FeatureSpec(fid, name, read, default, apply, restore=restore, **options)


def dword(
    fid: int,
    name: str,
    mask: int,
    default: int = 0,
    *,
    changed: Callable[[Controller, Sqe], None] = lambda controller, sqe: None,
    **options: Unpack[Options],
) -> FeatureSpec:
    """Make a row for a feature that is one dword, remembered, whose bits outside `mask` must be zero."""

    def decode(controller: Controller, sqe: Sqe, data: bytes | None) -> Value:
        check_bits(name, sqe.cdw11, mask)
        return Value(sqe.cdw11)

    return remembered(fid, name, constant(default), decode, changed=changed, **options)


__all__ = [
    "Apply",
    "Check",
    "FeatureSpec",
    "FeatureTable",
    "Read",
    "Scope",
    "Value",
    "check_bits",
    "constant",
    "current_value",
    "dword",
    "invalid",
    "invalid_data",
    "metadata_store_of",
    "namespace_of",
    "remembered",
]
