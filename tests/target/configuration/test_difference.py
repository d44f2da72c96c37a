"""A configuration file that is read again: the difference is applied, and nothing else; what fails changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof import Target, connect, discover
from nvmeof.errors import ConfigurationError
from nvmeof.security.secret import generate_secret
from nvmeof.security.tls.key import generate_tls_key
from nvmeof.target.configuration.difference import apply, difference
from nvmeof.target.document import from_document

ONE, TWO = (f"nqn.2026-01.org.example:{name}" for name in ("one", "two"))
HOSTS = [f"nqn.2014-08.org.nvmexpress:uuid:{n:08d}-2222-3333-4444-555555555555" for n in range(2)]
KEY = generate_secret()
TLS_KEY = generate_tls_key()


def subsystem(nqn: str = ONE, namespaces: Any = ("ramdisk:1M",), **more: Any) -> dict[str, Any]:
    listed = [each if isinstance(each, dict) else {"storage": each} for each in namespaces]
    return {"nqn": nqn, "namespaces": listed, **more}


def document(*subsystems: dict[str, Any], ports: Any = ({"portid": 1},), **more: Any) -> dict[str, Any]:
    listed = [{"transport": "memory", "host": f"port-{each['portid']}", "port": 4420, **each} for each in ports]
    return {"version": 1, "subsystems": list(subsystems), "ports": listed, **more}


def state(target: Target) -> Any:
    """Return the state of a running target that a file can describe, and the NSIDs that are open."""
    described = target.administration.describe()
    for each in described["subsystems"]:
        each.pop("controllers")
    return _optimized_left_out(json.loads(json.dumps(described)))


def _optimized_left_out(described: Any) -> Any:
    """Return the state without optimized groups, since optimized is the default."""
    for port in described["ports"]:
        port["ana"] = {group: word for group, word in port.get("ana", {}).items() if word != "optimized"}
    return described


async def reload(target: Target, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return await apply(difference(target.administration, from_document(old), from_document(new)))


CASES: list[tuple[Any, Any, list[str]]] = [
    (document(subsystem()), document(subsystem(), subsystem(TWO)), [f"subsystem {TWO} added"]),
    (document(subsystem(), subsystem(TWO)), document(subsystem()), [f"subsystem {TWO} removed"]),
    (document(subsystem()), document(subsystem(hosts=HOSTS[:1])), [f"{ONE}: allowed hosts changed"]),
    (document(subsystem(hosts=HOSTS)), document(subsystem()), [f"{ONE}: allowed hosts changed"]),
    (document(subsystem()), document(subsystem(managing_hosts=HOSTS)), [f"{ONE}: managing hosts changed"]),
    (document(subsystem(managing_hosts=HOSTS)), document(subsystem()), [f"{ONE}: managing hosts changed"]),
    (
        document(subsystem()), document(subsystem(host_keys={HOSTS[0]: {"dhchap_key": KEY.to_text()}})),
        [f"{ONE}: keys of {HOSTS[0]} changed"],
    ),
    (
        document(subsystem()), document(subsystem(tls_keys={HOSTS[0]: TLS_KEY.to_text()})),
        [f"{ONE}: TLS key of {HOSTS[0]} changed"],
    ),
    (
        document(subsystem(namespaces=["ramdisk:1M"])), document(subsystem(namespaces=["ramdisk:1M", "ramdisk:2M"])),
        [f"{ONE}: namespace 2 added"],
    ),
    (document(subsystem()), document(subsystem(namespaces=["ramdisk:2M"])), [f"{ONE}: namespace 1 replaced"]),
    (
        document(subsystem()), document(subsystem(namespaces=[{"storage": "ramdisk:1M", "anagrpid": 3}])),
        [f"{ONE}: namespace 1 moved to ANA group 3"],
    ),
    (
        document(subsystem()),
        document(subsystem(namespaces=[{"storage": "ramdisk:1M", "rate_limit": {"operations_per_second": 5}}])),
        [f"{ONE}: rate limit of namespace 1 changed"],
    ),
    (
        document(subsystem(host_limits={HOSTS[0]: {"bytes_per_second": 9}})),
        document(subsystem(host_limit={"bytes_per_second": 9})),
        [f"{ONE}: rate limit of each host changed", f"{ONE}: rate limit of {HOSTS[0]} changed"],
    ),
    (document(subsystem()), document(subsystem(), ports=[{"portid": 1}, {"portid": 7}]), ["port 7 added"]),
    (document(subsystem(), ports=[{"portid": 1}, {"portid": 7}]), document(subsystem()), ["port 7 removed"]),
    (
        document(subsystem()), document(subsystem(), ports=[{"portid": 1, "ana": {"2": "inaccessible"}}]),
        ["port 1: ANA group 2 is inaccessible"],
    ),
    (
        document(subsystem()), document(subsystem(), ports=[{"portid": 1, "host": "elsewhere"}]),
        ["port 1 closed and opened again"],
    ),
    (
        document(subsystem(), subsystem(TWO), ports=[{"portid": 1, "subsystems": [ONE]}]),
        document(subsystem(), subsystem(TWO), ports=[{"portid": 1, "subsystems": [TWO]}]),
        [f"port 1 offers {TWO}", f"port 1 offers {ONE} no longer"],
    ),
    (
        document(subsystem(), subsystem(TWO)),
        document(subsystem(), subsystem(TWO), ports=[{"portid": 1, "subsystems": [TWO]}]),
        ["port 1 offers the listed subsystems alone"],
    ),
    (
        document(subsystem(), ports=[{"portid": 1, "subsystems": []}]), document(subsystem()),
        ["port 1 offers all subsystems"],
    ),
    (  # a listed subsystem that does not exist
        document(subsystem(), ports=[{"portid": 1, "subsystems": [TWO]}]),
        document(subsystem(), ports=[{"portid": 1, "subsystems": [ONE]}]),
        ["port 1 offers the listed subsystems alone"],
    ),
    (
        document(subsystem()), document(subsystem(max_io_queues=5, cntlid_min=7)),
        [f"{ONE}: limits of queues or controller identifiers changed"],
    ),
    (
        document(subsystem()), document(subsystem(namespaces=[{"storage": "ramdisk:1M", "enabled": False}])),
        [f"{ONE}: namespace 1 disabled"],
    ),
    (
        document(subsystem()), document(subsystem(), ports=[{"portid": 1, "referrals": [{"traddr": "192.0.2.9"}]}]),
        ["port 1: referrals changed"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), CASES)
async def test_one_difference_and_its_opposite(old: Any, new: Any, said: list[str]) -> None:
    async with Target.from_document(old) as target:
        before = state(target)
        assert await reload(target, old, new) == said
        async with Target.from_document(
            {**new, "ports": [{**each, "host": f"x{each['host']}"} for each in new["ports"]]}
        ) as wanted:
            assert _without_hosts(state(wanted)) == _without_hosts(state(target))
        await reload(target, new, old)
        assert state(target) == before


def _without_hosts(described: Any) -> Any:
    for port in described["ports"]:
        port.pop("host"), port.pop("listeners")
    return described


async def test_an_unchanged_file_changes_nothing() -> None:
    old = document(subsystem(), subsystem(TWO))
    async with Target.from_document(old) as target:
        await target.administration.remove_namespace(1, subnqn=TWO)
        assert await reload(target, old, old) == []
        assert not target.subsystem(TWO).namespaces, "what was changed by hand stays"


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (document(subsystem(serial="other")), "serial cannot be changed while it runs"),
        (document(subsystem(max_transfer_bytes=8192)), "max_transfer_bytes cannot be changed"),
        (document(subsystem(), staging_bytes=8 << 20), "staging_bytes can be changed by a restart"),
        (document(subsystem(), sockets={"tos": 8}), "sockets can be changed by a restart"),
    ],
)
async def test_changes_that_take_a_restart(new: Any, says: str) -> None:
    old = document(subsystem())
    async with Target.from_document(old) as target:
        before = state(target)
        with pytest.raises(ConfigurationError, match=says):
            await reload(target, old, new)
        assert state(target) == before


async def test_a_reload_that_fails_changes_nothing(tmp_path: Path) -> None:
    old = document(subsystem(), subsystem(TWO))
    missing = f"file:{tmp_path}/missing"
    new = document(
        subsystem(hosts=HOSTS, namespaces=["ramdisk:1M", "ramdisk:1M", missing]), ports=[{"portid": 1}, {"portid": 2}]
    )
    async with Target.from_document(old) as target:
        before = state(target)
        with pytest.raises(ConfigurationError, match=r"namespace 3 added: .*missing.*; nothing was changed$"):
            await reload(target, old, new)
        assert state(target) == before


nsids = st.lists(st.integers(1, 4), unique=True, max_size=3)
subsystems = st.builds(
    lambda nqn, numbers, sizes, hosts: subsystem(
        nqn,
        [{"nsid": nsid, "storage": f"ramdisk:{size}M"} for nsid, size in zip(numbers, sizes, strict=False)],
        **({} if hosts is None else {"hosts": hosts}),
    ),
    st.just(ONE), nsids, st.lists(st.sampled_from([1, 2]), min_size=3, max_size=3),
    st.none() | st.lists(st.sampled_from(HOSTS), unique=True),
)  # fmt: skip
ports = st.lists(
    st.fixed_dictionaries(
        {"portid": st.integers(1, 3)},
        optional={
            "ana": st.dictionaries(st.sampled_from(["1", "2"]), st.sampled_from(["inaccessible", "non-optimized"])),
            "subsystems": st.lists(st.sampled_from([ONE, TWO]), unique=True),
        },
    ),
    unique_by=lambda each: each["portid"], max_size=3,
)  # fmt: skip
documents = st.builds(
    lambda one, two, listed: document(*([one] if one else []), *([subsystem(TWO)] if two else []), ports=listed),
    st.none() | subsystems, st.booleans(), ports,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(documents, documents)
def test_any_two_documents(old: Any, new: Any) -> None:
    """A target of the first document with the difference applied describes itself as one of the second."""

    async def run() -> None:
        async with Target.from_document(old) as target:
            await reload(target, old, new)
            reached = _optimized_left_out(target.administration.save())
        async with Target.from_document(new) as target:
            wanted = _optimized_left_out(target.administration.save())
        for one, other in ((reached, wanted), (wanted, reached)):
            for port in one["ports"]:
                assert port in other["ports"]
            for each in one["subsystems"]:
                assert each in other["subsystems"]

    asyncio.run(run())


async def test_referrals_are_in_the_discovery_log() -> None:
    listed = document(subsystem(), ports=[{"portid": 1, "transport": "tcp", "host": "127.0.0.1", "port": 0,
                                           "referrals": [{"traddr": "192.0.2.9", "trsvcid": 8010}]}])  # fmt: skip
    async with Target.from_document(listed) as target:
        entries = await discover("127.0.0.1", target.address.port, transport="tcp")
    found = [(each.traddr, each.trsvcid, each.subnqn) for each in entries if each.subtype == 1]
    assert found == [("192.0.2.9", "8010", "nqn.2014-08.org.nvmexpress.discovery")]


async def test_sighup_and_check(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    text = f'version = 1\n[[subsystems]]\nnqn = "{ONE}"\n[[subsystems.namespaces]]\nstorage = "ramdisk:1M"\n'
    port = '[[ports]]\ntransport = "tcp"\nhost = "127.0.0.1"\nport = 0\n'
    path.write_text(text + port)
    program = [sys.executable, "-m", "nvmeof.target", "--config", str(path)]
    checked = await asyncio.create_subprocess_exec(*program, "--check", stdout=asyncio.subprocess.PIPE)
    assert (await checked.communicate())[0].decode() == f"{path}: good: 1 subsystem, 1 namespace, 1 port\n"
    audit = tmp_path / "audit"
    process = await asyncio.create_subprocess_exec(
        *program,
        "-o",
        "json",
        "--audit-log",
        str(audit),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        told = json.loads(await process.stdout.readline())
        where = told["ports"][0]["listeners"][0]["port"]
        async with await connect("127.0.0.1", where, transport="tcp", subnqn=ONE) as controller:
            assert [each.nsid for each in await controller.namespaces()] == [1]
            path.write_text(f'{text}[[subsystems.namespaces]]\nnsid = 9\nstorage = "ramdisk:2M"\n{port}')
            os.kill(process.pid, signal.SIGHUP)
            await _line(process.stderr, "was read again: 1 changes")
            assert [each.nsid for each in await controller.namespaces()] == [1, 9]
            path.write_text(text + "colour = 1\n" + port)
            os.kill(process.pid, signal.SIGHUP)
            line = await _line(process.stderr, "colour")
            assert f"SIGHUP: {path}, line 6: subsystems[0].namespaces[0].colour is no entry" in line
            told = [json.loads(each) for each in audit.read_text().splitlines()]
            done, refused = [each for each in told if each["event"] == "administration"]
            assert (done["outcome"], done["peer"], done["verb"]) == ("granted", "SIGHUP", "reload")
            assert "namespace 9" in done["reason"] and refused["outcome"] == "refused" and "colour" in refused["reason"]
            assert [each.nsid for each in await controller.namespaces()] == [1, 9]
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


async def _line(stream: asyncio.StreamReader, words: str) -> str:
    while line := (await asyncio.wait_for(stream.readline(), 20)).decode():
        if words in line:
            return line
    raise AssertionError(f"the log ended without {words!r}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--check"], "--check is for a file"),
        (["--config", "x.toml", "--ramdisk", "1M"], "--ramdisk belongs into the file of --config"),
        (["--config", "missing.toml"], "missing.toml cannot be read"),
    ],
)
async def test_options_that_are_wrong(arguments: list[str], says: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvmeof.target", *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 2 and says in error.decode() and error.count(b"\n") == 1
