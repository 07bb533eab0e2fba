"""`--remote`: a turn that a server generates, instead of an engine of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localcascade.cli import console

if TYPE_CHECKING:
    from localcascade.engine.remote import RemoteEngine
    from localcascade.history import ModelIdentity

FIRST_MODEL = "-"
"""Given as a model, it is the first that the server lists."""


def make_remote_engine(url: str, key: str | None, model: str | None) -> RemoteEngine:
    """Make the engine of a server, which is not asked yet.

    Args:
        url: Its address.
        key: Our key to it.
        model: As the server calls it; None is the first that it lists.

    Raises:
        UsageError: The address or the key is none.
    """
    from localcascade.engine.remote import RemoteEngine

    try:
        return RemoteEngine(url, key, model)
    except ValueError as error:
        hint = "For example: --remote http://localhost:8080; a key goes into --remote-key."
        raise console.UsageError(f"--remote: {error}", hint) from error


def open_remote_engine(url: str, key: str | None, model: str) -> RemoteEngine:
    """Get ready to ask a server.

    Args:
        url: Its address.
        key: Our key to it.
        model: As the server calls it, or FIRST_MODEL.

    Returns:
        The engine, to be closed by the caller.

    Raises:
        UsageError: The address or the key is none.
        CascadeError: The server cannot be reached, refuses, or has no such model.
    """
    engine = make_remote_engine(url, key, None if model == FIRST_MODEL else model)
    try:
        engine.load()
    except BaseException:
        engine.close()
        raise
    return engine


def identify_remote_model(engine: RemoteEngine) -> ModelIdentity:
    """Say which model answers: its name, and the server in the place of a file."""
    from localcascade.history import ModelIdentity

    return ModelIdentity(engine.load().name, engine.endpoint.url, 0, "")
