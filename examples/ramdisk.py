"""A target and a host in one program: write a block over MPTCP and read it back.

python examples/ramdisk.py
"""

from __future__ import annotations

import asyncio

from nvmeof import Ramdisk, Target, connect


async def main() -> None:
    """Serve 64 MiB, use it, say over what."""
    async with (
        Target(namespaces=[Ramdisk("64M")]) as target,
        await connect(target.address.host, target.address.port, subnqn=target.subnqn) as controller,
    ):
        namespace = controller.namespace(1)
        await namespace.write(0, b"hello".ljust(512, b"\0"))
        print((await namespace.read(0, 1)).rstrip(b"\0").decode())
        for queue in controller.describe():
            print(f"queue {queue['qid']}: {queue['protocol']}, {len(queue['subflows'])} subflow")


if __name__ == "__main__":
    asyncio.run(main())
