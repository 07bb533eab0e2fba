"""The catalog: its figures against the geometry, and how strictly it is read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade import catalog
from localcascade.catalog import CatalogEntry, catalog_path, load_catalog, merge_tables
from localcascade.errors import ConfigError
from localcascade.store import bundled_checkpoint_folder
from quantize.families import Config
from quantize.families.nemotron_h import describe_nemotron_h
from quantize.safetensors import open_checkpoint


@pytest.fixture
def user_file(home: Path) -> Path:
    path = home / "config" / "models.toml"
    path.parent.mkdir()
    return path


def refuse(user_file: Path, text: str) -> ConfigError:
    user_file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_catalog()
    return caught.value


ENTRY = """
[mine]
summary = "Mine"
repo = "me/mine"
licence = { name = "MIT", url = "https://example.org/mit" }
parameters = { total = 100, active = 10 }
context_tokens = 2048
checkpoint_bytes = 200
modes = ["instruct"]
sampling = { temperature = 0, top_p = 1 }
"""


def test_it_names_the_three_models(home: Path) -> None:
    entries = load_catalog().entries
    assert list(entries) == ["tiny", "nemotron-cascade-2", "nemotron-3-nano"]
    assert entries["tiny"].bundled
    assert entries["nemotron-cascade-2"].repo == "nvidia/Nemotron-Cascade-2-30B-A3B"
    assert entries["nemotron-cascade-2"].modes == ("thinking", "instruct")


def count_nemotron_weights() -> tuple[int, int]:
    """Count total and active weights of Nemotron-3-Nano from its published geometry."""
    hidden, inner, heads, groups, state, conv = 2688, 4096, 64, 8, 128, 4
    channels = inner + 2 * groups * state
    mamba = hidden * (inner + channels + heads) + inner * hidden + channels * (conv + 1)
    mamba += 3 * heads + inner
    attention = hidden * (2 * 32 * 128 + 2 * 2 * 128)
    expert, shared, router = 2 * hidden * 1856, 2 * hidden * 3712, 128 * hidden
    embedding = 131072 * hidden
    always = 23 * (mamba + shared + router) + 6 * attention + 53 * hidden + embedding
    return always + embedding + 23 * 128 * expert, always + 23 * 6 * expert


@pytest.mark.parametrize("name", ["nemotron-cascade-2", "nemotron-3-nano"])
def test_figures_of_the_large_models_follow_from_their_geometry(home: Path, name: str) -> None:
    entry = load_catalog().entries[name]
    total, active = count_nemotron_weights()
    assert (entry.parameters.total, entry.parameters.active) == (total, active)
    assert entry.checkpoint_bytes == 2 * total
    assert entry.context_tokens == 262144


def test_figures_of_tiny_are_those_of_its_checkpoint(home: Path) -> None:
    entry = load_catalog().entries["tiny"]
    folder = bundled_checkpoint_folder("tiny")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    share = config["num_experts_per_tok"] / config["n_routed_experts"]
    total = active = n_bytes = 0
    with open_checkpoint(folder) as checkpoint:
        for tensor in checkpoint.tensors.values():
            n_bytes += tensor.n_bytes
            if tensor.name.endswith("e_score_correction_bias"):
                continue  # a buffer, which transformers does not count
            n_weights = 1
            for axis in tensor.shape:
                n_weights *= axis
            total += n_weights
            if ".experts." in tensor.name:
                active += round(n_weights * share)
            elif "embeddings" not in tensor.name:
                active += n_weights
    assert (entry.parameters.total, entry.parameters.active) == (total, active)
    assert entry.checkpoint_bytes == n_bytes
    assert entry.context_tokens == config["max_position_embeddings"]


def test_summaries_fit_a_line_of_a_terminal(home: Path) -> None:
    assert all(len(entry.summary) <= 60 for entry in load_catalog().entries.values())


def test_a_model_is_found_by_its_repository_too(home: Path) -> None:
    found = load_catalog().find_entry("NVIDIA/nemotron-cascade-2-30b-a3b")
    assert found is not None
    assert found[0] == "nemotron-cascade-2"
    assert load_catalog().find_entry("") is None


def test_the_users_file_overrides_single_keys(user_file: Path) -> None:
    before = load_catalog().entries
    user_file.write_text("[nemotron-cascade-2]\nsampling.top_p = 0.5\n", "utf-8")
    after = load_catalog().entries
    old, new = before["nemotron-cascade-2"], after["nemotron-cascade-2"]
    assert new.sampling.top_p == 0.5
    assert replace(new, sampling=old.sampling) == old
    assert after["tiny"] == before["tiny"]


def test_the_users_file_adds_entries(user_file: Path) -> None:
    user_file.write_text(ENTRY, "utf-8")
    entries = load_catalog().entries
    assert list(entries)[-1] == "mine"
    assert entries["mine"].parameters.active == 10
    assert entries["mine"].sampling.temperature == 0.0


@pytest.mark.parametrize(
    ("line", "key", "nearest"),
    [
        ("tiny.contxt_tokens = 1", "tiny.contxt_tokens", "context_tokens"),
        ("tiny.sampling.topp = 0.5", "tiny.sampling.topp", "top_p"),
        ("tiny.licence.nme = 'x'", "tiny.licence.nme", "name"),
        ("tiny.parameters.totl = 3", "tiny.parameters.totl", "total"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(
    user_file: Path, line: str, key: str, nearest: str
) -> None:
    error = refuse(user_file, line)
    assert (error.file, error.key) == (user_file, key)
    assert "unknown key" in error.message
    assert error.hint == f"Did you mean {nearest}?"


def test_an_unknown_key_without_a_near_one_lists_those_that_exist(user_file: Path) -> None:
    error = refuse(user_file, "tiny.zzzzzz = 1")
    assert "context_tokens" in error.hint
    assert "checkpoint_bytes" in error.hint


@pytest.mark.parametrize(
    ("line", "key", "problem"),
    [
        ('tiny.context_tokens = "4096"', "tiny.context_tokens", "integer"),
        ("tiny.context_tokens = 4096.0", "tiny.context_tokens", "integer"),
        ("tiny.context_tokens = true", "tiny.context_tokens", "integer"),
        ("tiny.context_tokens = 0", "tiny", "context_tokens must be positive"),
        ("tiny.checkpoint_bytes = -1", "tiny", "checkpoint_bytes must be positive"),
        ('tiny.modes = ["fast"]', "tiny.modes.0", "'thinking' or 'instruct'"),
        ("tiny.modes = []", "tiny", "modes must name"),
        ("tiny.sampling.top_p = 0", "tiny.sampling", "top_p"),
        ("tiny.sampling.top_p = nan", "tiny.sampling", "top_p"),
        ("tiny.sampling.temperature = inf", "tiny.sampling", "temperature"),
        ("tiny.sampling.temperature = -1", "tiny.sampling", "temperature"),
        ("tiny.parameters.active = 99_999_999", "tiny.parameters", "active"),
        ('tiny.licence.url = "javascript:alert(1)"', "tiny.licence", "https"),
        ('tiny.repo = "a/b"', "tiny", "either repo or bundled"),
        ('nemotron-3-nano.repo = "../../etc"', "nemotron-3-nano", "OWNER/NAME"),
        ("tiny.summary = 1979-05-27", "tiny.summary", "string"),
        ("tiny = 3", "tiny", "a table"),
        ('"../x".summary = ""', "../x", "not a name"),
        ('"".summary = ""', "", "not a name"),
        ("new.summary = 'x'", "new.", "required"),
    ],
)
def test_a_wrong_value_is_refused_by_key(
    user_file: Path, line: str, key: str, problem: str
) -> None:
    error = refuse(user_file, line)
    assert error.file == user_file
    assert error.key.startswith(key)
    assert problem in error.message


def test_bad_toml_names_file_and_line(user_file: Path) -> None:
    error = refuse(user_file, "[tiny]\ncontext_tokens = = 3\n")
    assert error.file == user_file
    assert "line 2" in error.message


def test_text_that_is_not_utf8_names_the_byte(user_file: Path) -> None:
    user_file.write_bytes(b"[tiny]\nsummary = '\xff'\n")
    with pytest.raises(ConfigError, match="byte 18"):
        load_catalog()


def test_a_wheel_has_the_catalog_in_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "localcascade"
    (package / "data").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    assert catalog_path() == tmp_path / "site" / "models.toml"
    (package / "data" / "models.toml").write_text("", "utf-8")
    assert catalog_path() == package / "data" / "models.toml"


TABLES: Any = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
).filter(lambda value: isinstance(value, dict))


def flatten(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    leaves: dict[tuple[str, ...], int] = {}
    for key, value in table.items():
        here = (*prefix, key)
        leaves |= flatten(value, here) if isinstance(value, dict) else {here: value}
    return leaves


@given(TABLES, TABLES)
def test_merging_keeps_what_is_above_and_what_is_not_covered_below(
    below: dict[str, Any], above: dict[str, Any]
) -> None:
    merged = flatten(merge_tables(below, above))
    top = flatten(above)
    assert top.items() <= merged.items()
    assert {path: merged[path] for path in merged.keys() - top.keys()}.items() <= (
        flatten(below).items()
    )


@given(TABLES)
def test_merging_with_nothing_changes_nothing(table: dict[str, Any]) -> None:
    assert merge_tables(table, {}) == table == merge_tables({}, table)


def test_an_entry_is_immutable(home: Path) -> None:
    entry: CatalogEntry = load_catalog().entries["tiny"]
    with pytest.raises(AttributeError):
        entry.summary = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        load_catalog().entries["tiny"] = entry  # type: ignore[index]


def test_relatives_share_geometry_and_presets(user_file: Path) -> None:
    user_file.write_text(f"{ENTRY}like = 'nemotron-cascade-2'", "utf-8")
    entries = load_catalog().entries
    for name in ("mine", "nemotron-3-nano"):
        assert entries[name].geometry == entries["nemotron-cascade-2"].geometry != {}
        assert entries[name].presets == entries["nemotron-cascade-2"].presets != {}
    for other in ("nowhere", "nemotron-3-nano", "mine"):
        error = refuse(user_file, f"{ENTRY}like = '{other}'")
        assert error.key == "mine.like"


def test_the_stored_geometry_is_that_of_the_counted_weights(home: Path) -> None:
    entry = load_catalog().entries["nemotron-cascade-2"]
    spec = describe_nemotron_h(Config(Path("models.toml"), entry.geometry), frozenset())
    buffers = (t for t in spec.tensors if t.name.endswith("exp_probs_b.bias"))
    weights = sum(len(t.sources) * math.prod(t.source_shape) for t in spec.tensors)
    assert weights - sum(math.prod(t.shape) for t in buffers) == entry.parameters.total
