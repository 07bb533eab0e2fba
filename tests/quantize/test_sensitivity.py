"""Files of sensitivities: written, read, edited by hand, refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from quantize.errors import SensitivityError
from quantize.sensitivity import Sensitivity, name_role, read_sensitivity, write_sensitivity

SENSITIVITY = Sensitivity(
    {"blk.1.ffn_up.weight": 1.25, "blk.12.ffn_up.weight": 0.1, "output.weight": 3e-07},
    'a "model".gguf',
    ("ä.txt",),
    512,
    (0.01, 0.04),
)


def test_what_is_written_is_toml_and_reads_back_equal(tmp_path: Path) -> None:
    write_sensitivity(tmp_path / "s.toml", SENSITIVITY)
    document = tomllib.loads((tmp_path / "s.toml").read_text("utf-8"))
    assert document["factors"] == SENSITIVITY.factors
    assert document["probe"]["model"] == 'a "model".gguf'
    assert read_sensitivity(tmp_path / "s.toml") == SENSITIVITY
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


def test_what_was_not_probed_is_like_its_kind() -> None:
    assert SENSITIVITY.factor("blk.12.ffn_up.weight") == 0.1
    assert SENSITIVITY.factor("blk.3.ffn_up.weight") == pytest.approx((1.25 + 0.1) / 2)
    assert SENSITIVITY.factor("token_embd.weight") == 1.25
    assert name_role("blk.12.ffn_up.weight") == "ffn_up.weight"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[probe]\n[factors", "cannot be read"),
        ("\xff", "probe: is missing"),
        ("[factors]\na = 1\n", "probe: is missing"),
        ("factors = 3\n[probe]\n", "factors: is no table"),
        ("[probe]\n[factors]\n", "factors: is empty"),
        ("[probe]\n[factors]\na = -1\n", "factors.a: is -1, but must be"),
        ("[probe]\n[factors]\na = nan\n", "factors.a: is nan, but must be"),
        ("[probe]\n[factors]\na = true\n", "factors.a: is True, not a number"),
        ("[probe]\ntexts = 3\n[factors]\na = 1\n", "probe.texts: is no list"),
        ("[probe]\nn_tokens = 'x'\n[factors]\na = 1\n", "probe.n_tokens: is 'x'"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text if text != "\xff" else "")
    with pytest.raises(SensitivityError, match=r"s\.toml") as caught:
        read_sensitivity(path)
    assert says in caught.value.message
