"""In-band authentication of an association's queues: where a controller demands it after Connect, and on request."""

from __future__ import annotations

import contextlib
import logging

from nvmeof.errors import AuthenticationError, NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.association import Association
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue
from nvmeof.host.requests import RequestOptions
from nvmeof.runtime import Runtime
from nvmeof.security.dhchap import ExchangeError
from nvmeof.security.dhchap_host import HostExchange
from nvmeof.security.tls.key import TlsKey
from nvmeof.spec.auth import AUTH_MAX_BYTES
from nvmeof.spec.connect import Authreq

log = logging.getLogger("nvmeof.host")


class HostAuthentication:
    """Authenticates the queues of one association with the credentials of its options (``options.dhchap``)."""

    def __init__(self, association: Association, options: ConnectOptions, runtime: Runtime) -> None:
        self._association = association
        self._options = options
        self._runtime = runtime
        self._transactions = 0
        self.concatenate = False
        """Set: the next transaction makes a TLS key, which is `generated` then."""
        self.generated: TlsKey | None = None

    def _cannot(self, why: str) -> AuthenticationError:
        return AuthenticationError(f"{self._options.subnqn}: {why}")

    def check(self, authreq: int) -> bool:
        """Return whether a successful Connect demands authentication.

        ``authreq``: the bits of DW0 above the CNTLID, in place. Raises :class:`AuthenticationError` for what this host
        cannot do, and where it was given no secret.
        """
        if authreq & Authreq.ASCR and not self.concatenate:
            raise self._cannot("the subsystem demands TLS: connect with its key (--tls-key), or with --concat")
        if not authreq & (Authreq.ATR | Authreq.ASCR):
            return False
        if self._options.dhchap is None:
            raise self._cannot("the subsystem demands authentication: give the host's secret with --dhchap-secret")
        return True

    def check_proof(self) -> None:
        """Check that an admin queue which demands no authentication needs none for the host either.

        Where the host was given the controller's secret, the controller has to prove that it has it: whoever answers
        in its place would demand nothing. A pre-shared key of TLS is a proof too; a discovery controller has no secret.
        Raises :class:`AuthenticationError`.
        """
        credentials, options = self._options.dhchap, self._options
        if credentials is None or credentials.controller_key is None or options.tls is not None or options.discovery:
            return
        raise self._cannot(
            "the controller proves nothing, since it demands no authentication: give this host a key there, or "
            "connect without the controller's secret (--dhchap-ctrl-secret)"
        )

    async def authenticate(self, queue: Queue) -> None:
        """Run one transaction on a connected queue. Raises :class:`AuthenticationError`, one sentence."""
        credentials, options = self._options.dhchap, self._options
        if credentials is None:
            raise self._cannot("there is no secret to authenticate with: connect with dhchap=")
        exchange: HostExchange | None = None
        try:
            exchange = HostExchange(
                credentials,
                t_id=self._transactions & 0xFFFF,
                hostnqn=options.hostnqn,
                subnqn=options.subnqn,
                in_thread=self._runtime.in_thread,
                concatenate=self.concatenate,
            )
            self._transactions += 1
            await self._send(queue, exchange.negotiate())
            await self._send(queue, await exchange.reply(await self._receive(queue)))
            last = exchange.finish(await self._receive(queue))
        except ExchangeError as error:
            if exchange is not None and exchange.farewell is not None:
                with contextlib.suppress(NvmeofError):  # nvmet closes the connection in place of an answer
                    await self._send(queue, exchange.farewell)
            raise self._cannot(f"authentication of queue {queue.qid} failed: {error}") from None
        if last is not None:
            await self._send(queue, last)
        self.generated = exchange.generated
        log.info(
            "%s: queue %d authenticated%s", options.subnqn, queue.qid, "" if last is None else " in both directions"
        )

    def _options_of_command(self) -> RequestOptions:
        return RequestOptions(timeout=self._options.connect_timeout, abortable=False)

    async def _send(self, queue: Queue, message: bytes) -> None:
        sqe = sqe_builders.auth_send(len(message))
        await self._association.execute(queue, sqe, data_out=message, options=self._options_of_command())

    async def _receive(self, queue: Queue) -> bytes:
        data = bytearray(AUTH_MAX_BYTES)
        sqe = sqe_builders.auth_receive(len(data))
        await self._association.execute(queue, sqe, data_in=memoryview(data), options=self._options_of_command())
        return bytes(data)
