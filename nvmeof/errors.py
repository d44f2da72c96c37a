"""The exceptions of this package; each carries what goes on the wire.

::

    NvmeofError
    ├── LocalProtocolError          our own caller misused the API
    ├── PduError                    the peer broke the transport protocol: becomes a TermReq
    ├── RemoteTermination           the peer sent a TermReq
    ├── CommandError                a command is refused: becomes a CQE, and an Error log entry
    ├── NvmeStatusError             host: a command completed with a status other than success
    │   └── CompareFailed           a Compare and Write found other data: nothing was written
    ├── TransportError              a connection could not be made, or was lost
    │   ├── ConnectTimeout          (also a TimeoutError)
    │   ├── AuthenticationError     one side could not prove who it is
    │   └── ConnectionLost          (also a ConnectionError)
    │       ├── CommandNotExecuted  the command was not sent: it has had no effect
    │       └── OutcomeUnknown      the command was sent and not answered: it may have been executed, or will be
    └── ConfigurationError          a bad option (also a ValueError)

Messages are one sentence for a person. FES and FEI are those of the NVMe/TCP Transport specification (H2CTermReq and
C2HTermReq); status values are ``SCT << 8 | SC``, as in :class:`nvmeof.spec.status.Status`.
"""

from __future__ import annotations

NO_ERROR_LOCATION = 0xFFFF
"""Parameter Error Location of an error that belongs to no field (NVMe Base, Error Information log)."""


class NvmeofError(Exception):
    """The root of all errors of this package. Catch it to handle all of them::

        try:
            data = await namespace.read(0, 8)
        except NvmeofError as error:
            print(f"read failed: {error}")

    The message is one sentence for a person.
    """


class LocalProtocolError(NvmeofError):
    """A call that the state does not allow, or an argument that cannot be encoded: a bug of the calling program.

    Raised before anything is sent, for instance by ``namespace.write(0, b"abc")``: no whole number of blocks.
    """


class PduError(NvmeofError):
    """The peer broke the transport protocol.

    ``fes``: fatal error status. ``fei``: fatal error information, the byte offset of the bad field for an invalid
    header field, the digest received for a header digest error. Programs meet it inside a ``ProtocolFailure``, the last
    event of a connection::

        if isinstance(event, ProtocolFailure):
            print(f"FES {event.error.fes:#04x}, FEI {event.error.fei:#x}: {event.error}")
    """

    def __init__(self, fes: int, fei: int = 0, message: str = "") -> None:
        super().__init__(message or f"fatal transport error {fes:#04x} (information {fei:#x})")
        self.fes = fes
        self.fei = fei


class RemoteTermination(NvmeofError):
    """The peer ended the connection with a TermReq that carried this ``fes`` and ``fei``.

    At the host it is the cause of the association's end::

        if controller.error is not None and isinstance(controller.error.__cause__, RemoteTermination):
            print(f"the controller says FES {controller.error.__cause__.fes:#04x}")
    """

    def __init__(self, fes: int, fei: int = 0, message: str = "") -> None:
        super().__init__(message or f"the peer terminated the connection: fatal error status {fes:#04x}, {fei:#x}")
        self.fes = fes
        self.fei = fei


class CommandError(NvmeofError):
    """A command that a controller refuses.

    ``status``: SCT << 8 | SC. ``error_location``: byte | bit << 8 of the field at fault, 0xFFFF for none.
    ``dnr``: a retry would fail too. ``dw0``: completion dword 0 (Connect's IPO and IATTR).
    ``command_specific``: what the Error Information log says of it beside. A handler of a target raises it::

        if command.lsi != ENDURANCE_GROUP_ID:
            raise CommandError(Status.INVALID_FIELD, SQE.error_location("cdw11", 16), message="no such group")
    """

    def __init__(
        self,
        status: int,
        error_location: int = NO_ERROR_LOCATION,
        *,
        dnr: bool = True,
        message: str = "",
        dw0: int = 0,
        command_specific: int = 0,
    ) -> None:
        super().__init__(message or f"status {int(status):#05x}")
        self.status = status
        self.error_location = error_location
        self.dnr = dnr
        self.dw0 = dw0
        self.command_specific = command_specific


class NvmeStatusError(NvmeofError):
    """A command completed with a status other than success.

    ``status``: SCT << 8 | SC, comparable with :class:`nvmeof.spec.status.Status`. ``dnr``: Do Not Retry, a retry would
    fail too. ``dw0``: completion dword 0. The message has the name of the command and of the status. ::

        try:
            await namespace.write(0, bytes(4096))
        except NvmeStatusError as error:
            if error.status != Status.NAMESPACE_WRITE_PROTECTED:
                raise

    Made by :func:`nvmeof.spec.status.status_error`.
    """

    def __init__(self, status: int, message: str = "", *, dnr: bool = False, dw0: int = 0) -> None:
        super().__init__(message or f"the command failed with status {int(status):#05x}")
        self.status = status
        self.dnr = dnr
        self.dw0 = dw0


class CompareFailed(NvmeStatusError):
    """The blocks hold other data than a Compare and Write was to find: it has written nothing (Compare Failure, 285h).

    ::

        try:
            await namespace.compare_and_write(0, old, new)
        except CompareFailed:
            old = await namespace.read(0, 8)  # another host was first: decide again
    """


class TransportError(NvmeofError):
    """A connection or listener could not be made, or was lost. The message has the address and the reason.

    Raised by :func:`nvmeof.connect` and ``Target.start()``; ``__cause__`` is the :class:`OSError`, if there is one. ::

        try:
            controller = await nvmeof.connect("192.0.2.1", subnqn=NQN)
        except TransportError as error:
            print(error, error.__cause__ and error.__cause__.errno)
    """


class ConnectTimeout(TransportError, TimeoutError):
    """The peer did not answer within ``connect_timeout`` (seconds). It is a :class:`TimeoutError` too. ::

    try:
        controller = await nvmeof.connect("192.0.2.1", subnqn=NQN, connect_timeout=2)
    except TimeoutError:
        print("no target there")
    """


class AuthenticationError(TransportError):
    """The host or the controller could not prove who it is, or the controller demands a proof and there is no secret.

    A retry with the same secrets would fail too: reconnecting ends with it. ::

        try:
            controller = await nvmeof.connect("192.0.2.1", subnqn=nqn, dhchap=HostCredentials(secret))
        except AuthenticationError as error:
            print(f"wrong secret? {error}")
    """


class ConnectionLost(TransportError, ConnectionError):
    """An established connection was lost. It is a :class:`ConnectionError` too.

    A command in progress fails with one of its subclasses: :class:`CommandNotExecuted`, which may be sent again over
    another connection, or :class:`OutcomeUnknown`. ::

        try:
            await namespace.flush()
        except ConnectionLost as error:
            print(f"connect again: {error}")
    """


class CommandNotExecuted(ConnectionLost):
    """A command did not reach the controller: it was not sent, and has had and will have no effect.

    Sending it again, over any connection, is always safe. ``__cause__`` is why the connection ended. ::

        try:
            await old.write(0, data)
        except CommandNotExecuted:
            await other.write(0, data)  # the same namespace by another controller
    """


class OutcomeUnknown(ConnectionLost):
    """A command was sent, and the connection ended before its completion came.

    It may have been executed, or not, or it may still be executed until the controller has quiesced. ``__cause__`` is
    why the connection ended. :mod:`nvmeof.host.replay` has the rules of what may be sent again, and when. ::

        try:
            await namespace.write(0, data)
        except OutcomeUnknown:
            ...  # read block 0 once the controller has quiesced, then decide
    """


class ConfigurationError(NvmeofError, ValueError):
    """An option or configuration value that cannot be used. It is a :class:`ValueError` too.

    The message says what is wrong, and then what to do. Raised before anything is sent or changed. ::

        try:
            target = Target(namespaces=[Ramdisk(text)])
        except ConfigurationError as error:
            parser.error(str(error))
    """
