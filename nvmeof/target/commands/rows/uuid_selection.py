"""Whose definition of vendor specific information a host asks for: the UUID List, and the UUID Index of Get Log Page.

What is vendor specific here are the data areas of the Telemetry pages (docs/telemetry.md).
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from nvmeof.errors import CommandError
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.target.controller.controller import Controller

TELEMETRY_UUID: Final = UUID("f21e7b28-9b22-49bb-9174-0c829d662ea1")
"""Telemetry as docs/telemetry.md describes it."""
UUIDS: Final = (TELEMETRY_UUID,)
"""By UUID Index - 1; what index 0 gives is the same."""
_UUID_INDEX: Final = SQE.error_location("cdw14")


def check_uuid_index(controller: Controller, index: int) -> None:
    """Refuse a UUID Index without an entry in the UUID List, if there is a list (NVMe Base, UUID List). Raises
    `CommandError`."""
    if index > len(UUIDS) and not controller.discovery:
        raise CommandError(Status.INVALID_FIELD, _UUID_INDEX, message=f"UUID index {index} is not in the UUID List")
