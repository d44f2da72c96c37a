"""The units of examples/systemd: systemd accepts them, and the target what they give it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nvmeof.target.cli.service import DISCOVERY_NAME
from nvmeof.target.configuration.files import read_configuration

UNITS = Path(__file__).parents[3] / "examples" / "systemd"
NAMES = sorted(path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket"))
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (systemd)")
EXPOSURE_MOST = 2.0
"""Of systemd-analyze security: 0 is a service that can do nothing, 10 one that can do all."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies whose program is there, which `verify` looks at."""
    for name in NAMES:
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/bin/nvmeof-target", "/bin/true"))
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_wrong(units: Path, name: str) -> None:
    done = subprocess.run(["systemd-analyze", "verify", units / name], capture_output=True, text=True, timeout=60)
    known = re.compile(r"Failed to parse socket protocol, ignoring: mptcp")  # before systemd 257
    ours = [line for line in done.stderr.splitlines() if "nvmeof" in line and not known.search(line)]
    assert ours == []
    assert done.returncode == 0, done.stderr


@needs_systemd
def test_the_service_is_exposed_little(units: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MOST * 10:g}"]
    done = subprocess.run([*command, units / "nvmeof-target.service"], capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd-analyze security --offline (systemd 250)")
    assert done.returncode == 0, done.stdout[-400:]


def unit(name: str) -> dict[str, list[tuple[str, str]]]:
    """The sections of a unit, in which a name may come several times."""
    found: dict[str, list[tuple[str, str]]] = {}
    here: list[tuple[str, str]] = []
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            here = found.setdefault(line.strip("[]"), [])
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            here.append((key, value))
    return found


def test_sockets_and_configuration_fit_each_other() -> None:
    ports = read_configuration(UNITS / "target.toml").settings.config.ports
    for name in ("nvmeof-target.socket", "nvmeof-discovery.socket"):
        values = unit(name)["Socket"]
        fields = dict(values)
        discovery = fields["FileDescriptorName"] == DISCOVERY_NAME
        addresses = [value.rpartition(":") for key, value in values if key == "ListenStream"]
        (port,) = [each for each in ports if each.discovery_only is discovery]
        assert {number for _, _, number in addresses} == {str(port.port)}
        assert fields.get("SocketProtocol", "tcp") == port.transport
        hosts = {host.strip("[]") for host, _, _ in addresses}
        assert hosts == ({"0.0.0.0", "::"} if port.host == "::" else {port.host})


def test_the_command_line_is_one() -> None:
    from nvmeof.target.__main__ import cli

    program, *words = dict(unit("nvmeof-target.service")["Service"])["ExecStart"].split()
    assert program.endswith("/nvmeof-target")
    known = {option for parameter in cli.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
