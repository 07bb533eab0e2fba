"""Short requests to an engine, and what came of them; the workers of this process."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from localcascade.prompt.events import ChatRequest, Delta, Done, Event, Failed, Sampling


def ask(text: str, n_tokens: int | None = 20, **sampling: float) -> ChatRequest:
    return ChatRequest(
        messages=({"role": "user", "content": text},),
        thinking=False,
        sampling=Sampling(max_tokens=n_tokens, **({"temperature": 0} | sampling)),  # type: ignore[arg-type]
    )


def join(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def end(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done), events[-1]
    return events[-1]


def fail(events: list[Event]) -> Exception:
    assert isinstance(events[-1], Failed), events[-1]
    return events[-1].error


def find_workers(parent: int | None = None) -> list[psutil.Process]:
    return [child for child in psutil.Process(parent).children() if is_worker(child)]


def is_worker(child: psutil.Process) -> bool:
    try:
        return "localcascade.engine.worker" in str(child.cmdline())
    except psutil.Error:  # it has just ended
        return False


def find_new_worker(act: Callable[[], object]) -> psutil.Process:
    """The worker that an act starts."""
    before = {child.pid for child in find_workers()}
    act()
    (worker,) = [child for child in find_workers() if child.pid not in before]
    return worker
