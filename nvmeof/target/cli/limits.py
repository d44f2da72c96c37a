"""The options of the command line that limit what hosts may do: rates, keep alive timeouts, open files."""

from __future__ import annotations

import logging
import resource
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.configuration.difference import numbered
from nvmeof.target.core.connection_limits import FILES_KEPT
from nvmeof.target.core.rate_limits import RateLimit, parse_rate_limit
from nvmeof.target.subsystem.config import SubsystemConfig, TargetConfig

FILES_WANTED: Final = 65536
"""Open files that are enough for all else, such as namespaces in files; where the hard limit lets there be so many."""
ANY_HOST: Final = "*"
"""In place of a host's NQN: each host that has no limit of its own."""

logger = logging.getLogger("nvmeof.target")


def with_rate_limits(subsystem: SubsystemConfig, texts: Sequence[str]) -> SubsystemConfig:
    """Return a subsystem with the limits of ``--rate-limit``, once for each of `texts`.

    ``namespace:NSID,bytes=100M,operations=5000,burst=0.5`` or ``host:NQN,...``. Raises `ConfigurationError`.
    """
    if not texts:
        return subsystem
    (subsystem,) = numbered(TargetConfig(subsystems=(subsystem,))).subsystems
    namespaces = {each.nsid: each for each in subsystem.namespaces}
    hosts: dict[str, RateLimit] = {}
    for text in texts:
        kind, colon, rest = text.partition(":")
        name, comma, limits = rest.partition(",")
        if not colon or not comma or kind not in ("namespace", "host"):
            raise ConfigurationError(
                f"--rate-limit {text}: write namespace:NSID,bytes=100M,operations=5000 or host:NQN,bytes=100M"
            )
        limit = parse_rate_limit(limits)
        if kind == "host":
            hosts[name] = limit
            continue
        nsid = int(name) if name.isdecimal() else None
        if nsid not in namespaces:
            raise ConfigurationError(
                f"--rate-limit {text}: there is no namespace {name}; there are {', '.join(map(str, namespaces))}"
            )
        namespaces[nsid] = replace(namespaces[nsid], rate_limit=limit)
    each_host = hosts.pop(ANY_HOST, None)
    return replace(
        subsystem, namespaces=tuple(namespaces.values()), host_limit=each_host, host_limits=tuple(hosts.items())
    )


def parse_keep_alive_range(text: str) -> tuple[float, float]:
    """Read ``MIN-MAX`` in seconds, of which either may be left out. Raises `ConfigurationError`."""
    least, dash, most = text.partition("-")
    try:
        if dash:
            return float(least or 0), float(most or 0)
    except ValueError:
        pass
    raise ConfigurationError(f"--keep-alive-range {text}: write MIN-MAX in seconds, for instance 5-120, or 5-")


def raise_file_limit(connections: int) -> None:
    """Raise the limit of open files to what so many connections need, each of which is a file, and to `FILES_WANTED`.

    The hard limit is raised too where that is permitted (CAP_SYS_RESOURCE); else the log says how many connections
    there can be. (getrlimit(2), RLIMIT_NOFILE.)
    """
    wanted = connections + FILES_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        wanted = max(wanted, FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
        except (OSError, ValueError):
            pass
        logger.info(
            "only %d files may be open (RLIMIT_NOFILE), so there can be %d connections, not %d: raise the hard limit, "
            "or give --max-connections",
            hard, max(1, hard - FILES_KEPT), connections,
        )  # fmt: skip
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
