"""How far a transfer is: counted once, then drawn as bars or written as JSON lines."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from localcascade.cli import console
from localcascade.cli.units import format_bytes, format_duration

_WINDOW_S = 15.0
_SURE_AFTER_S = 1.0
_LINE_EVERY_S = 0.5
_NAME_COLUMNS = 24


class Watcher(Protocol):
    """What shows a transfer to somebody."""

    def __call__(self, stage: str, path: str, n_bytes: int) -> None:
        """Be told of bytes, as `localcascade.download.transfer.OnBytes` is."""


class Meter:
    """Counts bytes per file and in all, and from those the rate and the time left.

    Args:
        sizes: Bytes of each file, by path.
        clock: Seconds that never go back.
    """

    def __init__(
        self, sizes: Mapping[str, int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sizes = dict(sizes)
        self.done = dict.fromkeys(sizes, 0)
        """Bytes of each file that have arrived, now or in an earlier run."""
        self.verified = dict.fromkeys(sizes, 0)
        self.fetched_bytes = 0
        """Bytes that came over the network in this run, those fetched again included."""
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    @property
    def done_bytes(self) -> int:
        """Bytes of all files that have arrived."""
        return sum(self.done.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def count(self, stage: str, path: str, n_bytes: int) -> None:
        """Take note of bytes, as `localcascade.download.transfer.OnBytes`."""
        if stage == "verified":
            self.verified[path] += n_bytes
            return
        self.done[path] += -n_bytes if stage == "lost" else n_bytes
        if stage == "fetched":
            self.fetched_bytes += n_bytes
            self._sample()

    def _sample(self) -> None:
        now_s = self._clock()
        if now_s - self._samples[-1][0] >= 0.1:
            self._samples.append((now_s, self.fetched_bytes))
        while now_s - self._samples[0][0] > _WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()

    def compute_rate(self) -> float:
        """Compute what comes over the network, averaged over some seconds, in bytes a second."""
        since_s, bytes_then = self._samples[0]
        elapsed_s = self._clock() - since_s
        return (self.fetched_bytes - bytes_then) / elapsed_s if elapsed_s > 0 else 0.0

    def compute_left_s(self) -> float | None:
        """Compute the seconds until the last byte at this rate; None until a rate is known."""
        rate = self.compute_rate()
        if rate <= 0 or self._clock() - self._samples[0][0] < _SURE_AFTER_S:
            return None
        return (self.total_bytes - self.done_bytes) / rate


@contextmanager
def draw_transfer(meter: Meter) -> Iterator[Watcher]:
    """Draw a bar for all and one for each file under way on stderr, if that is a terminal."""
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=16),
        progress.TextColumn("{task.fields[state]}"),
        console=console.make_console(sys.stderr),
        disable=not sys.stderr.isatty(),
    ) as bars:
        total = bars.add_task("Total".ljust(_NAME_COLUMNS), total=meter.total_bytes, state="")
        tasks: dict[str, progress.TaskID] = {}

        def draw(stage: str, path: str, n_bytes: int) -> None:
            meter.count(stage, path, n_bytes)
            if path not in tasks:
                tasks[path] = bars.add_task(_shorten(path), total=meter.sizes[path], state="")
            state = _describe_file(meter, path)
            bars.update(tasks[path], completed=meter.done[path], state=state)
            bars.update(total, completed=meter.done_bytes, state=_describe_total(meter))
            if meter.verified[path] == meter.sizes[path]:
                bars.update(tasks[path], visible=False)

        yield draw


def _shorten(path: str) -> str:
    shown = console.escape_controls(path)
    if len(shown) > _NAME_COLUMNS:
        shown = f"{shown[:7]}…{shown[-(_NAME_COLUMNS - 8) :]}"
    return shown.ljust(_NAME_COLUMNS)


def _describe_file(meter: Meter, path: str) -> str:
    if meter.done[path] == meter.sizes[path]:
        return f"{format_bytes(meter.sizes[path])}, reading back"
    return f"{format_bytes(max(0, meter.done[path]))} of {format_bytes(meter.sizes[path])}"


def _describe_total(meter: Meter) -> str:
    done = f"{format_bytes(max(0, meter.done_bytes))} of {format_bytes(meter.total_bytes)}"
    left_s = meter.compute_left_s()
    if left_s is None:
        return done
    return f"{done}, {format_bytes(int(meter.compute_rate()))}/s, {format_duration(left_s)} left"


@contextmanager
def write_lines(meter: Meter) -> Iterator[Watcher]:
    """Write a JSON line on stdout now and then, and one for each file that is verified."""
    written_s = time.monotonic()
    writing = threading.Lock()

    def write(stage: str, path: str, n_bytes: int) -> None:
        nonlocal written_s
        with writing:
            meter.count(stage, path, n_bytes)
            if stage == "verified" and meter.verified[path] == meter.sizes[path]:
                print_line({"event": "file", "path": path, "bytes": meter.sizes[path]})
            elif time.monotonic() - written_s >= _LINE_EVERY_S:
                written_s = time.monotonic()
                print_line({"event": "progress", "path": path} | describe_meter(meter, path))

    yield write


def describe_meter(meter: Meter, path: str) -> dict[str, Any]:
    """Say how far a file and the whole are, as a progress line does."""
    left_s = meter.compute_left_s()
    return {
        "file_done_bytes": meter.done[path],
        "file_bytes": meter.sizes[path],
        "done_bytes": meter.done_bytes,
        "total_bytes": meter.total_bytes,
        "rate_bytes_s": round(meter.compute_rate()),
        "left_s": None if left_s is None else round(left_s, 1),
    }


def print_line(value: Mapping[str, Any]) -> None:
    """Write one JSON object as one line, at once."""
    print(json.dumps(value, ensure_ascii=True, allow_nan=False), flush=True)
