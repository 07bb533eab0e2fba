"""`localcascade import`: a model from elsewhere on this machine enters the store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.progress import draw_progress
from localcascade.cli.units import format_bytes

_STAGES = {"copy": "Copying", "verify": "Reading back"}
_MAX_SHOWN = 5


def import_(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A GGUF file, or the folder of a checkpoint."),
    ],
    name: Annotated[
        str, typer.Option("--name", "-n", help="What to call it; else as the file or folder.")
    ] = "",
    move: Annotated[
        bool, typer.Option("--move", help="Delete PATH's files once the model is installed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a model that lies on this machine into the store.

    The headers are checked, the files copied and read back; then the model appears under its
    name. Of a split GGUF give any part; of a checkpoint, code and pickles stay out. Where the
    disk can share blocks, or with --move on one disk, nothing is copied.

    \b
    localcascade import nc2-iq4_nl.gguf
    localcascade import ~/Downloads/model-00001-of-00003.gguf --name nc2 --move
    localcascade import ~/Nemotron-Cascade-2-30B-A3B --name nemotron-cascade-2
    """
    from localcascade.errors import UnsafeName
    from localcascade.names import check_name
    from localcascade.store.imports import find_local_model, import_model

    source = find_local_model(path.expanduser())
    try:
        check_name(name or source.name)
    except UnsafeName as error:
        hint = "Give another one with --name, for example --name my-model."
        raise console.UsageError(error.message, hint) from error
    if source.left_out:
        shown = ", ".join(source.left_out[:_MAX_SHOWN])
        more = len(source.left_out) - _MAX_SHOWN
        console.print_note(f"left out: {shown}{f' and {more} more' if more > 0 else ''}")
    with draw_progress(_STAGES) as on_progress:
        model = import_model(
            source,
            name,
            move=move,
            on_progress=on_progress,
            on_wait=lambda: console.print_note("another import of that name is running; waiting"),
        )
    if as_json:
        console.print_json(
            {
                "name": model.name,
                "kind": model.kind,
                "path": str(model.place),
                "file_bytes": model.size_bytes,
                "left_out": list(source.left_out),
            }
        )
        return
    print(f"{model.name} ({model.kind}): {format_bytes(model.size_bytes)}, verified")
    command = (
        f"quantize {model.name} OUT.gguf" if model.kind == "checkpoint" else f"run {model.name}"
    )
    print(f"Next: localcascade {command}", file=sys.stderr)
