"""Convert one full-size MoE layer to q8_0: ours from safetensors, llama.cpp's from a ready GGUF.

    python bench/convert.py [--pairs 3] [--threads 2]

Both sides run as processes of their own, in turn, on the same weights (random BF16, 128 experts of
1856 x 2688 up and down, 1.28 G weights) and the same threads. Llama.cpp's side is
`llama_model_quantize` of the installed library, from a BF16 GGUF that was made beforehand. Writes
bench/results/convert.csv: wall seconds, peak resident memory, and the ratio of each pair.
Needs about 8 GiB of disk in the temporary folder and 5 GiB of memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from quantize.gguf import open_gguf

ROOT = Path(__file__).parents[1]
TINY = ROOT / "localcascade" / "data" / "tiny"

CONFIG = {
    "architectures": ["NemotronHForCausalLM"],
    "hybrid_override_pattern": "M*E",
    "vocab_size": 640,
    "hidden_size": 2688,
    "max_position_embeddings": 4096,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "mamba_num_heads": 1,
    "mamba_head_dim": 64,
    "n_groups": 1,
    "ssm_state_size": 128,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
}
"""The 30 B model's MoE layer; the layers beside it are as small as the family allows."""

OURS = """
import sys
from pathlib import Path
from quantize.convert import quantize_checkpoint
quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], n_threads=int(sys.argv[4]))
"""

THEIRS = """
import ctypes, sys
from llama_cpp import llama_cpp
llama_cpp.llama_backend_init()
params = llama_cpp.llama_model_quantize_default_params()
params.nthread = int(sys.argv[3])
params.ftype = 7  # LLAMA_FTYPE_MOSTLY_Q8_0
params.pure = True
source, output = (argument.encode() for argument in sys.argv[1:3])
sys.exit(llama_cpp.llama_model_quantize(source, output, ctypes.byref(params)))
"""


def write_checkpoint(folder: Path, config: dict[str, object] = CONFIG) -> None:
    """Write a checkpoint of random BF16 weights, one matrix at a time.

    Args:
        folder: Is made.
        config: As config.json holds it.
    """
    from quantize.families.nemotron_h import describe_nemotron_h
    from quantize.families.spec import Config

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    body = frozenset(["backbone.embeddings.weight"])
    model = describe_nemotron_h(Config(folder / "config.json", config), body)
    shapes = {s: t.source_shape for t in model.tensors for s in t.sources}
    header, end = {}, 0
    for name, shape in shapes.items():
        n_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    rng = np.random.Generator(np.random.PCG64(0))
    with (folder / "model.safetensors").open("wb") as file:
        text = json.dumps(header).encode()
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            noise = rng.standard_normal(shape, dtype=np.float32) / 50
            (noise.view(np.uint32) >> 16).astype(np.uint16).tofile(file)


def run_measured(code: str, *arguments: object) -> tuple[float, int]:
    """Run Python code in a process of its own; wall seconds and peak resident bytes."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"a side ended with status {status}")
    scale = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - started, usage.ru_maxrss * scale


def count_different_tensors(ours: Path, theirs: Path) -> int:
    """Number of quantized tensors whose bytes differ between the two files."""
    with open_gguf(ours) as a, open_gguf(theirs) as b:
        # llama.cpp drops leading axes of one, which changes no byte.
        return sum(not np.array_equal(a.read(n).ravel(), b.read(n).ravel()) for n in a.tensors)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_checkpoint(work / "layer")
        run_measured(OURS, work / "layer", work / "ready.gguf", "bf16", options.threads)
        for _ in range(options.pairs):
            ours = run_measured(OURS, work / "layer", work / "ours.gguf", "q8_0", options.threads)
            theirs = run_measured(
                THEIRS, work / "ready.gguf", work / "theirs.gguf", options.threads
            )
            rows.append((*ours, *theirs))
            for side, (wall_s, peak_bytes) in (("ours", ours), ("llama.cpp", theirs)):
                print(f"{side:<9} {wall_s:5.1f} s {peak_bytes >> 20:5} MiB")
        n_different = count_different_tensors(work / "ours.gguf", work / "theirs.gguf")
    write_results(rows, n_different)


def write_results(rows: list[tuple[float, int, float, int]], n_different: int) -> None:
    """Store each pair and print the medians of the ratios."""
    path = ROOT / "bench" / "results" / "convert.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", "ours_s", "ours_peak_mib", "llama_cpp_s", "llama_cpp_peak_mib",
                         "time_ratio", "memory_ratio", "tensors_different"])  # fmt: skip
        for ours_s, ours_peak, theirs_s, theirs_peak in rows:
            writer.writerow([
                f"{platform.machine()}, {os.cpu_count()} cores", f"{ours_s:.2f}", ours_peak >> 20,
                f"{theirs_s:.2f}", theirs_peak >> 20, f"{ours_s / theirs_s:.3f}",
                f"{ours_peak / theirs_peak:.3f}", n_different,
            ])  # fmt: skip
    time_ratio = statistics.median(row[0] / row[2] for row in rows)
    memory_ratio = statistics.median(row[1] / row[3] for row in rows)
    print(f"median ratios: time {time_ratio:.3f}, peak memory {memory_ratio:.3f}; "
          f"{n_different} tensors differ")  # fmt: skip


if __name__ == "__main__":
    main()
