"""Whether two expressions are equal: SymPy in a process of its own, with limits of time and memory.

Without SymPy (the extra `maths`) only numbers and the four operations are compared.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final

from localcascade.maths.expressions import Tree, evaluate_exactly
from quantize.closing import Closing

START_LIMIT_S = 30.0
COMPARE_LIMIT_S = 3.0

# -P keeps the working directory off the import path: whatever lies there must not run here.
_BOOT = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from localcascade.maths.solver import main; main()"
)
_ROOT = Path(__file__).resolve().parents[2]
_MEANINGS: Final[Mapping[object, bool]] = MappingProxyType({"same": True, "different": False})


def is_available() -> bool:
    """Whether SymPy is installed."""
    return find_spec("sympy") is not None


class Algebra(Closing):
    """Compares expressions; a context manager. Any thread may ask; one is answered at a time.

    Args:
        limit_s: Longest time for one comparison, in seconds.
    """

    def __init__(self, limit_s: float = COMPARE_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def compare(self, left: Tree, right: Tree, tolerance: Fraction = Fraction(0)) -> bool | None:
        """Say whether two expressions are equal for all values of their symbols.

        Symbols are taken to be positive. Equal means: to 40 digits at several points.

        Args:
            left: One.
            right: The other.
            tolerance: What their values may differ by.

        Returns:
            None if it is not known: too hard, too large, too slow, or SymPy is not installed; or
            this is closed.
        """
        one, other = evaluate_exactly(left), evaluate_exactly(right)
        if one is not None and other is not None:
            return abs(one - other) <= tolerance
        if self._is_closed or not is_available():
            return None
        question = json.dumps([left, right, str(tolerance)]).encode() + b"\n"
        with self._lock:
            return _MEANINGS.get(self._ask(question))

    def close(self) -> None:
        """End the process; nothing is compared any more."""
        self._is_closed = True
        self._end_process()

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def _ask(self, question: bytes) -> object:
        """Send a question; whatever goes wrong ends the process, and the answer is None."""
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            os.write(process.stdin.fileno(), question)
            return self._read_line(process, self._limit_s)
        except (OSError, TimeoutError, ValueError):
            self._end_process()
            return None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, str(_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C reaches only us
            bufsize=0,
        )
        self._read_line(process, START_LIMIT_S)
        return process

    @staticmethod
    def _read_line(process: subprocess.Popen[bytes], limit_s: float) -> object:
        assert process.stdout is not None
        data, end_s = b"", time.monotonic() + limit_s
        while not data.endswith(b"\n"):
            left_s = max(end_s - time.monotonic(), 0.0)
            if not select.select([process.stdout], [], [], left_s)[0]:
                raise TimeoutError
            part = os.read(process.stdout.fileno(), 4096)
            if not part:
                raise OSError("the process has ended")
            data += part
        return json.loads(data)
