"""`localcascade pull` as a shell sees it, against a Hub on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcascade.cli.app import run_arguments
from localcascade.cli.pull import complete_catalog_name
from localcascade.cli.transfer import Meter, describe_meter
from localcascade.store import find_checkpoint, list_leftovers
from tests.hub import Fault, Hub, serve_hub

TINY = Path(__file__).parents[2] / "localcascade" / "data" / "tiny"
FILES = {path.name: path.read_bytes() for path in TINY.iterdir()}
TOTAL_BYTES = sum(map(len, FILES.values()))


@pytest.fixture(scope="module")
def module_hub() -> Iterator[Hub]:
    with serve_hub() as running:
        yield running


@pytest.fixture
def hub(module_hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub with the bundled checkpoint and some code beside it, and a home that points there."""
    module_hub.repos.clear()
    module_hub.served.clear()
    module_hub.faults.clear()
    module_hub.api_calls.clear()
    module_hub.push("org/small", FILES | {"modeling.py": b"evil", "x.pkl": b"evil"})
    module_hub.repos["org/small"].card = {"license": "mit"}
    for name, value in (
        ("HF_ENDPOINT", module_hub.endpoint), ("HF_TOKEN", ""), ("HF_HOME", str(home / "hf")),
        ("LOCALCASCADE_OFFLINE", "0"), ("HF_HUB_OFFLINE", "0"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    return module_hub


def place(home: Path, name: str = "small", kind: str = "checkpoints") -> Path:
    return home / "data" / kind / name


def test_a_checkpoint_is_pulled_and_found(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["pull", "org/small", "--yes"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"small: 11.3 MiB, verified, in {place(home)}\n"
    assert "Licence: mit" in captured.err
    assert "localcascade quantize small small.gguf" in captured.err
    assert {p.name for p in place(home).iterdir()} == {*FILES, "manifest.json"}
    for name, data in FILES.items():
        assert (place(home) / name).read_bytes() == data
    assert find_checkpoint("small") == place(home)
    assert list_leftovers() == []
    manifest = json.loads((place(home) / "manifest.json").read_text())
    assert (manifest["repo"], manifest["commit"]) == (
        "org/small", hub.repos["org/small"].branches["main"],
    )  # fmt: skip


def test_json_lines_tell_the_whole_story(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["pull", "org/small", "--yes", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plan, *middle, result = lines
    assert (plan["event"], plan["total_bytes"], plan["licence"]) == ("plan", TOTAL_BYTES, "mit")
    assert {file["path"]: file["bytes"] for file in plan["files"]} == {
        name: len(data) for name, data in FILES.items()
    }
    done = [line["path"] for line in middle if line["event"] == "file"]
    assert sorted(done) == sorted(FILES)
    assert result == {
        "event": "installed", "name": "small", "kind": "checkpoint", "path": str(place(home)),
        "repo": "org/small", "commit": plan["commit"], "total_bytes": TOTAL_BYTES,
        "fetched_bytes": TOTAL_BYTES,
    }  # fmt: skip


def test_what_is_installed_is_not_fetched_again(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_arguments(["pull", "org/small", "--yes"])
    hub.served.clear()
    capsys.readouterr()
    assert run_arguments(["pull", "org/small", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["fetched_bytes"]) == ("installed", 0)
    assert hub.served == []
    hub.push("org/small", FILES | {"config.json": FILES["config.json"] + b" "})
    assert run_arguments(["pull", "org/small", "--yes"]) == 1
    assert "localcascade rm small" in capsys.readouterr().err
    assert hub.served == [] and list_leftovers() == []


def test_a_licence_must_be_accepted(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["pull", "org/small"]) == 2
    error = capsys.readouterr().err
    assert "Licence: mit" in error and "--yes" in error
    assert hub.served == [] and not place(home).exists() and list_leftovers() == []


def test_a_licence_is_shown_once(hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.faults.append(Fault("404", path="tokenizer.json", n_times=-1))
    hub.repos["org/small"].card = {"license": "\x1b[2Jmit"}
    assert run_arguments(["pull", "org/small", "--yes"]) == 1
    assert "Licence: \\x1b[2Jmit" in capsys.readouterr().err
    hub.faults.clear()
    assert run_arguments(["pull", "org/small"]) == 0
    assert "Licence" not in capsys.readouterr().err


def test_a_gated_repository_names_the_next_step(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/small"].gated_to = {"hf_good"}
    assert run_arguments(["pull", "org/small", "--yes"]) == 1
    error = capsys.readouterr().err
    assert f"hint: Accept the terms at {hub.endpoint}/org/small" in error and "HF_TOKEN" in error
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert run_arguments(["pull", "org/small", "--yes"]) == 0
    sent = {(entry.port, entry.authorization) for entry in hub.served}
    assert (hub.ports[1], "") in sent and (hub.ports[1], "Bearer hf_good") not in sent


@pytest.mark.parametrize("way", ["--offline", "LOCALCASCADE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_opens_no_socket(
    way: str, hub: Hub, home: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was opened"))
    if way != "--offline":
        monkeypatch.setenv(way, "1")
    flags = [way] if way == "--offline" else []
    assert run_arguments([*flags, "pull", "org/small", "--yes"]) == 6
    assert "network" in capsys.readouterr().err
    assert hub.api_calls == []


def test_a_gguf_is_pulled_by_its_quantization(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = tmp_path / "made.gguf"
    assert run_arguments(["quantize", "tiny", str(made), "--type", "q4_0"]) == 0
    data = made.read_bytes()
    hub.push("org/ready", {"m-Q4_0.gguf": data, "m-Q8_0.gguf": data, "README.md": b"read"})
    assert run_arguments(["pull", "org/ready", "--yes"]) == 3
    assert "Q4_0 (0.0 GiB), Q8_0" in capsys.readouterr().err
    assert run_arguments(["pull", "org/ready:q4_0", "--yes"]) == 0
    assert (place(home, "m-Q4_0", "models") / "m-Q4_0.gguf").read_bytes() == data
    assert hub.count_bytes() == len(data)


def test_what_is_no_model_is_refused_and_not_kept(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.push("org/broken", {"m.gguf": b"GGUF but not really" * 9})
    assert run_arguments(["pull", "org/broken", "--yes"]) == 5
    assert capsys.readouterr().err.count("error: ") == 1
    assert not place(home, "m", "models").exists() and list_leftovers() == []


def test_two_pulls_at_once_end_in_one_good_copy(hub: Hub, home: Path) -> None:
    hub.pause_s = 0.01
    command = [sys.executable, "-m", "localcascade", "pull", "org/small", "--yes", "--json"]
    runs = [
        subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    hub.pause_s = 0.0
    assert [run.returncode for run in runs] == [0, 0], outputs
    results: list[dict[str, Any]] = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert sorted(result["fetched_bytes"] for result in results) == [0, TOTAL_BYTES]
    assert hub.count_bytes() == TOTAL_BYTES
    for name, data in FILES.items():
        assert (place(home) / name).read_bytes() == data


PATIENT = """
from localcascade.cli.app import main
from localcascade.download.patience import Patience

connect_s, _, *others = Patience.__init__.__defaults__
Patience.__init__.__defaults__ = (connect_s, 600.0, *others)
main()
"""


def test_an_interruption_ends_even_a_connection_that_hangs(hub: Hub, home: Path) -> None:
    hub.faults.append(Fault("stall", path="*.safetensors", n_times=-1))
    command = [sys.executable, "-c", PATIENT, "pull", "org/small", "--yes"]
    run = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE)
    while not any(entry.fault and entry.n_bytes for entry in hub.served):
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    # Less than the silence after which a connection is given up.
    assert run.communicate(timeout=120)[1].count(b"Traceback") == 0
    assert run.returncode == 130
    assert not place(home).exists()
    hub.faults.clear()
    assert run_arguments(["pull", "org/small", "--yes"]) == 0


def test_the_shell_completes_what_can_be_pulled(home: Path) -> None:
    assert [name for name, _ in complete_catalog_name("nemo")] == [
        "nemotron-cascade-2", "nemotron-3-nano",
    ]  # fmt: skip
    assert complete_catalog_name("tiny") == []  # it ships with the package


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from localcascade.cli.app import run_arguments
from localcascade.cli.pull import complete_catalog_name
assert run_arguments(["pull", "--help"]) == 0
heavy = {"numpy", "httpx2", "huggingface_hub", "rich", "llama_cpp", "textual"}
sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_meter_counts_and_foresees() -> None:
    now_s = 100.0
    meter = Meter({"a": 1000, "b": 3000}, lambda: now_s)
    assert meter.compute_left_s() is None
    meter.count("kept", "a", 1000)
    for _ in range(10):
        now_s += 1
        meter.count("fetched", "b", 100)
    assert (meter.done_bytes, meter.fetched_bytes, meter.total_bytes) == (2000, 1000, 4000)
    assert (meter.compute_rate(), meter.compute_left_s()) == (100, 20)
    meter.count("lost", "b", 500)
    meter.count("verified", "a", 1000)
    assert describe_meter(meter, "b") == {
        "file_done_bytes": 500, "file_bytes": 3000, "done_bytes": 1500, "total_bytes": 4000,
        "rate_bytes_s": 100, "left_s": 25.0,
    }  # fmt: skip
    # What came long ago no longer counts for the rate.
    for _ in range(40):
        now_s += 1
        meter.count("fetched", "b", 10)
    assert 9 <= meter.compute_rate() <= 11
