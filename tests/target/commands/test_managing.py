"""Commands that change what other hosts see: only hosts that may manage the subsystem use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.secret import generate_secret
from nvmeof.spec.properties import NSSD_NORMAL, NSSD_OFFSET, NSSR_OFFSET, NSSR_RESET
from nvmeof.spec.status import Status
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.subsystem.config import SubsystemConfig
from nvmeof.target.subsystem.hosts import Hosts
from tests.target.harness import HOST, NQN, Target, TestQueue
from tests.target.management_tools import attach, create, delete

OTHER = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"
PROHIBITED = Status.PROHIBITED_BY_LOCKDOWN

COMMANDS: dict[str, Callable[[TestQueue], Any]] = {
    "Format NVM": lambda queue: queue.command(0x80, nsid=1),
    "Sanitize": lambda queue: queue.command(0x84, cdw10=2),
    "Namespace Management, create": create,
    "Namespace Management, delete": lambda queue: delete(queue, 1),
    "Namespace Attachment": lambda queue: attach(queue, 1),
    "Set Features, write protection": lambda queue: queue.set_feature(0x84, 1, nsid=1),
    "NVM Subsystem Reset": lambda queue: queue.set_property(NSSR_OFFSET, NSSR_RESET),
    "NVM Subsystem Shutdown": lambda queue: queue.set_property(NSSD_OFFSET, NSSD_NORMAL),
}


def target(**options: Any) -> Target:
    return Target(pool=RamdiskPool("10M"), **options)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_host_that_may_not_manage_is_refused_and_nothing_has_changed(name: str) -> None:
    one = target(managing_hosts=frozenset({OTHER}))
    mine, manager = one.admin(), one.admin(hostnqn=OTHER)
    completion = COMMANDS[name](mine)
    assert (completion.status, completion.dnr) == (PROHIBITED, True)
    assert one.subsystem.namespaces.keys() == {1} and not one.subsystem.namespaces[1].read_only
    assert not mine.closed and mine.csts & 1
    io = one.io(mine)
    assert io.command(0x02, length=512, nsid=1).status == 0, "it reads and writes as ever"
    assert COMMANDS[name](manager).status != PROHIBITED


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_list_every_host_may(name: str) -> None:
    assert COMMANDS[name](target().admin()).status != PROHIBITED


def test_what_changes_nothing_for_others_is_for_all() -> None:
    queue = target(managing_hosts=frozenset()).admin()
    assert queue.set_feature(0x07, 0x0001_0001).status == 0, "Number of Queues"
    assert queue.get_feature(0x84, nsid=1).status == 0
    assert queue.identify(1).status == queue.log_page(2, 512).status == 0
    assert queue.set_property(NSSR_OFFSET, 1).status == 0, "no reset"


def test_the_list_changes_while_it_runs() -> None:
    one = target(managing_hosts=frozenset())
    queue = one.admin()
    assert create(queue).status == PROHIBITED
    one.subsystem.hosts.set_managing([HOST])
    assert create(queue).status == 0
    assert one.subsystem.to_config(()).managing_hosts == frozenset({HOST})
    one.subsystem.hosts.set_managing(None)
    assert one.subsystem.to_config(()).managing_hosts is None


def test_authentication_comes_first() -> None:
    one = target(managing_hosts=frozenset(), host_keys=((HOST, HostKeys(generate_secret())),))
    queue = one.queue()
    queue.connect()
    assert COMMANDS["Sanitize"](queue).status == Status.AUTHENTICATION_REQUIRED


def test_names_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="managing host"):
        SubsystemConfig(nqn=NQN, managing_hosts=frozenset({"x" * 300}))
    with pytest.raises(ConfigurationError, match="managing host"):
        Hosts(None).set_managing([""])


@given(
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from([0xFFFF, 1, 7]),
    st.sampled_from([0, 31, 127, 0xFFFF]),
    st.sampled_from([HOST, ""]),
    st.booleans(),
)
def test_who_is_not_allowed_cannot_tell_whether_a_subsystem_is_there(
    qid: int, cntlid: int, sqsize: int, hostnqn: str, keys: bool
) -> None:
    """Whatever it asks for, with a controller of somebody else there."""
    options: dict[str, Any] = {"authentication_required": True} if keys else {"allowed_hosts": frozenset({OTHER})}
    if keys:
        options["host_keys"] = ((OTHER, HostKeys(generate_secret())),)
    one = Target(**options)
    one.queue().connect(hostnqn=OTHER)
    fields: dict[str, Any] = {"qid": qid, "cntlid": cntlid, "sqsize": sqsize, "hostnqn": hostnqn}
    there = one.queue().try_connect(**fields)
    absent = one.queue().try_connect(**fields, subnqn="nqn.2026-01.org.example:none")
    assert there == absent and there.status != 0
