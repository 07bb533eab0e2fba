"""Bytes of a remote file, any range of it, exactly as asked for or an error.

Every answer is held against the request: status, Content-Range, length, encoding and, where the
Hub itself answers, the file's identity. What may pass (a dropped connection, 503, a wrong range)
is tried again from the byte where it stopped; what will not pass is refused at once.
"""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx2

from localcascade import __version__
from localcascade.download.hub import check_online, explain_refusal
from localcascade.download.patience import PASSING_STATUSES, Patience, parse_retry_after
from localcascade.errors import DownloadError
from quantize.closing import Closing

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_REFUSED = (401, 403)
_GONE = (401, 403, 404, 410)
"""From an address that the Hub sent us to: the signature in it may have run out."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_RERUN = "Run the same command again: it goes on where it stopped."
_PROXY = "A proxy in between may be at fault; try another network, then run it again."


class Connections(Closing):
    """Connections to a Hub and the servers it points to; a context manager, for any threads.

    Closing it ends every wait and every read in progress with a DownloadError.

    Args:
        token: Sent to the origin of each file's own address, and to no other.
        patience: When to wait and when to give up.

    Raises:
        OfflineError: The network must not be used.
    """

    def __init__(self, token: str | None = None, patience: Patience | None = None) -> None:
        check_online("a download")
        self.token = token
        self.patience = patience or Patience()
        self._closing = threading.Event()
        self._answers: set[httpx2.Response] = set()
        self.client = httpx2.Client(
            follow_redirects=False,
            headers={"Accept-Encoding": "identity", "User-Agent": f"localcascade/{__version__}"},
            timeout=httpx2.Timeout(self.patience.read_s, connect=self.patience.connect_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
        )

    def wait(self, wait_s: float) -> None:
        """Wait, unless this is closed: then raise DownloadError at once."""
        if self._closing.wait(wait_s):
            raise DownloadError("the download was stopped", _RERUN)

    def stop(self) -> None:
        """Make every read end now, those that hang in the network too."""
        self._closing.set()
        for response in tuple(self._answers):
            stream = response.extensions["network_stream"]
            with suppress(OSError):
                # Of the plain socket, as TLS would first wait for the other side.
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)

    @contextmanager
    def keep_answer(self, response: httpx2.Response) -> Iterator[None]:
        """Have `stop` break this answer off until it has been read; then it is closed."""
        self._answers.add(response)
        try:
            yield
        finally:
            self._answers.discard(response)
            response.close()

    def close(self) -> None:
        """Close all connections."""
        self.stop()
        self.client.close()


class RemoteFile:
    """One file on a server that never changes under its address; any number of threads may read.

    Args:
        connections: What to read through.
        url: Its address, best with a commit in it.
        size_bytes: How large it is; an answer that says otherwise is refused.
        etag: The Hub's identity of it (the sha256, or the git hash of a small file); empty
            if unknown. An answer of the Hub that names another one is refused.
    """

    def __init__(self, connections: Connections, url: str, size_bytes: int, etag: str = "") -> None:
        self.url = url
        self.size_bytes = size_bytes
        self.etag = etag
        self._connections = connections
        self._origin = httpx2.URL(url).origin
        self._location: httpx2.URL | None = None
        """Where the Hub last sent us, so that it is not asked again for every range."""

    def read(
        self,
        offset: int,
        buffer: memoryview,
        on_bytes: Callable[[int], None] = lambda _n_bytes: None,
    ) -> None:
        """Fill a buffer with the bytes from an offset on.

        Args:
            offset: First byte.
            buffer: Writable, of bytes; all of it is filled.
            on_bytes: Called with the size of each block that has arrived.

        Raises:
            DownloadError: It cannot be had; the message names the file and the byte.
            ValueError: The range is not inside the file.
        """
        if not 0 <= offset <= offset + len(buffer) <= self.size_bytes:
            raise ValueError(f"{self.url}: no bytes {offset} to {offset + len(buffer)}")
        filled = n_failures = n_breaches = 0
        while filled < len(buffer):
            try:
                for block in self._stream(offset + filled, len(buffer) - filled):
                    buffer[filled : filled + len(block)] = block
                    filled += len(block)
                    on_bytes(len(block))
            except _Passing as failure:
                n_failures += 1
                n_breaches += failure.is_breach
                self._wait(failure, n_failures, n_breaches, offset, filled)

    def _wait(
        self, failure: _Passing, n_failures: int, n_breaches: int, offset: int, filled: int
    ) -> None:
        """Wait for the next attempt, or give up."""
        patience = self._connections.patience
        asked_s = failure.asked_s
        is_too_long = asked_s is not None and asked_s > patience.longest_asked_s
        if is_too_long or not patience.allows(n_failures, n_breaches, filled):
            raise DownloadError(
                f"{self.url}: byte {offset + filled}: {failure.problem}; attempts: {n_failures}",
                f"Wait {asked_s:.0f} seconds, then run it again."
                if is_too_long
                else (_PROXY if failure.is_breach else _RERUN),
            ) from failure
        self._connections.wait(patience.compute_wait_s(n_failures, asked_s, random.random()))

    def _stream(self, start: int, n_bytes: int) -> Iterator[bytes]:
        """Yield exactly the bytes asked for, or raise."""
        started_s, received = time.monotonic(), 0
        try:
            response = self._request(start, n_bytes)
            with self._connections.keep_answer(response):
                self._check_answer(response, start, n_bytes)
                for block in response.iter_raw():
                    self._connections.wait(0)
                    # What answers 200 holds the whole file, of which only the head is wanted.
                    block = block[: n_bytes - received]
                    received += len(block)
                    yield block
                    if received == n_bytes:
                        return
                    if self._connections.patience.is_too_slow(
                        received, time.monotonic() - started_s
                    ):
                        raise _Passing("the answer drips")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise _Passing(_describe(error)) from error
        raise _Passing(f"the answer ended {n_bytes - received} bytes early")

    def _request(self, start: int, n_bytes: int) -> httpx2.Response:
        """Ask for a range and follow redirects; the token goes to the file's own origin only."""
        connections = self._connections
        url = self._location or httpx2.URL(self.url)
        for _ in range(_MAX_REDIRECTS + 1):
            connections.wait(0)
            headers = {"Range": f"bytes={start}-{start + n_bytes - 1}"}
            is_hub = url.origin == self._origin
            if is_hub and connections.token:
                headers["Authorization"] = f"Bearer {connections.token}"
            request = connections.client.build_request("GET", url, headers=headers)
            response = connections.client.send(request, stream=True)
            try:
                if is_hub:
                    self._check_identity(response)
                if response.status_code not in _REDIRECTS:
                    self._check_status(response, is_located=str(url) != self.url)
                    self._location = url
                    return response
                url = self._follow(url, response)
            except BaseException:
                response.close()
                raise
            response.close()
        raise _Passing(f"more than {_MAX_REDIRECTS} redirects", is_breach=True)

    def _follow(self, url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
        target = url.join(response.headers.get("location", ""))
        if target.scheme not in ("http", "https") or not target.host:
            raise _Passing("a redirect to no address", is_breach=True)
        if url.scheme == "https" and target.scheme != "https":
            raise _Passing(f"a redirect to {target.host} without encryption", is_breach=True)
        return target

    def _check_identity(self, response: httpx2.Response) -> None:
        """Refuse another file than the one whose identity is known; only the Hub tells."""
        linked = response.headers.get("x-linked-etag")
        if linked is None and response.status_code in (200, 206):
            linked = response.headers.get("etag")
        found = (linked or "").removeprefix("W/").strip('"')
        if self.etag and found and found.lower() != self.etag.lower():
            raise DownloadError(
                f"{self.url}: the server now has another file: {found!a:.80} instead of "
                f"{self.etag}",
                "Run it again: it then asks anew what the model consists of.",
            )
        size = response.headers.get("x-linked-size", str(self.size_bytes))
        if size != str(self.size_bytes):
            raise DownloadError(
                f"{self.url}: the server now has {size!a:.30} bytes, {self.size_bytes} were "
                "announced",
                "Run it again: it then asks anew what the model consists of.",
            )

    def _check_status(self, response: httpx2.Response, *, is_located: bool) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if is_located and status in _GONE:
            self._location = None
            raise _Passing(f"status {status} from where the Hub sends us", is_breach=True)
        if status in PASSING_STATUSES:
            raise _Passing(
                f"status {status}",
                asked_s=parse_retry_after(response.headers.get("retry-after", "")),
            )
        if status == 416:
            raise _Passing("status 416: no such range, so the file is shorter", is_breach=True)
        if status in _REFUSED:
            raise explain_refusal(self.url, status, has_token=bool(self._connections.token))
        raise DownloadError(f"{self.url}: status {status}", "Check the name and the revision.")

    def _check_answer(self, response: httpx2.Response, start: int, n_bytes: int) -> None:
        """Hold an answer against the request before one byte of it is used."""
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise _Passing(f"the answer is encoded: {encoding!a:.30}", is_breach=True)
        length = response.headers.get("content-length")
        if response.status_code == 200:
            # Right for the whole file; of no use in the middle of it.
            if start or length != str(self.size_bytes):
                raise _Passing("status 200 instead of 206: the range was ignored", is_breach=True)
            return
        shown = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(shown.strip())
        wanted = (start, start + n_bytes - 1, self.size_bytes)
        if match is None or tuple(map(int, match.groups())) != wanted:
            asked = f"bytes {wanted[0]}-{wanted[1]}/{wanted[2]}"
            raise _Passing(f"{shown!a:.80} instead of {asked}", is_breach=True)
        if length is not None and length != str(n_bytes):
            raise _Passing(f"{length!a:.30} bytes instead of {n_bytes}", is_breach=True)


class _Passing(Exception):
    """What may be different at the next attempt."""

    def __init__(
        self, problem: str, *, is_breach: bool = False, asked_s: float | None = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.is_breach = is_breach
        self.asked_s = asked_s


def _describe(error: Exception) -> str:
    name = type(error).__name__
    return f"{name}: {error}"[:200] if str(error) else name
