from __future__ import annotations

import logging

import pytest

from nvmeof.transport import base


@pytest.fixture(params=["memory", "tcp", "mptcp"])
def trtype(request):
    """Each transport in turn."""
    base.get(request.param)
    return request.param


@pytest.fixture(autouse=True)
def log(caplog):
    """What the target says, from INFO on."""
    caplog.set_level(logging.INFO, "nvmeof")
    return caplog
