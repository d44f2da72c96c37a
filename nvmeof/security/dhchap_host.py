"""The host's side of DH-HMAC-CHAP: messages in, messages out, for one transaction on one queue."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Any

import construct as c

from nvmeof.security.dh_groups import KeyPair, usable_groups
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
    FAILURE,
    REPLY,
    SUCCESS1,
    SUCCESS2,
    DhGroupId,
    FailureExplanation,
    HashId,
    MessageId,
    MessageType,
    SecureChannel,
    build_failure,
    build_negotiate,
    explanation_text,
    message_kind,
)

_SEQUENCE = SequenceNumbers()
_FAILURES = frozenset({(MessageType.COMMON, MessageId.FAILURE1), (MessageType.COMMON, MessageId.FAILURE2)})


@dataclass(frozen=True, slots=True)
class HostCredentials:
    """What a host proves itself with, and expects of controllers: nvme-cli's ``--dhchap-secret`` and
    ``--dhchap-ctrl-secret``.

    With ``controller_key`` a controller that does not prove itself is refused. ``hashes`` and ``groups``: what is
    offered, in this order; no groups: all that can be used here, NULL first.
    """

    key: Secret
    controller_key: Secret | None = None
    hashes: tuple[HashId, ...] = tuple(HashId)
    groups: tuple[DhGroupId, ...] = ()

    @property
    def offered_groups(self) -> tuple[DhGroupId, ...]:
        """Return the groups that are offered."""
        return self.groups or usable_groups()


class HostExchange:
    """One transaction: send :meth:`negotiate`, give the answers to :meth:`reply` and then to :meth:`finish`.

    Both raise :class:`ExchangeError`; :attr:`farewell` is then the message to send, if there is one. ``concatenate``:
    have a TLS key made, which is :attr:`generated` in the end.
    """

    def __init__(
        self,
        credentials: HostCredentials,
        *,
        t_id: int,
        hostnqn: str,
        subnqn: str,
        in_thread: InThread,
        concatenate: bool = False,
    ) -> None:
        self._credentials = credentials
        self._sc_c = SecureChannel.NEW_TLS_PSK if concatenate else SecureChannel.NONE
        self._hashes, self._groups = credentials.hashes, credentials.offered_groups
        if concatenate:  # a key needs a shared secret, and an identity for its hash function
            self._hashes = tuple(each for each in self._hashes if each in SIZES)
            self._groups = tuple(filter(None, self._groups))
            if not self._hashes or not self._groups:
                raise ExchangeError(
                    FailureExplanation.DHGROUP_NOT_USABLE,
                    "a TLS key needs SHA-256 or SHA-384 and a Diffie-Hellman group: pip install 'nvmeof-mptcp[auth]'",
                )
        self.generated: TlsKey | None = None
        self._t_id = t_id
        self._names = {"hostnqn": hostnqn, "subnqn": subnqn}
        self._in_thread = in_thread
        self._wanted: bytes | None = None
        self.farewell: bytes | None = None
        """Failure2, once something was wrong with what the controller sent."""

    def negotiate(self) -> bytes:
        """Return AUTH_Negotiate."""
        return build_negotiate(self._t_id, self._hashes, self._groups, self._sc_c)

    def _parsed(self, message: bytes, wanted: MessageId, layout: Any) -> Any:
        """Return a message's fields. Raises `ExchangeError` for Failure1, and for any message but the wanted one."""
        try:
            auth_type, auth_id, t_id = message_kind(message)
            if (auth_type, auth_id) in _FAILURES:
                failure: Any = FAILURE.parse(message)
                raise ExchangeError(
                    FailureExplanation.FAILED, f"the controller refuses it: {explanation_text(failure.explanation)}"
                )
            if (auth_type, auth_id) != (MessageType.DHCHAP, wanted):
                raise self._wrong(FailureExplanation.INCORRECT_MESSAGE, f"message {auth_type:02X}h {auth_id:02X}h came")
            if t_id != self._t_id:
                raise self._wrong(FailureExplanation.INCORRECT_PAYLOAD, f"transaction {t_id} in place of {self._t_id}")
            return layout.parse(message)
        except c.ConstructError:
            raise self._wrong(FailureExplanation.INCORRECT_PAYLOAD, "a message that is too short came") from None

    def _wrong(self, explanation: FailureExplanation, message: str = "") -> ExchangeError:
        self.farewell = build_failure(MessageId.FAILURE2, self._t_id, explanation)
        return ExchangeError(explanation, message)

    async def reply(self, message: bytes) -> bytes:
        """Return Reply to the controller's Challenge."""
        challenge = self._parsed(message, MessageId.CHALLENGE, CHALLENGE)
        credentials = self._credentials
        if challenge.hash_id not in self._hashes:
            raise self._wrong(FailureExplanation.HASH_NOT_USABLE, f"hash function {challenge.hash_id} was not offered")
        if challenge.group_id not in self._groups:
            raise self._wrong(FailureExplanation.DHGROUP_NOT_USABLE, f"group {challenge.group_id} was not offered")
        hash_id, group = HashId(challenge.hash_id), DhGroupId(challenge.group_id)
        if challenge.hl != hash_id.size or bool(challenge.dhvlen) != bool(group):
            raise self._wrong(
                FailureExplanation.INCORRECT_PAYLOAD, f"{challenge.hl} and {challenge.dhvlen} bytes in the challenge"
            )
        public, shared = await self._exchange(group, challenge.dhval)
        t_id, sc_c, names = self._t_id, self._sc_c, self._names
        response = host_response(
            hash_id,
            credentials.key.transformed(names["hostnqn"]),
            challenge=augmented_challenge(hash_id, challenge.cval, shared),
            seqnum=challenge.seqnum,
            t_id=t_id,
            sc_c=sc_c,
            **names,
        )
        own_challenge, seqnum, wanted = bytes(hash_id.size), 0, None
        if credentials.controller_key is not None:
            own_challenge, seqnum = secrets.token_bytes(hash_id.size), _SEQUENCE.next()
            wanted = controller_response(
                hash_id,
                credentials.controller_key.transformed(names["subnqn"]),
                challenge=augmented_challenge(hash_id, own_challenge, shared),
                seqnum=seqnum,
                t_id=t_id,
                sc_c=sc_c,
                **names,
            )
        elif sc_c:
            own_challenge = secrets.token_bytes(hash_id.size)
        if sc_c and shared is not None:
            self.generated = generated_key(hash_id, shared, challenge.cval + own_challenge)
        self._wanted = wanted
        return REPLY.build(
            {
                "auth_type": MessageType.DHCHAP,
                "auth_id": MessageId.REPLY,
                "t_id": t_id,
                "hl": hash_id.size,
                "cvalid": wanted is not None or bool(sc_c),
                "dhvlen": len(public),
                "seqnum": seqnum,
                "rval": response,
                "cval": own_challenge,
                "dhval": public,
            }
        )

    async def _exchange(self, group: DhGroupId, peer_public: bytes) -> tuple[bytes, bytes | None]:
        if not group:
            return b"", None

        def compute() -> tuple[bytes, bytes]:
            pair = KeyPair(group)
            return pair.public, pair.shared(peer_public)

        try:
            result: tuple[bytes, bytes] = await self._in_thread(compute)
        except ValueError as error:
            raise self._wrong(FailureExplanation.INCORRECT_PAYLOAD, str(error)) from None
        return result

    def finish(self, message: bytes) -> bytes | None:
        """Take Success1; return Success2 where the controller had to prove itself, else None."""
        success = self._parsed(message, MessageId.SUCCESS1, SUCCESS1)
        if self._wanted is None:
            return None
        if not success.rvalid or not hmac.compare_digest(self._wanted, success.rval):
            raise self._wrong(FailureExplanation.FAILED, "the controller could not prove that it has its secret")
        return SUCCESS2.build({"auth_type": MessageType.DHCHAP, "auth_id": MessageId.SUCCESS2, "t_id": self._t_id})
