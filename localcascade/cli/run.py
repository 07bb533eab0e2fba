"""`localcascade run`: one question, one answer."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.stream import Outcome, Screen, open_engine, play_turn
from localcascade.store import complete_model_name, find_model, mark_used

if TYPE_CHECKING:
    from pathlib import Path

    from localcascade.prompt.events import ChatRequest

_EXAMPLE = 'For example: localcascade run tiny "What is 12 + 30?"'


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name of the catalog, an installed name, or a GGUF file.",
            autocompletion=complete_model_name,
        ),
    ],
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
    ctx: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Context in tokens, prompt and answer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model a question.

    The answer streams to stdout, thinking to stderr. What is piped in is context: it comes
    before PROMPT, or is the prompt if there is none. Sampling that is not given is the model's
    own.

    \b
    localcascade run tiny "What is 347 + 586?"
    localcascade run nemotron-cascade-2 "Explain this error" < build.log
    localcascade run ./model.gguf "Prove it" --hide-thinking --max-tokens 8000
    localcascade run tiny "What is 2 + 2?" --no-think --temperature 0 --json
    """
    from localcascade.prompt.events import ChatRequest, Sampling

    request = ChatRequest(
        messages=compose_messages(system, prompt, _read_piped()),
        thinking=not no_think,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens),
    )
    screen = Screen(show_answer=not as_json, show_thinking=not (as_json or hide_thinking))
    path = find_model(model)
    mark_used(path)
    try:
        outcome = _ask(path, ctx, request, screen)
    except KeyboardInterrupt:
        # The user knows: no message, and what was written stays.
        raise typer.Exit(console.ExitCode.INTERRUPTED) from None
    if as_json:
        console.print_json(describe_outcome(model, outcome))
    elif outcome.done.reason == "length":
        screen.note(_explain_length(outcome, max_tokens))


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


def _ask(path: Path, ctx: int | None, request: ChatRequest, screen: Screen) -> Outcome:
    with open_engine(path, ctx, screen) as engine:
        return play_turn(engine, request, screen)


def _read_piped() -> str:
    """Read stdin unless a person sits at it."""
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
