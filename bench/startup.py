"""How long the command line takes to start, beyond the interpreter itself.

    python bench/startup.py [--runs 21]

Each run times `python -c pass` and then each command, in turn, so that a busy machine slows both;
what counts is the median of the differences. Writes bench/results/startup.csv. The claim:
`localcascade --help` within 0.25 s more than `python -c pass`.
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
CLAIM_S = 0.25
COMMANDS = ("--help", "--version", "run --help", "models", "models --json")


def time_process(*arguments: str) -> float:
    """Run the interpreter with these arguments; wall seconds."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def measure(n_runs: int) -> tuple[list[float], dict[str, list[float]]]:
    """Time everything `n_runs` times, in turn; seconds of the bare interpreter and of each command."""
    bare: list[float] = []
    commands: dict[str, list[float]] = {command: [] for command in COMMANDS}
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
        writer.writerow(["machine", "runs", "command", "bare_s", "command_s", "difference_s"])
        for command, times in commands.items():
            more = statistics.median(b - a for a, b in zip(bare, times, strict=True))
            seconds = (statistics.median(bare), statistics.median(times), more)
            writer.writerow([machine, n_runs, command, *(f"{s:.3f}" for s in seconds)])
            print(f"localcascade {command:14} {more:.3f} s more than `python -c pass`")
            if command == "--help" and more > CLAIM_S:
                sys.exit(f"the claim is {CLAIM_S} s")


if __name__ == "__main__":
    main()
