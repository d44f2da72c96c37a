"""The host that is measured: 4 KiB reads and 64 KiB writes of two namespaces, a queue for each, at a fixed rate.

It connects, says ``ready``, waits for a line with the seconds, and prints every latency with its time. A latency counts
from the time that the command was due when the one before it was still under way, else from its sending.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import select
import socket
import sys
import time

from benchmarks import wireformat as w
from benchmarks.isolation.plan import (
    READ_BYTES,
    READS_PER_SECOND,
    SIZE_BYTES,
    SUBNQN,
    WRITE_BYTES,
    WRITES_PER_SECOND,
)
from benchmarks.isolation.wire import (
    DATA_BYTES,
    FILE,
    RAMDISK,
    Connection,
    Host,
    completes,
    failed,
    h2c_data,
    io_capsule,
)
from benchmarks.session import BenchmarkError

NUMBER = 8
RING = 512
PRIORITY = 10
SEND_BUFFER_BYTES = 1 << 20
STALL_SECONDS = 5.0


class Task:
    """One queue: its commands, when the next is due, and the latencies in microseconds, each with its time."""

    def __init__(self, name: str, connection: Connection, capsules: list[bytes], per_second: float) -> None:
        self.name = name
        self.connection = connection
        self.capsules = capsules
        self.period = 1 / per_second
        self.due = 0.0
        self.sent_at = 0.0  # 0: nothing is under way
        self.number = 0
        self.samples: list[tuple[float, float]] = []

    def send(self, now: float, late: bool) -> None:
        """Send the next command; ``late``: it had to wait for the one before."""
        self.sent_at = self.due if late else time.monotonic()
        self.connection.sock.sendall(self.capsules[self.number % RING])
        self.number += 1
        # neither in step with the other hosts nor with the target's own timers
        self.due = max(self.due, now - self.period) + self.period * random.uniform(0.5, 1.5)

    def receive(self, payload: memoryview) -> bool:
        """Take what is there; whether the command is done."""
        for head in self.connection.arrived():
            if head[0] == w.R2T:
                for header, part in h2c_data(head, payload):
                    self.connection.sock.sendmsg([header, part])
            elif completes(head):
                now = time.monotonic()
                if failed(head):
                    raise BenchmarkError(f"a command of {self.name} failed")
                self.samples.append((now, (now - self.sent_at) * 1e6))
                self.sent_at = 0.0
                return True
        return False


def make_tasks(host: Host) -> list[Task]:
    """Connect: an association and its four queues."""
    _, cntlid = host.connect_admin(SUBNQN)
    tasks: list[Task] = []
    kinds = (
        ("read", w.READ, READ_BYTES, READS_PER_SECOND),
        ("write", w.WRITE, WRITE_BYTES, WRITES_PER_SECOND),
    )
    for nsid, storage in ((RAMDISK, "ramdisk"), (FILE, "file")):
        for name, opcode, size, per_second in kinds:
            connection = host.connect_io(SUBNQN, cntlid, len(tasks) + 1)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            slots = (SIZE_BYTES - DATA_BYTES) // size
            capsules = [
                io_capsule(opcode, cid, nsid, DATA_BYTES + host.random.randrange(slots) * size, size)
                for cid in range(RING)
            ]
            tasks.append(Task(f"{storage} {name}", connection, capsules, per_second))
    return tasks


def fill(port: int) -> None:
    """Write both namespaces once."""
    host = Host(port, NUMBER)
    admin, cntlid = host.connect_admin(SUBNQN)
    connection = host.connect_io(SUBNQN, cntlid, 1)
    size = 1 << 20
    payload = memoryview(host.random.randbytes(size))
    for nsid in (RAMDISK, FILE):
        for offset in range(0, SIZE_BYTES, 4 * size):
            writes = [io_capsule(w.WRITE, cid, nsid, offset + cid * size, size) for cid in range(4)]
            if connection.exchange(writes, payload):
                raise BenchmarkError("a write to fill the namespace failed")
    connection.sock.close()
    admin.sock.close()


def measure(tasks: list[Task], seconds: float) -> None:
    """Send and receive until the time is over and everything has been answered, or nothing was for very long."""
    payload = memoryview(random.randbytes(WRITE_BYTES))
    poll = select.epoll()
    by_fd = {task.connection.sock.fileno(): task for task in tasks}
    now = time.monotonic()
    for fd, task in by_fd.items():
        poll.register(fd, select.EPOLLIN)
        task.due = now + task.period * random.random()
    end = now + seconds
    while now < end or (any(task.sent_at for task in tasks) and now < end + STALL_SECONDS):
        for task in tasks:
            if not task.sent_at and task.due <= now < end:
                task.send(now, late=False)
        free = [task.due for task in tasks if not task.sent_at]
        wait = min(free, default=now + 0.1) - time.monotonic()
        for fd, _ in poll.poll(max(0.0, min(wait, 0.1))):
            task = by_fd[fd]
            if task.receive(payload) and task.due <= (now := time.monotonic()) < end:
                task.send(now, late=True)
        now = time.monotonic()


def main(argv: list[str] | None = None) -> int:
    """Prints JSON: per queue, lists of times (monotonic clock, seconds) and latencies (microseconds)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(argv)
    result: dict[str, object] = {}
    tasks: list[Task] = []
    try:
        fill(options.port)
        host = Host(options.port, NUMBER)
        tasks = make_tasks(host)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        seconds = float(sys.stdin.readline())
        with contextlib.suppress(OSError):  # not permitted: then it shares its core like everybody else
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
            result["realtime"] = True
        gc.disable()
        measure(tasks, seconds)
    except (BenchmarkError, OSError, ValueError) as error:
        result["error"] = str(error)
    now = time.monotonic()
    for task in tasks:
        if task.sent_at:
            task.samples.append((now, (now - task.sent_at) * 1e6))
            result["unanswered"] = True
        result[task.name] = [[round(at, 4), round(us, 1)] for at, us in task.samples]
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
