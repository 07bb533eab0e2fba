"""`localcascade session`: what was said, found again, exported, removed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.ls import format_moment
from localcascade.cli.options import AsJson
from localcascade.errors import CascadeError, HistoryDamaged, HistoryError, SessionNotFound
from quantize.part import replace_file

if TYPE_CHECKING:
    from localcascade.history import History, Message, Salvage, Session, Transcript
    from localcascade.history.latex import Piece

ID_CHARACTERS = 8
"""Of an id in a list; any unique beginning will do where one is asked for."""

session = typer.Typer(
    name="session",
    help="Find, show, export and remove what was said.\n\n\b\n"
    "localcascade session ls\n"
    'localcascade session search "second derivative"\n'
    "localcascade session export 3f2a --format latex -o notes.tex",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


class Format(StrEnum):
    """What a session can be exported as."""

    MARKDOWN = "markdown"
    JSON = "json"
    LATEX = "latex"


def complete_session(incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a session for the shell; each with its title."""
    from localcascade.history import History

    with suppress(CascadeError), History.open() as history:
        found = history.list_sessions(200)
        return [(each.id, each.title) for each in found if each.id.startswith(incomplete)]
    return []


SessionId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The id's beginning will do.", autocompletion=complete_session
    ),
]


@session.command("ls")
def list_sessions(
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, metavar="N", help="Only the last N.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the sessions, the last one first.

    \b
    localcascade session ls
    localcascade session ls --json | jq -r '.sessions[].title'
    """
    with _open_history() as history:
        found = history.list_sessions(limit)
    if as_json:
        console.print_json({"sessions": [describe_session(each) for each in found]})
    elif found:
        table = console.make_table("Id", "Last used", "Messages>", "Model", "Title")
        for each in found:
            table.add_row(
                each.id[:ID_CHARACTERS],
                f"{datetime.fromtimestamp(each.updated_s):%Y-%m-%d %H:%M}",
                str(each.n_messages),
                console.make_text(each.model.name),
                console.make_text(each.title),
            )
        console.print_tables(table)
    else:
        print("There is no session yet. `localcascade run` begins one.", file=sys.stderr)


@session.command("show")
def show_session(
    id: SessionId,
    thinking: Annotated[
        bool, typer.Option("--thinking", help="With what was thought, by a tutor too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a session.

    \b
    localcascade session show 3f2a
    localcascade session show 3f2a --thinking | less
    """
    with _open_history() as history:
        transcript = history.export(history.find_session(id).id)
    if as_json:
        console.print_json(describe_transcript(transcript))
        return
    from localcascade.history.markdown import write_markdown

    text = write_markdown(transcript if thinking else _hide_thinking(transcript, lambda _: True))
    print(console.escape_controls(text) if sys.stdout.isatty() else text, end="")


@session.command("search")
def search_sessions(
    query: Annotated[str, typer.Argument(metavar="WORDS", help='All must occur; "quoted" as one.')],
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="Most matches.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Find words in what was said and thought, also by their beginnings.

    What a tutor thought stays sealed.

    \b
    localcascade session search deriv
    localcascade session search '"chain rule" proof' --json | jq -r '.matches[].session'
    """
    from localcascade.chat.archive import search_unsealed

    with _open_history() as history:
        found = search_unsealed(history, query, limit)
    if as_json:
        rows = [{**asdict(each), "created": format_moment(each.created_s)} for each in found]
        console.print_json({"matches": rows})
        return
    for each in found:
        where = f"{each.role}, thinking" if each.in_thinking else each.role
        title = console.escape_controls(each.title)
        print(f"{each.session[:ID_CHARACTERS]}  {title} ({where})")
        print(f"    {_mark(each.snippet)}")
    if not found:
        print("Nothing was found.", file=sys.stderr)


@session.command("export")
def export_sessions(
    id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="The id's beginning will do.", autocompletion=complete_session
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All sessions.")] = False,
    format: Annotated[
        Format | None, typer.Option(help="By default, as the file's name says, or markdown.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of stdout.")
    ] = None,
) -> None:
    """Write sessions as Markdown, LaTeX or JSON.

    JSON alone holds all branches and all thinking; the others have the branch that is on the
    screen, and not what a tutor thought. Of a damaged history, what can be read is written, and
    the exit code is 5.

    \b
    localcascade session export 3f2a > talk.md
    localcascade session export 3f2a -o talk.tex
    localcascade session export --all --format json -o sessions.json
    """
    if (id is None) != everything:
        raise console.UsageError("say which session", "Give the beginning of an ID, or --all.")
    chosen = format or choose_format(output)
    if everything and chosen is Format.LATEX:
        raise console.UsageError("LaTeX is one document", "Give the ID of one session.")
    transcripts, damage = _read_transcripts(id)
    _write_out(_WRITERS[chosen](transcripts), output)
    if damage:
        console.print_error(damage)
        raise typer.Exit(console.ExitCode.BAD_FILE)


@session.command("rm")
def remove_sessions(
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID", help="The ids' beginnings will do.", autocompletion=complete_session
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove sessions for good.

    An id that is not known is refused, and then nothing at all is removed.

    \b
    localcascade session rm 3f2a
    localcascade session rm 3f2a 77b1 --yes
    """
    with _open_history() as history:
        found = list({each.id: each for each in map(history.find_session, ids)}.values())
        if not yes:
            _ask_leave(found)
        for each in found:
            history.purge(each.id)
        history.flush()
    if as_json:
        console.print_json({"removed": [each.id for each in found]})
    else:
        print(f"removed {', '.join(each.id[:ID_CHARACTERS] for each in found)}")


def choose_format(output: Path | None) -> Format:
    """Tell the format by the ending of a file's name."""
    endings = {".json": Format.JSON, ".tex": Format.LATEX}
    return endings.get(output.suffix.lower(), Format.MARKDOWN) if output else Format.MARKDOWN


def describe_session(session: Session) -> dict[str, Any]:
    """Build one session of `--json`; keys are a contract, more may be added."""
    times = {
        "created": format_moment(session.created_s),
        "updated": format_moment(session.updated_s),
    }
    return asdict(session) | times


def describe_transcript(transcript: Transcript) -> dict[str, Any]:
    """Build a session with its messages, of all branches, for JSON."""
    messages = [_describe_message(message) for message in transcript.messages]
    return {**describe_session(transcript.session), "messages": messages}


def find_formulas(text: str) -> list[Piece]:
    """Cut Markdown text into formulas that can be laid out, and the rest."""
    from localcascade.history.latex import Piece
    from localcascade.maths import LayoutError, find, layout

    pieces = []
    for segment in find(text):
        latex = segment.latex if segment.is_maths else ""
        if latex:
            try:
                layout(latex)
            except LayoutError:
                latex = ""
        pieces.append(Piece(segment.source, latex, segment.display))
    return pieces


def _describe_message(message: Message) -> dict[str, Any]:
    return {**asdict(message), "created": format_moment(message.created_s)}


def _write_markdown(transcripts: Sequence[Transcript]) -> str:
    from localcascade.history.markdown import write_markdown

    return "\n".join(write_markdown(_seal(each)) for each in transcripts)


def _write_latex(transcripts: Sequence[Transcript]) -> str:
    from localcascade.history.latex import write_latex

    return write_latex(_seal(transcripts[0]), find_formulas)


def _write_json(transcripts: Sequence[Transcript]) -> str:
    sessions = {"sessions": [describe_transcript(each) for each in transcripts]}
    return json.dumps(sessions, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


_WRITERS: dict[Format, Callable[[Sequence[Transcript]], str]] = {
    Format.MARKDOWN: _write_markdown,
    Format.LATEX: _write_latex,
    Format.JSON: _write_json,
}


@contextmanager
def _open_history() -> Iterator[History]:
    """Open the history, with a note where it can only be read."""
    from localcascade.history import History

    with closing(History.open()) as history:
        if history.problem:
            console.print_note(f"{history.problem.message}; it is only read")
        yield history


def _read_transcripts(id: str | None) -> tuple[list[Transcript], HistoryError | None]:
    """Read sessions; of a damaged history, what is left.

    Returns:
        One session, or all for None; and what is wrong with the file.
    """
    try:
        with _open_history() as history:
            wanted = history.list_sessions() if id is None else [history.find_session(id)]
            return [history.export(each.id) for each in wanted], None
    except HistoryDamaged as error:
        from localcascade.history import salvage

        saved = salvage(Path(error.path))
        if not saved.transcripts:
            raise
        return _choose_saved(saved, id, error), HistoryDamaged(
            error.path, _count_saved(saved), "Move the file away; a new one is begun then."
        )


def _choose_saved(saved: Salvage, id: str | None, error: HistoryError) -> list[Transcript]:
    chosen = [each for each in saved.transcripts if each.session.id.startswith(id or "")]
    if id is None or len(chosen) == 1:
        return chosen
    problem = f"in what can be read, {len(chosen)} sessions begin with {id!a:.60}"
    raise SessionNotFound(error.path, problem, "Give --all.") from error


def _count_saved(saved: Salvage) -> str:
    n_messages = sum(len(each.messages) for each in saved.transcripts)
    found = f"{len(saved.transcripts)} sessions with {n_messages} messages were read"
    return f"the file is damaged: {found}, {saved.n_lost} rows or more are lost"


def _write_out(text: str, output: Path | None) -> None:
    """Write to stdout as UTF-8, or to a file that appears when it is whole."""
    data = text.encode("utf-8", "replace")
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    replace_file(output, data)


def _seal(transcript: Transcript) -> Transcript:
    from localcascade.chat.journal import is_sealed

    return _hide_thinking(transcript, is_sealed)


def _hide_thinking(transcript: Transcript, is_hidden: Callable[[Message], bool]) -> Transcript:
    shown = (replace(m, thinking="") if is_hidden(m) else m for m in transcript.messages)
    return replace(transcript, messages=tuple(shown))


def _mark(snippet: Sequence[str]) -> str:
    """One line, with what was found in bold where escape codes are allowed."""
    begin, end = ("\x1b[1m", "\x1b[0m") if console.use_colour(sys.stdout) else ("", "")
    pieces = [console.escape_controls(" ".join(f"[{each}]".split())[1:-1]) for each in snippet]
    marked = (f"{begin}{each}{end}" if i % 2 else each for i, each in enumerate(pieces))
    return "".join(marked).strip()


def _ask_leave(sessions: Sequence[Session]) -> None:
    """Ask, and end with 1 unless the answer is yes; without a terminal there is nobody to ask."""
    if not sys.stdin.isatty():
        raise console.UsageError("there is nobody to ask", "Give --yes to remove without asking.")
    for each in sessions:
        title = console.escape_controls(each.title)
        print(f"{each.id}, {each.n_messages} messages: {title}", file=sys.stderr)
    print("Remove for good? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        print("Nothing was removed.", file=sys.stderr)
        raise typer.Exit(console.ExitCode.FAILED)
