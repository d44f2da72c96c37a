"""TLS between a kernel and us, both ways. The kernel's ends leave the handshake to tlshd (GnuTLS)."""

from __future__ import annotations

import asyncio
import json
import sys

import nvmeof
from nvmeof.errors import NvmeofError
from nvmeof.security.tls.credentials import TlsCredentials
from nvmeof.security.tls.key import TlsKey, generate_tls_key
from nvmeof.spec.auth import HashId
from nvmeof.spec.enums import DISCOVERY_NQN

from .bench import Bench, CheckFailed, Skipped, check
from .checks import TCP_RAM, expect
from .checks_host import ADDRESS
from .peers import NQN, OurTarget

HOSTS = tuple(
    (f"nqn.2014-08.org.nvmexpress:uuid:7c616200-0000-4000-8000-00000000000{number}",
     f"7c616200-0000-4000-8000-00000000000{number}")
    for number in (1, 2, 3)
)  # fmt: skip
"""One for each hash function, and one without a key."""
KEYS = (generate_tls_key(HashId.SHA256), generate_tls_key(HashId.SHA384))
SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256")
"""What Linux's tlshd negotiates with either key: it makes binders with SHA-256 alone."""

_TLSHD = """
modprobe tls; modprobe nvme-tcp
printf '[debug]\\nloglevel=3\\n[authenticate]\\nkeyrings=.nvme\\n' >/tmp/tlshd.conf
pgrep -x tlshd >/dev/null || { tlshd -s -c /tmp/tlshd.conf >/tmp/tlshd.log 2>&1 & }
for _ in $(seq 50); do pgrep -x tlshd >/dev/null && break; sleep 0.1; done
insert() {  # insert KEY HOSTNQN SUBNQN
  nvme check-tls-key --keydata "$1" --hostnqn "$2" --subsysnqn "$3" --identity 1 --insert >/dev/null ||
    die "check-tls-key $3"
}
"""


class _Encrypted(OurTarget):
    """Our target with TLS on its port, and a key for each host."""

    def command(self, listen: str) -> list[str]:
        subsystem = {
            "nqn": self.nqn,
            "hosts": [nqn for nqn, _ in HOSTS],
            "tls_keys": {nqn: key.to_text() for (nqn, _), key in zip(HOSTS, KEYS, strict=False)},
            "namespaces": [{"storage": f"ramdisk:{self.layout.size_mib}M"}],
        }
        port = {"transport": self.layout.trtype, "host": listen, "port": self.port, "tls": "required"}
        document = self.file.with_suffix(".json")
        document.write_text(json.dumps({"version": 1, "subsystems": [subsystem], "ports": [port]}))
        document.chmod(0o600)
        return [sys.executable, "-m", "tests.interop.document_target", str(document)]


def _needs_tls(bench: Bench) -> None:
    if bench.kernel_version < (6, 7):
        raise Skipped("TLS of NVMe/TCP came with Linux 6.7")


@check(TCP_RAM, only_ours=True, allow=(r"nvme.*", r"tls.*"))
def tls(bench: Bench) -> None:
    """A kernel host with tlshd against our target: keys of both lengths, discovery, and connects without a key."""
    _needs_tls(bench)
    target = _Encrypted(bench.layout, bench.directory, bench.log.with_suffix(".target.log"))
    with bench._serving(target):
        for (hostnqn, hostid), key in zip(HOSTS, KEYS, strict=False):
            bench.run(f"""{_TLSHD}
                insert '{key.to_text()}' {hostnqn} $NQN
                insert '{key.to_text()}' {hostnqn} {DISCOVERY_NQN}
                connect --tls -q {hostnqn} -I {hostid} -i 2
                roundtrip $DEV 1048576 1; roundtrip $DEV 4096 3
                cat /sys/class/nvme/$CTRL/tls_key || true
                disconnect
                nvme discover -t tcp -a $ADDR -s $PORT --tls -q {hostnqn} -I {hostid} | grep -x "subnqn: *$NQN"
                """)
        hostnqn, hostid = HOSTS[2]
        bench.run(f"""{_TLSHD}
            there="-t tcp -a $ADDR -s $PORT -n $NQN -q {hostnqn} -I {hostid}"
            ! nvme connect $there --tls || die "no key, and connected"
            ! timeout 20 nvme connect $there || die "no TLS, and connected"
            cat /tmp/tlshd.log""")
        log = target.log.read_text()
        for suite in SUITES:
            expect(suite in log, f"never used: {suite}")
        expect("does not speak TLS, which is required here" in log, "no line about the connection without TLS")
        for key in KEYS:
            expect(key.to_text().split(":")[2][:16] not in log, "a key is in the log")
        bench.note = ", ".join(SUITES)


@check(TCP_RAM, only_ours=True, allow=(r"nvmet.*", r"nvme.*", r"tls.*"))
def our_host_tls(bench: Bench) -> None:
    """Our host against nvmet with tlshd: keys of both lengths, a wrong one, and none."""
    _needs_tls(bench)
    with bench.nvmet():
        bench.run(f"""{_TLSHD}
            insert '{KEYS[0].to_text()}' {HOSTS[0][0]} $NQN
            insert '{KEYS[1].to_text()}' {HOSTS[1][0]} $NQN
            cd $CF/ports/$PORT; links=$(ls subsystems)
            for each in $links; do rm subsystems/$each; done
            echo tls1.3 >addr_tsas; echo required >addr_treq
            for each in $links; do ln -s $CF/subsystems/$each subsystems/$each; done""")
        suites = []
        for (hostnqn, hostid), key in zip(HOSTS, KEYS, strict=False):
            try:
                suites.append(asyncio.run(asyncio.wait_for(_use(bench, hostnqn, hostid, key), 60)))
            except (NvmeofError, TimeoutError) as error:
                bench.say(bench.run("cat /tmp/tlshd.log; dmesg | tail -20; keyctl show %:.nvme || true"))
                raise CheckFailed(f"{type(error).__name__}: {error}") from error
        said = asyncio.run(asyncio.wait_for(_refusals(bench), 90))
        bench.say("\n".join(said))
        expect(suites == [*SUITES], f"cipher suites: {suites}")
        bench.note = ", ".join(suites)


async def _use(bench: Bench, hostnqn: str, hostid: str, key: TlsKey) -> str:
    async with await nvmeof.connect(
        ADDRESS, bench.guest.nvmet_port, subnqn=NQN, transport="tcp", hostnqn=hostnqn, hostid=hostid,
        tls=TlsCredentials(key), nr_io_queues=2,
    ) as controller:  # fmt: skip
        namespace = controller.namespace(1)
        data = bytes(range(256)) * 4096
        await namespace.write(8, data)
        expect(await namespace.read(8, len(data) // 512) == data, "what was read is not what was written")
        return str(controller.describe()[0]["tls"])


async def _refusals(bench: Bench) -> list[str]:
    said = []
    hostnqn, hostid = HOSTS[0]
    for credentials in (TlsCredentials(generate_tls_key(HashId.SHA256)), None):
        try:
            controller = await nvmeof.connect(
                ADDRESS, bench.guest.nvmet_port, subnqn=NQN, transport="tcp", hostnqn=hostnqn, hostid=hostid,
                tls=credentials,
            )  # fmt: skip
        except NvmeofError as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            await controller.disconnect()
            raise CheckFailed(f"{'a wrong key' if credentials else 'no TLS'}, and connected")
    return said
