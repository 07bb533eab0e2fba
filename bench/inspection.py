"""How long `localcascade inspect` takes on a 20 GB file with a vocabulary of 131072.

    python bench/inspection.py [--runs 11]

The file is Nemotron-Cascade-2 at Q5_0 with a real header (131072 tokens, 269443 merges, types and
scores) and a hole where the weights would be, so it takes a few MiB of disk. Wall seconds of the
whole command, the interpreter's start included, and processor seconds, which a busy machine does
not stretch. Writes bench/results/inspect.csv. The claim: 0.5 s, on a machine that is free.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quantize.gguf import FilePlan, TensorSpec, plan_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "inspect.csv"
VARIANTS = ("", "--tensors", "--json", "--json --tensors")

PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
N_TOKENS, N_MERGES = 131072, 269443
F32, Q5_0 = 0, 6
HIDDEN = 2688

LAYERS: dict[str, tuple[tuple[str, tuple[int, ...], int], ...]] = {
    "M": (
        ("ssm_in.weight", (10304, HIDDEN), Q5_0),
        ("ssm_conv1d.weight", (6144, 4), F32),
        ("ssm_conv1d.bias", (6144,), F32),
        ("ssm_dt.bias", (64,), F32),
        ("ssm_a", (64, 1), F32),
        ("ssm_d", (64, 1), F32),
        ("ssm_norm.weight", (8, 512), F32),
        ("ssm_out.weight", (HIDDEN, 4096), Q5_0),
    ),
    "E": (
        ("ffn_gate_inp.weight", (128, HIDDEN), F32),
        ("exp_probs_b.bias", (128,), F32),
        ("ffn_up_exps.weight", (128, 1856, HIDDEN), Q5_0),
        ("ffn_down_exps.weight", (128, HIDDEN, 1856), Q5_0),
        ("ffn_up_shexp.weight", (3712, HIDDEN), Q5_0),
        ("ffn_down_shexp.weight", (HIDDEN, 3712), Q5_0),
    ),
    "*": (
        ("attn_q.weight", (4096, HIDDEN), Q5_0),
        ("attn_k.weight", (256, HIDDEN), Q5_0),
        ("attn_v.weight", (256, HIDDEN), Q5_0),
        ("attn_output.weight", (HIDDEN, 4096), Q5_0),
    ),
}


def plan_model() -> FilePlan:
    """Lay the file out."""
    tensors = [
        TensorSpec(name, (N_TOKENS, HIDDEN), Q5_0)
        for name in ("token_embd.weight", "output.weight")
    ]
    tensors.append(TensorSpec("output_norm.weight", (HIDDEN,), F32))
    for i, kind in enumerate(PATTERN):
        tensors.append(TensorSpec(f"blk.{i}.attn_norm.weight", (HIDDEN,), F32))
        tensors += [TensorSpec(f"blk.{i}.{name}", *rest) for name, *rest in LAYERS[kind]]
    return plan_file(
        [
            ("general.architecture", "nemotron_h_moe", "str"),
            ("general.name", "Nemotron-Cascade-2-30B-A3B", "str"),
            ("nemotron_h_moe.block_count", len(PATTERN), "u32"),
            (
                "nemotron_h_moe.attention.head_count_kv",
                [2 * (k == "*") for k in PATTERN],
                "arr:i32",
            ),
            ("tokenizer.ggml.tokens", [f"Ġtoken{i}" for i in range(N_TOKENS)], "arr:str"),
            ("tokenizer.ggml.scores", [0.0] * N_TOKENS, "arr:f32"),
            ("tokenizer.ggml.token_type", [1] * N_TOKENS, "arr:i32"),
            ("tokenizer.ggml.merges", [f"Ġtok en{i}" for i in range(N_MERGES)], "arr:str"),
            ("tokenizer.chat_template", "{%- for message in messages %}" * 300, "str"),
        ],
        tensors,
    )


def write_sparse(plan: FilePlan, path: Path) -> None:
    """Write the header, and leave a hole for the weights."""
    with path.open("wb") as file:
        file.write(plan.header)
        file.truncate(plan.file_bytes)


def time_inspect(path: Path, variant: str) -> tuple[float, float]:
    """Run the command once; wall seconds and processor seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "localcascade", "inspect", str(path), *variant.split()],
        cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"inspect ended with status {status}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=11)
    n_runs = parser.parse_args().runs
    plan = plan_model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sparse.gguf"
        write_sparse(plan, path)
        times = {
            variant: [time_inspect(path, variant) for _ in range(n_runs)] for variant in VARIANTS
        }
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["machine", "runs", "file_bytes", "header_bytes", "arguments", "wall_s", "cpu_s"]
        writer.writerow(columns)
        for variant, pairs in times.items():
            wall_s, cpu_s = (statistics.median(column) for column in zip(*pairs, strict=True))
            sizes = (plan.file_bytes, len(plan.header))
            writer.writerow([machine, n_runs, *sizes, variant, f"{wall_s:.3f}", f"{cpu_s:.3f}"])
            print(f"inspect {variant:16} {wall_s:.3f} s, {cpu_s:.3f} s of a processor")


if __name__ == "__main__":
    main()
