"""The health of a target: temperatures are fixed, counters are real."""

from __future__ import annotations

from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.events import RELIABILITY, TEMPERATURE

COMPOSITE_KELVIN = 310
WARNING_KELVIN = 343
CRITICAL_KELVIN = 353
SPARE_PERCENT = 100
SPARE_THRESHOLD_PERCENT = 10

WARNING_TEMPERATURE = 1 << 1
WARNING_RELIABILITY = 1 << 2


def critical_warning(controller: Controller) -> int:
    """Return Critical Warning of the SMART log: temperature against the host's thresholds, and whether data may be
    lost.

    A namespace that is configured read-only is no warning.
    """
    thresholds = controller.features.thresholds
    over, under = thresholds.get(0, WARNING_KELVIN), thresholds.get(1, 0)
    warning = WARNING_TEMPERATURE if over <= COMPOSITE_KELVIN or under >= COMPOSITE_KELVIN else 0
    if any(namespace.backend.sync_failures for namespace in controller.subsystem.namespaces.values()):
        warning |= WARNING_RELIABILITY
    return warning


def report_warnings(controller: Controller) -> None:
    """Send the events of the present critical warnings that the host has enabled."""
    warning = critical_warning(controller)
    if warning & WARNING_TEMPERATURE:
        controller.events.report(TEMPERATURE)
    if warning & WARNING_RELIABILITY:
        controller.events.report(RELIABILITY)
