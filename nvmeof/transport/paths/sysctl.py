"""MPTCP's sysctls of this network namespace: path managers, packet schedulers, and what of BPF there is.

The kernel reads them when a connection is made: a change counts for new connections only. Packet schedulers in BPF
(struct_ops `mptcp_sched_ops`) are not in mainline kernels; where a kernel has them, they appear in the list once
loaded, beside the kernel's own.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.transport.paths.model import PathPrivilegeError, PathsUnavailable

_DIRECTORY: Final = Path("/proc/sys/net/mptcp")
_PM_TYPES: Final = ("kernel", "userspace")
"""Names of the values of `pm_type`, which kernels before 6.15 have in place of `path_manager`."""
_BUILT_IN_SCHEDULERS: Final = frozenset(("default",))
_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_BPF_SCHEDULER_MARK: Final = b"\0bpf_struct_ops_mptcp_sched_ops\0"
"""The name of the wrapper that a kernel's type information has for a struct_ops that BPF programs may implement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One setting with a list to choose from."""

    current: str
    available: tuple[str, ...]
    """Empty: this kernel does not list them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MptcpSettings:
    """The settings of this network namespace for new connections."""

    enabled: bool
    path_manager: Choice
    scheduler: Choice
    bpf_schedulers: tuple[str, ...]
    """Those of the available schedulers that are not built in."""
    bpf_schedulers_possible: bool
    """Whether this kernel could load a packet scheduler in BPF."""
    stale_loss_count: int | None
    """Retransmission timeouts after which a subflow counts as stale, and its data goes to others."""


def read(name: str) -> str | None:
    """Read a sysctl below net.mptcp, None where this kernel has none of that name."""
    try:
        return (_DIRECTORY / name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    """Set a sysctl below net.mptcp. Raises PathPrivilegeError, ConfigurationError, PathsUnavailable."""
    command = f"sysctl -w net.mptcp.{name}={value}"
    try:
        (_DIRECTORY / name).write_text(value)
    except FileNotFoundError:
        raise PathsUnavailable(f"this kernel has no sysctl net.mptcp.{name}") from None
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
            raise PathPrivilegeError(f"setting net.mptcp.{name}", [command]) from None
        raise ConfigurationError(f"the kernel refuses {value!r} for net.mptcp.{name}") from None


def settings() -> MptcpSettings:
    """Read all settings. Raises PathsUnavailable where the kernel has no MPTCP."""
    enabled = read("enabled")
    if enabled is None:
        raise PathsUnavailable("this kernel has no MPTCP")
    schedulers = tuple((read("available_schedulers") or "").split())
    losses = read("stale_loss_cnt")
    return MptcpSettings(
        enabled=enabled != "0",
        path_manager=Choice(current=path_manager(), available=_available_path_managers()),
        scheduler=Choice(current=read("scheduler") or "default", available=schedulers or ("default",)),
        bpf_schedulers=tuple(each for each in schedulers if each not in _BUILT_IN_SCHEDULERS),
        bpf_schedulers_possible=_bpf_schedulers_possible(),
        stale_loss_count=int(losses) if losses is not None else None,
    )


def path_manager() -> str:
    """Return the path manager of connections made from now on: 'kernel', 'userspace', or one in BPF."""
    name = read("path_manager")
    if name is not None:
        return name
    number = read("pm_type")
    return _PM_TYPES[int(number)] if number in ("0", "1") else "kernel"


def _available_path_managers() -> tuple[str, ...]:
    listed = read("available_path_managers")
    if listed is not None:
        return tuple(listed.split())
    return _PM_TYPES if read("pm_type") is not None else ("kernel",)


def path_manager_sysctl(name: str) -> tuple[str, str]:
    """Return sysctl and value that choose a path manager on this kernel. Raises ConfigurationError for an unknown
    one."""
    known = _available_path_managers()
    if name not in known:
        raise ConfigurationError(f"there is no path manager {name!r}: this kernel offers {', '.join(known)}")
    if read("path_manager") is not None:
        return "path_manager", name
    return "pm_type", str(_PM_TYPES.index(name))


def set_path_manager(name: str) -> None:
    """Choose the path manager of connections made from now on in this network namespace."""
    write(*path_manager_sysctl(name))


def set_scheduler(name: str) -> None:
    """Choose the packet scheduler of connections made from now on in this network namespace."""
    known = settings().scheduler.available
    if name not in known:
        raise ConfigurationError(f"there is no packet scheduler {name!r}: this kernel offers {', '.join(known)}")
    write("scheduler", name)


def _bpf_schedulers_possible() -> bool:
    try:
        return _BPF_SCHEDULER_MARK in _BTF.read_bytes()
    except OSError:
        return False
