"""Each verb: what it shows, what it changes, and what it refuses with nothing changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nvmeof import HostCredentials, connect, connect_multipath, parse_secret
from nvmeof.errors import ConfigurationError, LocalProtocolError, NvmeofError
from nvmeof.security.secret import Secret
from nvmeof.target.configuration.files import read_configuration
from nvmeof.target.control import Control
from nvmeof.target.control.control import all_verbs
from nvmeof.target.control.jsonrpc import Code, RpcError
from nvmeof.target.control.process import Hooks
from nvmeof.target.server import Target
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.management import NewNamespace
from tests.target.control.tools import HOST, NQN, OTHER


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp") as running:
        yield running


@pytest.fixture
async def control(target: Target) -> Control:
    return Control(target)


async def call(control: Control, verb: str, **params: Any) -> Any:
    return json.loads(json.dumps(await control.call(verb, params)))  # as a client gets it


async def refused(control: Control, verb: str, says: str, code: int = Code.CONFIGURATION, **params: Any) -> None:
    before = control.target.administration.describe()
    with pytest.raises(RpcError, match=says) as raised:
        await control.call(verb, params)
    assert raised.value.code == code
    assert control.target.administration.describe() == before, "nothing was changed"


async def host_of(target: Target, **options: Any) -> Any:
    where = target.address
    return await connect(where.host, where.port, subnqn=NQN, transport="tcp", hostnqn=HOST, **options)


# -- the target as a whole --------------------------------------------------------------------------------------------


async def test_three_lines_of_a_test(target: Target) -> None:
    control = Control(target)
    await control.namespaces.add("ramdisk:64M", nsid=7)
    assert [each["nsid"] for each in await control.namespaces.list()] == [1, 7]


async def test_hello_verbs_and_status(control: Control) -> None:
    hello = await call(control, "hello")
    listed = await call(control, "verbs")
    assert hello["protocol"] == 1 and hello["verbs"] == len(listed) == len(all_verbs())
    assert {"name", "summary", "description", "changes", "params"} == set(listed[0])
    status = await call(control, "status")
    assert (status["subsystems"], status["namespaces"], status["ports"], status["controllers"]) == (1, 1, 1, 0)


async def test_the_log_level_is_changed(control: Control) -> None:
    before = await call(control, "log-level")
    try:
        assert await call(control, "log-level", level="error") == {"level": "error"}
        await refused(control, "log-level", "one of debug", Code.INVALID_PARAMS, level="loud")
    finally:
        await call(control, "log-level", level=before["level"])


async def test_what_is_saved_makes_the_same_target(control: Control, tmp_path: Path) -> None:
    await call(control, "namespace.add", storage="ramdisk:2M", nsid=5, enabled=False)
    await call(control, "ana.set", group=3, state="inaccessible")
    await refused(control, "save", "without --config")
    await refused(control, "save", "absolute", path="here.json")
    await refused(control, "save", "cannot be written", path=str(tmp_path / "none" / "x.json"))
    path = tmp_path / "saved.json"
    assert await call(control, "save", path=str(path)) == {"path": str(path), "left_out": []}
    shown = await call(control, "config")
    async with Target.from_settings(read_configuration(_moved(path)).settings) as again:
        other = Control(again)
        assert [(each["nsid"], each["enabled"]) for each in await other.namespaces.list()] == [(1, True), (5, False)]
        assert (await other.process.config())["subsystems"] == shown["subsystems"]


def _moved(path: Path) -> Path:
    """The file with ports that no other target has."""
    document = json.loads(path.read_text())
    for port in document["ports"]:
        port["port"] = 0
    path.write_text(json.dumps(document))
    return path


async def test_reload_and_save_belong_to_a_file(target: Target, tmp_path: Path) -> None:
    await refused(Control(target), "reload", "without --config")
    saved: list[bool] = []

    async def reload() -> list[str]:
        return ["port 7 added"]

    async def note() -> None:
        saved.append(True)

    control = Control(target, Hooks(tmp_path / "x.json", reload, note))
    assert await call(control, "reload") == ["port 7 added"]
    await call(control, "save")
    assert saved == [True] and json.loads((tmp_path / "x.json").read_text())["version"] == 1
    await call(control, "save", path=str(tmp_path / "y.json"))
    assert saved == [True], "another file is not that of --config"


async def test_a_restart_belongs_to_a_process(target: Target) -> None:
    await refused(Control(target), "restart", "part of a program")

    async def restart() -> dict[str, Any]:
        return {"pid": 2, "before": 1}

    assert await call(Control(target, Hooks(restart=restart)), "restart") == {"pid": 2, "before": 1}


async def test_a_program_has_no_connection_to_send_events_to(control: Control) -> None:
    await refused(control, "watch", "events go to connections")
    await refused(control, "watch", "there are no events 'x'", kinds=["x"])


async def test_what_is_wrong_with_a_call(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    await refused(control, "nothing", "there is no verb 'nothing'", Code.METHOD_NOT_FOUND)
    await refused(control, "namespace.add", "storage must be given", Code.INVALID_PARAMS)

    async def broken() -> None:
        raise ZeroDivisionError("a defect")

    control._methods["status"] = (control.verbs["status"], broken)
    await refused(control, "status", "a defect of the target: ZeroDivisionError", Code.INTERNAL_ERROR)
    assert "status failed: ZeroDivisionError" in caplog.text


async def test_before_the_start_there_is_nothing_to_change() -> None:
    control = Control(Target(namespaces=[Ramdisk("1M")], trtype="tcp"))
    with pytest.raises(ConfigurationError, match="no subsystem"):
        await control.namespaces.add("ramdisk:1M")
    with pytest.raises(LocalProtocolError):
        await control.ports.add("127.0.0.1:0")


# -- subsystems and hosts ---------------------------------------------------------------------------------------------


async def test_a_subsystem_comes_and_goes(control: Control) -> None:
    added = await call(
        control, "subsystem.add", nqn=OTHER, namespaces=["ramdisk:1M", "ramdisk:2M"], hosts=[HOST], model="x",
        settings={"max_io_queues": 3},
    )  # fmt: skip
    assert (added["namespaces"], added["hosts"], added["model"], added["max_io_queues"]) == (2, [HOST], "x", 3)
    assert added["ports"] == [1]
    await refused(control, "subsystem.add", "exists already", nqn=OTHER)
    await refused(control, "subsystem.add", "given twice", nqn="nqn.2026-01.org.example:x", settings={"nqn": OTHER})
    await refused(control, "subsystem.add", "is no entry that is known", nqn=OTHER, settings={"colour": 1})
    assert [each["nqn"] for each in await call(control, "subsystem.list")] == [NQN, OTHER]
    assert await call(control, "subsystem.remove", nqn=OTHER) == {"ended": [], "cut": [], "left": []}
    await refused(control, "subsystem.remove", "there is no subsystem", nqn=OTHER)


async def test_ports_offer_subsystems(control: Control) -> None:
    await call(control, "subsystem.add", nqn=OTHER)
    await call(control, "subsystem.unlink", nqn=OTHER, portid=1)
    await refused(control, "subsystem.unlink", "does not offer", nqn=OTHER, portid=1)
    assert [each["ports"] for each in await call(control, "subsystem.list")] == [[1], []]
    await call(control, "subsystem.link", nqn=OTHER, portid=1)
    await refused(control, "subsystem.link", "offers .* already", nqn=OTHER, portid=1)
    await call(control, "subsystem.unlink", nqn=NQN, portid=1, force=True)
    await call(control, "subsystem.link-all", portid=1)
    assert [each["ports"] for each in await call(control, "subsystem.list")] == [[1], [1]]


async def test_limits_hold_from_the_next_connect_on(control: Control, target: Target) -> None:
    first = await host_of(target, nr_io_queues=4)
    shown = await call(
        control, "subsystem.limits", max_io_queues=2, max_queue_entries=16, cntlid_min=500, cntlid_max=501
    )
    assert shown == {
        "nqn": NQN, "max_io_queues": 2, "max_queue_entries": 16, "cntlid_min": 500, "cntlid_max": 501,
    }  # fmt: skip
    await refused(control, "subsystem.limits", "a range within", cntlid_min=502)
    assert await call(control, "subsystem.limits") == shown
    second = await host_of(target, nr_io_queues=4)
    cntlids = {each["cntlid"]: each for each in await call(control, "connection.list")}
    assert sorted(cntlids) == [1, 500]
    queues = [(each["cntlid"], each["qid"]) for each in await call(control, "connection.list")]
    assert queues == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (500, 0), (500, 1), (500, 2)]
    assert cntlids[500]["entries"] <= 16
    await first.disconnect()
    await second.disconnect()


async def test_hosts_are_allowed_and_not(control: Control, target: Target) -> None:
    await refused(control, "host.allow", "any host may use", host=HOST)
    await call(control, "host.any", allowed=False)
    with pytest.raises(NvmeofError):
        await host_of(target)
    await call(control, "host.allow", host=HOST)
    await refused(control, "host.allow", "was added already", host=HOST)
    host = await host_of(target)
    listed = await call(control, "host.list")
    assert (listed["hosts"], listed["connected"]) == ([HOST], [HOST])
    removed = await call(control, "host.disallow", host=HOST)
    assert len(removed["ended"]) == 1 and HOST in removed["ended"][0]
    await refused(control, "host.disallow", "was not added", host=HOST)
    assert (await call(control, "host.any"))["ended"] == []
    await host.disconnect()


async def test_keys_of_hosts_are_set_and_not_told(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(bytes(range(32))).to_text()
    told: list[Any] = []
    control.target.registry.happenings.listen(lambda kind, facts: told.append(dict(facts)))
    caplog.set_level("INFO")
    await call(control, "host.keys", host=HOST, dhchap_key=secret, dhchap_hash="sha256")
    assert (await call(control, "host.list"))["hosts_with_keys"] == [HOST]
    assert secret not in caplog.text and secret not in str(told)
    host = await host_of(control.target, dhchap=HostCredentials(parse_secret(secret)), nr_io_queues=1)
    for row in await call(control, "connection.list"):
        assert "sha256" in row["authentication"].lower().replace("-", ""), row
        assert row["tls"] is None
    await host.disconnect()
    with pytest.raises(NvmeofError):
        await host_of(control.target, dhchap=HostCredentials(Secret(bytes(32))))
    await refused(control, "host.keys", "secret|DHHC|key", host=HOST, dhchap_key="nonsense")
    await call(control, "host.keys", host=HOST)
    assert (await call(control, "host.list"))["hosts_with_keys"] == []


# -- namespaces -------------------------------------------------------------------------------------------------------


async def test_a_namespace_comes_changes_and_goes(control: Control) -> None:
    added = await call(control, "namespace.add", storage="ramdisk:1M", nsid=5, anagrpid=2)
    assert (added["nsid"], added["anagrpid"], added["enabled"], added["size_bytes"]) == (5, 2, True, 1 << 20)
    await refused(control, "namespace.add", "exists already", storage="ramdisk:1M", nsid=5)
    await refused(control, "namespace.add", "paper", storage="paper:1M")
    assert (await call(control, "namespace.resize", nsid=5, size="2M"))["size_bytes"] == 2 << 20
    assert (await call(control, "namespace.resize", nsid=5, size=4 << 20))["size_bytes"] == 4 << 20
    await refused(control, "namespace.resize", "much", nsid=5, size="much")
    assert (await call(control, "namespace.move", nsid=5, group=3))["anagrpid"] == 3
    await refused(control, "namespace.move", "1 to 32", nsid=5, group=33)
    assert (await call(control, "namespace.protect", nsid=5))["read_only"]
    assert not (await call(control, "namespace.protect", nsid=5, protected=False))["read_only"]
    await call(control, "namespace.remove", nsid=5)
    await refused(control, "namespace.remove", "has no namespace 5", nsid=5)
    assert [each["nsid"] for each in await call(control, "namespace.list", subnqn=NQN)] == [1]


async def test_a_disabled_namespace_keeps_its_data_and_its_number(control: Control, target: Target) -> None:
    host = await host_of(target)
    data = bytes(range(256)) * 2
    await (await _disk(host)).write(0, data)
    disabled = await call(control, "namespace.disable", nsid=1)
    assert (disabled["enabled"], disabled["attached"]) == (False, [])
    with pytest.raises(NvmeofError):
        await (await _disk(host)).read(0, 1)
    await refused(control, "namespace.disable", "disabled already", nsid=1)
    assert (await call(control, "namespace.add", storage="ramdisk:1M"))["nsid"] == 2, "1 is taken"
    await refused(control, "namespace.add", "exists already", storage="ramdisk:1M", nsid=1)
    assert (await call(control, "namespace.move", nsid=1, group=2))["anagrpid"] == 2
    enabled = await call(control, "namespace.enable", nsid=1)
    assert enabled["enabled"] and len(enabled["attached"]) == 1
    await refused(control, "namespace.enable", "is enabled", nsid=1)
    assert bytes(await (await _disk(host)).read(0, 1)) == data
    await host.disconnect()


async def _disk(host: Any) -> Any:
    return host.namespace(1)


async def test_identifiers_and_storage_change_while_it_is_disabled(control: Control, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"x" * 8192)
    number = "11111111-2222-3333-4444-555555555555"
    await refused(control, "namespace.identify", "disable it first", nsid=1, uuid=number)
    await refused(control, "namespace.replace", "disable it first", nsid=1, storage="ramdisk:1M")
    await call(control, "namespace.disable", nsid=1)
    await refused(control, "namespace.identify", "32 hexadecimal digits", nsid=1, uuid="x")
    await refused(control, "namespace.identify", "16 bytes", nsid=1, nguid="00")
    shown = await call(control, "namespace.identify", nsid=1, uuid=number, nguid="ab" * 16, eui64="cd" * 8)
    assert (shown["uuid"], shown["nguid"], shown["eui64"]) == (number, "ab" * 16, "cd" * 8)
    await refused(control, "namespace.replace", "none", nsid=1, storage=f"file:{tmp_path}/none")
    replaced = await call(control, "namespace.replace", nsid=1, storage=f"file:{file}")
    assert (replaced["size_bytes"], replaced["uuid"], replaced["enabled"]) == (8192, number, False)
    await call(control, "namespace.enable", nsid=1)


async def test_a_protected_namespace_refuses_writes_of_a_host(control: Control, target: Target) -> None:
    host = await host_of(target)
    disk = await _disk(host)
    await disk.write(0, bytes(512))
    await call(control, "namespace.protect", nsid=1)
    with pytest.raises(NvmeofError, match=r"(?i)write.protected"):
        await disk.write(0, bytes(512))
    await call(control, "namespace.protect", nsid=1, protected=False)
    await disk.write(0, bytes(512))
    await host.disconnect()


async def test_storage_that_is_read_only_stays_so(control: Control, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(4096))
    await call(control, "namespace.add", storage=f"file:{file},read-only", nsid=3)
    await refused(control, "namespace.protect", "cannot be made writable", nsid=3, protected=False)


async def test_what_a_host_has_created_is_the_hosts(tmp_path: Path) -> None:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp", pool=RamdiskPool("8M")) as target:
        control, subsystem = Control(target), target.subsystem(NQN)
        await call(control, "namespace.disable", nsid=1)
        assert subsystem.manager is not None
        new = NewNamespace(size_bytes=1 << 20, block_bytes=512)
        assert await subsystem.manager.create(target.runtime, new) == 2, "1 is taken by the disabled one"
        await refused(control, "namespace.disable", "was created by a host: detach it there", nsid=2)
        await refused(control, "namespace.resize", "was created by a host", nsid=2, size="2M")
        await refused(control, "namespace.identify", "is enabled", nsid=2, nguid="ab" * 16)
        assert await call(control, "namespace.remove", nsid=2) == {"ended": [], "cut": [], "left": []}
        assert [each["nsid"] for each in await call(control, "namespace.list")] == [1]
        await call(control, "namespace.remove", nsid=1)
        assert await subsystem.manager.create(target.runtime, new) == 1


# -- ports and what belongs to them -----------------------------------------------------------------------------------


async def test_a_port_comes_and_goes_with_its_hosts(control: Control, target: Target) -> None:
    added = await call(control, "port.add", address="127.0.0.1:0", portid=9, subsystems=[NQN])
    where = added["listeners"][0]
    assert added["portid"] == 9 and where["port"]
    await refused(control, "port.add", "exists already|is given twice", address="127.0.0.1:0", portid=9)
    host = await connect(where["address"], where["port"], subnqn=NQN, transport="tcp", hostnqn=HOST)
    assert [each["connections"] > 0 for each in await call(control, "port.list")] == [False, True]
    removed = await call(control, "port.remove", portid=9)
    assert removed["ended"] == [f"controller 1 of {HOST} on port 9, subsystem {NQN}"]
    assert (removed["cut"], removed["left"]) == ([], [])
    await refused(control, "port.remove", "there is no port 9", portid=9)
    await host.disconnect()


async def test_an_address_that_cannot_be_listened_on_is_a_failure(control: Control) -> None:
    await refused(control, "port.add", "192.0.2.77", Code.FAILED, address="192.0.2.77:4420")


async def test_ana_states_are_set_and_listed(control: Control) -> None:
    await call(control, "ana.set", group=2, state="non-optimized", portid=1)
    await call(control, "ana.set", group=1, state="inaccessible", change_seconds=0.01)
    assert await call(control, "ana.list") == [
        {"portid": 1, "group": 1, "state": "inaccessible", "namespaces": 1},
        {"portid": 1, "group": 2, "state": "non-optimized", "namespaces": 0},
    ]
    await refused(control, "ana.set", "one of optimized", Code.INVALID_PARAMS, group=1, state="fine")
    await refused(control, "ana.set", "there is no port 4", group=1, state="optimized", portid=4)


async def test_referrals_are_named_in_the_discovery_log(control: Control, target: Target) -> None:
    from nvmeof.host.client import discover

    await call(control, "referral.add", portid=1, address="192.0.2.9:8010", name="elsewhere")
    await refused(control, "referral.add", "already", portid=1, address="192.0.2.9:8010")
    listed = [{"portid": 1, "transport": "tcp", "traddr": "192.0.2.9", "trsvcid": 8010}]
    assert await call(control, "referral.list") == listed
    where = target.address
    entries = await discover(where.host, where.port, transport="tcp")
    assert ("192.0.2.9", "8010") in {(each.traddr, str(each.trsvcid)) for each in entries}
    await call(control, "referral.remove", portid=1, address="192.0.2.9:8010")
    await refused(control, "referral.remove", "names no discovery service", portid=1, address="192.0.2.9")
    assert await call(control, "referral.list") == []


async def test_paths_need_a_port_of_mptcp(control: Control) -> None:
    assert await call(control, "path.list") == []
    await refused(control, "path.add", "needs a port of the transport mptcp", path="192.0.2.1")
    await refused(control, "path.remove", "was not announced", address="192.0.2.1")


# -- connections ------------------------------------------------------------------------------------------------------


async def test_connections_and_counters_of_a_host(control: Control, target: Target) -> None:
    host = await host_of(target, nr_io_queues=2, hdr_digest=True)
    disk = await _disk(host)
    await disk.write(0, bytes(1024))
    for _ in range(3):
        await disk.read(0, 2)
    rows = await call(control, "connection.list")
    assert [(each["cntlid"], each["qid"], each["host"]) for each in rows] == [(1, qid, HOST) for qid in range(3)]
    assert all(each["digests"] == ["header"] and each["protocol"] == "tcp" for each in rows)
    assert all(each["in_flight"] == 0 and each["since"] > 1.7e9 for each in rows)
    detailed = await call(control, "connection.list", subflows=True, subnqn=NQN)
    assert all(len(each["subflows"]) == 1 for each in detailed)
    assert await call(control, "connection.list", subnqn=OTHER) == []
    (namespace,) = await call(control, "counters")
    assert (namespace["reads"], namespace["writes"], namespace["bytes_read"]) == (3, 1, 3072)
    assert [each["qid"] for each in await call(control, "counters", by="queue")] == [0, 1, 2]
    (total,) = await call(control, "counters", by="host")
    assert total["queues"] == 3 and total["commands"] >= 4
    await call(control, "connection.end", cntlid=1)
    await refused(control, "connection.end", "has no controller 1", cntlid=1)
    await host.disconnect()


async def test_a_removal_lets_a_command_in_progress_end(control: Control, target: Target) -> None:
    await call(control, "namespace.add", storage="ramdisk:1M,delay:read=300ms", nsid=2)
    host = await host_of(target)
    reading = asyncio.ensure_future(host.namespace(2).read(0, 1))
    await _busy(control, 2)
    removed = await call(control, "namespace.remove", nsid=2)
    assert removed["cut"] == [] and len(await reading) == 512
    await host.disconnect()


async def test_force_says_what_it_cuts(control: Control, target: Target) -> None:
    await call(control, "namespace.add", storage="ramdisk:1M,delay:read=400ms", nsid=2)
    host = await host_of(target)
    reading = asyncio.ensure_future(host.namespace(2).read(0, 1))
    await _busy(control, 2)
    removed = await call(control, "subsystem.remove", nqn=NQN, force=True)
    assert len(removed["ended"]) == 1
    assert len(removed["cut"]) == 1 and "1 commands of queue" in removed["cut"][0] and HOST in removed["cut"][0]
    with pytest.raises(NvmeofError):
        await reading
    await host.disconnect()


async def test_a_drain_that_takes_too_long_says_what_it_cuts(control: Control, target: Target) -> None:
    await call(control, "namespace.add", storage="ramdisk:1M,delay:read=500ms", nsid=2)
    host = await host_of(target)
    reading = asyncio.ensure_future(host.namespace(2).read(0, 1))
    await _busy(control, 2)
    removed = await call(control, "port.remove", portid=1, seconds=0.05)
    assert len(removed["cut"]) == 1 and "were cut" in removed["cut"][0]
    with pytest.raises(NvmeofError):
        await reading
    await host.disconnect()


async def test_a_port_of_two_is_removed_under_load_without_an_error(control: Control, target: Target) -> None:
    added = (await call(control, "port.add", address="127.0.0.1:0", portid=2))["listeners"][0]
    first = target.address
    host = await connect_multipath(
        str(first), f"{added['address']}:{added['port']}", subnqn=NQN, transport="tcp", hostnqn=HOST,
        iopolicy="round-robin", all_paths=True, nr_io_queues=2,
    )  # fmt: skip
    stopping, done = False, 0

    async def work(slba: int) -> None:
        nonlocal done
        disk = host.namespace(1)
        while not stopping:
            data = done.to_bytes(8, "little") * 64
            await disk.write(slba, data)
            assert bytes(await disk.read(slba, 1)) == data
            done += 1

    async def more() -> None:
        before = done
        while done < before + 50 and not any(each.done() for each in tasks):  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(work(slba)) for slba in range(8)]
    await more()
    await call(control, "ana.set", group=1, state="inaccessible", portid=2)
    await more()
    await call(control, "ana.set", group=1, state="optimized", portid=2)
    await more()
    removed = await call(control, "port.remove", portid=2)
    assert removed["ended"] == [f"controller 2 of {HOST} on port 2, subsystem {NQN}"]
    assert (removed["cut"], removed["left"]) == ([], [])
    await more()
    await call(control, "namespace.add", storage="ramdisk:1M", nsid=8)
    await call(control, "namespace.remove", nsid=8)
    await call(control, "namespace.resize", nsid=1, size="2M")
    await more()
    stopping = True
    assert await asyncio.gather(*tasks) == [None] * 8, "no error reached the host's user"
    await host.disconnect()


async def _busy(control: Control, nsid: int) -> None:
    for _ in range(200):
        if any(each["nsid"] == nsid and each["in_flight"] for each in await control.namespaces.list()):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("no command is in progress")


def test_every_verb_is_called_here() -> None:
    """By the text: what has run is spread over processes where tests run in parallel."""
    text = Path(__file__).read_text()
    assert not [verb.name for verb in all_verbs() if f'"{verb.name}"' not in text]
