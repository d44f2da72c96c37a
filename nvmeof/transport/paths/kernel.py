"""Paths of the in-kernel path manager: endpoints and limits of this network namespace, with their record.

>>> with KernelPaths("my program") as paths:
...     paths.ensure_limits(Limits(8, 8))
...     paths.add(parse_path("10.1.2.2%eth1").endpoint(PathRole.SUBFLOW))

Leaving the block takes back what was added, unless another of our processes counts on it too. What an administrator,
or any other program, added is used, but never removed and never changed.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeAlias

from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.transport.base import log
from nvmeof.transport.paths import sysctl
from nvmeof.transport.paths.model import Limits, PathEndpoint, PathFlag, PathPrivilegeError
from nvmeof.transport.paths.ownership import PERMANENT, Ledger, OwnedEndpoint, OwnedSetting, Record
from nvmeof.transport.paths.pm import PathManagerSocket

_LIMITS = "limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPath:
    """An endpoint of this network namespace, and whose it is."""

    endpoint: PathEndpoint
    owned: bool
    """Added by nvmeof: by this process, another one, or the command line."""
    holders: tuple[str, ...] = ()
    """The processes that hold the endpoint: 'target 1234', ..."""
    suspended: bool = False
    """Taken out of use, because its link is down; it comes back with the link."""


Value: TypeAlias = list[int] | str
Endpoints: TypeAlias = list[PathEndpoint]


class KernelPaths:
    """The in-kernel path manager, in the name of this process; not thread-safe.

    Raises PathsUnavailable where path management is not to be had. The methods raise PathPrivilegeError without
    CAP_NET_ADMIN, ConfigurationError for what the kernel refuses.
    """

    def __init__(self, what: str, *, permanent: bool = False, directory: Path | None = None) -> None:
        self.pm = PathManagerSocket()
        try:
            self._ledger = Ledger(what, permanent=permanent, directory=directory)
        except BaseException:
            self.pm.close()
            raise
        self._permanent = permanent
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take back what this holder added. Idempotent; a failure costs a log line."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._permanent and self._ledger.path.exists():
                with self._ledger.transaction() as record:
                    self._release(record, self._ledger.holder)
        except (OSError, TransportError) as error:
            log.warning("the paths that were added could not be taken back: %s", error)
        finally:
            self.pm.close()

    def recover(self) -> Endpoints:
        """Take back what processes left that ended without doing so; the endpoints that went."""
        if not self._ledger.path.exists():
            return []
        with self._ledger.transaction() as record:
            return self._recover(record)

    def _recover(self, record: Record) -> Endpoints:
        gone: Endpoints = []
        for holder in record.dead():
            log.info("taking back the paths of %s, which ended without doing so", _name(record, holder))
            gone += self._release(record, holder)
        return gone

    # -- endpoints

    def list(self) -> list[ListedPath]:
        """Return all endpoints of the namespace, and the suspended ones of this process."""
        with self._privilege("reading the MPTCP endpoints", ["ip mptcp endpoint show"]):
            present = self.pm.endpoints()
        record = self._peek()
        result = []
        for endpoint in present:
            owned = record.find(endpoint.key)
            result.append(_listed(record, endpoint, owned))
        keys = {endpoint.key for endpoint in present}
        for owned in record.endpoints:
            if owned.key not in keys:
                result.append(replace(_listed(record, owned.endpoint(), owned), suspended=True))
        return result

    def add(self, endpoint: PathEndpoint) -> PathEndpoint:
        """Add an endpoint, or register as a holder of an existing one; return the kernel's endpoint."""
        with self._privilege(f"adding the path {endpoint}", [endpoint.command()]), self._ledger.transaction() as record:
            self._recover(record)
            owned, present = record.find(endpoint.key), self.pm.find(endpoint.key)
            if present is not None and present.flags & PathFlag.IMPLICIT:
                present = None  # the kernel made it for a subflow; adding replaces it
            if present is None:
                try:
                    present = self.pm.add(endpoint)
                except OSError as error:
                    raise _refused(endpoint, error) from None
                if owned is None:
                    owned = OwnedEndpoint(endpoint.address, endpoint.device, endpoint.port, int(endpoint.flags), [])
                    record.endpoints.append(owned)
                log.info("path added: %s (%s)", present, present.flags.words)
            elif present.flags & ~PathFlag.BACKUP != endpoint.flags & ~PathFlag.BACKUP:
                log.warning("%s is an MPTCP endpoint already, as '%s': left as it is", endpoint, present.flags.words)
            if owned is not None and self._ledger.holder not in owned.holders:
                owned.holders.append(self._ledger.holder)
            return present

    def remove(self, key: tuple[str, int | None], *, whosever: bool = False) -> PathEndpoint:
        """Remove an endpoint that this process added and that has no other holder (`whosever`: any endpoint at once).
        Raises ConfigurationError for one that does not exist, or belongs to others.
        """
        present = self.pm.find(key)
        command = f"ip mptcp endpoint delete id {present.id if present is not None else 0}"
        with self._privilege("removing a path", [command]), self._ledger.transaction() as record:
            self._recover(record)
            owned = record.find(key)
            if owned is None and (present is None or not whosever):
                whose = "was not added by nvmeof" if present else "is no MPTCP endpoint here"
                raise ConfigurationError(f"{key[0]} {whose}")
            if owned is not None:
                owned.holders = [] if whosever else [each for each in owned.holders if each != self._ledger.holder]
                if owned.holders:
                    return owned.endpoint()
                record.endpoints.remove(owned)
            if present is not None and present.id:
                self._delete(present)
        return present or owned.endpoint()  # type: ignore[union-attr]

    def set_backup(self, key: tuple[str, int | None], backup: bool) -> PathEndpoint:
        """Make a path a backup, or a regular one: at once, in all connections of the namespace that use it."""
        present = self.pm.find(key)
        if present is None:
            raise ConfigurationError(f"{key[0]} is no MPTCP endpoint here")
        flags = present.flags | PathFlag.BACKUP if backup else present.flags & ~PathFlag.BACKUP
        word = "backup" if backup else "nobackup"
        with self._privilege("changing a path", [f"ip mptcp endpoint change id {present.id} {word}"]):
            self.pm.set_flags(present, flags)
        if self._ledger.path.exists():
            with self._ledger.transaction() as record:
                owned = record.find(key)
                if owned is not None:
                    owned.flags = int(flags)
        return replace(present, flags=flags)

    def suspend(self, endpoint: PathEndpoint) -> bool:
        """Take an endpoint of ours out of use, so that the kernel closes its subflows; whether there was one."""
        present, owned = self.pm.find(endpoint.key), self._peek().find(endpoint.key)
        if present is None or owned is None or not owned.is_still(present):
            return False
        self._delete(present)
        return True

    def resume(self, endpoint: PathEndpoint) -> PathEndpoint:
        """Use an endpoint again: the kernel opens new subflows over it in every connection of the namespace."""
        owned = self._peek().find(endpoint.key)
        wanted = owned.endpoint() if owned is not None else endpoint
        with contextlib.suppress(FileExistsError):  # another of our processes was faster
            return self.pm.add(wanted)
        return wanted

    def _delete(self, endpoint: PathEndpoint) -> None:
        try:
            self.pm.delete(endpoint.id or 0)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EADDRNOTAVAIL):  # gone already
                raise

    # -- limits and settings

    def limits(self) -> Limits:
        """Return the limits in force."""
        with self._privilege("reading MPTCP's limits", ["ip mptcp limits show"]):
            return self.pm.limits()

    def ensure_limits(self, wanted: Limits) -> Limits:
        """Raise the limits where they are lower; what they are then. They go back when the last holder ends."""
        present = self.limits()
        return self.set_limits(present.at_least(wanted))

    def set_limits(self, wanted: Limits) -> Limits:
        """Set the limits; they go back to what they were when the last holder ends."""
        with self._privilege("setting MPTCP's limits", [wanted.command()]), self._ledger.transaction() as record:
            self._recover(record)
            present = self.pm.limits()
            if present != wanted:
                self.pm.set_limits(wanted)
            self._own(record, _LIMITS, _pair(present), _pair(wanted))
        return wanted

    def apply_limits(self, wanted: Limits) -> Limits:
        """Set the limits permanently: earlier values are not restored later."""
        with self._privilege("setting MPTCP's limits", [wanted.command()]):
            self.pm.set_limits(wanted)
        if self._ledger.path.exists():
            with self._ledger.transaction() as record:
                record.settings.pop(_LIMITS, None)
        return wanted

    def set_path_manager(self, name: str) -> None:
        """Choose the path manager of connections made from now on; it goes back when the last holder ends."""
        self._set_sysctl(*sysctl.path_manager_sysctl(name))

    def set_scheduler(self, name: str) -> None:
        """Choose the packet scheduler of connections made from now on; it goes back when the last holder ends."""
        known = sysctl.settings().scheduler.available
        if name not in known:
            raise ConfigurationError(f"there is no packet scheduler {name!r}: this kernel offers {', '.join(known)}")
        self._set_sysctl("scheduler", name)

    def _set_sysctl(self, name: str, value: str) -> None:
        with self._ledger.transaction() as record:
            self._recover(record)
            before = sysctl.read(name) or ""
            if before != value:
                sysctl.write(name, value)
            self._own(record, name, before, value)

    def _own(self, record: Record, name: str, before: Value, value: Value) -> None:
        """Note that a value was changed, or that this holder counts on a change that another one made."""
        setting = record.settings.get(name)
        if setting is None:
            if before == value:
                return
            setting = record.settings[name] = OwnedSetting(before, value, [])
        setting.set = value
        if self._ledger.holder not in setting.holders:
            setting.holders.append(self._ledger.holder)

    # -- giving back

    def _release(self, record: Record, holder: str) -> Endpoints:
        """Remove a holder, and the endpoints without another holder; return those."""
        gone: Endpoints = []
        present = {each.key: each for each in self.pm.endpoints()} if record.endpoints else {}
        for owned in list(record.endpoints):
            if holder not in owned.holders:
                continue
            owned.holders.remove(holder)
            if owned.holders:
                continue
            record.endpoints.remove(owned)
            kernel = present.get(owned.key)
            if kernel is not None and owned.is_still(kernel):
                self._delete(kernel)
                gone.append(kernel)
        for name, setting in list(record.settings.items()):
            if holder not in setting.holders:
                continue
            setting.holders.remove(holder)
            if not setting.holders:
                del record.settings[name]
                self._restore(name, setting)
        record.holders.pop(holder, None)
        return gone

    def _restore(self, name: str, setting: OwnedSetting) -> None:
        """Restore a value, unless another program has changed it since."""
        if name == _LIMITS:
            if _pair(self.pm.limits()) == setting.set:
                self.pm.set_limits(Limits(int(setting.before[0]), int(setting.before[1])))
        elif sysctl.read(name) == setting.set:
            sysctl.write(name, str(setting.before))

    def _peek(self) -> Record:
        if not self._ledger.path.exists():
            return Record()
        with self._ledger.transaction() as record:
            return record

    @contextlib.contextmanager
    def _privilege(self, what: str, commands: Sequence[str]) -> Iterator[None]:
        try:
            yield
        except PermissionError:
            raise PathPrivilegeError(what, commands) from None


def _pair(limits: Limits) -> list[int]:
    return [limits.subflows, limits.add_addr_accepted]


def _name(record: Record, holder: str) -> str:
    if holder == PERMANENT:
        return holder
    facts = record.holders.get(holder)
    return f"{facts['what']} {facts['pid']}" if facts else holder


def _listed(record: Record, endpoint: PathEndpoint, owned: OwnedEndpoint | None) -> ListedPath:
    holders = tuple(_name(record, each) for each in owned.holders) if owned else ()
    return ListedPath(endpoint=endpoint, owned=owned is not None, holders=holders)


def _refused(endpoint: PathEndpoint, error: OSError) -> Exception:
    """Make the error for an endpoint that the kernel refuses."""
    if isinstance(error, PermissionError):
        return error
    return ConfigurationError(f"the kernel does not take {endpoint} as an MPTCP endpoint: {error.strerror or error}")
