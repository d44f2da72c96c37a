"""The queue connection without sockets: what a target answers to an R2T that was never asked for.

python examples/misbehaving_host.py
"""

from __future__ import annotations

from nvmeof.protocol.connection import Connection, ConnectionConfig, HostConnection, TargetConnection
from nvmeof.protocol.events import Event, ProtocolFailure


def deliver(sender: Connection, receiver: Connection) -> list[Event]:
    """Carry everything that one end has to send to the other."""
    data = memoryview(b"".join(sender.data_to_send()))
    sender.bytes_sent(len(data))
    events: list[Event] = []
    while data:
        buffer = receiver.next_buffer()
        count = min(len(buffer), len(data))
        buffer[:count], data = data[:count], data[count:]
        events += receiver.bytes_received(count, now=0.0)
    return events


def main() -> None:
    """Shake hands, then send the target a PDU that only targets send."""
    host = HostConnection(ConnectionConfig())
    target = TargetConnection(ConnectionConfig())
    host.start()
    deliver(host, target)
    deliver(target, host)
    host.send_raw(host.encoder.r2t(cid=1, ttag=0, r2to=0, r2tl=4096))
    for event in deliver(host, target):
        if isinstance(event, ProtocolFailure):
            print(f"FES {event.error.fes:#04x}: {event.error}")
    print(*deliver(target, host))


if __name__ == "__main__":
    main()
