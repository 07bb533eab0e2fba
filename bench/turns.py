"""Time to the first token over a chat of 20 turns that grows to 8,000 tokens.

    python bench/turns.py [--turns 20] [--turn-tokens 400] [--threads N] [--real] [--llama-every N]

The same chat is read, turn after turn: through the engine, through llama-cpp-python's `Llama`,
which forgets a hybrid model's state whenever the chat goes on, and through llama-server. What is
timed is from the request to the first token; each answer has one. By default with a small model of
the real kind (Mamba-2, attention, feed-forward; a token is a letter), in which attention is most of
the work; with --real with nine layers of the 30 B model's exact shapes, in its proportions
(bench/geometry.py, write_layers), or with such a file that is here: --model FILE. `Llama` reads
everything again at each turn anyway, so asking it only at every fifth says as much; the rows tell
which. Writes bench/results/turns.csv or turns_real.csv. The claim: ours stays flat.
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

from geometry import write_layers
from llama_cpp import Llama
from llama_server import serve, stream

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests hold the small model

from localcascade.engine.client import Engine  # noqa: E402
from localcascade.engine.wire import CHAT_OUTPUTS  # noqa: E402
from localcascade.prompt.events import ChatRequest, Delta, Done, Failed, Sampling  # noqa: E402
from tests.localcascade.models import write_model  # noqa: E402

N_CTX = 16384
Message = dict[str, Any]
Ask = Callable[[list[Message]], Iterator[object]]
"""Sends a chat, and gives something when the one token of the answer has come."""
Row = tuple[str, int, int, float]
"""Runner, number of the turn, tokens of its prompt, seconds to the first token."""


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
    for event in engine.chat(make_request(messages)):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Delta | Done):
            yield event


def make_request(messages: list[Message]) -> ChatRequest:
    """Make a request for one token."""
    return ChatRequest(tuple(messages), (), False, Sampling(0, max_tokens=1))


def ask_llama(llama: Llama, messages: list[Message]) -> Iterator[object]:
    """Ask llama-cpp-python's own class."""
    chunks: Any = llama.create_chat_completion(messages, stream=True, max_tokens=1, temperature=0)
    for chunk in chunks:
        choice = chunk["choices"][0]
        if choice["delta"].get("content") or choice["finish_reason"]:
            yield chunk


def ask_server(url: str, messages: list[Message]) -> Iterator[object]:
    """Ask llama-server."""
    body = {
        "messages": messages, "max_tokens": 1, "temperature": 0, "cache_prompt": True,
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    for piece in stream(url, body):
        for choice in piece["choices"]:
            if choice["delta"].get("content") or choice["finish_reason"]:
                yield piece


def time_first(ask: Ask, messages: list[Message]) -> float:
    """Seconds until something comes; the rest is waited for, untimed."""
    begun_s, first_s = time.perf_counter(), 0.0
    for _ in ask(messages):
        first_s = first_s or time.perf_counter() - begun_s
    if not first_s:
        raise SystemExit("an answer was empty")
    return first_s


def measure(path: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Time the three in turn, turn by turn."""
    n_threads = options.threads
    counts = ["-c", N_CTX, "-t", n_threads, "-tb", n_threads, "-np", 1, "-b", 512, "-ub", 512]
    llama = Llama(str(path), n_ctx=N_CTX, n_threads=n_threads, n_threads_batch=n_threads,
                  n_batch=512, verbose=False)  # fmt: skip
    with (
        Engine(path, n_ctx=N_CTX, n_threads=n_threads, n_outputs=CHAT_OUTPUTS) as engine,
        serve(path, *map(str, counts), "--jinja", "--no-webui") as url,
    ):
        asks: dict[str, tuple[Ask, int]] = {
            "engine": (lambda messages: ask_engine(engine, messages), 1),
            "llama-server": (lambda messages: ask_server(url, messages), 1),
            "Llama": (lambda messages: ask_llama(llama, messages), options.llama_every),
        }
        for ask, _ in asks.values():
            time_first(ask, [{"role": "user", "content": "warm up"}])
        for number, messages in enumerate(make_chat(options.turns, options.turn_tokens), 1):
            n_prompt = len(engine.render(make_request(messages)))
            for name, (ask, every) in asks.items():
                if number % every == 0:
                    yield name, number, n_prompt, time_first(ask, messages)


def sum_up(rows: list[Row], n_turns: int) -> None:
    """Print what a turn takes early and late; the first one has no history, so it is left out."""
    for name in dict.fromkeys(row[0] for row in rows):
        mine = {number: first_s for runner, number, _, first_s in rows if runner == name}
        early = [s for number, s in mine.items() if 1 < number <= max(6, n_turns // 4)]
        late = [s for number, s in mine.items() if number > n_turns - 5]
        if early and late:
            a, b = statistics.median(early) * 1e3, statistics.median(late) * 1e3
            print(f"{name:13} {a:9.1f} ms early, {b:9.1f} ms late, {b / a:.2f} times")


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--turn-tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama-every", type=int, default=1)
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or make_model(Path(folder), is_real=options.real)
        for row in measure(path, options):
            print("{:13} turn {:2}, {:5} tokens: {:8.3f} s".format(*row), flush=True)
            rows.append(row)
    sum_up(rows, options.turns)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    name = "turns_real.csv" if options.real or options.model else "turns.csv"
    with (ROOT / "bench" / "results" / name).open("w", newline="") as file:
        writer = csv.writer(file)
        head = "machine model runner turn prompt_tokens first_token_ms"
        writer.writerow(head.split())
        for *start, first_s in rows:
            writer.writerow([machine, path.stem, *start, f"{first_s * 1e3:.2f}"])


def make_model(folder: Path, *, is_real: bool) -> Path:
    """Write the model that is asked for."""
    if not is_real:
        return write_model(folder / "narrow.gguf", hybrid=True, n_ctx_train=N_CTX)
    write_layers(folder / "real.gguf")
    return folder / "real.gguf"


if __name__ == "__main__":
    main()
