"""Server-sent events, cut out of bytes as they come. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from localcascade.errors import RemoteError

MAX_EVENT_BYTES = 4 << 20
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventStream:
    """Finds the data of each event; comments, heartbeats and other fields are passed over.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._searched = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._begun = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """Take the next bytes.

        Args:
            piece: Cut anywhere.

        Returns:
            The data of every event that ends in it.

        Raises:
            RemoteError: An event is larger than MAX_EVENT_BYTES.
        """
        self._pending += piece
        for line in self._cut_lines():
            if line:
                self._take(line)
            elif self._data:
                data = b"\n".join(self._data).decode("utf-8", "replace")
                self._data, self._data_bytes = [], 0
                yield data
        self._check_size(len(self._pending))

    def _cut_lines(self) -> Iterator[bytes]:
        """Take whole lines off the pending bytes; a CR at their end may be half of a CR LF."""
        start = 0
        while match := _LINE_END.search(self._pending, max(start, self._searched)):
            if match[0] == b"\r" and match.end() == len(self._pending):
                break
            line = bytes(self._pending[start : match.start()])
            start = match.end()
            yield line if self._begun else line.removeprefix(_BOM)
            self._begun = True
        del self._pending[:start]
        self._searched = max(0, len(self._pending) - 1)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(value)
            self._check_size(self._data_bytes)

    def _check_size(self, n_bytes: int) -> None:
        if n_bytes > MAX_EVENT_BYTES:
            raise RemoteError(
                f"the server sent an event of more than {MAX_EVENT_BYTES >> 20} MiB",
                "It is broken, or no OpenAI-compatible server: check the address.",
            )
