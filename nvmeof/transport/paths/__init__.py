"""MPTCP's paths: which addresses are used, announced and watched, and what each subflow does.

`PathSession` is what a target and a host use. `KernelPaths` manages the network namespace's endpoints and limits
directly, `sysctl.settings()` returns the path managers and packet schedulers that the kernel offers,
`diag.connections()` the figures of every MPTCP connection of the namespace. All but the figures and the settings need
pyroute2 (`pip install 'nvmeof-mptcp[mptcp]'`) and, to change something, CAP_NET_ADMIN.
"""

from nvmeof.transport.paths.diag import connections, with_diag
from nvmeof.transport.paths.kernel import KernelPaths, ListedPath
from nvmeof.transport.paths.model import (
    Limits,
    PathEndpoint,
    PathFlag,
    PathPrivilegeError,
    PathRole,
    PathSpec,
    PathsUnavailable,
    parse_path,
)
from nvmeof.transport.paths.session import PathOptions, PathSession
from nvmeof.transport.paths.sysctl import MptcpSettings, settings

__all__ = [
    "KernelPaths",
    "Limits",
    "ListedPath",
    "MptcpSettings",
    "PathEndpoint",
    "PathFlag",
    "PathOptions",
    "PathPrivilegeError",
    "PathRole",
    "PathSession",
    "PathSpec",
    "PathsUnavailable",
    "connections",
    "parse_path",
    "settings",
    "with_diag",
]
