"""What this machine has, found without llama.cpp: memory, processors, disk, GPUs, compilers.

The functions that read text are pure; those that fetch it never raise and never wait long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Vendor = Literal["NVIDIA", "AMD", "Apple"]
HOARD_BYTES = 1 << 30
"""A program that holds less is in nobody's way."""

_TIMEOUT_S = 5.0
_AMD_VENDOR_ID = 4098


@dataclass(frozen=True)
class Memory:
    """Main memory, as far as this process may use it."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Cores:
    """Physical processor cores by kind."""

    performance: int
    """Fast ones; all of them where there is one kind."""
    efficiency: int
    """Slow ones, which keep the others waiting when they share a matrix."""


@dataclass(frozen=True)
class MemoryHolder:
    """A process that holds much of a memory."""

    pid: int
    name: str
    held_bytes: int
    is_gpu: bool
    """Of a GPU's memory; else of main memory."""

    def describe(self) -> str:
        """Say in words how much of what it holds."""
        where = "a GPU's memory" if self.is_gpu else "main memory"
        return (
            f"{self.name} (process {self.pid}) holds {self.held_bytes / 2**30:.2f} GiB of {where}"
        )


@dataclass(frozen=True)
class Gpu:
    """A GPU that the system knows, whether or not llama.cpp can use it."""

    vendor: Vendor
    name: str
    memory_bytes: int | None
    """None where it cannot be told without the vendor's tools."""


@dataclass(frozen=True)
class Program:
    """A program on the path."""

    path: str
    version: str
    """The first line it prints about itself; empty if it says nothing."""


@dataclass(frozen=True)
class SandboxMeans:
    """With what an unprivileged process could lock a tool in."""

    bubblewrap: bool
    """True if `bwrap` is there and starts a program; a system may have it and forbid it."""
    namespaces: bool
    """True if an unprivileged process may make user namespaces."""
    landlock: bool | None
    """None where the kernel does not show its security modules."""
    seatbelt: bool
    """True on macOS, whose sandbox-exec it is."""


def read_memory() -> Memory:
    """Read main memory, or the container's limit where that is lower."""
    import psutil

    memory = psutil.virtual_memory()
    limit_bytes = parse_memory_limit(_read_text(Path("/sys/fs/cgroup/memory.max")))
    used_bytes = parse_memory_limit(_read_text(Path("/sys/fs/cgroup/memory.current")))
    if limit_bytes is None or limit_bytes >= memory.total:
        return Memory(memory.total, memory.available)
    free_bytes = max(0, limit_bytes - (used_bytes or 0))
    return Memory(limit_bytes, min(memory.available, free_bytes))


def parse_memory_limit(text: str) -> int | None:
    """Read a cgroup's memory.max or memory.current.

    Returns:
        Bytes; None for "max" and for an absent file.
    """
    return int(text) if text.strip().isdecimal() else None


def count_physical_cores() -> int:
    """Count processor cores, hyperthreads not; at least 1."""
    import psutil

    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def count_cores() -> Cores:
    """Count physical cores by kind; all count as fast where the system does not tell."""
    n_cores = count_physical_cores()
    if sys.platform == "darwin":
        slow = _run(["sysctl", "-n", "hw.perflevel1.physicalcpu"]).strip()
        n_slow = int(slow) if slow.isdecimal() else 0
    else:
        # Intel's hybrid processors list the efficient ones here, which have one thread each.
        n_slow = count_cpu_list(_read_text(Path("/sys/devices/cpu_atom/cpus")))
    return Cores(max(n_cores - n_slow, 0), min(n_slow, n_cores))


def count_usable_cores() -> int:
    """Count the fast physical cores that this process may use; at least 1.

    One thread on each is what a matrix product wants: a slow core keeps the others waiting, and
    so does a thread that has to wait for its turn.
    """
    counts = [count_cores().performance, os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    quota = parse_cpu_quota(_read_text(Path("/sys/fs/cgroup/cpu.max")))
    return max(1, min([*counts, *([] if quota is None else [quota])]))


def parse_cpu_quota(text: str) -> int | None:
    """Read a cgroup's cpu.max, which holds microseconds of computing and of the clock.

    Returns:
        Processors that may be busy at once, rounded up; None for "max" and for an absent file.
    """
    quota, _, period = text.strip().partition(" ")
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return -(-int(quota) // int(period))


def count_cpu_list(text: str) -> int:
    """Count the processors of a list as the kernel writes it: "0-3,8"."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def list_hoarders() -> tuple[MemoryHolder, ...]:
    """List the other programs that are in the way of a model: those that hold 1 GiB or more."""
    return tuple(h for h in find_memory_holders() if h.held_bytes >= HOARD_BYTES)


def find_memory_holders(limit: int = 3) -> tuple[MemoryHolder, ...]:
    """Find who holds most of the memory, as far as this system tells us.

    Args:
        limit: Most processes of each kind of memory.
    """
    import psutil

    held = [
        MemoryHolder(
            process.pid, process.info["name"] or "?", process.info["memory_info"].rss, False
        )
        for process in psutil.process_iter(["name", "memory_info"])
        if process.info["memory_info"] and process.pid != os.getpid()
    ]
    path = shutil.which("nvidia-smi")
    query = ["--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits"]
    on_gpu = list(parse_compute_apps(_run([path, *query]))) if path else []
    return tuple(
        holder
        for holders in (on_gpu, held)
        for holder in sorted(holders, key=lambda holder: -holder.held_bytes)[:limit]
    )


def parse_compute_apps(text: str) -> tuple[MemoryHolder, ...]:
    """Read `nvidia-smi --query-compute-apps=pid,process_name,used_memory`, in MiB, no units."""
    found = re.findall(r"^(\d+), (.*), (\d+)$", text, re.MULTILINE)
    return tuple(
        MemoryHolder(int(pid), Path(name).name, int(used) << 20, is_gpu=True)
        for pid, name, used in found
    )


def read_free_disk(folder: Path) -> int:
    """Read the free bytes of the disk a folder is on, or would be on once made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def find_gpus() -> tuple[Gpu, ...]:
    """Find the GPUs that the system's own tools and drivers show."""
    return (*_find_nvidia(), *_find_amd(), *_find_apple())


def find_compiler() -> Program | None:
    """Find the C++ compiler that a build of llama.cpp would take."""
    for name in ("c++", "g++", "clang++"):
        program = find_program(name)
        if program:
            return program
    return None


def find_program(name: str) -> Program | None:
    """Find a program on the path and ask for its version."""
    path = shutil.which(name)
    if path is None:
        return None
    lines = _run([path, "--version"]).strip().splitlines()
    return Program(path, lines[0] if lines else "")


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Read `nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits`."""
    gpus = []
    for line in text.splitlines():
        name, _, memory_mib = line.rpartition(",")
        if name:
            memory_mib = memory_mib.strip()
            # Machines with unified memory print "[N/A]" here.
            memory_bytes = int(memory_mib) << 20 if memory_mib.isdecimal() else None
            gpus.append(Gpu("NVIDIA", name.strip(), memory_bytes))
    return tuple(gpus)


def parse_nvidia_information(text: str) -> Gpu | None:
    """Read /proc/driver/nvidia/gpus/ADDRESS/information."""
    match = re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE)
    return Gpu("NVIDIA", match[1], None) if match else None


def parse_kfd_properties(text: str) -> bool:
    """Say whether a node of /sys/class/kfd/kfd/topology is an AMD GPU: its `properties` file."""
    numbers = dict(re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE))
    is_amd = int(numbers.get("vendor_id", 0)) == _AMD_VENDOR_ID
    return is_amd and int(numbers.get("simd_count", 0)) > 0


def find_sandbox_means() -> SandboxMeans:
    """Find out what can lock a tool in; runs `bwrap` once, as only that proves it."""
    bwrap = shutil.which("bwrap")
    trial = ["--unshare-all", "--ro-bind", "/", "/", "true"]
    kernel = Path("/proc/sys")
    return SandboxMeans(
        bubblewrap=bwrap is not None and _succeeds([bwrap, *trial]),
        namespaces=allows_namespaces(
            _read_text(kernel / "user/max_user_namespaces"),
            _read_text(kernel / "kernel/unprivileged_userns_clone"),
            _read_text(kernel / "kernel/apparmor_restrict_unprivileged_userns"),
        ),
        landlock=parse_security_modules(_read_text(Path("/sys/kernel/security/lsm"))),
        seatbelt=sys.platform == "darwin" and shutil.which("sandbox-exec") is not None,
    )


def allows_namespaces(max_namespaces: str, clone_allowed: str, apparmor_restricts: str) -> bool:
    """Decide from three files of /proc/sys whether a user may make namespaces.

    Args:
        max_namespaces: user/max_user_namespaces; empty where the kernel has none.
        clone_allowed: kernel/unprivileged_userns_clone, a switch of Debian's; empty elsewhere.
        apparmor_restricts: kernel/apparmor_restrict_unprivileged_userns, of Ubuntu 24.04 on.
    """
    return (
        max_namespaces.strip() not in ("", "0")
        and clone_allowed.strip() != "0"
        and apparmor_restricts.strip() in ("", "0")
    )


def parse_security_modules(text: str) -> bool | None:
    """Say whether Landlock is on: /sys/kernel/security/lsm, a list with commas.

    Returns:
        None for an empty text, as of a kernel that hides the list.
    """
    modules = text.strip().split(",")
    return "landlock" in modules if modules != [""] else None


def _find_nvidia() -> tuple[Gpu, ...]:
    path = shutil.which("nvidia-smi")
    if path:
        query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        found = parse_nvidia_smi(_run([path, *query]))
        if found:
            return found
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    gpus = (parse_nvidia_information(_read_text(file)) for file in files)
    return tuple(gpu for gpu in gpus if gpu)


def _find_amd() -> tuple[Gpu, ...]:
    if not Path("/dev/kfd").exists():
        return ()
    nodes = sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*"))
    found = [node for node in nodes if parse_kfd_properties(_read_text(node / "properties"))]
    names = (_read_text(node / "name").strip() or "GPU" for node in found)
    return tuple(Gpu("AMD", name, None) for name in names)


def _find_apple() -> tuple[Gpu, ...]:
    """Every Mac with Apple's own chip has a GPU that shares main memory."""
    if sys.platform != "darwin" or _run(["sysctl", "-n", "hw.optional.arm64"]).strip() != "1":
        return ()
    name = _run(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    memory = parse_memory_limit(_run(["sysctl", "-n", "hw.memsize"]))
    return (Gpu("Apple", name, memory),)


def _succeeds(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
