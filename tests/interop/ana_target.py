"""A target of ours with two ports, whose ANA states a check changes: arguments are PORT PORT NQN.

Lines on standard input: ``state PORTID GROUP WORD`` and ``move NSID GROUP``; each is answered by ``done``.
"""

from __future__ import annotations

import asyncio
import sys

from nvmeof import Ramdisk, Target
from nvmeof.target.subsystem.ana import parse_ana_state


async def main() -> None:
    first, second, subnqn = sys.argv[1:]
    listen = [f"127.0.0.1:{port}" for port in (first, second)]
    disks = [Ramdisk("256M"), Ramdisk("64M")]
    async with Target(namespaces=disks, listen=listen, trtype="tcp", subnqn=subnqn) as target:
        administration = target.administration
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            verb, *words = line.split()
            if verb == "state":
                administration.set_ana_state(parse_ana_state(words[2]), int(words[1]), portid=int(words[0]))
            else:
                administration.move_namespace(int(words[0]), int(words[1]))
            print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
