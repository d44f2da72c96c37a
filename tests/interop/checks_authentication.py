"""DH-HMAC-CHAP between a kernel and us, both ways: all hash functions and groups, in one and both directions."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from itertools import product

import nvmeof
from nvmeof.errors import AuthenticationError
from nvmeof.security.dhchap_host import HostCredentials
from nvmeof.security.secret import Secret, generate_secret, parse_secret
from nvmeof.security.words import hash_word
from nvmeof.spec.auth import DhGroupId, HashId

from .bench import Bench, CheckFailed, Skipped, check
from .checks import TCP_RAM, expect
from .checks_host import ADDRESS
from .peers import NQN, OurTarget

COMBINATIONS = tuple(product(HashId, DhGroupId))
SECRETS = (generate_secret(32), generate_secret(transform=HashId.SHA384), generate_secret(transform=HashId.SHA512))
"""A secret for each length and transformation, used in turn."""
CONTROLLER_SECRET = generate_secret(transform=HashId.SHA256)


def _host(number: int) -> tuple[str, str]:
    """Return the NQN and the identifier of a host: Linux requires one identifier per NQN, and the reverse."""
    identifier = str(uuid.UUID(int=0xAA0000000000400080000000000000 << 8 | number + 1))
    return f"nqn.2014-08.org.nvmexpress:uuid:{identifier}", identifier


def _secret(number: int) -> Secret:
    return SECRETS[number % len(SECRETS)]


class _Guarded(OurTarget):
    """Our target, with a host for each combination."""

    def command(self, listen: str) -> list[str]:
        keys = {
            _host(number)[0]: {
                "dhchap_key": _secret(number).to_text(),
                "dhchap_ctrl_key": CONTROLLER_SECRET.to_text(),
                "dhchap_hash": hash_word(hash_id),
                "dhchap_dhgroup": group.name.lower(),
            }
            for number, (hash_id, group) in enumerate(COMBINATIONS)
        }
        subsystem = {
            "nqn": self.nqn,
            "authentication_required": True,
            "host_keys": keys,
            "namespaces": [{"storage": f"ramdisk:{self.layout.size_mib}M"}],
        }
        port = {"transport": self.layout.trtype, "host": listen, "port": self.port}
        document = self.file.with_suffix(".json")
        document.write_text(json.dumps({"version": 1, "subsystems": [subsystem], "ports": [port]}))
        document.chmod(0o600)
        return [sys.executable, "-m", "tests.interop.document_target", str(document)]


def _needs_authentication(bench: Bench) -> None:
    if bench.kernel_version < (6, 2):
        raise Skipped("Debian's 6.1 is built without NVMe's in-band authentication")


@check(TCP_RAM, only_ours=True, allow=(r"nvme.*",))
def authentication(bench: Bench) -> None:
    """A kernel host authenticates itself to our target: 18 combinations, in one and in both directions; refusals."""
    _needs_authentication(bench)
    target = _Guarded(bench.layout, bench.directory, bench.log.with_suffix(".target.log"))
    with bench._serving(target):
        for number, _ in enumerate(COMBINATIONS):
            hostnqn, hostid = _host(number)
            both = f"-C {CONTROLLER_SECRET.to_text()}" if number % 2 else ""
            bench.run(f"""
                connect -q {hostnqn} -I {hostid} -i 1 -S {_secret(number).to_text()} {both}
                roundtrip $DEV 4096 1; disconnect""")
        hostnqn, hostid = _host(0)
        secret, wrong = _secret(0).to_text(), generate_secret(32).to_text()
        bench.run(f"""
            modprobe nvme-tcp; there="-t tcp -a $ADDR -s $PORT -n $NQN -q {hostnqn} -I {hostid}"
            ! nvme connect $there || die "no secret, and connected"
            ! nvme connect $there -S {wrong} || die "a wrong secret, and connected"
            ! nvme connect $there -S {secret} -C {wrong} || die "a wrong secret of the controller, and connected"
            ! nvme connect -t tcp -a $ADDR -s $PORT -n $NQN || die "an unknown host, and connected"
            connect -q {hostnqn} -I {hostid} -S {secret} -C {CONTROLLER_SECRET.to_text()}
            for _ in 1 2; do
              echo {secret} >/sys/class/nvme/$CTRL/dhchap_secret; sleep 0.5; roundtrip $DEV 4096 1
            done
            disconnect""")
        log = target.log.read_text()
        for hash_id, group in COMBINATIONS:
            expect(f"({hash_id.name}, {group.name.lower()}" in log, f"never used: {hash_id.name}, {group.name.lower()}")
        expect("authentication failed: the secrets do not match" in log, "no line about a wrong secret")
        for each in (*SECRETS, CONTROLLER_SECRET):
            expect(each.to_text().split(":")[2][:16] not in log, "a secret is in the log")
        bench.note = f"{len(COMBINATIONS)} combinations"


@check(TCP_RAM, only_ours=True, allow=(r"nvmet.*", r"nvme.*"))
def our_host_authentication(bench: Bench) -> None:
    """Our host authenticates itself to nvmet: 18 combinations, in one and in both directions; wrong and no secrets."""
    _needs_authentication(bench)
    with bench.nvmet():
        bench.run("echo 0 >$CF/subsystems/$NQN/attr_allow_any_host")
        try:
            for number, (hash_id, group) in enumerate(COMBINATIONS):
                _allow(bench, number, hash_id, group)
                try:
                    asyncio.run(asyncio.wait_for(_use(bench, number, both=bool(number % 2)), 60))
                except (nvmeof.NvmeofError, TimeoutError) as error:
                    raise CheckFailed(f"{hash_id.name}, {group.name}: {type(error).__name__}: {error}") from error
            refusals = asyncio.run(asyncio.wait_for(_refusals(bench), 60))
        finally:
            bench.run(
                "rm -f $CF/subsystems/$NQN/allowed_hosts/*; rmdir $CF/hosts/*"
                "; echo 1 >$CF/subsystems/$NQN/attr_allow_any_host"
            )
        bench.say("\n".join(refusals))
        bench.note = f"{len(COMBINATIONS)} combinations"


def _allow(bench: Bench, number: int, hash_id: HashId, group: DhGroupId) -> None:
    bench.run(f"""
        host=$CF/hosts/{_host(number)[0]}; mkdir $host
        echo {_secret(number).to_text()} >$host/dhchap_key
        echo {CONTROLLER_SECRET.to_text()} >$host/dhchap_ctrl_key
        echo '{hash_word(hash_id)}' >$host/dhchap_hash; echo {group.name.lower()} >$host/dhchap_dhgroup
        ln -s $host $CF/subsystems/$NQN/allowed_hosts/""")


async def _use(bench: Bench, number: int, *, both: bool) -> None:
    hostnqn, hostid = _host(number)
    credentials = HostCredentials(_secret(number), CONTROLLER_SECRET if both else None)
    async with await nvmeof.connect(
        ADDRESS, bench.guest.nvmet_port, subnqn=NQN, transport="tcp", hostnqn=hostnqn, hostid=hostid, dhchap=credentials
    ) as controller:
        namespace = controller.namespace(1)
        data = bytes([number + 1]) * 4096
        await namespace.write(8, data)
        await controller.authenticate()
        expect(await namespace.read(8, 8) == data, "what was read is not what was written")


async def _refusals(bench: Bench) -> list[str]:
    said = []
    hostnqn, hostid = _host(0)
    for credentials in (
        None,
        HostCredentials(generate_secret(32)),
        HostCredentials(_secret(0), generate_secret(transform=HashId.SHA256)),
    ):
        try:
            await nvmeof.connect(
                ADDRESS, bench.guest.nvmet_port, subnqn=NQN, transport="tcp", hostnqn=hostnqn, hostid=hostid,
                dhchap=credentials,
            )  # fmt: skip
        except AuthenticationError as error:
            said.append(str(error))
        else:
            raise CheckFailed(f"connected with {credentials}")
    return said


@check(TCP_RAM, only_ours=True)
def dhchap_keys(bench: Bench) -> None:
    """Secrets of nvme-cli are read here, and ours there."""
    with bench.nvmet():
        for length in (32, 48, 64):
            text = bench.run(f"nvme gen-dhchap-key -l {length} 2>/dev/null | grep DHHC").strip()
            secret = parse_secret(text)
            expect(len(secret.key) == length and secret.to_text() == text, f"{length} bytes: {text}")
        for number, transform in enumerate(HashId, 1):
            text = bench.run(f"nvme gen-dhchap-key -m {number} -n {NQN} 2>/dev/null | grep DHHC").strip()
            expect(parse_secret(text).transform is transform, text)
        for each in (*SECRETS, CONTROLLER_SECRET):
            bench.run(f"nvme check-dhchap-key -k {each.to_text()}")
