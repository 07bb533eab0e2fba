"""Our downloader against `snapshot_download` of the Hub's own client, on loopback.

    python bench/download.py [--pairs 3] [--mib 512]

A Hub of ours (tests/hub.py) runs in a process of its own and serves four shards of random bytes;
each side fetches them in a fresh process, in turn, into a fresh folder. Without faults, what counts
is the ratio of the seconds. With faults, it is the bytes that the Hub had to send for each byte
wanted, and how many of the four files are right in the end: `reset` breaks four answers in the
middle, `kill` ends the process once half is sent and starts it again, `corrupt` flips one bit on
the way. Writes bench/results/download.csv. Needs three times the size on the disk.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "download.csv"
N_SHARDS = 4
FAULTS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "reset": [{"kind": "reset", "path": f"model-{i}.safetensors"} for i in range(N_SHARDS)],
    "kill": [],
    "corrupt": [{"kind": "corrupt", "path": "model-1.safetensors", "at_byte": 1000}],
}

OURS = """
import sys
from pathlib import Path
from localcascade.download.metadata import read_repo
from localcascade.download.ranges import Connections
from localcascade.download.transfer import fetch_files
repo = read_repo("org/model", endpoint=sys.argv[1])
with Connections() as connections:
    fetch_files(connections, repo.files, Path(sys.argv[2]))
"""
THEIRS = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("org/model", endpoint=sys.argv[1], local_dir=sys.argv[2] + "/files", token=False)
"""


def serve(n_bytes: int) -> None:
    """Serve the shards; for each line of faults on stdin, answer with the bytes sent since."""
    sys.path.insert(0, str(ROOT))
    from tests.hub import Fault, serve_hub

    shards = {f"model-{i}.safetensors": random.Random(i).randbytes(n_bytes // N_SHARDS)
              for i in range(N_SHARDS)}  # fmt: skip
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in shards.items()}
    with serve_hub() as hub:
        hub.push("org/model", {**shards, "config.json": b"{}"})
        hub.send_bytes = 1 << 20
        print(json.dumps({"endpoint": hub.endpoint, "hashes": hashes}), flush=True)
        for line in sys.stdin:
            print(json.dumps({"sent_bytes": hub.count_bytes()}), flush=True)
            command = json.loads(line)
            if command is not None:
                hub.served.clear()
                hub.faults[:] = [Fault(**fault) for fault in command]


class Server:
    """The Hub's process."""

    def __init__(self, n_bytes: int) -> None:
        command = [sys.executable, __file__, "--serve", str(n_bytes)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        described = self._read()
        self.endpoint: str = described["endpoint"]
        self.hashes: dict[str, str] = described["hashes"]

    def begin(self, faults: list[dict[str, Any]] | None) -> int:
        """Set the faults and count anew; None only asks. Returns the bytes sent so far."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(faults) + "\n")
        self._process.stdin.flush()
        return int(self._read()["sent_bytes"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        described: dict[str, Any] = json.loads(self._process.stdout.readline())
        return described


def run_side(code: str, server: Server, folder: Path, kill_at_bytes: int | None) -> float:
    """Fetch in a process of its own, killed once if so wished; returns the seconds."""
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-c", code, server.endpoint, str(folder)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    if kill_at_bytes is not None:
        while server.begin(None) < kill_at_bytes and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
    process.wait()
    return time.perf_counter() - started


def count_right(server: Server, folder: Path) -> int:
    """Count the shards whose bytes are right."""
    n_right = 0
    for name, wanted in server.hashes.items():
        path = folder / "files" / name
        if path.exists():
            with path.open("rb") as file:
                n_right += hashlib.file_digest(file, "sha256").hexdigest() == wanted
    return n_right


def measure(server: Server, scenario: str, n_bytes: int) -> dict[str, Any]:
    """Run both sides once."""
    row: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "scenario": scenario,
        "mib": n_bytes >> 20,
    }  # fmt: skip
    for side, code in (("ours", OURS), ("theirs", THEIRS)):
        with tempfile.TemporaryDirectory() as folder:
            server.begin(FAULTS[scenario])
            kill_at = n_bytes // 2 if scenario == "kill" else None
            seconds = run_side(code, server, Path(folder), kill_at)
            row[f"{side}_s"] = round(seconds, 2)
            row[f"{side}_bytes_ratio"] = round(server.begin(None) / n_bytes, 4)
            row[f"{side}_right"] = f"{count_right(server, Path(folder))} of {N_SHARDS}"
    row["time_ratio"] = round(row["ours_s"] / row["theirs_s"], 3)
    return row


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    server = Server(options.mib << 20)
    rows = []
    for scenario in FAULTS:
        for _ in range(options.pairs):
            rows.append(measure(server, scenario, options.mib << 20))
            print(rows[-1], flush=True)
    server.close()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    plain = [row["time_ratio"] for row in rows if row["scenario"] == "none"]
    print(f"without faults, ours takes {statistics.median(plain):.2f} of their time (median)")


if __name__ == "__main__":
    main()
