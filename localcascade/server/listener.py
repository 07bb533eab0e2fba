"""Where the server listens: a socket that is ours, and uvicorn on it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

import uvicorn
from starlette.types import ASGIApp

from localcascade.download.hub import check_online
from localcascade.errors import CascadeError

GRACE_S = 1
"""How long answers may go on after Ctrl-C."""
_MAX_HEADER_BYTES = 64 << 10


@dataclass(frozen=True)
class Listener:
    """A socket that is bound, but takes no connections yet."""

    socket: socket.socket
    host: str
    """Address."""
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return _is_loopback(self.host)

    @property
    def name(self) -> str:
        """What a client on this machine calls it, as it stands in addresses."""
        host = "localhost" if ipaddress.ip_address(self.host).is_unspecified else self.host
        return f"[{host}]" if ":" in host else host

    @property
    def url(self) -> str:
        """Address of the API for a client on this machine."""
        return f"http://{self.name}:{self.port}/v1"


def bind(host: str, port: int) -> Listener:
    """Take a port.

    Args:
        host: Name or address of this machine.
        port: 0 takes a free one.

    Raises:
        CascadeError: The port is taken, or there is no such address here; says what to do.
        OfflineError: Other machines could reach it, and the network must not be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _explain(error, host, port) from error
    family, kind, protocol, _, address = found[0]
    if not _is_loopback(str(address[0])):
        check_online(f"--host {host}")
    listener = Listener(socket.socket(family, kind, protocol), str(address[0]), port)
    try:
        # The port of a server that has just ended would be held back for a minute.
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.socket.bind(address)
    except OSError as error:
        listener.socket.close()
        raise _explain(error, host, port) from error
    return replace(listener, port=listener.socket.getsockname()[1])


def _explain(error: OSError | UnicodeError, host: str, port: int) -> CascadeError:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return CascadeError(
            f"port {port} of {host} is taken by another program",
            f"Choose another one, as --port {port + 1}; --port 0 takes a free one.",
        )
    if number == errno.EACCES:
        return CascadeError(
            f"port {port} of {host} may not be taken",
            "Ports below 1024 are for the administrator; choose a higher --port.",
        )
    return CascadeError(
        f"{host} is no address of this machine",
        "--host 127.0.0.1 is for this machine only, 0.0.0.0 for the whole network.",
    )


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


class Server(uvicorn.Server):
    """A server on a socket of ours.

    Args:
        app: What answers.
        listener: Where.
        on_ready: Called when it takes connections.
    """

    def __init__(self, app: ASGIApp, listener: Listener, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            )
        )
        self._listener, self._on_ready = listener, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await super().startup(sockets)
        self._on_ready()

    def serve_all(self) -> None:
        """Serve until a signal ends it.

        Raises:
            KeyboardInterrupt: It was Ctrl-C; answers under way have been given a moment.
        """
        self.run([self._listener.socket])
