"""`localcascade chat`: a conversation on the whole terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from localcascade.cli import console
from localcascade.cli.loading import Source, spread_options
from localcascade.store import complete_model_name


@spread_options
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A name of the catalog, an installed name, or a GGUF file; without it, the "
            "conversation's own, or the last one.",
            autocompletion=complete_model_name,
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            "--session", metavar="ID", help="Go on with this conversation; a prefix will do."
        ),
    ] = None,
    goes_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")
    ] = False,
    *,
    source: Source,
) -> None:
    """Chat in the terminal.

    Everything is kept as it is written; `localcascade session ls` lists what there is. F1 in the
    chat tells the keys.

    \b
    localcascade chat tiny
    localcascade chat nemotron-cascade-2 --ctx 32768
    localcascade chat -c
    localcascade chat --session 3f2a
    localcascade chat --remote http://localhost:8080
    """
    _check_terminal()
    from localcascade.cli.opening import Openings
    from localcascade.cli.shelf import LocalShelf
    from localcascade.tui.app import ChatApp, Opening

    first: Opening | None
    with Openings.open(source) as openings:
        if session or goes_on:
            first = openings.resume(session, model)
        else:
            first = openings.begin(model) if model or openings.has_model else None
        shelf = None if source.remote else LocalShelf()
        ChatApp(openings, first, openings.preferences, shelf).run()


def _check_terminal() -> None:
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise console.UsageError(
            "chat needs a terminal for its input, its output and its errors",
            "For a script or a pipe: localcascade run MODEL PROMPT",
        )
