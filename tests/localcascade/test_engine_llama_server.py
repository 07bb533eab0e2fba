"""The remote engine against llama.cpp's own server, where LOCALCASCADE_LLAMA_SERVER or PATH has it.

It listens on 127.0.0.1 and runs the bundled model; our own engine, on the same file, is the
reference.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localcascade.engine.client import Engine
from localcascade.engine.remote import RemoteEngine
from localcascade.errors import CascadeError, ContextFull, RemoteError
from localcascade.prompt.events import ChatRequest, Delta, PromptProgress, Sampling, ToolCall
from quantize.convert import quantize_checkpoint
from tests.localcascade.asking import ask, end, fail
from tests.quantize.models import TINY

SERVER = os.environ.get("LOCALCASCADE_LLAMA_SERVER") or shutil.which("llama-server")
pytestmark = pytest.mark.skipif(SERVER is None, reason="llama-server is not on this machine")
KEY = "a-key"
START_S = 60.0
QUESTION = "What is 347 + 586?"
CALCULATOR = {
    "name": "calculator",
    "description": "Compute an expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    quantize_checkpoint(TINY, path, "q8_0", n_threads=1, name="tiny")
    return path


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    """llama-server, running the bundled model."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # Its Jinja knows no `default` for an object, which the bundled template asks for with tools.
    template = tiny.parent / "template.jinja"
    text = (TINY / "chat_template.jinja").read_text()
    template.write_text(text.replace("| default({}, true)", ""))
    command = [str(SERVER), "-m", str(tiny), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", "4096", "--parallel", "2", "-t", "1", "--api-key", KEY, "--jinja"]
    command += ["--chat-template-file", str(template)]
    with (tiny.parent / "log").open("wb") as log, subprocess.Popen(
        command, stdout=log, stderr=log
    ) as process:  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            RemoteEngine(url, KEY).load()
            return
        except CascadeError:
            assert process.poll() is None and time.monotonic() < end_s
            time.sleep(0.1)


def join(events: list[object], channel: str) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.channel == channel)


@pytest.mark.parametrize("thinking", [True, False])
def test_it_says_what_our_own_engine_says(url: str, tiny: Path, thinking: bool) -> None:
    request = replace(ask(QUESTION, 200), thinking=thinking)
    with RemoteEngine(url, KEY) as remote, Engine(tiny, n_ctx=1024, n_threads=1) as engine:
        theirs, ours = list(remote.chat(request)), list(engine.chat(request))
    for channel in ("thinking", "answer"):
        assert join(theirs, channel).strip() == join(ours, channel).strip()
    assert bool(join(theirs, "thinking")) == thinking
    assert end(theirs).reason == end(ours).reason == "stop"
    assert end(theirs).usage.prompt_tokens == end(ours).usage.prompt_tokens
    assert end(theirs).timings.tokens_per_s > 0
    read = [event for event in theirs if isinstance(event, PromptProgress)]
    assert read[-1].done == read[-1].total == end(ours).usage.prompt_tokens


def test_it_calls_the_tool_that_our_own_engine_calls(url: str, tiny: Path) -> None:
    message = {"role": "user", "content": "What is 347 * 586? Use the calculator."}
    request = ChatRequest(
        messages=(message,),
        tools=({"type": "function", "function": CALCULATOR},),
        sampling=Sampling(temperature=0, max_tokens=200),
    )
    with RemoteEngine(url, KEY) as remote, Engine(tiny, n_ctx=1024, n_threads=1) as engine:
        theirs, ours = list(remote.chat(request)), list(engine.chat(request))
    calls = [
        [(event.name, event.arguments) for event in events if isinstance(event, ToolCall)]
        for events in (theirs, ours)
    ]
    assert calls[0] == calls[1] and calls[0]
    assert end(theirs).reason == "tool_calls"


def test_answer_now_ends_thinking_that_would_not_end(url: str, tiny: Path) -> None:
    with Engine(tiny, n_ctx=1024, n_threads=1) as engine:
        ends = engine.tokenize("</think><|im_end|>", parse_special=True)
    never = Sampling(temperature=0, max_tokens=1500, logit_bias=dict.fromkeys(ends, -100.0))
    request = replace(ask(QUESTION), thinking=True, sampling=never)
    with RemoteEngine(url, KEY) as remote:
        chat = remote.chat(request)
        chat.answer_now()
        events = list(chat)
    assert join(events, "answer")
    assert end(events).usage.thinking_tokens < 1500


def test_its_refusals(url: str) -> None:
    (failed,) = RemoteEngine(url, "wrong").chat(ask("hi"))
    assert isinstance(fail([failed]), RemoteError) and "401" in str(fail([failed]))
    (failed,) = RemoteEngine(url, KEY).chat(ask("What is 12 + 30? " * 1500))
    error = fail([failed])
    assert isinstance(error, ContextFull) and error.need_tokens > error.have_tokens > 500
