"""The export with other people's clients: nbdinfo, nbdcopy, nbdsh, qemu-img, qemu-io, fio."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from nvmeof import Ramdisk
from nvmeof.host.nbd_export.server import server_tls
from tests.engines import certificates, need
from tests.host.nbd_export.served import SIZE, served

SYSTEM_PYTHON = "/usr/bin/python3"
HAS_NBD_MODULE = Path("/usr/lib/python3/dist-packages/nbd.py").exists()


async def run(*command: str, rc: int = 0) -> str:
    """Run a program beside the event loop; return its output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == rc, f"{' '.join(command)} ended with {process.returncode}: {output}"
    return output


async def test_nbdinfo(tmp_path: Path) -> None:
    need("nbdinfo")
    async with served(tmp_path, Ramdisk(SIZE), Ramdisk("1M")) as running:
        (export,) = json.loads(await run("nbdinfo", "--json", running.uri))["exports"]
        assert export["export-size"] == SIZE and export["contexts"] == ["base:allocation"]
        able = ("can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero")
        assert all(export[name] for name in able) and not export["is_read_only"]
        assert (export["block_size_minimum"], export["block_size_maximum"]) == (512, 32 << 20)
        listed = json.loads(await run("nbdinfo", "--json", "--list", running.uri))["exports"]
        assert [each["export-name"] for each in listed] == ["1", "2"]
        await running.controller.namespace(1).write(8192, bytes(512))
        entries = json.loads(await run("nbdinfo", "--map", "--json", running.uri))
        assert {each["description"] for each in entries} == {"hole,zero", "data"}
        assert sum(each["length"] for each in entries) == SIZE


async def test_nbdcopy_both_ways(tmp_path: Path) -> None:
    need("nbdcopy")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(5 << 20) + bytes(4 << 20) + os.urandom(SIZE - (9 << 20)))
    async with served(tmp_path) as running:
        await run("nbdcopy", "--flush", str(source), running.uri)
        await run("nbdcopy", running.uri, str(back))
        assert back.read_bytes() == source.read_bytes()
        assert back.stat().st_blocks * 512 < SIZE - (3 << 20)  # the hole came back as one


async def test_qemu(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(777 * 512))
    async with served(tmp_path, Ramdisk(SIZE, block_bytes=4096)) as running:
        await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), running.uri)
        assert "identical" in await run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), running.uri)
        commands = (
            "write -P 0xab 1000 3000",
            "read -P 0xab 1000 3000",
            "write -z -u 0 1M",
            "discard 1M 1M",
            "read -P 0 0 2M",
            "write -P 0x55 4097 1",
            "flush",
            "read -P 0x55 4097 1",
            "read -P 0 4098 4095",
        )
        output = await run("qemu-io", "-f", "raw", *(part for each in commands for part in ("-c", each)), running.uri)
        assert "failed" not in output.lower()


async def test_fio_with_verify(tmp_path: Path) -> None:
    need("fio")
    async with served(tmp_path) as running:
        output = await run(
            "fio", "--name=v", "--ioengine=nbd", f"--uri={running.uri}", "--rw=randwrite", "--bsrange=512-64k",
            "--iodepth=16", "--size=8M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fsync=50",
        )  # fmt: skip
        assert "err= 0" in output


@pytest.mark.skipif(not HAS_NBD_MODULE, reason="install the Debian package python3-libnbd for this test")
async def test_nbdsh(tmp_path: Path) -> None:
    script = """
import nbd, sys, errno
h = nbd.NBD(); h.add_meta_context("base:allocation"); h.connect_uri(sys.argv[1])
h.set_strict_mode(0)  # else libnbd refuses by itself what is no whole block, or beyond the end
h.pwrite(b"x" * 1000, 3); assert h.pread(1002, 2) == b"\\0" + b"x" * 1000 + b"\\0"
h.pwrite(b"y" * (33 << 20), 0, nbd.CMD_FLAG_FUA) if h.get_size() > 33 << 20 else None
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO); h.trim(1 << 20, 1 << 20, nbd.CMD_FLAG_FUA); h.flush()
seen = []
h.block_status(h.get_size(), 0, lambda name, offset, entries, error: seen.append((name, entries)) and 0)
assert seen[0][0] == "base:allocation" and sum(seen[0][1][::2]) <= h.get_size(), seen
for call in (lambda: h.pread(512, h.get_size()), lambda: h.pwrite(b"z" * 512, h.get_size())):
    try: call()
    except nbd.Error as error: assert error.errnum in (errno.EINVAL, errno.ENOSPC), error
    else: raise SystemExit("a range beyond the end was not refused")
h.shutdown()
"""
    async with served(tmp_path, Ramdisk("64M")) as running:
        await run(SYSTEM_PYTHON, "-c", script, running.uri)


@pytest.mark.parametrize("verify", [False, True])
async def test_tls(tmp_path: Path, verify: bool) -> None:
    need("nbdinfo")
    pki = certificates(tmp_path / "pki")
    async with served(tmp_path, tls=server_tls(str(pki), verify=verify), tls_required=True) as running:
        where = f"?socket={running.socket}&tls-certificates={pki}"
        output = await run("nbdinfo", "--json", f"nbds+unix:///{where}")
        assert json.loads(output)["TLS"] is True
        assert "TLS" in await run("nbdinfo", running.uri, rc=1)
