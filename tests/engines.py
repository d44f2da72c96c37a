"""Other people's NBD servers for tests, on Unix sockets: nbdkit and qemu-nbd (Debian: nbdkit, qemu-utils)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

PACKAGES = {
    "nbdkit": "nbdkit",
    "qemu-nbd": "qemu-utils",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "fio": "fio",
    "openssl": "openssl",
}


def need(*programs: str) -> None:
    """Skip the test unless all programs are installed; say what to install."""
    missing = [PACKAGES[program] for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"install the Debian packages {', '.join(sorted(set(missing)))} for this test")


class Engine:
    """A server in the foreground until `stop`, which can be started again on the same socket."""

    def __init__(self, path: Path, command: list[str]) -> None:
        self.socket = path
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def start(self) -> Engine:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.command)
        limit = time.monotonic() + 30
        while not self._listens():
            assert self.process.poll() is None, f"{self.command[0]} has ended with {self.process.returncode}"
            assert time.monotonic() < limit, f"{self.command[0]} does not listen"
            time.sleep(0.01)
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    def stop(self) -> None:
        """Kill the server, as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()


def nbdkit(folder: Path, *arguments: str) -> Engine:
    """Return nbdkit with a plug-in and its parameters, filters before it."""
    need("nbdkit")
    path = folder / "nbdkit.sock"
    return Engine(path, ["nbdkit", "-f", "-U", str(path), "-t", "16", *arguments])


def qemu_nbd(folder: Path, image: Path, *arguments: str) -> Engine:
    """Return qemu-nbd with an existing image."""
    need("qemu-nbd")
    path = folder / "qemu-nbd.sock"
    return Engine(path, ["qemu-nbd", "--persistent", "--shared=8", "-k", str(path), *arguments, str(image)])


def make_image(path: Path, size: str, kind: str = "raw") -> Path:
    """Make an image with qemu-img."""
    need("qemu-img")
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), size], check=True)
    return path


def certificates(folder: Path) -> Path:
    """Make a folder of certificates under libnbd's names, for localhost: authority, server, client."""
    need("openssl")
    folder.mkdir()

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority",
        "-keyout", "ca-key.pem", "-out", "ca-cert.pem")  # fmt: skip
    for name in ("server", "client"):
        run("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem",
            "-out", f"{name}.csr")  # fmt: skip
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
            "-days", "2", "-out", f"{name}-cert.pem", "-extfile", "names")  # fmt: skip
    return folder
