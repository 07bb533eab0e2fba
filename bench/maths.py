"""How long the layout of a formula takes.

    python bench/maths.py [--runs 21]

Every formula of tests/vectors/maths/display.txt, on its own and inside text: the median of the runs
of each, the parser included, in processor time, as others may use the machine. Writes
bench/results/maths.csv. The claim: under 1 ms for each.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from pathlib import Path

from localcascade.maths import layout

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "vectors" / "maths" / "display.txt"
RESULTS = ROOT / "bench" / "results" / "maths.csv"
STYLES = {"display": {}, "inline": {"display": False}, "ascii": {"ascii": True}}


def read_formulas() -> list[str]:
    """The formulas of the table of tests."""
    entries = TABLE.read_text(encoding="utf-8").split("\n=== ")[1:]
    return [entry.split("\n", 1)[0] for entry in entries]


def time_layout(latex: str, style: dict[str, bool], n_runs: int) -> float:
    """Median milliseconds of one layout."""
    times_s = []
    for _ in range(n_runs):
        start_s = time.process_time()
        layout(latex, **style)
        times_s.append(time.process_time() - start_s)
    return 1e3 * statistics.median(times_s)


def measure_style(name: str, formulas: list[str], n_runs: int) -> dict[str, object]:
    """One row of figures, milliseconds a formula."""
    times_ms = {latex: time_layout(latex, STYLES[name], n_runs) for latex in formulas}
    slowest = max(times_ms, key=lambda latex: times_ms[latex])
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "style": name,
        "n_formulas": len(formulas),
        "mean_ms": round(statistics.mean(times_ms.values()), 3),
        "median_ms": round(statistics.median(times_ms.values()), 3),
        "max_ms": round(times_ms[slowest], 3),
        "n_over_1_ms": sum(value > 1 for value in times_ms.values()),
        "slowest": slowest,
    }


def main() -> None:
    """Measure every style and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=21)
    n_runs = parser.parse_args().runs
    rows = [measure_style(name, read_formulas(), n_runs) for name in STYLES]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
