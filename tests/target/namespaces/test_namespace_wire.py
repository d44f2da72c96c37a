"""Detaching and deleting while commands are in flight, at a queue fed with bytes."""

from __future__ import annotations

import pytest

from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import C2H, READ, TRANSPORT, WRITE
from tests.protocol.wire import split
from tests.target.backend_tools import Hidden
from tests.target.harness import Target
from tests.target.management_tools import active, attach, create, delete, detach
from tests.target.queue.queue_wire import FIELD, OK, Command, Wire, r2ts, statuses

LENGTH = 4096


class HiddenPool(RamdiskPool):
    """A pool whose storage does not show its memory: writes are staged."""

    def create(self, name: str, size_bytes: int, block_bytes: int):
        hidden = self._ramdisks[name] = Hidden(size_bytes)
        return hidden


@pytest.fixture(params=[RamdiskPool, HiddenPool])
def setup(request):
    target = Target(Ramdisk("1M"), pool=request.param("8M"))
    admin = target.admin()
    assert create(admin).dw0 == 2 and attach(admin, 2).status == 0
    return target, admin, Wire(target)


def content(target: Target, nsid: int) -> bytes:
    backend = target.subsystem.namespaces[nsid].backend
    lease = backend.acquire_read(0, LENGTH)
    return bytes(lease.view)


def read(wire: Wire, nsid: int) -> int | bytes:
    first = next(iter(split(wire.feed(Command(READ, 9, nsid=nsid).bytes(wire)))))
    return bytes(first[24 : 24 + LENGTH]) if first[0] == C2H else int.from_bytes(first[22:24], "little") >> 1 & 0x7FF


@pytest.mark.parametrize("end", [detach, delete])
@pytest.mark.parametrize("warm", [False, True])
def test_data_that_comes_too_late_is_refused(setup, end, warm):
    """Also when another namespace has its NSID by then; with and without a template of the fast path."""
    target, admin, wire = setup
    if warm:
        for name, ttag, length in r2ts(wire.feed(Command(WRITE, 1, nsid=2, sgl=TRANSPORT).bytes(wire))):
            assert statuses(wire.feed(wire.h2c(name, ttag, 0, b"1" * length))) == [(1, OK)]
        assert content(target, 2) == b"1" * LENGTH
    asked = r2ts(wire.feed(Command(WRITE, 3, nsid=2, sgl=TRANSPORT).bytes(wire)))
    assert len(asked) == 1
    old = target.subsystem.namespaces[2]
    assert end(admin, 2).status == 0
    nsid = create(admin).dw0
    if end is delete:
        assert nsid != 2, "no namespace takes the old one's number"
    assert attach(admin, nsid).status == 0
    for name, ttag, length in asked:
        assert statuses(wire.feed(wire.h2c(name, ttag, 0, b"2" * length))) == [(3, FIELD)]
    assert content(target, nsid) == bytes(LENGTH), "it did not reach the new one"
    if end is detach:
        assert bytes(old.backend.acquire_read(0, LENGTH).view) == (b"1" if warm else b"\0") * LENGTH


def test_the_fast_path_ends_with_the_attachment(setup):
    target, admin, wire = setup
    for _ in range(3):
        assert read(wire, 2) == bytes(LENGTH)
    assert detach(admin, 2).status == 0
    assert read(wire, 2) == FIELD and read(wire, 1) == bytes(LENGTH)
    assert attach(admin, 2).status == 0
    assert read(wire, 2) == bytes(LENGTH)
    other = target.admin(hostnqn="nqn.2026-01.org.example:other")
    assert attach(other, 2).status == 0
    assert detach(admin, 2, other.controller.cntlid).status == 0
    assert read(wire, 2) == bytes(LENGTH), "another controller's detachment is not this one's"
    assert delete(other, 2).status == 0
    assert read(wire, 2) == FIELD and active(admin) == [1]
