"""How far predicted memory is from what llama.cpp reserves.

    python bench/memory.py [--cases 240]                    # reckoned, by `no_alloc`, on the CPU
    python bench/memory.py --model FILE [--gpu-layers 99]   # one file, loaded for real

Six geometries, that of Nemotron-Cascade-2 among them, with contexts drawn over length, type of the
cache, micro-batch, sequences, unified or not, flash attention, outputs and snapshots. No weights
are needed: a header with a hole behind it will do. Bytes of cache, state, compute buffer and logits
are compared with llama.cpp's log, whose digits end at a hundredth of a MiB. Writes
bench/results/memory.csv. The claim: within 2 % or 32 MiB; found: within 0.03 MiB on the CPU. With
--model, weights are compared too, and with --gpu-layers all devices together; where part of a
model is on a GPU, the prediction of compute buffers is an upper bound.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import tempfile
from dataclasses import asdict, astuple
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests hold the synthetic headers

from localcascade.fit import (  # noqa: E402
    ContextOptions,
    Device,
    Machine,
    ModelShape,
    Wishes,
    measure_context,
    plan,
    read_file_shape,
)
from quantize.gguf import open_gguf  # noqa: E402
from tests.localcascade import reserved  # noqa: E402
from tests.localcascade.reserved import Reserved  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "memory.csv"
MIB = 1 << 20
HUGE = 1 << 50
CONTEXTS = (4096, 32768)
PARTS = ("kv", "state", "compute", "output")


def main() -> None:
    """Run one of the two comparisons and print the worst of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=240)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--gpu-layers", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if arguments.model:
        compare_file(arguments.model, arguments.gpu_layers)
    else:
        write_rows(compare_headers(arguments.cases))


def compare_headers(n_cases: int) -> list[dict[str, object]]:
    """Compare headers without weights; one row a case."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: reserved.write_header(Path(folder) / f"{i}.gguf", config)
            for i, (name, config) in enumerate(reserved.GEOMETRIES.items())
        }
        shapes = {name: read_shape(path) for name, path in files.items()}
        for name, options in reserved.draw_cases(n_cases):
            theirs = reserved.read_reserved(files[name], options)
            rows.append(compare(name, shapes[name], options, theirs))
    return rows


def compare(
    name: str, shape: ModelShape, options: ContextOptions, theirs: Reserved
) -> dict[str, object]:
    """Put the prediction beside the measurement."""
    ours = astuple(measure_context(shape, options))
    measured = astuple(theirs)[: len(ours)]
    total, error = sum(measured), abs(sum(ours) - sum(measured))
    worst = max(abs(a - b) for a, b in zip(ours, measured, strict=True))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "geometry": name,
        **asdict(options),
        **{f"{part}_mib": round(size / MIB, 2) for part, size in zip(PARTS, measured, strict=True)},
        "worst_part_error_mib": round(worst / MIB, 3),
        "total_error_percent": round(100 * error / total, 4),
    }


def compare_file(path: Path, n_gpu_layers: int) -> None:
    """Load a file for real at some contexts and print both sides."""
    shape = read_shape(path)
    # Enough for anything: what is compared is where things are, not whether they fit.
    gpu, host = Device("GPU", "gpu", HUGE, HUGE), Device("RAM", "cpu", HUGE, HUGE)
    machine = Machine((gpu,) if n_gpu_layers else (), host)
    n_gpu_layers = min(n_gpu_layers, len(shape.geometry.kinds) + 1)
    for n_ctx in CONTEXTS:
        wishes = Wishes(n_ctx, n_gpu_layers=n_gpu_layers, checkpoint_bytes=0)
        planned = plan(shape, machine, wishes)
        theirs = reserved.read_reserved(path, planned.options, n_gpu_layers=n_gpu_layers, real=True)
        ours = (planned.weights_bytes, planned.kv_bytes, planned.state_bytes, planned.compute_bytes)
        measured = (
            theirs.weights_bytes, theirs.kv_bytes, theirs.state_bytes,
            theirs.compute_bytes + theirs.output_bytes,
        )  # fmt: skip
        for part, a, b in zip(("weights", "kv", "state", "buffers"), ours, measured, strict=True):
            print(
                f"{n_ctx:>7} {part:8} predicted {a / MIB:10.2f} MiB  measured {b / MIB:10.2f} MiB"
            )


def read_shape(path: Path) -> ModelShape:
    """Read the shape of a file."""
    with open_gguf(path) as file:
        return read_file_shape(file)


def write_rows(rows: list[dict[str, object]]) -> None:
    """Write the results of this machine and print the worst."""
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for column in ("worst_part_error_mib", "total_error_percent"):
        print(
            f"{len(rows)} cases, largest {column}: {max(float(str(row[column])) for row in rows)}"
        )


if __name__ == "__main__":
    main()
