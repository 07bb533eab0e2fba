"""Recipes as TOML: choices that people read and edit.

    n_embd = 2816

    [[rule]]
    match = "blk.*.ffn_up_exps.weight"
    type = "iq3_s"

    [[rule]]
    match = "blk.*.ffn_up_exps.weight"
    layers = "1, 46-51"
    type = "q4_k"

    [[width]]
    layers = "1-51"
    experts = 1792

A rule holds for the matrices whose names it matches (`*` is any text), in all layers or in those
listed. Of several the last one holds, so that a line added at the end always wins.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from quantize.choices import Choices
from quantize.costs import split_name
from quantize.errors import RecipeError
from quantize.ggml import type_named

Value = TypeVar("Value", int, str)

_WIDTHS = ("n_embd", "shared_width", "dense_width", "latent_width")
_TABLES: Mapping[str, tuple[str, ...]] = {
    "rule": ("match", "layers", "type"),
    "width": ("layers", "experts"),
}
_REQUIRED = {"rule": ("match", "type"), "width": ("experts",)}
_MOST_LAYERS = 512
_MOST_WEIGHTS = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class TypeRule:
    """Which matrices get a type."""

    match: str
    type: str
    layers: frozenset[int] | None = None
    """None is all of them."""

    def holds_for(self, name: str) -> bool:
        """Whether a matrix of that name gets the type."""
        layer, _ = split_name(name)
        return fnmatchcase(name, self.match) and (self.layers is None or layer in self.layers)


@dataclass(frozen=True, slots=True)
class WidthRule:
    """Which layers' experts get a width."""

    experts: int
    """Neurons of each routed expert."""
    layers: frozenset[int] | None = None
    """None is all of them."""


@dataclass(frozen=True, slots=True)
class RecipeRules:
    """A recipe as it was written, not yet applied to any model."""

    file: Path
    """For messages."""
    types: tuple[TypeRule, ...]
    widths: tuple[WidthRule, ...] = ()
    outer: Choices = field(default_factory=lambda: Choices({}))
    """Widths of the whole model; nothing else."""

    def choose(self, matrices: Sequence[str]) -> Choices:
        """Apply the rules to a model.

        Args:
            matrices: Names of its matrices.

        Raises:
            RecipeError: A matrix has no rule, or a rule has no matrix.
        """
        types = {name: self._find_type(name) for name in matrices}
        for i, rule in enumerate(self.types):
            if not any(map(rule.holds_for, matrices)):
                raise RecipeError(
                    self.file,
                    f"rule[{i}]",
                    f"{rule.match!r} is no matrix of this model",
                    "Compare with `localcascade quantize MODEL --size … --dry-run -o FILE`.",
                )
        layers = _list_expert_layers(matrices)
        widths = {
            layer: rule.experts
            for rule in self.widths
            for layer in sorted(layers if rule.layers is None else rule.layers)
        }
        return replace(self.outer, types=types, expert_widths=widths)

    def _find_type(self, name: str) -> str:
        for rule in reversed(self.types):
            if rule.holds_for(name):
                return rule.type
        raise RecipeError(
            self.file, "rule", f"none is for {name}", 'Add one, perhaps with match = "*" as first.'
        )


def _list_expert_layers(matrices: Iterable[str]) -> set[int]:
    names = (split_name(name) for name in matrices)
    return {layer for layer, kind in names if kind.endswith("_exps") and layer is not None}


# ---- reading -----------------------------------------------------------------------------------


def read_recipe(path: Path) -> RecipeRules:
    """Read a recipe.

    Raises:
        RecipeError: It is no TOML, has a key that is unknown or of the wrong kind, or names a type
            that does not exist; names file and key, and what to do.
    """
    try:
        return parse_recipe(tomllib.loads(path.read_bytes().decode("utf-8")), path)
    except OSError as error:
        raise RecipeError(path, "", error.strerror or "cannot be read") from error
    except ValueError as error:
        raise RecipeError(path, "", f"not TOML: {error}", "Correct that line.") from error


def parse_recipe(tables: Mapping[str, Any], file: Path) -> RecipeRules:
    """Check what TOML says of a recipe; `file` is for messages. Errors as `read_recipe`."""
    _check_keys(file, "", tables, (*_WIDTHS, *_TABLES))
    rules = [_parse_rule(file, f"rule[{i}]", t) for i, t in enumerate(_list(file, tables, "rule"))]
    widths = [
        _parse_width(file, f"width[{i}]", t) for i, t in enumerate(_list(file, tables, "width"))
    ]
    if not rules:
        raise RecipeError(file, "rule", "there is none", 'Begin with [[rule]] and match = "*".')
    outer = (_check_count(file, key, tables[key]) if key in tables else None for key in _WIDTHS)
    n_embd, shared, dense, latent = outer
    return RecipeRules(
        file,
        tuple(rules),
        tuple(widths),
        Choices({}, n_embd, shared_width=shared, dense_width=dense, latent_width=latent),
    )


def _list(file: Path, tables: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = tables.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError(file, key, "is no list of tables", f"Write [[{key}]] above each.")
    for i, entry in enumerate(entries):
        _check_keys(file, f"{key}[{i}]", entry, _TABLES[key])
        for needed in _REQUIRED[key]:
            if needed not in entry:
                raise RecipeError(file, f"{key}[{i}].{needed}", "is missing", "Add it.")
    return entries


def _check_keys(file: Path, where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            place = f"{where}.{key}" if where else key
            raise RecipeError(file, place, "unknown key", f"Known keys: {', '.join(known)}.")


def _parse_rule(file: Path, where: str, table: Mapping[str, Any]) -> TypeRule:
    for key in ("match", "type"):
        if not isinstance(table[key], str):
            raise RecipeError(file, f"{where}.{key}", f"{table[key]!r} is no text", "Quote it.")
    try:
        type_name = type_named(table["type"]).name
    except ValueError as error:
        raise RecipeError(file, f"{where}.type", str(error)) from error
    return TypeRule(table["match"], type_name, _parse_layers(file, where, table))


def _parse_width(file: Path, where: str, table: Mapping[str, Any]) -> WidthRule:
    n_neurons = _check_count(file, f"{where}.experts", table["experts"])
    return WidthRule(n_neurons, _parse_layers(file, where, table))


def _check_count(file: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_WEIGHTS:
        raise RecipeError(file, key, f"{value!r} is no width", "Write for example 1792.")
    return value


def _parse_layers(file: Path, where: str, table: Mapping[str, Any]) -> frozenset[int] | None:
    if "layers" not in table:
        return None
    text, layers = table["layers"], set[int]()
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first.strip(), last.strip() if dash else first.strip())
        if not all(end.isascii() and end.isdigit() and len(end) < 4 for end in ends):
            raise RecipeError(
                file, f"{where}.layers", f"{text!r} lists no layers", 'Write for example "1, 5-8".'
            )
        low, high = map(int, ends)
        if not low <= high < _MOST_LAYERS:
            raise RecipeError(
                file, f"{where}.layers", f"{part.strip()} is no range", "Write the smaller first."
            )
        layers.update(range(low, high + 1))
    return frozenset(layers)


# ---- writing -----------------------------------------------------------------------------------


def format_recipe(choices: Choices, comments: Iterable[str] = ()) -> str:
    """Write choices as TOML that `read_recipe` reads back as the same choices.

    Each kind of matrix gets a rule with its most frequent type, and one more for each other type.

    Args:
        choices: With a type for every matrix of the model.
        comments: Lines for the top of the file.
    """
    blocks = [[f"# {line}".rstrip() for line in comments]]
    outer = ((key, getattr(choices, key)) for key in _WIDTHS)
    blocks += [[f"{key} = {width}" for key, width in outer if width is not None]]
    for match, group in _group_kinds(choices.types).items():
        for type_name, layers in _group_layers(group):
            spelled = [f'layers = "{format_layers(layers)}"'] if layers else []
            blocks += [["[[rule]]", f'match = "{match}"', *spelled, f'type = "{type_name}"']]
    everywhere = _list_expert_layers(choices.types) == choices.expert_widths.keys()
    for width, layers in _group_layers(choices.expert_widths):
        listed = layers or ([] if everywhere else choices.expert_widths)
        spelled = [f'layers = "{format_layers(listed)}"'] if listed else []
        blocks += [["[[width]]", *spelled, f"experts = {width}"]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _group_kinds(types: Mapping[str, str]) -> dict[str, dict[int, str]]:
    """Pattern for a kind of matrix -> layer -> type; -1 where there is no layer."""
    kinds: dict[str, dict[int, str]] = {}
    for name, type_name in types.items():
        layer, kind = split_name(name)
        pattern = name if layer is None else f"blk.*.{kind}.weight"
        kinds.setdefault(pattern, {})[-1 if layer is None else layer] = type_name
    return kinds


def _group_layers(values: Mapping[int, Value]) -> list[tuple[Value, list[int]]]:
    """The most frequent value for all layers (none listed), then each other with its layers."""
    ranked = [value for value, _ in Counter(values.values()).most_common()]
    layers = {value: sorted(i for i, own in values.items() if own == value) for value in ranked}
    return [(value, layers[value] if i else []) for i, value in enumerate(ranked)]


def format_layers(layers: Iterable[int]) -> str:
    """Write layers as "1, 5-8"."""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
