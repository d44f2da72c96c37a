"""The controller's side of DH-HMAC-CHAP: messages in, messages out, on one queue."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import construct as c

from nvmeof.security.dh_groups import KeyPair, check_usable, usable_groups
from nvmeof.security.dhchap import (
    ExchangeError,
    InThread,
    SequenceNumbers,
    augmented_challenge,
    controller_response,
    host_response,
)
from nvmeof.security.secret import Secret
from nvmeof.security.tls.key import SIZES, TlsKey, generated_key
from nvmeof.spec.auth import (
    CHALLENGE,
    DHCHAP_AUTH_ID,
    FAILURE,
    NEGOTIATE,
    REPLY,
    SUCCESS1,
    DhGroupId,
    FailureExplanation,
    HashId,
    MessageId,
    MessageType,
    SecureChannel,
    build_failure,
    explanation_text,
    message_kind,
)

SEQUENCE: Final = SequenceNumbers()
_NEGOTIATE = (MessageType.COMMON, MessageId.NEGOTIATE)
_FAILURE2 = (MessageType.COMMON, MessageId.FAILURE2)
_REPLY = (MessageType.DHCHAP, MessageId.REPLY)
_SUCCESS2 = (MessageType.DHCHAP, MessageId.SUCCESS2)


@dataclass(frozen=True, slots=True)
class HostKeys:
    """What a host and a subsystem prove themselves with, and how: the attributes of a host in nvmet's configfs.

    ``key``: the host's secret (``dhchap_key``). ``controller_key``: the subsystem's, for hosts that ask for it
    (``dhchap_ctrl_key``). ``hash_id`` and ``group``: the ones to use; None: the first that the host offers. Raises
    `ConfigurationError` for a group that cannot be used here.
    """

    key: Secret
    controller_key: Secret | None = None
    hash_id: HashId | None = None
    group: DhGroupId | None = None

    def __post_init__(self) -> None:
        if self.group is not None:
            check_usable(self.group)


class Step(Enum):
    """Where an exchange is: what the next message is, and who sends it."""

    IDLE = "no transaction"
    CHALLENGE = "Challenge is to be sent"
    REPLY = "Reply is awaited"
    SUCCESS1 = "Success1 is to be sent"
    SUCCESS2 = "Success2 is awaited"
    FAILURE1 = "Failure1 is to be sent"
    DONE = "the host has authenticated itself"
    FAILED = "the exchange has failed"


class ControllerExchange:
    """Authenticates the host of one queue, once or repeatedly; ``step`` tells where it is.

    ``keys_now`` returns the keys of the present, with which each transaction begins, or None where the host has none
    any longer; `keys` are those of the last one. ``in_thread``: runs the exponentiations. ``failure``: why the last
    exchange failed, a sentence for the log. ``concatenates``: a host may have a TLS key made, or has to
    (``must_concatenate``); `generated` is that key, once the host has authenticated itself.
    """

    def __init__(
        self,
        keys_now: Callable[[], HostKeys | None],
        *,
        hostnqn: str,
        subnqn: str,
        in_thread: InThread,
        concatenates: bool = False,
        must_concatenate: bool = False,
    ) -> None:
        plain = () if must_concatenate else (SecureChannel.NONE,)
        self._channels = (*plain, SecureChannel.NEW_TLS_PSK) if concatenates else plain
        self.generated: TlsKey | None = None
        self._keys_now = keys_now
        self.keys = keys_now()
        self._hostnqn = hostnqn
        self._subnqn = subnqn
        self._in_thread = in_thread
        self.step = Step.IDLE
        self.failure = ""
        self.bidirectional = False
        """The host has asked for the controller's response too."""
        self._explanation = FailureExplanation.FAILED
        self._t_id = 0
        self._sc_c = SecureChannel.NONE
        self._hash = HashId.SHA256
        self._group = DhGroupId.NULL
        self._seqnum = 0
        self._challenge = b""
        self._pair: KeyPair | None = None
        self._response = b""

    @property
    def chosen(self) -> str:
        """Return the hash function and the group in use, for the log."""
        return f"{self._hash.name}, {self._group.name.lower()}"

    # -- what the host sends -------------------------------------------------------------------------------------------

    async def receive(self, message: bytes) -> None:
        """Take a message of Authentication Send. What is wrong with it is told by the next :meth:`message`."""
        try:
            kind = message_kind(message)
            if kind[:2] == _FAILURE2:
                self._refused_by_host(message)
            elif kind[:2] == _NEGOTIATE:
                await self._negotiate(message)
            elif kind[:2] == _REPLY and self.step is Step.REPLY:
                await self._reply(message)
            elif kind[:2] == _SUCCESS2 and self.step is Step.SUCCESS2:
                self._check_transaction(kind[2])
                self._end(Step.DONE)
            else:
                raise ExchangeError(
                    FailureExplanation.INCORRECT_MESSAGE,
                    f"message {kind[0]:02X}h {kind[1]:02X}h where {self.step.value}",
                )
        except c.ConstructError:
            self._fail(
                ExchangeError(FailureExplanation.INCORRECT_PAYLOAD, "a message that is too short for its fields")
            )
        except ExchangeError as error:
            self._fail(error)

    def _fail(self, error: ExchangeError) -> None:
        self.generated = None
        self._end(Step.FAILURE1)
        self._explanation, self.failure = error.explanation, str(error)

    def _end(self, step: Step) -> None:
        self.step, self._pair, self._challenge = step, None, b""

    def _refused_by_host(self, message: bytes) -> None:
        self._end(Step.FAILED)
        self.failure = f"the host gave up: {explanation_text(FAILURE.parse(message).explanation)}"

    def _check_transaction(self, t_id: int) -> None:
        if t_id != self._t_id:
            raise ExchangeError(FailureExplanation.INCORRECT_PAYLOAD, f"transaction {t_id} in place of {self._t_id}")

    async def _negotiate(self, message: bytes) -> None:
        offer: Any = NEGOTIATE.parse(message)
        self._end(Step.IDLE)
        self._t_id, self.bidirectional, self.generated = offer.t_id, False, None
        self.keys = keys = self._keys_now()
        if keys is None:
            raise ExchangeError(FailureExplanation.FAILED, "the host has no secret here any longer")
        if offer.sc_c not in self._channels:
            raise ExchangeError(FailureExplanation.CONCATENATION_MISMATCH)
        self._sc_c = SecureChannel(offer.sc_c)
        protocol = next((each for each in offer.protocols if each.authid == DHCHAP_AUTH_ID), None)
        if protocol is None:
            raise ExchangeError(FailureExplanation.NOT_USABLE, "the host does not offer DH-HMAC-CHAP")
        hashes, groups = protocol.hashes[: protocol.halen], protocol.groups[: protocol.dhlen]
        known_hashes = tuple(HashId) if keys.hash_id is None else (keys.hash_id,)
        known_groups = usable_groups() if keys.group is None else (keys.group,)
        if self._sc_c:  # a key needs a shared secret, and an identity for its hash function
            known_hashes = tuple(each for each in known_hashes if each in SIZES)
            known_groups = tuple(filter(None, known_groups))
        hash_id = next((each for each in hashes if each in known_hashes), None)
        if hash_id is None:
            raise ExchangeError(FailureExplanation.HASH_NOT_USABLE)
        group = next((each for each in groups if each in known_groups), None)
        if group is None:
            raise ExchangeError(FailureExplanation.DHGROUP_NOT_USABLE)
        self._hash, self._group = HashId(hash_id), DhGroupId(group)
        self._challenge, self._seqnum = secrets.token_bytes(self._hash.size), SEQUENCE.next()
        pair = await self._in_thread(lambda: KeyPair(DhGroupId(group))) if group else None
        self._pair, self.step = pair, Step.CHALLENGE

    async def _reply(self, message: bytes) -> None:
        reply: Any = REPLY.parse(message)
        self._check_transaction(reply.t_id)
        if reply.hl != self._hash.size:
            raise ExchangeError(FailureExplanation.INCORRECT_PAYLOAD, f"a response of {reply.hl} bytes")
        shared = await self._shared(reply.dhval)
        keys, names = self.keys, {"hostnqn": self._hostnqn, "subnqn": self._subnqn}
        assert keys is not None, "a transaction begins with keys"
        wanted = host_response(
            self._hash,
            keys.key.transformed(self._hostnqn),
            challenge=augmented_challenge(self._hash, self._challenge, shared),
            seqnum=self._seqnum,
            t_id=self._t_id,
            sc_c=self._sc_c,
            **names,
        )
        if not hmac.compare_digest(wanted, reply.rval):
            raise ExchangeError(FailureExplanation.FAILED)
        self.bidirectional = bool(reply.cvalid)
        self._response = b""
        if self._sc_c:
            if not reply.cvalid or shared is None:
                raise ExchangeError(FailureExplanation.INCORRECT_PAYLOAD, "a TLS key is asked for without a challenge")
            self.bidirectional = reply.seqnum != 0  # 0: the challenge is for the key alone
            self.generated = generated_key(self._hash, shared, self._challenge + reply.cval)
        if self.bidirectional:
            if keys.controller_key is None:
                raise ExchangeError(
                    FailureExplanation.FAILED, "the host demands the controller's secret, and none is configured"
                )
            if hmac.compare_digest(reply.cval, self._challenge):
                raise ExchangeError(FailureExplanation.FAILED, "the host sent this controller's own challenge back")
            self._response = controller_response(
                self._hash,
                keys.controller_key.transformed(self._subnqn),
                challenge=augmented_challenge(self._hash, reply.cval, shared),
                seqnum=reply.seqnum,
                t_id=self._t_id,
                sc_c=self._sc_c,
                **names,
            )
        self._end(Step.SUCCESS1)

    async def _shared(self, public: bytes) -> bytes | None:
        pair = self._pair
        if pair is None:
            if public:
                raise ExchangeError(FailureExplanation.INCORRECT_PAYLOAD, "a public value for the group null")
            return None
        try:
            shared: bytes = await self._in_thread(lambda: pair.shared(public))
        except ValueError as error:
            raise ExchangeError(FailureExplanation.INCORRECT_PAYLOAD, str(error)) from None
        return shared

    # -- what it sends -------------------------------------------------------------------------------------------------

    def message(self) -> bytes:
        """Return the message for Authentication Receive, and take the step that its sending is."""
        head = {"auth_type": MessageType.DHCHAP, "t_id": self._t_id, "hl": self._hash.size}
        if self.step is Step.CHALLENGE:
            public = b"" if self._pair is None else self._pair.public
            self.step = Step.REPLY
            return CHALLENGE.build(
                {
                    **head,
                    "auth_id": MessageId.CHALLENGE,
                    "hash_id": self._hash,
                    "group_id": self._group,
                    "dhvlen": len(public),
                    "seqnum": self._seqnum,
                    "cval": self._challenge,
                    "dhval": public,
                }
            )
        if self.step is Step.SUCCESS1:
            self.step = Step.SUCCESS2 if self.bidirectional else Step.DONE
            rval, self._response = self._response.ljust(self._hash.size, b"\0"), b""
            return SUCCESS1.build({**head, "auth_id": MessageId.SUCCESS1, "rvalid": self.bidirectional, "rval": rval})
        if self.step is not Step.FAILURE1:
            self._fail(
                ExchangeError(FailureExplanation.INCORRECT_MESSAGE, f"Authentication Receive where {self.step.value}")
            )
        self.step = Step.FAILED
        return build_failure(MessageId.FAILURE1, self._t_id, self._explanation)
