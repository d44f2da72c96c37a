"""Look up the pinned packages of .ci/constraints.txt in a database of vulnerabilities, with pip-audit.

Exit status: 1 when one of them has a known vulnerability; 0 otherwise, also when the database cannot be reached: then
the last line begins with NOT AUDITED. A package that the database was not asked about is never counted as one without.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

CONSTRAINTS: Final = Path(__file__).parents[1] / ".ci" / "constraints.txt"
SERVICES: Final = ("osv", "pypi")
"""pip-audit's sources, the first one that answers."""
SECONDS: Final = 300


def main(constraints: Path = CONSTRAINTS) -> int:
    """Audit, print what was found, and return the exit status."""
    reasons = []
    for service in SERVICES:
        found = _asked(service, constraints)
        if isinstance(found, str):
            reasons.append(f"{service}: {found}")
            continue
        audited = [each for each in found if "vulns" in each]
        if audited:
            return report(audited, [each for each in found if "vulns" not in each], service)
        reasons.append(f"{service}: it answered for none of {len(found)} packages")
    print(f"NOT AUDITED: no database of vulnerabilities can be reached from here ({'; '.join(reasons)})")
    return 0


def _asked(service: str, constraints: Path) -> list[dict[str, Any]] | str:
    """Return what pip-audit says of each package, or in a few words why it says nothing."""
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(constraints), "--no-deps", "--disable-pip"),
        *("--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s"
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return lines[-1][:160] if lines else f"exit status {done.returncode}"
    return found


def report(audited: list[dict[str, Any]], left_out: list[dict[str, Any]], service: str) -> int:
    """Print what was found, and return the exit status."""
    count = 0
    for each in audited:
        for hole in each["vulns"]:
            count += 1
            fixed = ", ".join(hole.get("fix_versions", ())) or "no version yet"
            print(f"{each['name']} {each['version']}: {hole['id']}, mended in {fixed}")
    for each in left_out:
        print(f"NOT AUDITED: {each['name']}: {each.get('skip_reason', 'no reason given')}")
    print(f"{len(audited)} packages were looked up ({service}): {count or 'no'} known vulnerabilities")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
