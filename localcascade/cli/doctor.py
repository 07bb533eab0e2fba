"""`localcascade doctor`: is everything there that LocalCascade needs, and what to do if not.

Each `judge_` function is pure: facts in, one check out. `run_checks` fetches the facts.
"""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from localcascade import __version__, paths
from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.units import format_bytes
from localcascade.errors import CascadeError

if TYPE_CHECKING:
    from localcascade.engine.backends import Backends
    from localcascade.hardware import Gpu, Memory, Program, SandboxMeans

Status = Literal["ok", "warn", "fail"]

_GIB = 1 << 30
# The smallest sensible quantization of the 30 B models is 9.9 GiB, a context and its state 1.6.
_LARGE_MODEL_BYTES = 12 * _GIB
_LARGE_CHECKPOINT_BYTES = 59 * _GIB
_STATUS_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_BUILD_FLAGS = {"NVIDIA": "-DGGML_CUDA=on", "AMD": "-DGGML_HIP=on", "Apple": "-DGGML_METAL=on"}


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    status: Status
    finding: str
    """What was found, in a few words."""
    advice: str = ""
    """What to do, or what it means; one line, may be empty."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs."""


def doctor(
    as_json: AsJson = False,
) -> None:
    """Check this machine, with a line of advice on each finding.

    The exit code is 1 if something that LocalCascade needs is missing, and 0 otherwise.
    """
    checks = run_checks()
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        console.print_json(_describe_checks(checks))
    else:
        _draw_checks(checks)
    raise typer.Exit(console.ExitCode.FAILED if failed else console.ExitCode.DONE)


def run_checks() -> list[Check]:
    """Look at everything, in the order in which one would mend it."""
    from localcascade import hardware

    backends, problem = _ask_backends()
    gpus = hardware.find_gpus()
    compiler = hardware.find_compiler()
    data_folder = paths.find_data_folder()
    return [
        judge_python(sys.version_info[:3], sys.executable),
        judge_llama(backends, problem, has_compiler=compiler is not None),
        judge_gpu(gpus, backends),
        judge_memory(hardware.read_memory(), gpus),
        judge_processor(hardware.count_physical_cores()),
        judge_disk(data_folder, hardware.read_free_disk(data_folder)),
        judge_compiler(compiler, hardware.find_program("cmake")),
        _check_catalog(),
        judge_sandbox(hardware.find_sandbox_means()),
        judge_sqlite(sqlite3.sqlite_version_info),
    ]


def _ask_backends() -> tuple[Backends | None, str]:
    from localcascade.engine.backends import describe_backends

    try:
        return describe_backends(), ""
    except CascadeError as error:
        return None, error.message


def judge_python(version: tuple[int, ...], executable: str) -> Check:
    """Judge the interpreter."""
    text = ".".join(map(str, version))
    facts = {"version": text, "executable": executable, "platform": platform.platform()}
    status: Status = "ok" if version >= (3, 11) else "fail"
    return Check("Python", status, f"{text}, {executable}", "Needs 3.11 or newer.", facts)


def judge_llama(backends: Backends | None, problem: str, *, has_compiler: bool) -> Check:
    """Judge the library that computes.

    Args:
        backends: What it says of itself; None if it could not be loaded.
        problem: Why not.
        has_compiler: Whether it could be built again.
    """
    if backends is None:
        first = "" if has_compiler else "install a C++ compiler, then "
        advice = f"Build it again: {first}run `{_name_rebuild()}`."
        return Check("llama.cpp", "fail", problem, advice, {"loaded": False})
    facts = {"loaded": True, **asdict(backends)}
    found = f"{backends.commit or 'unknown commit'} in llama-cpp-python {backends.binding_version}"
    if not backends.commit:
        advice = f"Only the pinned version is tested: run `{_name_rebuild()}`."
        return Check("llama.cpp", "warn", found, advice, facts)
    devices = ", ".join(f"{device.name} ({device.description})" for device in backends.devices)
    return Check("llama.cpp", "ok", found, f"The tested version; computes on {devices}.", facts)


def judge_gpu(gpus: tuple[Gpu, ...], backends: Backends | None) -> Check:
    """Judge whether the GPUs that the system shows can be used."""
    facts = {"seen": [asdict(gpu) for gpu in gpus], "usable": bool(backends and backends.gpus)}
    found = ", ".join(map(_name_gpu, gpus)) or "none seen"
    if backends and backends.gpus:
        if not gpus:
            found = ", ".join(gpu.description for gpu in backends.gpus)
        return Check("GPU", "ok", found, "This llama.cpp computes on it.", facts)
    if not gpus:
        return Check("GPU", "ok", found, "Everything runs on the processor.", facts)
    command = f'CMAKE_ARGS="{_BUILD_FLAGS[gpus[0].vendor]}" {_name_rebuild()}'
    advice = f"This llama.cpp was built without it: run `{command}`."
    return Check("GPU", "warn", found, advice, facts)


def _name_gpu(gpu: Gpu) -> str:
    return f"{gpu.name}, {format_bytes(gpu.memory_bytes)}" if gpu.memory_bytes else gpu.name


def _name_rebuild() -> str:
    from localcascade.engine.backends import PINNED_VERSION

    package = f"llama-cpp-python=={PINNED_VERSION}"
    return f"pip install --force-reinstall --no-cache-dir --no-deps {package}"


def judge_memory(memory: Memory, gpus: tuple[Gpu, ...]) -> Check:
    """Judge whether a 30 B model could fit, in main memory or on the GPUs."""
    total, available = format_bytes(memory.total_bytes), format_bytes(memory.available_bytes)
    gpu_bytes = sum(gpu.memory_bytes or 0 for gpu in gpus)
    fits = max(memory.total_bytes, gpu_bytes) >= _LARGE_MODEL_BYTES
    advice = "The 30 B models take 10 to 33 GiB, by quantization."
    if not fits:
        advice += " `tiny` runs anywhere."
    found = f"{total}, {available} free"
    return Check("Memory", "ok" if fits else "warn", found, advice, asdict(memory))


def judge_processor(n_cores: int) -> Check:
    """Judge the processor; any will do."""
    found = f"{n_cores} physical {'core' if n_cores == 1 else 'cores'}, {platform.machine()}"
    advice = "Reading prompts takes cores; writing answers takes memory bandwidth."
    facts = {"physical_cores": n_cores, "machine": platform.machine()}
    return Check("Processor", "ok", found, advice, facts)


def judge_disk(folder: Path, free_bytes: int) -> Check:
    """Judge the disk that models are kept on."""
    fits = free_bytes >= _LARGE_CHECKPOINT_BYTES + _LARGE_MODEL_BYTES
    advice = (
        "A 30 B checkpoint takes 58.8 GiB, and 10 to 33 more quantized; "
        f"{paths.HOME_VARIABLE} moves the folder."
    )
    found = f"{format_bytes(free_bytes)} free at {folder}"
    facts = {"data_folder": str(folder), "free_bytes": free_bytes}
    return Check("Disk", "ok" if fits else "warn", found, advice, facts)


def judge_compiler(compiler: Program | None, cmake: Program | None) -> Check:
    """Judge whether llama.cpp could be built here; pip brings its own CMake where there is none."""
    facts = {
        "compiler": asdict(compiler) if compiler else None,
        "cmake": asdict(cmake) if cmake else None,
    }
    if compiler is None:
        advice = "Install one (g++ or clang++) before llama.cpp is next built, for a GPU say."
        return Check("Compiler", "warn", "no C++ compiler found", advice, facts)
    found = ", ".join(program.version for program in (compiler, cmake) if program)
    advice = "Needed only when llama.cpp is built again, for a GPU say."
    return Check("Compiler", "ok", found, advice, facts)


def _check_catalog() -> Check:
    from localcascade.catalog import load_catalog, user_catalog_path

    path = user_catalog_path()
    facts = {"user_catalog": str(path)}
    try:
        n_models = len(load_catalog().entries)
    except CascadeError as error:
        return Check("Catalog", "fail", error.message, error.hint, facts)
    found = f"{n_models} models"
    return Check("Catalog", "ok", found, f"Your own entries go into {path}.", facts)


def judge_sandbox(means: SandboxMeans) -> Check:
    """Judge with what the tools that a model calls could be locked in."""
    found = [name for name, there in _name_means(means).items() if there]
    if found:
        advice = "With it, the tools that a model calls can be locked in."
        return Check("Sandbox", "ok", ", ".join(found), advice, asdict(means))
    advice = "Install bubblewrap, or a model's tools cannot be locked in and stay off."
    return Check("Sandbox", "warn", "no means found", advice, asdict(means))


def _name_means(means: SandboxMeans) -> dict[str, bool | None]:
    return {
        "bubblewrap": means.bubblewrap,
        "Landlock": means.landlock,
        "user namespaces": means.namespaces,
        "Seatbelt": means.seatbelt,
    }


def judge_sqlite(version: tuple[int, ...]) -> Check:
    """Judge whether SQLite's WAL mode is safe.

    Source: SQLite's release notes; the fault that corrupts a database when its WAL is reset was
    corrected in 3.51.3, and in 3.44.6 and 3.50.7 of the older lines.
    """
    older_lines = ((3, 44, 6), (3, 50, 7))
    safe = version >= (3, 51, 3) or any(
        version[:2] == corrected[:2] and version >= corrected for corrected in older_lines
    )
    text = ".".join(map(str, version))
    facts = {"version": text, "wal_safe": safe}
    if safe:
        return Check("SQLite", "ok", text, "Its write-ahead log is safe to use.", facts)
    advice = "Its write-ahead log has a known fault, so databases keep to the rollback journal."
    return Check("SQLite", "ok", text, advice, facts)


def _describe_checks(checks: list[Check]) -> dict[str, Any]:
    return {
        "version": __version__,
        "ok": all(check.status != "fail" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def _draw_checks(checks: list[Check]) -> None:
    table = console.make_table("", "", "")
    table.show_header = False
    for check in checks:
        text = console.make_text(f"{check.finding}\n")
        text.append(console.make_text(check.advice, "dim"))
        status = console.make_text(check.status, _STATUS_STYLES[check.status])
        table.add_row(status, console.make_text(check.name, "bold"), text)
    console.print_tables(table)
