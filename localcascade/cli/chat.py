"""`localcascade chat`: a conversation on the whole terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from localcascade.cli import console
from localcascade.store import complete_model_name

if TYPE_CHECKING:
    pass


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
            "--session", metavar="ID", help="Go on with a conversation; a prefix will do."
        ),
    ] = None,
    goes_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")
    ] = False,
    ctx: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Context in tokens, prompt and answer.")
    ] = None,
) -> None:
    """Chat in the terminal.

    Everything is kept as it is written; `localcascade session ls` lists what there is. F1 in the
    chat tells the keys.

    \b
    localcascade chat tiny
    localcascade chat nemotron-cascade-2 --ctx 32768
    localcascade chat -c
    localcascade chat --session 3f2a
    """
    _check_terminal()
    from localcascade.cli.opening import Openings
    from localcascade.tui.app import ChatApp

    with Openings.open(ctx) as openings:
        first = openings.resume(session, model) if session or goes_on else openings.begin(model)
        ChatApp(first, openings.begin, openings.manner).run()


def _check_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise console.UsageError(
            "chat needs a terminal for its input and its output",
            "For a script or a pipe: localcascade run MODEL PROMPT",
        )
