"""Reporting of failures: each goes to the failure listeners of the command tables."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.persistent_events import EventType, HardwareErrorCode
from nvmeof.spec.status import Status
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.events import TRANSIENT_INTERNAL_ERROR
from nvmeof.target.core.tables import Tables
from nvmeof.target.subsystem.persistent_events import hardware_error

logger = logging.getLogger(__name__)

FailureListener = Callable[[Tables, Controller, str], None]
"""Called with the target's tables, the controller and a few words."""


class FailureListeners(tuple[FailureListener, ...]):
    """Those of a target, called in their order."""


_MEDIA: Final = frozenset({Status.WRITE_FAULT, Status.UNRECOVERED_READ_ERROR})


def report(tables: Tables, controller: Controller, reason: str) -> None:
    """Report a failure that does not belong to one command."""
    for listener in tables[FailureListeners]:
        try:
            listener(tables, controller, reason)
        except Exception as error:
            # A listener's error must not make the failure worse.
            logger.error("%s could not be recorded: %s: %s", reason, type(error).__name__, error)
            logger.debug("%s", reason, exc_info=error)


def command_failed(tables: Tables, controller: Controller, error: CommandError) -> None:
    """Report a refused command when its status points to a failure of the target."""
    if error.status in _MEDIA:
        controller.record(EventType.HARDWARE_ERROR, hardware_error(HardwareErrorCode.MEDIA_AND_DATA_INTEGRITY))
        report(tables, controller, f"media error: {error}")
    elif error.status == Status.INTERNAL_ERROR:
        controller.events.report(TRANSIENT_INTERNAL_ERROR)
        report(tables, controller, f"internal error: {error}")
