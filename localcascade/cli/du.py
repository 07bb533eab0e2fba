"""`localcascade du`: what the store takes on the disk, leftovers included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from localcascade.store import InstalledModel, Leftover


@dataclass(frozen=True)
class Usage:
    """What the store takes on the disk."""

    models: tuple[tuple[InstalledModel, int], ...]
    """Each with its bytes on the disk."""
    leftovers: tuple[tuple[Leftover, int], ...]
    freed_bytes: int
    """What `--clean` has deleted."""
    free_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all models and leftovers."""
        return sum(n_bytes for _, n_bytes in (*self.models, *self.leftovers))


def du(
    clean: Annotated[
        bool, typer.Option("--clean", help="Delete what runs that ended early have left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what models and leftovers take on the disk.

    A leftover is a download or import that ended early. The same command given again goes on
    with a download; --clean deletes all leftovers that no process is using.

    \b
    localcascade du
    localcascade du --clean
    """
    usage = _measure(clean=clean)
    if as_json:
        console.print_json(_describe_usage(usage))
        return
    console.print_tables(
        *([_draw_models(usage.models)] if usage.models else []),
        *([_draw_leftovers(usage.leftovers)] if usage.leftovers else []),
        _draw_totals(usage),
    )


def _measure(*, clean: bool) -> Usage:
    from localcascade import hardware, paths
    from localcascade.store import delete_leftover, list_leftovers, list_models, measure_disk

    models = tuple((model, model.disk_bytes) for model in list_models())
    kept, freed_bytes = [], 0
    for leftover in list_leftovers():
        n_bytes = measure_disk(leftover.path)
        if clean and not leftover.in_use and delete_leftover(leftover):
            freed_bytes += n_bytes
        else:
            kept.append((leftover, n_bytes))
    free_bytes = hardware.read_free_disk(paths.find_data_folder())
    return Usage(models, tuple(kept), freed_bytes, free_bytes)


def _describe_usage(usage: Usage) -> dict[str, Any]:
    return {
        "models": [
            {"name": model.name, "kind": model.kind, "disk_bytes": n_bytes}
            for model, n_bytes in usage.models
        ],
        "leftovers": [
            {"path": str(leftover.path), "in_use": leftover.in_use, "disk_bytes": n_bytes}
            for leftover, n_bytes in usage.leftovers
        ],
        "total_bytes": usage.total_bytes,
        "freed_bytes": usage.freed_bytes,
        "free_bytes": usage.free_bytes,
    }


def _draw_models(models: Sequence[tuple[InstalledModel, int]]) -> Table:
    table = console.make_table("Name", "Kind", "On disk>")
    for model, n_bytes in sorted(models, key=lambda pair: -pair[1]):
        table.add_row(console.make_text(model.name, "bold"), model.kind, format_bytes(n_bytes))
    return table


def _draw_leftovers(leftovers: Sequence[tuple[Leftover, int]]) -> Table:
    table = console.make_table("Leftover", "State", "On disk>")
    table.columns[0].overflow = "fold"
    for leftover, n_bytes in leftovers:
        state = "in use" if leftover.in_use else "stale"
        table.add_row(console.make_text(str(leftover.path)), state, format_bytes(n_bytes))
    return table


def _draw_totals(usage: Usage) -> Table:
    table = console.make_table("", ">")
    table.show_header = False
    table.add_row("All", format_bytes(usage.total_bytes))
    if usage.freed_bytes:
        table.add_row("Deleted", format_bytes(usage.freed_bytes))
    table.add_row("Free on the disk", format_bytes(usage.free_bytes))
    return table
