"""Who may ask: by the key, and by what a browser says of the page that asks.

A page on the web can make a browser send requests to this machine, and by letting its own name
point here (DNS rebinding) it could even read the answers. So a server on the loopback that asks
for no key takes only requests for a name of the loopback, and any server refuses what pages send,
unless they were allowed. Programs that are no browsers send no Origin.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localcascade.server.listener import Listener
from localcascade.server.problems import THEIRS, Problem
from localcascade.server.reply import refuse

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = ("/health",)
"""What needs no key."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Judges requests by their headers."""

    key: str | None = field(default=None, repr=False)
    """None asks for none."""
    names: frozenset[str] | None = None
    """Names of this server that requests may be for; None takes any."""
    origins: tuple[str, ...] = ()
    """Pages, as https://host:port, that may ask from within a browser."""

    def judge(self, path: str, headers: Headers) -> Problem | None:
        """Find what speaks against a request.

        Args:
            path: What it is for.
            headers: Its headers.

        Returns:
            The problem; None if it may pass.
        """
        name = _cut_port(headers.get("host", ""))
        if self.names is not None and name not in self.names:
            message = f"this server does not answer to the name {name!a:.100}"
            return Problem(403, message, THEIRS, "forbidden_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins:
            message = f"pages of {origin!a:.100} may not ask; --allow-origin would let them"
            return Problem(403, message, THEIRS, "forbidden_origin")
        if path in OPEN_PATHS or self._has_key(headers.get("authorization", "")):
            return None
        return Problem(
            401,
            "the API key is missing or wrong: send the header Authorization: Bearer KEY",
            THEIRS,
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _has_key(self, given: str) -> bool:
        """Compare in a time that does not depend on how much of the key is right."""
        if self.key is None:
            return True
        scheme, _, key = given.partition(" ")
        is_right = hmac.compare_digest(key.strip().encode(), self.key.encode())
        return is_right and scheme.lower() == "bearer"


def _cut_port(host: str) -> str:
    """Cut the port off a Host header; an address of IPv6 stands in brackets."""
    name = host.lower()
    return name[: name.index("]") + 1] if "]" in name else name.partition(":")[0]


def make_guard(key: str | None, listener: Listener, origins: tuple[str, ...] = ()) -> Guard:
    """Make the guard of a server.

    Args:
        key: What clients must send; None for nothing.
        listener: Where it listens.
        origins: Pages that may ask.
    """
    is_open = key is None and listener.is_loopback
    names = LOOPBACK_NAMES | {listener.name} if is_open else None
    return Guard(key, names, origins)


class Gate:
    """Lets pass only what a guard lets pass, and says of each request what became of it.

    Args:
        app: What is behind it.
        guard: Judges.
        log: Takes a line for each request: method, path, status and seconds, nothing of its body.
    """

    def __init__(self, app: ASGIApp, guard: Guard, log: Callable[[str], None] | None) -> None:
        self._app, self._guard, self._log = app, guard, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        began_s, status = time.perf_counter(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        problem = self._guard.judge(scope["path"], Headers(scope=scope))
        try:
            answer = self._app if problem is None else refuse(problem)
            await answer(scope, receive, watch)
        finally:
            if self._log is not None:
                took_s = time.perf_counter() - began_s
                told = status or "gone"
                self._log(f"{scope['method']} {scope['path']} {told} {took_s:.2f} s")
