"""llama.cpp's own server and llama-bench, run against the very libraries that the engine uses.

The tools come from a build of the same sources (README of llama.cpp: `cmake --build . --target
llama-server llama-bench`); LOCALCASCADE_LLAMA_SERVER and LOCALCASCADE_LLAMA_BENCH say where they
are, else PATH is searched. LD_LIBRARY_PATH lets them load the libraries of llama-cpp-python, so
that compiler flags are the same on both sides.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

START_LIMIT_S = 120.0


def find_tool(name: str) -> str:
    """Find a tool of llama.cpp."""
    variable = f"LOCALCASCADE_{name.upper().replace('-', '_')}"
    found = os.environ.get(variable) or shutil.which(name)
    if not found:
        raise SystemExit(f"{name} is not on the PATH; {variable} may say where it is")
    return found


def make_environment() -> dict[str, str]:
    """Make the environment in which a tool loads the engine's own libraries."""
    spec = find_spec("llama_cpp")
    assert spec and spec.origin
    return {**os.environ, "LD_LIBRARY_PATH": str(Path(spec.origin).parent / "lib")}


@contextlib.contextmanager
def serve(model: Path, *arguments: str) -> Iterator[str]:
    """Run llama-server on a free port; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [find_tool("llama-server"), "-m", str(model), "--port", port, *arguments]
    process = subprocess.Popen(
        command, env=make_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server has loaded its model."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/health").close()
            return
        time.sleep(0.1)
    raise SystemExit("llama-server does not start")


def stream(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask for a chat completion; gives the pieces as they come."""
    body = {"stream": True, "stream_options": {"include_usage": True}, **body}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
