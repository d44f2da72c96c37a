"""A scenario for network namespaces of its own: NVMe over four shaped links, TCP and MPTCP. Prints one JSON object."""

from __future__ import annotations

import contextlib
import json
import sys

from benchmarks.mptcp import lab, runs

LINKS = 4
RATE_MBIT = 50


def measure() -> dict[str, object]:
    """Measure reads over TCP and over MPTCP, and run a verifying load over MPTCP that loses a link."""
    congestion = lab.choose_congestion(None)
    found: dict[str, object] = {"congestion": congestion}
    with lab.Network([lab.Link(RATE_MBIT)] * LINKS) as network, contextlib.ExitStack() as stack:
        network.set_paths(LINKS, signal=False)
        stack.enter_context(runs.target(network, "mptcp", congestion, "--ramdisk", "32M"))
        for transport in ("tcp", "mptcp"):
            before = network.counters()
            answer = runs.work(
                network, 30, task="phases", transport=transport, congestion=congestion, subflows=LINKS, depth=16,
                block_bytes=runs.BLOCK_BYTES, phases=["randread", "flush"], seconds=1.2, warmup_seconds=0.5,
            )  # fmt: skip
            carried = runs.link_megabytes(before, network.counters())
            found[transport] = answer["phases"][0] | answer["connections"] | {"link_mb": carried}
        process = runs.start_worker(
            network, task="verify", transport="mptcp", congestion=congestion, subflows=LINKS, depth=4,
            block_bytes=runs.BLOCK_BYTES, seconds=2.0, slots_each=4,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        network.cut(2)
        found["verify"] = runs.answer(process, 30)
        network.restore(2)
        with runs.bare_server(network, "mptcp", congestion):
            found["bare"] = runs.bare(network, "mptcp", "read", congestion, 1.0, 0.5)
    return found


if __name__ == "__main__":
    lab.enter("tests.benchmarks.mptcp.scenario", sys.argv[1:])
    try:
        print(json.dumps(measure()))
    except lab.LabError as error:
        print(json.dumps({"error": str(error)}))
