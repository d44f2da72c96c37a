"""The options of a connection, as discovery.conf and config.json name them.

Sources: nvme-cli fabrics.c (``NVMF_ARGS``), libnvme doc/config-schema.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Value = str | int | bool


class Kind(Enum):
    """What an option takes."""

    TEXT = "a text"
    NUMBER = "a whole number"
    FLAG = "true or false"


@dataclass(frozen=True, slots=True)
class FabricsOption:
    """An option of a connection: its name in config.json, its letter in discovery.conf (or none), what it takes.

    The long form in discovery.conf is the name with ``-`` in place of ``_``.
    """

    name: str
    letter: str
    kind: Kind


def _options(kind: Kind, names: str) -> list[FabricsOption]:
    return [FabricsOption(name, letter, kind) for name, letter in (each.split(":") for each in names.split())]


FABRICS_OPTIONS = (
    *_options(
        Kind.TEXT,
        "transport:t traddr:a trsvcid:s host_traddr:w host_iface:f hostnqn:q hostid:I nqn:n raw:r output_format:o "
        "config:J dhchap_secret:S dhchap_ctrl_secret:C keyring: tls_key: tls_key_identity:",
    ),
    *_options(
        Kind.NUMBER,
        "nr_io_queues:i nr_write_queues:W nr_poll_queues:P queue_size:Q keep_alive_tmo:k reconnect_delay:c "
        "ctrl_loss_tmo:l fast_io_fail_tmo:F tos:T",
    ),
    *_options(
        Kind.FLAG,
        "duplicate_connect:D disable_sqflow:d hdr_digest:g data_digest:G persistent:p tls: concat: quiet: force: "
        "matching:m verbose:v discovery:",
    ),
)
BY_NAME = {option.name: option for option in FABRICS_OPTIONS}
BY_LETTER = {option.letter: option for option in FABRICS_OPTIONS if option.letter}
ADDRESS = ("transport", "traddr", "trsvcid", "host_traddr", "host_iface")
"""What tells the ports of a subsystem apart."""
PORT_OPTIONS = frozenset({option.name for option in FABRICS_OPTIONS if option.kind is Kind.NUMBER}) | {
    "duplicate_connect",
    "disable_sqflow",
    "hdr_digest",
    "data_digest",
    "persistent",
    "discovery",
    "tls",
    "concat",
}
"""Options of a port in config.json; its keys and secrets are among what is preserved unread."""
