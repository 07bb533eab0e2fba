"""The choice of a model: what is listed, filtered, described and answered."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from rich.cells import cell_len
from textual.widgets import Input, OptionList, Static

from localcascade.errors import ConfigError
from localcascade.fit import Device, Machine, Wishes, make_config_shape, plan
from localcascade.tui.offers import (
    choose_columns,
    describe_transfer,
    draw_details,
    draw_row,
    fit_cells,
    write_duration,
)
from localcascade.tui.screens.models import ModelScreen
from localcascade.tui.shelf import (
    Offer,
    Transfer,
    choose_recommended,
    choose_trial,
    filter_offers,
    judge_plan,
)
from tests.localcascade.shelves import (
    GIB,
    INSTALLED,
    LARGE,
    OFFERS,
    STRANGE,
    TINY,
    TOO_LARGE,
    FakeShelf,
    Stage,
    name_size,
    wait_for_rows,
    wait_until,
)

DRAWN: list[tuple[tuple[int, int], str]] = [
    ((120, 36), "cascade-dark"),
    ((80, 24), "cascade-light"),
    ((60, 16), "cascade-contrast"),
]


def read(app: Stage, selector: str) -> str:
    """The text of a line or a pane."""
    return str(app.screen.query_one(selector, Static).content)


async def _choose(keys: list[str], **shelf: Any) -> list[Any]:
    app = Stage(ModelScreen(FakeShelf(**shelf), "tiny"))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_for_rows(pilot)
        await pilot.press(*keys)
        await pilot.pause()
        return app.answers


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("keys", "offer"),
    [
        (["enter"], TINY),
        (["down", "enter"], LARGE),
        (["up", "up", "up", "up", "enter"], INSTALLED),
        (["pagedown", "enter"], TOO_LARGE),
        ([*"gold", "enter"], LARGE),
        ([*"experts 24", "enter"], INSTALLED),
        (["escape"], None),
    ],
)
async def test_enter_answers_with_the_model_under_the_cursor(
    keys: list[str], offer: Offer | None
) -> None:
    keys = ["space" if key == " " else key for key in keys]
    assert await _choose(keys) == [offer]


@pytest.mark.asyncio
async def test_what_nothing_matches_answers_nothing() -> None:
    assert await _choose([*"zzz", "enter"]) == []


@pytest.mark.asyncio
async def test_the_pane_tells_of_the_model_under_the_cursor() -> None:
    app = Stage(ModelScreen(FakeShelf(), "nemotron-cascade-2"))
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_for_rows(pilot)
        about = read(app, "#models-about")
        for words in ("gold-medal", "17.0 GiB of 23.0 GiB free", "262k tokens", "118", "58.8 GiB"):
            assert words in about
        assert read(app, "#models-hint").startswith("Enter fetches 58.8 GiB")
        await pilot.press("down")
        await pilot.pause()
        assert "2.31 bits a weight" in read(app, "#models-about")
        await pilot.press("up", "up")
        await pilot.pause()
        assert read(app, "#models-hint").startswith("Enter quantizes and opens")


@pytest.mark.asyncio
async def test_the_cursor_stays_on_its_model_while_rows_go() -> None:
    app = Stage(ModelScreen(FakeShelf(), "nemotron-cascade-2"))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_for_rows(pilot)
        await pilot.press("f", "i", "t")
        await pilot.resize_terminal(60, 16)
        await pilot.pause()
        rows = app.screen.query_one(OptionList)
        assert (rows.option_count, rows.highlighted) == (3, 1)
        await pilot.press("enter")
        assert app.answers == [LARGE]


@pytest.mark.asyncio
async def test_a_shelf_that_fails_says_why() -> None:
    error = ConfigError("models.toml", "tiny.repo", "unknown key", "Did you mean bundled?")
    app = Stage(ModelScreen(FakeShelf(error=error)))
    async with app.run_test() as pilot:
        await wait_until(pilot, lambda: "unknown key" in read(app, "#models-hint"))
        assert "Did you mean bundled?" in read(app, "#models-hint")
        app.screen.query_one(Input)
        await pilot.press("enter", "escape")
        assert app.answers == [None]


@pytest.mark.parametrize("width", [30, 44, 60, 76, 100, 130])
@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: ascii(offer.name))
def test_a_row_is_one_line_exactly_as_wide_as_it_may_be(offer: Offer, width: int) -> None:
    drawn = draw_row(offer, width).plain
    assert cell_len(drawn) == width
    assert drawn.isprintable()


def test_the_narrower_a_row_the_fewer_its_columns() -> None:
    columns = [choose_columns(width) for width in range(20, 120)]
    assert columns[0] == [] and columns[-1] == ["type", "size", "fit", "speed"]
    assert all(set(a) <= set(b) for a, b in pairwise(columns))
    assert next(c for c in columns if c) == ["fit"]


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in draw_row(STRANGE, 80).plain
    assert "\x1b" not in draw_details(STRANGE).plain


@pytest.mark.parametrize(
    ("text", "cells", "drawn"),
    [("abc", 5, "abc  "), ("abcdef", 4, "abc…"), ("漢字漢字", 5, "漢字…"), ("漢字漢", 4, "漢 …")],
)
def test_a_text_is_cut_by_cells(text: str, cells: int, drawn: str) -> None:
    assert fit_cells(text, cells) == drawn


def test_what_fits_is_recommended_and_the_bundled_can_be_tried() -> None:
    assert choose_recommended(OFFERS) == LARGE
    assert choose_recommended([TINY, TOO_LARGE, INSTALLED]) is None
    assert choose_trial(OFFERS) == TINY


def test_every_word_has_to_match_somewhere() -> None:
    assert filter_offers(OFFERS, "") == list(OFFERS)
    assert filter_offers(OFFERS, "GPU catalog") == [LARGE]
    assert filter_offers(OFFERS, "does not fit") == [TOO_LARGE]


CONFIG = {
    "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h",
    "hybrid_override_pattern": "MEM*EME", "vocab_size": 131072, "hidden_size": 2688,
    "max_position_embeddings": 262144, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "mamba_num_heads": 64,
    "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
    "n_routed_experts": 128, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712,
    "n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("gpu_gib", "ram_gib", "wishes", "fit"),
    [
        (24, 64, Wishes(), "gpu"),
        (0, 64, Wishes(), "memory"),
        (24, 64, Wishes(n_cpu_expert_layers=1), "experts"),
        (24, 64, Wishes(n_gpu_layers=3, n_cpu_expert_layers=0), "layers"),
        (24, 64, Wishes(n_gpu_layers=0), "memory"),
        (0, 1, Wishes(), "no"),
    ],
)
def test_a_plan_is_judged_by_where_things_are(
    tmp_path: Any, gpu_gib: int, ram_gib: int, wishes: Wishes, fit: str
) -> None:
    shape = make_config_shape(tmp_path, CONFIG, "q4_0")
    gpus = (Device("GPU 0", "gpu", gpu_gib * GIB, gpu_gib * GIB),) if gpu_gib else ()
    machine = Machine(gpus, Device("RAM", "cpu", ram_gib * GIB, ram_gib * GIB))
    assert judge_plan(plan(shape, machine, wishes)) == fit


def test_a_transfer_is_told_in_a_line() -> None:
    transfer = Transfer("Fetching", 3 * GIB, 60 * GIB, 50 * 2**20, 1167.4)
    assert describe_transfer(transfer) == (
        "Fetching  ·  3.0 GiB of 60.0 GiB  ·  50 MiB/s  ·  19 min left"
    )
    assert describe_transfer(Transfer("Asking the Hub", 0, 0)) == "Asking the Hub"


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (11_400, "3 h 10 min")]
)
def test_a_duration_is_for_people(seconds: float, words: str) -> None:
    assert write_duration(seconds) == words


@pytest.mark.parametrize(("size", "theme"), DRAWN, ids=name_size)
def test_it_looks_as_it_did(
    snap_compare: Callable[..., bool], size: tuple[int, int], theme: str
) -> None:
    app = Stage(ModelScreen(FakeShelf(), "nemotron-cascade-2"), theme)
    assert snap_compare(app, terminal_size=size, run_before=wait_for_rows)
