"""How a proposed recipe is shown: a table by kind of matrix, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from localcascade.cli import console
from localcascade.cli.units import format_bytes

if TYPE_CHECKING:
    from localcascade.cli.recipes import Proposal


@dataclass
class _Line:
    """Matrices of one kind, type and shape."""

    kind: str
    type: str
    shape: tuple[int, ...]
    layers: list[int] = field(default_factory=list)
    n_bytes: int = 0
    errors: list[float] = field(default_factory=list)
    cost: float = 0.0


def print_proposal(proposal: Proposal) -> None:
    """Print the recipe as a table on stdout, then what the file would be."""
    table = console.make_table(
        "Matrix", "Layers", "Type", "Rows>", "Width>", "Size>", "Error>", "KL (nats)>"
    )
    lines = _group_lines(proposal)
    for line in lines:
        of_kind = sorted(n for other in lines if other.kind == line.kind for n in other.layers)
        table.add_row(
            line.kind,
            _describe_layers(line.layers, of_kind),
            line.type,
            f"{line.shape[-2]}",
            f"{line.shape[-1]}",
            format_bytes(line.n_bytes),
            f"{100 * sum(line.errors) / len(line.errors):.2g} %",
            f"{line.cost:.5f}",
        )
    console.print_tables(table)
    for text in _summarize(proposal):
        print(text)


def _describe_layers(layers: list[int], of_kind: list[int]) -> str:
    """Write layers as "16 of 23: 1-36"; a span skips layers that have no matrix of the kind."""
    if len(layers) == len(of_kind):
        return f"all {len(layers)}" if len(layers) > 1 else "".join(map(str, layers))
    spans: list[list[int]] = []
    for place, layer in enumerate(of_kind):
        if layer not in layers:
            continue
        if spans and place and spans[-1][1] == of_kind[place - 1]:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    written = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"{len(layers)} of {len(of_kind)}: {written}"


def _summarize(proposal: Proposal) -> Iterator[str]:
    found, memory = proposal.allocation, proposal.memory
    left = found.budget_bytes - found.file_bytes
    room = f", {format_bytes(left)} below the budget" if left else ""
    yield f"File: {format_bytes(found.file_bytes)} ({found.file_bytes} bytes){room}"
    if proposal.expert_bits:
        yield f"Routed experts: {proposal.expert_bits:.2f} bits a weight"
    best = f"; no recipe of this size below {found.bound:.4f}" if found.bound else ""
    yield f"Expected divergence: {found.expected_kl:.4f} nats a token{best}"
    device = memory["devices"][0]
    fits = "fits" if memory["fits"] else "does not fit"
    yield (
        f"Memory: {fits} {device['name']} of {format_bytes(device['total_bytes'])} with "
        f"{memory['context']} tokens: {format_bytes(device['used_bytes'])} used"
    )


def _group_lines(proposal: Proposal) -> list[_Line]:
    from quantize.allocate import measure_tensor
    from quantize.costs import split_name

    types, found = proposal.choices.types, proposal.allocation
    lines: dict[tuple[str, str, tuple[int, ...]], _Line] = {}
    for tensor in proposal.draft.list_tensors(proposal.choices):
        if tensor.name not in types:
            continue
        layer, kind = split_name(tensor.name)
        key = (kind, types[tensor.name], tensor.shape)
        line = lines.setdefault(key, _Line(*key))
        line.layers += [] if layer is None else [layer]
        line.n_bytes += measure_tensor(tensor, types[tensor.name])
        line.errors.append(found.errors[tensor.name])
        line.cost += found.costs[tensor.name]
    return sorted(lines.values(), key=lambda line: (-line.n_bytes, line.kind))


def describe_proposal(proposal: Proposal) -> dict[str, Any]:
    """Say a proposal in plain data; the keys are a contract, more may be added."""
    from quantize.allocate import measure_tensor
    from quantize.report import find_role

    types, found = proposal.choices.types, proposal.allocation
    return {
        "file_bytes": found.file_bytes,
        "budget_bytes": found.budget_bytes,
        "expert_bits_per_weight": round(proposal.expert_bits, 4),
        "expected_kl": found.expected_kl,
        "least_expected_kl": found.bound,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "type": types.get(tensor.name, "f32"),
                "bytes": measure_tensor(tensor, types.get(tensor.name, "f32")),
                "role": find_role(tensor.name),
                "expected_error": found.errors.get(tensor.name, 0.0),
            }
            for tensor in proposal.draft.list_tensors(proposal.choices)
        ],
        "memory": dict(proposal.memory),
        "notes": list(proposal.notes),
    }
