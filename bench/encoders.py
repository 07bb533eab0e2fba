"""Encode with our encoders and with ggml's: error and speed, type by type, on one core.

    python bench/encoders.py [--rounds 9] [--rows 512]

Rows are 2688 wide, Gaussian, made from a fixed seed; importance, where given, is log-normal as the
second moments of activations are. Both sides encode the same slabs in the same run, in turn, each
on one thread. Speed is weights per second of that thread's processor time, median of the rounds,
so that other work on the machine disturbs it little. Writes bench/results/encoders.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from quantize import encoders, ggml
from quantize.gguf import BlockType

RESULTS = Path(__file__).parent / "results" / "encoders.csv"
WIDTH = 2688
SLAB_ROWS = 97
"""What the conversion hands over at a time: 2^18 weights, as whole rows."""

Encoder = Callable[
    [ggml.F32Array, BlockType, ggml.U8Array, ggml.F32Array | None], None
]  # fmt: skip


def encode_slabs(
    encode: Encoder, rows: ggml.F32Array, block_type: BlockType, importance: ggml.F32Array | None
) -> tuple[ggml.U8Array, float]:
    """Encode slab by slab; the bytes and the processor seconds of this thread."""
    row_bytes = block_type.row_bytes(WIDTH)
    out = np.zeros(len(rows) * row_bytes, dtype=np.uint8)
    started = time.thread_time()
    for first in range(0, len(rows), SLAB_ROWS):
        slab = rows[first : first + SLAB_ROWS]
        encode(slab, block_type, out[first * row_bytes :][: len(slab) * row_bytes], importance)
    return out, time.thread_time() - started


def measure_relative_error(
    encoded: ggml.U8Array,
    rows: ggml.F32Array,
    block_type: BlockType,
    importance: ggml.F32Array | None,
) -> float:
    """Importance-weighted squared error of what ggml decodes, over that of zeros."""
    weight = np.float64(1) if importance is None else importance.astype(np.float64)
    decoded = ggml.decode_rows(encoded, block_type, WIDTH).astype(np.float64)
    return float(
        (weight * (decoded - rows) ** 2).sum() / (weight * rows.astype(np.float64) ** 2).sum()
    )


def compare(
    name: str, rows: ggml.F32Array, importance: ggml.F32Array | None, n_rounds: int
) -> tuple[float, float, float, float]:
    """Error and weights per second of ours, then of ggml's."""
    block_type = ggml.type_named(name)
    sides: tuple[Encoder, Encoder] = (encoders.encode_rows, ggml.encode_rows)
    seconds: tuple[list[float], list[float]] = ([], [])
    errors = [0.0, 0.0]
    for _ in range(n_rounds):
        for i, encode in enumerate(sides):
            encoded, elapsed_s = encode_slabs(encode, rows, block_type, importance)
            seconds[i].append(elapsed_s)
            errors[i] = measure_relative_error(encoded, rows, block_type, importance)
    speeds = [rows.size / statistics.median(side) for side in seconds]
    return errors[0], speeds[0], errors[1], speeds[1]


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=512)
    options = parser.parse_args()
    rng = np.random.Generator(np.random.PCG64(0))
    gaussian = rng.standard_normal((options.rows, WIDTH), dtype=np.float32)
    importance = np.exp(rng.standard_normal(WIDTH, dtype=np.float32))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", "type", "importance", "deviation", "ours_error", "ggml_error",
                         "ours_weights_per_s", "ggml_weights_per_s"])  # fmt: skip
        for name in ("q2_0", "mxfp4", "nvfp4"):
            for kind, deviation in (("uniform", 1.0), ("log-normal", 1.0), ("uniform", 0.02)):
                given = importance if kind == "log-normal" else None
                rows = gaussian * np.float32(deviation)
                ours, our_speed, theirs, their_speed = compare(name, rows, given, options.rounds)
                writer.writerow([machine, name, kind, deviation, f"{ours:.6f}", f"{theirs:.6f}",
                                 round(our_speed), round(their_speed)])  # fmt: skip
                print(f"{name:<6} {kind:<10} deviation {deviation:<4} "
                      f"ours {ours:.5f} {our_speed / 1e6:5.1f} M/s   "
                      f"ggml {theirs:.5f} {their_speed / 1e6:5.1f} M/s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
