"""Paths of connections that were made under the user-space path manager: commands per connection, by its token.

The kernel then does nothing by itself: a target announces its addresses to each of its connections, a host opens each
subflow. In return nothing here touches any connection but ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from nvmeof.transport.base import Address, ConnectionInfo, log
from nvmeof.transport.paths import interfaces
from nvmeof.transport.paths.driver import LIVE_STATES, Connections, Flow, PathDriver, flows_of
from nvmeof.transport.paths.events import MptcpEvent, MptcpEvents, MptcpEventType
from nvmeof.transport.paths.model import SUBFLOWS_MAX, Limits, PathEndpoint, PathFlag, PathRole
from nvmeof.transport.paths.pm import PathManagerSocket

_ATTEMPT_SECONDS: Final = 3.0
"""How long an attempt to open a subflow may take before it is made again."""
_SETTLE_SECONDS: Final = 0.02
"""Between an event and what is done about it, so that several come together."""
_REMEMBERED: Final = 4096
"""Connections of others whose announcements are remembered, because they may turn out to be ours."""


@dataclass(slots=True)
class _Peer:
    """The other end of a connection: its addresses, and what was announced to it."""

    announced: dict[int, Address] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    """Addresses of ours that were announced, with their ids."""
    attempts: dict[tuple[str, Address], float] = field(default_factory=dict)


class UserspaceDriver(PathDriver):
    """Opens and closes the subflows of `connections`, which belong to a target or a host (`role`).

    Raises PathsUnavailable, PathPrivilegeError.
    """

    name = "userspace"

    def __init__(self, role: PathRole, connections: Connections) -> None:
        self._role = role
        self._connections = connections
        self._paths: list[PathEndpoint] = []
        self._suspended: set[str] = set()
        self._peers: dict[int, _Peer] = {}
        self._ids: dict[str, int] = {}
        self._pm = PathManagerSocket()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._events = MptcpEvents(self._event)
        except BaseException:
            self._pm.close()
            raise

    # -- paths

    def add(self, endpoints: Sequence[PathEndpoint], limits: Limits | None) -> list[PathEndpoint]:
        added = [replace(each, id=self._id(each.address)) for each in endpoints]
        self._paths += added
        self._soon()
        return added

    def remove(self, endpoint: PathEndpoint) -> None:
        self._paths = [each for each in self._paths if each.address != endpoint.address]
        self._suspended.discard(endpoint.address)
        self._forget_attempts(endpoint)
        self._close_all(endpoint)

    def set_backup(self, endpoint: PathEndpoint, backup: bool) -> PathEndpoint:
        flags = endpoint.flags | PathFlag.BACKUP if backup else endpoint.flags & ~PathFlag.BACKUP
        changed = replace(endpoint, flags=flags)
        self._paths = [changed if each.address == endpoint.address else each for each in self._paths]
        for flow in self._flows_over(endpoint):
            self._pm.subflow_backup(flow.token, flow.info.local, flow.info.peer, backup)
        return changed

    def suspend(self, endpoint: PathEndpoint, flows: Sequence[Flow]) -> None:
        self._suspended.add(endpoint.address)
        self._close_all(endpoint)

    def resume(self, endpoint: PathEndpoint) -> None:
        self._suspended.discard(endpoint.address)
        self._forget_attempts(endpoint)
        self._soon()

    def _forget_attempts(self, endpoint: PathEndpoint) -> None:
        for peer in self._peers.values():
            peer.attempts = {key: at for key, at in peer.attempts.items() if key[0] != endpoint.address}

    def close_flow(self, flow: Flow) -> None:
        with _gone_already():
            self._pm.subflow_destroy(flow.token, flow.info.local, flow.info.peer)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._events.close()
        self._pm.close()

    def _close_all(self, endpoint: PathEndpoint) -> None:
        for flow in self._flows_over(endpoint):
            self.close_flow(flow)
        for token, peer in self._peers.items():
            told = peer.told.pop(endpoint.address, None)
            if told is not None:
                with _gone_already():
                    self._pm.remove(token, told)

    def _flows_over(self, endpoint: PathEndpoint) -> list[Flow]:
        found = flows_of(self._connections())
        return [flow for flows in found for flow in flows if flow.live and flow.local_host == endpoint.address]

    def _id(self, address: str) -> int:
        """Return an address id for an address: 1 to 255, the same in all connections (0 is a connection's first
        address)."""
        return self._ids.setdefault(address, len(self._ids) % 255 + 1)

    # -- events of the kernel

    def _event(self, event: MptcpEvent) -> None:
        if event.token is None:
            return
        if event.type is MptcpEventType.CLOSED:
            self._peers.pop(event.token, None)
            return
        if event.type is MptcpEventType.ANNOUNCED and event.remote is not None and event.remote_id is not None:
            self._peer(event.token).announced[event.remote_id] = event.remote
        elif event.type is MptcpEventType.REMOVED and event.remote_id is not None:
            self._peer(event.token).announced.pop(event.remote_id, None)
        self._soon()

    def _peer(self, token: int) -> _Peer:
        while len(self._peers) >= _REMEMBERED and token not in self._peers:
            del self._peers[next(iter(self._peers))]
        return self._peers.setdefault(token, _Peer())

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_SETTLE_SECONDS, self._reconcile_now)

    def _reconcile_now(self) -> None:
        self._timer = None
        self.reconcile()

    # -- opening what is missing

    def reconcile(self) -> None:
        for endpoint in self._connections():
            if endpoint.closed:
                continue
            info = endpoint.describe()
            if info.protocol != "mptcp" or info.token is None:
                continue
            try:
                if self._role is PathRole.SIGNAL:
                    self._announce(info, info.token)
                else:
                    self._connect(info, info.token)
            except OSError as error:
                log.debug("paths of connection %#x: %s", info.token, error.strerror or error)

    def _active(self) -> list[PathEndpoint]:
        return [each for each in self._paths if each.address not in self._suspended]

    def _announce(self, info: ConnectionInfo, token: int) -> None:
        peer = self._peer(token)
        for path in self._active():
            if path.address in peer.told or path.address == info.local.host:
                continue
            self._pm.announce(token, path)
            peer.told[path.address] = path.id or 0

    def _connect(self, info: ConnectionInfo, token: int) -> None:
        peer = self._peer(token)
        live = [flow for flow in info.subflows if flow.state in LIVE_STATES]
        used = {(flow.local.host.partition("%")[0], flow.peer.host) for flow in live}
        for path in self._active():
            for remote in self._remotes(path, info.peer, peer):
                full = path.flags & PathFlag.FULLMESH
                if (path.address, remote.host) in used or (not full and any(a == path.address for a, _ in used)):
                    continue
                if self._open(token, peer, path, remote):
                    used.add((path.address, remote.host))
        for remote in peer.announced.values():
            if any(host == remote.host for _, host in used) or len(used) > SUBFLOWS_MAX:
                continue
            source = interfaces.source_for(remote.host)
            # what comes from a path of ours is opened above, with its flags
            if source is not None and all(source[0] != each.address for each in self._paths):
                path = PathEndpoint(address=source[0], device=source[1], id=self._id(source[0]))
                self._open(token, peer, path, Address(remote.host, remote.port or info.peer.port))

    def _remotes(self, path: PathEndpoint, first: Address, peer: _Peer) -> list[Address]:
        """Return where to connect from a path: with fullmesh everywhere, else where its interface leads, or as at
        first."""
        announced = [Address(each.host, each.port or first.port) for each in peer.announced.values()]
        if path.flags & PathFlag.FULLMESH:
            return [first, *announced]
        for remote in (*announced, first):
            source = interfaces.source_for(remote.host)
            if source is not None and source[0] == path.address:
                return [remote]
        return [first]

    def _open(self, token: int, peer: _Peer, path: PathEndpoint, remote: Address) -> bool:
        key, now = (path.address, remote), self._loop.time()
        if now - peer.attempts.get(key, -_ATTEMPT_SECONDS) < _ATTEMPT_SECONDS:
            return False
        try:
            self._pm.subflow_create(token, path, remote)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # not established in full yet: the next time
                peer.attempts[key] = now
            log.debug("no subflow from %s to %s yet: %s", path, remote, error.strerror)
            return False
        peer.attempts[key] = now
        return True


@contextlib.contextmanager
def _gone_already() -> Iterator[None]:
    """Ignore the error of closing a subflow that has closed by itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT, errno.ENOTCONN):
            raise
