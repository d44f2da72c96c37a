"""Programs that nobody here wrote speak TLS with our target and our host, or read what the two say to each other.

OpenSSL's s_client and s_server stand for a host and a target: the first PDUs go through them by hand. tshark decrypts a
capture with the key log, and reads the PDUs within.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmeof import (
    NamespaceConfig,
    NvmeofError,
    PortConfig,
    Ramdisk,
    SubsystemConfig,
    Target,
    TargetConfig,
    TlsCredentials,
    TlsKey,
    connect,
    generate_tls_key,
)
from nvmeof.security.tls import keylog
from nvmeof.security.tls.session import TlsSession, _context, _psk_session
from nvmeof.security.tls.suites import AES_128_GCM, AES_256_GCM, CHACHA20, Suite
from nvmeof.spec.auth import HashId
from tests.interop import tshark
from tests.interop.pcap import Direction, Piece, split_pdus, write_pcap
from tests.interop.test_own_ends import Relay

HOSTNQN, NQN = "nqn.2026-01.org.example:host", "nqn.2026-01.org.example:disk"
KEY, KEY_384 = generate_tls_key(), generate_tls_key(HashId.SHA384)
ICREQ = bytes.fromhex("0000800080000000") + bytes(120)
ICRESP = bytes.fromhex("0100800080000000") + bytes(4) + (131072).to_bytes(4, "little") + bytes(112)
needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the program openssl (package openssl)"
)


@asynccontextmanager
async def serving(key: TlsKey = KEY) -> AsyncIterator[Target]:
    subsystem = SubsystemConfig(
        nqn=NQN, namespaces=(NamespaceConfig(backend=Ramdisk("32M")),), tls_keys=((HOSTNQN, key),)
    )
    ports = (PortConfig(host="127.0.0.1", port=0, tls="required"),)
    async with Target(config=TargetConfig(subsystems=(subsystem,), ports=ports)) as target:
        yield target


@asynccontextmanager
async def openssl(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        "openssl", *arguments, "-tls1_3", "-quiet",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def _session(path: Path, key: bytes, suite: Suite) -> list[str]:
    """Return the options for a PSK of any hash function: OpenSSL's programs take others than SHA-256 in a file."""
    found = ctypes.PyDLL(importlib.import_module("_ssl").__file__)
    found.BIO_new_file.restype = found.SSL_new.restype = ctypes.c_void_p
    found.SSL_new.argtypes = found.BIO_free.argtypes = found.SSL_free.argtypes = (ctypes.c_void_p,)
    found.PEM_write_bio_SSL_SESSION.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    ssl = found.SSL_new(_context(False))
    session = _psk_session(ssl, key, suite)
    file = found.BIO_new_file(str(path).encode(), b"w")
    assert file and session and found.PEM_write_bio_SSL_SESSION(file, session) == 1
    found.BIO_free(file)
    found.SSL_free(ssl)
    return ["-psk_session", str(path)]


WAYS = [(KEY, AES_128_GCM), (KEY, CHACHA20), (KEY_384, AES_256_GCM), (KEY_384, CHACHA20)]


@needs_openssl
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("key", "suite"), WAYS)
async def test_openssl_as_the_host(key: TlsKey, suite: Suite, version: int, tmp_path: Path) -> None:
    psk = key.psk(HOSTNQN, NQN, version=version)
    session = _session(tmp_path / "session.pem", psk.key, suite)
    async with (
        serving(key) as target,
        openssl(
            "s_client", "-connect", str(target.address), "-ign_eof", "-ciphersuites", suite.name,
            "-psk_identity", psk.identity, *session,
        ) as client,
    ):  # fmt: skip
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(ICREQ)
        async with asyncio.timeout(10):
            answer = await client.stdout.readexactly(128)
        assert answer[:8] == bytes.fromhex("0100800080000000")


@needs_openssl
@pytest.mark.parametrize(("key", "suite"), WAYS)
async def test_openssl_as_the_target(key: TlsKey, suite: Suite, tmp_path: Path) -> None:
    psk = key.psk(HOSTNQN, NQN)
    session = _session(tmp_path / "session.pem", psk.key, suite)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with openssl(
        "s_server", "-accept", f"127.0.0.1:{port}", "-nocert", "-ciphersuites", suite.name,
        "-psk_identity", psk.identity, *session,
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        await _listening(port)
        connecting = asyncio.create_task(_connect(port, key, suite))
        async with asyncio.timeout(10):
            assert await server.stdout.readexactly(128) == ICREQ
            server.stdin.write(ICRESP)
            capsule = await server.stdout.readexactly(72)
        assert capsule[0] == 4 and capsule[8] == 0x7F and capsule[12] == 1, "a Connect, by a fabrics command"
        server.kill()
        with pytest.raises(NvmeofError):
            await connecting


async def _connect(port: int, key: TlsKey, suite: Suite) -> None:
    credentials = TlsCredentials(key, suites=(suite,))
    options: dict[str, Any] = {"subnqn": NQN, "hostnqn": HOSTNQN, "transport": "tcp", "tls": credentials}
    async with await connect("127.0.0.1", port, connect_timeout=5, **options):
        pass


async def _listening(port: int) -> None:
    """Wait until something listens, without connecting: s_server takes one connection at a time."""
    line = f"0100007F:{port:04X} 00000000:0000 0A"
    table = Path("/proc/net/tcp")
    for _ in range(500):
        if line in await asyncio.to_thread(table.read_text):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("openssl s_server did not begin to listen")


@needs_openssl
async def test_openssl_with_another_key(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    psk = KEY.psk(HOSTNQN, NQN)
    session = _session(tmp_path / "session.pem", bytes(32), AES_128_GCM)
    async with (
        serving() as target,
        openssl("s_client", "-connect", str(target.address), "-psk_identity", psk.identity, *session) as client,
    ):
        assert client.stderr is not None
        async with asyncio.timeout(10):
            said = (await client.stderr.read()).decode()
        assert "alert decrypt error" in said and await client.wait()
    assert f"TLS was refused: its TLS key is not the one of NVMe1R01 {HOSTNQN} {NQN}" in caplog.text


@needs_openssl
async def test_openssl_without_a_psk(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as target, openssl("s_client", "-connect", str(target.address)) as client:
        assert client.stderr is not None
        async with asyncio.timeout(10):
            assert "alert decrypt error" in (await client.stderr.read()).decode()
    assert "TLS was refused: it offers no pre-shared key" in caplog.text


@needs_openssl
async def test_openssl_with_tls_1_2(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as target:
        done = await asyncio.create_subprocess_exec(
            "openssl", "s_client", "-connect", str(target.address), "-tls1_2",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await done.communicate()
        assert done.returncode and b"alert" in said
    assert "TLS was refused: it does not offer TLS 1.3" in caplog.text


@pytest.mark.skipif(not tshark.available(), reason="needs tshark (package tshark)")
@pytest.mark.parametrize("key", [KEY, KEY_384])
async def test_tshark_decrypts_a_capture(key: TlsKey, tmp_path: Path) -> None:
    secrets = tmp_path / "keylog"
    _context.cache_clear()  # contexts that were made before there was a key log have none
    keylog.open_keylog(str(secrets))
    try:
        async with serving(key) as target, Relay(target.address.port) as relay:
            options: dict[str, Any] = {"subnqn": NQN, "hostnqn": HOSTNQN, "transport": "tcp"}
            async with await connect("127.0.0.1", relay.port, tls=TlsCredentials(key), **options) as controller:
                namespace = controller.namespace(1)
                await namespace.refresh()
                data = bytes(range(256)) * 512
                await namespace.write(8, data)
                assert await namespace.read(8, len(data) // 512) == data
    finally:
        keylog.close_keylog()
        _context.cache_clear()
    first = relay.pieces[0].time_seconds
    pieces = [Piece(p.connection, p.direction, p.time_seconds - first, p.data) for p in relay.pieces]
    capture = tmp_path / "tls.pcap"
    write_pcap(capture, pieces)
    assert all(data[:64] not in p.data for p in pieces), "nothing of the data is in clear on the wire"
    plain = [piece for stream in range(2) for piece in _decrypted(capture, secrets, stream)]
    write_pcap(tmp_path / "plain.pcap", plain)
    reading = tshark.read(tmp_path / "plain.pcap")
    assert reading.complaints() == [] and reading.streams == 2
    for kind in ("ICReq", "ICResp", "CapsuleCmd", "CapsuleResp", "C2HData", "R2T", "H2CData"):
        assert reading.pdus[kind], reading.summary()


def _decrypted(capture: Path, secrets: Path, stream: int) -> list[Piece]:
    """Return what tshark decrypts of one connection, PDU by PDU as they came."""
    done = subprocess.run(
        ["tshark", "-r", str(capture), "-o", f"tls.keylog_file:{secrets}", "-d", "tcp.port==4420,tls", "-q",
         "-z", f"follow,tls,raw,{stream}"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    pieces: list[Piece] = []
    rest: dict[Direction, bytes] = {"h2c": b"", "c2h": b""}
    for line in done.stdout.splitlines():
        text = line.strip()
        if not text or text.strip("0123456789abcdef"):
            continue
        # tshark indents what comes from node 1, which has no port here: the side that speaks first is the host
        way: Direction = "h2c" if line.startswith("\t") else "c2h"
        rest[way] += bytes.fromhex(text)
        whole = 0
        while len(rest[way]) >= whole + 8:
            size = int.from_bytes(rest[way][whole + 4 : whole + 8], "little")
            if len(rest[way]) < whole + size:
                break
            whole += size
        for pdu in split_pdus(rest[way][:whole]):
            pieces.append(Piece(stream, way, 0.001 * len(pieces), pdu))
        rest[way] = rest[way][whole:]
    assert not any(rest.values())
    return pieces


PYTHONS = [
    pytest.param(path, id=name)
    for name in ("python3.11", "python3.12", "python3.13")
    if (path := shutil.which(name)) and not name.endswith(f".{sys.version_info[1]}")
]


@pytest.mark.skipif(not PYTHONS, reason="needs another Python: python3.12 or python3.13 in PATH")
@pytest.mark.parametrize("python", PYTHONS)
def test_another_python_speaks_tls_with_itself(python: str) -> None:
    """The session alone, which all of TLS is in; the rest is the same code for every Python."""
    script = (
        "import importlib.util, sys, types\n"
        "sys.modules['construct'] = types.ModuleType('construct')\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import enum\n"
        "fake = types.ModuleType('nvmeof.spec.auth')\n"
        "fake.HashId = enum.IntEnum('HashId', {'SHA256': 1, 'SHA384': 2, 'SHA512': 3})\n"
        "sys.modules['nvmeof.spec.auth'] = fake\n"
        "from nvmeof.security.tls.key import Psk\n"
        "from nvmeof.security.tls.session import TlsSession\n"
        "from nvmeof.security.tls.suites import SUITES\n"
        "for suite in SUITES:\n"
        "    psk = Psk('x' * 521, bytes(range(48 if suite.number == 0x1302 else 32)))\n"
        "    ends = [TlsSession(psk, (suite,), server=False), TlsSession(psk, (suite,), server=True)]\n"
        "    done = [False, False]\n"
        "    for _ in range(6):\n"
        "        for index, (one, other) in enumerate((ends, ends[::-1])):\n"
        "            done[index] = done[index] or one.handshake()\n"
        "            while len(out := one.output()):\n"
        "                other.feed(bytes(out)); one.sent(len(out))\n"
        "    ends[1].write(b'hello' * 1000)\n"
        "    ends[0].feed(bytes(ends[1].output()))\n"
        "    buffer = bytearray(6000)\n"
        "    print(suite.name, done, ends[0].read_into(memoryview(buffer)), ends[0].cipher == suite.name)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([python, "-c", script, str(root)], capture_output=True, text=True, timeout=60, check=False)
    if "not installed" in done.stderr or "command not found" in done.stderr:
        pytest.skip(f"{python} is a name without a Python behind it: install it")
    assert done.stdout.splitlines() == [
        f"{name} [True, True] 5000 True"
        for name in ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
    ], done.stderr
    assert TlsSession.__module__ in script
