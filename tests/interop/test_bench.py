"""What the checks take from a kernel's messages."""

from __future__ import annotations

import pytest

from tests.interop.bench import never_sent


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[  492.069046] nvme nvme0: long keepalive RTT (197096 ms)", True),
        ("[   60.000000] nvme nvme0: long keepalive RTT (4294732296 ms)", True),
        ("[  492.069046] nvme nvme0: long keepalive RTT (6000 ms)", False),
        ("[  492.069046] nvme nvme0: long keepalive RTT (197596 ms)", False),
        ("[  492.069046] nvme nvme0: I/O tag 3 timeout", False),
    ],
)
def test_keep_alives_that_were_never_sent(line: str, expected: bool) -> None:
    assert never_sent(line) is expected
