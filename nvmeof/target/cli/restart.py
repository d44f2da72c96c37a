"""A restart of the target without a pause for hosts: this process starts the next, which takes over what it serves.

    this process                              the next process
      starts it; running(document)      ->      reads its file and checks it
                                        <-      ready, or failed(reason)
      takes no more connections, lets commands end, closes files
      take(handover, descriptors)       ->      opens everything
                                        <-      opened
      go                                ->
                                        <-      accepting
      tells the service manager; ends   ->      accepts connections

Whatever goes wrong before `accepting`, and whoever ends, this process serves on: until `take` as if nothing had been,
later by taking back what it has handed over (docs/decisions/0031-restart.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nvmeof.errors import ConfigurationError, NvmeofError, TransportError
from nvmeof.target.document import Document
from nvmeof.target.handover import Handover
from nvmeof.transport.descriptors import Channel, ChannelMessage

VARIABLE: Final = "NVMEOF_RESTART_CHANNEL"
"""The environment variable with the number of the next process' end of the channel."""
READY_SECONDS: Final = 60.0
"""How long the next process may take until it is ready to take over."""
OPEN_SECONDS: Final = 120.0
"""How long it may take to open everything."""
GO_SECONDS: Final = 10.0
_END_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 0.1
"""How long the answer to the verb `restart` has to leave before the control socket is closed."""

logger = logging.getLogger("nvmeof.target")


# -- the process that is there -----------------------------------------------------------------------------------------


class Successor:
    """The next process, as the one before sees it. `environment`: what the service manager had set for this one.

    Raises `ConfigurationError` when it cannot be started.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._channel, theirs = Channel.pair()
        variables = {**os.environ, **environment, VARIABLE: str(theirs.descriptor)}
        try:
            self.process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]], env=variables, pass_fds=[theirs.descriptor]
            )
        except OSError as error:
            self._channel.close()
            raise ConfigurationError(f"{sys.executable} cannot be started: {error.strerror or error}") from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self.process.pid

    async def prepare(self, running: Document) -> None:
        """Wait until it has read and checked its configuration. Raises `ConfigurationError` with why it has not."""
        try:
            self._channel.send("running", running)
            message = await asyncio.wait_for(self._channel.receive(), READY_SECONDS)
        except TimeoutError:
            raise ConfigurationError(f"the new process was not ready after {READY_SECONDS:g} s") from None
        except TransportError as error:
            raise ConfigurationError(f"the new process: {error}") from error
        if message is None:
            code = await self._ended()
            raise ConfigurationError(f"the new process ended before it was ready ({code}): its log has the reason")
        if message.kind != "ready":
            raise ConfigurationError(str(message.facts.get("reason", f"the new process said {message.kind!r}")))

    async def take(self, handover: Handover) -> bool:
        """Hand over, and return whether it serves. If not, it has ended and the handover is this process' again."""
        try:
            await asyncio.to_thread(handover.to_memory_files)
            document, descriptors = handover.encode()
            self._channel.send("take", document, descriptors)
            await self._expect("opened", OPEN_SECONDS)
            self._channel.send("go")
            await self._expect("accepting", GO_SECONDS)
        except (NvmeofError, OSError) as error:
            logger.error("the restart has failed, and process %d serves on: %s", os.getpid(), error)
            await self.end()
            return False
        return True

    async def _expect(self, kind: str, seconds: float) -> None:
        try:
            message: ChannelMessage | None = await asyncio.wait_for(self._channel.receive(), seconds)
        except TimeoutError:
            raise ConfigurationError(f"the new process was not there after {seconds:g} s") from None
        if message is None:
            raise ConfigurationError(f"the new process has ended ({await self._ended()})")
        if message.kind != kind:
            raise ConfigurationError(str(message.facts.get("reason", f"the new process said {message.kind!r}")))

    async def _ended(self) -> str:
        """Return how the process has ended, in words."""
        try:
            code = await asyncio.to_thread(self.process.wait, _END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it runs still"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def end(self) -> None:
        """End it, whatever it does, and wait until it has gone: its locks of files go with it."""
        self._channel.close()
        if self.process.poll() is None:
            self.process.kill()
        await self._ended()

    def terminate(self) -> None:
        """Let it stop, as the service manager would."""
        if self.process.poll() is None:
            self.process.terminate()

    def release(self) -> None:
        """Let it say that it is ready: this process says no more."""
        self._channel.close()


class Restarts:
    """Restarts of a target: at most one at a time. `environment`: for the new process; `running`: what it has to check.

    A restart that fails before anything was handed over changes nothing.
    """

    def __init__(self, environment: dict[str, str], running: Callable[[], Document]) -> None:
        self._environment = environment
        self._running = running
        self._successor: Successor | None = None
        self._task: asyncio.Task[Successor] | None = None
        self._ready: asyncio.Future[Successor] = asyncio.get_running_loop().create_future()
        self.handing_over = False
        """From the moment on from which this process serves no more, unless the next one fails."""

    @property
    def under_way(self) -> bool:
        """Whether a restart has begun, and has not failed."""
        return self.handing_over or (self._task is not None and not self._task.done())

    def wanted(self) -> None:
        """Begin a restart at a signal; what it fails of is logged."""
        if self.under_way or self._ready.done():
            logger.warning("SIGUSR2: a restart is under way already")
            return

        def ended(task: asyncio.Task[Successor]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("SIGUSR2: no restart, process %d serves as before: %s", os.getpid(), error)

        self._begin().add_done_callback(ended)

    async def restart(self) -> dict[str, Any]:
        """Begin a restart, and return when the new process is ready to take over. Raises `ConfigurationError`."""
        if self.under_way or self._ready.done():
            raise ConfigurationError("a restart is under way already")
        task = self._begin()
        await asyncio.wait([task])
        if task.cancelled():
            raise ConfigurationError("the restart was given up: this process was told to stop, or by Ctrl-C")
        successor = task.result()
        return {"pid": successor.pid, "before": os.getpid()}

    def _begin(self) -> asyncio.Task[Successor]:
        self._task = asyncio.get_running_loop().create_task(self._prepare())
        return self._task

    async def _prepare(self) -> Successor:
        if os.getpid() == 1:
            raise ConfigurationError(
                "this process is the first of its container, which ends with it: start another container"
            )
        document = self._running()
        self._successor = successor = Successor(self._environment)
        logger.info("restart: process %d starts and checks its configuration", successor.pid)
        try:
            await successor.prepare(document)
        except BaseException:
            self._successor = None
            await successor.end()
            raise
        self._ready.set_result(successor)
        return successor

    def give_up(self, why: str) -> bool:
        """End a restart that is under way, and return whether there was one that could be ended."""
        if self.handing_over or self._task is None or self._task.done():
            return False
        logger.warning("%s: the restart is given up, and process %d serves on", why, os.getpid())
        self._task.cancel()
        return True

    def terminate(self) -> None:
        """Let the process that is taking over stop."""
        if self._successor is not None:
            self._successor.terminate()

    async def wait(self, stopping: asyncio.Event) -> Successor | None:
        """Wait until the target shall stop (None), or the next process is ready to take over."""
        stop = asyncio.ensure_future(stopping.wait())
        waiting: list[asyncio.Future[Any]] = [stop, self._ready]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not self._ready.done():
            return None
        if not stopping.is_set():
            await asyncio.sleep(_ANSWER_SECONDS)
        if stopping.is_set():
            return None
        self.handing_over = True
        return self._ready.result()

    async def end(self) -> None:
        """End a restart that has not come so far, since the target stops."""
        if self._task is not None and not self.handing_over:
            self._task.cancel()
            await asyncio.wait([self._task])
            if self._ready.done():
                await self._ready.result().end()


# -- the process that comes next ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Predecessor:
    """The process before, as the next one sees it."""

    channel: Channel

    @classmethod
    def from_environment(cls) -> Predecessor | None:
        """Take over the channel that the process before has left in the environment; None: it is no restart.

        From then on SIGINT and SIGUSR2 do nothing: both processes may get them, and they are the matter of the one that
        serves.
        """
        number = os.environ.pop(VARIABLE, "")
        if not number.isdecimal():
            return None
        for each in (signal.SIGINT, signal.SIGUSR2):
            signal.signal(each, signal.SIG_IGN)
        return cls(Channel.inherited(int(number)))

    async def prepare(self, check: Callable[[Document], object]) -> None:
        """Check what is going to be served, and say whether that is possible. Raises `NvmeofError` if not."""
        message = await self._expect("running")
        try:
            check(message.document)
        except NvmeofError as error:
            self.failed(error)
            raise
        self.channel.send("ready")

    async def take(self) -> Handover:
        """Wait for what is handed over, and return it."""
        message = await self._expect("take")
        return Handover.decode(message.document, message.descriptors)

    async def opened(self) -> None:
        """Say that everything is open; return when this process shall accept connections."""
        self.channel.send("opened")
        await self._expect("go")
        self.channel.send("accepting")

    async def released(self) -> None:
        """Wait until the process before has told the service manager of this one."""
        try:
            await asyncio.wait_for(self.channel.receive(), _END_SECONDS)
        except (TimeoutError, TransportError):
            logger.debug("the process before did not say that it ends")
        self.channel.close()

    def failed(self, error: Exception) -> None:
        """Say why this process cannot take over."""
        try:
            self.channel.send("failed", reason=str(error))
        except TransportError as gone:
            logger.debug("the process before has gone: %s", gone)

    async def _expect(self, kind: str) -> ChannelMessage:
        message = await self.channel.receive()
        if message is None or message.kind != kind:
            raise NvmeofError("the restart was given up by the process before")
        return message
