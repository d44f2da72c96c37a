"""Authentication Send and Receive as commands: the commands that a queue takes before its host has authenticated
itself, and the end of the queue.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from nvmeof.security.dhchap_controller import HostKeys, Step
from nvmeof.security.dhchap_host import HostCredentials, HostExchange
from nvmeof.security.secret import generate_secret
from nvmeof.security.tls.key import generated_key
from nvmeof.spec.auth import DhGroupId, HashId, build_negotiate
from nvmeof.spec.connect import Authreq
from nvmeof.spec.enums import DISCOVERY_NQN, FABRICS_OPCODE, FabricsType
from nvmeof.spec.properties import CC_OFFSET, VS_OFFSET
from nvmeof.spec.status import Status
from nvmeof.target.core.states import QueueState
from nvmeof.target.projection.authentication import AUTHENTICATION_SECONDS, MOST_PENDING, MOST_TRANSACTIONS
from tests.target.harness import CC_ENABLE, HOST, NQN, Target, TestQueue

KEY, OTHER_KEY = generate_secret(), generate_secret(48)
OTHER_HOST = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"
PROTOCOL = 0xE9 << 24 | 1 << 16 | 1 << 8
ATR = int(Authreq.ATR)


def target(**options: Any) -> Target:
    return Target(host_keys=((HOST, HostKeys(KEY, OTHER_KEY)),), **options)


def send(queue: TestQueue, message: bytes, protocol: int = PROTOCOL) -> Any:
    return queue.command(
        FABRICS_OPCODE, message, nsid=FabricsType.AUTH_SEND, cdw10=protocol, cdw11=len(message)
    )  # fmt: skip


def receive(queue: TestQueue, length: int = 4096) -> Any:
    return queue.command(FABRICS_OPCODE, length=length, nsid=FabricsType.AUTH_RECEIVE, cdw10=PROTOCOL, cdw11=length)


async def at_once(function: Any) -> Any:
    return function()


def host(secret: Any = KEY, controller: Any = None, t_id: int = 0) -> HostExchange:
    credentials = HostCredentials(secret, controller, groups=(DhGroupId.NULL,))
    return HostExchange(credentials, t_id=t_id, hostnqn=HOST, subnqn=NQN, in_thread=at_once)


def authenticate(queue: TestQueue, one: HostExchange) -> None:
    """Do a whole transaction. Raises the host's error."""
    assert send(queue, one.negotiate()).status == 0
    challenge = bytes(receive(queue).data)
    assert len(challenge) == 4096, "what was asked for, padded"
    assert send(queue, asyncio.run(one.reply(challenge))).status == 0
    last = one.finish(bytes(receive(queue).data))
    if last is not None:
        assert send(queue, last).status == 0


def test_connect_requires_authentication_on_every_queue_of_that_host():
    one = target()
    admin = one.queue()
    assert admin.connect() & ~0xFFFF == ATR
    assert admin.ctx.queue_state is QueueState.CONNECTED
    authenticate(admin, host())
    assert admin.ctx.queue_state is QueueState.READY
    admin.set_property(CC_OFFSET, CC_ENABLE)
    queue = one.queue()
    assert queue.connect(qid=1, cntlid=admin.controller.cntlid) & ~0xFFFF == ATR
    assert queue.command(0x02, length=512, nsid=1).status == Status.AUTHENTICATION_REQUIRED
    authenticate(queue, host(t_id=1))
    assert queue.command(0x02, length=512, nsid=1).status == 0
    assert one.registry.authentication.pending == 0
    assert admin.ctx.figures()["authentication"] == "SHA256, null"


def test_hosts_that_must_authenticate():
    one = target()
    assert one.queue().connect(hostnqn=OTHER_HOST) & ~0xFFFF == 0
    assert one.queue().connect(subnqn=DISCOVERY_NQN) & ~0xFFFF == 0
    strict = target(authentication_required=True)
    assert strict.queue().try_connect(hostnqn=OTHER_HOST).status == Status.CONNECT_INVALID_PARAMETERS
    assert strict.queue().connect() & ~0xFFFF == ATR


def test_nothing_but_authentication_and_properties_before():
    queue = target().queue()
    queue.connect()
    assert queue.get_property(VS_OFFSET).status == Status.AUTHENTICATION_REQUIRED
    assert queue.identify(1).status == Status.AUTHENTICATION_REQUIRED
    send(queue, host().negotiate())
    assert queue.ctx.queue_state is QueueState.AUTHENTICATING
    assert queue.identify(1).status == Status.AUTHENTICATION_REQUIRED


def test_a_wrong_secret_ends_the_queue_after_the_answer(caplog):
    queue = target().queue()
    queue.connect()
    one = host(generate_secret())
    send(queue, one.negotiate())
    send(queue, asyncio.run(one.reply(bytes(receive(queue).data))))
    last = receive(queue)
    assert last.status == 0 and bytes(last.data[:2]) == b"\0\xf1" and "secrets do not match" in last.ends
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert HOST in record.getMessage() and KEY.to_text()[:20] not in caplog.text


def test_authentication_again_while_the_queue_is_ready():
    queue = target().queue()
    queue.connect()
    for t_id in range(MOST_TRANSACTIONS + 3):
        authenticate(queue, host(controller=OTHER_KEY, t_id=t_id))
        assert queue.ctx.queue_state is QueueState.READY
    send(queue, host(t_id=1).negotiate())
    assert queue.ctx.queue_state is QueueState.READY, "I/O goes on during a repetition"


@pytest.mark.parametrize(("protocol", "location"), [(0x00010100, 43), (0xE9010000, 41), (0xE9000100, 42)])
def test_another_security_protocol(protocol, location):
    queue = target().queue()
    queue.connect()
    completion = send(queue, b"\0" * 72, protocol)
    assert completion.status == Status.INVALID_FIELD
    assert queue.controller.error_log.newest()[0].error_location == location


def test_lengths():
    queue = target().queue()
    queue.connect()
    assert receive(queue, 4097).status == Status.INVALID_FIELD
    assert send(queue, b"\0" * 8192).status == Status.INVALID_FIELD
    send(queue, host().negotiate())
    assert receive(queue, 16).status == Status.INVALID_FIELD, "the challenge is longer"


def test_a_queue_that_requires_no_authentication():
    queue = target().queue()
    queue.connect(hostnqn=OTHER_HOST)
    assert send(queue, host().negotiate()).status == Status.COMMAND_SEQUENCE_ERROR
    assert queue.get_property(VS_OFFSET).status == 0


def test_a_host_that_takes_too_long(caplog):
    one = target()
    queue = one.queue()
    queue.connect()
    one.runtime.time += AUTHENTICATION_SECONDS - 1
    one.runtime.turn()
    assert not queue.closed
    one.runtime.time += 1
    one.runtime.turn()
    assert queue.closed == [f"the host did not authenticate itself within {AUTHENTICATION_SECONDS:g} s"]
    assert HOST in caplog.text


def test_a_host_that_has_to_authenticate_again(caplog):
    one = target(reauthentication_seconds=60.0)
    queue = one.queue()
    queue.connect()
    authenticate(queue, host())
    for _ in range(3):
        one.runtime.time += 59
        one.runtime.turn()
        authenticate(queue, host())
    one.runtime.time += 61
    one.runtime.turn()
    assert "the host did not authenticate itself within 60 s" in queue.closed
    assert f"{HOST} of {NQN}, queue 0: not authenticated within 60 s" in caplog.text


def test_a_host_that_only_begins():
    queue = target().queue()
    queue.connect()
    for _ in range(MOST_TRANSACTIONS):
        send(queue, host().negotiate())
        assert not receive(queue).ends
    send(queue, host().negotiate())
    assert "finished none" in receive(queue).ends


def test_half_done_exchanges_are_limited():
    one = target()
    queues = [from_address(one, "192.0.2.1") for _ in range(MOST_PENDING // 2)]
    for queue in queues:
        queue.connect()
    busy = from_address(one, "192.0.2.1").try_connect()
    assert busy.status == Status.CONNECT_CONTROLLER_BUSY and not busy.dnr
    assert from_address(one, "192.0.2.1").connect(hostnqn=OTHER_HOST), "others are not concerned"
    queues[0].ctx.detach("lost")
    assert from_address(one, "192.0.2.1").connect() & ATR
    queues[1].ctx.detach("lost")
    queues[1].ctx.detach("lost")
    assert one.registry.authentication.pending == MOST_PENDING // 2 - 1


@pytest.mark.parametrize("strangers", ["192.0.2.1", "[2001:db8::{:x}]"], ids=["one address", "one network of IPv6"])
def test_a_stranger_who_knows_a_name_does_not_keep_its_host_out(strangers):
    one = target()
    waiting = 0
    while from_address(one, strangers.format(waiting + 1)).try_connect().status == 0:
        waiting += 1
    assert waiting == MOST_PENDING // 2
    queue = from_address(one, "198.51.100.9")
    queue.connect()
    authenticate(queue, host())
    assert queue.ctx.queue_state is QueueState.READY


def from_address(one: Target, address: str) -> TestQueue:
    queue = one.queue()
    queue.ctx.peer = f"{address}:40000"
    return queue


@pytest.mark.parametrize("later", [None, HostKeys(OTHER_KEY)], ids=["removed", "another"])
def test_keys_that_were_taken_back_prove_nothing_any_longer(later, caplog):
    one = target()
    ready, halfway = one.queue(), one.queue()
    ready.connect()
    authenticate(ready, host())
    halfway.connect()
    exchange = host(t_id=1)
    send(halfway, exchange.negotiate())
    send(halfway, asyncio.run(exchange.reply(bytes(receive(halfway).data))))
    one.subsystem.hosts.set_keys(HOST, later)
    receive(halfway)
    assert halfway.ctx.queue_state is not QueueState.READY
    assert halfway.closed == ["the host's keys were changed while it authenticated itself"]
    assert "keys were changed meanwhile" in caplog.text
    again = host(t_id=2)
    assert send(ready, again.negotiate()).status == 0
    message = receive(ready)
    if later is None:
        assert "no secret here any longer" in message.ends
    else:
        send(ready, asyncio.run(again.reply(bytes(message.data))))
        assert "secrets do not match" in receive(ready).ends


def test_a_key_for_tls_is_not_made_with_a_secret_that_was_taken_back():
    one = target()
    one.port = replace(one.port, tls="allowed")
    queue = one.queue(one.port)
    queue.connect()
    exchange = queue.ctx.authentication._exchange
    exchange.step, exchange.generated = Step.SUCCESS1, generated_key(HashId.SHA256, b"shared", b"challenges")
    one.subsystem.hosts.set_keys(HOST, HostKeys(OTHER_KEY))
    receive(queue)
    assert len(one.registry.generated) == 0 and exchange.generated is None and queue.closed


def test_commands_on_one_queue_do_not_overtake():
    queue = target().queue()
    queue.connect()
    message = build_negotiate(0, (HashId.SHA256,), (DhGroupId.FFDHE2048,))
    sqe = queue.sqe(FABRICS_OPCODE, message, nsid=FabricsType.AUTH_SEND, cdw10=PROTOCOL, cdw11=len(message))
    pending = queue.submit(sqe, message)
    assert receive(queue).status == Status.COMMAND_SEQUENCE_ERROR
    assert send(queue, message).status == Status.COMMAND_SEQUENCE_ERROR
    while pending.step() is None:
        queue.ctx.runtime.turn()
    assert pending.completion.status == 0
    assert bytes(receive(queue).data[:2]) == b"\1\1"
