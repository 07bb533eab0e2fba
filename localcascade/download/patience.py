"""How long to wait, how often to try again, and when to give up; pure arithmetic."""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""A server that answers so may answer otherwise a little later."""


@dataclass(frozen=True)
class Patience:
    """The limits of everything that waits for a server."""

    connect_s: float = 10.0
    read_s: float = 30.0
    """Longest silence in the middle of an answer."""
    n_retries: int = 10
    """After failures that may pass: about three minutes of no connection at all."""
    n_breaches: int = 3
    """After answers that break the protocol, such as the whole file instead of a range."""
    retry_bytes: int = 1 << 20
    """So many bytes received earn one more retry, so that a bad line still gets to the end."""
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    longest_asked_s: float = 300.0
    """A server that asks for more by Retry-After is not waited for."""
    slowest_bytes_s: float = 1024.0
    """Average rate below which an answer is cut off, once it has lasted `grace_s`."""
    grace_s: float = 60.0

    def allows(self, n_failures: int, n_breaches: int, received_bytes: int) -> bool:
        """Decide whether to try again after so many failures, breaches among them."""
        n_allowed = self.n_retries + received_bytes // self.retry_bytes
        return n_failures <= n_allowed and n_breaches <= self.n_breaches

    def compute_wait_s(self, n_failures: int, asked_s: float | None, chance: float) -> float:
        """Compute how long to wait before the next attempt.

        Args:
            n_failures: At least 1; each doubles the wait.
            asked_s: What the server asked for, at most `longest_asked_s`; None if nothing.
            chance: Random, 0 to 1: spreads the attempts of several connections.
        """
        doubled_s: float = self.first_wait_s * 2.0 ** min(n_failures - 1, 30)
        wait_s = min(doubled_s, self.longest_wait_s) * (0.5 + chance / 2)
        return max(wait_s, asked_s or 0.0)

    def is_too_slow(self, received_bytes: int, elapsed_s: float) -> bool:
        """Decide whether an answer drips so slowly that another connection is the better bet."""
        return elapsed_s > self.grace_s and received_bytes < self.slowest_bytes_s * elapsed_s


def parse_retry_after(text: str, now_s: float | None = None) -> float | None:
    """Read a Retry-After header.

    Args:
        text: Seconds, or an HTTP date.
        now_s: Unix time that a date is compared with; None is now.

    Returns:
        Seconds from now, at least 0; None if the header is neither.

    Source:
        RFC 9110, 10.2.3.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
    return max(0.0, moment_s - (time.time() if now_s is None else now_s))
