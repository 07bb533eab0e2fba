"""`localcascade inspect`: what a GGUF file says about itself and what it weighs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.expert_map import draw_experts, draw_experts_svg
from localcascade.cli.options import AsJson
from localcascade.cli.units import format_bytes, format_count
from localcascade.store import complete_model_name, find_model

if TYPE_CHECKING:
    from rich.table import Table

    from quantize.expert_errors import ExpertError
    from quantize.gguf import GGUFArray, GGUFFile
    from quantize.quality import Quality
    from quantize.report import Share, Summary

_MAX_JSON_ELEMENTS = 1024
_MAX_SHOWN_CHARACTERS = 120


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A GGUF file, or the name of an installed model.",
            autocompletion=complete_model_name,
        ),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor as well.")] = False,
    experts: Annotated[
        bool, typer.Option("--experts", help="Show what encoding cost each expert of each layer.")
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option(metavar="OUT.svg", dir_okay=False, help="Draw the experts into this file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a GGUF file holds: sizes, types, metadata.

    Only the header is read, so it is quick on a file of any size, and needs no model loaded.

    \b
    localcascade inspect model.gguf
    localcascade inspect model.gguf --tensors | grep ffn_down
    localcascade inspect model.gguf --json | jq .roles.experts
    localcascade inspect model.gguf --experts --svg experts.svg
    """
    from quantize.gguf import open_gguf
    from quantize.quality import read_quality
    from quantize.report import summarize_gguf

    with open_gguf(find_model(model)) as file:
        summary, quality = summarize_gguf(file), read_quality(file)
        table = _read_experts(file) if experts or svg else ()
        if svg:
            draw_experts_svg(table, svg, summary.name or file.path.name)
        if as_json:
            described = describe_file(file, summary, quality, with_tensors=tensors)
            console.print_json(described | ({"experts": list(map(asdict, table))} if table else {}))
        elif table:
            console.print_tables(_draw_heading(file, summary, quality), *draw_experts(table))
        else:
            _draw_file(file, summary, quality, with_tensors=tensors)


def _read_experts(file: GGUFFile) -> tuple[ExpertError, ...]:
    # Imported here because measuring, which is in the same module, loads numpy and libggml.
    from quantize.expert_errors import read_experts

    return read_experts(file)


def describe_file(
    file: GGUFFile, summary: Summary, quality: Quality | None, *, with_tensors: bool
) -> dict[str, Any]:
    """Build what `--json` prints.

    Args:
        file: Still open.
        summary: Of that file.
        quality: Measured, and kept in it; None if it was not.
        with_tensors: Add every tensor, in the file's order.

    Returns:
        The summary's keys, `quality`, `metadata`, and `tensors` if wanted. A metadata array
        longer than 1024 is told by its element type and length only; a number JSON lacks by its
        name.
    """
    described = summary.to_json()
    described["quality"] = asdict(quality) if quality else None
    described["metadata"] = {key: _describe_value(value) for key, value in file.metadata.items()}
    if with_tensors:
        described["tensors"] = [
            {
                "name": tensor.name,
                "type": tensor.type.name,
                "shape": tensor.shape,
                "offset": tensor.offset,
                "bytes": tensor.n_bytes,
            }
            for tensor in file.tensors.values()
        ]
    return described


def _describe_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float):
        return value
    if len(value) > _MAX_JSON_ELEMENTS:
        return {"type": value.value_type, "n": len(value)}
    return [_describe_value(element) for element in value]


def _draw_file(
    file: GGUFFile, summary: Summary, quality: Quality | None, *, with_tensors: bool
) -> None:
    console.print_tables(
        _draw_heading(file, summary, quality),
        _draw_roles(summary),
        _draw_types(summary),
        _draw_metadata(file.metadata),
        *([_draw_tensors(file)] if with_tensors else []),
    )


def _draw_heading(file: GGUFFile, summary: Summary, quality: Quality | None) -> Table:
    table = console.make_table("", "")
    table.show_header = False
    architecture = summary.architecture or "not said"
    table.add_row("File", console.make_text(str(file.path)))
    table.add_row("Model", console.make_text(f"{summary.name or 'unnamed'} ({architecture})"))
    table.add_row("Size", f"{format_bytes(summary.file_bytes)} ({summary.file_bytes:,} bytes)")
    table.add_row(
        "Weights", f"{format_count(summary.total.n_params)} in {len(file.tensors)} tensors"
    )
    table.add_row("Bits per weight", f"{summary.total.bits_per_weight:.3f}")
    if summary.n_splits > 1:
        table.add_row("Part", f"one file of {summary.n_splits}; the figures are this file's only")
    if quality:
        table.add_row("Quality", console.make_text(_describe_quality(quality)))
    return table


def _describe_quality(quality: Quality) -> str:
    return (
        f"KL divergence {quality.mean_kl:.4g} on average, {quality.p99_kl:.4g} at 99 %, same best "
        f"token {quality.same_top1:.1%}; {quality.n_tokens:,} tokens of {quality.text} against "
        f"{quality.reference}"
    )


def _draw_roles(summary: Summary) -> Table:
    table = console.make_table("Role", "Weights>", "Size>", "Share>", "Bits per weight>")
    for role, share in summary.roles.items():
        if share.n_tensors:
            table.add_row(role, *_describe_share(share, summary.total))
    table.add_row("all", *_describe_share(summary.total, summary.total), style="bold")
    return table


def _describe_share(share: Share, total: Share) -> tuple[str, str, str, str]:
    part = share.n_bytes / total.n_bytes if total.n_bytes else 0.0
    return (
        format_count(share.n_params),
        format_bytes(share.n_bytes),
        f"{part:.1%}",
        f"{share.bits_per_weight:.3f}",
    )


def _draw_types(summary: Summary) -> Table:
    table = console.make_table("Type", "Tensors>", "Weights>", "Size>", "Bits per weight>")
    for name, share in summary.types.items():
        weights, size, _, bits = _describe_share(share, summary.total)
        table.add_row(name, str(share.n_tensors), weights, size, bits)
    return table


def _draw_metadata(metadata: Mapping[str, Any]) -> Table:
    table = console.make_table("Metadata", "Value")
    # Where the window is too narrow for both, the key is shown whole and the value cut.
    table.columns[0].no_wrap = True
    for key, value in metadata.items():
        line = console.make_text(abbreviate_value(value))
        line.no_wrap, line.overflow = True, "ellipsis"
        table.add_row(console.make_text(key), line)
    return table


def _draw_tensors(file: GGUFFile) -> Table:
    table = console.make_table("Tensor", "Type", "Shape>", "Size>")
    for tensor in file.tensors.values():
        shape = " x ".join(str(axis) for axis in tensor.shape)
        row = (tensor.type.name, shape, format_bytes(tensor.n_bytes))
        table.add_row(console.make_text(tensor.name), *row)
    return table


def abbreviate_value(value: str | float | GGUFArray) -> str:
    """Put a metadata value on one short line that tells how much was left out.

    Args:
        value: As `GGUFFile.metadata` gives it; of an array only the first elements are decoded.
    """
    if isinstance(value, str):
        return _abbreviate_text(value)
    if isinstance(value, int | float):
        return _write_number(value)
    shown, n_shown = "", 0
    for element in value:
        text = json.dumps(element) if isinstance(element, str) else _write_number(element)
        if len(shown) + len(text) > _MAX_SHOWN_CHARACTERS:
            break
        shown, n_shown = f"{shown}, {text}" if shown else text, n_shown + 1
    rest = ", …" if n_shown < len(value) else ""
    return f"{len(value)} x {value.value_type}: {shown}{rest}"


def _abbreviate_text(text: str) -> str:
    line = text[:_MAX_SHOWN_CHARACTERS].replace("\n", "\\n")
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return line
    return f"{len(text)} characters: {line} …"


def _write_number(value: float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Seven digits are what the usual 32-bit float holds: 1e-05, not 9.999999747378752e-06.
    return f"{value:.7g}" if isinstance(value, float) else str(value)
