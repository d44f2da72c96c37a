"""``nvmeof-host export`` as a process, against a target in this one; and a whole chain: NBD server, target, export."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from nvmeof import Ramdisk, Target
from nvmeof.target.storage.nbd.backend import NbdBackend
from tests.engines import nbdkit
from tests.host.nbd_export.raw import EXTENDED, RawClient

PROGRAM = (sys.executable, "-m", "nvmeof.host", "export")


def url_of(target: Target, nsid: int | None = None) -> str:
    query = "" if nsid is None else f"?nsid={nsid}"
    return f"nvme+tcp://{target.address}/{target.subnqn}{query}"


async def ended(*arguments: str) -> tuple[int, str]:
    """Run the program to its end; return exit code and stderr."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def test_several_targets_until_sigterm(tmp_path: Path) -> None:
    socket = tmp_path / "export.sock"
    async with (
        Target(namespaces=[Ramdisk("1M"), Ramdisk("2M")], trtype="tcp", listen="127.0.0.1:0") as one,
        Target(namespaces=[Ramdisk("4M")], trtype="tcp", listen="127.0.0.1:0") as other,
    ):
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, "--nbd", f"unix:{socket}", "-o", "json", "--name", "a", "--name", "b", url_of(one, 2),
            url_of(other), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            text += (await process.stdout.readline()).decode()
        exports = json.loads(text)["Exports"]
        assert [(each["Name"], each["NSID"]) for each in exports] == [("a", 2), ("b", 1)]
        for name, size in ((b"", 2 << 20), (b"a", 2 << 20), (b"b", 4 << 20)):
            raw = await RawClient.connect(socket, EXTENDED, export=name)
            assert raw.size == size
            data = os.urandom(1000)
            assert await raw.do(1, 100, 1000, data) == 0
            assert await raw.read(100, 1000) == data
            await raw.close()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert not socket.exists()


async def test_errors_are_one_line(tmp_path: Path) -> None:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp", listen="127.0.0.1:0") as target:
        url, place = url_of(target), f"unix:{tmp_path}/s"
        for arguments, code, why in (
            (("--nbd", "somewhere", url), 1, "no place for an NBD server: write unix:/PATH or tcp:ADDRESS[:PORT]"),
            (("--nbd", place, url_of(target, 9)), 1, "has no active namespace 9"),
            (("--nbd", f"unix:{tmp_path}/none/s", url), 1, "cannot listen at unix:"),
            (("--nbd", place, "--name", "a", "--name", "b", url), 1, "2 names for 1 exports"),
            (
                ("--nbd", place, "--tls-certificates", str(tmp_path), url),
                1,
                "it has server-cert.pem and server-key.pem",
            ),
            (("--nbd", place, "--tls-verify-peer", url), 1, "give --tls-certificates FOLDER"),
        ):
            returned, errors = await ended(*arguments)
            assert why in errors and len(errors.splitlines()) == 1, errors
            assert returned in (code, 2), errors


async def test_an_nbd_server_behind_the_target_and_one_before_it(tmp_path: Path) -> None:
    """nbdkit, the target's backend, NVMe/TCP, the export, and a client: data arrives, also after the server was
    restarted.
    """
    (tmp_path / "disk").write_bytes(bytes(8 << 20))
    socket = tmp_path / "export.sock"
    with nbdkit(tmp_path, "file", str(tmp_path / "disk")) as engine:
        async with Target(namespaces=[NbdBackend(engine.uri)], trtype="tcp", listen="127.0.0.1:0") as target:
            process = await asyncio.create_subprocess_exec(
                *PROGRAM, "--nbd", f"unix:{socket}", url_of(target), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            while b"exported" not in await process.stdout.readline():
                pass
            raw = await RawClient.connect(socket, EXTENDED)
            data = os.urandom(3 << 20)
            assert await raw.do(1, 1234, len(data), data) == 0 and await raw.do(3) == 0
            engine.stop()
            engine.start()
            assert await raw.read(1234, len(data)) == data
            await raw.close()
            process.terminate()
            assert await process.wait() == 0
    assert (tmp_path / "disk").read_bytes()[1234 : 1234 + len(data)] == data
