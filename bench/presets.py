"""Solve the recipes that the catalog has for cards of usual sizes, and print them for models.toml.

    python bench/presets.py >> models.toml      # after taking the old ones out

They are for a context of 32,768 tokens in f16 and an importance matrix, with the sensitivities and
errors that quantize/costs.py assumes. A test compares models.toml with a fresh solution.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from localcascade.catalog import load_catalog
from localcascade.cli.recipes import Request, measure_context_bytes
from quantize.allocate import allocate
from quantize.choices import Choices
from quantize.costs import assume_costs
from quantize.draft import Draft
from quantize.families import Config
from quantize.recipe_file import format_recipe

MODEL = "nemotron-cascade-2"
CARDS_GIB = (24, 20, 16, 12)
STEP_BYTES = 32 << 20
"""File sizes are multiples of it, so that a small change of the memory plan changes no preset."""


def open_catalog_draft() -> Draft:
    """The model as the catalog knows it."""
    entry = load_catalog().entries[MODEL]
    config = Config(Path("models.toml"), entry.geometry)
    return Draft(config, MODEL, filler_bytes=entry.tokenizer_bytes)


def solve_preset(draft: Draft, size_bytes: int) -> Choices:
    """Solve one preset: as if every matrix had a known importance, and none was looked at."""
    names = frozenset(draft.matrices)
    return allocate(draft, assume_costs(names, names), size_bytes).choices


def main() -> None:
    """Print a table of models.toml for each card."""
    draft = open_catalog_draft()
    for card_gib in CARDS_GIB:
        room = (card_gib << 30) - measure_context_bytes(draft, Request(ctx=32768))
        size_bytes = room // STEP_BYTES * STEP_BYTES
        recipe = tomllib.loads(format_recipe(solve_preset(draft, size_bytes)))
        print(f"\n[{MODEL}.presets.{card_gib}G]\nsize_bytes = {size_bytes}")
        print(f"\n[{MODEL}.presets.{card_gib}G.recipe]")
        for key, value in recipe.items():
            print(f"{key} = {_spell_tables(value) if isinstance(value, list) else value}")


def _spell_tables(tables: list[dict[str, str | int]]) -> str:
    lines = (", ".join(f"{k} = {json.dumps(v)}" for k, v in table.items()) for table in tables)
    return "[\n" + "".join(f"  {{ {line} }},\n" for line in lines) + "]"


if __name__ == "__main__":
    main()
