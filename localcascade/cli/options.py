"""Arguments that several commands take, said once."""

from __future__ import annotations

from typing import Annotated

import typer

from localcascade.store import Kind, complete_installed_name, complete_model_name

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name of the catalog, an installed name, or a GGUF file.",
        autocompletion=complete_model_name,
    ),
]
InstalledName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name of `localcascade ls`.",
        autocompletion=complete_installed_name,
    ),
]
OfKind = Annotated[Kind | None, typer.Option("--kind", help="Where two models have the same name.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
