"""What needs no network passes where there is none: the suite, in an empty network namespace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak import SOAK

TESTS = Path(__file__).parent
NEEDS_LOOPBACK = ("tests.hub", "stub_server", "127.0.0.1", "socket.create_server")
SAMPLE = ("test_cli_demo.py", "test_cli_quantize.py", "test_cli_inspect.py", "test_store.py")


def list_offline_files() -> list[str]:
    """Test files that open no connection of their own, not even to this machine; a sample in CI."""
    files = [path for path in TESTS.glob("*/test_*.py") if not needs_loopback(path)]
    return sorted(str(path) for path in files if SOAK or path.name in SAMPLE)


def needs_loopback(path: Path) -> bool:
    """Whether a test file talks to a server that it starts."""
    text = path.read_text()
    return any(word in text for word in NEEDS_LOOPBACK)


def test_the_suite_passes_without_any_network() -> None:
    isolate = [shutil.which("unshare") or "unshare", "-rn"]
    if subprocess.run([*isolate, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets its users make no network namespace")
    files = list_offline_files()
    assert len(files) >= len(SAMPLE)
    alone = "import errno, socket; s = socket.socket(); s.settimeout(5)\n"
    alone += "assert s.connect_ex(('192.0.2.1', 80)) == errno.ENETUNREACH"
    subprocess.run([*isolate, sys.executable, "-c", alone], check=True)
    done = subprocess.run(
        [*isolate, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
