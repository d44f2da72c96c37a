"""The health that a target tells of itself: temperatures are fixed, counters are real."""

from __future__ import annotations

from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.events import TEMPERATURE

COMPOSITE_KELVIN = 310
WARNING_KELVIN = 343
CRITICAL_KELVIN = 353
SPARE_PERCENT = 100
SPARE_THRESHOLD_PERCENT = 10

WARNING_TEMPERATURE = 1 << 1


def critical_warning(controller: Controller) -> int:
    """Critical Warning of the SMART log: temperature against the host's thresholds.

    A read-only namespace was asked to be so; it is no warning.
    """
    thresholds = controller.features.thresholds
    over, under = thresholds.get(0, WARNING_KELVIN), thresholds.get(1, 0)
    return WARNING_TEMPERATURE if over <= COMPOSITE_KELVIN or under >= COMPOSITE_KELVIN else 0


def report_temperature(controller: Controller) -> None:
    """Send the temperature event when a threshold that the host has set is crossed."""
    if critical_warning(controller) & WARNING_TEMPERATURE:
        controller.events.report(TEMPERATURE)
