"""Authentication Send and Authentication Receive (NVMe Base, Fabrics Command Set)."""

from __future__ import annotations

from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.spec.auth import AUTH_MAX_BYTES, AUTH_SECP, AUTH_SPSP0, AUTH_SPSP1
from nvmeof.spec.connect import AUTHENTICATION
from nvmeof.spec.enums import FabricsType
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import CommandRow, Completion, Decoded, Direction, decoded
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.core.states import AUTHENTICATION_STATES, LIVE_STATES
from nvmeof.target.projection.authentication import QueueAuthentication


@dataclass(frozen=True, slots=True)
class AuthenticationFields:
    """SPSP0, SPSP1, SECP, and TL or AL in bytes."""

    spsp0: int
    spsp1: int
    secp: int
    length: int

    @classmethod
    def parse(cls, sqe: Sqe) -> AuthenticationFields:
        """Read CDW10 and CDW11 (NVMe Base, Authentication Send command and Authentication Receive command)."""
        return cls(sqe.cdw10 >> 8 & 0xFF, sqe.cdw10 >> 16 & 0xFF, sqe.cdw10 >> 24, sqe.cdw11)


def check_authentication(ctx: CommandContext, request: Decoded[AuthenticationFields]) -> None:
    """Check protocol and length. A queue whose host need not authenticate itself takes the messages of none."""
    fields = request.fields
    for name, wanted in (("secp", AUTH_SECP), ("spsp0", AUTH_SPSP0), ("spsp1", AUTH_SPSP1)):
        value = getattr(fields, name)
        if value != wanted:
            raise CommandError(
                Status.INVALID_FIELD,
                AUTHENTICATION.error_location(name),
                message=f"{name.upper()} is {value:02X}h where NVMe's authentication has {wanted:02X}h",
            )
    if not 0 < fields.length <= AUTH_MAX_BYTES:
        raise CommandError(
            Status.INVALID_FIELD,
            AUTHENTICATION.error_location("length"),
            message=f"an authentication message of {fields.length} bytes: 1 to {AUTH_MAX_BYTES} can be transferred",
        )
    if ctx.authentication is None:
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR,
            message="authentication on a queue that demands none: the host's NQN has no secret here",
        )


def _authentication(ctx: CommandContext) -> QueueAuthentication:
    """Return the queue's authentication. Raises `CommandError` while a message is being worked on."""
    authentication = ctx.authentication
    assert authentication is not None  # as checked
    if authentication.busy:
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR, message="an authentication command before the last one has completed"
        )
    return authentication


def _length(ctx: CommandContext, request: Decoded[AuthenticationFields]) -> int:
    return request.fields.length


async def auth_send(ctx: CommandContext, request: Decoded[AuthenticationFields], data: memoryview | None) -> Completion:
    """Execute Authentication Send. What is wrong with the message is told by the next Authentication Receive."""
    assert data is not None
    authentication = _authentication(ctx)
    await authentication.receive(bytes(data))
    return Completion(ends=authentication.ending)


def auth_receive(ctx: CommandContext, request: Decoded[AuthenticationFields], data: memoryview | None) -> Completion:
    """Execute Authentication Receive: the next message, with zeros up to the length that was asked for."""
    authentication = _authentication(ctx)
    length = request.fields.length
    message = authentication.message()
    if len(message) > length:
        raise CommandError(
            Status.INVALID_FIELD,
            AUTHENTICATION.error_location("length"),
            message=f"the authentication message has {len(message)} bytes, and {length} were asked for",
        )
    return Completion(data=message.ljust(length, b"\0"), ends=authentication.ending)


_SEND = CommandRow(
    opcode=FabricsType.AUTH_SEND,
    name="Authentication Send",
    handler=auth_send,
    decode=decoded(AuthenticationFields.parse),
    direction=Direction.HOST_TO_CONTROLLER,
    transfer_bytes=_length,
    check=check_authentication,
    states=LIVE_STATES,
    queue_states=AUTHENTICATION_STATES,
)
_RECEIVE = CommandRow(
    opcode=FabricsType.AUTH_RECEIVE,
    name="Authentication Receive",
    handler=auth_receive,
    decode=decoded(AuthenticationFields.parse),
    direction=Direction.CONTROLLER_TO_HOST,
    transfer_bytes=_length,
    check=check_authentication,
    states=LIVE_STATES,
    queue_states=AUTHENTICATION_STATES,
)

ROWS = Rows(fabrics_admin=(_SEND, _RECEIVE), fabrics_io=(_SEND, _RECEIVE))
