"""What the chat costs: a long answer that streams, a long session that opens, the first paint.

    python bench/tui.py [--tokens 20000] [--messages 2000]

Headless. An answer of 20,000 tokens comes at 200 tokens a second, told of six times a second, so
in 600 writes; each is let through until it is painted, and its processor time is measured. So the
share of one core is the sum of the writes over 100 seconds, the worst pause the costliest write
(processor time again, as others may use the machine), and flatness the last quarter of the writes
over the first. Prose, one long list, one long fence, one big table, and maths; a session of 2,000
messages from nothing to painted; and the seconds from the command to the first paint, which is the
empty frame (localcascade/tui/curtain.py), and to the chat that hears keys, in a process of its own
with `tiny`, by the clock and of its processor time (Linux only). Writes bench/results/tui.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gc
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "tui.csv"
TOKENS_PER_S = 200
WRITES_PER_S = 6
TOKEN_CHARACTERS = 4
SIZE = (120, 40)
GOALS = {"share": 0.15, "worst_ms": 50.0, "open_s": 0.5, "paint_s": 0.4}

FIRST_PAINT = """
import os, pty, sys, time
begun = time.monotonic()
pid, master = pty.fork()
if pid == 0:
    os.environ.update(TERM="xterm-256color", COLUMNS="100", LINES="30")
    os.execv(sys.executable, [sys.executable, "-m", "localcascade", "chat", "tiny"])
seen = b""
for words in (b"sk anything", b"sk anything"):  # of the frame, then of the chat; the A is a cursor
    while words not in seen:
        seen += os.read(master, 65536)
    wall_s = time.monotonic() - begun
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:13]))
    print(wall_s, ticks / os.sysconf("SC_CLK_TCK"))
    seen = seen.partition(words)[2]
os.kill(pid, 9)
os.waitpid(pid, 0)
"""
N_PAINTS = 7

SENTENCE = (
    "the model reads a long line of words and **marks** some of them while others stay `plain` "
    "so that nothing is too regular for a reader who looks at all of it with care and patience"
)


def write_prose() -> Iterator[str]:
    """Paragraphs of about 80 words, with a heading now and then."""
    words = itertools.cycle(SENTENCE.split())
    for number in itertools.count(1):
        if number % 8 == 0:
            yield f"\n\n## Part {number}\n\n"
        yield " ".join(itertools.islice(words, 83)) + ".\n\n"


def write_list() -> Iterator[str]:
    """One list without an end."""
    words = itertools.cycle(SENTENCE.split())
    for number in itertools.count(1):
        yield f"{number}. {' '.join(itertools.islice(words, 14))}\n"


def write_code() -> Iterator[str]:
    """One fence without an end."""
    yield "```python\n"
    for number in itertools.count(1):
        yield f"def function_{number}(a: int, b: str = 'x') -> int:\n"
        yield f"    return a * {number}  # why\n\n"


def write_table() -> Iterator[str]:
    """One table without an end."""
    yield "| Number | Square | What it is |\n|---:|---:|:---|\n"
    words = itertools.cycle(SENTENCE.split())
    for number in itertools.count(1):
        yield f"| {number} | {number**2} | {' '.join(itertools.islice(words, 6))} |\n"


def write_maths() -> Iterator[str]:
    """Steps with formulas inside the lines and between them."""
    for number in itertools.count(1):
        yield f"We know that $x_{{{number}}} = \\frac{{a+{number}}}{{b}}$ and "
        yield "$\\alpha \\le \\beta$, "
        yield f"therefore\n\n$$\\sum_{{k=1}}^{{{number}}} \\frac{{1}}{{k^2}} \\le \\sqrt{{2}}$$\n\n"


KINDS = {
    "prose": write_prose, "list": write_list, "code": write_code, "table": write_table,
    "maths": write_maths,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stream:
    """What an answer cost."""

    kind: str
    share: float
    """Of one core."""
    worst_ms: float
    flatness: float
    """Mean of the last quarter of the writes over that of the first."""


async def measure_stream(kind: str, n_tokens: int) -> Stream:
    """Stream one answer into the chat."""
    from localcascade.chat.conversation import Conversation, MemoryJournal
    from localcascade.chat.turn import Turn
    from localcascade.prompt.events import Delta
    from localcascade.tui.app import ChatApp
    from localcascade.tui.opening import Opening
    from localcascade.tui.speaker import TurnMoved
    from tests.localcascade.scripted_engine import ScriptedEngine, ScriptedSource

    tokens = cut_tokens(KINDS[kind](), n_tokens)
    opening = Opening(Conversation(MemoryJournal()), "bench", ScriptedEngine([[None]]))
    app = ChatApp(ScriptedSource(opening.engine), opening)
    costs: list[float] = []
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("x", "enter")
        await pilot.pause(0.5)
        turn = Turn(0.0)
        gc.collect()
        gc.freeze()
        for at in range(0, len(tokens), TOKENS_PER_S // WRITES_PER_S):
            begun_s = time.process_time()
            for number, token in enumerate(tokens[at : at + TOKENS_PER_S // WRITES_PER_S]):
                turn.take(Delta(token, "answer"), (at + number) / TOKENS_PER_S)
            app.screen.post_message(TurnMoved(turn))
            await pilot.pause()
            costs.append(time.process_time() - begun_s)
    return Stream(kind, *judge_costs(costs, n_tokens))


def cut_tokens(parts: Iterator[str], n_tokens: int) -> list[str]:
    """Cut a text without an end into pieces of the size of tokens."""
    text = ""
    while len(text) < n_tokens * TOKEN_CHARACTERS:
        text += next(parts)
    return [text[at : at + TOKEN_CHARACTERS] for at in range(0, len(text), TOKEN_CHARACTERS)]


def judge_costs(costs: Sequence[float], n_tokens: int) -> tuple[float, float, float]:
    """Share of a core, worst write in milliseconds, flatness."""
    share = sum(costs) / (n_tokens / TOKENS_PER_S)
    quarter = len(costs) // 4
    flatness = statistics.fmean(costs[-quarter:]) / statistics.fmean(costs[:quarter])
    return share, max(costs) * 1e3, flatness


async def measure_opening(n_messages: int) -> float:
    """Seconds of the painting thread until a long session is painted; another checks its steps."""
    from localcascade.chat.conversation import Conversation, MemoryJournal, Message
    from localcascade.tui.app import ChatApp
    from localcascade.tui.opening import Opening
    from tests.localcascade.scripted_engine import ScriptedEngine, ScriptedSource

    text = "".join(itertools.islice(write_prose(), 3)) + "".join(itertools.islice(write_maths(), 4))
    messages = [
        Message(str(n), str(n - 1) if n else None, "assistant" if n % 2 else "user", text)
        for n in range(n_messages)
    ]
    opening = Opening(Conversation(MemoryJournal(), messages), "bench", ScriptedEngine([[None]]))
    app = ChatApp(ScriptedSource(opening.engine), opening)
    begun_s = time.thread_time()
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        return time.thread_time() - begun_s


def measure_paint() -> list[float]:
    """Seconds from the command to the first paint, and of processor time; then the same to the
    chat itself; each the least."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "LOCALCASCADE_HOME": home, "PYTHONPATH": str(ROOT)}

        def run(*arguments: str) -> str:
            command = [sys.executable, *arguments]
            done = subprocess.run(
                command, capture_output=True, check=True, text=True, cwd=home, env=environment
            )
            return done.stdout

        run("-m", "localcascade", "demo")
        runs = [map(float, run("-c", FIRST_PAINT).split()) for _ in range(N_PAINTS)]
    return [min(figures) for figures in zip(*runs, strict=True)]


def main() -> None:
    """Measure everything, print it and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=2_000)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    rows: list[tuple[str, str, float, float | str]] = []
    for kind in KINDS:
        stream = asyncio.run(measure_stream(kind, options.tokens))
        rows.append((kind, "share of a core", stream.share, GOALS["share"]))
        rows.append((kind, "worst write, ms", stream.worst_ms, GOALS["worst_ms"]))
        rows.append((kind, "last quarter / first", stream.flatness, ""))
    opening_s = asyncio.run(measure_opening(options.messages))
    rows.append(("session", f"{options.messages} messages, s", opening_s, GOALS["open_s"]))
    frame_s, frame_cpu_s, chat_s, chat_cpu_s = measure_paint()
    rows.append(("start", "first paint, s", frame_s, GOALS["paint_s"]))
    rows.append(("start", "first paint, processor s", frame_cpu_s, GOALS["paint_s"]))
    rows.append(("start", "keys are heard, s", chat_s, ""))
    rows.append(("start", "keys are heard, processor s", chat_cpu_s, ""))
    for row in rows:
        print(f"{row[0]:8} {row[1]:24} {row[2]:8.3f}   goal {row[3]}")
    keep(rows)


def keep(rows: Sequence[tuple[str, str, float, float | str]]) -> None:
    """Write the table."""
    RESULTS.parent.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", "what", "figure", "value", "goal"])
        writer.writerows(
            [machine, what, figure, f"{v:.4f}", goal] for what, figure, v, goal in rows
        )


if __name__ == "__main__":
    main()
