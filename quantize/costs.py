"""What a choice costs: the divergence it is expected to add, matrix by matrix.

The cost of a matrix is its sensitivity times the relative error of its output. The sensitivity is
KL divergence, in nats a token, for each unit of relative variance added to that output; the error
is that of the weights, weighed by the importance of their columns, because the output's error is
the sum over the columns of independent ones. Both are small numbers of one kind, so costs add.

They add up only to first order. At 2 bits the divergence of the whole is more than the sum of the
parts, since every layer works on what the ones before it have already disturbed. The order of two
recipes is right where the sum is not; the finished file is to be measured (`compare`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Protocol

from quantize.pairs import PLAIN

TYPE_ERRORS: Mapping[str, tuple[float | None, float]] = {
    "bf16": (2.74e-6, 2.74e-6), "q8_0": (2.88e-5, 2.88e-5), "q6_k": (3.17e-4, 2.64e-4),
    "q5_1": (1.43e-3, 9.55e-4), "q5_0": (1.83e-3, 1.48e-3), "q5_k": (1.31e-3, 1.09e-3),
    "q4_1": (6.13e-3, 4.06e-3), "q4_0": (7.42e-3, 6.02e-3), "q4_k": (5.11e-3, 4.19e-3),
    "iq4_nl": (5.81e-3, 4.95e-3), "iq4_xs": (5.90e-3, 5.06e-3), "mxfp4": (1.24e-2, 1.23e-2),
    "q3_k": (2.28e-2, 1.81e-2), "iq3_s": (2.75e-2, 1.45e-2), "iq3_xxs": (4.55e-2, 2.37e-2),
    "q2_k": (8.81e-2, 5.59e-2), "iq2_s": (7.03e-2, 5.10e-2), "iq2_xs": (None, 6.79e-2),
    "iq2_xxs": (None, 8.84e-2), "q2_0": (0.123, 0.109), "iq1_m": (None, 0.153),
    "iq1_s": (None, 0.194),
}  # fmt: skip
"""Type -> relative squared error of Gaussian rows (sigma 0.02, 2816 wide) in our encoders and
ggml's: without importance, and with importance of log-normal spread 1. None: must not be encoded
without. Types that another one beats everywhere, or that no GPU backend but one has, are left out.
Source: measured; tests/quantize/test_costs.py measures it again."""

OTHER_ERRORS: Mapping[str, float] = {
    "f32": 0.0, "f16": 4.3e-8, "nvfp4": 6.72e-3, "tq1_0": 0.655, "tq2_0": 0.655, "q1_0": 0.362,
}  # fmt: skip
"""The same for types that are not chosen, but that a recipe may name."""

ROUNDED_INPUT_ERROR = 3e-5
"""Relative error that a product of quantized weights has besides: its inputs are rounded to 8 bits.
Of Gaussian inputs in blocks of 32 it is 2.2e-5, of 256 it is 4e-5."""

EXPERT_NATS = 3.1
"""Divergence, in nats, for each unit of relative error of all routed experts. Two files of the
30 B model agree on it: 4.5-bit experts of error 0.0058 at 0.018 nats, 2.25-bit ones of error 0.514
at 1.60 (measured by others on WikiText-2; docs/log.md)."""
UP_SHARE = 4 / 7
"""Of an expert's sensitivity, the part that errors of `up` get. Behind relu squared, a relative
error e of a Gaussian input is one of 4/3 e; `down` passes its own on as it is."""

EXPERTS_UP, EXPERTS_DOWN = "ffn_up_exps", "ffn_down_exps"
"""Kinds of matrices, as in the names of their tensors: stacks of all routed experts of a layer."""

ROLE_NATS: Mapping[str, float] = {
    "ffn_up_exps": EXPERT_NATS * UP_SHARE, "ffn_down_exps": EXPERT_NATS * (1 - UP_SHARE),
    "ffn_up_shexp": EXPERT_NATS * UP_SHARE, "ffn_down_shexp": EXPERT_NATS * (1 - UP_SHARE),
    "ffn_up": EXPERT_NATS * UP_SHARE, "ffn_down": EXPERT_NATS * (1 - UP_SHARE),
    "ffn_latent_down": 3.0, "ffn_latent_up": 3.0, "ssm_in": 4.0, "ssm_out": 4.0,
    "attn_q": 1.0, "attn_k": 1.0, "attn_v": 2.0, "attn_output": 2.0,
    "token_embd": 1.5, "output": 3.0,
}  # fmt: skip
"""Kind of matrix -> nats for each unit of relative error in all of its layers together, where
nothing was probed. The experts' is measured; an expert that every token passes counts as much as
all routed ones; the rest is a judgement that keeps attention and Mamba high, where a model of this
family has 3 % of its weights."""
BEFORE_ATTENTION = 2.0
"""A Mamba layer just before attention counts so many times: what attention selects by is its."""

TRIM_SPREAD = 1.0
"""Of the logarithm of what neurons contribute, where it was not measured; as of a log-normal
distribution. On tiny it is three times as much, so that trimming costs less than is said."""

_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.weight")


class Sensitivity(Protocol):
    """How much the model minds errors, matrix by matrix."""

    def factor(self, tensor_name: str) -> float:
        """KL divergence in nats a token for each unit of relative error of a matrix's output."""

    @property
    def input_error(self) -> float:
        """Relative error that a product of quantized weights is to count with besides."""


@dataclass(frozen=True)
class AssumedSensitivity:
    """The sensitivity of a model that nobody has probed: by kind of matrix and place."""

    tensor_names: frozenset[str]
    """Names of the model's matrices."""

    def factor(self, tensor_name: str) -> float:
        """Share out the nats of the matrix's kind over the layers that have one."""
        layer, kind = split_name(tensor_name)
        weight = self._weigh(layer, kind)
        total = sum(self._weigh(i, kind) for i in self._list_layers(kind))
        return ROLE_NATS.get(kind, EXPERT_NATS) * weight / total

    @property
    def input_error(self) -> float:
        """That of the rounding alone."""
        return ROUNDED_INPUT_ERROR

    def _list_layers(self, kind: str) -> list[int | None]:
        names = map(split_name, self.tensor_names)
        return [layer for layer, own_kind in names if own_kind == kind]

    def _weigh(self, layer: int | None, kind: str) -> float:
        before = layer is not None and f"blk.{layer + 1}.attn_q.weight" in self.tensor_names
        return BEFORE_ATTENTION if before and kind.startswith("ssm_") else 1.0


@dataclass(frozen=True)
class WeighedSensitivity:
    """A sensitivity of which some kinds of matrix count more, or less, than it says."""

    base: Sensitivity
    weights: Mapping[str, float]
    """Kind of matrix -> factor on its sensitivity; the others keep theirs."""

    def factor(self, tensor_name: str) -> float:
        """Weigh what the base says of a matrix."""
        return self.base.factor(tensor_name) * self.weights.get(split_name(tensor_name)[1], 1.0)

    @property
    def input_error(self) -> float:
        """That of the base."""
        return self.base.input_error


def split_name(tensor_name: str) -> tuple[int | None, str]:
    """Split "blk.3.ffn_up_exps.weight" into 3 and "ffn_up_exps"; None where there is no layer."""
    match = _NAME.fullmatch(tensor_name)
    if match is None:
        return None, tensor_name
    return int(match[1]) if match[1] else None, match[2]


@dataclass(frozen=True)
class Costs:
    """Expected divergence of every choice for one model."""

    sensitivity: Sensitivity
    weighted: frozenset[str] = frozenset()
    """Matrices whose columns have a known importance; the others' count the same."""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Matrix -> type -> relative error, where the weights were looked at and the type was tried."""
    contributions: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """Layer -> what its experts' neurons contribute, least first, as shares of the whole summed
    up: element i is what trimming i neurons loses. Where their activity is known."""

    def find_error(self, tensor_name: str, type_name: str) -> float | None:
        """Expected relative error of a matrix in a type; None if it cannot be encoded in it."""
        plain, weighted = TYPE_ERRORS.get(type_name, (None, None))
        assumed = weighted if tensor_name in self.weighted else plain
        return self.measured.get(tensor_name, {}).get(type_name, assumed)

    def judge_error(self, tensor_name: str, type_name: str) -> float:
        """Expected relative error of a matrix in a type that somebody else chose for it."""
        error = self.find_error(tensor_name, type_name)
        if error is not None:
            return error
        # Without importance it is refused, so there will be importance.
        return TYPE_ERRORS[type_name][1] if type_name in TYPE_ERRORS else OTHER_ERRORS[type_name]

    def find_trim_error(self, layer: int, n_kept: int, n_neurons: int) -> float:
        """Relative error of a layer's experts when each keeps its `n_kept` best neurons."""
        n_dropped = max(0, n_neurons - n_kept)
        if layer in self.contributions:
            return self.contributions[layer][n_dropped]
        known = f"blk.{layer}.ffn_down_exps.weight" in self.weighted
        return estimate_trim_error(n_dropped / n_neurons, known)

    def find_floor(self, tensor_name: str, type_name: str) -> float:
        """Relative error that a matrix's output has beside that of the weights."""
        is_looked_up = tensor_name == "token_embd.weight"
        # Products of plain types take inputs as precise as the weights.
        return 0.0 if is_looked_up or type_name in PLAIN else self.sensitivity.input_error

    def find_cost(self, tensor_name: str, error: float) -> float:
        """Divergence in nats a token that a relative error of one matrix's output adds."""
        return self.sensitivity.factor(tensor_name) * error


def estimate_trim_error(share: float, known: bool) -> float:
    """Estimate what the least important neurons contribute.

    Args:
        share: Of the neurons that are dropped, from 0 to below 1.
        known: Whether their importance is; else they are as good as any.

    Returns:
        Their share of the output's mean square.
    """
    if not known or share <= 0:
        return max(0.0, share)
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(share) - TRIM_SPREAD)


def assume_costs(tensor_names: frozenset[str], weighted: frozenset[str] = frozenset()) -> Costs:
    """Make the costs of a model whose weights and sensitivity nobody has looked at."""
    return Costs(AssumedSensitivity(tensor_names), weighted)
