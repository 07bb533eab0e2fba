"""`localcascade serve`: a model behind the OpenAI format, for editors and other programs."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from localcascade.cli import console
from localcascade.cli.loading import Source, spread_options
from localcascade.cli.logbook import identify_model
from localcascade.cli.options import AsJson, ModelName
from localcascade.cli.remote import open_remote_engine
from localcascade.cli.stream import Screen, open_engine
from localcascade.store import find_model, mark_used

if TYPE_CHECKING:
    from localcascade.server.app import Offer
    from localcascade.server.listener import Listener
    from localcascade.server.request import Defaults

DEFAULT_N_PARALLEL = 4
"""Requests at once: an editor asks for completions while a chat is being answered."""
_QUESTION = '{"messages": [{"role": "user", "content": "What is 12 + 30?"}]}'


@spread_options
def serve(
    model: ModelName,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where to listen; 0.0.0.0 is the whole network.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")
    ] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="LOCALCASCADE_API_KEY",
            help="What clients must send; the variable keeps it out of the list of processes.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Let pages of this site ask, as https://host:port; repeatable."
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, metavar="N", help="Requests at once, which share the context; 4."
        ),
    ] = None,
    no_think: Annotated[
        bool, typer.Option("--no-think", help="Answer at once, unless a request asks to think.")
    ] = False,
    think_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most thinking, unless a request says otherwise."),
    ] = None,
    *,
    source: Source,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="A line for each request; never what was said.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a model to editors and programs.

    It speaks the OpenAI format: any client of that works, with the address that is shown and
    any key, or the one of --api-key. Nothing that is said is kept or written down. Ctrl-C ends
    it. --json writes one line when it is ready.

    \b
    localcascade serve tiny
    localcascade serve nc2.gguf --ctx 65536 --parallel 2
    localcascade serve nc2.gguf --host 0.0.0.0 --api-key "$KEY"
    localcascade serve tiny --port 0 --json
    localcascade serve - --remote http://gpu-box:8080
    """
    from localcascade.server.app import make_app
    from localcascade.server.gate import make_guard
    from localcascade.server.listener import Server, bind
    from localcascade.server.request import Defaults

    key = _check_key(api_key)
    listener = bind(host, port)
    defaults = Defaults(not no_think, think_tokens)
    with listener.socket, _open_offer(model, parallel, source, defaults) as offer:
        guard = make_guard(key, listener, tuple(allow_origin or ()))
        app = make_app(offer, guard, _report, _log if verbose else None)
        if key is None and not listener.is_loopback:
            _warn(listener)
        Server(app, listener, lambda: _announce(offer, listener, key, as_json=as_json)).serve_all()


def _check_key(key: str | None) -> str | None:
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise console.UsageError(
            "--api-key is empty, or holds spaces at its ends or letters that cannot be sent",
            "For example: export LOCALCASCADE_API_KEY=$(openssl rand -hex 16)",
        )
    return key


@contextmanager
def _open_offer(
    model: str, parallel: int | None, source: Source, defaults: Defaults
) -> Iterator[Offer]:
    """Load a model, or find the server that has it, and close it at the end."""
    from localcascade.server.app import Offer

    if source.remote is not None:
        if parallel is not None:
            raise console.UsageError(
                "--parallel: the server of --remote chooses how many requests it answers at once",
                "Leave it out.",
            )
        with open_remote_engine(source.remote, source.remote_key, model) as remote:
            info = remote.load()
            yield Offer(remote, info.name, info, defaults)
        return
    path = find_model(model)
    mark_used(path)
    options = {"n_parallel": parallel or DEFAULT_N_PARALLEL, **source.engine_options}
    with open_engine(path, Screen(), **options) as engine:
        yield Offer(engine, identify_model(model, path).name, engine.load(), defaults)


def _announce(offer: Offer, listener: Listener, key: str | None, *, as_json: bool) -> None:
    """Say where the server is, and how it is asked."""
    if as_json:
        print(json.dumps({"url": listener.url, "model": offer.name}), flush=True)
    bearer = "" if key is None else " \\\n    -H 'Authorization: Bearer KEY'"
    sizes = f"{offer.info.n_ctx} tokens of context" if offer.info.n_ctx else ""
    if offer.info.n_parallel > 1:
        sizes += f", shared by {offer.info.n_parallel} requests at once"
    lines = [
        f"{offer.name} is at {listener.url}" + (f" ({sizes})" if sizes else ""),
        "Ctrl-C ends it. For example:",
        f"  curl {listener.url}/chat/completions -H 'Content-Type: application/json'{bearer} \\",
        f"    -d '{_QUESTION}'",
    ]
    print(console.escape_controls("\n".join(lines)), file=sys.stderr, flush=True)


def _warn(listener: Listener) -> None:
    console.print_note(
        f"there is no key, so whoever reaches port {listener.port} of this machine can use the "
        "model. Set LOCALCASCADE_API_KEY, or leave --host out."
    )


def _log(line: str) -> None:
    print(console.escape_controls(line), file=sys.stderr, flush=True)


def _report(error: Exception) -> None:
    """Say that something is our fault, and where; an error's own words may be a client's."""
    if os.environ.get(console.DEBUG_VARIABLE) == "1":
        traceback.print_exception(error, file=sys.stderr)
    places = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {place.filename}:{place.lineno}" for place in places)
    console.print_problem(
        f"this is a fault of LocalCascade, not yours: {type(error).__name__}{place}",
        f"The server goes on. With {console.DEBUG_VARIABLE}=1 it shows the traceback to report.",
    )
