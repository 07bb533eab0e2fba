"""What collecting an importance matrix costs, over plain prefill of the same text.

    python bench/calibrate.py [--pairs 12] [--threads 2] [--tiny]

Both sides read the same chunks of the calibration text in turn, in one process, from an empty
context, with the same threads: once as `run` reads a prompt (logits of the last token only), once
as `calibrate` does. Two models: tiny (q8_0), and one MoE layer of the 30 B model's size (128
experts of 1856 x 2688, q8_0, random weights) behind a small Mamba and a small attention layer.
Writes bench/results/calibrate.csv: seconds of each pair and their ratio.
Needs about 6 GiB of disk in the temporary folder and 3 GiB of memory; --tiny leaves the layer out.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from convert import ROOT, TINY, write_checkpoint

from localcascade.engine import _llama
from localcascade.engine.calibrate import list_default_texts
from localcascade.engine.model import Log, Model
from localcascade.engine.session import Session
from localcascade.engine.wire import LoadOptions
from quantize.convert import quantize_checkpoint

N_CTX = 512


def load(path: Path, n_threads: int, *, collects: bool) -> tuple[Model, Session]:
    """Load a model in this process, for once: a pipe is not what is measured."""
    options = LoadOptions(n_ctx=N_CTX, n_threads=n_threads, collects=collects)
    model = Model(path, options, Log(), lambda _share: None)
    return model, Session(model)


def cut_text(model: Model, n_chunks: int) -> list[list[int]]:
    """Chunks of the calibration text; no two are alike, so that nothing is reused."""
    text = "".join(path.read_text(encoding="utf-8") for path in list_default_texts())
    tokens = model.vocabulary.tokenize(text, parse_special=False)
    return [tokens[i * N_CTX : (i + 1) * N_CTX] for i in range(n_chunks)]


def measure_pairs(path: Path, n_pairs: int, n_threads: int) -> Iterator[tuple[float, float]]:
    """Seconds of plain prefill and of collecting, chunk by chunk; the first one warms up."""
    plain, plain_session = load(path, n_threads, collects=False)
    tapped, session = load(path, n_threads, collects=True)
    assert tapped.collector is not None
    sides = (plain_session.read_prompt, partial(tapped.collector.collect, session))
    for i, chunk in enumerate(cut_text(plain, n_pairs + 1)):
        elapsed_s = [0.0, 0.0]
        for side in (i % 2, 1 - i % 2):
            started_s = time.perf_counter()
            list(sides[side](chunk))
            elapsed_s[side] = time.perf_counter() - started_s
        if i:
            yield elapsed_s[0], elapsed_s[1]


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    _llama.set_log(lambda _level, _text: None)
    _llama.start_backend()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        checkpoints = {"tiny": TINY}
        if not options.tiny:
            checkpoints["one layer of 30B"] = work / "layer"
            write_checkpoint(work / "layer")
        for name, checkpoint in checkpoints.items():
            path = work / f"{checkpoint.name}.gguf"
            quantize_checkpoint(checkpoint, path, "q8_0")
            for plain_s, calibrate_s in measure_pairs(path, options.pairs, options.threads):
                print(f"{name:<17} {plain_s:7.3f} s {calibrate_s:7.3f} s", flush=True)
                rows.append((name, plain_s, calibrate_s))
    write_results(rows)


def write_results(rows: list[tuple[str, float, float]]) -> None:
    """Store each pair and print the medians of the ratios."""
    with (ROOT / "bench" / "results" / "calibrate.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", "model", "n_tokens", "plain_s", "calibrate_s", "ratio"])
        for name, plain_s, calibrate_s in rows:
            machine = f"{platform.machine()}, {os.cpu_count()} cores"
            figures = (f"{plain_s:.3f}", f"{calibrate_s:.3f}", f"{calibrate_s / plain_s:.3f}")
            writer.writerow([machine, name, N_CTX, *figures])
    for name in dict.fromkeys(row[0] for row in rows):
        ratio = statistics.median(c / p for model, p, c in rows if model == name)
        print(f"{name}: median ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
