"""Carry plain TCP connections over MPTCP, or the other way round: one file, nothing but the standard library.

For an initiator that speaks TCP only, such as the Linux kernel's nvme-tcp: run the relay on its machine, connect it to
127.0.0.1, and what it sends takes all the paths to a target that speaks MPTCP.

    python mptcp_relay.py --listen tcp:127.0.0.1:4420 --connect mptcp:10.1.1.1:4420
    nvme connect -t tcp -a 127.0.0.1 -s 4420 -n NQN

One process on one core; every byte is copied into user space and out again. Only the paths between the relay and its
peer are protected against failure, and the relay itself is one more thing that can fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys

IPPROTO_MPTCP = 262
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "mptcp": IPPROTO_MPTCP}
BUFFER_BYTES = 256 * 1024


class Pump:
    """One direction of a connection: reads when it can, and does not read while the other side takes nothing."""

    def __init__(self, source: socket.socket, sink: socket.socket, ended: asyncio.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._sink, self._ended = source, sink, ended
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = self._end = 0
        self.over = False
        self._loop.add_reader(source, self._readable)

    def _readable(self) -> None:
        try:
            received = self._source.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._fail()
            return
        if not received:
            self._loop.remove_reader(self._source)
            self.over = True
            with contextlib.suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)
            self._ended.set()
            return
        self._start, self._end = 0, received
        if not self._flush():
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._writable)

    def _flush(self) -> bool:
        """Whether everything has been taken."""
        try:
            self._start += self._sink.send(self._buffer[self._start : self._end])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._fail()
            return True
        return self._start == self._end

    def _writable(self) -> None:
        if self._flush():
            self._loop.remove_writer(self._sink)
            if not self.over:
                self._loop.add_reader(self._source, self._readable)

    def _fail(self) -> None:
        self.over = True
        self.stop()
        self._ended.set()
        with contextlib.suppress(OSError):
            self._source.shutdown(socket.SHUT_RDWR)  # wakes the other direction too
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Watch the sockets no more."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)


def open_socket(protocol: str, congestion: str | None) -> socket.socket:
    """A non-blocking socket of that kind, without Nagle's delay. Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOLS[protocol])
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if congestion:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    except OSError:
        sock.close()
        raise
    return sock


async def connect(protocol: str, address: tuple[str, int], congestion: str | None) -> socket.socket:
    """A connected socket. asyncio's own sock_connect fails on MPTCP sockets (python/cpython#123174). Raises OSError."""
    sock = open_socket(protocol, congestion)
    try:
        try:
            sock.connect(address)
        except BlockingIOError:
            writable = asyncio.Event()
            asyncio.get_running_loop().add_writer(sock, writable.set)
            try:
                await writable.wait()
            finally:
                asyncio.get_running_loop().remove_writer(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "no connection") from None
    except BaseException:
        sock.close()
        raise
    return sock


async def carry(near: socket.socket, protocol: str, address: tuple[str, int], congestion: str | None) -> None:
    """One connection, from its acceptance to its end in both directions."""
    near.setblocking(False)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with near:
        try:
            far = await connect(protocol, address, congestion)
        except OSError as error:
            print(f"no {protocol} connection to {address[0]}:{address[1]}: {error.strerror or error}", file=sys.stderr)
            return
        with far:
            ended = asyncio.Event()
            pumps = (Pump(near, far, ended), Pump(far, near, ended))
            try:
                while not all(pump.over for pump in pumps):
                    ended.clear()
                    await ended.wait()
            finally:
                for pump in pumps:
                    pump.stop()


def address(text: str) -> tuple[str, tuple[str, int]]:
    """`mptcp:10.1.1.1:4420` as protocol and address."""
    protocol, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if protocol not in PROTOCOLS or not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not tcp:ADDRESS:PORT or mptcp:ADDRESS:PORT")
    return protocol, (host, int(port))


async def relay(options: argparse.Namespace) -> None:
    """Accept until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    (near_protocol, here), (far_protocol, there) = options.listen, options.connect
    tasks: set[asyncio.Task[None]] = set()
    with open_socket(near_protocol, options.congestion) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(here)
        listener.listen(128)
        print(f"relaying {near_protocol} {here[0]}:{listener.getsockname()[1]} to {far_protocol} {there[0]}:{there[1]}",
              flush=True)  # fmt: skip

        async def accept() -> None:
            while True:
                near, _ = await loop.sock_accept(listener)
                task = loop.create_task(carry(near, far_protocol, there, options.congestion))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        accepting = loop.create_task(accept())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, accepting.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Carry TCP connections over MPTCP, or MPTCP connections over TCP.")
    parser.add_argument("--listen", type=address, required=True, metavar="PROTOCOL:ADDRESS:PORT")
    parser.add_argument("--connect", type=address, required=True, metavar="PROTOCOL:ADDRESS:PORT")
    parser.add_argument("--congestion", metavar="NAME", help="TCP congestion control of all sockets")
    try:
        asyncio.run(relay(parser.parse_args()))
    except OSError as error:
        sys.exit(f"mptcp_relay: {error.strerror or error}")


if __name__ == "__main__":
    main()
