"""The Discovery log, in the forms that a host can ask for."""

from __future__ import annotations

from struct import Struct
from typing import Final

from nvmeof.spec.discovery import ENTRY_BYTES, HEADER_BYTES, DiscoveryFlags, DiscoveryLsp
from nvmeof.spec.enums import LogPageId
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.discovery import read_discovery_log

_TEL: Final = Struct("<I")  # first of EXTENDED_ENTRY_TAIL: asked for once per entry and piece
# Not ALL_SUBSYSTEMS: subsystems that a host may not use are never listed.
_SUPPORTED = DiscoveryLsp.EXTENDED_ENTRIES | DiscoveryLsp.PORT_LOCAL


def _discovery(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    asked = command.lsp & _SUPPORTED
    return read_discovery_log(
        ctx.registry,
        ctx.port,
        ctx.host_nqn,
        extended=bool(asked & DiscoveryLsp.EXTENDED_ENTRIES),
        port_local=bool(asked & DiscoveryLsp.PORT_LOCAL),
    )


def _entries(page: bytes) -> list[int]:
    """Return the entries' offsets in bytes: index 0 is the header, index 1 the first entry."""
    extended = page[18] & DiscoveryFlags.EXTENDED
    if not extended:
        return [0, *range(HEADER_BYTES, len(page), ENTRY_BYTES)]
    offsets, position = [0], HEADER_BYTES
    while position < len(page):
        offsets.append(position)
        position += _TEL.unpack_from(page, position + ENTRY_BYTES)[0]
    return offsets


ROWS = Rows(
    log_pages=(
        LogPageSpec(
            LogPageId.DISCOVERY,
            "Discovery",
            _discovery,
            io=False,
            discovery=True,
            entries=_entries,
            lidsp=int(_SUPPORTED),
            remark="extended entries (EXTDLPE), those of one port (PLEO), and by index (OT)",
        ),
    ),
)
