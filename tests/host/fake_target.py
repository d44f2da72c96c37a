"""The fake controller behind a real connection: listens on a transport, answers PDUs with the fake device's model.

Small, strict and scriptable: a test may send raw bytes, break digests, close in the middle, or send nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nvmeof.host.queue import Queue, Request
from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.protocol.events import CommandBatch, CommandData, Ready
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sgl import SglType
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import status_field
from nvmeof.transport import Endpoint, SocketOptions, get
from tests.events import one_by_one

from .fake_device import FakeDevice


class _Received(Request):
    """A command that the target has received."""

    __slots__ = ("answered",)

    def completed(self, result: int, status: int) -> None:
        self.answered(result, status)

    def failed(self, error: Exception) -> None:
        pass


class Link:
    """One accepted connection."""

    def __init__(self, target: FakeTarget, endpoint: Endpoint) -> None:
        self.target = target
        self.endpoint = endpoint
        self.connection = TargetConnection(target.config)
        self.qid = 0
        endpoint.set_reader(self.readable)

    def readable(self) -> None:
        if self.target.silent:
            return
        while not self.endpoint.closed:
            try:
                count = self.endpoint.recv_into(self.connection.next_buffer())
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            if count == 0:
                self.close()
                return
            for event in one_by_one(self.connection.bytes_received(count, 0.0)):
                self.handle(event)
        self.flush()

    def close(self) -> None:
        self.endpoint.close()

    def handle(self, event: Any) -> None:
        if isinstance(event, Ready):
            self.target.ready.append(self)
        elif isinstance(event, CommandBatch):
            for index in range(event.count):
                start = index * event.stride + 8
                self.command(bytes(event.view[start : start + 64]), None)
        elif isinstance(event, CommandData):
            self.command(bytes(event.sqe), bytes(event.data))
        elif isinstance(event, R2tTransfer):
            raw, buffer = event.context  # type: ignore[misc]
            self.run(raw, bytes(buffer))
        else:
            self.target.events.append(event)

    def command(self, raw: bytes, data: bytes | None) -> None:
        sqe = SQE.unpack_from(raw)
        direction = sqe.nsid & 3 if sqe.opcode == 0x7F else sqe.opcode & 3
        if data is None and direction == 1 and sqe.sgl_type == SglType.TRANSPORT_DATA_BLOCK and sqe.sgl_length:
            buffer = bytearray(sqe.sgl_length)
            self.connection.request_data(sqe.cid, memoryview(buffer), (raw, buffer))
            return
        self.run(raw, data)

    def run(self, raw: bytes, data: bytes | None) -> None:
        sqe = SQE.unpack_from(raw)
        if sqe.opcode == 0x7F and sqe.fctype == 1:
            self.qid = sqe.cdw10 >> 16
            self.connection.set_queue(self.qid, (sqe.cdw11 & 0xFFFF) + 1, flow_control=not sqe.cdw11 >> 18 & 1)
            self.target.links[self.qid] = self
        direction = sqe.nsid & 3 if sqe.opcode == 0x7F else sqe.opcode & 3
        into = memoryview(bytearray(sqe.sgl_length)) if direction == 2 and sqe.sgl_length else None
        request = _Received(raw, data, into)
        queue = Queue(self.target.device, self.target.options, self.qid, 4096)
        queue.requests[sqe.cid] = request
        request.queue, request.cid = queue, sqe.cid

        def answered(result: int, status: int) -> None:
            if self.endpoint.closed:
                return
            dw0, dw1 = result & 0xFFFFFFFF, result >> 32
            if into is not None and not status:
                self.connection.send_read(sqe.cid, into, status, dw0, dw1)
            else:
                self.connection.send_completion(sqe.cid, status, dw0, dw1)
            self.flush()

        request.answered = answered
        device = self.target.device
        device.drained.discard(self.qid)
        device.send_req(request, False)

    def flush(self) -> None:
        while not self.endpoint.closed and self.connection.want_write:
            buffers = self.connection.data_to_send()
            try:
                sent = self.endpoint.sendmsg(self.target.mangle(buffers))
            except BlockingIOError:
                self.connection.bytes_sent(0)
                self.endpoint.set_writer(self.flush)
                return
            except OSError:
                self.connection.bytes_sent(0)
                self.close()
                return
            self.connection.bytes_sent(sent)
        if not self.endpoint.closed:
            self.endpoint.set_writer(None)


class FakeTarget:
    """A target that listens on ``port`` of ``transport``. ``links``: by QID."""

    def __init__(self, device: FakeDevice, transport: str, config: ConnectionConfig) -> None:
        self.device = device
        self.transport = transport
        self.config = config
        self.silent = False
        self.mangle: Callable[[list[Any]], list[Any]] = lambda buffers: buffers
        self.links: dict[int, Link] = {}
        self.accepted: list[Link] = []
        self.ready: list[Link] = []
        self.events: list[Any] = []
        self.options: Any = type("Options", (), {"disable_sqflow": False})()
        self.on_accept: Callable[[Link], None] | None = None

    async def start(self) -> None:
        host = "fake" if self.transport == "memory" else "127.0.0.1"
        self.listeners = await get(self.transport).listen(host, 0, SocketOptions(), self._accepted)
        self.host, self.port = self.listeners[0].address.host, self.listeners[0].address.port

    def _accepted(self, endpoint: Endpoint) -> None:
        link = Link(self, endpoint)
        self.accepted.append(link)
        if self.on_accept is not None:
            self.on_accept(link)

    async def stop(self) -> None:
        for listener in self.listeners:
            listener.close()
        for link in self.accepted:
            link.endpoint.abort()
        await asyncio.sleep(0)


def ok(status: int = 0) -> int:
    """Return a status word."""
    return status_field(status)
