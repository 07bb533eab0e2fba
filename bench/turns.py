"""Time to the first token over a chat of 20 turns that grows to 8,000 tokens.

    python bench/turns.py [--turns 20] [--turn-tokens 400] [--threads N]

A small model of the real kind (Mamba-2, attention, feed-forward; a token is a letter) reads the
same chat, turn after turn: through the engine, through llama-cpp-python's `Llama`, which forgets
a hybrid model's state whenever the chat goes on, and through llama-server. What is timed is from
the request to the first piece of text. Writes bench/results/turns.csv. The claim: ours stays flat.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_cpp import Llama
from llama_server import serve, stream

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests hold the small model

from localcascade.engine.client import Engine  # noqa: E402
from localcascade.engine.wire import CHAT_OUTPUTS  # noqa: E402
from localcascade.prompt.events import ChatRequest, Delta, Failed, Sampling  # noqa: E402
from tests.localcascade.models import write_model  # noqa: E402

N_CTX, N_ANSWER = 16384, 4
Message = dict[str, Any]
Ask = Callable[[list[Message]], Iterator[object]]
"""Sends a chat, and gives something as each piece of the answer comes."""


def make_chat(n_turns: int, turn_tokens: int) -> Iterator[list[Message]]:
    """Make the chat as it is at each question."""
    draw, messages = random.Random(1), list[Message]()
    for _ in range(n_turns):
        for role in ("user", "assistant"):
            text = "".join(draw.choices(string.ascii_lowercase + " ", k=turn_tokens // 2))
            messages.append({"role": role, "content": text})
            if role == "user":
                yield list(messages)


def ask_engine(engine: Engine, messages: list[Message]) -> Iterator[object]:
    """Ask the engine."""
    sampling = Sampling(0, max_tokens=N_ANSWER)
    for event in engine.chat(ChatRequest(tuple(messages), (), False, sampling)):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Delta):
            yield event


def ask_llama(llama: Llama, messages: list[Message]) -> Iterator[object]:
    """Ask llama-cpp-python's own class."""
    chunks: Any = llama.create_chat_completion(
        messages, stream=True, max_tokens=N_ANSWER, temperature=0
    )
    return (chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content"))


def ask_server(url: str, messages: list[Message]) -> Iterator[object]:
    """Ask llama-server."""
    body = {
        "messages": messages, "max_tokens": N_ANSWER, "temperature": 0, "cache_prompt": True,
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    for piece in stream(url, body):
        if piece["choices"] and piece["choices"][0]["delta"].get("content"):
            yield piece


def time_first(ask: Ask, messages: list[Message]) -> float:
    """Seconds until something comes; the rest is waited for, untimed."""
    begun_s, first_s = time.perf_counter(), 0.0
    for _ in ask(messages):
        first_s = first_s or time.perf_counter() - begun_s
    if not first_s:
        raise SystemExit("an answer was empty")
    return first_s


def measure(path: Path, n_turns: int, turn_tokens: int, n_threads: int) -> dict[str, list[float]]:
    """Time the three in turn, turn by turn."""
    counts = ["-c", N_CTX, "-t", n_threads, "-tb", n_threads, "-np", 1, "-b", 512, "-ub", 512]
    llama = Llama(str(path), n_ctx=N_CTX, n_threads=n_threads, n_threads_batch=n_threads,
                  n_batch=512, verbose=False)  # fmt: skip
    with (
        Engine(path, n_ctx=N_CTX, n_threads=n_threads, n_outputs=CHAT_OUTPUTS) as engine,
        serve(path, *map(str, counts), "--jinja", "--no-webui") as url,
    ):
        asks: dict[str, Ask] = {
            "engine": lambda messages: ask_engine(engine, messages),
            "Llama": lambda messages: ask_llama(llama, messages),
            "llama-server": lambda messages: ask_server(url, messages),
        }
        for ask in asks.values():
            time_first(ask, [{"role": "user", "content": "warm up"}])
        times: dict[str, list[float]] = {name: [] for name in asks}
        for messages in make_chat(n_turns, turn_tokens):
            for name, ask in asks.items():
                times[name].append(time_first(ask, messages))
    return times


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--turn-tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "m.gguf", hybrid=True, n_ctx_train=N_CTX)
        times = measure(path, options.turns, options.turn_tokens, options.threads)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    rows: list[list[Any]] = []
    for name, seconds in times.items():
        # The first turn has no history: the claim is about those after it.
        early, late = statistics.median(seconds[1:6]), statistics.median(seconds[-5:])
        print(f"{name:13} {early * 1e3:8.1f} ms early, {late * 1e3:8.1f} ms late")
        for i, second in enumerate(seconds):
            rows.append([machine, name, i + 1, i * options.turn_tokens, f"{second * 1e3:.2f}"])
    with (ROOT / "bench" / "results" / "turns.csv").open("w", newline="") as file:
        head = "machine runner turn history_tokens first_token_ms"
        csv.writer(file).writerows([head.split(), *rows])


if __name__ == "__main__":
    main()
