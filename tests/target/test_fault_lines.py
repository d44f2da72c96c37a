"""A storage error leaves one line in the target's log, and not one per command."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nvmeof import FileBackend, NvmeStatusError, Target, connect
from nvmeof.spec.status import Status


@pytest.mark.parametrize("later", [False, True])
async def test_a_full_disk_leaves_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, later: bool) -> None:
    backend = FileBackend(tmp_path / "disk", size="1M")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def fail_later() -> None:
        raise full

    def fail(*_: Any, **__: Any) -> Any:
        if later:
            return fail_later()
        raise full

    async with (
        Target(namespaces=[backend]) as target,
        await connect(target.address.host, target.address.port, subnqn=target.subnqn) as controller,
    ):
        backend.write = fail  # type: ignore[method-assign]
        backend.runs.write = lambda *arguments: False  # type: ignore[union-attr, method-assign]
        for _ in range(3):
            with pytest.raises(NvmeStatusError) as caught:
                await controller.namespace(1).write(0, bytes(512))
            assert caught.value.status == Status.CAPACITY_EXCEEDED
        said = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
        assert said == [f"writing to namespace 1 (file {tmp_path}/disk) failed: No space left on device"]
