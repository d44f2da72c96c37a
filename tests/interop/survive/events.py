"""Events at the target, and their required outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Event:
    """Scripts for the target's guest (survive.sh has the functions), and the expected outcome."""

    name: str
    what: str
    """For the table."""
    cause: str
    undo: str = "true"
    hold_seconds: float = 5.0
    """Seconds between cause and undo."""
    paths: tuple[str, ...] = ("1",)
    """The affected paths."""
    survives: bool = True
    """All commands succeed; False: the namespace in use is gone, so that commands fail, and never have wrong data."""
    restore: str = "true"
    """Script that runs after the hosts have ended."""
    reboots: bool = False
    settle_seconds: float = 45.0
    """Seconds after the undo in which all paths must recover."""


BOTH: Final = ("1", "2")
EVENTS: Final = (
    Event("port", "port of path 1 disabled, enabled after 5 s", "port_down 1", "port_up 1"),
    Event("ana", "path 1 inaccessible for 3 s", "ana 1 inaccessible", "ana 1 optimized", 3),
    Event("ana-all", "path 1 non-optimized, both in change for 4 s, optimized again",
          "ana 1 non-optimized; sleep 1; ana 1 change; ana 2 change", "ana 2 optimized; sleep 1; ana 1 optimized", 4,
          BOTH),
    Event("unload", "nvmet unloaded, loaded again after 3 s", "target_down", "target_up", 3, BOTH),
    Event("reboot", "guest reset, target up again after its boot", "echo b >/proc/sysrq-trigger", "target_up", 0, BOTH,
          reboots=True),
    Event("resize", "namespace grown from 64 to 128 MiB, and back after 4 s", "resize 128", "resize 64", 4, BOTH),
    Event("keep-alive", "admin queues starved for 10 s, both paths; I/O only on path 1", "starve", "feed", 10, ("2",)),
    Event("silence", "all packets of path 1 dropped for 12 s", "netem 1 loss 100%", "netem 1", 12),
    Event("loss", "20 % of the packets of both paths dropped for 12 s", "netem 1 loss 20%; netem 2 loss 20%",
          "netem 1; netem 2", 12, BOTH),
    Event("remove", "namespace removed for 3 s", 'echo 0 >"$S/namespaces/1/enable"', 'echo 1 >"$S/namespaces/1/enable"',
          3, BOTH, survives=False, settle_seconds=3),
    Event("replace", "another device behind the NSID, at once", "replace other", "true", 3, BOTH, survives=False,
          restore="replace ns", settle_seconds=2),
    Event("replace-unseen", "both ports disabled, another device behind the NSID, ports enabled after 3 s",
          "port_down 1; port_down 2; replace other", "port_up 1; port_up 2", 3, BOTH, survives=False,
          restore="port_down 1; port_down 2; replace ns; port_up 1; port_up 2", settle_seconds=14),
)  # fmt: skip
"""In this order; events after which a host has to open its namespace again come last."""
