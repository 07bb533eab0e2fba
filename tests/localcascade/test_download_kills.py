"""A pull that is killed at any moment: the model is right or absent, and little comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, serve_hub
from tests.soak import sample

TINY = Path(__file__).parents[2] / "localcascade" / "data" / "tiny"
PIECE_BYTES, N_CONNECTIONS = 256 << 10, 3
CHUNK_BYTES = N_CONNECTIONS * PIECE_BYTES
N_POINTS = 200

CHILD = f"""
import functools, os, signal, sys
from localcascade.cli.app import run_arguments
from localcascade.download import ranges, transfer

transfer.Layout = functools.partial(
    transfer.Layout, piece_bytes={PIECE_BYTES}, n_connections={N_CONNECTIONS},
    verify_bytes={2 * PIECE_BYTES},
)
die_at, n_calls = int(sys.argv[1]), 0

def watch(owner, name):
    call = getattr(owner, name)
    def counted(*arguments, **keys):
        global n_calls
        n_calls += 1
        if n_calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **keys)
    setattr(owner, name, counted)

for name in ("open", "write", "pwrite", "ftruncate", "fdatasync", "fsync", "mkdir", "rename",
             "unlink", "rmdir", "close"):
    watch(os, name)
watch(ranges.Connections, "wait")  # once a block that arrives
code = run_arguments(["pull", "org/small", "--yes", "--json"])
print(n_calls, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        running.push("org/small", {path.name: path.read_bytes() for path in TINY.iterdir()})
        yield running


def run_pull(hub: Hub, home: Path, die_at: int) -> subprocess.CompletedProcess[str]:
    """Pull in a process that kills itself before its call number `die_at` of the system."""
    environment = os.environ | {
        "LOCALCASCADE_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint,
        "LOCALCASCADE_OFFLINE": "0", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(die_at)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def is_installed(home: Path) -> bool:
    """Whether the model is in the store; if so, every byte of it must be right."""
    place = home / "data" / "checkpoints" / "small"
    if not place.exists():
        return False
    for path in TINY.iterdir():
        assert (place / path.name).read_bytes() == path.read_bytes()
    return True


@pytest.fixture(scope="module")
def n_calls(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Calls of a pull that nobody kills."""
    home = tmp_path_factory.mktemp("whole")
    done = run_pull(hub, home, 0)
    assert done.returncode == 0 and is_installed(home)
    hub.served.clear()
    return int(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("point", sample(range(1, N_POINTS + 1), 6))
def test_a_killed_pull_is_right_or_absent_and_goes_on(
    point: int, hub: Hub, n_calls: int, tmp_path: Path
) -> None:
    hub.served.clear()
    killed = run_pull(hub, tmp_path, max(1, round(point * n_calls / N_POINTS)))
    # Threads make the number of calls vary, so that the last points may be past the end.
    assert killed.returncode == -signal.SIGKILL or point > N_POINTS - 20
    was_installed = is_installed(tmp_path)
    done = run_pull(hub, tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert is_installed(tmp_path)
    total_bytes = sum(path.stat().st_size for path in TINY.iterdir())
    assert 0 <= hub.count_bytes() - total_bytes <= (0 if was_installed else CHUNK_BYTES)
    assert list((tmp_path / "data" / "checkpoints" / ".staging").iterdir()) == []
