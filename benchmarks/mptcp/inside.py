"""Run in the guest: one experiment's `run`, its result as a line of JSON.

python3 -m benchmarks.mptcp.inside loss '{"quick": true, "congestion": "cubic", "arguments": {...}}'
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from pathlib import Path

from benchmarks.mptcp.lab import LabError
from benchmarks.mptcp.runs import Settings


def main() -> None:
    name, order = sys.argv[1], json.loads(sys.argv[2])
    module = importlib.import_module(f"benchmarks.mptcp.{name}")
    settings = Settings(order["quick"], order["congestion"], Path("/tmp"))
    try:
        result = module.run(settings, **order["arguments"])
    except LabError as error:
        print(json.dumps({"error": str(error)}))
        return
    print(json.dumps(result | {"guest_kernel": platform.release(), "guest_python": platform.python_version()}))


if __name__ == "__main__":
    main()
