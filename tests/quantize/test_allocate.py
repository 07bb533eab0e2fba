"""Allocation on the bundled model: optimal, exact to the byte, and what it says is what is made."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from quantize.allocate import allocate, estimate, list_widths, measure_bits, measure_tensor
from quantize.choices import Choices
from quantize.convert import quantize_checkpoint
from quantize.costs import TYPE_ERRORS, Costs, assume_costs, split_name
from quantize.draft import Draft, list_recipe_metadata, open_draft
from quantize.errors import BudgetTooSmall, QuantizeError
from quantize.families import Config
from quantize.gguf import open_gguf
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY

QUICK = ("bf16", "q8_0", "q6_k", "q5_0", "q4_k", "iq4_nl", "q4_0", "q3_k", "q2_k", "q2_0")
"""Types that need neither importance nor long preparation."""


@cache
def open_tiny() -> Draft:
    return open_draft(TINY, "tiny")


@cache
def know_tiny() -> Costs:
    names = frozenset(open_tiny().matrices)
    return assume_costs(names, names)


def measure_cost(draft: Draft, costs: Costs, choices: Choices) -> float:
    return estimate(draft, costs, choices).expected_kl


def test_two_kinds_of_matrix_are_allocated_as_well_as_by_trying_everything() -> None:
    draft = Draft(Config(Path("c"), DENSE | {"hybrid_override_pattern": "*M"}), "dense")
    costs = assume_costs(frozenset(draft.matrices))
    types = ("q8_0", "bf16", "f32")
    fitting = []
    tensors = [t for t in draft.list_tensors(Choices({})) if t.matrix]
    # No width here is a multiple of 32 or 256, so only the stream's padding makes q8_0 usable.
    for n_embd in (None, 256):
        for names in itertools.product(types[:2], repeat=len(tensors)):
            choices = Choices(dict(zip((t.name for t in tensors), names, strict=True)), n_embd)
            try:
                fitting.append((draft.measure_file(choices), measure_cost(draft, costs, choices)))
            except QuantizeError:
                continue  # a block that does not divide a row
    smallest, largest = min(fitting)[0], max(fitting)[0]
    for share in (0.0, 0.2, 0.5, 1.0):
        budget = int(smallest + share * (largest - smallest))
        least = min(cost for n_bytes, cost in fitting if n_bytes <= budget)
        found = allocate(draft, costs, budget, types[:2])
        assert found.file_bytes <= budget
        assert found.expected_kl <= least * 1.001
        assert found.bound <= least * (1 + 1e-9)
    with pytest.raises(BudgetTooSmall) as caught:
        allocate(draft, costs, smallest - 1, types[:2])
    assert caught.value.need_bytes == smallest


@pytest.mark.parametrize("n_kib", [1800, 2600, 4000, 6000])
def test_a_budget_is_met_and_no_single_step_would_be_better(n_kib: int) -> None:
    draft, costs, budget = open_tiny(), know_tiny(), n_kib << 10
    found = allocate(draft, costs, budget)
    assert found == allocate(draft, costs, budget)
    assert found.file_bytes == draft.measure_file(found.choices) <= budget
    assert found.bound <= found.expected_kl <= found.bound * 1.001
    for name, own in found.choices.types.items():
        for other in TYPE_ERRORS:
            changed = replace(found.choices, types={**found.choices.types, name: other})
            try:
                n_bytes = draft.measure_file(changed)
            except QuantizeError:
                continue  # a block that does not divide a row
            if other != own and n_bytes <= budget:
                better = measure_cost(draft, costs, changed) < found.expected_kl * (1 - 1e-9)
                banned = name == "token_embd.weight" and other.startswith("iq")
                assert not better or banned, (name, own, other)


def test_more_bytes_never_cost_more() -> None:
    found = [allocate(open_tiny(), know_tiny(), n << 20).expected_kl for n in (2, 3, 4, 6, 12)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 50  # what is left at 12 MiB is not the weights' error


def test_the_file_is_made_to_the_byte_and_says_its_recipe(tmp_path: Path) -> None:
    draft = open_tiny()
    found = allocate(draft, know_tiny(), 3_000_000, QUICK)
    out = tmp_path / "out.gguf"
    result = quantize_checkpoint(
        TINY, out, choices=found.choices, metadata=list_recipe_metadata(found.choices), name="tiny"
    )
    assert result.file_bytes == out.stat().st_size == found.file_bytes
    with open_gguf(out) as file:
        made = {name: tensor.type.name for name, tensor in file.tensors.items()}
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        text = file.metadata["localcascade.recipe"]
    assert {name: made[name] for name in found.choices.types} == found.choices.types
    assert all(made[name] == "f32" for name in made.keys() - found.choices.types.keys())
    for layer, width in found.choices.expert_widths.items():
        assert shapes[f"blk.{layer}.ffn_up_exps.weight"][1] == width
    assert isinstance(text, str) and text.startswith(
        "[[rule]]" if not found.choices.n_embd else "n"
    )


def test_grids_without_a_zero_never_hold_the_embeddings() -> None:
    found = allocate(open_tiny(), know_tiny(), 1_700_000)
    assert not found.choices.types["token_embd.weight"].startswith(("iq1", "iq2", "iq3"))
    assert any(name.startswith("iq") for name in found.choices.types.values())


def test_widths_offered_are_whole_superblocks_near_the_source() -> None:
    assert list_widths(1856) == (1856, 1792, 2048)
    assert list_widths(1792) == (1792,)
    assert list_widths(288) == (288, 256)
    assert list_widths(56) == (56,)
    assert list_widths(500) == (500, 512)


def test_tied_embeddings_are_never_padded() -> None:
    draft = Draft(Config(Path("c"), ODD_EXPERTS | {"tie_word_embeddings": True}), "odd")
    costs = assume_costs(frozenset(draft.matrices))
    assert allocate(draft, costs, 1_000_000).choices.n_embd is None


def test_bits_of_experts_count_what_was_trimmed() -> None:
    draft = open_tiny()
    types = dict.fromkeys(draft.matrices, "q8_0")
    own, trimmed = Choices(types), Choices(types, expert_widths={2: 256, 6: 256})
    assert measure_bits(draft.list_tensors(own), own) == 8.5
    bits = measure_bits(draft.list_tensors(trimmed), trimmed)
    assert bits == pytest.approx(8.5 * 256 / 288)
    n_bytes = sum(
        measure_tensor(t, "q8_0")
        for t in draft.list_tensors(trimmed)
        if split_name(t.name)[1].endswith("_exps")
    )
    assert n_bytes == 2 * 2 * 16 * 256 * 224 * 34 // 32
