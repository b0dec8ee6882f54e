"""A thread that works for an event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from starloom.orchestrator.onethread import OneThread


@pytest.fixture
async def one() -> AsyncIterator[OneThread]:
    thread = OneThread("one")
    yield thread
    thread.close()


async def test_calls_are_made_in_order_in_one_other_thread(one: OneThread) -> None:
    made: list[int] = []

    def note(number: int) -> int:
        made.append(number)
        return threading.get_ident()

    threads = await asyncio.gather(*(one.call(note, number) for number in range(100)))
    assert made == list(range(100))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_what_a_call_raises_is_raised_and_the_next_one_is_made(one: OneThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await one.call(divmod, 1, 0)
    assert await one.call(divmod, 7, 2) == (3, 1)


async def test_a_call_that_is_given_up_is_made_and_its_result_dropped(one: OneThread) -> None:
    go_on = threading.Event()
    held = one.call(go_on.wait)
    given_up = one.call(divmod, 7, 2)
    given_up.cancel()
    go_on.set()
    assert await held
    assert await one.call(divmod, 9, 2) == (4, 1)
    assert given_up.cancelled()


async def test_closing_waits_for_what_was_asked(one: OneThread) -> None:
    made: list[int] = []
    one.call(made.append, 1)
    one.call(made.append, 2)
    one.close()
    one.close()
    assert made == [1, 2]


def test_a_loop_that_is_closed_meanwhile_does_no_harm() -> None:
    go_on = threading.Event()

    async def leave_a_call_behind() -> OneThread:
        thread = OneThread("left")
        thread.call(go_on.wait)
        return thread

    thread = asyncio.run(leave_a_call_behind())
    go_on.set()
    thread.close()
