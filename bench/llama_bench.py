"""`localcascade bench` beside llama.cpp's llama-bench, on the same file and the same libraries.

    python bench/llama_bench.py [MODEL] [--rounds 15] [--threads N] [--tests pp512,tg64,pp512@512]

Many short rounds, in each of which both run, in turn the one and the other first, on the same
processors, and loaded anew: what else the machine does comes and goes, and slows both, and where a
model comes to lie in memory matters. Without MODEL, the bundled tiny model is converted first. Two
clocks, each with rounds of its own:

- wall: `localcascade bench` as a user has it, through the worker, and llama-bench as it is;
- processor: what the process computes, waiting left out, which says more on a shared machine; with
  one thread only, for several wait for each other by computing. Ours runs the worker's function
  with that clock; llama-bench is lent a library that answers its questions for the time (Linux
  only).

Writes bench/results/llama_bench.csv, or with MODEL llama_bench_MODEL.csv. The claim: the median of
the ratios is within 3 % of 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from geometry import run_alone
from llama_server import find_tool, make_environment

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests know how to load a model in this process

from localcascade.engine import _llama  # noqa: E402
from localcascade.engine.client import Engine  # noqa: E402
from localcascade.engine.measuring import measure_speed  # noqa: E402
from localcascade.engine.model import FATAL_BUFFERS  # noqa: E402
from localcascade.engine.wire import CHAT_OUTPUTS, LoadOptions, SpeedTest  # noqa: E402
from localcascade.store import bundled_checkpoint_folder  # noqa: E402
from quantize.convert import quantize_checkpoint  # noqa: E402
from tests.localcascade.local_engine import load  # noqa: E402

RESULTS = ROOT / "bench" / "results"
N_BATCH, N_REPETITIONS = 512, 3
CPU_CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t asked, struct timespec *now) {
    (void)asked;
    return syscall(SYS_clock_gettime, CLOCK_PROCESS_CPUTIME_ID, now);
}
"""
Side = Callable[[], float]
"""Runs a test once; tokens a second."""


def write_tiny(path: Path) -> Path:
    """Convert the bundled model, in full precision."""
    folder = bundled_checkpoint_folder("tiny")
    assert folder
    quantize_checkpoint(folder, path, "f32")
    return path


def build_clock(folder: Path) -> Path:
    """Build the library that tells processor time to whoever asks for the time."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CPU_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    return library


def parse_test(text: str) -> SpeedTest:
    """Read a test: pp512, tg64, or either with @ and a depth."""
    match = re.fullmatch(r"(pp|tg)(\d+)(?:@(\d+))?", text)
    if not match:
        raise SystemExit(f"{text} is no test; for example pp512 or tg64@1024")
    n, depth = int(match[2]), int(match[3] or 0)
    return SpeedTest(
        n if match[1] == "pp" else 0, n if match[1] == "tg" else 0, depth, N_REPETITIONS
    )


def run_theirs(model: Path, test: SpeedTest, n_threads: int, clock: Path | None) -> float:
    """Run llama-bench; median of tokens a second."""
    counts = {"-p": test.n_prompt, "-n": test.n_gen, "-d": test.depth, "-t": n_threads}
    fixed = {"-b": N_BATCH, "-ub": N_BATCH, "-r": test.n_repetitions, "-o": "json"}
    # The engine does without these buffers where they may crash.
    fixed["--repack"] = int(not FATAL_BUFFERS & set(_llama.list_extra_buffers()))
    arguments = [str(word) for pair in (counts | fixed).items() for word in pair]
    lent = {"LD_PRELOAD": str(clock)} if clock else {}
    done = subprocess.run(
        [find_tool("llama-bench"), "-m", str(model), *arguments],
        env=make_environment() | lent, capture_output=True, check=True,
    )  # fmt: skip
    (row,) = json.loads(done.stdout)
    return statistics.median(row["samples_ts"])


def run_ours(model: Path, test: SpeedTest, n_threads: int, *, by_wall: bool) -> float:
    """Load and run ours, where llama-bench loads anew too; median of tokens a second.

    Where in memory a model comes to lie makes it faster or slower by some per cent.
    """
    options: dict[str, Any] = {"n_ctx": test.depth + test.n_tokens, "n_threads": n_threads}
    options |= {"n_batch": N_BATCH, "n_outputs": CHAT_OUTPUTS}
    if not by_wall:
        return run_alone(measure_processor, model, test, options)
    with Engine(model, **options) as engine:
        return test.n_tokens / statistics.median(engine.measure(test).elapsed_s)


def measure_processor(model: Path, test: SpeedTest, options: dict[str, Any]) -> float:
    """Run ours in this process, timed by what it computes."""
    loaded = load(model, LoadOptions(**options))
    return test.n_tokens / statistics.median(measure_speed(loaded, test, time.process_time))


def alternate(ours: Side, theirs: Side, n_rounds: int) -> list[tuple[float, float]]:
    """Run both in each round, in turn the one and the other first; the first round warms up."""
    pairs = []
    for number in range(n_rounds + 1):
        if number % 2:
            left, right = ours(), theirs()
        else:
            right, left = theirs(), ours()
        pairs.append((left, right))
    return pairs[1:]


def sum_up(pairs: list[tuple[float, float]]) -> list[float]:
    """Medians of ours and theirs in tokens a second; median and quartiles of their ratio."""
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles((a / b for a, b in pairs), n=4, method="inclusive")
    return [ours, theirs, middle, low, high]


def compare(
    model: Path, name: str, clock: str, options: argparse.Namespace, library: Path | None
) -> list[float]:
    """Run one test by one clock in all rounds."""
    test, by_wall = parse_test(name), clock == "wall"
    lent = None if by_wall else library
    found = sum_up(
        alternate(
            lambda: run_ours(model, test, options.threads, by_wall=by_wall),
            lambda: run_theirs(model, test, options.threads, lent),
            options.rounds,
        )
    )
    speeds = "ours {:10.1f}  llama-bench {:10.1f}  {:.3f} ({:.3f} to {:.3f})".format(*found)
    print(f"{name:10} {clock:10} {speeds}", flush=True)
    return found


def pin(n_threads: int) -> None:
    """Keep this process, and all that it will start, on as many processors, if that can be said."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-n_threads:])


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tests", default="pp512,tg64,pp512@512,tg64@512")
    options = parser.parse_args()
    has_both = options.threads == 1 and sys.platform == "linux"
    clocks = ["wall", "processor"] if has_both else ["wall"]
    pin(options.threads)
    machine, rows = f"{platform.machine()}, {os.cpu_count()} cores", []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_tiny(Path(folder) / "tiny.gguf")
        library = build_clock(Path(folder)) if has_both else None
        for name, clock in product(options.tests.split(","), clocks):
            speeds = compare(model, name, clock, options, library)
            figures = [f"{value:.4f}" for value in speeds]
            rows.append(
                [machine, model.name, options.threads, options.rounds, name, clock, *figures]
            )
    file_name = f"llama_bench_{options.model.stem}.csv" if options.model else "llama_bench.csv"
    with (RESULTS / file_name).open("w", newline="") as file:
        head = "machine model threads rounds test clock ours_tokens_s llama_bench_tokens_s"
        csv.writer(file).writerows([[*head.split(), "ratio", "ratio_q1", "ratio_q3"], *rows])


if __name__ == "__main__":
    main()
