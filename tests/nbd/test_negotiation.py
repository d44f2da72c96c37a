"""Both halves of the negotiation against each other, without I/O; and what breaks it."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.nbd.client_negotiation import ClientSession, negotiate
from nvmeof.nbd.messages import pack_option, pack_option_reply
from nvmeof.nbd.numbers import INIT_MAGIC, OPTION_MAGIC, Info, Option, OptionReplyType, TransmissionFlags
from nvmeof.nbd.option_data import ContextRequest, InfoRequest, NbdProtocolError
from nvmeof.nbd.server_negotiation import OPTIONS_MAX, ServerNegotiation, ServerSession
from nvmeof.nbd.steps import ExportFacts, Lookup, Receive, Send, StartTls

FLAGS = TransmissionFlags.HAS_FLAGS | TransmissionFlags.SEND_FLUSH | TransmissionFlags.SEND_TRIM
DISK = ExportFacts(1 << 30, FLAGS, 512, 4096, 1 << 20, "disk", "a disk")
EXPORTS = {"disk": DISK, "": DISK}
HELLO = struct.pack(">I", 3)


class Pipe:
    """The bytes from one side to the other, and how often TLS began."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.tls = 0

    def take(self, count: int) -> bytes | None:
        if len(self.data) < count:
            return None
        taken = bytes(self.data[:count])
        del self.data[:count]
        return taken


class Side:
    """One half of the negotiation, run as far as its bytes go."""

    def __init__(self, steps: Generator[Any, Any, Any], incoming: Pipe, outgoing: Pipe) -> None:
        self._steps, self._in, self._out = steps, incoming, outgoing
        self.step: Any = next(steps)
        self.result: Any = None
        self.over = False

    def run(self) -> bool:
        moved = False
        while not self.over:
            answer: Any = None
            if isinstance(self.step, Receive):
                answer = self._in.take(self.step.count)
                if answer is None:
                    return moved
            elif isinstance(self.step, Send):
                self._out.data += self.step.data
            elif isinstance(self.step, Lookup):
                answer = EXPORTS.get(self.step.name)
            elif isinstance(self.step, StartTls):
                self._out.data += self.step.data
                self._out.tls += 1
            moved = True
            try:
                self.step = self._steps.send(answer)
            except StopIteration as stop:
                self.over, self.result = True, stop.value
        return moved


def meet(export: str, *, tls: bool = False, server_tls: bool | None = None) -> tuple[ClientSession, ServerSession]:
    up, down = Pipe(), Pipe()
    negotiation = ServerNegotiation([("disk", "a disk")], tls=server_tls)
    server = Side(negotiation.run(), up, down)
    client = Side(negotiate(export, tls=tls), down, up)
    while server.run() | client.run():
        pass
    assert client.over and server.over and negotiation.session is not None
    assert up.tls == down.tls == int(tls)
    return client.result, negotiation.session


def serve(*options: bytes, tls: bool | None = None) -> tuple[bytes, ServerSession | None]:
    """Send options of a client to our half; return its replies behind the greeting, and the agreed settings."""
    up, down = Pipe(), Pipe()
    up.data += HELLO + b"".join(options)
    negotiation = ServerNegotiation([("disk", "a disk"), ("other", "")], tls=tls)
    Side(negotiation.run(), up, down).run()
    return bytes(down.data[18:]), negotiation.session


def test_they_agree() -> None:
    client, server = meet("disk")
    assert client.export == ExportFacts(1 << 30, FLAGS | TransmissionFlags.SEND_DF, 512, 4096, 1 << 20, "disk")
    assert client.structured and client.context == 1
    assert server == ServerSession(DISK, True, False, True, True)


def test_tls() -> None:
    for server_tls in (False, True):
        client, server = meet("disk", tls=True, server_tls=server_tls)
        assert client.structured and server.structured
    with pytest.raises(NbdProtocolError, match="has no TLS: write nbd in place of nbds"):
        meet("disk", tls=True)
    with pytest.raises(NbdProtocolError, match="it requires TLS: write nbds in place of nbd"):
        meet("disk", server_tls=True)


def test_settings_negotiated_in_clear_do_not_hold_with_tls() -> None:
    """A man in the middle may have chosen it."""
    go = pack_option(Option.GO, InfoRequest("disk").pack())
    _, session = serve(pack_option(Option.STRUCTURED_REPLY), pack_option(Option.STARTTLS), go, tls=False)
    assert session is not None and not session.structured


def test_an_unknown_export() -> None:
    with pytest.raises(NbdProtocolError, match="no export of that name"):
        meet("none")


def test_list_info_and_unknown_options() -> None:
    answer, session = serve(pack_option(Option.LIST))
    assert b"disk" in answer and b"other" in answer and session is None
    answer, session = serve(pack_option(Option.INFO, InfoRequest("", (Info.NAME, Info.DESCRIPTION)).pack()))
    assert session is None and b"a disk" in answer
    answer, session = serve(pack_option(77, b"xyz"))
    assert answer[:20] == struct.pack(">QIII", 0x3E889045565A9, 77, OptionReplyType.ERR_UNSUP, len(answer) - 20)
    answer, session = serve(pack_option(Option.LIST, b"x"))
    assert int.from_bytes(answer[12:16], "big") == OptionReplyType.ERR_INVALID


def test_contexts_belong_to_their_export_and_need_structured_replies() -> None:
    query = pack_option(Option.SET_META_CONTEXT, ContextRequest("disk", ("base:allocation",)).pack())
    answer, _ = serve(query)
    assert int.from_bytes(answer[12:16], "big") == OptionReplyType.ERR_INVALID
    structured = pack_option(Option.STRUCTURED_REPLY)
    _, session = serve(structured, query, pack_option(Option.GO, InfoRequest("disk").pack()))
    assert session is not None and session.block_status and not session.sizes_known
    _, session = serve(structured, query, pack_option(Option.GO, InfoRequest("").pack()))
    assert session is not None and not session.block_status
    unknown = pack_option(Option.SET_META_CONTEXT, ContextRequest("disk", ("qemu:dirty",)).pack())
    _, session = serve(structured, query, unknown, pack_option(Option.GO, InfoRequest("disk").pack()))
    assert session is not None and not session.block_status


def test_extended_headers() -> None:
    go = pack_option(Option.GO, InfoRequest("disk").pack())
    answer, session = serve(pack_option(Option.EXTENDED_HEADERS), pack_option(Option.STRUCTURED_REPLY), go)
    assert session is not None and session.extended
    assert int.from_bytes(answer[20 + 12 : 20 + 16], "big") == OptionReplyType.ERR_EXT_HEADER_REQD
    with pytest.raises(NbdProtocolError, match="EXPORT_NAME"):
        serve(pack_option(Option.EXTENDED_HEADERS), pack_option(Option.EXPORT_NAME, b"disk"))


def test_export_name() -> None:
    answer, session = serve(pack_option(Option.EXPORT_NAME, b"disk"))
    assert session is not None and answer == struct.pack(">QH", 1 << 30, FLAGS)
    with pytest.raises(NbdProtocolError, match="'none', which does not exist"):
        serve(pack_option(Option.EXPORT_NAME, b"none"))
    with pytest.raises(NbdProtocolError, match="TLS"):
        serve(pack_option(Option.EXPORT_NAME, b"disk"), tls=True)


def test_limits() -> None:
    with pytest.raises(NbdProtocolError, match="too many"):
        serve(struct.pack(">QII", OPTION_MAGIC, Option.LIST, 1 << 30))
    with pytest.raises(NbdProtocolError, match=f"more than {OPTIONS_MAX}"):
        serve(*[pack_option(Option.LIST)] * (OPTIONS_MAX + 1))
    with pytest.raises(NbdProtocolError, match="no option"):
        serve(b"GET / HTTP/1.1\r\n\r\n")


def client_of(data: bytes) -> Side:
    down, up = Pipe(), Pipe()
    down.data += data
    side = Side(negotiate("disk"), down, up)
    side.run()
    return side


GREETING = struct.pack(">QQH", INIT_MAGIC, OPTION_MAGIC, 3)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no NBD server"),
        (struct.pack(">QQH", INIT_MAGIC, 0x420281861253, 0), "no fixed newstyle"),
        (struct.pack(">QQH", INIT_MAGIC, 77, 3), "another number"),
        (GREETING + bytes(20), "no reply to the option"),
        (GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 30), "too many"),
        (GREETING + pack_option_reply(8, OptionReplyType.ERR_POLICY, b"no"), "policy forbids that .'no'."),
    ],
)
def test_peers_that_are_no_servers(data: bytes, why: str) -> None:
    with pytest.raises(NbdProtocolError, match=why):
        client_of(data)


def test_a_server_without_go() -> None:
    refusals = b"".join(pack_option_reply(option, OptionReplyType.ERR_UNSUP) for option in (8, 7))
    side = client_of(GREETING + refusals + struct.pack(">QH", 4096, 1))
    assert side.result == ClientSession(ExportFacts(4096, 1, name="disk"))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_or_wait(data: bytes) -> None:
    for run in (lambda: client_of(GREETING + data), lambda: serve(data)):
        try:
            run()
        except NbdProtocolError:
            pass
