"""I/O queues and the secure channel of their association: none of them may come by less than the admin queue."""

from __future__ import annotations

from nvmeof.security.tls.key import IdentityFields
from nvmeof.spec.auth import HashId
from nvmeof.spec.status import Status
from tests.target.harness import HOST, NQN, Target, TestQueue

TLS = IdentityFields(1, "R", HashId.SHA256, HOST, NQN)


def by(one: Target, secured: IdentityFields | None) -> TestQueue:
    queue = one.queue()
    queue.ctx.secured = secured
    return queue


def test_nobody_joins_an_association_of_tls_in_clear():
    """On a port that allows both, a stranger who knows a host's name and guesses its CNTLID is not in its place."""
    one = Target()
    admin = by(one, TLS)
    admin.connect()
    admin.set_property(0x14, 0x460001)
    cntlid = admin.controller.cntlid
    refused = by(one, None).try_connect(qid=1, cntlid=cntlid)
    assert refused.status == Status.CONNECT_INVALID_HOST and 1 not in admin.controller.queues
    assert not admin.controller.error_log.newest(), "nor does a stranger write into the log of a host"
    assert by(one, TLS).connect(qid=1, cntlid=cntlid) == cntlid


def test_an_association_in_clear_takes_queues_of_either_kind():
    one = Target()
    admin = one.admin()
    cntlid = admin.controller.cntlid
    assert by(one, None).connect(qid=1, cntlid=cntlid) == by(one, TLS).connect(qid=2, cntlid=cntlid) == cntlid
