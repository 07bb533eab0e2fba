"""The memory plan of a model that is about to be loaded, and what llama.cpp makes of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localcascade.engine import _llama, planning
from localcascade.engine._llama import library
from localcascade.engine.client import Engine
from localcascade.engine.planning import count_outputs, make_wishes, plan_load
from localcascade.engine.wire import LoadOptions
from localcascade.errors import OutOfBudget
from localcascade.fit import Device, Machine, ModelShape, plan, read_file_shape
from localcascade.hardware import Memory, MemoryHolder
from quantize.gguf import open_gguf
from tests.localcascade import reserved
from tests.localcascade.local_engine import load
from tests.localcascade.models import write_model

GIB = 1 << 30


@pytest.fixture(scope="module")
def cascade_2(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    path = reserved.write_header(tmp_path_factory.mktemp("plan") / "m.gguf", reserved.CASCADE_2)
    with open_gguf(path) as file:
        return read_file_shape(file)


def make_machine(ram_bytes: float, *vram_bytes: float) -> Machine:
    cards = (Device(f"GPU {i}", "gpu", int(n), int(n)) for i, n in enumerate(vram_bytes))
    return Machine(tuple(cards), Device("RAM", "cpu", int(ram_bytes), int(ram_bytes)))


def test_pins_reach_the_plan(cascade_2: ModelShape) -> None:
    wishes = make_wishes(cascade_2, LoadOptions(4096, n_gpu_layers=-1, cache_type="q8_0"))
    assert (wishes.n_ctx, wishes.n_gpu_layers, wishes.kv_type) == (4096, 53, "q8_0")
    assert make_wishes(cascade_2, LoadOptions(n_gpu_layers=99)).n_gpu_layers == 53
    assert make_wishes(cascade_2, LoadOptions(checkpoint_bytes=7)).checkpoint_bytes == 7
    pinned = make_wishes(cascade_2, LoadOptions(n_cpu_expert_layers=5, n_gpu_layers=-1))
    planned = plan(cascade_2, make_machine(64 * GIB, 80 * GIB), pinned)
    assert len(planned.placement.cpu_expert_layers) == 5


def test_logits_of_few_tokens_are_reserved_only_if_so_asked() -> None:
    assert count_outputs(LoadOptions()) == 0
    assert count_outputs(LoadOptions(n_outputs=64)) == 64
    assert count_outputs(LoadOptions(n_outputs=1, n_parallel=4)) == 4
    assert count_outputs(LoadOptions(n_outputs=64, n_batch=32)) == 32
    assert count_outputs(LoadOptions(n_outputs=64, collects=True)) == 0


def test_few_outputs_change_no_logits(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    tokens = [(7 * i) % 256 for i in range(50)]
    off = LoadOptions(n_threads=1, flash_attention=False)
    with Engine(path, n_threads=1, flash_attention=False) as whole:
        expected = whole.logits(tokens, 3)
    with Engine(path, n_threads=1, flash_attention=False, n_outputs=7) as narrow:
        np.testing.assert_allclose(narrow.logits(tokens, 3), expected, atol=1e-3)
    assert load(path, replace(off, n_outputs=7)).n_outputs == 7


def test_a_context_that_fits_no_memory_is_refused_with_what_would(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    with (
        Engine(path, n_ctx=2**31 - 1, cache_type="f16") as engine,
        pytest.raises(OutOfBudget, match=r"RAM: [\d.]+ GiB are needed") as refused,
    ):
        engine.load()
    # One layer has keys and values: 2 x 160 numbers of 2 bytes for each token.
    assert refused.value.need_bytes > (2**31 - 1) * 2 * 160 * 2 > refused.value.have_bytes
    assert "--ctx" in refused.value.hint


def test_who_holds_the_memory_is_named_if_that_is_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    holder = MemoryHolder(4711, "blender", 50 * GIB, is_gpu=False)
    monkeypatch.setattr(planning, "list_hoarders", lambda: (holder,))
    for total_bytes, is_named in ((64 * GIB, True), (GIB // 4, False)):
        memory = Memory(total_bytes, GIB // 4)
        monkeypatch.setattr(planning, "read_memory", lambda memory=memory: memory)
        with pytest.raises(OutOfBudget) as refused:
            plan_load(path, LoadOptions(n_ctx=4096), [])
        assert ("blender (process 4711) holds 50.00 GiB" in refused.value.hint) == is_named


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    with (
        Engine(path, n_cpu_expert_layers=1) as engine,
        pytest.raises(ValueError, match="0 layers have experts"),
    ):
        engine.load()


def test_devices_are_listed_by_name_with_an_end() -> None:
    name = _llama.list_devices()[0].name
    first, end = library.make_device_list([name])
    assert first and end is None
    assert list(library.make_device_list([])) == [None]


def test_llama_keeps_the_named_tensors_in_main_memory(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    lines: list[str] = []
    _llama.set_log(lambda _level, text: lines.append(text))
    _llama.start_backend()
    _llama.load_model(
        path,
        n_gpu_layers=0,
        use_mmap=True,
        use_mlock=False,
        use_extra_buffers=False,
        cpu_tensors=(r"blk\.(1|7)\.attn_(q|k)\.weight", r"^output\.weight"),
        gpu_shares=(0.25, 0.75),
        on_progress=lambda _share: True,
    )
    found = re.findall(r"tensor (\S+) .*buffer type overridden to (\S+)", "".join(lines))
    assert sorted(set(found)) == [
        ("blk.1.attn_k.weight", "CPU"),
        ("blk.1.attn_q.weight", "CPU"),
        ("output.weight", "CPU"),
    ]
