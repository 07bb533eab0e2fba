"""Recipes as TOML: what is written reads back, and what is wrong is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.choices import Choices
from quantize.errors import RecipeError
from quantize.recipe_file import format_layers, format_recipe, parse_recipe, read_recipe

KINDS = ("ffn_up_exps", "ffn_down_exps", "ssm_in")
MATRICES = (
    "token_embd.weight",
    *(f"blk.{i}.{kind}.weight" for i in range(12) for kind in KINDS),
    "output.weight",
)
TYPES = st.sampled_from(["q8_0", "iq3_s", "q2_0"])


@given(
    st.lists(TYPES, min_size=len(MATRICES), max_size=len(MATRICES)),
    st.dictionaries(st.integers(0, 11), st.sampled_from([1792, 1856, 2048])),
    st.sampled_from([None, 2816]),
    st.sampled_from([None, 3840]),
)
def test_choices_survive_the_round_trip(
    types: list[str], widths: dict[int, int], n_embd: int | None, shared: int | None
) -> None:
    choices = Choices(dict(zip(MATRICES, types, strict=True)), n_embd, widths, shared)
    text = format_recipe(choices, ["A comment.", ""])
    assert text.startswith("# A comment.\n#\n")
    read = parse_recipe(tomllib.loads(text), Path("recipe.toml")).choose(MATRICES)
    assert read == choices


def test_one_type_everywhere_takes_one_rule_a_kind() -> None:
    text = format_recipe(
        Choices(dict.fromkeys(MATRICES, "q4_k"), None, dict.fromkeys(range(12), 8))
    )
    tables = tomllib.loads(text)
    assert len(tables["rule"]) == len(KINDS) + 2
    assert tables["width"] == [{"experts": 8}]
    assert "layers" not in text


def test_the_last_rule_that_matches_holds() -> None:
    rules = [
        {"match": "*", "type": "Q4_K"},
        {"match": "blk.*.ffn_*", "type": "q2_k", "layers": "1, 3-5"},
        {"match": "*", "type": "q8_0", "layers": "4"},
    ]
    choices = parse_recipe({"rule": rules}, Path("r.toml")).choose(MATRICES)
    assert choices.types["output.weight"] == "q4_k"
    assert choices.types["blk.3.ffn_up_exps.weight"] == "q2_k"
    assert choices.types["blk.2.ffn_up_exps.weight"] == "q4_k"
    assert choices.types["blk.3.ssm_in.weight"] == "q4_k"
    assert choices.types["blk.4.ffn_up_exps.weight"] == "q8_0"


@given(st.sets(st.integers(0, 200), min_size=1))
def test_layers_are_spelled_so_that_they_read_back(layers: set[int]) -> None:
    rules = {"rule": [{"match": "*", "type": "q8_0", "layers": format_layers(layers)}]}
    assert parse_recipe(rules, Path("r.toml")).types[0].layers == layers


RULE = '[[rule]]\nmatch = "*"\ntype = "q8_0"\n'


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("rule = 3", "rule", "no list of tables"),
        ("", "rule", "there is none"),
        ("x = [", "", "not TOML"),
        (f"colour = 1\n{RULE}", "colour", "unknown key"),
        (f"{RULE}colour = 1", "rule[0].colour", "unknown key"),
        ('[[rule]]\nmatch = "*"', "rule[0].type", "missing"),
        (f'{RULE}[[rule]]\nmatch = "*"\ntype = "q9"', "rule[1].type", "'q9'"),
        ("[[rule]]\nmatch = 1\ntype = 'q8_0'", "rule[0].match", "no text"),
        (f"n_embd = 0\n{RULE}", "n_embd", "0 is no width"),
        (f"n_embd = 2816.0\n{RULE}", "n_embd", "2816.0 is no width"),
        (f"shared_width = true\n{RULE}", "shared_width", "True is no width"),
        (f"{RULE}[[width]]\nexperts = '9'", "width[0].experts", "no width"),
        (f"{RULE}layers = '1-'", "rule[0].layers", "lists no layers"),
        (f"{RULE}layers = '5-2'", "rule[0].layers", "5-2 is no range"),
        (f"{RULE}layers = '1-999'", "rule[0].layers", "1-999 is no range"),
        (f"{RULE}layers = 3.5", "rule[0].layers", "lists no layers"),
    ],
)
def test_what_is_wrong_is_named(text: str, key: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert caught.value.key == key
    assert caught.value.message.startswith(f"{path}: ")
    assert says in caught.value.message


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("binary", "nowhere"):
        with pytest.raises(RecipeError, match=name):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("match", "says"), [("blk.*.attn_q.weight", "no matrix"), ("blk.*", "none is for token_embd")]
)
def test_rules_must_cover_the_model_and_nothing_else(match: str, says: str) -> None:
    rules = [{"match": match, "type": "q8_0"}]
    if says == "no matrix":
        rules.insert(0, {"match": "*", "type": "q8_0"})
    with pytest.raises(RecipeError, match=says):
        parse_recipe({"rule": rules}, Path("r.toml")).choose(MATRICES)
