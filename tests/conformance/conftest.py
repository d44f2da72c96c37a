from __future__ import annotations

import logging

import pytest

from nvmeof.transport import base
from tests.conformance.rawhost import RawHost


@pytest.fixture(params=["memory", "tcp", "mptcp"])
def trtype(request):
    """Return each transport in turn."""
    base.get(request.param)
    return request.param


@pytest.fixture(params=["silent", "slow"])
def manner(request):
    """Return each manner of a host that receives too little in turn."""
    return request.param


@pytest.fixture(autouse=True)
def log(caplog):
    """Capture the target's log from INFO on."""
    caplog.set_level(logging.INFO, "nvmeof")
    return caplog


@pytest.fixture(autouse=True)
async def left_open():
    """Close the hosts that a test did not close."""
    yield
    RawHost.close_all()
