"""The host's side of a queue connection: commands and their data out, data and completions in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Any, ClassVar, Final

from ..errors import LocalProtocolError, PduError
from ..pdu.capsule import CAPSULE_RESP, CAPSULE_RESP_BYTES
from ..pdu.handshake import (
    IC_BYTES,
    ICREQ,
    ICRESP,
    MAX_PDA,
    MIN_MAXH2CDATA_BYTES,
    PFV_1_0,
    Dgst,
    IcReq,
    pda_from_bytes,
    pda_to_bytes,
)
from ..pdu.header import DIGEST_BYTES, Flags, PduType
from ..pdu.termination import Fes
from ..pdu.transfer import C2H_DATA, CCCID_OFFSET, R2T_PDU, TRANSFER_BYTES
from ..spec.sgl import SglType
from ..spec.status import Status
from ..wire import Buffer
from .config import ConnectionConfig
from .engine import LARGE_BYTES, Engine
from .events import Completions, Event, Negotiated, Ready
from .states import Effect, Input, State
from .transfers import Request

_WORD: Final = Struct("<Q")
_RESP_CID_OFFSET: Final = 20
_COMPLETION: Final = Struct("<8xIIHHHH")
# A CapsuleResp: common header, DW0, DW1, SQHD, SQID, CID, status. As a C2HData: common header, CCCID (and a reserved
# half), DATAO, DATAL in two halves, reserved.
_WHOLE: Final = Struct("<QIIHHHH")
_LAYOUTS_MAX: Final = 64
_NOT_DUE: Final = memoryview(b"")
# Common headers, without PLEN, of C2HData that end their command's data; whether they stand for its completion too.
_WHOLE_DATA: Final = {
    int.from_bytes(bytes((PduType.C2H_DATA, flags, TRANSFER_BYTES, TRANSFER_BYTES)), "little"): success
    for flags, success in ((Flags.LAST_PDU, False), (Flags.LAST_PDU | Flags.SUCCESS, True))
}
# Enumeration members are slow to convert: plain integers where every command passes.
_SGL_TRANSPORT: Final = int(SglType.TRANSPORT_DATA_BLOCK)
_SGL_IN_CAPSULE: Final = int(SglType.DATA_BLOCK_IN_CAPSULE)
_NO_SGL: Final = (0, 0, _SGL_TRANSPORT)
_SQE_BYTES: Final = 64


class HostConnection(Engine):
    """One NVMe/TCP queue connection as a host: ``start`` first, then as :mod:`nvmeof.protocol.connection` says."""

    __slots__ = ("_due", "_layouts", "_reads", "_requests", "_response_stride", "_response_word", "_whole_data", "sqhd")
    first_state: ClassVar = State.HOST_NEW
    term_req_type: ClassVar = PduType.H2C_TERM_REQ

    def __init__(self, config: ConnectionConfig, receive_buffer: bytearray | None = None) -> None:
        super().__init__(config, receive_buffer)
        self.sqhd = 0
        """The SQ head pointer of the controller's last completion."""
        # Outstanding commands by CID. Nearly every command needs only its buffer; one whose data comes in parts, or
        # whose completion is unusual, becomes a Request (`_request`).
        self._requests: dict[int, Request] = {}
        self._reads: dict[int, memoryview] = {}  # nothing has come yet, and it may come in one PDU
        self._due: dict[int, memoryview | None] = {}  # only the response is due: the data has come, or there is none
        self._response_word = 0
        self._response_stride = CAPSULE_RESP_BYTES
        self._whole_data: dict[int, bool] = {}
        self._layouts: dict[tuple[int, bool], Callable[[memoryview], Iterator[tuple[int, ...]]]] = {}

    def start(self) -> None:
        """Queue the ICReq."""
        self._apply(Input.START)
        config = self.config
        dgst = (Dgst.HDGST_ENABLE if config.header_digest else 0) | (Dgst.DDGST_ENABLE if config.data_digest else 0)
        hpda = pda_from_bytes(config.pda_bytes)
        request = IcReq(PduType.ICREQ, 0, IC_BYTES, 0, IC_BYTES, PFV_1_0, hpda, dgst, config.maxr2t - 1)
        self.out.add(ICREQ.pack(request))

    @property
    def outstanding(self) -> int:
        """Commands that have been sent and have no completion."""
        return len(self._requests) + len(self._reads) + len(self._due)

    def _request(self, cid: int) -> Request | None:
        """Return the command's Request, made now if it has none; None for a CID that is not in use."""
        request = self._requests.get(cid)
        if request is not None:
            return request
        if cid in self._reads:
            request = Request(cid, None, self._reads.pop(cid))
        elif cid in self._due:
            received = self._due.pop(cid)
            request = Request(cid, None, received)
            if received is not None:
                request.received, request.ended = len(received), True
        else:
            return None
        self._requests[cid] = request
        return request

    # -- bytes in ------------------------------------------------------------------------------------------------

    def _accept_icresp(self, pdu: memoryview, events: list[Event]) -> None:
        response = ICRESP.unpack_from(pdu)
        offsets = ICRESP.offsets
        config = self.config
        wanted = (Dgst.HDGST_ENABLE if config.header_digest else 0) | (Dgst.DDGST_ENABLE if config.data_digest else 0)
        if response.pfv != PFV_1_0:
            raise PduError(Fes.UNSUPPORTED_PARAMETER, offsets["pfv"], f"PFV {response.pfv:#x} is not supported")
        if response.cpda > MAX_PDA:
            raise PduError(Fes.INVALID_HEADER_FIELD, offsets["cpda"], f"CPDA {response.cpda} is above {MAX_PDA}")
        if response.dgst & ~wanted & 3:
            raise PduError(Fes.INVALID_HEADER_FIELD, offsets["dgst"], "digests that were not asked for")
        if response.maxh2cdata < MIN_MAXH2CDATA_BYTES or response.maxh2cdata % 4:
            raise PduError(
                Fes.INVALID_HEADER_FIELD,
                offsets["maxh2cdata"],
                f"MAXH2CDATA {response.maxh2cdata} is not a multiple of 4 from {MIN_MAXH2CDATA_BYTES} on",
            )
        parameters = Negotiated(
            header_digest=bool(response.dgst & Dgst.HDGST_ENABLE),
            data_digest=bool(response.dgst & Dgst.DDGST_ENABLE),
            send_pda_bytes=pda_to_bytes(response.cpda),
            receive_pda_bytes=config.pda_bytes,
            maxr2t=config.maxr2t,
            maxh2cdata_bytes=response.maxh2cdata,
        )
        self._settle(parameters)
        self._response_stride = CAPSULE_RESP_BYTES + (DIGEST_BYTES if parameters.header_digest else 0)
        flags = Flags.HDGSTF if parameters.header_digest else 0
        header = CAPSULE_RESP.pack(
            PduType.CAPSULE_RESP, flags, CAPSULE_RESP_BYTES, 0, self._response_stride, 0, 0, 0, 0, 0, 0
        )
        self._response_word = _WORD.unpack_from(header)[0]
        plain = not (parameters.header_digest or parameters.data_digest or TRANSFER_BYTES % config.pda_bytes)
        self._whole_data = _WHOLE_DATA if plain else {}
        events.append(Ready(parameters))

    def _take_run(self, events: list[Event]) -> bool:
        """Take a run of CapsuleResps, and of C2HData that are each all the data of their command, without digests and
        whole in the receive buffer. Any other PDU, and any error, ends the run and takes the general path.
        """
        unpack, word, stride, buffer = _WHOLE.unpack_from, self._response_word, self._response_stride, self._buffer
        start, end, reads, due = self._start, self._end, self._reads, self._due
        first, sqhd = start, self.sqhd
        data_word, size, plen, success = -1, 0, 0, False  # of the C2HData that came last
        entries: list[tuple[int, int, int, int]] = []
        try:
            while end - start >= stride:
                here, a, b, c, d, cid, status_field = unpack(buffer, start)
                if here == word:
                    self._pdu_start = start
                    if stride != CAPSULE_RESP_BYTES:
                        self._check_header_digest(start, CAPSULE_RESP_BYTES)
                    sqhd = c
                    if due.pop(cid, _NOT_DUE) is _NOT_DUE:
                        entries.append(self._complete(cid, status_field, a, b))
                    else:
                        entries.append((cid, status_field & 0xFFFE, a, b))
                    start += stride
                    continue
                if here != data_word:
                    ends = self._whole_data.get(here & 0xFFFFFFFF)
                    if ends is None or here >> 32 <= TRANSFER_BYTES:
                        break  # a PLEN without data is an error, which the general path reports
                    data_word, success, plen = here, ends, here >> 32
                    size = plen - TRANSFER_BYTES
                pair = plen if success else plen + CAPSULE_RESP_BYTES
                if end - start >= 2 * pair:
                    taken = self._take_alike(start, (end - start) // pair, size, success, entries)
                    if taken:
                        start, sqhd = start + taken * pair, self.sqhd
                        continue
                cid = a & 0xFFFF
                place = reads.get(cid)
                if place is None or b or c | d << 16 != size or size != len(place) or end - start < plen:
                    break
                place[:] = buffer[start + TRANSFER_BYTES : start + plen]
                start += plen
                del reads[cid]
                if success:
                    entries.append((cid, 0, 0, 0))
                else:
                    due[cid] = place
        finally:
            self._start = start
            self.sqhd = sqhd
            if entries:
                events.append(Completions(entries))
        return start != first

    def _take_alike(
        self, start: int, count: int, size: int, success: bool, entries: list[tuple[int, int, int, int]]
    ) -> int:
        """Take Reads of one length that are answered alike: C2HData, and its response behind it or (``success``) none.

        ``count`` fit into what has been received from ``start`` on. Returns how many were as expected and were taken.
        """
        unpack = self._layouts.get((size, success))
        if unpack is None:
            if len(self._layouts) >= _LAYOUTS_MAX:  # lengths in use are few; a program that tries all pays for it
                self._layouts.clear()
            # CH, CCCID, DATAO and DATAL; CH, DW0 and DW1, SQHD to status
            unpack = Struct(f"<QH2xQ4x{size}x" + ("" if success else "QQQ")).iter_unpack
            self._layouts[size, success] = unpack
        pair = TRANSFER_BYTES + size + (0 if success else CAPSULE_RESP_BYTES)
        items = unpack(self._buffer[start : start + count * pair])
        before = len(entries)
        if success:
            self._take_data(start, pair, items, entries)
        else:
            self._take_pairs(start, pair, items, entries)
        return len(entries) - before

    def _take_data(
        self, start: int, stride: int, items: Iterator[tuple[int, ...]], entries: list[tuple[int, int, int, int]]
    ) -> None:
        buffer, reads = self._buffer, self._reads
        (first,) = _WORD.unpack_from(buffer, start)
        at, size = start + TRANSFER_BYTES, stride - TRANSFER_BYTES
        expected = size << 32
        for header, cid, where in items:
            place = reads.get(cid)
            if header != first or where != expected or place is None or len(place) != size:
                return
            place[:] = buffer[at : at + size]
            del reads[cid]
            entries.append((cid, 0, 0, 0))
            at += stride

    def _take_pairs(
        self, start: int, stride: int, items: Iterator[tuple[int, ...]], entries: list[tuple[int, int, int, int]]
    ) -> None:
        buffer, reads, word = self._buffer, self._reads, self._response_word
        (first,) = _WORD.unpack_from(buffer, start)
        at, size = start + TRANSFER_BYTES, stride - TRANSFER_BYTES - CAPSULE_RESP_BYTES
        expected = size << 32
        for header, cid, where, here, result, rest in items:
            place = reads.get(cid)
            # the rest of a response: SQHD, SQID, CID, status; the last one is 0
            if header != first or where != expected or here != word or result or rest >> 32 != cid or place is None:
                return
            if len(place) != size:
                return
            place[:] = buffer[at : at + size]
            del reads[cid]
            entries.append((cid, 0, 0, 0))
            self.sqhd = rest & 0xFFFF
            at += stride

    def _parse_one(self, events: list[Event]) -> bool:
        """Wait for the rest of a C2HData that `_take_run` can take whole: that costs less than to take it in parts."""
        start, available = self._start, self._end - self._start
        if self._reads and self._payload_owner is None and available >= TRANSFER_BYTES and self._whole_data:
            here, a, _, _, _, _, _ = _WHOLE.unpack_from(self._buffer, start)
            plen = here >> 32
            place = self._reads.get(a & 0xFFFF)
            if (
                available < plen <= len(self._buffer) // 2
                and here & 0xFFFFFFFF in self._whole_data
                and place is not None
                and len(place) == plen - TRANSFER_BYTES
            ):
                self._pdu_start = start
                return False
        return super()._parse_one(events)

    def _receive_pdu(self, effect: Effect, pdu: memoryview, offset: int, length: int, events: list[Event]) -> None:
        if effect is Effect.RECEIVE_RESPONSE:
            self._receive_response(pdu, events)
        elif effect is Effect.RECEIVE_R2T:
            self._receive_r2t(pdu)
        else:
            assert effect is Effect.ACCEPT_ICRESP
            self._accept_icresp(pdu, events)

    def _receive_response(self, pdu: memoryview, events: list[Event]) -> None:
        dw0, dw1, self.sqhd, _, cid, status_field = _COMPLETION.unpack_from(pdu)
        events.append(Completions([self._complete(cid, status_field, dw0, dw1)]))

    def _complete(self, cid: int, status_field: int, dw0: int, dw1: int) -> tuple[int, int, int, int]:
        request = self._request(cid)
        if request is None:
            raise PduError(
                Fes.INVALID_HEADER_FIELD, _RESP_CID_OFFSET, f"a completion for CID {cid:#x}, which is not in use"
            )
        del self._requests[cid]
        status_field &= 0xFFFE
        if request.r2t_ends and request.r2t_ends[-1] > self.out.sent_bytes and request.data_out is not None:
            # The controller did not wait for all of the data; the caller has its buffer back from here on.
            self.out.keep(request.data_out.obj)
        data_in = request.data_in
        if data_in is not None:
            if len(data_in) >= LARGE_BYTES:
                self.large_expected -= 1
            if not request.digest_ok:
                status_field = Status.TRANSIENT_TRANSPORT_ERROR << 1
            elif not status_field and request.received != len(data_in):
                # Success without all of the data would pass off old bytes of the caller's buffer as read.
                status_field = Status.DATA_TRANSFER_ERROR << 1
        return cid, status_field, dw0, dw1

    def _receive_data(self, pdu: memoryview, length: int) -> tuple[Any, memoryview]:
        header = C2H_DATA.unpack_from(pdu)
        if header.datal != length:
            raise PduError(
                Fes.INVALID_HEADER_FIELD, C2H_DATA.offsets["datal"], f"DATAL is {header.datal}, PLEN leaves {length}"
            )
        request = self._request(header.cccid)
        if request is None:
            raise PduError(
                Fes.INVALID_HEADER_FIELD, CCCID_OFFSET, f"C2HData for CID {header.cccid:#x}, which is not in use"
            )
        destination = request.accept_data(header.datao, length, header.flags)
        return (request, bool(header.flags & Flags.SUCCESS)), destination

    def _payload_done(self, owner: tuple[Request, bool], ok: bool, events: list[Event]) -> None:
        request, success = owner
        request.digest_ok = request.digest_ok and ok
        if not success:
            return
        entry = self._complete(request.cid, 0, 0, 0)
        last = events[-1] if events else None
        if isinstance(last, Completions):
            last.entries.append(entry)
        else:
            events.append(Completions([entry]))

    def _receive_r2t(self, pdu: memoryview) -> None:
        header = R2T_PDU.unpack_from(pdu)
        request = self._request(header.cccid)
        if request is None:
            raise PduError(
                Fes.INVALID_HEADER_FIELD, CCCID_OFFSET, f"R2T for CID {header.cccid:#x}, which is not in use"
            )
        parameters = self.parameters
        assert parameters is not None
        out = self.out
        data = request.accept_r2t(header.r2to, header.r2tl, parameters.maxr2t, out.sent_bytes)
        step, size = parameters.maxh2cdata_bytes, len(data)
        for offset in range(0, size, step):
            part = data[offset : offset + step]
            last = offset + len(part) == size
            out.add_data(self.encoder.h2c_data(header.cccid, header.ttag, header.r2to + offset, len(part), last), part)
        request.r2t_ends.append(out.end_position)

    def give_back(self, cid: int, data_out: Buffer | None = None) -> None:
        """Release the buffers of a command at once; the command itself goes on until its completion.

        What is still to be sent is copied (``data_out``: the buffer that was given, which may be queued within a
        capsule); data that is still to come is discarded. No effect for a CID that is not in use.
        """
        request = self._request(cid)
        if request is None:
            return
        if data_out is not None:
            self.out.keep(memoryview(data_out).obj)
        if request.data_out is not None:
            request.data_out = memoryview(bytes(request.data_out))
        if request.data_in is None:
            return
        request.data_in = memoryview(bytearray(len(request.data_in)))
        payload = self._payload
        if payload is not None and self._payload_owner[0] is request:
            start = request.received - len(payload)
            self._payload = request.data_in[start : request.received]

    def _forget(self) -> None:
        super()._forget()
        self._requests.clear()
        self._reads.clear()
        self._due.clear()

    # -- bytes out -----------------------------------------------------------------------------------------------

    def send_command(
        self,
        cid: int,
        sqe: Buffer,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        *,
        in_capsule: bool | None = None,
    ) -> None:
        """Queue a command. CID, PSDT and SGL1 of the 64-byte ``sqe`` are filled in here.

        ``data_out`` goes in the capsule when it fits and ``in_capsule`` is not False, else as the controller asks
        for it. ``data_in`` is where the controller's data lands, in place. Both buffers belong to the connection
        until the completion, or until it is closed. Raises LocalProtocolError for a CID in use, an SQE that is not
        64 bytes, buffers that are not plain bytes (or data in both directions), and a connection that is not ready.
        """
        if self.state is not State.HOST_READY:
            raise LocalProtocolError(f"a command in state {self.state.value}")
        if not 0 <= cid <= 0xFFFF:
            raise LocalProtocolError(f"CID {cid:#x} does not fit 16 bits")
        if cid in self._reads or cid in self._due or cid in self._requests:
            raise LocalProtocolError(f"CID {cid:#x} is in use")
        if len(sqe) != _SQE_BYTES:
            raise LocalProtocolError(f"an SQE of {len(sqe)} bytes")
        if data_out is not None:
            self._send_with_data(cid, sqe, data_out, data_in, in_capsule)
        elif data_in is not None:
            if data_in.readonly or data_in.format != "B" or not data_in.c_contiguous:
                raise LocalProtocolError("data comes into one writable buffer of bytes")
            size = len(data_in)
            self.out.add(self.encoder.command(cid, sqe, (0, size, _SGL_TRANSPORT), 0))
            if self._whole_data and size < LARGE_BYTES:
                self._reads[cid] = data_in
            else:
                self._expect_data((cid,), (data_in,), size)
        else:
            self.out.add(self.encoder.command(cid, sqe, _NO_SGL, 0))
            self._due[cid] = None

    def _expect_data(self, cids: Sequence[int], places: Sequence[memoryview], size: int) -> None:
        if size >= LARGE_BYTES:
            self.large_expected += len(cids)
        for cid, place in zip(cids, places, strict=True):
            self._requests[cid] = Request(cid, None, place)

    def _send_with_data(
        self, cid: int, sqe: Buffer, data_out: Buffer, data_in: memoryview | None, in_capsule: bool | None
    ) -> None:
        stable = memoryview(data_out).toreadonly()
        if data_in is not None or stable.format != "B" or not stable.c_contiguous:
            raise LocalProtocolError("data goes out as bytes, and then none comes in")
        size = len(stable)
        fits = size <= self.incapsule_bytes
        if in_capsule and not fits:
            raise LocalProtocolError(f"{size} bytes do not fit a capsule of {self.incapsule_bytes}")
        if not size:
            self.out.add(self.encoder.command(cid, sqe, _NO_SGL, 0))
            self._due[cid] = None
        elif fits and in_capsule is not False:
            header = self.encoder.command(cid, sqe, (0, size, _SGL_IN_CAPSULE), size)
            self.out.add_data(header, stable)
            self._due[cid] = None
        else:
            self.out.add(self.encoder.command(cid, sqe, (0, size, _SGL_TRANSPORT), 0))
            self._requests[cid] = Request(cid, stable, None)

    def send_reads(self, cids: Sequence[int], sqe: bytes, slbas: Sequence[int], places: Sequence[memoryview]) -> None:
        """Queue commands that differ in CID, SLBA and the buffer for their data alone: as many `send_command`.

        ``sqe`` is that of all. The buffers are writable, contiguous, of bytes, and as long as the first. Raises
        LocalProtocolError for a CID in use, buffers of different lengths, and a connection that is not ready.
        """
        size = self._check_batch(cids, places)
        self.out.add(self.encoder.commands(cids, sqe, slbas, (0, size, _SGL_TRANSPORT), 0))
        if self._whole_data and size < LARGE_BYTES:
            self._reads.update(zip(cids, places, strict=True))
        else:
            self._expect_data(cids, places, size)

    def send_writes(self, cids: Sequence[int], sqe: bytes, slbas: Sequence[int], data: Sequence[memoryview]) -> None:
        """Queue commands that differ in CID, SLBA and the data that they bring alone; see `send_reads`."""
        size = self._check_batch(cids, data)
        out = self.out
        if size > self.incapsule_bytes:
            out.add(self.encoder.commands(cids, sqe, slbas, (0, size, _SGL_TRANSPORT), 0))
            for cid, each in zip(cids, data, strict=True):
                self._requests[cid] = Request(cid, each.toreadonly(), None)
            return
        headers = self.encoder.commands(cids, sqe, slbas, (0, size, _SGL_IN_CAPSULE), size)
        stride = len(headers) // len(cids)
        for index, each in enumerate(data):
            out.add_data(headers[index * stride : (index + 1) * stride], each.toreadonly())
        self._due.update(dict.fromkeys(cids))

    def _check_batch(self, cids: Sequence[int], buffers: Sequence[memoryview]) -> int:
        """Return the length of each buffer of a batch. Raises LocalProtocolError for a batch that cannot be sent."""
        if self.state is not State.HOST_READY:
            raise LocalProtocolError(f"a command in state {self.state.value}")
        for outstanding in (self._reads, self._due, self._requests):
            if outstanding and not outstanding.keys().isdisjoint(cids):
                raise LocalProtocolError("a CID of the batch is in use")
        sizes = set(map(len, buffers))
        if len(sizes) != 1 or len(cids) != len(buffers):
            raise LocalProtocolError(f"a batch of {len(cids)} commands has {len(buffers)} buffers of {sizes} bytes")
        return sizes.pop()
