"""Run every asynchronous test here on stock asyncio and, where it is installed, on uvloop."""

from __future__ import annotations

from tests.transport.conftest import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories
