"""The checks of our host with the kernel's target in the guest, and what the guest's own tools see of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import nvmeof
from nvmeof.errors import NvmeofError, NvmeStatusError

from .bench import Bench, CheckFailed, check
from .checks import expect
from .guest import REPOSITORY
from .peers import NQN, Layout

ADDRESS = "127.0.0.1"
KATO_SECONDS = 2.0


async def _exercise(bench: Bench, transport: str, **options: object) -> dict[int, bytes]:
    """Use every function of a host; return what must be on the namespace at the end, by byte offset."""
    noise = random.Random(4420)
    entries = await nvmeof.discover(ADDRESS, bench.guest.nvmet_port, transport=transport)
    expect([e for e in entries if e.subnqn == NQN and e.trsvcid == "4420"], f"discovery found {entries}")
    expected: dict[int, bytes] = {}
    async with await nvmeof.connect(
        ADDRESS, bench.guest.nvmet_port, subnqn=NQN, transport=transport,
        nr_io_queues=2, keep_alive_tmo=KATO_SECONDS, **options,  # type: ignore[arg-type]
    ) as controller:  # fmt: skip
        bench.say(json.dumps(controller.describe(), default=str))
        (namespace,) = await controller.namespaces()
        expect(namespace.block_bytes == bench.layout.block_bytes, f"block size {namespace.block_bytes}")
        expect(namespace.size_bytes == bench.layout.size_mib << 20, f"size {namespace.size_bytes}")
        block = namespace.block_bytes
        await controller.smart_log()
        lengths = [block, 4096, 8192, 16384, 65536 + block, 1 << 20, (2 << 20) + 4096]
        for index, length in enumerate(lengths * 2):
            expected[index * (4 << 20)] = noise.randbytes(length)
        await asyncio.gather(*(namespace.write(at // block, data) for at, data in expected.items()))
        await namespace.flush()
        found = await asyncio.gather(
            *(namespace.read(at // block, len(data) // block) for at, data in expected.items())
        )
        expect(found == list(expected.values()), "what was read is not what was written")
        place = bytearray(1 << 20)
        await namespace.read_into(0, place)
        expect(place[:block] == expected[0], "read_into")
        fua = 60 << 20
        expected[fua] = noise.randbytes(4096)
        await namespace.write(fua // block, expected[fua], fua=True)
        await namespace.write_zeroes((fua + 4096) // block, 8192 // block)
        expected[fua + 4096] = bytes(8192)
        expect(await namespace.read((fua + 4096) // block, 8192 // block) == bytes(8192), "write zeroes")
        await namespace.deallocate([(61 * (1 << 20) // block, 8), (62 * (1 << 20) // block, 16)])
        try:
            await namespace.read(namespace.size_blocks, 1)
        except NvmeStatusError as error:
            bench.say(f"beyond the end: {error}")
        else:
            raise CheckFailed("a read beyond the end succeeded")
        await asyncio.sleep(2.5 * KATO_SECONDS)
        expect(await namespace.read(0, 1) == expected[0], "after a pause longer than KATO")
    return expected


def _library(bench: Bench, transport: str, **options: object) -> None:
    with bench.nvmet(), bench.capture("eth0") as reading:
        try:
            expected = asyncio.run(asyncio.wait_for(_exercise(bench, transport, **options), 90))
        except (NvmeofError, TimeoutError) as error:
            raise CheckFailed(f"{type(error).__name__}: {error}") from error
        ranges = " ".join(f"{offset},{len(data)}" for offset, data in expected.items())
        seen = bench.run(
            f"""
            for r in {ranges}; do
              dd if=$(</tmp/backing) iflag=direct,skip_bytes,count_bytes skip=${{r%,*}} count=${{r#*,}} \\
                bs=1M status=none | sha256sum
            done"""
        ).split()[::2]
        wanted = [hashlib.sha256(data).hexdigest() for data in expected.values()]
        expect(seen == wanted, "the guest has other bytes on its device")
    expect(reading.pdus["H2CData"] and reading.pdus["R2T"], "no R2T was used")
    digests = bool(options.get("hdr_digest") or options.get("data_digest"))
    expect(bool(reading.good_digests) == digests, f"{reading.good_digests} digests were seen")


@check(Layout("tcp", "ramdisk", 512), Layout("tcp", "ramdisk", 4096), quick=1)
def our_host(bench: Bench) -> None:
    """Our library with the kernel's target: everything it does, compared with what the guest has on its device."""
    _library(bench, "tcp")


@check(Layout("tcp", "ramdisk", 512))
def our_host_digests(bench: Bench) -> None:
    """The same with header and data digests, and padding that the host asks for."""
    _library(bench, "tcp", hdr_digest=True, data_digest=True)


@check(Layout("mptcp", "ramdisk", 4096))
def our_host_mptcp(bench: Bench) -> None:
    """An MPTCP socket to the kernel's TCP-only target: falls back, and all works; without SQ flow control."""
    _library(bench, "mptcp", disable_sqflow=True)


def _host(bench: Bench, *arguments: str, data: bytes | None = None) -> bytes:
    command = [sys.executable, "-m", "nvmeof.host", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, input=data, capture_output=True, timeout=60, check=False)
    bench.say(f"{' '.join(command[1:])}\n{done.stdout[:4000].decode(errors='replace')}{done.stderr.decode()}")
    expect(not done.returncode, f"{' '.join(arguments)}: exit status {done.returncode}: {done.stderr.decode()}")
    expect(b"Traceback" not in done.stderr, done.stderr.decode())
    return done.stdout


@check(Layout("tcp", "ramdisk", 512), quick=1)
def our_host_commands(bench: Bench) -> None:
    """The command line against the kernel's target."""
    with bench.nvmet():
        where = ["-t", "tcp", "-a", ADDRESS, "-s", str(bench.guest.nvmet_port)]
        there = [*where, "-n", NQN]
        log = json.loads(_host(bench, "discover", *where, "-o", "json"))
        expect(NQN in json.dumps(log), f"discover: {log}")
        for command in ("list", "id-ctrl", "id-ns", "smart-log"):
            json.loads(_host(bench, command, *there, "-o", "json"))
            expect(_host(bench, command, *there), f"{command} prints nothing")
        data = random.Random(1).randbytes(65536)
        source, sink = bench.directory / "source", bench.directory / "sink"
        for options in ([], ["-g", "-G"]):
            _write_and_read(bench, [*there, *options], source, sink, data)
        seen = bench.run("dd if=/dev/ram0 iflag=direct bs=64k count=1 status=none | sha256sum").split()[0]
        expect(seen == hashlib.sha256(data).hexdigest(), "the guest has other bytes")


def _write_and_read(bench: Bench, there: list[str], source: Path, sink: Path, data: bytes) -> None:
    source.write_bytes(data)
    sink.unlink(missing_ok=True)
    _host(bench, "write", *there, "--start-block", "0", "--data-size", str(len(data)), "--data", str(source))
    _host(bench, "flush", *there)
    _host(bench, "read", *there, "--start-block", "0", "--data-size", str(len(data)), "--data", str(sink))
    expect(sink.read_bytes() == data, "the file read is not the file written")
