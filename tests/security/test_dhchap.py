"""The exchange of DH-HMAC-CHAP between our two ends, its formulas written out a second time, and refusals."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.security.dh_groups import usable_groups
from nvmeof.security.dhchap import ExchangeError, SequenceNumbers
from nvmeof.security.dhchap_controller import ControllerExchange, HostKeys, Step
from nvmeof.security.dhchap_host import HostCredentials, HostExchange
from nvmeof.security.secret import Secret, generate_secret
from nvmeof.spec.auth import (
    CHALLENGE,
    FAILURE,
    NEGOTIATE,
    REPLY,
    SUCCESS1,
    DhGroupId,
    FailureExplanation,
    HashId,
    MessageId,
    build_failure,
    build_negotiate,
)

HOSTNQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
SUBNQN = "nqn.2026-01.org.example:disk"
KEY, CONTROLLER_KEY = Secret(bytes(range(32))), Secret(bytes(range(48)), HashId.SHA384)
NAMES = {"hostnqn": HOSTNQN, "subnqn": SUBNQN}


async def at_once(function: Any) -> Any:
    return function()


def controller(keys: HostKeys | None = None) -> ControllerExchange:
    return ControllerExchange(lambda: keys or HostKeys(KEY, CONTROLLER_KEY), **NAMES, in_thread=at_once)


def host(credentials: HostCredentials | None = None, t_id: int = 3) -> HostExchange:
    return HostExchange(credentials or HostCredentials(KEY, CONTROLLER_KEY), t_id=t_id, **NAMES, in_thread=at_once)


async def run(one: HostExchange, other: ControllerExchange) -> None:
    """Exchange all messages of a transaction. Raises the host's error, after its Failure2 has reached the
    controller.
    """
    try:
        await other.receive(one.negotiate())
        await other.receive(await one.reply(other.message()))
        last = one.finish(other.message())
    except ExchangeError:
        if one.farewell is not None:
            await other.receive(one.farewell)
        raise
    if last is not None:
        await other.receive(last)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("group", usable_groups())
@pytest.mark.parametrize("hash_id", HashId)
async def test_all_combinations(hash_id, group, bidirectional):
    other = controller(HostKeys(KEY, CONTROLLER_KEY, hash_id, group))
    await run(host(HostCredentials(KEY, CONTROLLER_KEY if bidirectional else None)), other)
    assert other.step is Step.DONE and other.bidirectional is bidirectional
    assert other.chosen == f"{hash_id.name}, {group.name.lower()}"


async def test_responses_written_out():
    """The formulas were derived from exchanges of two Linux ends (6.12, 7.2), and are computed here without our
    functions.
    """
    one, other = host(HostCredentials(KEY, CONTROLLER_KEY)), controller(HostKeys(KEY, CONTROLLER_KEY, HashId.SHA512))
    await other.receive(one.negotiate())
    sent = other.message()
    challenge: Any = CHALLENGE.parse(sent)
    reply_bytes = await one.reply(sent)
    reply: Any = REPLY.parse(reply_bytes)
    text = challenge.cval + challenge.seqnum.to_bytes(4, "little") + b"\x03\x00\x00HostHost"
    wanted = hmac.new(KEY.key, text + f"{HOSTNQN}\0{SUBNQN}".encode(), hashlib.sha512).digest()
    assert reply.rval == wanted and reply.cvalid == 1 and reply.seqnum != 0 and reply.cval != challenge.cval
    await other.receive(reply_bytes)
    success: Any = SUCCESS1.parse(other.message())
    own = hmac.new(CONTROLLER_KEY.key, f"{SUBNQN}NVMe-over-Fabrics".encode(), hashlib.sha384).digest()
    text = reply.cval + reply.seqnum.to_bytes(4, "little") + b"\x03\x00\x00Controller"
    assert success.rval == hmac.new(own, text + f"{SUBNQN}\0{HOSTNQN}".encode(), hashlib.sha512).digest()


async def test_a_host_that_asks_for_no_proof_sends_zeros():
    one, other = host(HostCredentials(KEY)), controller()
    await other.receive(one.negotiate())
    reply: Any = REPLY.parse(await one.reply(other.message()))
    assert (reply.cvalid, reply.seqnum, reply.cval) == (0, 0, bytes(32))


async def test_again_on_the_same_queue():
    other = controller()
    for t_id in range(3):
        await run(host(t_id=t_id), other)
        assert other.step is Step.DONE


@pytest.mark.parametrize(
    ("credentials", "keys", "host_says", "controller_says"),
    [
        (HostCredentials(generate_secret()), HostKeys(KEY), "refuses it: the secrets", "the secrets do not"),
        (
            HostCredentials(KEY, generate_secret()), HostKeys(KEY, CONTROLLER_KEY),
            "could not prove", "the host gave up: the secrets do not match",
        ),
        (HostCredentials(KEY, CONTROLLER_KEY), HostKeys(KEY), "refuses it: the secrets", "none is configured"),
        (
            HostCredentials(KEY, hashes=(HashId.SHA256,)), HostKeys(KEY, hash_id=HashId.SHA512),
            "no hash function that both", "no hash function that both",
        ),
        (
            HostCredentials(KEY, groups=(DhGroupId.FFDHE2048,)), HostKeys(KEY, group=DhGroupId.NULL),
            "no Diffie-Hellman group that both", "no Diffie-Hellman group",
        ),
    ],
)  # fmt: skip
async def test_failures(credentials, keys, host_says, controller_says):
    other = controller(keys)
    with pytest.raises(ExchangeError, match=host_says):
        await run(host(credentials), other)
    assert other.step is Step.FAILED and controller_says in other.failure


async def refusal(other: ControllerExchange, message: bytes) -> FailureExplanation:
    await other.receive(message)
    assert other.step is Step.FAILURE1
    failure: Any = FAILURE.parse(other.message())
    assert other.step is Step.FAILED and other.failure
    assert (failure.auth_type, failure.auth_id, failure.rescode) == (0, MessageId.FAILURE1, 1)
    return FailureExplanation(failure.explanation)


async def test_messages_that_a_controller_refuses():
    wrong = FailureExplanation
    assert await refusal(controller(), b"\0\0") is wrong.INCORRECT_PAYLOAD
    assert await refusal(controller(), build_negotiate(1, (HashId.SHA256,), (DhGroupId.NULL,))[:40]) is (
        wrong.INCORRECT_PAYLOAD
    )
    assert await refusal(controller(), build_negotiate(1, (HashId.SHA256,), (DhGroupId.NULL,), sc_c=2)) is (
        wrong.CONCATENATION_MISMATCH
    )
    other_protocol = NEGOTIATE.parse(build_negotiate(1, (HashId.SHA256,), (DhGroupId.NULL,)))
    other_protocol.protocols[0].authid = 7
    assert await refusal(controller(), NEGOTIATE.build(other_protocol)) is wrong.NOT_USABLE
    for message in (b"\1\2" + bytes(70), b"\1\4" + bytes(14), b"\1\1" + bytes(50), b"\7\7" + bytes(10)):
        assert await refusal(controller(), message) is wrong.INCORRECT_MESSAGE


async def challenged(keys: HostKeys | None = None) -> tuple[ControllerExchange, Any, Any]:
    """Return a controller that waits for Reply, its challenge, and the right reply."""
    one, other = host(), controller(keys)
    await other.receive(one.negotiate())
    sent = other.message()
    return other, CHALLENGE.parse(sent), REPLY.parse(await one.reply(sent))


async def test_replies_that_a_controller_refuses():
    wrong = FailureExplanation
    changes = [
        ({"t_id": 9}, wrong.INCORRECT_PAYLOAD),
        ({"rval": bytes(32)}, wrong.FAILED),
        ({"hl": 48, "rval": bytes(48), "cval": bytes(48)}, wrong.INCORRECT_PAYLOAD),
        ({"dhvlen": 4, "dhval": b"1234"}, wrong.INCORRECT_PAYLOAD),
    ]
    for change, explanation in changes:
        other, _, reply = await challenged()
        assert await refusal(other, REPLY.build({**reply, **change})) is explanation
    other, challenge, reply = await challenged()
    assert await refusal(other, REPLY.build({**reply, "cval": challenge.cval})) is wrong.FAILED
    if len(usable_groups()) > 1:
        for public in (bytes(256), b"", bytes(255) + b"\1", b"\xff" * 256):
            other, _, reply = await challenged(HostKeys(KEY, group=DhGroupId.FFDHE2048))
            changed = {**reply, "dhvlen": len(public), "dhval": public}
            assert await refusal(other, REPLY.build(changed)) is wrong.INCORRECT_PAYLOAD


async def test_authentication_receive_without_a_message():
    other = controller()
    assert FAILURE.parse(other.message()).explanation == FailureExplanation.INCORRECT_MESSAGE
    assert other.step is Step.FAILED


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"t_id": 9}, "transaction 9"),
        ({"hash_id": 7}, "was not offered"),
        ({"group_id": 9}, "was not offered"),
        ({"hl": 48, "cval": bytes(48)}, "48 and 0 bytes"),
        ({"auth_id": 4}, "message 01h 04h"),
    ],
)
async def test_challenges_that_a_host_refuses(change, says):
    one, other = host(), controller()
    await other.receive(one.negotiate())
    challenge: Any = CHALLENGE.parse(other.message())
    with pytest.raises(ExchangeError, match=says):
        await one.reply(CHALLENGE.build({**challenge, **change}))
    assert one.farewell is not None
    await other.receive(one.farewell)
    assert other.step is Step.FAILED


async def test_a_failure_has_no_answer():
    one = host()
    one.negotiate()
    with pytest.raises(ExchangeError, match="Diffie-Hellman group"):
        await one.reply(build_failure(MessageId.FAILURE1, 3, FailureExplanation.DHGROUP_NOT_USABLE))
    assert one.farewell is None
    with pytest.raises(ExchangeError, match="too short"):
        await host().reply(b"\1")


messages = st.one_of(
    st.binary(max_size=100),
    st.builds(build_negotiate, st.integers(0, 3), st.just((HashId.SHA256,)), st.just((DhGroupId.NULL,))),
    st.sampled_from([b"\1\2" + bytes(100), b"\1\4\0\0\3\0" + bytes(10), b"\0\xf0\0\0\3\0\1\1"]),
    st.none(),
)


@settings(deadline=None)
@given(st.lists(messages, max_size=8))
def test_no_order_of_messages_lets_a_host_without_the_secret_in(order):
    async def send() -> None:
        other = controller()
        for message in order:
            if message is None:
                other.message()
            else:
                await other.receive(message)
            assert other.step is not Step.DONE and isinstance(other.step, Step)

    asyncio.run(send())


def test_sequence_numbers_go_up_and_are_never_0():
    numbers = SequenceNumbers()
    first = numbers.next()
    assert numbers.next() == (first + 1) & 0xFFFFFFFF or first == 0xFFFFFFFF
    assert replace(HostCredentials(KEY), groups=(DhGroupId.NULL,)).offered_groups == (DhGroupId.NULL,)
