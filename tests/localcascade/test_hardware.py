"""What machines say about themselves, read from their own words."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import psutil
import pytest

from localcascade import hardware
from localcascade.hardware import Gpu

# nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits
NVIDIA_SMI_TWO = "NVIDIA GeForce RTX 4090, 24564\nNVIDIA GeForce RTX 3060, 12288\n"
NVIDIA_SMI_UNIFIED = "NVIDIA GB10, [N/A]\n"

# cat /proc/driver/nvidia/gpus/0000:62:00.0/information
NVIDIA_INFORMATION = """\
Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 10
GPU UUID: \t GPU-9221d5d1-b60b-a624-bf14-0a1819cfda3b
Video BIOS: \t 96.00.99.00.01
Bus Type: \t PCIe
Bus Location: \t 0000:62:00.0
Device Minor: \t 5
GPU Excluded:\t No
"""

# cat /sys/class/kfd/kfd/topology/nodes/{0,1}/properties, shortened
KFD_PROCESSOR = "cpu_cores_count 16\nsimd_count 0\nmem_banks_count 1\nvendor_id 0\ndevice_id 0\n"
KFD_GPU = (
    "cpu_cores_count 0\nsimd_count 304\nmem_banks_count 1\ngfx_target_version 90402\n"
    "vendor_id 4098\ndevice_id 29856\nhive_id 11638818706288400384\n"
)


def write_program(folder: Path, name: str, text: str, code: int = 0) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n", "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the first of the path; behind it nothing but what `sh` needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat"):
        (folder / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_nvidia_smi_lists_names_and_memory() -> None:
    assert hardware.parse_nvidia_smi(NVIDIA_SMI_TWO) == (
        Gpu("NVIDIA", "NVIDIA GeForce RTX 4090", 24564 * 1024**2),
        Gpu("NVIDIA", "NVIDIA GeForce RTX 3060", 12288 * 1024**2),
    )


def test_nvidia_smi_without_memory_of_its_own() -> None:
    assert hardware.parse_nvidia_smi(NVIDIA_SMI_UNIFIED) == (Gpu("NVIDIA", "NVIDIA GB10", None),)


@pytest.mark.parametrize(
    "text", ["", "\n", "No devices were found\n", "NVIDIA-SMI has failed because it couldn't\n"]
)
def test_nvidia_smi_without_a_gpu(text: str) -> None:
    assert hardware.parse_nvidia_smi(text) == ()


def test_the_drivers_own_file_names_the_model() -> None:
    assert hardware.parse_nvidia_information(NVIDIA_INFORMATION) == Gpu(
        "NVIDIA", "NVIDIA H100 80GB HBM3", None
    )
    assert hardware.parse_nvidia_information("IRQ: 3\n") is None


def test_a_kfd_node_is_a_gpu_or_a_processor() -> None:
    assert hardware.parse_kfd_properties(KFD_GPU)
    assert not hardware.parse_kfd_properties(KFD_PROCESSOR)
    assert not hardware.parse_kfd_properties("")


def test_a_cgroup_limit_is_a_number_or_none() -> None:
    assert hardware.parse_memory_limit("8589934592\n") == 8 * 1024**3
    assert hardware.parse_memory_limit("max\n") is None
    assert hardware.parse_memory_limit("") is None


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        (("96364\n", "", ""), True),  # Fedora, Arch
        (("96364\n", "1\n", ""), True),  # Debian
        (("96364\n", "0\n", ""), False),  # Debian, hardened
        (("96364\n", "1\n", "1\n"), False),  # Ubuntu 24.04
        (("0\n", "", ""), False),  # switched off
        (("", "", ""), False),  # not Linux
    ],
)
def test_namespaces_by_the_kernels_switches(files: tuple[str, str, str], allowed: bool) -> None:
    assert hardware.allows_namespaces(*files) is allowed


def test_landlock_by_the_kernels_list() -> None:
    modules = "lockdown,capability,landlock,yama,apparmor,bpf\n"
    assert hardware.parse_security_modules(modules) is True
    assert hardware.parse_security_modules("capability,selinux") is False
    assert hardware.parse_security_modules("") is None


def test_an_nvidia_gpu_is_found_through_its_tool(programs: Path) -> None:
    write_program(programs, "nvidia-smi", NVIDIA_SMI_TWO)
    assert [gpu.memory_bytes for gpu in hardware.find_gpus() if gpu.vendor == "NVIDIA"] == [
        24564 * 1024**2,
        12288 * 1024**2,
    ]


def test_a_tool_that_fails_is_not_believed(programs: Path) -> None:
    write_program(programs, "nvidia-smi", NVIDIA_SMI_TWO, code=9)
    assert "NVIDIA GeForce RTX 4090" not in [gpu.name for gpu in hardware.find_gpus()]


def test_a_program_tells_its_version(programs: Path) -> None:
    path = write_program(programs, "g++", "g++ (GCC) 14.2.0\nCopyright\n")
    assert hardware.find_compiler() == hardware.Program(str(path), "g++ (GCC) 14.2.0")
    assert hardware.find_program("cmake") is None
    path.unlink()
    assert hardware.find_compiler() is None


def test_a_program_that_cannot_be_run_is_found_without_a_version(programs: Path) -> None:
    path = programs / "c++"
    path.write_bytes(b"\x7fELF broken")
    path.chmod(0o755)
    assert hardware.find_compiler() == hardware.Program(str(path), "")


def test_bubblewrap_counts_only_if_it_works(programs: Path) -> None:
    assert not hardware.find_sandbox_means().bubblewrap
    write_program(programs, "bwrap", "", code=1)
    assert not hardware.find_sandbox_means().bubblewrap
    write_program(programs, "bwrap", "")
    assert hardware.find_sandbox_means().bubblewrap


def test_memory_is_what_the_system_has_or_less() -> None:
    memory = hardware.read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes <= psutil.virtual_memory().total


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"memory.max": str(1 << 28), "memory.current": str(1 << 27)}
    monkeypatch.setattr(hardware, "_read_text", lambda path: texts[path.name])
    memory = hardware.read_memory()
    assert memory.total_bytes == 1 << 28
    assert memory.available_bytes <= 1 << 27


def test_cores_are_at_most_the_processors() -> None:
    assert 1 <= hardware.count_physical_cores() <= (os.cpu_count() or 1)


def test_free_disk_of_a_folder_that_is_not_made_yet(tmp_path: Path) -> None:
    free = hardware.read_free_disk(tmp_path / "a" / "b" / "c")
    assert abs(free - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="Macs have such a GPU")
def test_no_apple_gpu_elsewhere() -> None:
    assert all(gpu.vendor != "Apple" for gpu in hardware.find_gpus())


def test_a_list_of_processors_is_counted() -> None:
    # /sys/devices/cpu_atom/cpus of a Core i9-13900K, and lists with single numbers.
    assert hardware.count_cpu_list("16-31\n") == 16
    assert hardware.count_cpu_list("0-3,8,10-11") == 7
    assert hardware.count_cpu_list("") == 0


def test_kinds_of_cores_are_all_cores() -> None:
    cores = hardware.count_cores()
    assert cores.performance + cores.efficiency == hardware.count_physical_cores()


def test_a_quota_of_processors_is_rounded_up() -> None:
    assert hardware.parse_cpu_quota("150000 100000\n") == 2
    assert hardware.parse_cpu_quota("50000 100000") == 1
    assert [hardware.parse_cpu_quota(text) for text in ("max 100000\n", "", "5 0")] == [None] * 3


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [
        (hardware.Cores(4, 8), "max 100000", 4),
        (hardware.Cores(32, 0), "300000 100000", 3),
        (hardware.Cores(0, 4), "", 1),
    ],
)
def test_only_fast_cores_that_may_be_used_count(
    monkeypatch: pytest.MonkeyPatch, cores: hardware.Cores, quota: str, expected: int
) -> None:
    monkeypatch.setattr(hardware, "count_cores", lambda: cores)
    monkeypatch.setattr(hardware, "_read_text", lambda path: quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert hardware.count_usable_cores() == expected


# nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv,noheader,nounits
COMPUTE_APPS = "2291, /usr/bin/python3.11, 20480\n311, C:\\\\x, [N/A]\n99, /opt/a, b/blender, 512\n"


def test_programs_on_a_gpu_are_listed() -> None:
    first, second = hardware.parse_compute_apps(COMPUTE_APPS)
    assert (first.pid, first.name, first.held_bytes) == (2291, "python3.11", 20 << 30)
    assert (second.pid, second.name, second.held_bytes) == (99, "blender", 512 << 20)
    assert first.is_gpu


def test_small_holders_are_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (hardware.MemoryHolder(n, "x", n << 28, False) for n in (3, 4))
    monkeypatch.setattr(hardware, "find_memory_holders", lambda: (large, small))
    assert hardware.list_hoarders() == (large,)


def test_this_process_is_not_among_those_that_hold_memory() -> None:
    holders = hardware.find_memory_holders(5)
    assert os.getpid() not in [holder.pid for holder in holders]
    assert [h.held_bytes for h in holders] == sorted((h.held_bytes for h in holders), reverse=True)
