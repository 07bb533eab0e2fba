"""Sensitivities: what errors of a matrix's weights cost the whole model.

The factor of a matrix is the mean KL divergence, in nats a token, that independent errors of its
weights cause, divided by their variance relative to the weights' mean square, in which a weight
counts as much as what it is multiplied with. Times the relative squared error of an encoding,
weighed by importance, it estimates what the encoding costs.

A file is TOML, written by `localcascade calibrate --probe` and readable by people:

    [probe]
    model = "nc2-q8_0.gguf"
    texts = ["chats.jsonl"]
    n_tokens = 2112
    variances = [0.01, 0.04]

    [factors]
    "blk.1.ffn_down_exps.weight" = 1.234
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from quantize.errors import OutputError, SensitivityError
from quantize.part import replace_file

INPUT_ERROR = 2.5e-4
"""Relative error that a product of quantized weights is to count with besides, where sensitivities
were probed. Errors much smaller than the probes' cost more than in proportion: where two experts
are as good, any change decides. Fitted on tiny: all of it in q8_0 diverges by 0.0010 to 0.0015
nats, of which errors of weights explain 0.0001; with Mamba, attention and output in bf16, by
0.0002."""
_BLOCK = re.compile(r"^blk\.\d+\.")
_HINT = "Measure it again with `localcascade calibrate --probe`."


@dataclass(frozen=True)
class Sensitivity:
    """What errors of the weights of a model's matrices cost."""

    factors: Mapping[str, float]
    """By the tensor's name in the model's GGUF: KL in nats over relative variance, 0 or more."""
    model: str = ""
    """Name of the file that was probed."""
    texts: tuple[str, ...] = ()
    n_tokens: int = 0
    """Tokens whose prediction was scored, per probe."""
    variances: tuple[float, ...] = field(default=())
    """Relative variances of the errors; a factor is the mean over probes with each."""

    def factor(self, tensor_name: str) -> float:
        """Give the sensitivity of one matrix.

        Args:
            tensor_name: Its name in the model's GGUF.

        Returns:
            As measured; for a matrix that was not probed, the mean over the same matrix of the
            other layers. If there is none, the largest of all: that is the token embeddings,
            which are looked up rather than multiplied with, and which everything else reads.
        """
        if tensor_name in self.factors:
            return self.factors[tensor_name]
        return self._by_role.get(name_role(tensor_name), self._largest)

    @property
    def input_error(self) -> float:
        """That of inputs rounded to 8 bits, by what it does to choices that are close."""
        return INPUT_ERROR

    @cached_property
    def _by_role(self) -> dict[str, float]:
        roles = {name_role(name) for name in self.factors}
        return {
            role: fmean(value for name, value in self.factors.items() if name_role(name) == role)
            for role in roles
        }

    @cached_property
    def _largest(self) -> float:
        return max(self.factors.values())


def name_role(tensor_name: str) -> str:
    """Name what a tensor does in its layer: "ffn_up_exps.weight" of "blk.1.ffn_up_exps.weight"."""
    return _BLOCK.sub("", tensor_name)


def read_sensitivity(path: Path) -> Sensitivity:
    """Read a file of sensitivities.

    Args:
        path: TOML as `calibrate --probe` writes it, perhaps edited.

    Raises:
        SensitivityError: It is no such file; names the key.
    """
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise SensitivityError(path, "", f"cannot be read: {error}", _HINT) from error
    probe = _check_table(path, document, "probe")
    factors = _check_table(path, document, "factors")
    if not factors:
        raise SensitivityError(path, "factors", "is empty", _HINT)
    return Sensitivity(
        {name: _check_number(path, f"factors.{name}", value) for name, value in factors.items()},
        str(probe.get("model", "")),
        tuple(map(str, _check_list(path, probe, "texts"))),
        int(_check_number(path, "probe.n_tokens", probe.get("n_tokens", 0))),
        tuple(
            _check_number(path, "probe.variances", v) for v in _check_list(path, probe, "variances")
        ),
    )


def _check_table(path: Path, document: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = document.get(key)
    if not isinstance(table, dict):
        problem = "is missing" if table is None else "is no table"
        raise SensitivityError(path, key, problem, _HINT)
    return table


def _check_list(path: Path, probe: Mapping[str, Any], key: str) -> list[Any]:
    values = probe.get(key, [])
    if not isinstance(values, list):
        raise SensitivityError(path, f"probe.{key}", "is no list", _HINT)
    return values


def _check_number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SensitivityError(path, key, f"is {value!r}, not a number", _HINT)
    if not (math.isfinite(value) and value >= 0):
        raise SensitivityError(path, key, f"is {value}, but must be finite and not negative", _HINT)
    return float(value)


def format_sensitivity(sensitivity: Sensitivity) -> str:
    """Write sensitivities as TOML."""
    # A JSON text or list of texts or numbers is TOML as well.
    lines = [
        "# KL divergence in nats a token for each unit of relative error of a matrix's weights.",
        "[probe]",
        f"model = {json.dumps(sensitivity.model)}",
        f"texts = {json.dumps(list(sensitivity.texts))}",
        f"n_tokens = {sensitivity.n_tokens}",
        f"variances = {json.dumps(list(sensitivity.variances))}",
        "",
        "[factors]",
        *(f"{json.dumps(name)} = {value!r}" for name, value in sensitivity.factors.items()),
    ]
    return "\n".join(lines) + "\n"


def write_sensitivity(path: Path, sensitivity: Sensitivity) -> None:
    """Write a file of sensitivities.

    Args:
        path: Replaced only by a complete file.
        sensitivity: What to write.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        replace_file(path, format_sensitivity(sensitivity).encode("utf-8"))
    except OSError as error:
        problem = f"{path}: cannot be written: {error.strerror}"
        raise OutputError(problem, "Free some space, or choose another place.") from error
