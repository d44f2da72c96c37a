"""The target's side of a queue connection: commands in, R2Ts, data and completions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, ClassVar, Final

from ..errors import LocalProtocolError, PduError
from ..pdu.capsule import CAPSULE_CMD_BYTES, command_header
from ..pdu.digest import crc32c
from ..pdu.handshake import IC_BYTES, ICREQ, ICRESP, MAX_PDA, PFV_1_0, Dgst, IcResp, pda_from_bytes, pda_to_bytes
from ..pdu.header import CH, CH_BYTES, DIGEST_BYTES, Flags, PduType, align
from ..pdu.termination import Fes
from ..pdu.transfer import H2C_DATA, TRANSFER_BYTES
from ..wire import Buffer
from .config import BACKLOG_BUFFERS, BACKLOG_BYTES, ConnectionConfig
from .engine import CAPSULE_OVERHEAD_BYTES, LARGE_BYTES, Engine
from .events import CommandBatch, CommandData, CommandDataRun, Event, Negotiated, Ready
from .states import ENDED, Effect, State
from .transfers import ALWAYS, BufferValidity, R2tPart, R2tTable, R2tTransfer, ReadGroup

_WORD: Final = Struct("<Q")
_WORD_BYTES: Final = 8
# From so many capsules on, the first words of a run are compared with these, all at once.
_FAST_RUN: Final = 4
_LONGEST_RUN: Final = 512
_PLAIN_WORDS: Final = memoryview(command_header(0, 0, CAPSULE_CMD_BYTES) * _LONGEST_RUN).cast("Q")
_LOW_HALF: Final = 0xFFFFFFFF
_H2C_FIELDS: Final = H2C_DATA.select("cccid", "ttag", "datao", "datal")
DEFAULT_ENTRIES: Final = 32
_READY: Final = State.TARGET_READY
SQHD_DISABLED: Final = 0xFFFF


class TargetConnection(Engine):
    """One NVMe/TCP queue connection as a target. Driven as :mod:`nvmeof.protocol.connection` says.

    ``receive_buffer``: memory of the caller's choice, a multiple of 8 bytes, and large enough for a capsule with its
    data.
    """

    __slots__ = (
        "_announce_disabled",
        "_command_pdo",
        "_command_word",
        "_data_word",
        "_fetched",
        "_h2c_most",
        "_h2c_overhead",
        "_h2c_word",
        "_r2ts",
        "_stride",
        "_success_flags",
        "_words",
        "entries",
        "flow_control",
        "in_flight",
        "qid",
    )
    first_state: ClassVar = State.TARGET_WAIT_ICREQ
    term_req_type: ClassVar = PduType.C2H_TERM_REQ

    def __init__(self, config: ConnectionConfig, receive_buffer: bytearray | None = None) -> None:
        super().__init__(config, receive_buffer)
        self.qid = 0
        self.entries = DEFAULT_ENTRIES
        self.flow_control = True
        self.in_flight = 0
        """Commands that have arrived and have no completion queued."""
        self._fetched = 0
        self._announce_disabled = False
        self._r2ts = R2tTable()
        self._stride = CAPSULE_CMD_BYTES
        self._command_word = 0
        self._command_pdo = 0
        self._data_word = 0
        self._h2c_word = -1
        self._h2c_overhead = TRANSFER_BYTES
        self._words = self._buffer.cast("Q")
        self._success_flags = Flags.LAST_PDU
        self._h2c_most = config.maxh2cdata_bytes
        self._set_stride(False, False)

    def _set_stride(self, header_digest: bool, data_digest: bool) -> None:
        """Prepare the expected headers of command capsules under these digests."""
        digest = DIGEST_BYTES if header_digest else 0
        flags = Flags.HDGSTF if header_digest else 0
        self._stride = CAPSULE_CMD_BYTES + digest
        self._command_word = _WORD.unpack(command_header(flags, 0, self._stride))[0]
        self._command_pdo = align(self._stride, self.config.pda_bytes)
        flags |= Flags.DDGSTF if data_digest else 0
        self._h2c_overhead = TRANSFER_BYTES + (DIGEST_BYTES if data_digest else 0)
        self._data_word = _WORD.unpack(command_header(flags, self._command_pdo, 0))[0]
        if not header_digest and self.config.pda_bytes <= TRANSFER_BYTES and not TRANSFER_BYTES % self.config.pda_bytes:
            flags |= Flags.LAST_PDU
            header = CH.struct.pack(PduType.H2C_DATA, flags, TRANSFER_BYTES, TRANSFER_BYTES, 0)
            self._h2c_word = _WORD.unpack(header)[0]
        else:
            self._h2c_word = -1

    def set_queue(self, qid: int, entries: int, *, flow_control: bool = True) -> None:
        """Connect has succeeded: the queue's identifier, its size, and whether SQHD counts.

        Without flow control the completion of Connect says FFFFh, and successful reads end with the SUCCESS flag.
        """
        self.qid = qid
        self.entries = entries
        self._fetched %= entries
        self.flow_control = flow_control
        if not flow_control:
            self._announce_disabled = True
            self._success_flags = Flags.LAST_PDU | Flags.SUCCESS

    def set_incapsule(self, incapsule_bytes: int) -> None:
        """Set the limit of in-capsule data, in bytes. Raises LocalProtocolError when that does not fit the receive
        buffer."""
        if incapsule_bytes + CAPSULE_OVERHEAD_BYTES > len(self._buffer):
            raise LocalProtocolError(f"{incapsule_bytes} bytes in a capsule do not fit the receive buffer")
        super().set_incapsule(incapsule_bytes)

    @property
    def want_read(self) -> bool:
        """False at the end, and while the host takes nothing of what it asked for."""
        out = self.out
        return (
            self.state is not State.CLOSED and out.pending_bytes <= BACKLOG_BYTES and len(out.ready) <= BACKLOG_BUFFERS
        )

    # -- bytes in ------------------------------------------------------------------------------------------------

    def _receive_pdu(self, effect: Effect, pdu: memoryview, offset: int, length: int, events: list[Event]) -> None:
        if effect is Effect.RECEIVE_COMMAND:
            self._receive_command(pdu, offset, length, events)
        else:
            assert effect is Effect.ACCEPT_ICREQ
            self._accept_icreq(pdu, events)

    def _accept_icreq(self, pdu: memoryview, events: list[Event]) -> None:
        request = ICREQ.unpack_from(pdu)
        if request.pfv != PFV_1_0:
            raise PduError(Fes.UNSUPPORTED_PARAMETER, ICREQ.offsets["pfv"], f"PFV {request.pfv:#x} is not supported")
        if request.hpda > MAX_PDA:
            raise PduError(Fes.INVALID_HEADER_FIELD, ICREQ.offsets["hpda"], f"HPDA {request.hpda} is above {MAX_PDA}")
        config = self.config
        parameters = Negotiated(
            header_digest=config.header_digest and bool(request.dgst & Dgst.HDGST_ENABLE),
            data_digest=config.data_digest and bool(request.dgst & Dgst.DDGST_ENABLE),
            send_pda_bytes=pda_to_bytes(request.hpda),
            receive_pda_bytes=config.pda_bytes,
            maxr2t=request.maxr2t + 1,
            maxh2cdata_bytes=config.maxh2cdata_bytes,
        )
        dgst = (Dgst.HDGST_ENABLE if parameters.header_digest else 0) | (
            Dgst.DDGST_ENABLE if parameters.data_digest else 0
        )
        cpda = pda_from_bytes(config.pda_bytes)
        response = IcResp(PduType.ICRESP, 0, IC_BYTES, 0, IC_BYTES, PFV_1_0, cpda, dgst, config.maxh2cdata_bytes)
        self.out.add(ICRESP.pack(response))
        self._settle(parameters)
        self._set_stride(parameters.header_digest, parameters.data_digest)
        events.append(Ready(parameters))

    def _take_run(self, events: list[Event]) -> bool:
        """Take a run of capsules without data, all with the header that nearly all hosts send."""
        start = self._start
        word = self._command_word
        found = _WORD.unpack_from(self._buffer, start)[0]
        if found != word:
            low = found & _LOW_HALF
            if low == self._h2c_word:
                return self._take_h2c_data(found >> 32)
            return low == self._data_word and self._take_data_commands(found >> 32, events)
        stride = self._stride
        count = most = (self._end - start) // stride
        if not most:
            return False
        if most >= _FAST_RUN and stride == CAPSULE_CMD_BYTES and not start % _WORD_BYTES:
            step = CAPSULE_CMD_BYTES // _WORD_BYTES
            first = start // _WORD_BYTES
            count = most = min(most, _LONGEST_RUN)
            words = self._words[first : first + most * step : step]
            if words != _PLAIN_WORDS[:most]:
                count = next(i for i, found in enumerate(words.tolist()) if found != _PLAIN_WORDS[0])
        else:
            unpack = _WORD.unpack_from
            buffer = self._buffer
            for count in range(1, most + 1):
                if count < most and unpack(buffer, start + count * stride)[0] != word:
                    break
        if self._framing.header_digest:
            count = self._check_digests(start, count)
        count = self._count_commands(count)
        self._start = end = start + count * stride
        events.append(CommandBatch(self._buffer[start:end], count, stride))
        if self._end - end >= TRANSFER_BYTES:
            # Between long writes a command is followed by the data of an older one.
            found = _WORD.unpack_from(self._buffer, end)[0]
            if found & _LOW_HALF == self._h2c_word:
                self._pdu_start = end
                self._take_h2c_data(found >> 32)
        return True

    def _take_data_commands(self, plen: int, events: list[Event]) -> bool:
        """Take a run of capsules with data, whose headers but for PLEN are those that nearly all hosts send."""
        buffer, start, end = self._buffer, self._start, self._end
        pdo, trailer = self._command_pdo, DIGEST_BYTES if self._framing.data_digest else 0
        overhead = pdo + trailer
        unpack, most = _WORD.unpack_from, self.incapsule_bytes
        taken = False
        if end - start >= _FAST_RUN * plen and 0 < plen - overhead <= most:
            taken = self._take_data_run(plen, events)
            start = self._start
            if taken:
                if end - start < CH_BYTES:
                    return True
                found = unpack(buffer, start)[0]
                if found & _LOW_HALF != self._data_word:
                    return True
                plen = found >> 32
        while end - start >= plen and 0 < plen - overhead <= most:
            self._pdu_start = start
            if self._framing.header_digest:
                self._check_header_digest(start, CAPSULE_CMD_BYTES)
            self._count_commands(1)
            data_end = start + plen - trailer
            data = buffer[start + pdo : data_end]
            ok = not trailer or crc32c(data, 0) == int.from_bytes(buffer[data_end : start + plen], "little")
            events.append(CommandData(buffer[start + CH_BYTES : start + CAPSULE_CMD_BYTES], data, ok))
            self._start = start = start + plen
            taken = True
            if end - start < CH_BYTES:
                break
            found = unpack(buffer, start)[0]
            if found & _LOW_HALF != self._data_word:
                break
            plen = found >> 32
        return taken

    def _take_data_run(self, plen: int, events: list[Event]) -> bool:
        """Take capsules with data that have the same header, if there are some of them and their digests are right."""
        buffer, start, unpack = self._buffer, self._start, _WORD.unpack_from
        word = unpack(buffer, start)[0]
        most, count = (self._end - start) // plen, 1
        while count < most and unpack(buffer, start + count * plen)[0] == word:
            count += 1
        count = min(count, self.entries - self.in_flight)
        if count < _FAST_RUN:
            return False
        framing, pdo = self._framing, self._command_pdo
        trailer = DIGEST_BYTES if framing.data_digest else 0
        for at in range(start, start + count * plen, plen) if framing.header_digest or trailer else ():
            head, tail = at + CAPSULE_CMD_BYTES, at + plen - trailer
            if framing.header_digest and crc32c(buffer[at:head], 0) != int.from_bytes(
                buffer[head : head + 4], "little"
            ):
                return False  # one by one, up to the one that is wrong
            if trailer and crc32c(buffer[at + pdo : tail], 0) != int.from_bytes(buffer[tail : at + plen], "little"):
                return False
        self._count_commands(count)
        self._start = end = start + count * plen
        events.append(CommandDataRun(buffer[start:end], count, plen, pdo, plen - pdo - trailer))
        return True

    def _take_h2c_data(self, plen: int) -> bool:
        """Take the header of an H2CData that is the whole of its R2T; False leaves any other, and all errors, to the
        general path."""
        start = self._start
        if self._end - start < TRANSFER_BYTES:
            return False
        cccid, ttag, datao, datal = _H2C_FIELDS.unpack_from(self._buffer, start)
        transfer = self._r2ts.open.get(ttag)
        if (
            type(transfer) is not R2tTransfer
            or transfer.cid != cccid
            or datao
            or transfer.received
            or datal != transfer.asked
            or datal > self._h2c_most
            or plen != self._h2c_overhead + datal
        ):
            return False
        transfer.received = datal
        self._start = start + TRANSFER_BYTES
        self._payload = transfer.buffer
        self._payload_unit = transfer.unit_bytes
        self._payload_live = transfer.validity
        self._payload_owner = transfer
        self._payload_position = 0
        self._payload_crc = 0
        return True

    def _check_digests(self, start: int, count: int) -> int:
        """Return how many capsules of a run come before one with a wrong header digest. Raises PduError when it is the
        first."""
        buffer, stride = self._buffer, self._stride
        for i in range(count):
            at = start + i * stride
            end = at + CAPSULE_CMD_BYTES
            if crc32c(buffer[at:end], 0) != int.from_bytes(buffer[end : end + DIGEST_BYTES], "little"):
                if i:
                    return i
                self._check_header_digest(at, CAPSULE_CMD_BYTES)
        return count

    def _count_commands(self, count: int) -> int:
        """Count arrived commands; how many of them the queue holds. Raises when it does not hold the first."""
        room = self.entries - self.in_flight
        if count > room:
            if room <= 0:
                raise PduError(
                    Fes.PDU_SEQUENCE_ERROR, 0, f"more than the {self.entries} commands that the submission queue holds"
                )
            count = room
        self.in_flight += count
        self._fetched = (self._fetched + count) % self.entries
        return count

    def _receive_command(self, pdu: memoryview, offset: int, length: int, events: list[Event]) -> None:
        self._count_commands(1)
        if not length:
            events.append(CommandBatch(pdu, 1, self._stride))
            return
        data = pdu[offset : offset + length]
        ok = True
        if self._framing.data_digest:
            end = offset + length
            ok = crc32c(data, 0) == int.from_bytes(pdu[end : end + DIGEST_BYTES], "little")
        events.append(CommandData(pdu[CH_BYTES:CAPSULE_CMD_BYTES], data, ok))

    def _receive_data(self, pdu: memoryview, length: int) -> tuple[Any, memoryview]:
        header = H2C_DATA.unpack_from(pdu)
        if header.datal != length:
            raise PduError(
                Fes.INVALID_HEADER_FIELD, H2C_DATA.offsets["datal"], f"DATAL is {header.datal}, PLEN leaves {length}"
            )
        r2t = self._r2ts.accept(
            header.cccid, header.ttag, header.datao, length, header.flags, self.config.maxh2cdata_bytes
        )
        if r2t.received == r2t.asked and not header.flags & Flags.LAST_PDU:
            self._departure = "the last H2CData of an R2T without LAST_PDU: its length says that it is the last"
        transfer = r2t.transfer
        if transfer.unit_bytes and (header.datao % transfer.unit_bytes or length % transfer.unit_bytes):
            transfer.collect(header.datao)  # the host may cut its data anywhere; up to here it was between units
        self._payload_unit = transfer.unit_bytes
        self._payload_live = transfer.validity
        return r2t, transfer.buffer[header.datao : header.datao + length]

    def _payload_done(self, owner: R2tTransfer | R2tPart, ok: bool, events: list[Event]) -> None:
        size = owner.asked
        if type(owner) is R2tTransfer:
            transfer = owner
            if not ok:
                transfer.ok = False
            if transfer.received != size:
                return
            del self._r2ts.open[transfer.ttag]
        else:
            transfer = owner.transfer
            if not ok:
                transfer.ok = False
            if owner.received != size:
                return
            del self._r2ts.open[owner.ttag]
            transfer.received += size - owner.begin
            size = transfer.received
            if size != len(transfer.buffer):
                self._ask_more(transfer)
                return
        if size >= LARGE_BYTES:
            self.large_expected -= 1
        if transfer.collected_from is not None:
            transfer.commit()
        events.append(transfer)

    def _forget(self) -> None:
        super()._forget()
        self._r2ts.clear()

    # -- bytes out -----------------------------------------------------------------------------------------------

    def request_data(
        self,
        cid: int,
        buffer: memoryview,
        context: object,
        *,
        unit_bytes: int = 0,
        validity: BufferValidity = ALWAYS,
    ) -> None:
        """Ask for a command's data, received into ``buffer``; the event is an ``R2tTransfer``, when it is all there.

        With ``unit_bytes`` the buffer may be live memory that others read: it changes by whole units only, each in one
        step. What cannot go there so (data with digests, with several R2Ts at a time, or cut inside a unit by the host)
        is collected first. ``validity`` is checked before each change; once it is not valid, the memory stays as it is,
        and the event carries the data. No effect on a connection that has ended since the command arrived. Raises
        LocalProtocolError for a buffer that cannot take it, before the handshake, and when no TTAG is left.
        """
        if self.state is State.TARGET_READY and (not len(buffer) or buffer.readonly or buffer.format != "B"):
            raise LocalProtocolError("data is asked for into a writable buffer of bytes")
        self.ask(R2tTransfer(cid, buffer, context, unit_bytes, validity))

    def ask(self, transfer: R2tTransfer) -> None:
        """Send the R2T of a transfer that the caller has made, with a buffer that fits the data."""
        if self.state is not _READY:
            if self.state in ENDED:
                return
            raise LocalProtocolError("data is asked for on a ready connection")
        size, unit = len(transfer.buffer), transfer.unit_bytes
        step = self.config.r2t_bytes
        if unit and (self._framing.data_digest or size % unit or (step and self._several(size, step))):
            transfer.collect(0)
        if step is None:
            ttag = self._r2ts.open_whole(transfer, size)
            self.out.add(self.encoder.r2t(transfer.cid, ttag, 0, size))
        else:
            assert self.parameters is not None
            self._ask_more(transfer)
            outstanding = 1
            while transfer.asked < size and outstanding < self.parameters.maxr2t and not self._r2ts.full:
                self._ask_more(transfer)
                outstanding += 1
        if size >= LARGE_BYTES:
            self.large_expected += 1

    def _several(self, size: int, step: int) -> bool:
        """Return whether several R2Ts may be answered in any order: then no offset marks where collecting begins."""
        return self.parameters is not None and self.parameters.maxr2t > 1 and size > step

    def _ask_more(self, transfer: R2tTransfer) -> None:
        """Send one more R2T, when there is something left to ask for."""
        rest = len(transfer.buffer) - transfer.asked
        if not rest:
            return
        length = min(rest, self.config.r2t_bytes or rest)
        part = self._r2ts.open_part(transfer, length)
        self.out.add(self.encoder.r2t(transfer.cid, part.ttag, part.begin, length))

    @property
    def asked_bytes(self) -> int:
        """Bytes asked for with R2Ts that have not all arrived."""
        return self._r2ts.asked_bytes

    def send_completion(self, cid: int, status_field: int = 0, dw0: int = 0, dw1: int = 0) -> None:
        """Queue a command's completion; SQHD and SQID are ours to know."""
        self.in_flight -= 1
        sqhd = 0
        if self.flow_control:
            sqhd = self._fetched
        elif self._announce_disabled:
            sqhd = self._sqhd()
        self.out.add(self.encoder.response(cid, status_field, dw0, dw1, sqhd, self.qid))

    def forget_command(self) -> None:
        """Take back the place of a command in the submission queue that is never going to have a completion."""
        self.in_flight -= 1

    def send_completions(self, cids: Sequence[int]) -> None:
        """Queue the successful completions of several commands that have no data to send."""
        if len(cids) == 1 or self._announce_disabled or self.out.data_digest:
            for cid in cids:
                self.send_completion(cid)
            return
        self.in_flight -= len(cids)
        responses: list[Buffer] = [b"".join(self.encoder.responses(cids, self._sqhd(), self.qid))]
        self.out.add_many(responses, len(responses[0]))

    def _sqhd(self) -> int:
        if self.flow_control:
            return self._fetched
        if self._announce_disabled:
            self._announce_disabled = False
            return SQHD_DISABLED
        return 0

    def send_read(
        self,
        cid: int,
        data: Buffer,
        status_field: int = 0,
        dw0: int = 0,
        dw1: int = 0,
        *,
        release: Callable[[], None] | None = None,
        stable: bool = False,
    ) -> None:
        """Queue a command's data and its completion.

        ``release`` is called once the socket has taken the data (or the connection has ended). Unless the data is
        ``stable`` until then, a writable view is read in the step that sends.
        """
        if not len(data):
            if release is not None:
                release()
            self.send_completion(cid, status_field, dw0, dw1)
            return
        if stable and isinstance(data, memoryview):
            data = data.toreadonly()
        plain = not (status_field or dw0 or dw1)
        flags = self._success_flags if plain else Flags.LAST_PDU
        self.out.add_data(self.encoder.c2h_data(cid, 0, len(data), flags), data, release)
        if flags & Flags.SUCCESS:
            self.in_flight -= 1
        else:
            self.send_completion(cid, status_field, dw0, dw1)

    def send_reads(self, cids: Sequence[int], data: list[Buffer], length: int) -> None:
        """Queue the data, ``length`` bytes each, and the successful completion of several commands."""
        count = len(cids)
        flags = self._success_flags
        encoder, out = self.encoder, self.out
        headers = encoder.c2h_headers(cids, length, flags)
        if out.data_digest:
            responses = [] if flags & Flags.SUCCESS else encoder.responses(cids, self._sqhd(), self.qid)
            self.in_flight -= count
            out.add_many_data(headers, data, responses, length)
            return
        size = count * (len(headers[0]) + length)
        buffers: list[Buffer]
        if flags & Flags.SUCCESS:
            buffers = [b""] * (2 * count)
            buffers[::2] = headers
            buffers[1::2] = data
        else:
            responses = encoder.responses(cids, self._sqhd(), self.qid)
            size += count * len(responses[0])
            buffers = [b""] * (3 * count)
            buffers[::3] = headers
            buffers[1::3] = data
            buffers[2::3] = responses
        self.in_flight -= count
        out.add_many(buffers, size)

    def send_read_groups(self, groups: Sequence[ReadGroup]) -> None:
        """Queue data and successful completion of commands of several lengths, in the order of their places, of which
        each from 0 on is taken once."""
        count = sum(len(group.cids) for group in groups)
        flags, encoder, out = self._success_flags, self.encoder, self.out
        success, size = flags & Flags.SUCCESS, 0
        step = 2 if success else 3
        buffers: list[Buffer] = [b""] * (step * count)
        cids = [0] * count
        for group in groups:
            headers = encoder.c2h_headers(group.cids, group.length, flags)
            size += len(headers) * (len(headers[0]) + group.length)
            for place, cid, header, data in zip(group.places, group.cids, headers, group.data, strict=True):
                cids[place] = cid
                buffers[step * place] = header
                buffers[step * place + 1] = data
        if not success:
            responses = encoder.responses(cids, self._sqhd(), self.qid)
            size += count * len(responses[0])
            buffers[2::3] = responses
        self.in_flight -= count
        if not out.data_digest:
            out.add_many(buffers, size)
            return
        for at in range(0, len(buffers), step):
            out.add_data(bytes(buffers[at]), buffers[at + 1])
            if not success:
                out.add(buffers[at + 2])
