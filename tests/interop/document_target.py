"""A target of ours that serves a configuration document, as JSON in the file that is the argument, until SIGINT."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from nvmeof import Target


async def serve(document: object) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, ended.set)
    async with Target.from_document(document):
        await ended.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
