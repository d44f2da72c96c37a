"""Paths between network namespaces that the tests make themselves (`unshare -rnm`, no root): see scenario.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..test_mptcp import needs_mptcp

SCENARIO = Path(__file__).with_name("scenario.py")
DEFAULT_LIMITS = ["add_addr_accepted", "0", "subflows", "2"]

pytestmark = [needs_mptcp, pytest.mark.timing]


def scenario(name: str, links: int, *, flags: str = "-rnm") -> dict[str, Any]:
    """Return the results of a scenario; skip where the machine cannot run it."""
    pytest.importorskip("pyroute2", reason="pip install 'nvmeof-mptcp[mptcp]'")
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (package {package})")
    done = subprocess.run(
        ["unshare", flags, sys.executable, str(SCENARIO), name, str(links)],
        capture_output=True,
        text=True,
        timeout=55,
        env={**os.environ, "PYTHONPATH": str(SCENARIO.parents[3])},
    )
    if done.stderr.startswith(("SETUP", "unshare:")):
        pytest.skip(
            "needs network namespaces, veth, tbf and `ip mptcp` (root, or kernel.unprivileged_userns_clone=1):"
            f" {done.stderr.strip()}"
        )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def sound(result: dict[str, Any]) -> None:
    """Check that the load had no error and read what it had written, and that the namespaces are unchanged."""
    assert result["errors"] == []
    assert result["wrong"] == 0
    assert result["rounds"] > 20
    assert result["left"] == ["", ""]
    assert result["limits"] == [DEFAULT_LIMITS, DEFAULT_LIMITS]


def test_four_paths_all_carry_bytes() -> None:
    result = scenario("four", 4)
    sound(result)
    flows = result["flows"]
    assert len(flows) >= 4
    by_link = {n: sum(f["bytes_sent"] for f in flows if f["local"].startswith(f"10.1.{n}.2:")) for n in range(1, 5)}
    total = sum(by_link.values())
    assert total > 10_000_000
    assert all(sent > total / 20 for sent in by_link.values()), by_link
    assert not any(flow["backup"] for flow in flows)
    assert {flow["congestion"] for flow in flows} == {"cubic"}
    assert set(result["marks"]) == {0x80000005}
    assert [path["address"] for path in result["paths"]] == [f"10.1.{n}.2" for n in range(1, 5)]
    # the facts of the diagnosis for the same connection
    assert result["diag_flows"] == len(flows)
    assert result["by_token"]
    assert result["diag_bytes"] > total * 0.9


@pytest.mark.parametrize("name", ["backup", "backup_userspace"])
def test_backup_is_reported_and_obeyed(name: str) -> None:
    result = scenario(name, 2)
    sound(result)
    assert result["before"], "the backup path has a subflow"
    assert all(flow["backup"] for flow in result["before"])
    assert sum(flow["bytes_sent"] for flow in result["before"]) < 10_000
    assert result["used"] >= 0, "it carries bytes once it is a regular path"
    assert not any(flow["backup"] for flow in result["changed"])
    assert result["removed"] >= 0
    assert result["added"] >= 0


@pytest.mark.parametrize(("name", "driver"), [("cut", "kernel"), ("cut_userspace", "userspace")])
def test_cut_link_is_closed_and_used_again(name: str, driver: str) -> None:
    result = scenario(name, 3)
    sound(result)
    assert result["driver"] == driver
    assert result["carried"] >= 0
    assert 0 <= result["closed"] < 2
    assert result["progress"] > 5, "the load goes on over the other paths"
    assert 0 <= result["back"] < 5
    assert result["longest"] < 5
    assert result.get("path_manager", "0") == "0", "the namespace's path manager is what it was"


def test_the_first_subflows_link_is_no_exception() -> None:
    result = scenario("cut_first", 3)
    sound(result)
    assert 0 <= result["closed"] < 2
    assert 0 <= result["back"] < 5


@pytest.mark.slow
def test_a_path_that_is_broken_further_away() -> None:
    result = scenario("silent", 3)
    sound(result)
    assert 0 <= result["closed"] < 10
    assert result["progress"] > 5
    assert 0 <= result["back"] < 20


@pytest.mark.parametrize("name", ["announce_one", "announce_later"])
def test_an_announced_address_gets_a_listener(name: str) -> None:
    result = scenario(name, 2)
    assert result.get("left", []) == []
    assert result["listening"] == ["10.1.1.1:4420", "10.1.2.1:4420"]
    assert result["seconds"] >= 0
    assert {flow["peer"] for flow in result["flows"]} == {"10.1.1.1:4420", "10.1.2.1:4420"}


def test_an_announced_address_belongs_to_its_ports() -> None:
    """The address is in use, with its listeners, until no port announces it; a connected host reads on."""
    result = scenario("announce_and_remove", 2)
    own = ["10.1.1.1:4420", "10.1.1.1:4421"]
    every = ["10.1.1.1:4420", "10.1.2.1:4420", "10.1.1.1:4421", "10.1.2.1:4421"]
    assert result["both"]["announced"] == [True, True] and result["one"]["announced"] == [True, False]
    assert result["both"]["listening"] == result["one"]["listening"] == every
    assert result["both"]["kernel"] == result["one"]["kernel"] == ["10.1.2.1"]
    assert result["still"] == [], "no connection of that port used it"
    assert result["ended"] == []
    assert result["none"] == {"listening": own, "announced": [False, False], "kernel": [], "flows": 2}
    assert result["saved"] == [None, None]
    assert result["joined"] >= 0 and result["parted"] >= 0 and result["reads"] > 0
    assert result["left"] == []


def test_a_crash_leaves_nothing_permanent() -> None:
    result = scenario("crash", 3)
    assert result["both"] == ["10.1.3.1", "10.1.1.1", "10.1.2.1"]
    assert result["limits"] == ["add_addr_accepted", "6", "subflows", "5"]
    assert result["left"] == result["both"], "a dead process takes nothing back"
    assert result["recovered"] == ["10.1.2.1"]
    assert result["one_dead"] == ["10.1.3.1", "10.1.1.1"]
    assert result["managers"] == ["userspace", "kernel"]
    assert result["holders"] == {"10.1.3.1": 0, "10.1.1.1": 1}
    assert result["both_dead"] == ["10.1.3.1", "10.1.2.1"]
    assert result["limits_then"] == DEFAULT_LIMITS
    assert result["at_last"] == ["10.1.3.1"], "the administrator's stays"
    assert result["records"] == []


def test_two_targets_share_an_address() -> None:
    result = scenario("two_targets", 2)
    assert result["both"] == result["one"] == ["10.1.2.1"]
    assert result["limits"] == ["add_addr_accepted", "8", "subflows", "8"]
    assert result["none"] == []
    assert result["limits_then"] == DEFAULT_LIMITS


def test_changes_of_other_programs_are_left_alone() -> None:
    result = scenario("changed_by_others", 2)
    assert result["endpoints"].split()[:4] == ["10.1.1.1", "id", "1", "subflow"]
    assert result["limits"] == ["add_addr_accepted", "3", "subflows", "3"]


def test_without_the_privilege_an_error_says_what_to_run() -> None:
    result = scenario("unprivileged", 2)
    add, limits = result["add"], result["limits"]
    assert (add["code"], limits["code"], result["list"]["code"]) == (1, 1, 0)
    assert len(add["err"]) == len(limits["err"]) == 1
    assert "CAP_NET_ADMIN" in add["err"][0]
    assert "`ip mptcp endpoint add 10.1.2.1 dev t2 signal`" in add["err"][0]
    assert "`ip mptcp limits set subflows 8 add_addr_accepted 8`" in limits["err"][0]
    lines = [
        "ip mptcp limits set subflows 8 add_addr_accepted 8",
        "ip mptcp endpoint add 10.1.1.1 dev t1 signal",
        "ip mptcp endpoint add 10.1.2.1 dev t2 signal",
    ]
    assert result["session"] == ["0", *lines]
    assert result["then"][0] == "2", "what the administrator added is used"
    assert result["endpoints"] == ["10.1.1.1", "10.1.2.1"], "and left in place"


def test_mark_and_congestion_control_of_one_path() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root outside of any user namespace: BPF programs are not loaded from within one")
    result = scenario("rules", 2, flags="-nm")
    if result["problem"]:
        pytest.skip(f"this machine does not let us load the program: {result['problem']}")
    assert result["seen"] == {"10.1.1.2": ["cubic", 0], "10.1.2.2": ["reno", 7]}


def test_without_bpf_the_paths_work_nevertheless() -> None:
    result = scenario("rules", 2)
    assert set(result["seen"]) == {"10.1.1.2", "10.1.2.2"}
    assert "CAP_BPF" in result["problem"] or "cgroup" in result["problem"]


def test_ipv6() -> None:
    result = scenario("ipv6", 2)
    sound(result)
    sent = {flow["local"].rpartition(":")[0]: flow["bytes_sent"] for flow in result["flows"]}
    assert sent.keys() == {"[fd00:1::2]", "[fd00:2::2]"}
    assert min(sent.values()) > 1_000_000
