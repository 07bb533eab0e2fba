"""ls, show, rm, verify, import and du, as a shell sees them; offline, and against a Hub."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localcascade import hardware, store
from localcascade.cli.app import run_arguments
from localcascade.cli.ls import MARGIN_BYTES, estimate_fit
from localcascade.cli.units import format_bytes
from localcascade.digest import CHUNK_BYTES
from localcascade.hardware import Gpu, Memory
from tests.hub import Fault, serve_hub
from tests.localcascade.stored import MIB, install, write_gguf, write_small_checkpoint
from tests.localcascade.test_cli_inspect import run_on_terminal

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 32 GiB with a card of 16 GiB, whatever this one is."""
    monkeypatch.setattr(hardware, "read_memory", lambda: Memory(32 * GIB, 30 * GIB))
    monkeypatch.setattr(hardware, "find_gpus", lambda: (Gpu("NVIDIA", "card", 16 * GIB),))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def data(home: Path) -> bytes:
    return write_gguf(home.parent / "work" / "a.gguf").read_bytes()


def read_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run_arguments([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("file_gib", "memory_gib", "gpu_gib", "unified", "fit"),
    [
        (14.5, 32, 16, False, "gpu"),
        (14.6, 32, 16, False, "memory"),
        (30.5, 32, 16, False, "memory"),
        (30.6, 32, 16, False, "gpu+memory"),
        (46.5, 32, 16, False, "gpu+memory"),
        (46.6, 32, 16, False, "no"),
        (10, 8, 0, False, "no"),
        (30.6, 32, 32, True, "no"),
        (30.5, 32, 32, True, "gpu"),
        (20, 8, 16, False, "gpu+memory"),
    ],
)
def test_the_estimate_is_files_and_a_margin(
    file_gib: float, memory_gib: int, gpu_gib: int, unified: bool, fit: str
) -> None:
    assert MARGIN_BYTES == 1.5 * GIB
    found = estimate_fit(int(file_gib * GIB), memory_gib * GIB, gpu_gib * GIB, unified=unified)
    assert found == fit


def test_ls_lists_what_is_installed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["ls"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "localcascade models" in captured.err
    data = write_gguf(home.parent / "work" / "a.gguf").read_bytes()
    model = install("a-model-with-quite-a-long-name-iq4_nl", {"a.gguf": data})
    (home / "data" / "models" / "hand.gguf").write_bytes(bytes(3 * MIB))
    assert run_arguments(["import", str(write_small_checkpoint(home / "small"))]) == 0
    os.utime(model.place, (1, 1))
    store.mark_used(model.place)
    os.utime(model.place / "last-used", (1_700_000_000, 1_700_000_000))
    capsys.readouterr()
    kept = ("*.json", "*.safetensors")
    n_bytes = sum(file.stat().st_size for kind in kept for file in (home / "small").glob(kind))
    assert run_arguments(["ls"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "Name" and "Fits (est.)" in heading
    assert [row.split() for row in rows] == [
        [model.name, "gguf", "f32", *format_bytes(len(data)).split(), "32.00", "GPU",
         "2023-11-14"],
        ["hand", "gguf", "3.00", "MiB", "GPU", "never"],
        ["small", "checkpoint", "f32", *format_bytes(n_bytes).split(), "24.00", "never"],
    ]  # fmt: skip


def test_ls_fits_the_terminal_and_shows_names_whole(home: Path, data: bytes) -> None:
    name = "nemotron-cascade-2-iq4_nl-padded-to-256"
    install(name, {"a.gguf": data})
    install("nemotron-cascade-2", {"a.gguf": data})
    lines = run_on_terminal(80, "ls", NO_COLOR="1")
    assert max(map(len, lines)) <= 80
    assert "".join(line.split()[0] for line in lines[1:]) == f"nemotron-cascade-2{name}"
    assert lines[1].split()[1:3] == ["gguf", "f32"]


def test_ls_as_json_keeps_its_contract(
    home: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    model = install("mine", {"a.gguf": data})
    (home / "data" / "models" / "bad").mkdir()
    (home / "data" / "models" / "bad" / "manifest.json").write_text("{}")
    bad, mine = read_json(capsys, "ls")["models"]
    assert mine == {
        "name": "mine", "kind": "gguf", "type": "f32", "file_bytes": len(data),
        "bits_per_weight": 32.0, "fits": "gpu", "last_used": None, "path": str(model.place),
        "verified": True, "problem": None,
    }  # fmt: skip
    assert (bad["verified"], bad["type"]) == (False, None)
    assert "manifest.json" in bad["problem"]
    assert run_arguments(["ls"]) == 0
    captured = capsys.readouterr()
    assert "manifest.json" in captured.err and "mine" in captured.out


def test_show_tells_everything(home: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    commit = "c" * 40
    model = install("mine", {"a.gguf": data}, repo="o/r", commit=commit, notes=["\x1b[2Jhostile"])
    assert run_arguments(["show", "mine"]) == 0
    text = capsys.readouterr().out
    assert f"o/r at {commit}" in text and "llama" in text and "32.000" in text
    assert "\\x1b[2Jhostile" in text and "\x1b" not in text
    shown = read_json(capsys, "show", "mine")
    assert model.manifest
    assert shown["manifest"] == json.loads(json.dumps(model.manifest.to_json()))
    assert shown["disk_bytes"] >= len(data)
    assert run_arguments(["show", "other"]) == 3
    assert run_arguments(["show", "mine", "--kind", "checkpoint"]) == 3


def test_rm_asks_and_refuses_what_is_not_there(
    home: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    install("mine", {"a.gguf": data})
    install("other", {"a.gguf": data})
    assert run_arguments(["rm", "mine"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run_arguments(["rm", "mine", "absent", "--yes"]) == 3
    assert run_arguments(["rm", "../models/mine", "--yes"]) == 3
    assert [model.name for model in store.list_models()] == ["mine", "other"]
    assert run_arguments(["rm", "mine", "mine", "--yes"]) == 0
    assert [model.name for model in store.list_models()] == ["other"]
    capsys.readouterr()
    removed = read_json(capsys, "rm", "other", "--yes")["removed"]
    assert [model["name"] for model in removed] == ["other"]
    assert store.list_models() == []


class Terminal(io.StringIO):
    """A person who has typed this."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1)])
def test_rm_does_what_it_is_answered(
    home: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    install("mine", {"a.gguf": data})
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run_arguments(["rm", "mine"]) == code
    assert len(store.list_models()) == left


def test_import_says_what_it_left_out_and_what_is_next(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_small_checkpoint(home.parent / "work" / "small one")
    assert run_arguments(["import", str(folder)]) == 2
    assert "--name" in capsys.readouterr().err
    assert run_arguments(["import", str(folder), "--name", "small"]) == 0
    captured = capsys.readouterr()
    assert "left out: modeling_nemotron_h.py, pytorch_model.bin" in captured.err
    assert "localcascade quantize small OUT.gguf" in captured.err
    assert captured.out.startswith("small (checkpoint): ")
    assert run_arguments(["import", str(folder), "--name", "small"]) == 1
    assert run_arguments(["import", "missing"]) == 3
    (home / "bad.gguf").write_bytes(b"GGUF")
    assert run_arguments(["import", str(home / "bad.gguf")]) == 5
    assert [model.name for model in store.list_models()] == ["small"]


def test_du_names_leftovers_and_cleans_them(
    home: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    model = install("mine", {"a.gguf": data})
    with store.open_staging("checkpoint", "half") as folder:
        (folder / "shard").write_bytes(bytes(MIB))
    trash = home / "data" / "models" / ".trash" / "gone"
    trash.mkdir(parents=True)
    (trash / "a.gguf").write_bytes(bytes(MIB))
    with store.open_staging("gguf", "running") as running:
        (running / "x").write_bytes(b"x")
        assert run_arguments(["du"]) == 0
        text = capsys.readouterr().out
        assert "mine" in text and str(folder) in text.replace("\n", "")
        usage = read_json(capsys, "du", "--clean")
        assert usage["freed_bytes"] == 2 * MIB
        assert [(left["path"], left["in_use"]) for left in usage["leftovers"]] == [
            (str(running), True)
        ]
    assert not folder.exists() and not trash.exists() and running.exists()
    (entry,) = usage["models"]
    assert (entry["name"], entry["disk_bytes"]) == ("mine", model.disk_bytes)
    assert usage["total_bytes"] == model.disk_bytes + 4096


def test_verify_without_an_origin_says_what_is_wrong(
    home: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    model = install("mine", {"a.gguf": data, "b.md": b"b", "c.md": b"c"})
    assert run_arguments(["verify", "mine"]) == 0
    assert "3 of 3 files are sound" in capsys.readouterr().out
    (model.place / "a.gguf").write_bytes(data[:-1])
    (model.place / "c.md").unlink()
    assert run_arguments(["verify", "mine"]) == 5
    captured = capsys.readouterr()
    assert f"{len(data) - 1} bytes instead of {len(data)}" in captured.out
    assert "missing" in captured.out and "1 of 3 files are sound" in captured.out
    assert "install it again" in captured.err
    report = read_json(capsys, "verify", "mine", code=5)
    assert report["ok"] is False
    assert [file["was_sound"] for file in report["files"]] == [False, True, False]
    assert report["files"][0]["damaged"] == [[0, len(data)]]
    assert run_arguments(["verify", "absent"]) == 3


@pytest.fixture
def large(home: Path) -> bytes:
    return write_gguf(home.parent / "work" / "large.gguf", 10 * MIB).read_bytes()


def damage(model: store.InstalledModel) -> None:
    with (model.place / "large.gguf").open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"damage")
    (model.place / "README.md").unlink()


def test_verify_fetches_only_what_is_damaged(
    home: Path, large: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"large.gguf": large, "README.md": b"read me"}
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        commit = hub.push("o/r", files)
        hub.push("o/r", {"large.gguf": b"the branch has moved on"})
        model = install("mine", files, repo="o/r", commit=commit)
        damage(model)
        assert run_arguments(["verify", "mine", "--no-repair"]) == 5
        assert "localcascade verify mine" in capsys.readouterr().err
        assert hub.served == []
        hub.faults.append(Fault("cut", path="large.gguf"))
        assert run_arguments(["verify", "mine"]) == 0
        text = capsys.readouterr().out
        assert f"mended (damaged: bytes {CHUNK_BYTES} to {2 * CHUNK_BYTES})" in text
        assert "mended (missing)" in text and "2 of 2 files are sound" in text
        assert hub.count_bytes("large.gguf") <= CHUNK_BYTES + hub.send_bytes
        assert read_json(capsys, "verify", "mine")["ok"] is True
    assert (model.place / "large.gguf").read_bytes() == large
    assert (model.place / "README.md").read_bytes() == b"read me"


def test_verify_takes_no_other_bytes(
    home: Path, large: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"large.gguf": large, "README.md": b"read me"}
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        model = install("mine", files, repo="o/r", commit=hub.push("o/r", files))
        damage(model)
        before = (model.place / "large.gguf").read_bytes()
        hub.faults.append(Fault("corrupt", path="large.gguf", n_times=-1))
        report = read_json(capsys, "verify", "mine", code=1)
    assert report["ok"] is False
    assert (model.place / "large.gguf").read_bytes() == before


def test_verify_offline_checks_and_then_needs_the_network(
    home: Path, large: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "socket", refuse_socket)
    files = {"large.gguf": large, "README.md": b"read me"}
    model = install("mine", files, repo="o/r", commit="a" * 40)
    monkeypatch.setenv("LOCALCASCADE_OFFLINE", "1")
    assert run_arguments(["verify", "mine"]) == 0
    damage(model)
    assert run_arguments(["verify", "mine", "--no-repair"]) == 5
    capsys.readouterr()
    assert run_arguments(["verify", "mine"]) == 6
    captured = capsys.readouterr()
    assert f"damaged: bytes {CHUNK_BYTES} to {2 * CHUNK_BYTES}" in captured.out
    assert "mending mine needs the network" in captured.err


def refuse_socket(*arguments: object, **keywords: object) -> None:
    raise AssertionError("a socket was opened")


OFFLINE_COMMANDS = (
    (["import", "a.gguf", "--name", "mine"], 0),
    (["ls"], 0),
    (["ls", "--json"], 0),
    (["models"], 0),
    (["show", "mine"], 0),
    (["verify", "mine"], 0),
    (["inspect", "mine"], 0),
    (["du"], 0),
    (["rm", "mine", "--yes"], 0),
)


def test_everything_works_without_a_socket(
    home: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", refuse_socket)
    monkeypatch.setenv("LOCALCASCADE_OFFLINE", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    for arguments, code in OFFLINE_COMMANDS:
        assert run_arguments(["--offline", *arguments]) == code, arguments


def can_make_network_namespace() -> bool:
    """Whether this system lets this user make an empty network namespace."""
    program = shutil.which("unshare")
    if program is None:
        return False
    return subprocess.run([program, "-rn", "true"], capture_output=True).returncode == 0


def test_everything_works_in_an_empty_network_namespace(home: Path, data: bytes) -> None:
    if not can_make_network_namespace():
        pytest.skip("this system lets its users make no network namespace")
    lines = [f"localcascade --offline {' '.join(words)}" for words, _ in OFFLINE_COMMANDS]
    alias = f'localcascade() {{ "{sys.executable}" -m localcascade "$@"; }}'
    script = "\n".join(["set -e", "test $(grep -c : /proc/net/dev) = 1", alias, *lines])
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "mine (gguf)" in done.stdout and "1 of 1 files are sound" in done.stdout
    assert store.list_models() == []


def test_running_and_quantizing_note_the_use(
    home: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    gguf = install("mine", {"a.gguf": data})
    folder = write_small_checkpoint(home.parent / "work" / "small")
    assert run_arguments(["import", str(folder)]) == 0
    assert run_arguments(["inspect", "mine"]) == 0
    assert gguf.last_used_s is None
    # Neither is a model that can be run or converted, but both were asked for.
    assert run_arguments(["run", "mine", "Hello"]) == 5
    assert run_arguments(["quantize", "small", str(home / "out.gguf")]) == 5
    assert gguf.last_used_s and store.find_installed("small").last_used_s


def complete(words: str) -> list[str]:
    variables = {"_LOCALCASCADE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    variables["COMP_CWORD"] = str(words.count(" "))
    command = [sys.executable, "-m", "localcascade"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_shell_completes_installed_names(home: Path, data: bytes) -> None:
    install("zebra", {"a.gguf": data})
    assert complete("localcascade ver") == ["verify"]
    for command in ("rm", "show", "verify", "run"):
        assert complete(f"localcascade {command} z") == ["zebra"]
    assert complete("localcascade rm nemotron") == []


def test_ls_imports_nothing_slow(home: Path, data: bytes) -> None:
    install("mine", {"a.gguf": data})
    code = (
        "import sys; from localcascade.cli.app import run_arguments; run_arguments(['ls']);"
        "print(*{'numpy', 'textual', 'llama_cpp', 'huggingface_hub', 'httpx2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "" and "mine" in done.stdout
