"""`localcascade bench` beside llama.cpp's llama-bench, on the same file and the same libraries.

    python bench/llama_bench.py [MODEL] [--pairs 7] [--threads N] [--tests pp512,tg64,pp512@512]

Both are run in turn, five repetitions each, so that a busy machine slows both; without MODEL, the
bundled tiny model is converted first. Writes bench/results/llama_bench.csv. The claim: the
median of the ratios is within 3 % of 1.
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
import tempfile
from pathlib import Path

from llama_server import find_tool, make_environment

from localcascade.engine.client import Engine
from localcascade.engine.wire import SpeedTest
from localcascade.store import bundled_checkpoint_folder
from quantize.convert import choose_uniformly, quantize_checkpoint
from quantize.ggml import type_named
from quantize.safetensors import open_checkpoint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "llama_bench.csv"
N_BATCH = 512


def write_tiny(path: Path) -> Path:
    """Convert the bundled model, in full precision."""
    folder = bundled_checkpoint_folder("tiny")
    assert folder
    with open_checkpoint(folder) as checkpoint:
        choices, _ = choose_uniformly(checkpoint, type_named("f32"), fallback=None, pad=False)
    quantize_checkpoint(folder, path, choices=choices)
    return path


def parse_test(text: str) -> SpeedTest:
    """Read a test: pp512, tg64, or either with @ and a depth."""
    match = re.fullmatch(r"(pp|tg)(\d+)(?:@(\d+))?", text)
    if not match:
        raise SystemExit(f"{text} is no test; for example pp512 or tg64@1024")
    n, depth = int(match[2]), int(match[3] or 0)
    return SpeedTest(n if match[1] == "pp" else 0, n if match[1] == "tg" else 0, depth)


def run_theirs(model: Path, test: SpeedTest, n_threads: int) -> float:
    """Run llama-bench; median of tokens a second."""
    counts = {"-p": test.n_prompt, "-n": test.n_gen, "-d": test.depth, "-t": n_threads}
    fixed = {"-b": N_BATCH, "-ub": N_BATCH, "-r": test.n_repetitions, "-o": "json"}
    arguments = [str(word) for pair in (counts | fixed).items() for word in pair]
    done = subprocess.run(
        [find_tool("llama-bench"), "-m", str(model), *arguments],
        env=make_environment(), capture_output=True, check=True,
    )  # fmt: skip
    (row,) = json.loads(done.stdout)
    return statistics.median(row["samples_ts"])


def compare(
    model: Path, test: SpeedTest, n_pairs: int, n_threads: int
) -> tuple[float, float, float]:
    """Run both in turn; medians of ours and theirs in tokens a second, and of the ratio."""
    ours, theirs = [], []
    with Engine(
        model, n_ctx=test.depth + test.n_tokens, n_threads=n_threads, n_outputs=1
    ) as engine:
        for _ in range(n_pairs):
            ours.append(test.n_tokens / statistics.median(engine.measure(test).elapsed_s))
            theirs.append(run_theirs(model, test, n_threads))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.median(ours), statistics.median(theirs), ratio


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tests", default="pp512,tg64,pp512@512,tg64@512")
    options = parser.parse_args()
    machine, rows = f"{platform.machine()}, {os.cpu_count()} cores", []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_tiny(Path(folder) / "tiny.gguf")
        for name in options.tests.split(","):
            ours, theirs, ratio = compare(model, parse_test(name), options.pairs, options.threads)
            rows.append([
                machine, model.name, options.threads, options.pairs, name,
                f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.4f}",
            ])  # fmt: skip
            print(f"{name:12} ours {ours:10.1f}  llama-bench {theirs:10.1f}  {ratio:.3f}")
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        head = "machine model threads pairs test ours_tokens_s llama_bench_tokens_s ratio"
        writer.writerows([head.split(), *rows])


if __name__ == "__main__":
    main()
