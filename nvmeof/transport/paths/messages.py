"""Netlink messages of the MPTCP path manager, declared on pyroute2's classes; imported only through `netlink`.

pyroute2 knows endpoints and limits. Its map lacks TOKEN, LOC_ID and ADDR_REMOTE, which the per-connection commands
need, and takes IF_IDX for hexadecimal text, so that a number cannot be given: both maps are declared again here, after
include/uapi/linux/mptcp_pm.h. Events use the same family with separate numbers (enum mptcp_event_attr).
"""

from __future__ import annotations

from pyroute2.netlink import ctrlmsg, genlmsg, nla
from pyroute2.netlink.generic.mptcp import MPTCP_GENL_NAME, mptcp_msg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = ["FAMILY_NAME", "ctrlmsg", "ifaddrmsg", "ifinfmsg", "pm_event", "pm_msg", "rtmsg"]

FAMILY_NAME: str = MPTCP_GENL_NAME


class pm_msg(mptcp_msg):  # type: ignore[misc]
    """A command of the path manager and its answer."""

    nla_map = (
        ("MPTCP_PM_ATTR_UNSPEC", "none"),
        ("MPTCP_PM_ATTR_ADDR", "pm_addr"),
        ("MPTCP_PM_ATTR_RCV_ADD_ADDRS", "uint32"),
        ("MPTCP_PM_ATTR_SUBFLOWS", "uint32"),
        ("MPTCP_PM_ATTR_TOKEN", "uint32"),
        ("MPTCP_PM_ATTR_LOC_ID", "uint8"),
        ("MPTCP_PM_ATTR_ADDR_REMOTE", "pm_addr"),
    )

    class pm_addr(nla):  # type: ignore[misc]
        """One address of an endpoint or a subflow."""

        prefix = "MPTCP_PM_ADDR_ATTR_"
        nla_map = (
            ("MPTCP_PM_ADDR_ATTR_UNSPEC", "none"),
            ("MPTCP_PM_ADDR_ATTR_FAMILY", "uint16"),
            ("MPTCP_PM_ADDR_ATTR_ID", "uint8"),
            ("MPTCP_PM_ADDR_ATTR_ADDR4", "ipaddr"),
            ("MPTCP_PM_ADDR_ATTR_ADDR6", "ipaddr"),
            ("MPTCP_PM_ADDR_ATTR_PORT", "uint16"),
            ("MPTCP_PM_ADDR_ATTR_FLAGS", "uint32"),
            ("MPTCP_PM_ADDR_ATTR_IF_IDX", "int32"),
        )


class pm_event(genlmsg):  # type: ignore[misc]
    """A message of the multicast group `mptcp_pm_events`."""

    prefix = "MPTCP_ATTR_"
    nla_map = (
        ("MPTCP_ATTR_UNSPEC", "none"),
        ("MPTCP_ATTR_TOKEN", "uint32"),
        ("MPTCP_ATTR_FAMILY", "uint16"),
        ("MPTCP_ATTR_LOC_ID", "uint8"),
        ("MPTCP_ATTR_REM_ID", "uint8"),
        ("MPTCP_ATTR_SADDR4", "ipaddr"),
        ("MPTCP_ATTR_SADDR6", "ipaddr"),
        ("MPTCP_ATTR_DADDR4", "ipaddr"),
        ("MPTCP_ATTR_DADDR6", "ipaddr"),
        ("MPTCP_ATTR_SPORT", "be16"),
        ("MPTCP_ATTR_DPORT", "be16"),
        ("MPTCP_ATTR_BACKUP", "uint8"),
        ("MPTCP_ATTR_ERROR", "uint8"),
        ("MPTCP_ATTR_FLAGS", "uint16"),
        ("MPTCP_ATTR_TIMEOUT", "uint32"),
        ("MPTCP_ATTR_IF_IDX", "int32"),
        ("MPTCP_ATTR_RESET_REASON", "uint32"),
        ("MPTCP_ATTR_RESET_FLAGS", "uint32"),
        ("MPTCP_ATTR_SERVER_SIDE", "uint8"),
    )
