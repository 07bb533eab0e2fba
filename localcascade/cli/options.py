"""Arguments that several commands take, said once."""

from __future__ import annotations

from typing import Annotated

import typer

from localcascade.store import Kind, complete_installed_name

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
Remote = Annotated[
    str | None,
    typer.Option(
        "--remote",
        metavar="URL",
        help="Ask an OpenAI-compatible server; MODEL is its name there, - its first one.",
    ),
]
RemoteKey = Annotated[
    str | None,
    typer.Option(
        "--remote-key",
        metavar="KEY",
        envvar="LOCALCASCADE_REMOTE_KEY",
        help="The server's key; the variable keeps it out of the list of processes.",
    ),
]
