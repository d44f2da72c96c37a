"""The part of a queue connection that both roles share: the receive buffer, framing, handshake, ending.

Must not know which role it has: what differs is a class variable or an abstract method of :class:`Engine`, and
:class:`~nvmeof.protocol.host.HostConnection` and :class:`~nvmeof.protocol.target.TargetConnection` have the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ..errors import LocalProtocolError, PduError
from ..pdu.digest import crc32c
from ..pdu.framer import Framing, check_first_bytes, check_header, rule_of
from ..pdu.header import CH, CH_BYTES, DIGEST_BYTES, FLAGS_OFFSET, Flags, PduType
from ..pdu.termination import TERM_REQ, TERM_REQ_BYTES, Fes, term_req
from ..wire import Buffer
from .config import ConnectionConfig, Tap
from .encoder import Encoder
from .events import Deviation, Event, Negotiated, PeerClosed, ProtocolFailure, Terminated
from .output import Output
from .states import ENDED, RECEIVED, TRANSITIONS, Effect, Input, State
from .transfers import ALWAYS, BufferValidity

LARGE_BYTES: Final = 32 * 1024
"""A command with this much data or more is expected to fill several receives. While there is one, payloads are received
in place and the receive window is small; else the receive buffer takes several PDUs at once, and a copy is cheaper."""
SMALL_WINDOW_BYTES: Final = 512
CAPSULE_OVERHEAD_BYTES: Final = 512
"""Room for a capsule's header, its padding and its digests, beside its data."""
_TARGET_READY: Final = State.TARGET_READY
_HOST_READY: Final = State.HOST_READY
_TERMINATING: Final = State.TERMINATING


def _unknown() -> int:
    return 0


class Engine(ABC):
    """Base of both roles. With slots an attribute costs less than in a dictionary, from some thirty of them on."""

    __slots__ = (
        "_buffer",
        "_departure",
        "_deviation_told",
        "_end",
        "_framing",
        "_in_place",
        "_known_bytes",
        "_payload",
        "_payload_crc",
        "_payload_live",
        "_payload_owner",
        "_payload_position",
        "_payload_unit",
        "_pdu_start",
        "_small_window",
        "_start",
        "behind",
        "config",
        "encoder",
        "incapsule_bytes",
        "large_expected",
        "make_encoder",
        "out",
        "parameters",
        "state",
        "tap",
    )
    first_state: ClassVar[State]
    term_req_type: ClassVar[PduType]
    """The type of PDU with which this end terminates a connection."""

    def __init__(self, config: ConnectionConfig, receive_buffer: bytearray | None = None) -> None:
        self.config = config
        self.state = self.first_state
        self.parameters: Negotiated | None = None
        self.make_encoder: Callable[[bool, bool, int], Encoder] = Encoder
        """Makes the encoder once the handshake has settled header digest, data digest and alignment (bytes)."""
        self.encoder = Encoder()
        self.tap: Tap | None = None
        self.incapsule_bytes = config.incapsule_bytes
        self.out = Output()
        """The output that waits to be sent. Read-only for the driver, which reads `pending_bytes` often."""
        self._framing = Framing(max_data_bytes=self.incapsule_bytes)
        size = max(config.receive_buffer_bytes, self.incapsule_bytes + CAPSULE_OVERHEAD_BYTES, 1024)
        buffer = bytearray(-(-size // 8) * 8) if receive_buffer is None else receive_buffer
        if len(buffer) % 8 or len(buffer) < max(self.incapsule_bytes + CAPSULE_OVERHEAD_BYTES, 1024):
            raise LocalProtocolError(f"a receive buffer of {len(buffer)} bytes: not a multiple of 8, or too small")
        self._buffer = memoryview(buffer)
        self._departure = ""  # from the specification, found in a data PDU's own fields
        self._deviation_told = False
        self._start = 0
        self._end = 0
        self._pdu_start = 0
        self.large_expected = 0
        """Commands whose data, `LARGE_BYTES` or more, has not come whole. Read-only for the driver."""
        # The payload that is being received, and what it belongs to. Owner without payload: its digest is due.
        self._payload: memoryview | None = None
        self._payload_position = 0
        self._payload_owner: Any = None
        self._payload_live: BufferValidity = ALWAYS  # with units: for how long
        self._payload_crc = 0
        self._payload_unit = 0  # live memory: only so many bytes at a time may change, 0 for any number
        self._in_place: memoryview | None = None
        self._known_bytes = 0  # so many, or more, are there to be received
        self._small_window = self._buffer[:SMALL_WINDOW_BYTES]
        self.behind: memoryview | None = None
        """After ``next_buffer``: where bytes go that the same receive may bring when that buffer is full."""

    # -- bytes in ------------------------------------------------------------------------------------------------

    def next_buffer(self, available: Callable[[], int] = _unknown) -> memoryview:
        """Return the buffer for the next received bytes: the receive buffer, or the rest of a payload's own buffer.

        ``available`` returns the number of bytes that can be received now. It is called when a payload goes straight to
        live memory, which may change only by whole units, so that no receive ends inside one. When the rest of a
        payload is given, ``behind`` is where what comes after it may go in the same receive.
        """
        self.behind = None
        payload = self._payload
        if payload is not None and self.large_expected:
            unit = self._payload_unit
            if unit and not self._payload_live.valid:
                payload, unit = self._give_up_live(payload), 0
            place = self._place(payload, unit, available)
            if place is not None:
                self._in_place = place
                return place
        self._in_place = None
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = 0
            if self.large_expected and self._payload is None:
                return self._buffer[:SMALL_WINDOW_BYTES]
            return self._buffer
        if start:
            # The rest of a PDU (or several) moves to the front, so that it can always be completed.
            rest = end - start
            self._buffer[:rest] = bytes(self._buffer[start:end])
            self._start, self._end = 0, rest
            end = rest
        return self._buffer[end:]

    def _place(self, payload: memoryview, unit: int, available: Callable[[], int]) -> memoryview | None:
        """Return the part of a payload's own buffer for the next bytes; None when the receive buffer has to be used."""
        position, start, end = self._payload_position, self._start, self._end
        rest = most = len(payload) - position
        if unit:
            # The rest of the receive buffer is less than a unit; with its received bytes it makes whole units.
            left = end - start
            if left + self._known_bytes < most:
                self._known_bytes = available()
                here = left + self._known_bytes
                if here < most:
                    most = here - (position + here) % unit
            if most <= left:
                return None
            if left:
                payload[position : position + left] = self._buffer[start:end]
                self._payload_position = position = position + left
        elif start != end:
            return None
        if most != rest:
            self._start = end
            return payload[position : position + most - left]
        self._start = self._end = 0
        self.behind = self._small_window if self.large_expected > 1 else self._buffer
        return payload[position:] if position else payload

    def bytes_received(self, n: int, now: float) -> list[Event]:
        """Parse ``n`` bytes that were put into ``next_buffer()`` (and ``behind``, once that was full); return the
        events. Never raises for errors of the peer.
        """
        events: list[Event] = []
        if self._known_bytes > 0:
            self._known_bytes -= n
        place = self._in_place
        tap = self.tap
        if place is not None:
            self._in_place = None
            more = n - len(place)
            if self._payload is not None:  # else the connection was terminated in between
                if more < 0:
                    place = place[:n]
                if tap is not None:
                    tap.received(place)
                    if more <= 0:
                        tap.passed()
                if self.behind is None or more < 0 or self._framing.data_digest:
                    self._payload_advance(place, events)
                else:  # nothing is left to look at: it is whole
                    self._payload = None
                    owner, self._payload_owner = self._payload_owner, None
                    self._payload_done(owner, True, events)
            if more <= 0:
                return events
            n = more
        end = self._end
        self._end = end + n
        if tap is not None:
            tap.received(self._buffer[end : end + n])
            tap.passed()
        self._parse(events)
        return events

    def eof_received(self) -> list[Event]:
        """Note that the peer has closed its side; return the events."""
        events: list[Event] = []
        if self._apply(Input.EOF) is Effect.REPORT_EOF:
            events.append(PeerClosed())
        return events

    def _parse(self, events: list[Event]) -> None:
        try:
            while (start := self._start) < self._end:
                state = self.state
                if (
                    (state is _TARGET_READY or state is _HOST_READY)
                    and self._payload_owner is None
                    and self._end - start >= CH_BYTES
                ):
                    self._pdu_start = start
                    if self._take_run(events):
                        if self._payload is not None and self._end - self._start < self._payload_unit:
                            return  # what is left of less than a unit of live memory waits
                        continue
                if state in ENDED:
                    self._start = self._end
                elif not self._parse_one(events):
                    return
        except PduError as error:
            self._fail(error, events)
            self._start = self._end

    def _parse_one(self, events: list[Event]) -> bool:
        """Take one PDU, or the received part of a payload; return False when more bytes are needed."""
        start = self._pdu_start = self._start
        available = self._end - start
        if self._payload_owner is not None:
            return self._parse_payload(start, available, events)
        if self.parameters is None and available > FLAGS_OFFSET + 1:  # a TLS alert is shorter than a common header
            check_first_bytes(self._buffer[start], self._buffer[start + FLAGS_OFFSET])
        if available < CH_BYTES:
            return False
        header = CH.struct.unpack_from(self._buffer, start)
        pdu_type, flags, hlen, pdo, plen = header
        happened = RECEIVED.get(pdu_type)
        if happened is None:
            rule_of(pdu_type)
        transition = TRANSITIONS[self.state].get(happened) if happened is not None else None
        if transition is None:
            raise PduError(Fes.PDU_SEQUENCE_ERROR, 0, f"{PduType(pdu_type).name} received in state {self.state.value}")
        if self._framing.header_digest and flags & Flags.HDGSTF and pdu_type > PduType.C2H_TERM_REQ:
            # First of all: what a broken header says is not to be believed. Its length is the type's.
            true_hlen = rule_of(pdu_type).hlen
            if available < true_hlen + DIGEST_BYTES:
                return False
            self._check_header_digest(start, true_hlen)
        data_offset, data_length = check_header(pdu_type, flags, hlen, pdo, plen, self._framing)
        if not pdo and data_length and pdu_type > PduType.C2H_TERM_REQ and not self._deviation_told:
            self._deviation_told = True
            name = PduType(pdu_type).name
            events.append(Deviation(f"{name} with data and PDO 0: its data is taken from byte {data_offset} on"))
        effect = transition[0]
        in_place = effect is Effect.RECEIVE_DATA
        needed = data_offset if in_place else plen
        if available < needed:
            return False
        self._start = start + needed
        pdu = self._buffer[start : start + needed]
        if in_place:
            self._payload_unit = 0
            self._payload_owner, self._payload = self._receive_data(pdu, data_length)
            if self._departure and not self._deviation_told:
                self._deviation_told = True
                events.append(Deviation(self._departure))
            self._payload_position = 0
            self._payload_crc = 0
            return True
        # An effect that finds the PDU wrong raises, and then the state stays.
        self._receive(effect, pdu, data_offset, data_length, events)
        self.state = transition[1]
        if self.state is State.CLOSED:
            self._forget()
        return True

    def _check_header_digest(self, start: int, hlen: int) -> None:
        header = self._buffer[start : start + hlen]
        received = int.from_bytes(self._buffer[start + hlen : start + hlen + DIGEST_BYTES], "little")
        if crc32c(header, 0) != received:
            raise PduError(Fes.HEADER_DIGEST_ERROR, received, "the header digest is not that of the header")

    # -- payloads ------------------------------------------------------------------------------------------------

    def _parse_payload(self, start: int, available: int, events: list[Event]) -> bool:
        """Take the received part of the payload, or its digest; return False when more bytes are needed."""
        payload = self._payload
        if payload is not None:
            if self._payload_unit and not self._payload_live.valid:
                payload = self._give_up_live(payload)
            position = self._payload_position
            here = len(payload) - position
            if available < here:
                here = available - (position + available) % (self._payload_unit or 1)
                if here <= 0:
                    return False
            data = payload[position : position + here]
            data[:] = self._buffer[start : start + here]
            self._start = start + here
            self._payload_advance(data, events)
            return True
        if available < DIGEST_BYTES:
            return False
        self._start = start + DIGEST_BYTES
        digest = int.from_bytes(self._buffer[start : start + DIGEST_BYTES], "little")
        owner, self._payload_owner = self._payload_owner, None
        self._payload_done(owner, digest == self._payload_crc, events)
        return True

    def _payload_advance(self, data: memoryview, events: list[Event]) -> None:
        """Advance a payload by ``data``, which is in its buffer."""
        payload = self._payload
        assert payload is not None
        digest = self._framing.data_digest
        if digest:
            self._payload_crc = crc32c(data, self._payload_crc)
        self._payload_position += len(data)
        if self._payload_position < len(payload):
            return
        self._payload = None
        if not digest:  # else the owner stays: its digest is due
            owner, self._payload_owner = self._payload_owner, None
            self._payload_done(owner, True, events)

    def _give_up_live(self, payload: memoryview) -> memoryview:
        """Go on in a private buffer, without units: the memory was revoked during the transfer. Returns the buffer."""
        private: memoryview = self._payload_owner.collect_rest(len(payload), self._payload_position)
        self._payload = private
        self._payload_unit = 0
        return private

    # -- what the roles do ---------------------------------------------------------------------------------------

    @abstractmethod
    def _take_run(self, events: list[Event]) -> bool:
        """Take a run of the role's most frequent PDU at once; False when there is none at the front."""

    @abstractmethod
    def _receive_data(self, pdu: memoryview, length: int) -> tuple[Any, memoryview]:
        """Check a data PDU's header; returns its owner and where its payload goes.

        The owner of a payload with units has a method ``collect_rest``.
        """

    @abstractmethod
    def _payload_done(self, owner: Any, ok: bool, events: list[Event]) -> None:
        """Account for a payload that has arrived in full; ``ok``: its data digest was right."""

    @abstractmethod
    def _receive_pdu(self, effect: Effect, pdu: memoryview, offset: int, length: int, events: list[Event]) -> None:
        """Do the effect of a PDU that only this role receives; data are ``length`` bytes from ``offset`` on."""

    def _receive(self, effect: Effect, pdu: memoryview, offset: int, length: int, events: list[Event]) -> None:
        """Do a transition's effect for a PDU that is whole in the receive buffer."""
        if effect is Effect.RECEIVE_TERM_REQ:
            request = TERM_REQ.unpack_from(pdu)
            events.append(Terminated(request.fes, request.fei, bytes(pdu[TERM_REQ_BYTES:])))
        elif effect is not Effect.NOTHING:
            self._receive_pdu(effect, pdu, offset, length, events)

    def _settle(self, parameters: Negotiated) -> None:
        """Apply ``parameters`` after the handshake: PDUs have their digests and alignments from here on."""
        self.parameters = parameters
        self.encoder = self.make_encoder(parameters.header_digest, parameters.data_digest, parameters.send_pda_bytes)
        self.out.data_digest = parameters.data_digest
        self._reframe()

    def _reframe(self) -> None:
        p = self.parameters
        if p is None:
            self._framing = Framing(max_data_bytes=self.incapsule_bytes)
        else:
            self._framing = Framing(p.header_digest, p.data_digest, p.receive_pda_bytes, self.incapsule_bytes)

    def set_incapsule(self, incapsule_bytes: int) -> None:
        """Change the most data that a command capsule may bring (ioccsz is known only after Identify)."""
        self.incapsule_bytes = incapsule_bytes
        self._reframe()

    # -- endings -------------------------------------------------------------------------------------------------

    def _fail(self, error: PduError, events: list[Event]) -> None:
        header = self._buffer[self._pdu_start : self._end]
        size = max(header[2], CH_BYTES)
        self._apply(Input.PEER_ERROR)
        self._queue_term_req(error.fes, error.fei, bytes(header[:size]))
        events.append(ProtocolFailure(error))

    def _apply(self, happened: Input) -> Effect:
        """Go on to the next state; returns the effect, which the caller has to see to."""
        transition = TRANSITIONS[self.state].get(happened)
        if transition is None:
            raise LocalProtocolError(f"{happened.value} in state {self.state.value}")
        effect, self.state = transition
        if self.state is State.CLOSED:
            self._forget()
        return effect

    def _forget(self) -> None:
        """Release all buffers at the end; none is touched from here on."""
        self._payload = None
        self._payload_owner = None
        self.large_expected = 0
        self.out.drop()

    def _queue_term_req(self, fes: int, fei: int, header: Buffer) -> None:
        self._payload = None
        self._payload_owner = None
        self.out.add_last(term_req(self.term_req_type, fes, fei, header))

    def terminate(self, fes: int, fei: int = 0, header: Buffer = b"") -> None:
        """End the connection with a TermReq, after what is queued; nothing else is sent after it.

        Nothing happens when one is queued already. Raises LocalProtocolError when the connection is closed.
        """
        if self._apply(Input.TERMINATE) is Effect.SEND_TERM_REQ:
            self._queue_term_req(fes, fei, header)

    def close(self) -> None:
        """Forget everything; buffers and leases are free again."""
        self._apply(Input.CLOSE)

    # -- bytes out -----------------------------------------------------------------------------------------------

    def send_raw(self, data: Buffer) -> None:
        """Queue bytes without any check, for fault injection; dropped after a TermReq."""
        self.out.add(bytes(data))

    def data_to_send(self) -> list[Buffer]:
        """Return the buffers for one ``sendmsg``, which must follow at once; then call ``bytes_sent`` with its
        result."""
        return self.out.take()

    def bytes_sent(self, n: int) -> None:
        """Remove ``n`` bytes, which the socket took, from the output."""
        if self.tap is not None:
            self._tap_sent(n)
        self.out.taken(n)
        if self.state is _TERMINATING and not self.out.pending_bytes:
            self._apply(Input.FLUSHED)

    def _tap_sent(self, n: int) -> None:
        assert self.tap is not None
        for buffer in self.out.ready:
            if n <= 0:
                break
            self.tap.sent(memoryview(buffer)[:n])
            n -= len(buffer)
        self.tap.passed()

    @property
    def want_write(self) -> bool:
        """Whether there is something to send."""
        return self.out.pending_bytes > 0

    @property
    def want_read(self) -> bool:
        """False at the end; for a target also while the host takes nothing of what it asked for.

        A host goes on reading: what it queues is bounded by its own commands, and two ends that both wait for the
        other to read would wait for ever.
        """
        return self.state is not State.CLOSED

    @property
    def backlog_bytes(self) -> int:
        """How much is queued and not yet taken by the socket."""
        return self.out.pending_bytes
