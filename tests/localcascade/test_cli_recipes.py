"""`localcascade quantize` with a budget, a recipe or a preset, as a shell sees it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from localcascade.catalog import load_catalog
from localcascade.cli.app import run_arguments
from localcascade.cli.recipes import Request, measure_context_bytes
from localcascade.cli.units import parse_size
from quantize.allocate import allocate
from quantize.costs import assume_costs
from quantize.draft import Draft
from quantize.families import Config
from quantize.gguf import open_gguf
from quantize.recipe_file import parse_recipe, read_recipe
from tests.soak import SOAK

LARGE = "nemotron-cascade-2"
GIB = 1 << 30


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCASCADE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOCALCASCADE_OFFLINE", "1")


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_arguments(["quantize", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_card_of_16_gib_is_filled_offline_and_without_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = report(capsys, LARGE, "--fit", "16G", "--dry-run")
    assert 0 <= found["budget_bytes"] - found["file_bytes"] < 1 << 20
    assert found["least_expected_kl"] <= found["expected_kl"] <= found["least_expected_kl"] * 1.001
    # What the catalog says of the model: 31.6 billion weights, 93 % of them the experts'.
    n_experts = sum(tensor["bytes"] for tensor in found["tensors"] if tensor["role"] == "experts")
    assert found["expert_bits_per_weight"] == pytest.approx(
        8 * n_experts / (23 * 128 * 2 * 2688 * 1856), abs=1e-4
    )
    data = sum(tensor["bytes"] for tensor in found["tensors"])
    assert 0 < found["file_bytes"] - data < 9 << 20
    memory = found["memory"]
    assert memory["fits"] and memory["context"] == 32768 and memory["cpu_expert_layers"] == []
    card = memory["devices"][0]
    assert card["total_bytes"] == 16 * GIB
    # Wholly on the card: all but the token embeddings and the header.
    embeddings = next(t["bytes"] for t in found["tensors"] if t["name"] == "token_embd.weight")
    assert memory["weights_bytes"] == data
    assert card["weights_bytes"] >= data - embeddings


def test_a_longer_context_leaves_less_for_weights() -> None:
    draft = open_draft()
    short, long = (measure_context_bytes(draft, Request(ctx=n)) for n in (4096, 262144))
    cheap = measure_context_bytes(draft, Request(ctx=262144, kv="q8_0"))
    # The cache takes 6 KiB a token in f16; the scores' mask and the like come on top.
    assert 6144 * (262144 - 4096) <= long - short < 1.5 * 6144 * 262144
    assert short < cheap < long
    # Each sequence has a recurrent state of its own, 47.6 MiB.
    many = measure_context_bytes(draft, Request(ctx=4096, parallel=3))
    assert many - short == pytest.approx(2 * 47.6 * (1 << 20), rel=0.1)


def test_what_is_planned_is_what_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "out.gguf"
    found = report(capsys, "tiny", "--size", "4M", "--dry-run", "-o", str(plan))
    made = report(capsys, "tiny", str(out), "--recipe", str(plan))
    assert made["file_bytes"] == found["file_bytes"] == out.stat().st_size <= 4 << 20
    with open_gguf(out) as file:
        listed = {t["name"]: (t["shape"], t["type"], t["bytes"]) for t in found["tensors"]}
        assert listed == {
            name: (list(tensor.shape), tensor.type.name, tensor.n_bytes)
            for name, tensor in file.tensors.items()
        }
        stored = parse_recipe(tomllib.loads(str(file.metadata["localcascade.recipe"])), out)
    names = [name for name, (_, kind, _) in listed.items() if kind != "f32"]
    assert stored.choose(names) == read_recipe(plan).choose(names)


def test_the_table_shows_every_kind_and_its_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["quantize", LARGE, "--recipe", "16G", "--dry-run"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    kinds = {line.split()[0] for line in lines[1:-4]}
    assert kinds == {
        "ffn_up_exps", "ffn_down_exps", "ffn_up_shexp", "ffn_down_shexp", "ssm_in", "ssm_out",
        "attn_q", "attn_k", "attn_v", "attn_output", "token_embd", "output",
    }  # fmt: skip
    assert lines[-4].startswith("File: ") and "Routed experts: " in lines[-3]
    assert "sizes from the catalog, its tokenizer estimated at 8.00 MiB" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([LARGE, "--fit", "4G", "--dry-run"], 4, "--fit 4G: the least that does is"),
        ([LARGE, "--size", "1G", "--dry-run"], 4, "With an importance matrix"),
        ([LARGE, "--fit", "16GB", "--dry-run"], 2, "GB means two things"),
        ([LARGE, "--fit", "16G", "--kv", "q9", "--dry-run"], 2, "--kv q9"),
        ([LARGE, "--fit", "16G", "--size", "9G", "--dry-run"], 2, "--fit and --size"),
        ([LARGE, "--fit", "16G", "--pad", "--dry-run"], 2, "--fallback and --pad"),
        ([LARGE, "--dry-run"], 2, "--dry-run needs"),
        ([LARGE, "--recipe", "17G", "--dry-run"], 2, "Presets of nemotron-cascade-2: 24G, 20G"),
        ([LARGE, "--fit", "16G"], 2, "OUT.gguf is missing"),
        ([LARGE, "OUT", "--fit", "16G"], 3, "localcascade pull"),
        (["no-such", "--fit", "16G", "--dry-run"], 3, "no-such"),
        (["tiny", "OUT", "--recipe", "BAD"], 5, "rule[0].colour: unknown key"),
        (["tiny", "OUT", "--recipe", "OTHER"], 5, "rule[1]: 'blk.9.ssm_in.weight' is no matrix"),
        (["tiny", "OUT", "--recipe", "WIDE"], 5, "n_embd"),
    ],
)
def test_refusals_have_their_code_and_leave_nothing(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = '[[rule]]\nmatch = "*"\ntype = "q8_0"\n'
    (tmp_path / "BAD").write_text(f"{rule}colour = 1")
    (tmp_path / "OTHER").write_text(rule + rule.replace('"*"', '"blk.9.ssm_in.weight"'))
    (tmp_path / "WIDE").write_text(f"n_embd = 16\n{rule}")
    places = {name: str(tmp_path / name) for name in ("BAD", "OTHER", "WIDE")}
    places["OUT"] = str(tmp_path / "out.gguf")
    assert run_arguments(["quantize", *(places.get(a, a) for a in arguments)]) == code
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""
    assert not list(tmp_path.glob("out.gguf*"))


def test_the_smallest_budget_it_names_is_one_that_works(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_arguments(["quantize", "tiny", "--size", "1K", "--dry-run"]) == 4
    need = next(word for word in capsys.readouterr().err.split() if word.isdigit())
    found = report(capsys, "tiny", "--size", need, "--dry-run")
    assert found["file_bytes"] == int(need)
    assert run_arguments(["quantize", "tiny", "--size", str(int(need) - 1), "--dry-run"]) == 4


# ---- presets -----------------------------------------------------------------------------------


def open_draft() -> Draft:
    entry = load_catalog().entries[LARGE]
    return Draft(Config(Path("models.toml"), entry.geometry), LARGE, (), entry.tokenizer_bytes)


@pytest.mark.parametrize("card", ["24G", "20G", "16G", "12G"])
def test_presets_fill_their_card(card: str) -> None:
    draft, preset = open_draft(), load_catalog().entries[LARGE].presets[card]
    choices = parse_recipe(preset.recipe, Path("models.toml")).choose(draft.matrices)
    n_bytes = draft.measure_file(choices)
    assert 0 <= preset.size_bytes - n_bytes < 16 << 20
    room = parse_size(card) - measure_context_bytes(draft, Request(ctx=32768))
    assert 0 <= room - n_bytes < 64 << 20


@pytest.mark.parametrize("card", ["24G", "20G", "16G", "12G"] if SOAK else ["16G"])
def test_presets_are_what_is_solved_today(card: str) -> None:
    # `python bench/presets.py` prints them anew.
    draft = open_draft()
    preset = load_catalog().entries[LARGE].presets[card]
    names = frozenset(draft.matrices)
    found = allocate(draft, assume_costs(names, names), preset.size_bytes)
    rules = parse_recipe(preset.recipe, Path("models.toml"))
    assert rules.choose(draft.matrices) == found.choices


def test_help_of_quantize_loads_nothing_heavy() -> None:
    code = (
        "import sys; from localcascade.cli.app import run_arguments; "
        "run_arguments(['quantize', '--help']); "
        "print([m for m in ('numpy', 'llama_cpp', 'textual') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
