"""Run every asynchronous test here on stock asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from nvmeof.transport import Endpoint, Listener, SocketOptions, get, mptcp, options

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each asynchronous test once per loop; without uvloop only on asyncio's own."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(autouse=True)
def fresh_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Reset the log, so that a line that is logged once per process is logged again in each test."""
    mptcp.forget_fallbacks()
    options._said.clear()
    caplog.set_level(logging.INFO, logger="nvmeof.transport")
    yield


async def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Run the loop until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the condition is whatever a test says)
            await asyncio.sleep(0.002)


async def receive(endpoint: Endpoint, count: int) -> bytes:
    """Read ``count`` bytes, or fewer when the stream ends, through the endpoint's reader callback."""
    data = bytearray()
    done = asyncio.get_running_loop().create_future()

    def readable() -> None:
        chunk = bytearray(min(65536, count - len(data)))
        try:
            n = endpoint.recv_into(memoryview(chunk))
        except BlockingIOError:
            return
        except OSError as error:
            endpoint.set_reader(None)
            done.set_exception(error)
            return
        data.extend(chunk[:n])
        if not n or len(data) == count:
            endpoint.set_reader(None)
            done.set_result(None)

    if count:
        endpoint.set_reader(readable)
        async with asyncio.timeout(10):
            await done
    return bytes(data)


async def send(endpoint: Endpoint, data: bytes) -> int:
    """Send everything through the endpoint's writer callback; return how many sendmsg calls took bytes."""
    rest = memoryview(data)
    calls = 0
    done = asyncio.get_running_loop().create_future()

    def writable() -> None:
        nonlocal rest, calls
        try:
            rest = rest[endpoint.sendmsg([rest[:1], rest[1:]]) :]
        except BlockingIOError:
            return
        except OSError as error:
            endpoint.set_writer(None)
            done.set_exception(error)
            return
        calls += 1
        if not rest:
            endpoint.set_writer(None)
            done.set_result(None)

    endpoint.set_writer(writable)
    async with asyncio.timeout(10):
        await done
    return calls


@contextlib.asynccontextmanager
async def listening(
    name: str,
    host: str = "127.0.0.1",
    settings: SocketOptions | None = None,
    port: int = 0,
) -> AsyncIterator[tuple[list[Listener], list[Endpoint]]]:
    """Yield listeners of a transport and the endpoints that they accept; all closed at the end."""
    accepted: list[Endpoint] = []
    listeners = await get(name).listen(host, port, settings or SocketOptions(), accepted.append)
    try:
        yield listeners, accepted
    finally:
        for listener in listeners:
            listener.close()
        for endpoint in accepted:
            endpoint.close()


@contextlib.asynccontextmanager
async def connected(
    name: str,
    host: str = "127.0.0.1",
    settings: SocketOptions | None = None,
    target_settings: SocketOptions | None = None,
    target_name: str | None = None,
) -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    """Yield the two ends of a connection, host's first; both closed at the end."""
    async with listening(target_name or name, host, target_settings) as (listeners, accepted):
        endpoint = await get(name).connect(host, listeners[0].address.port, settings or SocketOptions())
        try:
            await wait_for(lambda: accepted)
            yield endpoint, accepted[0]
        finally:
            endpoint.close()
