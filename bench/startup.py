"""How long the command line takes to start, beyond the interpreter itself.

    python bench/startup.py [--runs 21]

Each run times `python -c pass` and then each command, in turn, so that a busy machine slows both;
what counts is the median of the differences, in wall seconds and in processor seconds, which a busy
machine does not stretch. Writes bench/results/startup.csv. The claim: `localcascade --help` within
0.25 s more than `python -c pass`, on a machine that is free.
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

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "startup.csv"
COMMANDS = ("--help", "--version", "run --help", "models", "models --json")


Seconds = tuple[float, float]
"""Wall, and of a processor."""


def time_process(*arguments: str) -> Seconds:
    """Run the interpreter with these arguments."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} ended with status {status}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def measure(n_runs: int) -> tuple[list[Seconds], dict[str, list[Seconds]]]:
    """Time everything `n_runs` times, in turn: the bare interpreter, and each command."""
    bare: list[Seconds] = []
    commands: dict[str, list[Seconds]] = {command: [] for command in COMMANDS}
    for _ in range(n_runs):
        bare.append(time_process("-c", "pass"))
        for command, times in commands.items():
            times.append(time_process("-m", "localcascade", *command.split()))
    return bare, commands


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=21)
    n_runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as home:
        os.environ["LOCALCASCADE_HOME"] = home
        measure(2)  # fill the disk cache and write the bytecode
        bare, commands = measure(n_runs)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", "runs", "command", "wall_more_s", "cpu_more_s"])
        for command, times in commands.items():
            pairs = list(zip(bare, times, strict=True))
            wall_s, cpu_s = (statistics.median(b[i] - a[i] for a, b in pairs) for i in (0, 1))
            writer.writerow([machine, n_runs, command, f"{wall_s:.3f}", f"{cpu_s:.3f}"])
            print(f"{command:14} {wall_s:.3f} s more, {cpu_s:.3f} s of a processor")


if __name__ == "__main__":
    main()
