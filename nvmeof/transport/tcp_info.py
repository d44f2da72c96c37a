"""The kernel's `struct tcp_info` (include/uapi/linux/tcp.h), as far as it is shown.

Kernels only ever append to it, so a shorter answer of an older kernel lacks the last fields (they read None) and a
longer one of a newer kernel has more than is read here. Host byte order; offsets hold on every Linux ABI, as the
structure has no field that depends on the word size.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from nvmeof.transport.base import Address, Buffer, SubflowInfo

TCP_STATES: Final = (
    "UNKNOWN",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)

CLOSED_STATE: Final = "CLOSE"
assert CLOSED_STATE in TCP_STATES

TCP_INFO_FIELDS: Final[dict[str, tuple[int, str]]] = {
    "tcpi_state": (0, "B"),
    "tcpi_retransmits": (2, "B"),
    "tcpi_snd_mss": (16, "I"),
    "tcpi_unacked": (24, "I"),
    "tcpi_lost": (32, "I"),
    "tcpi_last_data_sent": (44, "I"),
    "tcpi_last_data_recv": (52, "I"),
    "tcpi_last_ack_recv": (56, "I"),
    "tcpi_rtt": (68, "I"),
    "tcpi_rttvar": (72, "I"),
    "tcpi_snd_cwnd": (80, "I"),
    "tcpi_total_retrans": (100, "I"),
    "tcpi_bytes_acked": (120, "Q"),
    "tcpi_bytes_received": (128, "Q"),
    "tcpi_min_rtt": (148, "I"),
    "tcpi_delivery_rate": (160, "Q"),
    "tcpi_bytes_sent": (200, "Q"),
    "tcpi_bytes_retrans": (208, "Q"),
}
"""Field: (offset, struct format)."""

TCP_INFO_BYTES: Final = 512
"""Room offered to the kernel: twice what it fills today."""


class Layout:
    """Reads a kernel structure of which this kernel may know less or more than we do."""

    def __init__(self, fields: dict[str, tuple[int, str]]) -> None:
        self._fields = [(name, offset, struct.Struct("=" + code)) for name, (offset, code) in fields.items()]

    def read(self, data: Buffer) -> dict[str, int | None]:
        """Return every field of the layout; None for those that `data` is too short for."""
        length = len(data)
        return {
            name: codec.unpack_from(data, offset)[0] if offset + codec.size <= length else None
            for name, offset, codec in self._fields
        }


TCP_INFO: Final = Layout(TCP_INFO_FIELDS)


def subflow_info(data: Buffer, local: Address, peer: Address, subflow_id: int | None = None) -> SubflowInfo:
    """Parse the `struct tcp_info` in `data` for the flow between these addresses."""
    raw = TCP_INFO.read(data)
    state = raw["tcpi_state"] or 0
    values: dict[str, Any] = {
        "state": TCP_STATES[state] if state < len(TCP_STATES) else f"STATE_{state}",
        "bytes_sent": raw["tcpi_bytes_sent"],
        "bytes_acked": raw["tcpi_bytes_acked"],
        "bytes_received": raw["tcpi_bytes_received"],
        "bytes_retransmitted": raw["tcpi_bytes_retrans"],
        "retransmits": raw["tcpi_total_retrans"],
        "lost_segments": raw["tcpi_lost"],
        "unacked_segments": raw["tcpi_unacked"],
        "rtt_us": raw["tcpi_rtt"],
        "rttvar_us": raw["tcpi_rttvar"],
        # the kernel's "never measured" is all ones
        "min_rtt_us": None if raw["tcpi_min_rtt"] == 0xFFFFFFFF else raw["tcpi_min_rtt"],
        "cwnd_segments": raw["tcpi_snd_cwnd"],
        "mss_bytes": raw["tcpi_snd_mss"],
        "delivery_rate_bytes_per_second": raw["tcpi_delivery_rate"],
        "last_data_sent_ms": raw["tcpi_last_data_sent"],
        "last_data_received_ms": raw["tcpi_last_data_recv"],
        "last_ack_received_ms": raw["tcpi_last_ack_recv"],
        "timeouts": raw["tcpi_retransmits"],
    }
    return SubflowInfo(id=subflow_id, local=local, peer=peer, **values)
