"""`localcascade show`: everything that is known of one installed model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localcascade.cli import console
from localcascade.cli.ls import describe_model, format_moment, judge_fit
from localcascade.cli.options import AsJson, InstalledName, OfKind
from localcascade.cli.units import format_bytes, format_count
from localcascade.store import find_installed

if TYPE_CHECKING:
    from rich.table import Table

    from localcascade.store import InstalledModel, Manifest


def show(
    name: InstalledName,
    kind: OfKind = None,
    as_json: AsJson = False,
) -> None:
    """Show where an installed model came from and what it holds.

    \b
    localcascade show tiny
    localcascade show tiny --json | jq '.manifest.files[].sha256'
    """
    from localcascade import hardware

    model = find_installed(name, kind)
    fit = judge_fit(model, hardware.read_memory(), hardware.find_gpus())
    described = describe_model(model, fit) | {
        "disk_bytes": model.disk_bytes,
        "manifest": model.manifest.to_json() if model.manifest else None,
    }
    if as_json:
        console.print_json(described)
        return
    if model.problem:
        console.print_problem(model.problem, f"`localcascade rm {model.name}` removes it.")
    console.print_tables(_draw_heading(model, described), _draw_files(model))


def _draw_heading(model: InstalledModel, described: dict[str, Any]) -> Table:
    table = console.make_table("", "")
    table.show_header = False
    table.columns[0].no_wrap = True
    rows = {
        "Name": model.name,
        "Kind": model.kind,
        **(_describe_manifest(model.manifest) if model.manifest else {"Manifest": "none"}),
        "Size": f"{format_bytes(model.size_bytes)} ({model.size_bytes:,} bytes)",
        "On disk": format_bytes(model.disk_bytes),
        "Last used": format_moment(model.last_used_s) or "never",
        "Path": described["path"],
    }
    for key, value in rows.items():
        table.add_row(key, console.make_text(value))
    return table


def _describe_manifest(manifest: Manifest) -> dict[str, str]:
    weights = manifest.weights
    rows = {
        "Architecture": weights.architecture or "not said",
        "Type": weights.type,
        "Weights": format_count(weights.n_params),
        "Bits per weight": f"{weights.bits_per_weight:.3f}",
        "Installed": manifest.created,
    }
    if manifest.repo:
        rows["Repository"] = f"{manifest.repo} at {manifest.commit or 'an unknown commit'}"
    for i, note in enumerate(manifest.notes):
        rows["Notes" + " " * i] = note
    return rows


def _draw_files(model: InstalledModel) -> Table:
    table = console.make_table("File", "Size>", "SHA-256")
    if model.manifest:
        for file in model.manifest.files:
            size = format_bytes(file.size)
            table.add_row(console.make_text(file.path), size, f"{file.sha256[:16]}…")
        return table
    for path in model.list_files():
        table.add_row(console.make_text(path.name), format_bytes(path.lstat().st_size), "unknown")
    return table
