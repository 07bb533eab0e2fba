"""What a client asks of the worker: requests in their order, and what it wishes of them since."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from localcascade.engine.generation import Wishes
from localcascade.engine.wire import Channel, Frame

FINISH_LIMIT_S = 2.0
"""How long the state of a session may still be written after the client hung up; it waits for 3."""


class Inbox:
    """Listens to the client, in a thread of its own, which ends the process at a hang-up.

    Args:
        channel: The client.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._wishes: dict[int, Wishes] = {}
        self.finish: Callable[[], None] = lambda: None
        """Called at a hang-up: what must still be done, within FINISH_LIMIT_S."""
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            yield self._requests.get()

    def watch(self, request: int) -> Wishes:
        """Find out what else the client wants of a chat, from its arrival on."""
        return self._wishes[request]

    def forget(self, request: int) -> None:
        """Listen to no more wishes: the request has been answered."""
        self._wishes.pop(request, None)

    def _listen(self) -> NoReturn:
        while True:
            try:
                frame, _ = self._channel.receive()
            except EOFError:
                self._end()
            wishes = self._wishes.get(frame["id"], Wishes())
            if frame["op"] == "cancel":
                wishes.is_cancelled = True
            elif frame["op"] == "answer_now":
                wishes.wants_answer = True
            else:
                if frame["op"] == "chat":
                    self._wishes[frame["id"]] = wishes
                self._requests.put(frame)

    def _end(self) -> NoReturn:
        threading.Timer(FINISH_LIMIT_S, os._exit, (0,)).start()
        self.finish()
        os._exit(0)
