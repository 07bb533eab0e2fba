"""A budget of bytes -> one type for every matrix, one width for the experts of every layer.

Each matrix is a group of a knapsack, whose options are the types that fit its rows; the two of a
layer's experts are one group, because they share a width. The widths that concern the whole model
(of the residual stream, of the shared experts) are tried out one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from quantize.choices import Choices
from quantize.costs import EXPERTS_DOWN, EXPERTS_UP, TYPE_ERRORS, Costs, split_name
from quantize.draft import Draft
from quantize.errors import BudgetTooSmall
from quantize.families import OutputTensor
from quantize.ggml import type_named
from quantize.gguf.blocks import DEFAULT_ALIGNMENT, pad_bytes
from quantize.knapsack import Group, Packing, pack

SUPERBLOCK = 256
"""Weights in a block of the types that are best at few bits."""
MOST_TRIMMED, MOST_PADDED = 1 / 8, 1 / 4
"""Shares of an expert's neurons beyond which trimming or padding is not tried."""
NO_ZERO = ("iq1_", "iq2_", "iq3_")
"""Types whose grids cannot say zero inside a block. What padding adds to the token embeddings
would enter the residual stream; elsewhere its inputs are zero, or whole rows, which is exact."""

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Allocation:
    """A solved recipe, and what is expected of it."""

    choices: Choices
    file_bytes: int
    budget_bytes: int
    errors: Mapping[str, float]
    """Matrix -> expected relative error of its output; what trimming loses is `down`'s."""
    costs: Mapping[str, float]
    """Matrix -> KL divergence in nats a token that this error is expected to add."""
    bound: float
    """No other recipe within the budget is expected to diverge less; proved."""

    @property
    def expected_kl(self) -> float:
        """KL divergence in nats a token that all matrices are expected to add, to first order."""
        return sum(self.costs.values())


@dataclass(frozen=True, slots=True)
class _Part:
    """What one option decides."""

    types: Mapping[str, str]
    errors: Mapping[str, float]
    width: tuple[int, int] | None = None
    """Layer and neurons of each of its experts."""


@dataclass(frozen=True, slots=True)
class _Menu:
    """Every group of one model at one set of widths, with what its options decide."""

    frame: Choices
    groups: tuple[Group, ...]
    parts: tuple[tuple[_Part, ...], ...]

    def take(self, picks: Iterable[int]) -> tuple[Choices, dict[str, float]]:
        """Put the chosen options together; also the errors they bring."""
        taken = [parts[i] for parts, i in zip(self.parts, picks, strict=True)]
        types = {name: own for part in taken for name, own in part.types.items()}
        widths = dict(part.width for part in taken if part.width)
        errors = {name: error for part in taken for name, error in part.errors.items()}
        return replace(self.frame, types=types, expert_widths=widths), errors


def allocate(
    draft: Draft, costs: Costs, budget_bytes: int, types: Iterable[str] = tuple(TYPE_ERRORS)
) -> Allocation:
    """Find the recipe that is expected to diverge least and whose file fits the budget.

    Its cost is within 0.1 % of the least possible one (knapsack.TOLERANCE), and the same arguments
    give the same recipe.

    Args:
        draft: The model.
        costs: What errors cost there.
        budget_bytes: Of the whole file.
        types: Names of the types to choose from.

    Raises:
        BudgetTooSmall: Even the smallest types need more; names the bytes they need.
    """
    menus = [_make_menu(draft, costs, frame, tuple(types)) for frame in _list_frames(draft)]
    solved = [(menu, _solve(draft, menu, budget_bytes)) for menu in menus]
    fitting = [(menu, packing) for menu, packing in solved if packing]
    if not fitting:
        smallest = min(draft.measure_file(_take_smallest(menu)) for menu in menus)
        raise BudgetTooSmall(smallest, budget_bytes)
    menu, packing = min(fitting, key=lambda pair: pair[1].cost)
    choices, errors = menu.take(packing.picks)
    return Allocation(
        choices=choices,
        file_bytes=draft.measure_file(choices),
        budget_bytes=budget_bytes,
        errors=errors,
        costs={name: costs.find_cost(name, error) for name, error in errors.items()},
        bound=min(packing.bound for _, packing in fitting),
    )


def estimate(draft: Draft, costs: Costs, choices: Choices) -> Allocation:
    """Say what a recipe that is decided already is expected to cost; its own size is the budget.

    Args:
        draft: The model.
        costs: What errors cost there.
        choices: The recipe.
    """
    kept = {split_name(t.name)[0]: t.shape[-1] for t in _find_experts(draft, Choices({}))}
    errors = {}
    for tensor in draft.list_tensors(choices):
        if tensor.matrix:
            type_name = choices.types[tensor.name]
            error = costs.judge_error(tensor.name, type_name)
            error += costs.find_floor(tensor.name, type_name)
            layer, kind = split_name(tensor.name)
            if kind == EXPERTS_DOWN and layer is not None:
                error += costs.find_trim_error(layer, tensor.shape[-1], kept[layer])
            errors[tensor.name] = error
    spent = {name: costs.find_cost(name, error) for name, error in errors.items()}
    file_bytes = draft.measure_file(choices)
    return Allocation(choices, file_bytes, file_bytes, errors, spent, 0.0)


def measure_bits(tensors: Iterable[OutputTensor], choices: Choices) -> float:
    """Bits that a weight of the source's routed experts takes, what is padded or trimmed included.

    Args:
        tensors: Of the file.
        choices: The types.

    Returns:
        0 if there are no routed experts.
    """
    experts = [t for t in tensors if split_name(t.name)[1] in (EXPERTS_UP, EXPERTS_DOWN)]
    n_bytes = sum(measure_tensor(t, choices.types[t.name]) for t in experts)
    n_weights = sum(len(t.sources) * prod(t.source_shape) for t in experts)
    return 8 * n_bytes / n_weights if n_weights else 0.0


def measure_tensor(tensor: OutputTensor, type_name: str) -> int:
    """Bytes of a tensor's data in a type, without what aligns the next one."""
    return prod(tensor.shape[:-1]) * type_named(type_name).row_bytes(tensor.shape[-1])


# ---- widths ------------------------------------------------------------------------------------


def _list_frames(draft: Draft) -> list[Choices]:
    """List the widths of the whole model that are worth a try; the source's own come first."""
    tensors = {tensor.name: tensor for tensor in draft.list_tensors(Choices({}))}
    # Tied embeddings cannot be padded: the one matrix would need two scales.
    can_pad = "output.weight" in tensors
    stream = tensors["token_embd.weight"].shape[-1]
    widths = {split_name(name)[1]: tensor.shape[-1] for name, tensor in tensors.items()}
    own = (
        stream if can_pad else None,
        widths.get("ffn_down_shexp"),
        widths.get("ffn_down"),
        widths.get("ffn_latent_up"),
    )
    options = [[None, _round_up(w)] if w and w % SUPERBLOCK else [None] for w in own]
    return [
        Choices({}, n_embd=n_embd, shared_width=shared, dense_width=dense, latent_width=latent)
        for n_embd, shared, dense, latent in product(*options)
    ]


def _round_up(width: int) -> int:
    return -(-width // SUPERBLOCK) * SUPERBLOCK


def list_widths(n_neurons: int) -> tuple[int, ...]:
    """List the widths an expert may get: its own, trimmed to whole superblocks, padded to them."""
    down, up = n_neurons // SUPERBLOCK * SUPERBLOCK, _round_up(n_neurons)
    trimmed = [down] if 0 < n_neurons - down <= MOST_TRIMMED * n_neurons else []
    padded = [up] if 0 < up - n_neurons <= MOST_PADDED * n_neurons else []
    return (n_neurons, *trimmed, *padded)


def _find_experts(draft: Draft, choices: Choices) -> list[OutputTensor]:
    tensors = draft.list_tensors(choices)
    return [tensor for tensor in tensors if split_name(tensor.name)[1] == EXPERTS_DOWN]


# ---- groups and options ------------------------------------------------------------------------


def _make_menu(draft: Draft, costs: Costs, frame: Choices, types: tuple[str, ...]) -> _Menu:
    tensors = [tensor for tensor in draft.list_tensors(frame) if tensor.matrix]
    plain = [t for t in tensors if split_name(t.name)[1] not in (EXPERTS_UP, EXPERTS_DOWN)]
    dishes = [list(_list_types(costs, tensor, types)) for tensor in plain]
    for layer, options in _list_expert_options(draft, costs, frame, types).items():
        dishes.append(options)
        assert layer is not None
    return _Menu(
        frame,
        tuple(_make_group(costs, options) for options in dishes),
        tuple(tuple(part for part, _ in options) for options in dishes),
    )


_Option = tuple[_Part, int]
"""What is decided, and the bytes it takes."""


def _list_types(costs: Costs, tensor: OutputTensor, types: Iterable[str]) -> Iterator[_Option]:
    for name in types:
        if tensor.shape[-1] % type_named(name).block_weights:
            continue
        if tensor.name == "token_embd.weight" and name.startswith(NO_ZERO):
            continue
        error = costs.find_error(tensor.name, name)
        if error is not None:
            n_bytes = pad_bytes(measure_tensor(tensor, name), DEFAULT_ALIGNMENT)
            error += costs.find_floor(tensor.name, name)
            yield _Part({tensor.name: name}, {tensor.name: error}), n_bytes


def _list_expert_options(
    draft: Draft, costs: Costs, frame: Choices, types: tuple[str, ...]
) -> dict[int, list[_Option]]:
    """For each layer with experts, every width with every pair of types for up and down."""
    own = {split_name(t.name)[0] or 0: t.shape[-1] for t in _find_experts(draft, frame)}
    options: dict[int, list[_Option]] = {layer: [] for layer in own}
    n_widths = max((len(list_widths(n)) for n in own.values()), default=0)
    for i in range(n_widths):
        widths = {layer: list_widths(n)[i] for layer, n in own.items() if i < len(list_widths(n))}
        tensors = draft.list_tensors(replace(frame, expert_widths=widths))
        named = {tensor.name: tensor for tensor in tensors}
        for layer, width in widths.items():
            lost = costs.find_trim_error(layer, width, own[layer])
            pair = (named[f"blk.{layer}.{kind}.weight"] for kind in (EXPERTS_UP, EXPERTS_DOWN))
            ups, downs = (_drop_beaten(_list_types(costs, tensor, types)) for tensor in pair)
            options[layer] += [
                _join(up, down, lost, (layer, width)) for up, down in product(ups, downs)
            ]
    return options


def _drop_beaten(options: Iterable[_Option]) -> list[_Option]:
    """Leave out what takes more bytes than another one and is no better."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda o: (o[1], *o[0].errors.values())):
        if not kept or [*option[0].errors.values()] < [*kept[-1][0].errors.values()]:
            kept.append(option)
    return kept


def _join(up: _Option, down: _Option, lost: float, width: tuple[int, int]) -> _Option:
    (up_part, up_bytes), (down_part, down_bytes) = up, down
    errors = {name: error + lost for name, error in down_part.errors.items()}
    part = _Part({**up_part.types, **down_part.types}, {**up_part.errors, **errors}, width)
    return part, up_bytes + down_bytes


def _make_group(costs: Costs, options: Sequence[_Option]) -> Group:
    factors = {name: costs.find_cost(name, 1.0) for name in options[0][0].errors}
    return Group(
        np.array([n_bytes for _, n_bytes in options], np.int64),
        np.array([sum(factors[n] * e for n, e in part.errors.items()) for part, _ in options]),
    )


# ---- the whole file ----------------------------------------------------------------------------


def _solve(draft: Draft, menu: _Menu, budget_bytes: int) -> Packing | None:
    """Fill the budget exactly: what a recipe itself adds to the header is known only afterwards."""
    rest = _measure_rest(draft, menu, [int(group.n_bytes.argmin()) for group in menu.groups])
    packing = None
    for _ in range(_ROUNDS):
        packing = pack(menu.groups, budget_bytes - rest)
        if packing is None:
            return None
        excess = _measure_rest(draft, menu, packing.picks) + packing.n_bytes - budget_bytes
        if excess <= 0:
            return packing
        rest += excess
    return None


def _measure_rest(draft: Draft, menu: _Menu, picks: Sequence[int]) -> int:
    """Bytes of the file beyond its matrices."""
    choices, _ = menu.take(picks)
    pairs = zip(menu.groups, picks, strict=True)
    return draft.measure_file(choices) - sum(int(group.n_bytes[i]) for group, i in pairs)


def _take_smallest(menu: _Menu) -> Choices:
    return menu.take([int(group.n_bytes.argmin()) for group in menu.groups])[0]
