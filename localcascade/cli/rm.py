"""`localcascade rm`: take models out of the store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson, OfKind
from localcascade.cli.units import format_bytes
from localcascade.store import complete_installed_name, find_installed, remove_model


def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Names of `localcascade ls`.",
            autocompletion=complete_installed_name,
        ),
    ],
    kind: OfKind = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove installed models, with all their files.

    A name that is not installed is refused, and then nothing at all is removed.

    \b
    localcascade rm tiny
    localcascade rm nemotron-cascade-2 --kind checkpoint --yes
    """
    models = {(m.name, m.kind): m for m in (find_installed(name, kind) for name in names)}
    sizes = {key: model.disk_bytes for key, model in models.items()}
    if not yes:
        for key, model in models.items():
            path = console.escape_controls(str(model.place))
            print(
                f"{model.name} ({model.kind}), {format_bytes(sizes[key])}: {path}", file=sys.stderr
            )
        _ask_leave()
    for model in models.values():
        remove_model(model)
    if as_json:
        removed = [
            {"name": name, "kind": kind, "disk_bytes": size} for (name, kind), size in sizes.items()
        ]
        console.print_json({"removed": removed})
    else:
        print(f"removed {', '.join(names)}: {format_bytes(sum(sizes.values()))} freed")


def _ask_leave() -> None:
    """Ask, and end with 1 unless the answer is yes; without a terminal there is nobody to ask."""
    if not sys.stdin.isatty():
        raise console.UsageError("there is nobody to ask", "Give --yes to remove without asking.")
    print("Remove? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        print("Nothing was removed.", file=sys.stderr)
        raise typer.Exit(console.ExitCode.FAILED)
