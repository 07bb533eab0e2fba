"""`localcascade chat`: a conversation on the whole terminal."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from localcascade.cli import console
from localcascade.cli.loading import Source, spread_options
from localcascade.store import complete_model_name

if TYPE_CHECKING:
    from localcascade.tui.opening import Opening, Preferences


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
    tutor: Annotated[
        bool,
        typer.Option(
            "--tutor", help="Be taught: hints, steps, solutions as you ask; thinking sealed."
        ),
    ] = False,
    practice: Annotated[
        str | None,
        typer.Option(
            "--practice", metavar="TOPIC", help="Choose a problem to be taught with; all shows all."
        ),
    ] = None,
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
    localcascade chat tiny --tutor
    localcascade chat tiny --practice derivatives
    localcascade chat --remote http://localhost:8080
    """
    _check_terminal()
    topic = None if practice is None else choose_topic(practice)
    from localcascade.cli.opening import Openings

    first: Opening | None
    with Openings.open(source) as openings:
        if session or goes_on:
            first = openings.resume(session, model)
        else:
            first = openings.begin(model) if model or openings.has_model else None
        with _show_frame(first, openings.theme):
            with _spare_imports():
                from localcascade.cli.shelf import LocalShelf
                from localcascade.tui.app import ChatApp

            shelf = None if source.remote else LocalShelf()
            preferences = openings.preferences
            if tutor or topic is not None:
                preferences = call_tutor(preferences)
            ChatApp(openings, first, preferences, shelf, topic, openings.archive).run()


def _show_frame(first: Opening | None, theme: str) -> AbstractContextManager[None]:
    """Paint the frame of the chat at once; nothing where there is no model to chat with."""
    from localcascade.tui.curtain import show_curtain

    if first is None:
        return nullcontext()
    return show_curtain(" — ".join(filter(None, (first.model, first.title))), theme)


@contextmanager
def _spare_imports() -> Iterator[None]:
    """Let the garbage collector look through nothing that is imported, now or later: it would hold
    the start, and then the keys, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def choose_topic(text: str) -> str:
    """Find the words to filter the practice problems with.

    Args:
        text: What was asked for: a part of a topic or level, or `all`.

    Raises:
        UsageError: There are no such problems; names the topics.
    """
    from localcascade.chat.practice import filter_problems, list_topics, load_problems

    topic = "" if text == "all" else text
    if filter_problems(load_problems(), topic):
        return topic
    topics = ", ".join(list_topics(load_problems()))
    raise console.UsageError(f"there are no practice problems on {text!a}", f"There are: {topics}.")


def call_tutor(preferences: Preferences) -> Preferences:
    """Let the answers come from a tutor."""
    from dataclasses import replace

    from localcascade.chat.tutor import load_tutor

    return replace(preferences, manner=replace(preferences.manner, tutor=load_tutor()))


def _check_terminal() -> None:
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise console.UsageError(
            "chat needs a terminal for its input, its output and its errors",
            "For a script or a pipe: localcascade run MODEL PROMPT",
        )
