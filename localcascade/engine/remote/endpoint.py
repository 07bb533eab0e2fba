"""Where an OpenAI-compatible server is, who we are to it, and what its refusals mean."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from localcascade import __version__
from localcascade.download.hub import check_online
from localcascade.download.patience import parse_retry_after
from localcascade.errors import CascadeError, ContextFull, ModelNotFound, RemoteError

CONNECT_S = 10.0
MAX_PROBLEM_BYTES = 64 << 10
MAX_PROBLEM_LETTERS = 300
CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error")
"""What OpenAI and llama-server call a prompt that is too long."""

_HINTS: dict[int, str] = {
    401: "Give the server's key as --remote-key or LOCALCASCADE_REMOTE_KEY.",
    403: "The key does not allow this: ask whoever runs the server.",
    404: "Check the address: most servers want it to end in /v1.",
    413: "Shorten the conversation.",
}


@dataclass(frozen=True)
class Endpoint:
    """A server's address and our key to it; see find_endpoint."""

    url: str
    """Without a slash at its end; the API's paths are appended."""
    host: str
    is_loopback: bool
    key: str | None = field(repr=False)
    silence_s: float
    """Longest silence in the middle of an answer, the reading of a long prompt included."""

    def check_allowed(self) -> None:
        """Refuse to leave this machine if the network must not be used.

        Raises:
            OfflineError: The server is elsewhere, and `--offline` or its like is in force.
        """
        if not self.is_loopback:
            check_online(f"the server {self.host}")

    def make_options(self) -> dict[str, Any]:
        """Choose the options of an HTTP client.

        Proxies come from the environment, except to this machine. Redirects are not followed:
        neither the key nor a conversation goes where the user did not send it.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": f"localcascade/{__version__}"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return {
            "headers": headers,
            "timeout": httpx2.Timeout(self.silence_s, connect=CONNECT_S),
            "follow_redirects": False,
            "trust_env": not self.is_loopback,
        }

    def explain_exception(self, error: Exception, *, is_begun: bool = False) -> RemoteError:
        """Put into words why the server was not heard.

        Args:
            error: What the HTTP client raised.
            is_begun: The answer had begun.
        """
        what = type(error).__name__
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            problem = f"cannot be reached ({self._hide_key(str(error)) or what})"
            hint = "Start the server, or check the address and the network."
        elif isinstance(error, httpx2.TimeoutException):
            problem = f"was silent for {self.silence_s:.0f} s"
            hint = "It may be overloaded; try again."
        else:
            problem = "broke off the answer" if is_begun else "does not speak HTTP as it should"
            problem += f" ({self._hide_key(str(error)) or what})"
            hint = "Try again; what came until then is kept." if is_begun else _HINTS[404]
        return RemoteError(f"{self.url} {problem}", hint)

    def explain_status(
        self, status: int, headers: Mapping[str, str], body: bytes, model: str | None = None
    ) -> CascadeError:
        """Put into words why the server refused.

        Args:
            status: Its HTTP status, not 200.
            headers: Of its answer.
            body: Of its answer, as much as was read.
            model: Which one was asked for.
        """
        problem = read_problem(body)
        text = " ".join(self._hide_key(str(problem.get("message", ""))).split())
        text = text[:MAX_PROBLEM_LETTERS]
        if full := _find_full_context(problem):
            return full
        if status == 404 and "model" in text.lower():
            return ModelNotFound(
                f"{self.url} has no model {model}: {text}",
                "Take a name that the server lists, or - for its first model.",
            )
        wait_s = parse_retry_after(headers.get("retry-after", ""))
        return RemoteError(
            f"{self.url} answers with status {status}" + (f": {text}" if text else ""),
            _advise(status, headers, wait_s),
            status=status,
            retry_after_s=wait_s,
        )

    def _hide_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def find_endpoint(url: str, key: str | None, silence_s: float) -> Endpoint:
    """Check an address and a key.

    Args:
        url: Of the server, with or without the API's own path /v1.
        key: Sent as a bearer token; None sends none.
        silence_s: See Endpoint.

    Raises:
        ValueError: The address is none, or holds a password, or the key cannot be sent; the
            message holds neither.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or port == 0 or parts.scheme not in ("http", "https"):
        raise ValueError("the server's address must look like http://localhost:8080/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("the server's address must hold no user, password, ? or #")
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key):
        raise ValueError("the server's key holds spaces, line ends or letters that cannot be sent")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    base = f"{parts.scheme}://{parts.netloc}{path}"
    return Endpoint(base, host, _is_loopback(host), key or None, silence_s)


def read_problem(body: bytes) -> dict[str, Any]:
    """Find what a server says of its refusal, in any of the usual forms.

    Returns:
        At least a `message`, which may be empty.
    """
    text = body[:MAX_PROBLEM_BYTES].decode("utf-8", "replace").strip()
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {"message": "" if text.startswith("<") else text}
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if isinstance(error, dict):
        return {"message": error.get("detail", ""), **error}
    return {"message": str(error)}


def _find_full_context(problem: Mapping[str, Any]) -> ContextFull | None:
    if not {str(problem.get("code")), str(problem.get("type"))} & set(CONTEXT_CODES):
        return None
    counts = problem.get("n_prompt_tokens"), problem.get("n_ctx")
    need, have = (count if type(count) is int else 0 for count in counts)
    return ContextFull(need, have) if need and have else None


def _advise(status: int, headers: Mapping[str, str], wait_s: float | None) -> str:
    if 300 <= status < 400:
        return (
            f"It points to {headers.get('location', '')[:200]}: give that address if you trust it."
        )
    if status == 429 or status >= 500:
        return "Try again" + (f" in {wait_s:.0f} s." if wait_s else " a little later.")
    return _HINTS.get(status, "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"
