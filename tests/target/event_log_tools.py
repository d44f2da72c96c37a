"""Reading the Persistent Event log as nvme-cli does."""

from nvmeof.spec.persistent_events import HEADER, parse_events
from nvmeof.spec.properties import CC_OFFSET
from tests.target.harness import CC_ENABLE

READ, ESTABLISH, RELEASE, HEADER_ONLY = 0, 1, 2, 3
PEL = 0x0D


def events_of(admin):
    """Return all events, newest first, read in two parts as nvme-cli does."""
    header = HEADER.parse(admin.read_bytes(admin.log_page(PEL, 512, lsp=ESTABLISH, rae=True)))
    size = -(-header.tll // 4) * 4
    page = admin.read_bytes(admin.log_page(PEL, size, lsp=READ, rae=True))
    assert admin.log_page(PEL, 512, lsp=RELEASE).status == 0
    return list(parse_events(page))


def kinds(admin):
    return [event.type for event in events_of(admin)]


def reset(admin):
    admin.set_property(CC_OFFSET, CC_ENABLE & ~1)
    admin.set_property(CC_OFFSET, CC_ENABLE)
