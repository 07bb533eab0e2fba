"""`localcascade doctor`: each judgement, and the whole on this machine."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from localcascade import hardware
from localcascade.cli import doctor
from localcascade.cli.app import run_arguments
from localcascade.engine import backends
from localcascade.engine.backends import PINNED_VERSION, Backend, Backends
from localcascade.errors import EngineDied
from localcascade.hardware import Gpu, Memory, Program, SandboxMeans

GIB = 1 << 30
CPU = Backend("CPU", "AMD Ryzen 7", "cpu")
CUDA = Backend("CUDA0", "NVIDIA GeForce RTX 4090", "gpu")
CPU_BUILD = Backends(PINNED_VERSION, "0c1e57098", "AVX2 = 1", (CPU,))
CUDA_BUILD = Backends(PINNED_VERSION, "0c1e57098", "CUDA", (CUDA, CPU))
RTX = Gpu("NVIDIA", "NVIDIA GeForce RTX 4090", 24 * GIB)
COMPILER = Program("/usr/bin/c++", "c++ 12.2.0")


def test_llama_that_cannot_be_loaded_fails_with_the_command_that_mends_it() -> None:
    check = doctor.judge_llama(None, "libllama.so: not found", has_compiler=True)
    assert (check.status, check.finding) == ("fail", "libllama.so: not found")
    assert f"llama-cpp-python=={PINNED_VERSION}" in check.advice
    assert "compiler" not in check.advice
    check = doctor.judge_llama(None, "libllama.so: not found", has_compiler=False)
    assert "install a C++ compiler, then run" in check.advice


def test_llama_of_the_pinned_version_is_fine_and_another_is_not() -> None:
    check = doctor.judge_llama(CUDA_BUILD, "", has_compiler=False)
    assert check.status == "ok"
    assert "0c1e57098" in check.finding
    assert "CUDA0 (NVIDIA GeForce RTX 4090), CPU (AMD Ryzen 7)" in check.advice
    other = Backends("0.4.0", "", "", (CPU,))
    check = doctor.judge_llama(other, "", has_compiler=True)
    assert check.status == "warn"
    assert "0.4.0" in check.finding
    assert PINNED_VERSION in check.advice


@pytest.mark.parametrize(
    ("gpu", "flag"),
    [
        (RTX, "-DGGML_CUDA=on"),
        (Gpu("AMD", "gfx1100", None), "-DGGML_HIP=on"),
        (Gpu("Apple", "Apple M3", 16 * GIB), "-DGGML_METAL=on"),
    ],
)
def test_a_gpu_that_the_build_cannot_use_is_a_warning(gpu: Gpu, flag: str) -> None:
    check = doctor.judge_gpu((gpu,), CPU_BUILD)
    assert check.status == "warn"
    assert gpu.name in check.finding
    assert f'CMAKE_ARGS="{flag}" pip install' in check.advice
    assert check.facts["usable"] is False
    assert doctor.judge_gpu((gpu,), None).status == "warn"


def test_a_gpu_that_is_used_or_absent_is_fine() -> None:
    check = doctor.judge_gpu((RTX,), CUDA_BUILD)
    assert (check.status, check.finding) == ("ok", "NVIDIA GeForce RTX 4090, 24.0 GiB")
    assert doctor.judge_gpu((), CUDA_BUILD).finding == CUDA.description
    check = doctor.judge_gpu((), CPU_BUILD)
    assert (check.status, check.finding) == ("ok", "none seen")


def test_memory_counts_on_the_card_or_in_the_machine() -> None:
    small, large = Memory(8 * GIB, 4 * GIB), Memory(32 * GIB, 20 * GIB)
    assert doctor.judge_memory(small, ()).status == "warn"
    assert "tiny" in doctor.judge_memory(small, ()).advice
    assert doctor.judge_memory(small, (RTX,)).status == "ok"
    check = doctor.judge_memory(large, ())
    assert (check.status, check.finding) == ("ok", "32.0 GiB, 20.0 GiB free")


@pytest.mark.parametrize(("free_gib", "status"), [(20, "warn"), (70, "warn"), (72, "ok")])
def test_the_disk_must_hold_a_checkpoint_and_its_quantization(free_gib: int, status: str) -> None:
    check = doctor.judge_disk(Path("/data"), free_gib * GIB)
    assert check.status == status
    assert "/data" in check.finding
    assert "LOCALCASCADE_HOME" in check.advice


def test_a_missing_compiler_is_a_warning_only() -> None:
    assert doctor.judge_compiler(None, None).status == "warn"
    check = doctor.judge_compiler(COMPILER, None)
    assert (check.status, check.finding) == ("ok", "c++ 12.2.0")
    assert check.facts["cmake"] is None


@pytest.mark.parametrize(
    ("means", "status", "finding"),
    [
        (SandboxMeans(False, False, None, False), "warn", "no means found"),
        (SandboxMeans(True, True, True, False), "ok", "bubblewrap, Landlock, user namespaces"),
        (SandboxMeans(False, False, None, True), "ok", "Seatbelt"),
    ],
)
def test_any_means_of_a_sandbox_will_do(means: SandboxMeans, status: str, finding: str) -> None:
    check = doctor.judge_sandbox(means)
    assert (check.status, check.finding) == (status, finding)


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((4, 0, 0), True),
    ],
)
def test_wal_is_safe_where_the_fault_was_corrected(version: tuple[int, ...], safe: bool) -> None:
    assert doctor.judge_sqlite(version).facts["wal_safe"] is safe


def test_an_old_python_fails() -> None:
    assert doctor.judge_python((3, 10, 14), "python").status == "fail"
    assert doctor.judge_python((3, 11, 0), "python").status == "ok"


@pytest.fixture
def tame(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without surprises."""
    monkeypatch.setattr(backends, "describe_backends", lambda: CPU_BUILD)
    monkeypatch.setattr(hardware, "find_gpus", lambda: ())
    monkeypatch.setattr(hardware, "find_sandbox_means", lambda: SandboxMeans(*[True] * 4))


def read_json(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    assert run_arguments(["doctor", "--json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.usefixtures("tame")
def test_every_check_has_a_line_of_advice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = read_json(capsys, 0)
    checks = {check["name"]: check for check in answer["checks"]}
    assert answer["ok"] is True
    assert set(checks) == {
        "Python", "llama.cpp", "GPU", "Memory", "Processor", "Disk", "Compiler", "Catalog",
        "Sandbox", "SQLite",
    }  # fmt: skip
    assert all(check["advice"] and "\n" not in check["advice"] for check in checks.values())
    assert checks["SQLite"]["finding"] == sqlite3.sqlite_version
    assert checks["Disk"]["facts"]["data_folder"] == str(home / "data")
    assert checks["Catalog"]["facts"]["user_catalog"] == str(home / "config" / "models.toml")


@pytest.mark.usefixtures("tame")
def test_the_table_shows_each_check_and_its_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert lines[2].split()[:3] == ["ok", "llama.cpp", "0c1e57098"]
    assert "AMD Ryzen 7" in lines[3]


@pytest.mark.usefixtures("tame")
def test_a_missing_engine_fails_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die() -> Backends:
        raise EngineDied("loading llama.cpp ended the process with signal 4")

    monkeypatch.setattr(backends, "describe_backends", die)
    answer = read_json(capsys, 1)
    assert answer["ok"] is False
    failed = [check for check in answer["checks"] if check["status"] == "fail"]
    assert [check["name"] for check in failed] == ["llama.cpp"]
    assert "signal 4" in failed[0]["finding"]


@pytest.mark.usefixtures("tame")
def test_a_broken_catalog_fails_with_its_own_advice(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "config" / "models.toml"
    path.parent.mkdir()
    path.write_text("tiny.licnse = 1", "utf-8")
    (failed,) = [c for c in read_json(capsys, 1)["checks"] if c["status"] == "fail"]
    assert (failed["name"], failed["advice"]) == ("Catalog", "Did you mean licence?")
