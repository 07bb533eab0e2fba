"""One worker process, seen from the client: started, spoken to, listened to, buried."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcascade.engine.wire import Channel, Frame, decode_error
from localcascade.errors import EngineDied, cut_fault

STOP_LIMIT_S = 3.0
STAGE_LIMITS_S = {"load": 120.0, "template": 10.0}
"""Longest silence of a worker in a stage, of which the first has the request's name; a stage
that is not here may take its time."""
LOG_TAIL_LINES = 20
MAX_LOG_BYTES = 16384

# -P keeps the working directory off the import path: whatever lies there must not run here.
_BOOT = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from localcascade.engine.worker import main; main()"
)
_TROUBLE = re.compile(
    r"\b(ggml_assert|assert\w*|error|fail\w*|terminate|abort\w*|exception)\b|what\(\)", re.I
)
"""What a line of a log holds that tells of an end; the lines before it tell of progress."""
_CLOSED = "the engine was closed"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a worker process."""

    error: EngineDied


Answer = tuple[Frame, bytearray] | Death
"""A frame with its payload, or the reason why none will come."""
Deliver = Callable[[Answer], None]
"""Takes the answers to one request; called in the listening thread, so it must not block."""


class WorkerProcess:
    """A running worker.

    It has a session of its own, so that a terminal's Ctrl-C reaches only the client, and a
    nameless file for its stdout and stderr, so that nothing is left behind, whoever dies.

    Args:
        on_death: Called once if the process ends without being asked to.
    """

    def __init__(self, on_death: Callable[[EngineDied], None]) -> None:
        self._on_death = on_death
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed when the worker is buried
        self._lock = threading.Lock()
        self._deliveries: dict[int, Deliver] = {}
        self._numbers = itertools.count(1)
        self._wanted: str | None = None  # why its own client ends it
        self.death: Death | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._start(theirs.fileno())
        self._channel = Channel(ours)
        self._listener = threading.Thread(target=self._listen, name="engine", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def request(self, deliver: Deliver, op: str, **fields: Any) -> int:
        """Send a request.

        Args:
            deliver: Takes its answers, and the worker's death.
            op: What to do.
            **fields: Plain data.

        Returns:
            The request's number, for cancel.

        Raises:
            TypeError: A field is not plain data.
            ValueError: It is nested too deeply, or a number has too many digits.
        """
        number = next(self._numbers)
        with self._lock:
            self._deliveries[number] = deliver
            death = self.death
        if death is not None:
            deliver(death)
            return number
        try:
            self._channel.send({"id": number, "op": op, **fields})
        except OSError:  # it is dying: the listener will tell
            pass
        except (TypeError, ValueError):
            self.forget(number)
            raise
        return number

    def forget(self, number: int) -> None:
        """Take no more answers to a request."""
        with self._lock:
            self._deliveries.pop(number, None)

    def cancel(self, number: int) -> None:
        """Stop a request that may still run, and take no more answers to it."""
        self.forget(number)
        self.tell(number, "cancel")

    def tell(self, number: int, op: str) -> None:
        """Say something more about a request that may still run."""
        with contextlib.suppress(OSError):  # it is dying: the listener will tell
            self._channel.send({"id": number, "op": op})

    def ask(
        self, op: str, *, on_frame: Callable[[Frame], None] | None = None, **fields: Any
    ) -> tuple[Frame, bytearray]:
        """Send a request and wait for its result.

        Args:
            op: What to do.
            on_frame: Takes the frames before the result.
            **fields: Plain data.

        Returns:
            The result and its payload.

        Raises:
            CascadeError: What the worker answered.
            ValueError: The same, for misuse.
            EngineDied: It died.
            TimeoutError: It was silent for too long in a stage that has a limit; killed by now.
        """
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        number = self.request(answers.put, op, **fields)
        limit_s = STAGE_LIMITS_S.get(op)
        try:
            while True:
                frame, payload = open_answer(answers.get(timeout=limit_s))
                if frame["kind"] == "result":
                    return frame, payload
                limit_s = choose_limit(frame, limit_s)
                if on_frame is not None:
                    on_frame(frame)
        except queue.Empty:
            self.kill("it gave no sign of life")
            raise TimeoutError(f"no sign of life for {limit_s} s") from None
        finally:
            self.forget(number)

    def stop(self) -> None:
        """End the process: hang up, which it obeys at once, and kill it if it does not."""
        self._wanted = self._wanted or _CLOSED
        self._channel.close()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._listener.join(STOP_LIMIT_S)

    @property
    def is_usable(self) -> bool:
        """False once it is dead or told to die."""
        return self.death is None and self._wanted is None

    def kill(self, reason: str) -> None:
        """End a process that does not listen.

        Args:
            reason: Why, for those who wait for other answers of it.
        """
        self._wanted = f"the engine was ended: {reason}"
        self._process.kill()

    def read_log(self) -> str:
        """Read the end of the worker's log."""
        with self._lock:
            return self._read_log() if self.death is None else self.death.error.log_tail

    def _read_log(self) -> str:
        descriptor = self._log.fileno()
        size = os.fstat(descriptor).st_size
        # pread: the worker writes through the same file position.
        data = os.pread(descriptor, MAX_LOG_BYTES, max(0, size - MAX_LOG_BYTES))
        return data.decode("utf-8", "replace")

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-c", _BOOT, str(_ROOT), str(descriptor)]
        return subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(descriptor,),
            start_new_session=True,
            # A failed assertion of ggml would start a debugger for its backtrace.
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )

    def _listen(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                frame, payload = self._channel.receive()
                if frame["kind"] == "events":
                    for number, event in frame["events"]:
                        self._deliver(number, {"kind": "event", "event": event}, payload)
                else:
                    self._deliver(frame["id"], frame, payload)
        self._bury()

    def _deliver(self, number: int, frame: Frame, payload: bytearray) -> None:
        with self._lock:
            deliver = self._deliveries.get(number)
        if deliver is not None:
            deliver((frame, payload))

    def _bury(self) -> None:
        """Wait for the end of the process and tell everyone who still waits for answers."""
        code = self._process.wait()
        self._channel.close()
        wanted = self._wanted
        error = describe_death(code, self._read_log(), wanted)
        if wanted is None and code != 0:
            self._on_death(error)  # before anybody can learn of it and start another
        with self._lock:
            self.death = Death(error)
            self._log.close()
            waiting = list(self._deliveries.values())
        for deliver in waiting:
            deliver(self.death)


def choose_limit(frame: Frame, limit_s: float | None) -> float | None:
    """Choose how long to wait for the frame after this one; None is for ever."""
    return STAGE_LIMITS_S.get(frame["stage"]) if frame["kind"] == "stage" else limit_s


def describe_death(code: int, log: str, wanted: str | None) -> EngineDied:
    """Put the end of a worker in words.

    Args:
        code: Exit status as subprocess gives it: negative is a signal.
        log: The end of its log.
        wanted: Why its own client ended it; None if it did not.

    Returns:
        The error for whoever waits for answers.
    """
    tail = cut_tail(log)
    if wanted is not None:
        return EngineDied(wanted, log_tail=tail)
    if code == -signal.SIGKILL:
        return EngineDied(
            "the engine was killed",
            log_tail=tail,
            hint="If nobody did it, memory ran out: a smaller --ctx or quantization needs less.",
        )
    manner = f"by signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"with code {code}"
    reason = find_reason(log)
    return EngineDied(
        f"the engine ended {manner}: {reason}" if reason else f"the engine ended {manner}",
        log_tail=tail,
        hint="The model file may be damaged: convert or download it again.",
    )


def cut_tail(log: str) -> str:
    """Cut off all but the last lines."""
    return "\n".join(log.splitlines()[-LOG_TAIL_LINES:])


def find_reason(log: str) -> str:
    """Find the line that says why: the last one of trouble before the fault handler's own.

    Returns:
        The line, empty if there is none.
    """
    lines = (line.strip() for line in reversed(cut_fault(log).splitlines()))
    return next((line for line in lines if _TROUBLE.search(line)), "")


def open_answer(answer: Answer) -> tuple[Frame, bytearray]:
    """Take an answer that is neither a death nor an error.

    Returns:
        The frame and its payload.

    Raises:
        EngineDied: The worker is dead.
        Exception: The error that the worker answered.
    """
    if isinstance(answer, Death):
        raise answer.error
    if answer[0]["kind"] == "error":
        raise decode_error(answer[0]["error"])
    return answer
