"""Expected costs: the table of types measured again, and how sensitivities are shared out."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.costs import (
    BEFORE_ATTENTION,
    EXPERT_NATS,
    TYPE_ERRORS,
    AssumedSensitivity,
    Costs,
    WeighedSensitivity,
    assume_costs,
    estimate_trim_error,
    split_name,
)
from quantize.ggml import type_named
from quantize.trial import measure_error
from tests.soak import SOAK

QUICK = [name for name in TYPE_ERRORS if not name.startswith(("iq1_", "iq2_"))]
"""Types whose encoders need no long preparation."""


@pytest.mark.parametrize("name", list(TYPE_ERRORS) if SOAK else QUICK)
def test_the_table_says_what_the_encoders_do(name: str) -> None:
    # Another seed, another width and fewer rows than the table was measured with.
    rng = np.random.Generator(np.random.PCG64(99))
    rows = (rng.standard_normal((48, 1792)) * 0.02).astype(np.float32)
    importance = np.exp(rng.standard_normal(1792)).astype(np.float32)
    plain, weighted = TYPE_ERRORS[name]
    found = measure_error([(rows, importance, 1.0)], type_named(name))
    assert found == pytest.approx(weighted, rel=0.06)
    if plain is not None:
        assert measure_error([(rows, None, 1.0)], type_named(name)) == pytest.approx(
            plain, rel=0.06
        )


def test_more_bits_are_never_worse_within_a_family() -> None:
    for family in (
        ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "bf16"),
        ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"),
        ("q2_0", "q4_0", "q5_0", "q8_0"),
    ):
        errors = [TYPE_ERRORS[name][1] for name in family]
        assert errors == sorted(errors, reverse=True)


NAMES = frozenset(
    [
        "token_embd.weight",
        "output.weight",
        *(f"blk.{i}.{kind}.weight" for i in (0, 2, 5) for kind in ("ssm_in", "ssm_out")),
        *(f"blk.{i}.ffn_{way}_exps.weight" for i in (1, 4) for way in ("up", "down")),
        *(f"blk.3.attn_{kind}.weight" for kind in ("q", "k", "v", "output")),
    ]
)


def test_the_nats_of_a_kind_are_shared_out_over_its_layers() -> None:
    assumed = AssumedSensitivity(NAMES)
    experts = [assumed.factor(name) for name in NAMES if "_exps" in name]
    assert sum(experts) == pytest.approx(EXPERT_NATS)
    # Only layer 2 stands just before attention.
    mamba = [assumed.factor(f"blk.{i}.ssm_in.weight") for i in (0, 2, 5)]
    assert mamba == pytest.approx([1.0, BEFORE_ATTENTION, 1.0])


def test_importance_chooses_the_column_of_the_table() -> None:
    costs = assume_costs(NAMES, frozenset(["output.weight"]))
    assert costs.find_error("output.weight", "iq2_xs") == TYPE_ERRORS["iq2_xs"][1]
    assert costs.find_error("token_embd.weight", "iq2_xs") is None
    assert costs.judge_error("token_embd.weight", "iq2_xs") == TYPE_ERRORS["iq2_xs"][1]
    assert costs.find_error("token_embd.weight", "q4_k") == TYPE_ERRORS["q4_k"][0]
    measured = Costs(costs.sensitivity, costs.weighted, {"output.weight": {"q4_k": 0.5}})
    assert measured.find_error("output.weight", "q4_k") == 0.5
    assert measured.find_error("output.weight", "q5_k") == TYPE_ERRORS["q5_k"][1]


def test_what_no_quantized_type_avoids_is_more_than_q8_0_costs_and_less_than_q4_0() -> None:
    costs = assume_costs(NAMES)
    floor = costs.find_floor("output.weight", "q8_0")
    assert TYPE_ERRORS["q8_0"][1] < floor < TYPE_ERRORS["q4_0"][1]
    assert costs.find_floor("output.weight", "bf16") == 0
    assert costs.find_floor("token_embd.weight", "q8_0") == 0


def test_a_weight_on_a_kind_changes_that_kind_alone() -> None:
    base = AssumedSensitivity(NAMES)
    weighed = WeighedSensitivity(base, {"ssm_in": 2.0})
    ratios = {name: weighed.factor(name) / base.factor(name) for name in NAMES}
    assert {name for name, ratio in ratios.items() if ratio == pytest.approx(2)} == {
        f"blk.{i}.ssm_in.weight" for i in (0, 2, 5)
    }
    assert {round(ratio, 9) for ratio in ratios.values()} == {1.0, 2.0}


@pytest.mark.parametrize("share", [0.01, 0.0345, 0.125, 0.5])
def test_trimming_loses_what_a_log_normal_tail_holds(share: float) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    contributions = np.sort(np.exp(rng.standard_normal(400_000)))
    lost = contributions[: int(share * contributions.size)].sum() / contributions.sum()
    assert estimate_trim_error(share, True) == pytest.approx(lost, rel=0.05)
    assert estimate_trim_error(share, False) == share


def test_padding_loses_nothing_and_measured_trims_are_taken() -> None:
    costs = Costs(AssumedSensitivity(NAMES), contributions={1: (0.0, 0.01, 0.25, 1.0)})
    assert costs.find_trim_error(1, 2, 3) == 0.01
    assert costs.find_trim_error(1, 8, 3) == 0.0
    assert costs.find_trim_error(4, 8, 3) == 0.0
    assert costs.find_trim_error(4, 2, 4) == 0.5


def test_names_are_split() -> None:
    assert split_name("blk.12.ffn_up_exps.weight") == (12, "ffn_up_exps")
    assert split_name("token_embd.weight") == (None, "token_embd")
    assert split_name("blk.1.ssm_a") == (None, "blk.1.ssm_a")
