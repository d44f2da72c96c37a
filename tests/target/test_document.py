"""The configuration document: a saved document makes the same target, and errors name what is wrong."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.secret import generate_secret
from nvmeof.security.tls.key import TlsKey
from nvmeof.spec.auth import DhGroupId, HashId
from nvmeof.spec.enums import AnaState
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.core.rate_limits import RateLimit
from nvmeof.target.document import TargetSettings, from_document, to_document
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.server import Target
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.filters.delay import DelayFilter
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.pools import FilePool, RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, Referral, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.namespace_option import parse_namespace_option
from nvmeof.transport.base import SocketOptions
from nvmeof.transport.paths.model import Limits
from nvmeof.transport.paths.session import PathOptions

NQNS = [f"nqn.2026-01.org.example:{name}" for name in ("one", "two", "three")]
HOSTS = [f"nqn.2014-08.org.nvmexpress:uuid:{n:08d}-2222-3333-4444-555555555555" for n in range(2)]
SECRET = generate_secret(48)
MINIMAL = {"version": 1, "subsystems": [{"nqn": NQNS[0], "namespaces": [{"storage": "ramdisk:1M"}]}], "ports": []}

# -- sequences of verbs ------------------------------------------------------------------------------------------------

subnqns = st.sampled_from(NQNS)
portids = st.integers(1, 4)
nsids = st.integers(1, 4)
groups = st.integers(1, 3)
options = st.sampled_from(
    ["ramdisk:1M", "ramdisk:1M,delay:read=0.1ms", "ramdisk:4M,block-size=4096", "ramdisk:4M,zone-size=1M,nsid=4"]
)
verbs = st.one_of(
    st.tuples(st.just("add_subsystem"), subnqns, st.sampled_from([None, frozenset(), frozenset(HOSTS[:1])])),
    st.tuples(st.just("remove_subsystem"), subnqns),
    st.tuples(st.just("add_namespace"), options, subnqns, groups),
    st.tuples(st.just("remove_namespace"), nsids, subnqns),
    st.tuples(st.just("resize_namespace"), nsids, st.sampled_from([1 << 20, 2 << 20]), subnqns),
    st.tuples(st.just("move_namespace"), nsids, groups, subnqns),
    st.tuples(st.just("add_host"), st.sampled_from(HOSTS), subnqns),
    st.tuples(st.just("remove_host"), st.sampled_from(HOSTS), subnqns),
    st.tuples(st.just("allow_any_host"), st.booleans(), subnqns),
    st.tuples(st.just("add_port"), st.sampled_from([None, *range(1, 5)]), st.sampled_from([None, frozenset(NQNS[1:])])),
    st.tuples(st.just("remove_port"), portids),
    st.tuples(st.just("set_ana_state"), st.sampled_from(list(AnaState)), groups, st.one_of(st.none(), portids)),
    st.tuples(st.just("link_subsystem"), subnqns, portids),
    st.tuples(st.just("unlink_subsystem"), subnqns, portids),
    st.tuples(st.just("link_all_subsystems"), portids),
)


async def do(target: Target, verb: str, *words: Any) -> None:
    """Execute one verb of administration."""
    administration = target.administration
    if verb == "add_subsystem":
        namespaces = (NamespaceConfig(backend=Ramdisk("1M"), anagrpid=2),)
        await administration.add_subsystem(
            SubsystemConfig(nqn=words[0], namespaces=namespaces, allowed_hosts=words[1], pool=RamdiskPool("8M"))
        )
    elif verb == "add_namespace":
        config = parse_namespace_option(f"{words[0]},anagrpid={words[2]}" if "delay" not in words[0] else words[0])
        await administration.add_namespace(config, subnqn=words[1])
    elif verb == "add_port":
        config = PortConfig(transport="memory", host="memory", port=0, portid=words[0], subsystems=words[1])
        await administration.add_port(config)
    elif verb == "set_ana_state":
        administration.set_ana_state(words[0], words[1], portid=words[2])
    elif verb in ("remove_subsystem", "remove_port", "unlink_subsystem"):
        assert await getattr(administration, verb)(*words) == []
    elif verb in ("link_subsystem", "link_all_subsystems"):
        getattr(administration, verb)(*words)
    else:
        result = getattr(administration, verb)(*words[:-1], subnqn=words[-1])
        if result is not None:
            await result


@settings(deadline=None, max_examples=60)
@given(st.lists(verbs, max_size=12))
def test_any_sequence_of_verbs_can_be_saved_and_loaded(sequence: list[tuple[Any, ...]]) -> None:
    """A refused verb changes nothing; the final state is saved, and is the same after loading."""

    async def both() -> None:
        async with Target(namespaces=[Ramdisk("1M")], subnqn=NQNS[0], trtype="memory", listen="memory:0") as target:
            for verb, *words in sequence:
                before = target.administration.describe()
                try:
                    await do(target, verb, *words)
                except ConfigurationError:
                    assert target.administration.describe() == before, (verb, words)
            saved = target.administration.save()
            described = target.administration.describe()
        again = Target.from_document(json.loads(json.dumps(saved)))
        async with again:
            assert again.administration.describe() == described
            assert again.administration.save() == saved

    asyncio.run(both())


# -- every field -------------------------------------------------------------------------------------------------------


def everything(directory: Path) -> TargetSettings:
    """Return settings in which no field has its default."""
    (directory / "disk").write_bytes(bytes(1 << 20))
    namespace = NamespaceConfig(
        backend=FileBackend(
            directory / "disk", size="1M", block_bytes=4096, read_only=True, shared=True, kept=directory / "kept"
        ),
        nsid=7, nguid=bytes(range(16)), uuid=__import__("uuid").UUID(int=5), eui64=bytes(range(8)), read_only=True,
        zoned=ZoneGeometry(
            zone_bytes=1 << 19, capacity_bytes=1 << 18, max_open=2, max_active=3, extension_bytes=64, read_across=False
        ),
        anagrpid=3, rate_limit=RateLimit(bytes_per_second=4096, operations_per_second=7, burst_seconds=2.5),
    )  # fmt: skip
    subsystem = SubsystemConfig(
        nqn=NQNS[0], serial="S", model="M", firmware="F", managing_hosts=frozenset({NQNS[1]}),
                allowed_hosts=frozenset(HOSTS), any_host=True,
        host_keys=(
            (HOSTS[0], HostKeys(SECRET)),
            (HOSTS[1], HostKeys(SECRET, SECRET, HashId.SHA384, DhGroupId.FFDHE4096)),
        ),
        authentication_required=True, reauthentication_seconds=60.0,
        tls_keys=((HOSTS[0], TlsKey(bytes(32))), (HOSTS[1], TlsKey(bytes(48), None))), tls_required=True,
        namespaces=(namespace,), max_queue_entries=64, max_io_queues=3, max_transfer_bytes=0, incapsule_bytes=4096,
        cntlid_min=5, cntlid_max=9, max_async_events=2, max_namespaces=16, max_ana_groups=4,
        pool=FilePool(directory / "pool", "8M"), max_attached=2, ready_timeout_seconds=3.5, command_quiesce_seconds=6.0,
        keep_alive_min_seconds=1.5, keep_alive_max_seconds=90.0, max_controllers=5, max_controllers_per_host=2,
        host_limit=RateLimit(operations_per_second=9), host_limits=((HOSTS[0], RateLimit(bytes_per_second=1 << 20)),),
        any_keep_alive_seconds=2.0, admin_label="label", metadata_store=JsonFileStore(directory / "state"),
    )  # fmt: skip
    port = PortConfig(
        transport="mptcp", host="192.0.2.1", port=4421, advertise_host="192.0.2.2", advertise_port=4422,
        discovery_only=True, advertise_as=("tsas",), ana=((2, AnaState.INACCESSIBLE),), portid=4,
        subsystems=frozenset(NQNS), paths=("192.0.2.3,backup",),
        referrals=(Referral(traddr="192.0.2.9", trsvcid=8010, transport="mptcp", name="other"),),
        tls="allowed", tls_suites=("TLS_AES_128_GCM_SHA256",),
    )  # fmt: skip
    sockets = SocketOptions(
        host_traddr="192.0.2.4", host_iface="eth0", tos=1, priority=2, mark=3, congestion="cubic", sndbuf_bytes=4096,
        rcvbuf_bytes=8192, connect_timeout_seconds=1.5, backlog=5, ipv6_only=True,
    )  # fmt: skip
    connection = ConnectionConfig(
        header_digest=True, data_digest=True, pda_bytes=8, maxr2t=2, maxh2cdata_bytes=8192, r2t_bytes=4096,
        incapsule_bytes=4096, receive_buffer_bytes=1 << 16,
    )  # fmt: skip
    return TargetSettings(
        config=TargetConfig(subsystems=(subsystem,), ports=(port,), staging_bytes=8 << 20, max_connections=77),
        sockets=sockets,
        connection=connection,
        connect_seconds=3.0,
        paths=PathOptions(
            paths=("192.0.2.9",), fullmesh=True, limits=Limits(3, 4), path_manager="kernel", keep=False
        ),
    )  # fmt: skip


def test_every_field_is_saved(tmp_path: Path) -> None:
    """A new field of a configuration fails here until it is in the document."""
    given_settings = everything(tmp_path)
    defaults = [SubsystemConfig(nqn=NQNS[0]), PortConfig(), SocketOptions(), ConnectionConfig(), PathOptions()]
    config = given_settings.config
    parts = [config.subsystems[0], config.ports[0], given_settings.sockets, given_settings.connection]
    for part, default in zip([*parts, given_settings.paths], defaults, strict=True):
        for each in fields(part):  # the check of this test
            if each.name != "nqn":
                assert getattr(part, each.name) != getattr(default, each.name), each.name
    document = to_document(given_settings)
    again = from_document(json.loads(json.dumps(document)))
    assert to_document(again) == document
    subsystem, namespace = again.config.subsystems[0], again.config.subsystems[0].namespaces[0]
    for part, other in [
        (config.ports[0], again.config.ports[0]), (given_settings.sockets, again.sockets),
        (given_settings.connection, again.connection), (given_settings.paths, again.paths),
    ]:  # fmt: skip
        assert part == other
    objects = {"namespaces", "pool", "metadata_store", "backend"}
    for part, other in [(config.subsystems[0], subsystem), (config.subsystems[0].namespaces[0], namespace)]:
        for each in fields(part):
            if each.name not in objects:
                assert getattr(part, each.name) == getattr(other, each.name), each.name
    assert namespace.backend.to_text() == config.subsystems[0].namespaces[0].backend.to_text()
    assert str(subsystem.pool.directory) == str(tmp_path / "pool")
    assert subsystem.metadata_store.path == tmp_path / "state"


def test_a_secret_is_saved_as_its_source(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET.to_text())
    path.chmod(0o600)
    keys = {HOSTS[0]: {"dhchap_key": f"file:{path}"}}
    document = {"version": 1, "subsystems": [{"nqn": NQNS[0], "host_keys": keys}], "ports": []}
    settings_ = from_document(document)
    assert settings_.config.subsystems[0].host_keys == ((HOSTS[0], HostKeys(SECRET)),)
    assert to_document(settings_)["subsystems"][0]["host_keys"] == keys


def test_the_shortest_document() -> None:
    settings_ = from_document({"version": 1, "subsystems": [{"nqn": NQNS[0]}], "ports": [{}]})
    assert settings_.config == TargetConfig(subsystems=(SubsystemConfig(nqn=NQNS[0]),), ports=(PortConfig(),))
    assert to_document(settings_) == {
        "version": 1,
        "subsystems": [{"nqn": NQNS[0], "namespaces": []}],
        "ports": [{"transport": "tcp", "host": "0.0.0.0", "port": 4420}],
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], "the document is a mapping"),
        (("version",), 2, "has the version 2"),
        (("version",), "1", "version is the number 1"),
        (("colour",), "blue", "colour is no entry"),
        (("staging_bytes",), "1G", "staging_bytes is of the type int"),
        (("staging_bytes",), 5, "staging memory must be 4 MiB"),
        (("connect_seconds",), True, "connect_seconds is a number"),
        (("connect_seconds",), 0, "connect_seconds is a number"),
        (("subsystems",), {}, "subsystems is a list"),
        (("subsystems",), [5], r"subsystems\[0\] is a mapping"),
        (("subsystems", 0, "nqn"), None, r"subsystems\[0\].nqn is of the type str"),
        (("subsystems", 0), {}, r"subsystems\[0\] has no nqn"),
        (("subsystems", 0, "cntlid_min"), 0, r"subsystems\[0\]: controller identifiers"),
        (("subsystems", 0, "cntlid_min"), True, r"subsystems\[0\].cntlid_min is of the type int"),
        (("subsystems", 0, "hosts"), [1], r"subsystems\[0\].hosts is a list of texts"),
        (("subsystems", 0, "tls_keys"), [], r"subsystems\[0\].tls_keys is a mapping of host NQNs"),
        (("subsystems", 0, "tls_keys"), {HOSTS[0]: "x"}, "tls_keys.*this is no TLS key"),
        (("subsystems", 0, "host_keys"), [], r"subsystems\[0\].host_keys is a mapping of host NQNs"),
        (("subsystems", 0, "host_keys"), {HOSTS[0]: {}}, "host_keys.* has no dhchap_key"),
        (("subsystems", 0, "host_keys"), {HOSTS[0]: {"dhchap_key": "x"}}, "host_keys.*no DH-HMAC-CHAP secret"),
        (("subsystems", 0, "host_keys"), {"n" * 300: {"dhchap_key": SECRET.to_text()}}, "the NQN of a host with keys"),
        (
            ("subsystems", 0, "host_keys"),
            {HOSTS[0]: {"dhchap_key": SECRET.to_text(), "dhchap_dhgroup": "x"}},
            "a group of DH-HMAC-CHAP is null",
        ),
        (("subsystems", 0, "pool"), {}, r"pool.capacity_bytes is a number"),
        (("subsystems", 0, "pool"), {"capacity_bytes": 5, "colour": 1}, r"pool.colour is no entry"),
        (("subsystems", 0, "namespaces", 0, "storage"), "disk", r"namespaces\[0\].storage: 'disk': write KIND"),
        (("subsystems", 0, "namespaces", 0), {}, r"namespaces\[0\] has no storage"),
        (("subsystems", 0, "namespaces", 0, "uuid"), "5", r"namespaces\[0\].uuid is a UUID"),
        (("subsystems", 0, "namespaces", 0, "nguid"), "xy", r"namespaces\[0\].nguid is hexadecimal"),
        (("subsystems", 0, "namespaces", 0, "nguid"), "00", "an NGUID has 16 bytes"),
        (("subsystems", 0, "namespaces", 0, "zoned"), {"zone_bytes": "4M"}, "zoned.zone_bytes is of the type int"),
        (("ports",), [{"ana": {"x": "change"}}], r"ports\[0\].ana is a mapping"),
        (("ports",), [{"ana": {"2": "broken"}}], "an ANA state is"),
        (("ports",), [{"paths": "auto"}], r"ports\[0\].paths is a list of texts"),
        (("ports",), [{"portid": 2}, {"portid": 2, "port": 1}], "the Port ID 2 is given twice"),
        (("ports",), [{"portid": 0}], r"ports\[0\]: a Port ID is 1 to 65535"),
        (("paths",), {"limits": [1]}, "paths.limits is a list of two numbers"),
        (("sockets",), {"tos": 1000}, "sockets: the type of service"),
        (("connection",), {"pda_bytes": 3}, "connection: data alignment"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(path: tuple[Any, ...], value: Any, message: str) -> None:
    document: Any = json.loads(json.dumps(MINIMAL))
    if not path:
        document = value
    else:
        where = document
        for step in path[:-1]:
            where = where[step]
        where[path[-1]] = value
    with pytest.raises(ConfigurationError, match=message):
        from_document(document)


def test_objects_of_a_program_cannot_be_saved() -> None:
    def config(**given: Any) -> TargetSettings:
        return TargetSettings(config=TargetConfig(subsystems=(SubsystemConfig(nqn=NQNS[0], **given),)))

    filtered = DelayFilter(Ramdisk("1M"), {})
    for settings_ in (
        config(namespaces=(NamespaceConfig(backend=filtered),)),
        config(metadata_store=MemoryStore()),
    ):
        with pytest.raises(ConfigurationError, match="cannot be saved"):
            to_document(settings_)


async def test_a_file_and_its_filters_are_saved_in_their_current_state(tmp_path: Path) -> None:
    """Also after a host has changed the block size, from another working directory, with commas in the name."""
    path = tmp_path / "a,b"
    text = f"file:{str(path).replace(',', ',,')},size=1M,delay:read=0.1ms,count:"
    async with Target(namespaces=[parse_namespace_option(text)], trtype="memory", listen="memory:0") as target:
        target.subsystems[target.subnqn].namespaces[1].backend.set_block_bytes(4096)
        target.administration.resize_namespace(1, 2 << 20)
        saved = target.administration.save()
    storage = saved["subsystems"][0]["namespaces"][0]["storage"]
    assert storage == f"file:{str(path).replace(',', ',,')},size=2097152,block-size=4096,delay:read=0.1ms,count:"
    async with Target.from_document(saved) as again:
        (namespace,) = again.administration.describe()["subsystems"][0]["namespaces"]
        assert (namespace["size_bytes"], namespace["block_bytes"]) == (2 << 20, 4096)
