"""What changes in a running target when its configuration file is read again: the difference of two files, and no more.

Each difference is a step with its opposite. Those that can fail come first (what is added), removals come last. When a
step fails, those before it are undone in the reverse order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.tls.key import TlsKey
from nvmeof.spec.enums import AnaState
from nvmeof.target.core.rate_limits import RateLimit
from nvmeof.target.document import TargetSettings
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.namespace_text import format_namespace_text
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, Referral, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.live_changes import LIMITS

V = TypeVar("V")
_HOSTS: Final = frozenset(
    {
        "allowed_hosts",
        "any_host",
        "managing_hosts",
        "host_keys",
        "tls_keys",
        "namespaces",
        "host_limit",
        "host_limits",
        *LIMITS,
    }
)
"""The fields of a subsystem that can be changed while it runs; others need a new subsystem."""
_PORT: Final = frozenset({"ana", "subsystems", "paths", "referrals"})
"""The same of a port; with others changed it is closed and opened again."""


class Changing(Protocol):
    """The verbs of a running target that a difference needs: `Administration` has them."""

    async def add_subsystem(self, config: SubsystemConfig) -> None: ...

    async def remove_subsystem(self, subnqn: str) -> list[str]: ...

    def link_subsystem(self, subnqn: str, portid: int) -> None: ...

    async def unlink_subsystem(self, subnqn: str, portid: int) -> list[str]: ...

    def link_all_subsystems(self, portid: int) -> None: ...

    async def offer_subsystems(self, subnqns: Collection[str], portid: int) -> list[str]: ...

    async def add_namespace(self, namespace: Backend | NamespaceConfig, *, subnqn: str | None = None) -> int: ...

    async def remove_namespace(self, nsid: int, *, subnqn: str | None = None) -> None: ...

    def move_namespace(self, nsid: int, group: int, *, subnqn: str | None = None) -> None: ...

    def set_allowed_hosts(self, hosts: frozenset[str] | None, *, subnqn: str | None = None) -> None: ...

    def set_namespace_limit(self, nsid: int, limit: RateLimit | None, *, subnqn: str | None = None) -> list[str]: ...

    def set_host_limit(self, nqn: str | None, limit: RateLimit | None, *, subnqn: str | None = None) -> list[str]: ...
    def set_managing_hosts(self, hosts: frozenset[str] | None, *, subnqn: str | None = None) -> None: ...

    def set_host_keys(self, nqn: str, keys: HostKeys | None, *, subnqn: str | None = None) -> None: ...

    def enable_namespace(self, nsid: int, *, subnqn: str | None = None) -> None: ...

    def disable_namespace(self, nsid: int, *, subnqn: str | None = None) -> None: ...

    def set_limits(self, *, subnqn: str | None = None, **limits: int) -> None: ...

    def set_referrals(self, referrals: Collection[Referral], portid: int) -> None: ...
    def set_tls_key(self, nqn: str, key: TlsKey | None, *, subnqn: str | None = None) -> None: ...

    async def add_port(self, config: PortConfig) -> int: ...

    async def remove_port(self, portid: int) -> list[str]: ...

    async def add_path(self, path: str, *, portid: int | None = None) -> object: ...

    async def remove_path(self, address: str, *, portid: int | None = None) -> list[str]: ...

    def set_ana_state(self, state: AnaState, group: int = 1, *, portid: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One change: a sentence, how it is made, and how it is undone."""

    text: str
    do: Callable[[], object]
    undo: Callable[[], object]


class Plan:
    """The steps from one configuration to another, in the order in which they are made."""

    def __init__(self) -> None:
        self.additions: list[Step] = []
        self.changes: list[Step] = []
        self.removals: list[Step] = []

    def change(self, text: str, verb: Callable[[Any], object], was: object, now: object) -> None:
        """Add what one verb changes, and takes back with what was before; nothing where both are the same."""
        if was != now:
            self.changes.append(Step(text, partial(verb, now), partial(verb, was)))

    @property
    def steps(self) -> list[Step]:
        """All steps: what is added, what is changed, what is removed."""
        return [*self.additions, *self.changes, *self.removals]


async def apply(plan: Plan) -> list[str]:
    """Make the steps of a plan; return their sentences, and what has not ended yet of what they remove.

    Raises `ConfigurationError` when one fails, with those before it undone.
    """
    done: list[Step] = []
    said: list[str] = []
    for step in plan.steps:
        try:
            left = await _await(step.do())
        except (NvmeofError, OSError) as error:
            failed = [text for each in reversed(done) if (text := await _undone(each))]
            also = "".join(f"; {text}" for text in failed)
            raise ConfigurationError(f"{step.text}: {error}; nothing was changed{also}") from error
        done.append(step)
        said.append(step.text)
        if isinstance(left, list):
            said += [str(each) for each in left]
    return said


async def _undone(step: Step) -> str:
    """Undo a step; return a sentence when that fails."""
    try:
        await _await(step.undo())
    except (NvmeofError, OSError) as error:
        return f"except that this could not be undone: {step.text} ({error})"
    return ""


async def _await(result: object) -> object:
    return await result if isinstance(result, Awaitable) else result


def _by(entries: tuple[V, ...], key: Callable[[V], Any]) -> dict[Any, V]:
    return {key(each): each for each in entries}


def numbered(config: TargetConfig) -> TargetConfig:
    """Return the configuration with NSIDs and Port IDs where none are given: the lowest free, as a target does."""
    ports = _numbered(config.ports, "portid")
    subsystems = tuple(replace(each, namespaces=_numbered(each.namespaces, "nsid")) for each in config.subsystems)
    return replace(config, subsystems=subsystems, ports=ports)


def _numbered(entries: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    taken = {getattr(each, name) for each in entries}
    found = []
    for each in entries:
        number = getattr(each, name)
        if number is None:
            number = next(n for n in range(1, len(entries) + len(taken) + 1) if n not in taken)
            taken.add(number)
        found.append(replace(each, **{name: number}))
    return tuple(found)


def difference(target: Changing, old: TargetSettings, new: TargetSettings) -> Plan:
    """Return the steps that make a target of `old` one of `new`.

    Raises `ConfigurationError` for what cannot be changed while the target runs.
    """
    for each in fields(new):
        if each.name != "config" and getattr(old, each.name) != getattr(new, each.name):
            raise ConfigurationError(f"{each.name} can be changed by a restart of the target only")
    before, after = numbered(old.config), numbered(new.config)
    for name in ("staging_bytes", "max_connections", "poll_seconds"):
        if getattr(before, name) != getattr(after, name):
            raise ConfigurationError(f"{name} can be changed by a restart of the target only")
    plan = Plan()
    _subsystems(target, plan, before, after)
    _ports(target, plan, before, after)
    return plan


def _subsystems(target: Changing, plan: Plan, before: TargetConfig, after: TargetConfig) -> None:
    was, now = (_by(each.subsystems, lambda one: one.nqn) for each in (before, after))
    for nqn, config in now.items():
        if nqn not in was:
            step = Step(
                f"subsystem {nqn} added", partial(target.add_subsystem, config), partial(target.remove_subsystem, nqn)
            )
            plan.additions.append(step)
        else:
            _subsystem(target, plan, was[nqn], config)
    for nqn, config in was.items():
        if nqn not in now:
            step = Step(
                f"subsystem {nqn} removed", partial(target.remove_subsystem, nqn), partial(target.add_subsystem, config)
            )
            plan.removals.append(step)


def _subsystem(target: Changing, plan: Plan, old: SubsystemConfig, new: SubsystemConfig) -> None:
    nqn = new.nqn
    for each in fields(new):
        if each.name not in _HOSTS and _plain(getattr(old, each.name)) != _plain(getattr(new, each.name)):
            raise ConfigurationError(
                f"{nqn}: {each.name} cannot be changed while it runs: remove the subsystem and add it again, or restart"
            )
    limits = [{name: getattr(each, name) for name in LIMITS} for each in (old, new)]
    if limits[0] != limits[1]:
        text = f"{nqn}: limits of queues or controller identifiers changed"
        do, undo = (partial(target.set_limits, subnqn=nqn, **each) for each in reversed(limits))
        plan.changes.append(Step(text, do, undo))
    hosts = [None if each.any_host else each.allowed_hosts for each in (old, new)]
    allow, manage = (partial(verb, subnqn=nqn) for verb in (target.set_allowed_hosts, target.set_managing_hosts))
    plan.change(f"{nqn}: allowed hosts changed", allow, *hosts)
    plan.change(f"{nqn}: managing hosts changed", manage, old.managing_hosts, new.managing_hosts)
    limits_of = [{None: each.host_limit, **dict(each.host_limits)} for each in (old, new)]
    for what, verb, (was, now) in (
        ("keys of {}", target.set_host_keys, (dict(old.host_keys), dict(new.host_keys))),
        ("rate limit of {}", target.set_host_limit, limits_of),
        ("TLS key of {}", target.set_tls_key, (dict(old.tls_keys), dict(new.tls_keys))),
    ):
        for host in {**was, **now}:
            text = f"{nqn}: {what.format(host or 'each host')} changed"
            plan.change(text, partial(verb, host, subnqn=nqn), was.get(host), now.get(host))
    _namespaces(target, plan, nqn, _by(old.namespaces, lambda one: one.nsid), _by(new.namespaces, lambda one: one.nsid))


def _plain(value: Any) -> Any:
    """Return something that equals another of its kind when both say the same: a backend is its text."""
    if isinstance(value, Backend):
        return format_namespace_text(value.to_text())
    for name in ("path", "directory"):  # of a state file, of a pool
        if hasattr(value, name):
            return type(value), str(getattr(value, name)), getattr(value, "capacity_bytes", None)
    return (type(value), value.capacity_bytes) if hasattr(value, "capacity_bytes") else value


def _namespaces(
    target: Changing, plan: Plan, nqn: str, was: Mapping[int, NamespaceConfig], now: Mapping[int, NamespaceConfig]
) -> None:
    for nsid in {**was, **now}:
        old, new = was.get(nsid), now.get(nsid)
        if old is not None and new is not None:
            if _same_namespace(old, new):
                move = partial(target.move_namespace, nsid, subnqn=nqn)
                plan.change(
                    f"{nqn}: namespace {nsid} moved to ANA group {new.anagrpid}", move, old.anagrpid, new.anagrpid
                )
                limit = partial(target.set_namespace_limit, nsid, subnqn=nqn)
                plan.change(f"{nqn}: rate limit of namespace {nsid} changed", limit, old.rate_limit, new.rate_limit)
                if old.enabled != new.enabled:
                    verbs = (target.disable_namespace, target.enable_namespace)
                    do, undo = (partial(verbs[each.enabled], nsid, subnqn=nqn) for each in (new, old))
                    word = "enabled" if new.enabled else "disabled"
                    plan.changes.append(Step(f"{nqn}: namespace {nsid} {word}", do, undo))
                continue
            plan.changes.append(_replaced(target, nqn, old, new))
        elif new is not None:
            add, remove = (
                partial(target.add_namespace, new, subnqn=nqn),
                partial(target.remove_namespace, nsid, subnqn=nqn),
            )
            plan.additions.append(Step(f"{nqn}: namespace {nsid} added", add, remove))
        elif old is not None:
            remove, add = (
                partial(target.remove_namespace, nsid, subnqn=nqn),
                partial(target.add_namespace, old, subnqn=nqn),
            )
            plan.removals.append(Step(f"{nqn}: namespace {nsid} removed", remove, add))


def _same_namespace(old: NamespaceConfig, new: NamespaceConfig) -> bool:
    return all(
        _plain(getattr(old, each.name)) == _plain(getattr(new, each.name))
        for each in fields(new)
        if each.name not in ("anagrpid", "rate_limit", "enabled")
    )


def _replaced(target: Changing, nqn: str, old: NamespaceConfig, new: NamespaceConfig) -> Step:
    nsid = new.nsid
    assert nsid is not None

    async def swap(other: NamespaceConfig, back: NamespaceConfig) -> None:
        await target.remove_namespace(nsid, subnqn=nqn)
        try:
            await target.add_namespace(other, subnqn=nqn)
        except (NvmeofError, OSError):
            await target.add_namespace(back, subnqn=nqn)
            raise

    return Step(f"{nqn}: namespace {nsid} replaced", partial(swap, new, old), partial(swap, old, new))


def _ports(target: Changing, plan: Plan, before: TargetConfig, after: TargetConfig) -> None:
    was, now = (_by(each.ports, lambda one: one.portid) for each in (before, after))
    known = frozenset(subsystem.nqn for each in (before, after) for subsystem in each.subsystems)
    for portid in {**was, **now}:
        old, new = was.get(portid), now.get(portid)
        if old == new:
            continue
        if old is None and new is not None:
            add, remove = partial(target.add_port, new), partial(target.remove_port, portid)
            plan.additions.append(Step(f"port {portid} added", add, remove))
        elif new is None and old is not None:
            remove, add = partial(target.remove_port, portid), partial(target.add_port, old)
            plan.removals.append(Step(f"port {portid} removed", remove, add))
        elif old is not None and new is not None:
            _port(target, plan, old, new, known)


def _port(target: Changing, plan: Plan, old: PortConfig, new: PortConfig, known: frozenset[str]) -> None:
    portid = _portid(new)
    if any(getattr(old, each.name) != getattr(new, each.name) for each in fields(new) if each.name not in _PORT):
        plan.changes.append(_reopened(target, old, new))
        return
    for group, state in _states(old, new):
        set_state = partial(target.set_ana_state, group=group, portid=portid)
        undo = partial(set_state, dict(old.ana).get(group, AnaState.OPTIMIZED))
        text = f"port {portid}: ANA group {group} is {state.name.lower().replace('_', '-')}"
        plan.changes.append(Step(text, partial(set_state, state), undo))
    for path in sorted({*old.paths, *new.paths}):
        if path not in old.paths:
            add, remove = (
                partial(target.add_path, path, portid=portid),
                partial(target.remove_path, path, portid=portid),
            )
            plan.additions.append(Step(f"port {portid}: path {path} added", add, remove))
        elif path not in new.paths:
            remove, add = (
                partial(target.remove_path, path, portid=portid),
                partial(target.add_path, path, portid=portid),
            )
            plan.removals.append(Step(f"port {portid}: path {path} removed", remove, add))
    if old.referrals != new.referrals:
        do, undo = (partial(target.set_referrals, each.referrals, portid) for each in (new, old))
        plan.changes.append(Step(f"port {portid}: referrals changed", do, undo))
    _links(target, plan, old, new, known)


def _states(old: PortConfig, new: PortConfig) -> list[tuple[int, AnaState]]:
    was, now = dict(old.ana), dict(new.ana)
    optimized = AnaState.OPTIMIZED
    groups = sorted({*was, *now})
    return [(each, now.get(each, optimized)) for each in groups if was.get(each, optimized) != now.get(each, optimized)]


def _reopened(target: Changing, old: PortConfig, new: PortConfig) -> Step:
    portid = _portid(new)

    async def swap(other: PortConfig, back: PortConfig) -> None:
        await target.remove_port(portid)
        try:
            await target.add_port(other)
        except (NvmeofError, OSError):
            await target.add_port(back)
            raise

    return Step(f"port {portid} closed and opened again", partial(swap, new, old), partial(swap, old, new))


def _links(target: Changing, plan: Plan, old: PortConfig, new: PortConfig, known: frozenset[str]) -> None:
    """Plan what a port offers; it may list subsystems that are not `known`: those need not exist yet."""
    portid, was, now = _portid(new), old.subsystems, new.subsystems
    if was == now:
        return
    if was is None or now is None or not now ^ was <= known:
        text = f"port {portid} offers {'all subsystems' if now is None else 'the listed subsystems alone'}"
        do, undo = (partial(_offer, target, portid, listed) for listed in (now, was))
        plan.changes.append(Step(text, do, undo))
        return
    for nqn in sorted(now ^ was):
        link, unlink = partial(target.link_subsystem, nqn, portid), partial(target.unlink_subsystem, nqn, portid)
        if nqn in now:
            plan.changes.append(Step(f"port {portid} offers {nqn}", link, unlink))
        else:
            plan.removals.insert(0, Step(f"port {portid} offers {nqn} no longer", unlink, link))


async def _offer(target: Changing, portid: int, listed: frozenset[str] | None) -> list[str]:
    if listed is not None:
        return await target.offer_subsystems(listed, portid)
    target.link_all_subsystems(portid)
    return []


def _portid(port: PortConfig) -> int:
    """Return the Port ID of a port that `numbered` has given one."""
    assert port.portid is not None
    return port.portid
