"""A Ceph cluster of one monitor and one OSD on loopback, in memory, without root (Debian: ceph-mon, ceph-osd,
python3-rbd, which bring librbd1): about 6 seconds, for tests of the RBD backend."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
_SETTINGS = """[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
admin_socket = {folder}/$name.$pid.asok
log_file = {folder}/$name.log
log_to_stderr = false
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
ms_bind_msgr1 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
"""
_ASK = """import json, sys, rados
cluster = rados.Rados(conffile=sys.argv[1], conf={"client_mount_timeout": "30"}); cluster.connect()
for command in json.loads(sys.argv[2]):
    result, output, text = cluster.mon_command(json.dumps(command), b"")
    if result: sys.exit(f"{command}: {result} {text}")
cluster.shutdown()
"""
_IN_POOL = """import sys, rados, rbd
cluster = rados.Rados(conffile=sys.argv[1]); cluster.connect(); pool = cluster.open_ioctx("rbd")
exec(sys.argv[2])
pool.close(); cluster.shutdown()
"""


def need_ceph() -> None:
    """Skip the test without Ceph; say what to install."""
    if not all(shutil.which(program) for program in ("ceph-mon", "ceph-osd", "monmaptool")):
        pytest.skip("install the Debian packages ceph-mon, ceph-osd and python3-rbd for this test")


class Cluster:
    """A cluster that runs from `start` to `stop`; the pool is "rbd"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "ceph.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> Cluster:
        folder, fsid = self.folder, str(uuid.uuid4())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        self.conf.write_text(_SETTINGS.format(fsid=fsid, port=port, folder=folder))
        self._run(
            "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", str(folder / "map")
        )
        self._run("ceph-mon", *self._common("a"), "--mkfs", "--monmap", str(folder / "map"))
        self._daemon("ceph-mon", *self._common("a"))
        self._ask({"prefix": "osd create"})
        self._run("ceph-osd", *self._common("0"), "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        self._daemon("ceph-osd", *self._common("0"))
        self._ask({"prefix": "osd pool create", "pool": "rbd", "pg_num": 8})
        self.in_pool("rbd.RBD().pool_init(pool, True)")
        return self

    def _common(self, name: str) -> tuple[str, ...]:
        return ("-c", str(self.conf), "-i", name)

    @staticmethod
    def _run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout!r} {done.stderr!r}"

    def _daemon(self, *command: str) -> None:
        self._daemons.append(subprocess.Popen([*command, "-f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def _ask(self, *commands: dict[str, object]) -> None:
        self._run(SYSTEM_PYTHON, "-c", _ASK, str(self.conf), json.dumps(commands))

    def in_pool(self, script: str) -> None:
        """Run Python code with `rbd` and `pool`."""
        self._run(SYSTEM_PYTHON, "-c", _IN_POOL, str(self.conf), script)

    def create(self, name: str, size_bytes: int) -> None:
        """Make an image."""
        self.in_pool(f"rbd.RBD().create(pool, {name!r}, {size_bytes})")

    @property
    def osd(self) -> subprocess.Popen[bytes]:
        """The process that stores the data."""
        return self._daemons[1]

    def blocklist_all(self) -> None:
        """Fence every client that watches the image "disk"."""
        self.in_pool(
            "import json\n"
            "for watcher in rbd.Image(pool, 'disk', read_only=True).watchers_list():\n"
            "    cluster.mon_command(json.dumps({'prefix': 'osd blocklist', 'blocklistop': 'add',"
            " 'addr': watcher['addr']}), b'')"
        )

    def stop(self) -> None:
        """End both daemons."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()
