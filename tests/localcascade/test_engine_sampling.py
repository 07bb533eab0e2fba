"""Sampling: request, file and defaults in that order; the chain as llama.cpp orders it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade.engine.sampling import (
    N_SEEDS,
    Resolved,
    check_request,
    check_sampling,
    plan_chain,
    resolve_sampling,
)
from localcascade.prompt.budget import ThinkingBudget
from localcascade.prompt.events import ChatRequest, Sampling

FILE = {
    "general.sampling.temp": "0.600000",
    "general.sampling.top_p": "0.900000",
    "general.sampling.top_k": "40",
    "general.sampling.min_p": "0.050000",
}


def test_request_wins_over_file_and_file_over_defaults() -> None:
    asked = Sampling(temperature=0.2, seed=7)
    assert resolve_sampling(asked, FILE) == Resolved(0.2, 0.9, 40, 0.05, 7)
    assert resolve_sampling(asked, {}) == Resolved(0.2, 0.95, 0, 0.0, 7)
    assert resolve_sampling(Sampling(seed=7), {}).temperature == 1.0


def test_zero_in_the_request_is_a_value_and_not_a_gap() -> None:
    asked = Sampling(temperature=0, top_p=0, top_k=0, min_p=0, seed=0)
    assert resolve_sampling(asked, FILE) == Resolved(0, 0, 0, 0, 0)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "hot", "", "1e400"])
def test_a_file_whose_defaults_make_no_sense_has_none(text: str) -> None:
    metadata = FILE | {"general.sampling.temp": text}
    assert resolve_sampling(Sampling(seed=1), metadata) == Resolved(1.0, 0.95, 0, 0.0, 1)


def test_a_file_turns_top_k_off_with_minus_one() -> None:
    assert resolve_sampling(Sampling(), {"general.sampling.top_k": "-1"}).top_k == 0


def test_without_a_seed_one_is_drawn_each_time() -> None:
    seeds = {resolve_sampling(Sampling(), {}).seed for _ in range(8)}
    assert len(seeds) > 1


@given(st.integers())
def test_any_whole_number_is_a_seed_but_never_the_one_that_means_draw(seed: int) -> None:
    assert 0 <= resolve_sampling(Sampling(seed=seed), {}).seed < N_SEEDS == 0xFFFFFFFF


def test_temperature_zero_is_greedy_whatever_else_is_set() -> None:
    assert plan_chain(Resolved(0, 0.5, 10, 0.1, 3), 100) == (("greedy", ()),)


def test_chain_has_the_filters_then_temperature_then_the_draw() -> None:
    assert plan_chain(Resolved(0.7, 0.9, 40, 0.05, 3), 100) == (
        ("top_k", (40,)),
        ("top_p", (0.9,)),
        ("min_p", (0.05,)),
        ("temperature", (0.7,)),
        ("draw", (3,)),
    )
    assert plan_chain(Resolved(0.7, 1, 0, 0, 3), 9) == (("temperature", (0.7,)), ("draw", (3,)))


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(temperature=float("inf")), "temperature"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(top_k=-3), "top_k"),
        (Sampling(top_k=2**31), "top_k"),
        (Sampling(min_p=-1), "min_p"),
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(max_tokens=10**5000), "max_tokens"),
        (Sampling(temperature=10**400), "temperature"),
        (Sampling(temperature="1"), "temperature"),  # type: ignore[arg-type]
        (Sampling(top_k=1.5), "top_k"),  # type: ignore[arg-type]
        (Sampling(seed=float("nan")), "seed"),  # type: ignore[arg-type]
        (Sampling(seed=2**63), "seed"),
        (Sampling(repeat_penalty=1e39), "repeat_penalty"),
        (Sampling(presence_penalty=-1e39), "presence_penalty"),
        (Sampling(logit_bias={3: 1e308}), "logit_bias"),
    ],
)
def test_a_senseless_value_is_refused_by_name(sampling: Sampling, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        check_sampling(sampling)


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (ChatRequest((), n=0), "n is 0"),
        (ChatRequest((), logprobs=21), "logprobs is 21"),
        (ChatRequest((), thinking_budget=ThinkingBudget(tokens=0)), "thinking budget is 0"),
        (ChatRequest((), sampling=Sampling(repeat_penalty=0.0)), "repeat_penalty is 0"),
        (ChatRequest((), sampling=Sampling(presence_penalty=float("nan"))), "presence_penalty"),
        (ChatRequest((), sampling=Sampling(logit_bias={3: float("inf")})), "logit_bias is inf"),
        (ChatRequest((), sampling=Sampling(stop=("a", ""))), "stop: an empty text"),
        (ChatRequest((), sampling=Sampling(stop="ab")), "stop: it must be a list"),  # type: ignore[arg-type]
        (ChatRequest((), sampling=Sampling(stop=(1,))), "stop: it must be a list"),  # type: ignore[arg-type]
        (ChatRequest((), sampling=Sampling(stop=("a" * 1001,))), "stop: a text has 1001"),
        (ChatRequest((), sampling=Sampling(stop=("a",) * 65)), "stop: there are 65"),
        (ChatRequest((), sampling=Sampling(grammar="", json_schema={})), "at once"),
        (ChatRequest((), sampling=Sampling(grammar='root ::= "a\0"')), "grammar: byte 11"),
        (ChatRequest((), n=1.5), "n is 1.5"),  # type: ignore[arg-type]
        (ChatRequest((), logprobs=True, tools=(5,)), "tools: number 0 is a int"),  # type: ignore[arg-type]
        (ChatRequest((), thinking_budget=ThinkingBudget(tokens=10**400)), "1329 bits tokens"),
        (ChatRequest((), thinking_budget=ThinkingBudget(seconds=10**400)), "1329 bits seconds"),
        (ChatRequest((), thinking_budget=ThinkingBudget(seconds=0)), "budget is 0 seconds"),
        (
            ChatRequest((), thinking_budget=ThinkingBudget(answer_reserve_tokens=float("nan"))),  # type: ignore[arg-type]
            "reserve is nan",
        ),
    ],
)
def test_a_senseless_request_is_refused(request_: ChatRequest, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_request(request_)


def test_biases_and_penalties_come_before_all_and_with_greedy_too() -> None:
    resolved = resolve_sampling(
        Sampling(temperature=0, top_k=5, logit_bias={3: 1.0}, frequency_penalty=0.5), {}
    )
    assert plan_chain(resolved, 100) == (
        ("logit_bias", (100, {3: 1.0})),
        ("penalties", (100, 2**16, 1.0, 0.5, 0.0)),
        ("greedy", ()),
    )


def test_a_temperature_that_would_overflow_is_greedy() -> None:
    assert plan_chain(resolve_sampling(Sampling(temperature=1e-45, top_p=1), {}), 100) == (
        ("greedy", ()),
    )


def test_penalties_make_room_for_no_more_tokens_than_they_look_at() -> None:
    asked = Sampling(presence_penalty=1, penalty_tokens=2**31 - 1)
    assert resolve_sampling(asked, {}).penalty_tokens == 2**16


def test_answers_to_one_request_have_seeds_of_their_own() -> None:
    seeds = [resolve_sampling(Sampling(seed=N_SEEDS - 1), {}, index).seed for index in range(3)]
    assert seeds == [N_SEEDS - 1, 0, 1]
