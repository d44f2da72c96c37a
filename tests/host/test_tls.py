"""TLS through the whole stack: our host and our target over tcp and mptcp, policies, refusals, both command lines."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import nvmeof
from nvmeof import (
    AuthenticationError,
    ConfigurationError,
    NamespaceConfig,
    NvmeStatusError,
    PortConfig,
    Ramdisk,
    SubsystemConfig,
    Target,
    TargetConfig,
    TlsCredentials,
    TlsKey,
    TransportError,
    connect,
    connect_multipath,
    discover,
    generate_secret,
    generate_tls_key,
)
from nvmeof.host.authentication import HostAuthentication
from nvmeof.host.cli import services
from nvmeof.host.cli.secrets import tls_credentials
from nvmeof.host.options import ConnectOptions
from nvmeof.host.path import is_final
from nvmeof.host.url import TargetUrl
from nvmeof.security.dh_groups import usable_groups
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.dhchap_host import HostCredentials
from nvmeof.security.tls.key import Derivation, Psk, generated_key
from nvmeof.security.tls.suites import AES_128_GCM, AES_256_GCM, CHACHA20
from nvmeof.spec.auth import DhGroupId, HashId
from nvmeof.spec.connect import Authreq
from nvmeof.spec.enums import DISCOVERY_NQN, SecType, Treq
from nvmeof.spec.status import Status
from nvmeof.target.subsystem.generated_psks import LIFE_SECONDS, MOST_KEYS, GeneratedPsks

from .conftest import HOSTNQN

NQN, OTHER_HOST = "nqn.2026-01.org.example:disk", "nqn.2026-01.org.example:other-host"
REFUSED = "refuses the pre-shared key"
KEY, KEY_384 = generate_tls_key(), generate_tls_key(HashId.SHA384)


@asynccontextmanager
async def serving(
    *policies: str, transport: str = "tcp", key: TlsKey = KEY, suites: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[Target]:
    subsystem = SubsystemConfig(
        nqn=NQN, namespaces=(NamespaceConfig(backend=Ramdisk("32M")),), tls_keys=((HOSTNQN, key),), **options
    )
    ports = tuple(
        PortConfig(transport=transport, host="127.0.0.1", port=0, tls=policy, tls_suites=suites)
        for policy in policies or ("required",)
    )
    async with Target(config=TargetConfig(subsystems=(subsystem,), ports=ports), connect_seconds=2.0) as target:
        yield target


def where(target: Target, transport: str = "tcp", port: int = 0, **options: Any) -> dict[str, Any]:
    address = target.addresses[port]
    named = {"transport": transport, "subnqn": NQN, "hostnqn": HOSTNQN}
    return {"traddr": address.host, "trsvcid": address.port, **named, **options}


async def use(**options: Any) -> str | None:
    """Write and read sizes that are less than a record, several records, and more than a batch; return the suite."""
    async with await connect(nr_io_queues=2, **options) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        sizes = (512, 4096, 16 * 1024, 128 * 1024, 1 << 20)
        data = [os.urandom(size) for size in sizes]
        await asyncio.gather(*(namespace.write(4096 * index, each) for index, each in enumerate(data)))
        found = await asyncio.gather(*(namespace.read(4096 * i, len(each) // 512) for i, each in enumerate(data)))
        assert found == data
        facts = controller.describe()
        assert len({each.get("tls") for each in facts}) == 1, "all queues are encrypted, or none"
        return facts[0].get("tls")


@pytest.mark.parametrize("transport", ["tcp", "mptcp"])
@pytest.mark.parametrize(("key", "suite"), [(KEY, AES_128_GCM), (KEY_384, AES_256_GCM)])
async def test_reads_and_writes(transport: str, key: TlsKey, suite: Any) -> None:
    async with serving(transport=transport, key=key) as target:
        assert await use(**where(target, transport, tls=TlsCredentials(key))) == suite.name


@pytest.mark.parametrize("digests", [False, True])
async def test_digests_within_tls(digests: bool) -> None:
    async with serving() as target:
        options = {"hdr_digest": digests, "data_digest": digests, "disable_sqflow": digests}
        assert await use(**where(target, tls=TlsCredentials(KEY), **options))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("derivation", list(Derivation))
@pytest.mark.parametrize("key", [KEY, KEY_384])
async def test_every_identity_that_is_met(version: int, derivation: Derivation, key: TlsKey) -> None:
    async with serving(key=key) as target:
        assert await use(**where(target, tls=TlsCredentials(key, version, derivation)))


async def test_the_key_of_linux_with_sha_384_and_chacha20() -> None:
    """tshd of Linux makes the binder of a 48-byte key with SHA-256, and negotiates CHACHA20."""
    async with serving(key=KEY_384) as target:
        as_linux = TlsCredentials(KEY_384, suites=(CHACHA20,))
        assert await use(**where(target, tls=as_linux)) == CHACHA20.name
    async with serving(key=KEY_384, suites=(CHACHA20.name,)) as target:
        assert await use(**where(target, tls=TlsCredentials(KEY_384))) == CHACHA20.name


async def test_suites_that_a_port_does_not_allow(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(suites=(AES_256_GCM.name,)) as target:
        with pytest.raises(AuthenticationError):
            await use(**where(target, tls=TlsCredentials(KEY)))
    assert "it offers no cipher suite of SHA256 that is allowed here" in caplog.text


async def test_the_longest_names() -> None:
    hostnqn, subnqn = "nqn.2026-01.org.example:" + "h" * 199, "nqn.2026-01.org.example:" + "s" * 199
    subsystem = SubsystemConfig(
        nqn=subnqn, namespaces=(NamespaceConfig(backend=Ramdisk("32M")),), tls_keys=((hostnqn, KEY_384),)
    )
    ports = (PortConfig(host="127.0.0.1", port=0, tls="required"),)
    async with Target(config=TargetConfig(subsystems=(subsystem,), ports=ports)) as target:
        there = {**where(target), "hostnqn": hostnqn, "subnqn": subnqn}
        assert await use(**there, tls=TlsCredentials(KEY_384)) == AES_256_GCM.name


async def test_one_port_for_both() -> None:
    async with serving("allowed") as target:
        assert await use(**where(target)) is None
        assert await use(**where(target, tls=TlsCredentials(KEY)))
        with pytest.raises(AuthenticationError):
            await use(**where(target, tls=TlsCredentials(generate_tls_key())))


async def test_a_subsystem_that_requires_tls_on_a_port_that_allows_both(caplog: pytest.LogCaptureFixture) -> None:
    async with serving("allowed", tls_required=True) as target:
        with pytest.raises(NvmeStatusError) as caught:
            await use(**where(target))
        assert caught.value.status == Status.CONNECT_INVALID_HOST and caught.value.dnr
        assert await use(**where(target, tls=TlsCredentials(KEY)))
    assert f"{NQN} requires TLS, which host '{HOSTNQN}' does not use" in caplog.text


async def test_discovery_says_what_a_port_wants() -> None:
    async with serving("required", "allowed", "off") as target:
        for port, (treq, sectype) in enumerate(
            [
                (Treq.SECURE_CHANNEL_REQUIRED, SecType.TLS_1_3),
                (Treq.SECURE_CHANNEL_NOT_REQUIRED, SecType.TLS_1_3),
                (Treq.NOT_SPECIFIED, SecType.NONE),
            ]
        ):
            there = where(target, port=port, tls=TlsCredentials(KEY) if port < 2 else None)
            del there["subnqn"]
            entries = [each for each in await discover(**there) if each.is_nvm and each.portid == port + 1]
            assert {(each.treq & 3, each.sectype) for each in entries} == {(treq, sectype)}
        assert entries  # of the plain port, which tells of the others too
        secured = next(each for each in await discover(**there) if each.requires_tls and each.is_nvm)
        with pytest.raises(TransportError, match="requires TLS: connect with a key"):
            await connect(secured, hostnqn=HOSTNQN)
        async with await connect(secured, hostnqn=HOSTNQN, tls=TlsCredentials(KEY)) as controller:
            assert controller.describe()[0]["tls"]


# -- refusals: what each side says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "host_says", "target_says"),
    [
        ({"tls": TlsCredentials(generate_tls_key())}, REFUSED, "its PSK identity is not known here"),
        ({"tls": TlsCredentials(generate_tls_key(), 0)}, REFUSED, "its TLS key is not the one of"),
        ({"tls": TlsCredentials(KEY), "hostnqn": OTHER_HOST}, REFUSED, f"known here: NVMe1R01 {OTHER_HOST}"),
        ({"tls": TlsCredentials(KEY), "subnqn": "nqn.none"}, REFUSED, "known here"),
        ({}, "does that port require TLS.*--tls-key", "it does not speak TLS, which is required here"),
    ],
)  # fmt: skip
async def test_refusals(
    options: dict[str, Any], host_says: str, target_says: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as target:
        with pytest.raises(TransportError, match=host_says) as caught:
            await connect(**{**where(target), **options})
        assert is_final(caught.value) is bool(options), "a key that is refused once is refused again"
        for _ in range(100):
            if target_says in caplog.text:
                break
            await asyncio.sleep(0.01)
        assert not target.connections.strangers.taken
    assert target_says in caplog.text
    for each in (KEY, options["tls"].key if options else KEY):
        assert each.to_text().split(":")[2] not in caplog.text
        assert each.identity(HOSTNQN, NQN).split(" ")[3] not in caplog.text


async def test_a_host_with_tls_at_a_plain_port(caplog: pytest.LogCaptureFixture) -> None:
    async with serving("off") as target:
        with pytest.raises(TransportError, match="the TLS handshake failed: the peer does not speak TLS"):
            await use(**where(target, tls=TlsCredentials(KEY)))
    assert "seems to speak TLS (first byte 16h), which is not spoken here" in caplog.text


async def test_the_key_of_one_host_opens_nothing_for_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A host whose TLS says one name and whose Connect says another."""
    psk = KEY.psk
    monkeypatch.setattr(TlsKey, "psk", lambda self, hostnqn, subnqn, **how: psk(HOSTNQN, subnqn, **how))
    async with serving() as target:
        with pytest.raises(NvmeStatusError, match="0x184"):
            await use(**{**where(target, tls=TlsCredentials(KEY)), "hostnqn": OTHER_HOST})
    assert f"the TLS key of the connection is of host '{HOSTNQN}', not of '{OTHER_HOST}'" in caplog.text


async def test_the_key_of_one_subsystem_opens_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    psk = KEY.psk
    monkeypatch.setattr(TlsKey, "psk", lambda self, hostnqn, subnqn, **how: psk(hostnqn, NQN, **how))
    async with serving() as target:
        there = where(target, tls=TlsCredentials(KEY))
        del there["subnqn"]
        with pytest.raises(NvmeStatusError, match="0x184"):
            await discover(**there)
    assert f"the TLS key of the connection is for '{NQN}', not for '{DISCOVERY_NQN}'" in caplog.text


async def test_slow_handshakes_end_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as target:
        connections = [await asyncio.open_connection(*_pair(target)) for _ in range(5)]
        for _, writer in connections:
            writer.write(b"\x16\x03\x01")
        await asyncio.sleep(0.1)
        assert target.connections.strangers.taken == 5
        assert [await reader.read() for reader, _ in connections] == [b""] * 5
        assert not target.connections.strangers.taken
        for _, writer in connections:
            writer.close()
    assert "the TLS handshake was not complete within 2 s" in caplog.text


async def test_a_target_that_stops_ends_handshakes() -> None:
    async with serving() as target:
        reader, writer = await asyncio.open_connection(*_pair(target))
        await asyncio.sleep(0.05)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


def _pair(target: Target) -> tuple[str, int]:
    return target.address.host, target.address.port


# -- with what else there is -----------------------------------------------------------------------------------------


async def test_authentication_within_tls() -> None:
    secret = generate_secret()
    async with serving(host_keys=((HOSTNQN, HostKeys(secret)),)) as target:
        there = where(target, tls=TlsCredentials(KEY), dhchap=HostCredentials(secret))
        assert await use(**there)


async def test_keys_that_change_while_the_target_runs() -> None:
    async with serving() as target:
        new = generate_tls_key()
        target.administration.set_tls_key(HOSTNQN, new)
        with pytest.raises(AuthenticationError):
            await use(**where(target, tls=TlsCredentials(KEY)))
        assert await use(**where(target, tls=TlsCredentials(new)))
        assert target.administration.describe()["subsystems"][0]["hosts_with_tls_keys"] == [HOSTNQN]
        target.administration.set_tls_key(HOSTNQN, None)
        with pytest.raises(AuthenticationError):
            await use(**where(target, tls=TlsCredentials(new)))


async def test_a_document_has_it_all(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_text(KEY.to_text())
    path.chmod(0o600)
    async with serving(
        key=nvmeof.load_tls_key(f"file:{path}"), suites=(AES_128_GCM.name,), tls_required=True
    ) as target:
        document = target.administration.save()
    assert document["subsystems"][0]["tls_keys"] == {HOSTNQN: f"file:{path}"} and KEY.to_text() not in str(document)
    assert document["subsystems"][0]["tls_required"] is True
    assert (document["ports"][0]["tls"], document["ports"][0]["tls_suites"]) == ("required", [AES_128_GCM.name])
    again = Target.from_document(document)
    assert again.config.subsystems[0].tls_keys == ((HOSTNQN, KEY),) and again.config.ports[0].tls == "required"
    for wrong, says in ((3, "file:PATH or env:NAME"), (f"file:{tmp_path}/none", "cannot be read")):
        document["subsystems"][0]["tls_keys"] = {HOSTNQN: wrong}
        with pytest.raises(ConfigurationError, match=rf"subsystems\[0\]\.tls_keys\['{HOSTNQN}'\].*{says}"):
            Target.from_document(document)


async def test_a_host_reconnects_with_tls() -> None:
    async with serving(transport="mptcp") as target:
        there = where(target, "mptcp", tls=TlsCredentials(KEY))
        path = f"{there.pop('traddr')}:{there.pop('trsvcid')}"
        async with await connect_multipath(path, reconnect_delay=0.05, **there) as subsystem:
            namespace = subsystem.namespace(1)
            await namespace.write(0, b"x" * 512)
            for driver in list(target.drivers):
                driver.endpoint.abort()
            assert await namespace.read(0, 1) == b"x" * 512


def test_options_are_shown_without_the_key() -> None:
    options = ConnectOptions(
        traddr="192.0.2.1",
        subnqn=NQN,
        hostnqn=HOSTNQN,
        hostid=__import__("uuid").UUID(int=1),
        tls=TlsCredentials(KEY),
    )
    assert KEY.key.hex() not in repr(options) and repr(KEY.key) not in repr(options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tls": "on"}, "TLS of a port is off, allowed, required, not 'on'"),
        ({"tls": "allowed", "tls_suites": ("md5",)}, "a cipher suite is"),
    ],
)
def test_ports_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        PortConfig(**options)


def test_a_host_with_two_keys() -> None:
    with pytest.raises(ConfigurationError, match="has a TLS key twice"):
        SubsystemConfig(nqn=NQN, tls_keys=((HOSTNQN, KEY), (HOSTNQN, KEY_384)))


def test_urls() -> None:
    url = TargetUrl.parse(f"nvme+tcp://h/{NQN}?tls=1&tls-key=file:/a.key&tls_identity=0")
    assert url.options == {"tls": True, "tls_key": "file:/a.key", "tls_identity": 0}
    with pytest.raises(ConfigurationError, match="give tls="):
        url.keywords()


# -- command lines -----------------------------------------------------------------------------------------------------


def _program(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nvmeof.host", *arguments],
        env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def test_command_lines(tmp_path: Path) -> None:
    path = tmp_path / "tls.key"
    path.write_text((await asyncio.to_thread(_program, "gen-tls-key", "-m", "2")).stdout)
    path.chmod(0o600)
    key = path.read_text().strip()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvmeof.target", "-t", "tcp", "-l", "127.0.0.1:0", "--ramdisk", "4M", "-n", NQN,
        "--tls", "required", "--tls-key", f"{HOSTNQN}=file:{path}", "--tls-keylog", str(tmp_path / "keylog"),
        "-o", "json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        told = json.loads(await process.stdout.readline())
        assert told["tls"] == "required" and told["hosts_with_tls_keys"] == [HOSTNQN]
        port = str(told["listeners"][0]["port"])
        there = ["-t", "tcp", "-a", "127.0.0.1", "-s", port, "-n", NQN, "-q", HOSTNQN]
        good = await asyncio.to_thread(_program, "id-ctrl", *there, "--tls", "--tls_key", f"file:{path}", "-o", "json")
        assert json.loads(good.stdout)["subnqn"] == NQN and not good.stderr and good.returncode == 0
        found = await asyncio.to_thread(_program, "discover", *there[:6], "-q", HOSTNQN, "--tls-key", f"file:{path}")
        assert "tls 1.3, required" in found.stdout
        url = f"nvme+tcp://127.0.0.1:{port}/{NQN}?hostnqn={HOSTNQN}&tls-key=file:{path}"
        good = await asyncio.to_thread(_program, "id-ctrl", url, "-o", "json")
        assert good.returncode == 0 and not good.stderr
        for arguments, environment, says in (
            ([], {}, "does that port require TLS? Then connect with a TLS key (--tls-key)"),
            (["--tls"], {}, "--tls needs the pre-shared key: give --tls-key file:PATH"),
            (["--tls-key", "env:WRONG"], {"WRONG": KEY_384.to_text()}, "refuses the pre-shared key"),
            (["--tls-key", "env:WRONG"], {"WRONG": key[:-4] + "AA=:"}, "a character was changed or lost"),
        ):
            bad = await asyncio.to_thread(_program, "id-ctrl", *there, *arguments, environment=environment)
            assert bad.returncode in (1, 2) and says in bad.stderr and bad.stderr.count("\n") == 1, bad.stderr
        seen = await asyncio.to_thread(_program, "id-ctrl", *there, "--tls-key", key)
        assert seen.returncode == 0 and "every user can read the key of --tls-key" in seen.stderr
        bad = await asyncio.to_thread(_program, "id-ctrl", *there, "--concat")
        assert bad.returncode == 2 and "concat makes the TLS key of an authentication" in bad.stderr
    finally:
        process.terminate()
        _, log = await process.communicate()
    text = log.decode()
    assert key.split(":")[2] not in text and "TLS_AES_256_GCM_SHA384" in text
    assert "its PSK identity is not known here" in text and "it does not speak TLS" in text
    keylog = tmp_path / "keylog"
    assert keylog.read_text().startswith(("CLIENT_", "SERVER_", "EXPORTER_")) and keylog.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tls-key", f"{HOSTNQN}=env:KEY"], "give --tls required or --tls allowed too"),
        (["--tls", "required"], "give --tls-key HOSTNQN=file:PATH"),
        (["--tls", "yes"], "'off', 'allowed', 'required'"),
        (["--tls", "required", "--tls-key", f"{HOSTNQN}={KEY.to_text()}"], "give file:PATH or env:NAME"),
        (["--tls", "required", "--tls-key", f"{HOSTNQN}=env:KEY", "--tls-suites", "RC4"], "a cipher suite is"),
        (["--tls", "required", "--tls-key", f"{HOSTNQN}=env:KEY", "--tls-keylog", "/none/x"], "cannot be written"),
    ],
)
def test_target_options_that_are_wrong(options: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nvmeof.target", *options],
        env={**os.environ, "KEY": KEY.to_text()}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert KEY.to_text().split(":")[2] not in done.stderr


def test_services_of_the_files_of_nvme_cli(capsys: pytest.CaptureFixture[str]) -> None:
    """A key of libnvme's config.json is used; a port of TLS without a key is left out, unless one was given."""
    found: list[services.Asked] = []
    there = {"transport": "tcp", "traddr": "192.0.2.1", "trsvcid": 8009}
    line = {"tls": True, "tls_key": KEY.to_text()}
    usable = services._usable(line, "there")
    services._add(found, {**there, **usable}, "there", line)
    assert tls_credentials(found[0].options) == TlsCredentials(KEY)
    for more, given in (({}, {"tls": True}), ({"tls_key": KEY}, {"concat": True}), ({}, {"tls_key": "0x1234"})):
        services._add(found, {**there, "traddr": "192.0.2.2", **more}, "there", given)
    assert len(found) == 1 and capsys.readouterr().err.count("left out 192.0.2.2 of there") == 3
    services._add(found, {**there, "traddr": "192.0.2.3", "tls_key": f"file:{os.devnull}"}, "there", {"tls": True})
    assert found[1].options["tls"] is True
    with pytest.raises(ConfigurationError, match="there: this TLS key has a wrong checksum"):
        services._usable({"tls_key": KEY.to_text()[:-4] + "AA=:"}, "there")


# -- secure channel concatenation --------------------------------------------------------------------------------------

SECRET = generate_secret()
needs_groups = pytest.mark.skipif(len(usable_groups()) < 2, reason="needs gmpy2: pip install 'nvmeof-mptcp[auth]'")


def concat(hash_id: HashId = HashId.SHA256, **more: Any) -> dict[str, Any]:
    groups = (DhGroupId.NULL, DhGroupId.FFDHE2048)
    return {"concat": True, "dhchap": HostCredentials(SECRET, hashes=(HashId.SHA512, hash_id), groups=groups, **more)}


@needs_groups
@pytest.mark.parametrize("transport", ["tcp", "mptcp"])
@pytest.mark.parametrize(("hash_id", "suite"), [(HashId.SHA256, AES_128_GCM), (HashId.SHA384, AES_256_GCM)])
async def test_a_key_that_authentication_makes(
    transport: str, hash_id: HashId, suite: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nvmeof")
    async with serving("allowed", transport=transport, host_keys=((HOSTNQN, HostKeys(SECRET)),)) as target:
        assert await use(**where(target, transport, **concat(hash_id))) == suite.name
        assert len(target.registry.generated) == 1
    assert caplog.text.count("authenticated (") == 1, "the admin queue, once: TLS proves the rest"
    assert f"({hash_id.name}, ffdhe2048, with a key for TLS)" in caplog.text


@needs_groups
async def test_both_prove_themselves_and_make_a_key() -> None:
    other = generate_secret()
    async with serving("allowed", host_keys=((HOSTNQN, HostKeys(SECRET, other)),)) as target:
        assert await use(**where(target, **concat(controller_key=other)))
        with pytest.raises(AuthenticationError, match="could not prove"):
            await use(**where(target, **concat(controller_key=generate_secret())))


@needs_groups
async def test_each_association_makes_its_own_key_and_reconnects_with_another() -> None:
    async with serving("allowed", host_keys=((HOSTNQN, HostKeys(SECRET)),)) as target:
        there = where(target, **concat())
        path = f"{there.pop('traddr')}:{there.pop('trsvcid')}"
        async with await connect_multipath(path, reconnect_delay=0.05, **there) as subsystem:
            namespace = subsystem.namespace(1)
            await namespace.write(0, b"y" * 512)
            for driver in list(target.drivers):
                driver.endpoint.abort()
            assert await namespace.read(0, 1) == b"y" * 512
            assert len(target.registry.generated) == 2
            assert {driver.endpoint.describe().tls for driver in target.drivers} == {AES_128_GCM.name}
        target.administration.set_host_keys(HOSTNQN, HostKeys(generate_secret()))
        assert not len(target.registry.generated), "a new secret ends what the old one made"
        with pytest.raises(AuthenticationError, match="the secrets do not match"):
            await use(**where(target, **concat()))


@needs_groups
@pytest.mark.parametrize(
    ("policy", "keys", "says"),
    [
        ("off", HostKeys(SECRET), "secure channel concatenation is demanded by one side alone"),
        ("allowed", None, "demands no authentication, so that there is no key for TLS"),
        ("allowed", HostKeys(SECRET, group=DhGroupId.NULL), "no Diffie-Hellman group that both sides allow"),
        ("allowed", HostKeys(SECRET, hash_id=HashId.SHA512), "no hash function that both sides allow"),
        ("required", HostKeys(SECRET), "does that port require TLS"),
    ],
)
async def test_where_no_key_can_be_made(policy: str, keys: HostKeys | None, says: str) -> None:
    host_keys = () if keys is None else ((HOSTNQN, keys),)
    async with serving(policy, host_keys=host_keys) as target:
        with pytest.raises(TransportError, match=says):
            await use(**where(target, **concat()))
        assert not len(target.registry.generated)


def test_generated_keys_are_forgotten() -> None:
    kept = GeneratedPsks()
    made = [Psk(f"NVMe1G01 host{number % 2} sub {number}", bytes(32)) for number in range(MOST_KEYS + 3)]
    for psk in made:
        kept.add(psk, 100.0)
    assert len(kept) == MOST_KEYS and not kept.find(made[2].identity, 100.0)
    assert kept.find(made[3].identity, 100.0 + LIFE_SECONDS - 1) == [made[3]]
    assert not kept.find(made[3].identity, 100.0 + LIFE_SECONDS) and len(kept) == MOST_KEYS - 1
    kept.forget("host0")
    assert not kept.find(made[4].identity, 100.0) and kept.find(made[5].identity, 100.0)


async def test_generated_keys_go_with_their_host_and_their_subsystem() -> None:
    """A host that is allowed again, or another subsystem of the same name, demands authentication anew."""
    other = "nqn.2026-01.org.example:other"
    async with serving("allowed", allowed_hosts=frozenset({HOSTNQN, OTHER_HOST})) as target:
        found = target.registry.generated

        def made(hostnqn: str, subnqn: str) -> str:
            psk = generated_key(HashId.SHA256, b"shared", b"challenges").psk(hostnqn, subnqn)
            found.add(psk, target.loop.time())
            return psk.identity

        mine, others, elsewhere = made(HOSTNQN, NQN), made(OTHER_HOST, NQN), made(OTHER_HOST, other)
        target.administration.remove_host(HOSTNQN)
        assert not found.find(mine, target.loop.time()) and found.find(others, target.loop.time())
        await target.administration.remove_subsystem(NQN)
        assert not found.find(others, target.loop.time()) and found.find(elsewhere, target.loop.time())


def test_a_generated_key_by_the_formula() -> None:
    """NVMe Base, generated PSK, written out with hashlib and hmac alone."""
    shared, challenges = bytes(range(200)), bytes(range(64))
    key = generated_key(HashId.SHA256, shared, challenges)
    psk = hmac.new(hashlib.sha256(shared).digest(), challenges, "sha256").digest()
    digest = base64.b64encode(hmac.new(psk, b"h s NVMe-over-Fabrics", "sha256").digest()).decode()
    early = hmac.new(bytes(32), psk, "sha256").digest()
    context = f"01 {digest}".encode()
    info = b"\x00\x20\x12tls13 nvme-tls-psk" + bytes([len(context)]) + context
    made = key.psk("h", "s")
    assert made.identity == f"NVMe1G01 h s {digest}"
    assert made.key == hmac.new(early, info + b"\x01", "sha256").digest()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concat": True}, "give the host's secret"),
        ({"concat": True, "dhchap": HostCredentials(SECRET), "tls": TlsCredentials(KEY)}, "give tls or concat"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ConnectOptions(
            traddr="192.0.2.1", subnqn=NQN, hostnqn=HOSTNQN, hostid=__import__("uuid").UUID(int=1), **options
        )


@needs_groups
async def test_a_subsystem_that_requires_tls_takes_a_key_of_authentication() -> None:
    async with serving("allowed", tls_required=True, host_keys=((HOSTNQN, HostKeys(SECRET)),)) as target:
        assert await use(**where(target, **concat())) == AES_128_GCM.name
        assert await use(**where(target, tls=TlsCredentials(KEY), dhchap=HostCredentials(SECRET)))
        with pytest.raises(AuthenticationError, match=r"demands TLS: connect with its key .*, or with --concat"):
            await use(**where(target, dhchap=HostCredentials(SECRET)))
        with pytest.raises(NvmeStatusError, match="0x184"):
            await use(**where(target, **{**concat(), "hostnqn": OTHER_HOST}))


@needs_groups
async def test_a_queue_for_a_key_is_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that goes on in clear, with or without a key, gets nothing but refusals, and its connection ends."""
    monkeypatch.setattr("nvmeof.target.projection.authentication.AUTHENTICATION_SECONDS", 0.5)
    async with serving("allowed", tls_required=True, host_keys=((HOSTNQN, HostKeys(SECRET)),)) as target:
        check = HostAuthentication.check
        monkeypatch.setattr(HostAuthentication, "check", lambda self, bits: check(self, bits & ~Authreq.ASCR))
        with pytest.raises(AuthenticationError, match="secure channel concatenation is demanded by one side alone"):
            await use(**where(target, dhchap=HostCredentials(SECRET)))
        always = property(lambda _: True, lambda *_: None)
        monkeypatch.setattr(HostAuthentication, "concatenate", always, raising=False)
        with pytest.raises(NvmeStatusError, match="Authentication Required"):
            await use(**where(target, dhchap=concat()["dhchap"]))
        async with asyncio.timeout(10):
            while target.drivers:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
