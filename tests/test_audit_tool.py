"""`make audit`: what was not looked up is never said to be without vulnerabilities."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools import audit

GOOD = {"name": "click", "version": "8.1.7", "vulns": []}
BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "rare", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("answers", "status", "says"),
    [
        ({"osv": [GOOD], "pypi": []}, 0, "1 packages were looked up (osv): no known vulnerabilities"),
        ({"osv": [GOOD, BAD], "pypi": []}, 1, "old 1.0: PYSEC-1, mended in 1.1"),
        ({"osv": [GOOD, UNKNOWN], "pypi": []}, 0, "NOT AUDITED: rare: Dependency not found on PyPI"),
        ({"osv": "NameResolutionError", "pypi": [UNKNOWN, UNKNOWN]}, 0, "it answered for none of 2 packages"),
        ({"osv": "NameResolutionError", "pypi": [GOOD]}, 0, "looked up (pypi)"),
        ({"osv": "NameResolutionError", "pypi": None}, 0, "NOT AUDITED: no database of vulnerabilities can be reached"),
    ],
)
def test_what_it_says(
    answers: dict[str, Any], status: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        answer = answers[command[command.index("--vulnerability-service") + 1]]
        if answer is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        text = answer if isinstance(answer, str) else json.dumps({"dependencies": answer, "fixes": []})
        return subprocess.CompletedProcess(command, 1, text if isinstance(answer, list) else "", answer)

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main() == status
    told = capsys.readouterr().out
    assert says in told
    if all(not isinstance(each, list) or GOOD not in each for each in answers.values()):
        assert "no known" not in told


def test_everything_that_ci_installs_is_pinned() -> None:
    lines = [line for line in audit.CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    project = (Path(audit.__file__).parents[1] / "pyproject.toml").read_text()
    found = re.findall(r"^(?:dependencies|fast|test|lint|metrics|mdns|auth|config) = \[(.*?)\]$", project, re.M | re.S)
    wanted = {
        re.sub(r"[-_.]+", "-", name).lower() for part in found for name in re.findall(r'"([A-Za-z0-9_.-]+)', part)
    }
    assert len(wanted) > 15 and wanted <= pinned
