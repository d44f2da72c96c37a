"""The clients of the control socket together leave most of the event loop's time to hosts."""

from __future__ import annotations

import asyncio
import time

from nvmeof.target.control.shares import OTHERS, Shares


def work(seconds: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


async def test_others_have_their_time_however_many_ask() -> None:
    shares, done, spent = Shares(), 0, 0.01

    async def client() -> None:
        nonlocal done
        while True:
            await shares.turn()
            with shares.spending():
                work(spent)
            done += 1

    clients = [asyncio.create_task(client()) for _ in range(20)]
    began = time.monotonic()
    await asyncio.sleep(1.0)
    taken = time.monotonic() - began
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    assert 1 <= done <= taken / (spent * (1 + OTHERS)) + 2


async def test_turns_come_in_the_order_of_asking_and_at_once_where_nothing_was_taken() -> None:
    shares, order = Shares(), list[int]()

    async def client(number: int) -> None:
        await shares.turn()
        order.append(number)

    await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(50))), 10)
    assert order == list(range(50))
