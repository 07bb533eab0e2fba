"""Where a plan puts things, and what it offers when they do not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from localcascade.errors import ModelFileError, OutOfBudget
from localcascade.fit import (
    ContextOptions,
    Device,
    Machine,
    ModelShape,
    Plan,
    Wishes,
    check_fit,
    describe_plan,
    make_config_shape,
    measure_context,
    plan,
)
from localcascade.fit.placement import deal_layers
from localcascade.fit.shape import make_spec_shape
from localcascade.settings import CHAT_OUTPUTS
from quantize.families import Config
from quantize.families.nemotron_h import describe_nemotron_h
from tests.localcascade.reserved import CASCADE_2, GEOMETRIES, TINY

GIB = 1 << 30
CONFIG = Path("config.json")


@pytest.fixture(scope="module")
def cascade_2() -> ModelShape:
    return make_config_shape(CONFIG, CASCADE_2, "iq4_nl")


def make_machine(*vram_gib: float, ram_gib: float = 64) -> Machine:
    sizes = [int(size * GIB) for size in vram_gib]
    gpus = (Device(f"GPU{i}", "gpu", size, size) for i, size in enumerate(sizes))
    return Machine(tuple(gpus), Device("RAM", "cpu", int(ram_gib * GIB), int(ram_gib * GIB)))


def test_a_large_card_takes_everything_but_the_embeddings(cascade_2: ModelShape) -> None:
    planned = plan(cascade_2, make_machine(24))
    assert planned.fits
    assert planned.placement.n_gpu_layers == 53
    assert planned.placement.tensor_overrides == ()
    gpu, host = planned.uses
    assert host.weights_bytes == 131072 * 2688 * 18 // 32  # one row of 4.5 bits for each token
    assert gpu.weights_bytes + host.weights_bytes == cascade_2.weights_bytes
    assert planned.max_context == 262144


@pytest.mark.parametrize("vram_gib", [16, 12, 8, 4, 3])
def test_experts_leave_a_small_card_and_no_more_than_must(
    cascade_2: ModelShape, vram_gib: int
) -> None:
    planned = plan(cascade_2, make_machine(vram_gib))
    moved = planned.placement.cpu_expert_layers
    assert planned.fits
    assert planned.uses[0].excess_bytes <= 0
    assert set(moved) <= set(cascade_2.expert_layers)
    one_more = Wishes(32768, n_gpu_layers=53, n_cpu_expert_layers=len(moved) - 1)
    assert not plan(cascade_2, make_machine(vram_gib), one_more).fits


def test_the_overrides_match_the_experts_of_those_layers_alone(cascade_2: ModelShape) -> None:
    planned = plan(cascade_2, make_machine(12))
    (pattern,) = planned.placement.tensor_overrides
    matched = [weight for weight in cascade_2.weights if re.search(pattern, weight.name)]
    assert len(matched) == 2 * len(planned.placement.cpu_expert_layers) > 0
    assert {weight.layer for weight in matched} == set(planned.placement.cpu_expert_layers)
    on_gpu = cascade_2.weights_bytes - sum(weight.n_bytes for weight in matched)
    embeddings = next(w.n_bytes for w in cascade_2.weights if w.name == "token_embd.weight")
    assert planned.uses[0].weights_bytes == on_gpu - embeddings


def test_layers_follow_when_no_experts_are_left(cascade_2: ModelShape) -> None:
    planned = plan(cascade_2, make_machine(1.5))
    assert planned.fits
    n_kept = 53 - planned.placement.n_gpu_layers
    assert n_kept > 0
    # What is in main memory as a whole needs no override.
    assert all(layer >= n_kept for layer in planned.placement.cpu_expert_layers)
    assert planned.uses[0].used_bytes < 1.5 * GIB


def test_nothing_is_lost_between_devices() -> None:
    for name, config in GEOMETRIES.items():
        shape = make_config_shape(CONFIG, config, "q8_0")
        memory = measure_context(shape, ContextOptions(8192, n_parallel=2))
        tied_bytes = shape.weights[0].n_bytes if shape.geometry.tied else 0
        for machine in (make_machine(), make_machine(64), make_machine(4, 40), make_machine(2)):
            planned = plan(shape, machine, Wishes(8192, n_parallel=2))
            copies = tied_bytes if planned.placement.n_gpu_layers else 0
            assert planned.weights_bytes == shape.weights_bytes + copies, name
            assert planned.kv_bytes == memory.kv_bytes, name
            assert planned.state_bytes == memory.state_bytes, name


def test_without_a_card_it_is_the_context_on_one_device(cascade_2: ModelShape) -> None:
    planned = plan(cascade_2, make_machine(), Wishes(65536, "q8_0", 3))
    memory = measure_context(cascade_2, ContextOptions(65536, "q8_0", 3, n_outputs=CHAT_OUTPUTS))
    (host,) = planned.uses
    assert host.compute_bytes == memory.compute_bytes + memory.output_bytes
    assert host.used_bytes == memory.total_bytes + cascade_2.weights_bytes + (1 << 30)


def test_layers_are_dealt_as_llama_cpp_deals_them() -> None:
    gpus = make_machine(10, 30).gpus
    # std::upper_bound over {0.25, 1} of i / 8: the first two of eight go to the first card.
    assert deal_layers(7, 8, gpus) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert deal_layers(7, 4, gpus) == [2, 2, 2, 2, 0, 1, 1, 1]
    assert deal_layers(7, 99, gpus) == deal_layers(7, 8, gpus)
    assert deal_layers(2, 3, ()) == [0, 0, 0]


def test_a_wish_is_kept_even_if_it_does_not_fit(cascade_2: ModelShape) -> None:
    wishes = Wishes(n_ctx=32768, n_gpu_layers=53, n_cpu_expert_layers=0)
    refused = plan(cascade_2, make_machine(16), wishes)
    assert not refused.fits
    assert refused.placement.cpu_expert_layers == ()
    assert refused.options.n_ctx == 32768
    assert refused.max_context == 0


@pytest.mark.parametrize(
    ("vram_gib", "ram_gib", "wishes"),
    [
        ((17.45,), 64, Wishes(262144, n_gpu_layers=53, n_cpu_expert_layers=0)),
        ((16,), 64, Wishes(n_gpu_layers=53, n_cpu_expert_layers=0)),
        ((), 16, Wishes()),
        ((8,), 10, Wishes(n_parallel=8)),
        ((), 17.7, Wishes(n_parallel=4, checkpoint_bytes=GIB)),
        ((8,), 10.5, Wishes(262144, "q8_0")),
    ],
)
def test_a_refusal_names_plans_that_fit(
    cascade_2: ModelShape, vram_gib: tuple[float, ...], ram_gib: float, wishes: Wishes
) -> None:
    machine = make_machine(*vram_gib, ram_gib=ram_gib)
    refused = plan(cascade_2, machine, wishes)
    assert not refused.fits
    assert 1 <= len(refused.alternatives) <= 3
    for nearest in refused.alternatives:
        assert nearest.fits and nearest.change
        assert all(use.excess_bytes <= 0 for use in nearest.uses)
    with pytest.raises(OutOfBudget) as caught:
        check_fit(refused)
    assert caught.value.need_bytes > caught.value.have_bytes
    assert all(nearest.change in caught.value.hint for nearest in refused.alternatives)


def test_no_cache_is_offered_whose_blocks_do_not_divide_a_head(cascade_2: ModelShape) -> None:
    machine, wishes = make_machine(ram_gib=18.2), Wishes(262144)
    odd = replace(cascade_2, geometry=replace(cascade_2.geometry, head_dim=136))
    changes = [found.change for found in plan(odd, machine, wishes).alternatives]
    assert changes and not any("cache" in change for change in changes)
    whole = [found.change for found in plan(cascade_2, machine, wishes).alternatives]
    assert any("cache" in change for change in whole)


def test_the_context_it_offers_is_the_largest(cascade_2: ModelShape) -> None:
    machine, wishes = make_machine(17.45), Wishes(262144, n_gpu_layers=53, n_cpu_expert_layers=0)
    offers = plan(cascade_2, machine, wishes).alternatives
    (offered,) = [offer.options.n_ctx for offer in offers if "context" in offer.change]
    assert plan(cascade_2, machine, replace(wishes, n_ctx=offered)).fits
    assert not plan(cascade_2, machine, replace(wishes, n_ctx=offered + 1024)).fits


def test_the_largest_context_is_the_largest(cascade_2: ModelShape) -> None:
    machine = make_machine(12)
    planned = plan(cascade_2, machine)
    pinned = Wishes(n_cpu_expert_layers=len(planned.placement.cpu_expert_layers), n_gpu_layers=53)
    assert planned.max_context < 262144
    assert plan(cascade_2, machine, replace(pinned, n_ctx=planned.max_context)).fits
    assert not plan(cascade_2, machine, replace(pinned, n_ctx=planned.max_context + 1024)).fits


def test_an_unasked_context_shrinks_before_anything_is_refused() -> None:
    shape = make_config_shape(CONFIG, GEOMETRIES["dense"], "q8_0")
    room = shape.weights_bytes + (1 << 30)
    planned = plan(shape, make_machine(ram_gib=room / GIB))
    assert planned.fits
    assert 1024 <= planned.options.n_ctx < 32768


def test_what_leaves_no_room_for_saved_states_is_planned_without_them(
    cascade_2: ModelShape,
) -> None:
    free = plan(cascade_2, make_machine())
    assert (free.uses[-1].checkpoint_bytes, free.options.n_ctx) == (GIB, 32768)
    need = free.uses[-1].used_bytes + free.uses[-1].device.margin_bytes
    tight = make_machine(ram_gib=(need - GIB) / GIB)
    planned = plan(cascade_2, tight)
    assert (planned.fits, planned.uses[-1].checkpoint_bytes) == (True, 0)
    assert planned.options.n_ctx == 32768
    assert planned.max_context >= 32768
    pinned = plan(cascade_2, tight, Wishes(checkpoint_bytes=GIB))
    assert pinned.options.n_ctx < 32768 or not pinned.fits


def test_a_card_that_is_full_does_not_stand_in_the_way(cascade_2: ModelShape) -> None:
    for sizes in ((0.4, 24), (24, 0.4)):
        planned = plan(cascade_2, make_machine(*sizes, ram_gib=8))
        assert planned.fits
        assert [card.name for card in planned.cards] == [f"GPU{sizes.index(24)}"]
        assert planned.gpu_shares == (1,)
    alone = plan(cascade_2, make_machine(0.4))
    assert alone.fits and alone.placement.n_gpu_layers == 0
    assert (alone.cards, alone.gpu_shares) == ((), ())


def test_less_memory_is_never_faster(cascade_2: ModelShape) -> None:
    rates = [
        plan(cascade_2, make_machine(size)).tokens_per_s_estimate for size in (24, 16, 12, 8, 4)
    ]
    assert all(more > less for more, less in pairwise(rates))
    # The RTX 4090 reads 1008 GB/s: 3.2 B active weights of 4.5 bits are 1.8 GB, so 560 at most.
    card = Device("CUDA0", "gpu", 24 * GIB, 24 * GIB, "NVIDIA GeForce RTX 4090")
    fast = plan(cascade_2, Machine((card,), make_machine().host))
    assert 100 < fast.tokens_per_s_estimate < 560


def test_a_gpu_that_shares_main_memory_is_counted_there(cascade_2: ModelShape) -> None:
    def share(total_gib: int) -> Plan:
        gpu = Device("MTL0", "igpu", total_gib * GIB * 3 // 4, total_gib * GIB * 3 // 4)
        host = Device("RAM", "cpu", total_gib * GIB, total_gib * GIB)
        return plan(cascade_2, Machine((gpu,), host))

    assert share(32).fits
    # 12 GiB on the GPU and 7 beside it are more than the 16 there are.
    assert not share(16).fits


def test_the_plain_data_are_the_contract(cascade_2: ModelShape) -> None:
    planned = plan(cascade_2, make_machine(12))
    described = describe_plan(planned)
    assert {
        "fits", "devices", "weights_bytes", "kv_bytes", "state_bytes", "compute_bytes",
        "host_bytes", "context", "cpu_expert_layers", "tokens_per_s_estimate",
    } <= described.keys()  # fmt: skip
    used = sum(device["used_bytes"] for device in described["devices"])
    parts = ("weights_bytes", "kv_bytes", "state_bytes", "compute_bytes", "checkpoint_bytes")
    assert used == sum(described[part] for part in parts)
    assert described["host_bytes"] == described["devices"][-1]["used_bytes"]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(n_cpu_expert_layers=24), "23 layers have experts"),
        (Wishes(n_gpu_layers=54), "52 layers"),
        (Wishes(n_parallel=0), "at least"),
    ],
)
def test_a_wish_without_sense_is_misuse(
    cascade_2: ModelShape, wishes: Wishes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(cascade_2, make_machine(24), wishes)


def test_an_unknown_architecture_is_refused() -> None:
    spec = replace(describe_nemotron_h(Config(CONFIG, TINY), frozenset()), architecture="llama")
    with pytest.raises(ModelFileError, match="'llama'"):
        make_spec_shape(CONFIG, spec, {})
