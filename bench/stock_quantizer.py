"""The best file that llama-quantize can make: its own recipes, and every mix of types by group.

Its widths' fallbacks are part of it: what a type does not fit becomes another one. For the mixes
each group of matrices is tried in each type alone, and the sums of these divergences rank all
recipes that are small enough; the first few are made and measured. That search looks at the very
text that decides, which flatters it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path

from quantize.ggml import type_named
from quantize.gguf import open_gguf

OWN_RECIPES = (
    "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ3_S",
    "IQ4_NL", "IQ4_XS", "Q4_0", "Q4_1", "MXFP4_MOE", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S",
    "Q5_K_M", "Q6_K", "Q8_0",
)  # fmt: skip
"""Recipes of llama-quantize. On tiny the other IQ ones are IQ4_NL but for the five matrices that
are 256 wide, and they take minutes to prepare."""
GROUPS: Mapping[str, str] = {
    "ffn_up_exps": "ffn_up_exps", "ffn_down_exps": "ffn_down_exps", "shexp": "_shexp",
    "ssm": "ssm_(in|out)", "attn": "attn_(q|k|v|output)", "token_embd": "", "output": "",
}  # fmt: skip
"""Group -> pattern of --tensor-type; the last two have options of their own."""
TYPES = ("mxfp4", "iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0")
"""Those that fit every width of tiny; q4_0 is no smaller than iq4_nl, and worse."""
PATIENCE = 4
"""Mixes that are made and measured at each size."""

Measure = Callable[[Path], float]


@dataclass(frozen=True)
class Made:
    """A file of llama-quantize, measured and deleted."""

    recipe: str
    file_bytes: int
    mean_kl: float


@dataclass
class StockQuantizer:
    """llama-quantize on one model and one importance matrix."""

    binary: Path
    source: Path
    """The model in f32."""
    importance: Path
    measure: Measure
    folder: Path
    _known: dict[tuple[str, ...], float] = field(default_factory=dict)
    """Types of all tensors -> divergence; equal types are equal files."""

    def find_best(self, limit_bytes: int) -> Made | None:
        """Find its best file of at most so many bytes; None if it makes none so small."""
        mixes = [self._make_mix(mix) for mix in self._rank_mixes(limit_bytes)[:PATIENCE]]
        files = [made for made in (*self._own_files, *mixes) if made.file_bytes <= limit_bytes]
        return min(files, key=lambda made: made.mean_kl, default=None)

    @cached_property
    def least_bytes(self) -> int:
        """Size of the smallest file it makes."""
        return min(made.file_bytes for made in self._own_files)

    @cached_property
    def _own_files(self) -> list[Made]:
        plain = [self._make(f"{name}", name, ()) for name in OWN_RECIPES]
        pure = [self._make(f"{name} --pure", name, ("--pure",)) for name in OWN_RECIPES]
        return [made for made in (*plain, *pure) if made]

    @cached_property
    def _trials(self) -> dict[str, dict[str, float]]:
        """Group -> type -> divergence with all else in q8_0."""
        rest = dict.fromkeys(GROUPS, "q8_0")
        return {
            group: {name: self._make_mix(rest | {group: name}).mean_kl for name in TYPES}
            for group in GROUPS
        }

    @cached_property
    def _sizes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the file beside the groups, and weights of each group."""
        with open_gguf(self.source) as file:
            members = dict.fromkeys(GROUPS, 0)
            for name, tensor in file.tensors.items():
                if group := find_group(name):
                    members[group] += prod(tensor.shape)
            return self.source.stat().st_size - 4 * sum(members.values()), members

    def _rank_mixes(self, limit_bytes: int) -> list[dict[str, str]]:
        """All mixes that are small enough, the one that should diverge least first."""
        rest_bytes, n_weights = self._sizes
        bits = {name: 8 * type_named(name).row_bytes(32) / 32 for name in TYPES}
        ranked = []
        for types in product(TYPES, repeat=len(GROUPS)):
            mix = dict(zip(GROUPS, types, strict=True))
            n_bytes = rest_bytes + sum(n_weights[g] * bits[t] / 8 for g, t in mix.items())
            if n_bytes <= limit_bytes:
                ranked.append((sum(self._trials[g][t] for g, t in mix.items()), types))
        ranked.sort()
        return [dict(zip(GROUPS, types, strict=True)) for _, types in ranked[:PATIENCE]]

    def _make_mix(self, mix: Mapping[str, str]) -> Made:
        options = ["--token-embedding-type", mix["token_embd"]]
        options += ["--output-tensor-type", mix["output"]]
        for group, pattern in GROUPS.items():
            options += ["--tensor-type", f"{pattern}={mix[group]}"] if pattern else []
        made = self._make(" ".join(f"{g}={t}" for g, t in mix.items()), "Q8_0", options)
        if made is None:
            sys.exit(f"llama-quantize refused {mix}")
        return made

    def _make(self, recipe: str, name: str, options: tuple[str, ...] | list[str]) -> Made | None:
        """Make a file and measure it, unless one with the same types was; None if refused."""
        output = self.folder / "stock.gguf"
        command = [self.binary, "--imatrix", self.importance, *options, self.source, output, name]
        ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if ran.returncode:
            return None
        with open_gguf(output) as file:
            types = tuple(tensor.type.name for tensor in file.tensors.values())
        if types not in self._known:
            self._known[types] = self.measure(output)
        made = Made(recipe, output.stat().st_size, self._known[types])
        output.unlink()
        return made


def find_group(tensor_name: str) -> str | None:
    """Name the group that a tensor is in; None for what is not quantized."""
    name = tensor_name.removesuffix(".weight").rpartition(".")[2]
    kinds = {
        "ffn_up_exps": "ffn_up_exps", "ffn_down_exps": "ffn_down_exps", "ffn_up_shexp": "shexp",
        "ffn_down_shexp": "shexp", "ssm_in": "ssm", "ssm_out": "ssm", "attn_q": "attn",
        "attn_k": "attn", "attn_v": "attn", "attn_output": "attn", "token_embd": "token_embd",
        "output": "output",
    }  # fmt: skip
    return kinds.get(name) if tensor_name.endswith(".weight") else None
