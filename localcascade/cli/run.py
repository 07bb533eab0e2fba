"""`localcascade run`: one question, one answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.checking import check_outcome, print_findings
from localcascade.cli.loading import Source, spread_options
from localcascade.cli.logbook import Logbook, identify_model
from localcascade.cli.options import AsJson, ModelName
from localcascade.cli.remote import identify_remote_model, open_remote_engine
from localcascade.cli.stream import ChatEngine, Outcome, Screen, open_engine, play_turn
from localcascade.store import find_model, mark_used

if TYPE_CHECKING:
    from pathlib import Path

    from localcascade.history import ModelIdentity

_EXAMPLE = 'For example: localcascade run tiny "What is 12 + 30?"'


@spread_options
def run(
    model: ModelName,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The question; without it, stdin is."),
    ] = None,
    no_think: Annotated[
        bool, typer.Option("--no-think", help="Answer at once, in the model's instruct mode.")
    ] = False,
    hide_thinking: Annotated[
        bool, typer.Option("--hide-thinking", help="Think, but show only the answer.")
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most tokens to generate, thinking included."),
    ] = None,
    think_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most tokens of thinking; then it answers."),
    ] = None,
    think_seconds: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="S", help="Longest time for thinking; then it answers."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text; may be given several times."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="0 always takes the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="X", help="Draw from the likeliest tokens only."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The same seed, the same answer.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message before the question.")
    ] = None,
    tutor: Annotated[
        bool,
        typer.Option(
            "--tutor", help="Be taught instead of told: a hint first. Thinking is not shown."
        ),
    ] = False,
    checks: Annotated[
        bool,
        typer.Option(
            "--check", help="Say which steps of the answer are right, and which are wrong."
        ),
    ] = False,
    *,
    source: Source,
    goes_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last session.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Go on with this session; the id's beginning will do."),
    ] = None,
    no_log: Annotated[
        bool, typer.Option("--no-log", help="Do not keep this turn in the history.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a model a question.

    The answer streams to stdout, thinking to stderr. What is piped in is context: it comes
    before PROMPT, or is the prompt if there is none. Sampling that is not given is the model's
    own. Every turn is kept as it comes; `localcascade session` finds it again.

    \b
    localcascade run tiny "What is 347 + 586?"
    localcascade run nemotron-cascade-2 "Explain this error" < build.log
    localcascade run ./model.gguf "Prove it" --hide-thinking --max-tokens 8000
    localcascade run tiny "What is 2 + 2?" --no-think --temperature 0 --json
    localcascade run tiny "What is 88 + 12?" --think-tokens 200
    localcascade run tiny -c "And 3 + 3?"
    localcascade run tiny "What is 347 + 586?" --check
    localcascade run tiny "Solve 3x - 7 = 2x + 5" --tutor
    localcascade run - "What is 2 + 2?" --remote http://localhost:8080
    """
    from localcascade.prompt.budget import ThinkingBudget
    from localcascade.prompt.events import ChatRequest, Sampling

    system = call_tutor(system) if tutor else system
    asked = compose_messages(system, prompt, read_piped())
    prefix = choose_session(goes_on, session, system)
    screen = Screen(show_answer=not as_json, show_thinking=not (as_json or hide_thinking or tutor))
    opened = (
        _open_file(find_model(model), model, screen, source)
        if source.remote is None
        else _open_server(source.remote, source.remote_key, model)
    )
    with Logbook.open(prefix, keeps=not no_log) as logbook:
        request = ChatRequest(
            messages=(*logbook.messages, *asked),
            thinking=not no_think,
            sampling=Sampling(
                temperature, top_p, seed=seed, max_tokens=max_tokens, stop=tuple(stop or ())
            ),
            thinking_budget=ThinkingBudget(think_tokens, think_seconds)
            if think_tokens or think_seconds is not None
            else None,
        )
        try:
            with opened as (engine, identity):
                outcome = play_turn(logbook.listen(engine, asked, identity), request, screen)
        except KeyboardInterrupt:
            # The user knows: no message, and what was written stays.
            raise typer.Exit(console.ExitCode.INTERRUPTED) from None
    findings = check_outcome(outcome.answer, asked[-1]["content"], screen) if checks else None
    if as_json:
        told = describe_outcome(model, outcome) | {"session": logbook.session or None}
        if findings is not None:
            from localcascade.chat.checking import describe_findings

            told["checked"] = describe_findings(findings)
        console.print_json(told)
        return
    if outcome.done.reason == "length":
        screen.note(_explain_length(outcome, max_tokens))
    if findings is not None:
        print_findings(findings)


def choose_session(goes_on: bool, session: str | None, system: str | None) -> str | None:
    """Say which session a turn belongs to.

    Args:
        goes_on: Whether it is the last one.
        session: Beginning of its id, if one was given.
        system: System message, if one was given.

    Returns:
        Beginning of its id; empty for the last one, None for a new one.

    Raises:
        UsageError: These cannot go together.
    """
    if goes_on and session is not None:
        raise console.UsageError("--continue and --session name two sessions", "Give one of them.")
    if system and (goes_on or session is not None):
        raise console.UsageError(
            "a session keeps the system message it began with", "Leave --system or --tutor out."
        )
    if session == "":
        raise console.UsageError("--session is empty", "`localcascade session ls` lists the ids.")
    return "" if goes_on else session


def call_tutor(system: str | None) -> str:
    """Say what makes a model a tutor, behind a system message if one was given."""
    from localcascade.chat.composition import Manner
    from localcascade.chat.tutor import load_tutor

    return Manner(system=system or "", tutor=load_tutor()).words


def compose_messages(
    system: str | None, prompt: str | None, piped: str
) -> tuple[dict[str, Any], ...]:
    """Put the conversation together.

    Args:
        system: System message, if one is wanted.
        prompt: The question, if one was given.
        piped: What came through stdin.

    Returns:
        Messages in the OpenAI form.

    Raises:
        UsageError: There is neither a prompt nor anything on stdin.
    """
    parts = [part for part in (piped.strip("\n"), prompt or "") if part.strip()]
    if not parts:
        raise console.UsageError("there is no prompt, and nothing on stdin", _EXAMPLE)
    question = {"role": "user", "content": "\n\n".join(parts)}
    return ({"role": "system", "content": system}, question) if system else (question,)


def describe_outcome(model: str, outcome: Outcome) -> dict[str, Any]:
    """Say what a turn left behind, as `--json` promises.

    Args:
        model: As the user named it.
        outcome: The turn.

    Returns:
        Keys that are a contract; more may be added.
    """
    return {
        "model": model,
        "answer": outcome.answer,
        "thinking": outcome.thinking,
        "finish_reason": outcome.done.reason,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call.arguments}
            for call in outcome.tool_calls
        ],
        "usage": asdict(outcome.done.usage),
        "timings": {key: round(value, 6) for key, value in asdict(outcome.done.timings).items()},
    }


@contextmanager
def _open_file(
    path: Path, model: str, screen: Screen, source: Source
) -> Iterator[tuple[ChatEngine, ModelIdentity]]:
    mark_used(path)
    with open_engine(path, screen, **source.engine_options) as engine:
        yield engine, identify_model(model, path)


@contextmanager
def _open_server(
    url: str, key: str | None, model: str
) -> Iterator[tuple[ChatEngine, ModelIdentity]]:
    with open_remote_engine(url, key, model) as engine:
        yield engine, identify_remote_model(engine)


def read_piped() -> str:
    """Read stdin unless a person sits at it.

    Returns:
        Its text; empty if there is none.

    Raises:
        UsageError: It is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise console.UsageError(
            f"stdin is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            "Convert it first, for example with iconv -t UTF-8.",
        ) from error


def _explain_length(outcome: Outcome, max_tokens: int | None) -> str:
    used = outcome.done.usage
    if max_tokens is not None and used.completion_tokens >= max_tokens:
        cause = f"stopped after {max_tokens} tokens; raise --max-tokens for more"
    else:
        n_tokens = used.prompt_tokens + used.completion_tokens
        cause = f"the context is full after {n_tokens} tokens; raise --ctx for more"
    return cause if outcome.answer else f"{cause}. It was still thinking: there is no answer yet."
