"""`localcascade plan`: files, catalog entries, machines that are not this one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localcascade import hardware
from localcascade.cli.app import run_arguments
from localcascade.cli.memory_bars import PARTS, split_bar
from localcascade.cli.plan import choose_preset, find_machine, find_shape
from localcascade.engine.planning import make_wishes
from localcascade.engine.wire import LoadOptions
from localcascade.fit import Device, DeviceUse, Machine, describe_plan, plan
from localcascade.hardware import Memory, MemoryHolder
from localcascade.settings import CHAT_OUTPUTS
from localcascade.store import list_parts
from tests.localcascade.reserved import TINY, write_header

GIB = 1 << 30


@pytest.fixture
def file(home: Path) -> Path:
    return write_header(home.parent / "work" / "model.gguf", TINY)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run_arguments(["plan", *arguments, "--json"]) == code
    described: dict[str, Any] = json.loads(capsys.readouterr().out)
    return described


def test_a_file_is_planned_from_its_header(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = run_json(capsys, str(file), "--vram", "8G", "--ram", "16G", "--ctx", "2048")
    assert described["fits"] is True
    gpu, host = described["devices"]
    assert (gpu["name"], gpu["total_bytes"]) == ("GPU 0", 8 * GIB)
    assert (host["name"], host["total_bytes"]) == ("RAM", 16 * GIB)
    # 2 attention layers of 2 heads of 32 values, keys and values at f16.
    assert described["kv_bytes"] == 2 * 2 * 2 * 32 * 2 * 2048
    assert described["cpu_expert_layers"] == []
    assert described["note"] is None


def test_a_catalog_entry_needs_no_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "nemotron-cascade-2"
    described = run_json(capsys, name, "--vram", "24G", "--ram", "32G", "--type", "q2_0")
    assert described["fits"] is True
    # 31.6 B weights at 18 bytes per 64.
    assert described["weights_bytes"] == pytest.approx(31.578e9 * 18 / 64, rel=0.01)
    assert "q2_0" in described["note"]


@pytest.mark.parametrize("card", ["24G", "20G", "16G", "12G"])
def test_a_preset_fits_the_card_it_was_made_for(
    home: Path, capsys: pytest.CaptureFixture[str], card: str
) -> None:
    described = run_json(capsys, "nemotron-cascade-2", "--vram", card, "--ram", "16G")
    assert f"preset {card}" in described["note"]
    assert described["fits"] is True
    assert described["cpu_expert_layers"] == []
    assert described["devices"][0]["used_bytes"] > 0.9 * described["devices"][0]["total_bytes"]


def test_a_preset_is_chosen_by_the_memory_there_is() -> None:
    def choose(*vram_gib: int, ram_gib: int = 64) -> str | None:
        gpus = tuple(Device("", "gpu", size * GIB, 0) for size in vram_gib)
        machine = Machine(gpus, Device("", "cpu", ram_gib * GIB, 0))
        return choose_preset(["12G", "24G", "16G"], machine)

    assert [choose(24), choose(23), choose(12, 12), choose(8)] == ["24G", "16G", "24G", "12G"]
    assert choose(ram_gib=20) == "16G"
    assert choose_preset([], Machine((), Device("", "cpu", GIB, 0))) is None


def test_what_does_not_fit_is_code_4_with_plans_that_do(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("nemotron-cascade-2", "--vram", "0", "--ram", "16G", "--type", "iq4_nl")
    described = run_json(capsys, *arguments, code=4)
    assert described["fits"] is False
    assert described["alternatives"]
    assert all(nearest["fits"] for nearest in described["alternatives"])
    assert run_arguments(["plan", *arguments]) == 4
    captured = capsys.readouterr()
    assert "RAM lacks" in captured.err
    assert described["alternatives"][0]["change"] in captured.err


@pytest.mark.parametrize("ram", ["15G", "16G"])
def test_it_plans_what_a_chat_would_load(
    home: Path, capsys: pytest.CaptureFixture[str], ram: str
) -> None:
    """With fewer saved states, if that makes room, and logits for a token of each only."""
    arguments = ("nemotron-cascade-2", "--vram", "0", "--ram", ram)
    code = 0 if ram == "16G" else 4
    described = run_json(capsys, *arguments, "--type", "16G", code=code)
    machine = find_machine(["0"], ram)
    shape, _ = find_shape("nemotron-cascade-2", "16G", machine)
    loaded = plan(shape, machine, make_wishes(shape, LoadOptions(n_outputs=CHAT_OUTPUTS)))
    assert {key: described[key] for key in describe_plan(loaded)} == describe_plan(loaded)
    assert loaded.fits == (ram == "16G")


def test_several_cards_are_several_devices(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--vram", "12G", "--vram", "12G", "--ram", "8G", "--type", "iq4_nl")
    described = run_json(capsys, "nemotron-cascade-2", *arguments)
    first, second, host = described["devices"]
    assert min(first["weights_bytes"], second["weights_bytes"]) > 6 * GIB
    assert host["weights_bytes"] < GIB


@pytest.mark.parametrize("columns", [80, 120])
def test_bars_and_table_fit_the_window(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    arguments = ["--vram", "12G", "--vram", "12G", "--ram", "32G", "--parallel", "4"]
    assert run_arguments(["plan", "nemotron-cascade-2", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert "weights" in lines[4]
    bars = [line for line in lines if re.match(r"(GPU \d|RAM) +[█▓▒░▞·]{10,}", line)]
    assert len(bars) == 3
    assert len({line.rindex(" of ") for line in bars}) == 1


def test_a_bar_divides_by_size() -> None:
    device = Device("GPU", "gpu", 100, 100)
    use = DeviceUse(device, 50, 20, 4, 10, 0, read_bytes=0)
    assert split_bar(use, 50) == [25, 10, 2, 5, 0]
    too_much = DeviceUse(device, 150, 50, 0, 0, 0, read_bytes=0)
    assert split_bar(too_much, 40) == [30, 10, 0, 0, 0]
    assert len(PARTS) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("--kv", "q5_1"),
        ("--type", "q9_9"),
        ("--vram", "24GB"),
        ("--cpu-experts", "99", "--vram", "8G"),
        ("--gpu-layers", "99", "--vram", "8G"),
    ],
)
def test_nonsense_is_misuse(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run_arguments(["plan", "nemotron-cascade-2", *arguments, "--ram", "8G"]) == 2
    assert capsys.readouterr().out == ""


def test_an_unknown_name_is_code_3(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["plan", "no-such-model"]) == 3


def test_another_program_that_holds_the_memory_is_named(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(total_bytes=64 * GIB, available_bytes=8 * GIB)
    holder = MemoryHolder(4711, "blender", 50 * GIB, is_gpu=False)
    monkeypatch.setattr(hardware, "read_memory", lambda: memory)
    monkeypatch.setattr(hardware, "find_memory_holders", lambda: (holder,))
    assert run_arguments(["plan", "nemotron-cascade-2", "--vram", "0"]) == 4
    assert "blender (process 4711) holds 50.00 GiB of main memory" in capsys.readouterr().err


def test_parts_of_a_split_model() -> None:
    assert list_parts(Path("a/m-00001-of-00003.gguf")) == [
        Path(f"a/m-0000{i}-of-00003.gguf") for i in (1, 2, 3)
    ]
    assert list_parts(Path("m-00002-of-00003.gguf")) == [Path("m-00002-of-00003.gguf")]
    assert list_parts(Path("model.gguf")) == [Path("model.gguf")]


def test_a_plan_loads_no_engine(home: Path) -> None:
    probe = (
        "import sys; from localcascade.cli.app import run_arguments; "
        "code = run_arguments(['plan', 'nemotron-cascade-2', '--json']); "
        "print(code, {'llama_cpp', 'textual', 'ctypes.util'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] in ("0 set()", "4 set()")
