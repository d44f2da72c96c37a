"""A line of the log for each command that took long: a listener of the trace hook (:mod:`nvmeof.trace`)."""

from __future__ import annotations

import logging
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import format_size
from nvmeof.spec.command_names import command_name
from nvmeof.spec.enums import AdminOpcode
from nvmeof.spec.status import describe_status
from nvmeof.target.core.log_rate import PeerRate, left_out_text
from nvmeof.trace import CommandCompleted, Event

BURST: Final = 60
PER_SECOND: Final = 1.0


class SlowCommandLog:
    """Logs the commands that took ``seconds`` or more, from their arrival in the queue to their completion.

    Asynchronous Event Requests wait on purpose and are left out. One host causes at most `BURST` lines at once and
    `PER_SECOND` lines in the long run; a line says how many before it were left out. Raises `ConfigurationError` unless
    ``seconds`` is more than 0.
    """

    pdus: Final = False

    def __init__(self, seconds: float, logger: logging.Logger) -> None:
        if not seconds > 0:
            raise ConfigurationError(f"a command is slow from some time on, more than 0 seconds, not {seconds:g}")
        self.seconds = seconds
        self._logger = logger
        self._rate = PeerRate(BURST, PER_SECOND)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, CommandCompleted) or event.seconds < self.seconds:
            return
        queue = event.queue
        if not queue.qid and event.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
            return
        left_out = self._rate.admit(queue.peer, event.at)
        if left_out is None:
            return
        name = command_name(queue.qid, event.opcode, event.fctype)
        about = f" of namespace {event.nsid}" if event.nsid else ""
        size = f" ({format_size(event.data_bytes)})" if event.data_bytes else ""
        failed = f", failed: {describe_status(event.status, fabrics=event.fctype is not None)}" if event.status else ""
        self._logger.warning(
            "%s: slow command: %s%s%s took %.3f s on queue %d of controller %d, CID %#x%s%s",
            queue.peer, name, about, size, event.seconds, queue.qid, queue.cntlid, event.cids[0], failed,
            left_out_text(left_out),
        )  # fmt: skip
