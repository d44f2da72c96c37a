"""The device's process as the application sees it: its start, its doorbells, its control messages, its end."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Protocol

from nvmeof.errors import ConfigurationError, ConnectionLost, ConnectTimeout, NvmeofError, TransportError
from nvmeof.host.offload.layout import (
    COMPLETION,
    COMPLETION_BYTES,
    COMPLETIONS_KIND,
    GOOD_KIND,
    SUBMISSION_BYTES,
    Kind,
    RingReader,
    RingWriter,
    good_items,
)
from nvmeof.host.offload.pool import Region

QUEUES_MAX: Final = 4096
"""Queues of one device, at most."""
STOP_SECONDS: Final = 5.0
"""How long the device may take to stop a queue, or to end, before it is killed."""
_CONTROL_BYTES: Final = 1 << 16
_ENGINE: Final = "nvmeof.host.offload.engine"
_KINDS: Final = {each.__name__: each for each in (ConfigurationError, ConnectTimeout, ConnectionLost, TransportError)}
"""The errors that the device reports for a queue that it cannot create."""


class Link(Protocol):
    """One queue, as the process serves it."""

    def completed(self, entries: list[tuple[int, int, int, int]]) -> None:
        """Complete commands: CID, status, DW0, DW1 of each."""
        ...

    def succeeded(self, cids: tuple[int, ...]) -> None:
        """Complete commands that have succeeded with result 0."""
        ...

    def broken(self, error: NvmeofError) -> None:
        """End the queue: it is broken, or its device has died."""
        ...


class DeviceProcess:
    """One process of a device, on the running event loop: started by :meth:`start`, over when :attr:`error` is set.

    ``out`` takes the records of commands; :meth:`ring_soon` rings for them at the end of this turn of the loop.
    """

    def __init__(self, region: Region) -> None:
        self.loop = asyncio.get_running_loop()
        self.error: NvmeofError | None = None
        """Why the process is over; None while it runs."""
        self._memory = region.memory
        self._doorbells: list[int] = []
        self._links: dict[int, Link] = {}
        self._free_slots = list(range(QUEUES_MAX - 1, -1, -1))
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ready: asyncio.Future[None] = self.loop.create_future()
        self._over: asyncio.Future[None] = self.loop.create_future()
        self._input = bytearray()
        self._will_ring = False
        self._delivering = False
        requests = self._doorbell()
        self._completions = self._doorbell()
        self.out = RingWriter(region.memory, 0, SUBMISSION_BYTES, requests)
        self._in = RingReader(region.memory, SUBMISSION_BYTES, COMPLETION_BYTES, self._completions)
        passed = (region.descriptor, requests, self._completions)
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _ENGINE, *map(str, passed)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=passed, bufsize=0,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        except OSError as error:
            self._close_doorbells()
            raise TransportError(f"cannot start the offload device: {error.strerror}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdout = self._process.stdout.fileno()
        os.set_blocking(self._stdout, False)
        os.set_blocking(self._process.stdin.fileno(), False)
        self.loop.add_reader(self._stdout, self._on_control)
        self.loop.add_reader(self._completions, self._on_doorbell)

    def _doorbell(self) -> int:
        doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._doorbells.append(doorbell)
        return doorbell

    @property
    def pid(self) -> int:
        """Process identifier of the device."""
        return self._process.pid

    async def start(self, timeout_seconds: float) -> None:
        """Wait until the device takes queues. Raises :class:`TransportError`; the process is over then."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ready
        except TimeoutError:
            self.kill()
            raise ConnectTimeout(f"the offload device did not start within {timeout_seconds:g} s") from None
        except BaseException:
            self.kill()
            raise

    # -- queues

    async def create(self, link: Link, fields: dict[str, Any], timeout_seconds: float) -> tuple[int, dict[str, Any]]:
        """Have the device connect a queue; its number, and what the device says of it. Raises NvmeofError."""
        if self.error is not None:
            raise self.error
        if not self._free_slots:
            raise TransportError(f"the offload device has {QUEUES_MAX} queues already: close some of them")
        slot = self._free_slots.pop()
        self._links[slot] = link
        reply = self._replies[slot] = self.loop.create_future()
        self._tell({"slot": slot, "create": fields})
        try:
            # the device has the same time limit: longer means that it hangs
            async with asyncio.timeout(timeout_seconds + STOP_SECONDS):
                answer = await reply
        except TimeoutError:
            self.kill("did not answer, and was ended")
            raise ConnectTimeout("the offload device did not answer, and was ended: connect again") from None
        except BaseException:
            self._replies.pop(slot, None)
            self.destroy(slot)
            raise
        if "error" in answer:
            self._release(slot)
            raise _KINDS.get(answer["error"], TransportError)(answer["message"])
        return slot, answer

    def destroy(self, slot: int) -> None:
        """Free a queue in the device: no upcall for it follows."""
        self._links.pop(slot, None)
        self._tell({"destroy": slot})

    def drain(self, slot: int) -> None:
        """Return when the device touches no buffer of the queue, and no upcall for it follows.

        This waits for the other process, without the event loop: for as long as a turn of its loop takes. A device
        that takes longer than :data:`STOP_SECONDS` is killed, which is an answer too.
        """
        self._links.pop(slot, None)
        if self.error is not None:
            return
        self.out.signal(Kind.DRAIN, slot)
        self.out.ring()
        poll = select.poll()
        poll.register(self._completions, select.POLLIN)
        poll.register(self._stdout, 0)  # its hang-up: the end of the process
        until = time.monotonic() + STOP_SECONDS
        try:
            while not self._in.announced(Kind.DRAINED, slot):
                left = until - time.monotonic()
                if left <= 0:
                    self.kill(f"did not stop a queue within {STOP_SECONDS:g} s, and was ended")
                    return
                if any(fd == self._stdout for fd, _ in poll.poll(left * 1000)):
                    self._lost()
                    return
                self._in.listen()
        except ValueError as error:
            self.kill(f"wrote {error}, and was ended")
            return
        self.loop.call_soon(self._deliver)

    def _release(self, slot: int) -> None:
        self._links.pop(slot, None)
        self._free_slots.append(slot)

    # -- doorbells

    def ring_soon(self) -> None:
        """Ring for what has been written, at the end of this turn of the event loop."""
        if not self._will_ring:
            self._will_ring = True
            self.loop.call_soon(self._ring)

    def _ring(self) -> None:
        self._will_ring = False
        if self.error is None:
            self.out.ring()

    def poll(self) -> None:
        """Deliver what the device has completed, without waiting for the event loop."""
        if self.error is None:
            self._on_doorbell()

    def _on_doorbell(self) -> None:
        self._in.listen()
        self._deliver()

    def _deliver(self) -> None:
        """Deliver all announced records. An upcall may lead here again: the outer call goes on then."""
        if self._delivering or self.error is not None:
            return
        self._delivering = True
        memory, links = self._memory, self._links
        try:
            for kind, _, slot, count, _, _, at in self._in.records():
                link = links.get(slot)
                if link is None:
                    continue
                if kind == GOOD_KIND:
                    link.succeeded(good_items(count).unpack_from(memory, at))
                elif kind == COMPLETIONS_KIND:
                    link.completed(list(COMPLETION.iter_unpack(memory[at : at + count * COMPLETION.size])))
                elif kind == Kind.ERROR:
                    link.broken(ConnectionLost(bytes(memory[at : at + count]).decode()))
        except ValueError as error:
            self.kill(f"wrote {error}, and was ended")
        finally:
            self._delivering = False

    # -- control

    def _tell(self, message: dict[str, Any]) -> None:
        if self.error is not None:
            return
        assert self._process.stdin is not None
        data = json.dumps(message).encode() + b"\n"
        try:
            if os.write(self._process.stdin.fileno(), data) == len(data):
                return
        except OSError:
            pass
        self.kill("took no further message, and was ended")

    def _on_control(self) -> None:
        try:
            data = os.read(self._stdout, _CONTROL_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._lost()
            return
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = rest
        for line in lines:
            self._answered(json.loads(line))

    def _answered(self, answer: dict[str, Any]) -> None:
        if "ready" in answer:
            if not self._ready.done():
                self._ready.set_result(None)
        elif "destroyed" in answer:
            self._free_slots.append(answer["slot"])
        else:
            reply = self._replies.pop(answer["slot"], None)
            if reply is not None and not reply.done():
                reply.set_result(answer)

    # -- the end

    async def stop(self) -> None:
        """End the process in order: its queues have been destroyed."""
        if self.error is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._over
            except TimeoutError:
                pass
            finally:
                self.kill()

    def kill(self, why: str = "was ended by this program") -> None:
        """End the process at once, if it runs; queues that are left get their error in the next turn of the loop."""
        if self.error is None:
            self._process.kill()
            self._process.wait()
            self._ended(why)

    def _lost(self) -> None:
        """Take note of a process that has closed its end of the pipes: it is ending, or has ended, by itself."""
        if self.error is not None:
            return
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill("closed its pipes, and was ended")
            return
        self._ended(f"was ended by signal {-code}" if code < 0 else f"ended by itself (exit code {code})")

    def _ended(self, how: str) -> None:
        self.error = ConnectionLost(f"the offload device (process {self.pid}) {how}")
        self.loop.remove_reader(self._stdout)
        self.loop.remove_reader(self._completions)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self.out.close()
        self._close_doorbells()
        self.loop.call_soon(self._report_end, self.error)

    def _close_doorbells(self) -> None:
        for doorbell in self._doorbells:
            os.close(doorbell)
        self._doorbells.clear()

    def _report_end(self, error: NvmeofError) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)
        self._replies.clear()
        if not self._over.done():
            self._over.set_result(None)
        links = list(self._links.values())
        self._links.clear()
        for link in links:
            link.broken(error)
