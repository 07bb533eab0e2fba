"""Our encoders against ggml's, and our threads against llama.cpp's own quantizer.

    python bench/encoders.py [--rounds 9] [--rows 512]             # error and speed on one core
    python bench/encoders.py --quantizers [--pairs 1] [--experts 8] [--types iq4_nl,q4_k]

First form: Q2_0, MXFP4 and NVFP4, ours and ggml's. Rows are 2688 wide, Gaussian, made from a fixed
seed; importance, where given, is log-normal as the second moments of activations are. Both sides
encode the same slabs in the same run, in turn, each on one thread. Speed is weights per second of
that thread's processor time, median of the rounds, so that other work on the machine disturbs it
little. Writes bench/results/encoders.csv.

Second form: the types that ggml encodes, with one importance matrix, on all cores. Both sides make
a whole file of one checkpoint (BF16; experts of 1792 x 2816, the 30 B model's trimmed and padded
to superblocks) in processes of their own, in turn; llama.cpp's is `llama_model_quantize` of the
installed library. Measured is that call alone, in wall and processor seconds. The files' tensors
are compared byte by byte. Writes bench/results/quantizers.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from convert import CONFIG, ROOT, count_different_tensors, write_checkpoint

from quantize import encoders, ggml
from quantize.convert import quantize_checkpoint
from quantize.gguf import BlockType, open_gguf
from quantize.importance import Importance, Moments, write_importance
from quantize.recipe import FILE_TYPES

RESULTS = ROOT / "bench" / "results"
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"
WIDTH = 2688
SLAB_ROWS = 97
"""What the conversion hands over at a time: 2^18 weights, as whole rows."""

Encoder = Callable[
    [ggml.F32Array, BlockType, ggml.U8Array, ggml.F32Array | None], None
]  # fmt: skip

SUPERBLOCK_CONFIG = CONFIG | {
    "hidden_size": 2816,
    "mamba_num_heads": 4,
    "num_attention_heads": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 1792,
    "moe_shared_expert_intermediate_size": 3584,
}
"""Every width a multiple of 256, so that neither side falls back to another type."""

LLAMA_FILE_TYPES = FILE_TYPES | {"iq2_s": 29}
"""What llama.cpp is asked for so that, being pure, it makes that type; its IQ2_S makes iq2_xs."""

OURS = """
import json, sys, time
from pathlib import Path
from quantize.convert import quantize_checkpoint
source, output, type_name, importance, n_threads = sys.argv[1:]
wall, cpu = time.monotonic(), time.process_time()
quantize_checkpoint(
    Path(source), Path(output), type_name, importance=Path(importance), n_threads=int(n_threads)
)
print(json.dumps([time.monotonic() - wall, time.process_time() - cpu]))
"""

THEIRS = """
import ctypes, json, sys, time
from pathlib import Path
from llama_cpp import llama_cpp
from quantize.importance import read_importance
source, output, file_type, importance, n_threads = sys.argv[1:]
matrices = read_importance(Path(importance)).matrices
vectors = {
    name: b"".join(moments.estimate(i).tobytes() for i in range(len(moments.counts)))
    for name, moments in matrices.items()
}
rows = (llama_cpp.llama_model_imatrix_data * (len(vectors) + 1))()
for row, (name, data) in zip(rows, vectors.items()):
    row.name, row.size = name.encode(), len(data) // 4
    row.data = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_float))
llama_cpp.llama_backend_init()
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype, params.pure = int(n_threads), int(file_type), True
params.imatrix = rows
wall, cpu = time.monotonic(), time.process_time()
code = llama_cpp.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(params))
print(json.dumps([time.monotonic() - wall, time.process_time() - cpu]))
sys.exit(code)
"""


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


def compare_encoders(
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


def measure_encoders(n_rounds: int, n_rows: int) -> None:
    """Measure, print and store error and speed on one core."""
    rng = np.random.Generator(np.random.PCG64(0))
    gaussian = rng.standard_normal((n_rows, WIDTH), dtype=np.float32)
    importance = np.exp(rng.standard_normal(WIDTH, dtype=np.float32))
    with (RESULTS / "encoders.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", "type", "importance", "deviation", "ours_error", "ggml_error",
                         "ours_weights_per_s", "ggml_weights_per_s"])  # fmt: skip
        for name in ("q2_0", "mxfp4", "nvfp4"):
            for kind, deviation in (("uniform", 1.0), ("log-normal", 1.0), ("uniform", 0.02)):
                given = importance if kind == "log-normal" else None
                rows = gaussian * np.float32(deviation)
                ours, our_speed, theirs, their_speed = compare_encoders(name, rows, given, n_rounds)
                writer.writerow([MACHINE, name, kind, deviation, f"{ours:.6f}", f"{theirs:.6f}",
                                 round(our_speed), round(their_speed)])  # fmt: skip
                print(f"{name:<6} {kind:<10} deviation {deviation:<4} "
                      f"ours {ours:.5f} {our_speed / 1e6:5.1f} M/s   "
                      f"ggml {theirs:.5f} {their_speed / 1e6:5.1f} M/s", flush=True)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One model, as each side wants it."""

    checkpoint: Path
    ready: Path
    """The same in BF16 GGUF, for llama.cpp."""
    importance: Path
    n_weights: int
    """Of the matrices that are quantized."""


def make_source(folder: Path, n_experts: int) -> Source:
    """Write the checkpoint, its BF16 GGUF and an importance matrix for it."""
    source = Source(folder / "layer", folder / "ready.gguf", folder / "imatrix.gguf", 0)
    write_checkpoint(source.checkpoint, SUPERBLOCK_CONFIG | {"n_routed_experts": n_experts})
    quantize_checkpoint(source.checkpoint, source.ready, "bf16")
    with open_gguf(source.ready) as file:
        matrices = [tensor for tensor in file.tensors.values() if tensor.type.name == "bf16"]
    rng = np.random.Generator(np.random.PCG64(1))
    moments = {}
    for matrix in matrices:
        stacked = matrix.shape[0] if len(matrix.shape) == 3 else 1
        means = np.exp(rng.standard_normal((stacked, matrix.shape[-1])))
        moments[matrix.name] = Moments(means * 1000, np.full(stacked, 1000.0))
    write_importance(source.importance, Importance(moments, n_chunks=1, chunk_tokens=512))
    n_weights = sum(matrix.n_weights for matrix in matrices)
    return Source(source.checkpoint, source.ready, source.importance, n_weights)


def run_side(code: str, *arguments: object) -> tuple[float, float]:
    """Run one side in a process of its own; wall and processor seconds of its quantizing."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"a side ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    wall_s, processor_s = json.loads(done.stdout.splitlines()[-1])
    return wall_s, processor_s


def race_quantizers(source: Source, name: str, folder: Path, n_threads: int) -> list[object]:
    """Let both sides quantize to one type; a row of the results."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    rest = (source.importance, n_threads)
    our_wall, our_cpu = run_side(OURS, source.checkpoint, ours, name, *rest)
    their_wall, their_cpu = run_side(THEIRS, source.ready, theirs, LLAMA_FILE_TYPES[name], *rest)
    n_different = count_different_tensors(ours, theirs)
    print(f"{name:<8} ours {source.n_weights / our_wall / 1e6:6.2f} M/s  llama.cpp "
          f"{source.n_weights / their_wall / 1e6:6.2f} M/s  ratio {their_wall / our_wall:.3f} "
          f"(processor time {their_cpu / our_cpu:.3f})  {n_different} tensors differ",
          flush=True)  # fmt: skip
    return [
        MACHINE, name, source.n_weights, n_threads, f"{our_wall:.2f}", f"{our_cpu:.2f}",
        f"{their_wall:.2f}", f"{their_cpu:.2f}", f"{their_wall / our_wall:.3f}",
        f"{their_cpu / our_cpu:.3f}", n_different,
    ]  # fmt: skip


def measure_quantizers(names: list[str], n_experts: int, n_pairs: int, n_threads: int) -> None:
    """Measure, print and store the speed of whole files, type by type."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = make_source(folder, n_experts)
        rows = [
            race_quantizers(source, name, folder, n_threads)
            for name in names
            for _ in range(n_pairs)
        ]
    with (RESULTS / "quantizers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", "type", "n_weights", "threads", "ours_s", "ours_cpu_s",
                         "llama_cpp_s", "llama_cpp_cpu_s", "speed_ratio", "cpu_ratio",
                         "tensors_different"])  # fmt: skip
        writer.writerows(rows)


def main() -> None:
    """Read the command line and measure what it asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--quantizers", action="store_true")
    parser.add_argument("--types", default="iq4_nl,q4_k,iq3_s,iq2_s")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.quantizers:
        names = options.types.split(",")
        measure_quantizers(names, options.experts, options.pairs, options.threads)
    else:
        measure_encoders(options.rounds, options.rows)


if __name__ == "__main__":
    main()
