"""What the installed llama.cpp is and computes on, asked in a process that may die of it.

A library built for another processor or another driver kills whoever loads it; `doctor` must
live to say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localcascade.errors import EngineDied
from localcascade.fit import Device, Machine
from localcascade.hardware import Memory

if TYPE_CHECKING:
    from localcascade.engine import _llama

PINNED_VERSION = "0.3.36"
"""Of llama-cpp-python, as pyproject.toml pins it."""
# The binding tells its own version only; this is the commit of llama.cpp that its sources carry.
VENDORED_COMMITS = {PINNED_VERSION: "0c1e57098"}
GPU_KINDS = ("gpu", "igpu")
_TIMEOUT_S = 60.0
_ROOT = Path(__file__).parents[2]
_BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from localcascade.engine.backends import print_backends
print_backends()
"""


@dataclass(frozen=True)
class Backend:
    """One device that the build can compute on."""

    name: str
    description: str
    kind: str
    """cpu, gpu, igpu, accelerator or meta."""
    free_bytes: int = 0
    total_bytes: int = 0
    """0 where the device does not tell, as for free_bytes."""


@dataclass(frozen=True)
class Backends:
    """The build of llama.cpp that is installed."""

    binding_version: str
    """Of llama-cpp-python."""
    commit: str
    """Of llama.cpp; empty for a version of the binding that we do not know."""
    features: str
    """llama.cpp's own line about the processor features it was built for."""
    devices: tuple[Backend, ...]

    @property
    def gpus(self) -> tuple[Backend, ...]:
        """Those of the devices that are GPUs."""
        return tuple(device for device in self.devices if device.kind in GPU_KINDS)


def make_machine(backends: Iterable[Backend | _llama.Device], memory: Memory) -> Machine:
    """Say what a memory plan may use of this machine; what tells no size is left out.

    Args:
        backends: What llama.cpp computes on; those that are no GPUs do not count.
        memory: Main memory, as far as this process may use it.
    """
    gpus = tuple(
        Device(
            name=gpu.name,
            # Metal calls itself a GPU with memory of its own, which no Mac has any more.
            kind="igpu" if gpu.kind == "igpu" or gpu.name.startswith("MTL") else "gpu",
            total_bytes=gpu.total_bytes,
            free_bytes=gpu.free_bytes,
            description=gpu.description,
        )
        for gpu in backends
        if gpu.kind in GPU_KINDS and gpu.total_bytes
    )
    # llama.cpp takes a GPU that shares the main memory only where there is no other.
    cards = tuple(gpu for gpu in gpus if gpu.kind == "gpu")
    return Machine(cards or gpus, make_host(memory))


def make_host(memory: Memory) -> Device:
    """Say what a memory plan may use of main memory."""
    return Device("RAM", "cpu", memory.total_bytes, memory.available_bytes)


def describe_backends() -> Backends:
    """Load llama.cpp in a process of its own and ask it.

    Raises:
        EngineDied: It is not installed, cannot be loaded, or killed that process.
    """
    # -P keeps the working folder off the path: nothing that lies there is to be imported.
    command = [sys.executable, "-P", "-c", _BOOT, str(_ROOT)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise EngineDied(f"llama.cpp gave no answer within {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise EngineDied(_explain_death(done.returncode, done.stderr), log_tail=done.stderr[-4000:])
    return parse_answer(done.stdout)


def parse_answer(text: str) -> Backends:
    """Read what the other process wrote; the last line counts, as drivers print greetings.

    Raises:
        EngineDied: It is not what we write.
    """
    try:
        answer = json.loads(text.strip().splitlines()[-1])
        devices = tuple(Backend(**device) for device in answer.pop("devices"))
        return Backends(**answer, devices=devices)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise EngineDied("llama.cpp gave an answer that cannot be read", log_tail=text) from error


def _explain_death(code: int, log: str) -> str:
    if code < 0:
        return f"loading llama.cpp ended the process with signal {-code}"
    lines = log.strip().splitlines()
    return f"llama.cpp cannot be loaded: {lines[-1] if lines else f'exit code {code}'}"


def print_backends() -> None:
    """Load llama.cpp here, and write one line of JSON to stdout for `parse_answer`."""
    print(json.dumps(asdict(_ask_llama())))


def _ask_llama() -> Backends:
    from importlib.metadata import version

    from llama_cpp import llama_cpp

    from localcascade.engine import _llama

    _llama.set_log(lambda _level, _text: None)
    _llama.start_backend()
    binding_version = version("llama-cpp-python")
    return Backends(
        binding_version=binding_version,
        commit=VENDORED_COMMITS.get(binding_version, ""),
        features=llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(" |"),
        devices=tuple(
            Backend(
                device.name, device.description, device.kind, device.free_bytes, device.total_bytes
            )
            for device in _llama.list_devices()
        ),
    )
