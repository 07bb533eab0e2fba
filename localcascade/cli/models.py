"""`localcascade models`: the catalog, and what of it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.table import Table

    from localcascade.catalog import Catalog


def models(
    as_json: AsJson = False,
) -> None:
    """List the catalog, and what is installed.

    A name from this list is what other commands take as MODEL.
    """
    from localcascade.catalog import load_catalog
    from localcascade.store import list_installed

    catalog, installed = load_catalog(), list_installed()
    if as_json:
        console.print_json({"models": [*_describe_models(catalog, installed)]})
        return
    console.print_tables(_draw_models(catalog, installed), _draw_summaries(catalog))


def _describe_models(catalog: Catalog, installed: Mapping[str, Path]) -> list[dict[str, Any]]:
    described = [
        {"name": name, **asdict(entry), **_describe_file(installed.get(name))}
        for name, entry in catalog.entries.items()
    ]
    strangers = [
        {"name": name, **_describe_file(file)}
        for name, file in installed.items()
        if name not in catalog.entries
    ]
    return described + strangers


def _describe_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {"installed": False}
    return {"installed": True, "path": str(file), "file_bytes": file.stat().st_size}


def _draw_models(catalog: Catalog, installed: Mapping[str, Path]) -> Table:
    table = console.make_table("Name", "Weights>", "Active>", "Context>", "Licence", "Installed>")
    for name, entry in catalog.entries.items():
        table.add_row(
            console.make_text(name, "bold"),
            format_count(entry.parameters.total),
            format_count(entry.parameters.active),
            f"{entry.context_tokens:,}",
            console.make_text(entry.licence.name),
            _describe_size(installed.get(name)),
        )
    for name, file in installed.items():
        if name not in catalog.entries:
            table.add_row(console.make_text(name, "bold"), "", "", "", "", _describe_size(file))
    return table


def _draw_summaries(catalog: Catalog) -> Table:
    table = console.make_table("Name", "About")
    for name, entry in catalog.entries.items():
        table.add_row(console.make_text(name, "bold"), console.make_text(entry.summary))
    return table


def _describe_size(file: Path | None) -> str:
    return format_bytes(file.stat().st_size) if file else "no"
