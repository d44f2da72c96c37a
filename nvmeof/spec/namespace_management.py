"""Namespace Management and Namespace Attachment: command fields and data (NVMe Base and NVM Command Set).

Field names are the specification's in lower case, values raw.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import construct as c

from nvmeof.wire import U8, U16, U32, U64, build

NAMESPACE_CREATE_BYTES = 4096
"""Length of the data of a create operation."""
CONTROLLER_LIST_BYTES = 4096
"""Length of the data of Namespace Attachment."""


class ManagementSelect(IntEnum):
    """SEL of Namespace Management: CDW10 bits 3:0."""

    CREATE = 0
    DELETE = 1


class AttachmentSelect(IntEnum):
    """SEL of Namespace Attachment: CDW10 bits 3:0."""

    ATTACH = 0
    DETACH = 1


NAMESPACE_CREATE = c.Struct(
    "nsze" / U64,
    "ncap" / U64,
    c.Padding(10),
    "flbas" / U8,
    c.Padding(2),
    "dps" / U8,
    "nmic" / U8,
    c.Padding(61),
    "anagrpid" / U32,
    c.Padding(4),
    "nvmsetid" / U16,
    "endgid" / U16,
    c.Padding(280),
    "lbstm" / U64,
    "nphndls" / U16,
    c.Padding(105),
    "znsco" / U8,
    "rar" / U32,
    "ror" / U32,
    "rnumzrwa" / U32,
    "phndl" / U16[128],
    c.Padding(3328),
)
"""What a host says of a namespace to create, 4096 bytes. ``nsze ncap``: logical blocks; ``lbstm``: storage tag mask;
``nphndls phndl``: placement handles; ``znsco rar ror rnumzrwa``: of zoned namespaces."""

GRANULARITY_DESCRIPTORS_MAX = 16
GRANULARITY_PER_FORMAT = 1 << 0
"""Granularity attributes: each descriptor is of the LBA format with its index, instead of one for all."""
NAMESPACE_GRANULARITY_LIST = c.Struct(
    "attributes" / U32,
    "num_descriptors" / U8,
    c.Padding(27),
    "descriptors" / c.Struct("nszegran" / U64, "ncapgran" / U64)[GRANULARITY_DESCRIPTORS_MAX],
    c.Padding(3808),
)
"""CNS 16h, 4096 bytes. ``num_descriptors``: 0's-based; granularities in bytes."""


def build_granularity_list(granularities: Iterable[tuple[int, int]], *, per_format: bool = False) -> bytes:
    """Build the Namespace Granularity list of (size, capacity) granularities, in bytes."""
    descriptors = [{"nszegran": size, "ncapgran": capacity} for size, capacity in granularities]
    return build(
        NAMESPACE_GRANULARITY_LIST,
        attributes=GRANULARITY_PER_FORMAT if per_format else 0,
        num_descriptors=len(descriptors) - 1,
        descriptors=descriptors,
    )
