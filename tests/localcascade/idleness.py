"""Waits until a screen under test is idle: nothing is left to do that does not wait for the test.

Textual's pilot looks at the clocks: on a busy machine a process that gets no turn is idle to it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

LIMIT_S = 120.0
"""Longest wait of a test; only against one without end."""
SOON_S = 0.02
"""What is due so soon is waited for: Textual collects changes of the screen for a sixtieth."""


async def wait_for_idle(*_: object) -> None:
    """Wait as Textual's function of this name is meant to."""
    loop: Any = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.sleep(0)
        # In this order: a thread that has ended has put what follows from it into the loop.
        while _has_working_thread(loop) or loop._ready or _has_timer(loop):
            await asyncio.sleep(0.001)


def _has_timer(loop: Any) -> bool:
    soon_s = loop.time() + SOON_S
    return any(timer.when() < soon_s and not timer.cancelled() for timer in loop._scheduled)


def _has_working_thread(loop: Any) -> bool:
    """Whether one of the loop's threads has work and does not wait for somebody."""
    pool = loop._default_executor
    if pool is None:
        return False
    n_taken = len(pool._threads) - pool._idle_semaphore._value + pool._work_queue.qsize()
    frames = sys._current_frames()
    return n_taken > sum(_waits(frames.get(thread.ident)) for thread in pool._threads)


def _waits(frame: Any) -> bool:
    """Whether a thread waits for an Event or a Condition, and has not been told of it yet."""
    while frame is not None and frame.f_code is not threading.Condition.wait.__code__:
        frame = frame.f_back if frame.f_code.co_filename == threading.__file__ else None
    waiter = frame.f_locals.get("waiter") if frame is not None else None
    return waiter is not None and waiter.locked()
