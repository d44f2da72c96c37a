"""NVMe over TCP and MPTCP in pure Python: a target, a host, and the protocol between them.

The names here are the public ones; each is imported when first used. The distribution that brings this package is
called nvmeof-mptcp (its commands begin in the package nvmeof_mptcp): the name nvmeof on the package index is another
project's, which installs files into a directory of this name too.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvmeof.version import __version__ as __version__

if TYPE_CHECKING:
    from nvmeof.errors import (
        AuthenticationError,
        CommandNotExecuted,
        CompareFailed,
        ConfigurationError,
        ConnectionLost,
        ConnectTimeout,
        LocalProtocolError,
        NvmeofError,
        NvmeStatusError,
        OutcomeUnknown,
        TransportError,
    )
    from nvmeof.host.async_events import AsyncEvent
    from nvmeof.host.client import HostController, PassthruResult, connect, discover
    from nvmeof.host.discovery import DiscoveryEntry
    from nvmeof.host.discovery_service import (
        DiscoveryChange,
        DiscoveryWatch,
        discover_all,
        watch_discovery,
    )
    from nvmeof.host.host_subsystem import HostSubsystem, PathAddress, connect_multipath
    from nvmeof.host.namespace import Namespace
    from nvmeof.host.referrals import Discovered
    from nvmeof.host.results import ErrorLogEntry, IdentifyController, IdentifyNamespace, SmartLog
    from nvmeof.security.dhchap_controller import HostKeys
    from nvmeof.security.dhchap_host import HostCredentials
    from nvmeof.security.secret import Secret, generate_secret, load_secret, parse_secret
    from nvmeof.security.tls.credentials import TlsCredentials
    from nvmeof.security.tls.key import TlsKey, generate_tls_key, load_tls_key, parse_tls_key
    from nvmeof.target.control import Control, ControlClient, ControlServer
    from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
    from nvmeof.target.server import Target
    from nvmeof.target.storage.file import FileBackend
    from nvmeof.target.storage.pools import FilePool, RamdiskPool
    from nvmeof.target.storage.ramdisk import Ramdisk
    from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
    from nvmeof.transport.base import SocketOptions
    from nvmeof.transport.paths.session import PathOptions

_HOMES = {
    "AsyncEvent": "nvmeof.host.async_events",
    "AuthenticationError": "nvmeof.errors",
    "CommandNotExecuted": "nvmeof.errors",
    "CompareFailed": "nvmeof.errors",
    "ConfigurationError": "nvmeof.errors",
    "ConnectTimeout": "nvmeof.errors",
    "ConnectionLost": "nvmeof.errors",
    "Control": "nvmeof.target.control",
    "ControlClient": "nvmeof.target.control",
    "ControlServer": "nvmeof.target.control",
    "Discovered": "nvmeof.host.referrals",
    "DiscoveryChange": "nvmeof.host.discovery_service",
    "DiscoveryEntry": "nvmeof.host.discovery",
    "DiscoveryWatch": "nvmeof.host.discovery_service",
    "ErrorLogEntry": "nvmeof.host.results",
    "FileBackend": "nvmeof.target.storage.file",
    "FilePool": "nvmeof.target.storage.pools",
    "HostController": "nvmeof.host.client",
    "HostCredentials": "nvmeof.security.dhchap_host",
    "HostKeys": "nvmeof.security.dhchap_controller",
    "HostSubsystem": "nvmeof.host.host_subsystem",
    "IdentifyController": "nvmeof.host.results",
    "IdentifyNamespace": "nvmeof.host.results",
    "LocalProtocolError": "nvmeof.errors",
    "Namespace": "nvmeof.host.namespace",
    "NamespaceConfig": "nvmeof.target.subsystem.config",
    "NvmeStatusError": "nvmeof.errors",
    "NvmeofError": "nvmeof.errors",
    "OutcomeUnknown": "nvmeof.errors",
    "PassthruResult": "nvmeof.host.client",
    "PathAddress": "nvmeof.host.host_subsystem",
    "PathOptions": "nvmeof.transport.paths.session",
    "PortConfig": "nvmeof.target.subsystem.config",
    "Ramdisk": "nvmeof.target.storage.ramdisk",
    "RamdiskPool": "nvmeof.target.storage.pools",
    "Secret": "nvmeof.security.secret",
    "SmartLog": "nvmeof.host.results",
    "SocketOptions": "nvmeof.transport.base",
    "SubsystemConfig": "nvmeof.target.subsystem.config",
    "Target": "nvmeof.target.server",
    "TargetConfig": "nvmeof.target.subsystem.config",
    "TlsCredentials": "nvmeof.security.tls.credentials",
    "TlsKey": "nvmeof.security.tls.key",
    "TransportError": "nvmeof.errors",
    "ZoneGeometry": "nvmeof.target.namespaces.zone_geometry",
    "connect": "nvmeof.host.client",
    "connect_multipath": "nvmeof.host.host_subsystem",
    "discover": "nvmeof.host.client",
    "discover_all": "nvmeof.host.discovery_service",
    "generate_secret": "nvmeof.security.secret",
    "generate_tls_key": "nvmeof.security.tls.key",
    "load_secret": "nvmeof.security.secret",
    "load_tls_key": "nvmeof.security.tls.key",
    "parse_secret": "nvmeof.security.secret",
    "parse_tls_key": "nvmeof.security.tls.key",
    "watch_discovery": "nvmeof.host.discovery_service",
}

__all__ = [
    "AsyncEvent",
    "AuthenticationError",
    "CommandNotExecuted",
    "CompareFailed",
    "ConfigurationError",
    "ConnectTimeout",
    "ConnectionLost",
    "Control",
    "ControlClient",
    "ControlServer",
    "Discovered",
    "DiscoveryChange",
    "DiscoveryEntry",
    "DiscoveryWatch",
    "ErrorLogEntry",
    "FileBackend",
    "FilePool",
    "HostController",
    "HostCredentials",
    "HostKeys",
    "HostSubsystem",
    "IdentifyController",
    "IdentifyNamespace",
    "LocalProtocolError",
    "Namespace",
    "NamespaceConfig",
    "NvmeStatusError",
    "NvmeofError",
    "OutcomeUnknown",
    "PassthruResult",
    "PathAddress",
    "PathOptions",
    "PortConfig",
    "Ramdisk",
    "RamdiskPool",
    "Secret",
    "SmartLog",
    "SocketOptions",
    "SubsystemConfig",
    "Target",
    "TargetConfig",
    "TlsCredentials",
    "TlsKey",
    "TransportError",
    "ZoneGeometry",
    "connect",
    "connect_multipath",
    "discover",
    "discover_all",
    "generate_secret",
    "generate_tls_key",
    "load_secret",
    "load_tls_key",
    "parse_secret",
    "parse_tls_key",
    "watch_discovery",
]


def _warn_of_another() -> None:
    """Say in a sentence that the other project's files are mixed with these: removing it breaks this package."""
    found = next(Path(__file__).parents[1].glob("nvmeof-*.dist-info"), None)
    if found is not None:
        import warnings

        warnings.warn(
            f"{found}: the distribution nvmeof, another project, is installed into the same "
            "directory as nvmeof-mptcp and overwrites its files: `pip uninstall nvmeof nvmeof-mptcp`, then install "
            "nvmeof-mptcp again",
            RuntimeWarning,
            stacklevel=2,
        )


_warn_of_another()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nvmeof' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
