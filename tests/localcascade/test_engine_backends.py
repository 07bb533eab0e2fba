"""What llama.cpp says of itself, and that its death is survived."""

from __future__ import annotations

import ctypes
import re
import sys
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import psutil
import pytest

from localcascade.engine import backends
from localcascade.engine.backends import (
    PINNED_VERSION,
    Backend,
    describe_backends,
    make_machine,
    parse_answer,
)
from localcascade.errors import EngineDied
from localcascade.hardware import Memory

ROOT = Path(__file__).parents[2]


def test_the_installed_build_is_described() -> None:
    found = describe_backends()
    assert found.binding_version == version("llama-cpp-python")
    assert re.fullmatch("[0-9a-f]{9}", found.commit)
    assert "cpu" in [device.kind for device in found.devices]
    # Here in this process the library is asked directly.
    assert found.features == llama_cpp.llama_print_system_info().decode().strip(" |")
    assert bool(found.gpus) == llama_cpp.llama_supports_gpu_offload()


def test_the_commit_is_the_one_that_was_built() -> None:
    # const char * ggml_commit(void);
    ask = llama_cpp.llama_cpp._lib.ggml_commit
    ask.restype = ctypes.c_char_p
    built = ask().decode().removesuffix("-dirty")
    if built != "unknown":  # what a build outside a repository may say
        assert backends.VENDORED_COMMITS[PINNED_VERSION].startswith(built)


def test_the_pin_is_the_projects() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'"llama-cpp-python=={PINNED_VERSION}"' in project


def answer_with(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Let a script stand where the interpreter would be started."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -ILL $$", "signal 4"),
        ("echo OSError: libllama.so not found >&2; exit 1", "OSError: libllama.so not found"),
        ("exit 7", "exit code 7"),
        ("echo hello", "cannot be read"),
        ("true", "cannot be read"),
        ("echo '[]'", "cannot be read"),
        ("""echo '{"devices": [{"nam": 1}]}'""", "cannot be read"),
    ],
)
def test_a_library_that_kills_is_told_and_survived(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    answer_with(monkeypatch, tmp_path, script)
    with pytest.raises(EngineDied, match=message):
        describe_backends()


def test_a_library_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_with(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(backends, "_TIMEOUT_S", 0.2)
    with pytest.raises(EngineDied, match="no answer"):
        describe_backends()


def test_a_drivers_greeting_before_the_answer_is_skipped() -> None:
    answer = (
        'ggml_cuda_init: found 1 CUDA devices\n{"binding_version": "1", "commit": "", '
        '"features": "", "devices": [{"name": "CUDA0", "description": "RTX", "kind": "gpu"}]}\n'
    )
    assert [gpu.name for gpu in parse_answer(answer).gpus] == ["CUDA0"]


def test_a_machine_is_its_gpus_and_its_main_memory() -> None:
    devices = (
        Backend("CUDA0", "NVIDIA GeForce RTX 4090", "gpu", 20, 24),
        Backend("MTL0", "Apple M3", "gpu", 9, 12),
        Backend("Vulkan0", "a GPU that does not tell", "gpu"),
        Backend("CPU", "AMD", "cpu", 60, 64),
    )
    memory = Memory(total_bytes=64, available_bytes=50)
    machine = make_machine(devices, memory)
    # llama.cpp leaves a GPU without memory of its own alone where there is another.
    for found, expected in ((machine, ("CUDA0", "gpu", 20)), (
        make_machine(devices[1:], memory), ("MTL0", "igpu", 9)
    )):  # fmt: skip
        assert [(gpu.name, gpu.kind, gpu.free_bytes) for gpu in found.gpus] == [expected]
    assert (machine.host.total_bytes, machine.host.free_bytes) == (64, 50)


def test_the_processor_tells_its_memory() -> None:
    (cpu,) = [device for device in describe_backends().devices if device.kind == "cpu"]
    assert cpu.total_bytes == psutil.virtual_memory().total
