"""`localcascade quantize`: a checkpoint becomes one GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localcascade.cli import console
from localcascade.cli.units import format_bytes, format_duration
from localcascade.store import complete_model_name, find_checkpoint

if TYPE_CHECKING:
    from quantize.convert import OnProgress, Result

_STAGES = {"write": "Encoding", "verify": "Reading back"}


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, or a name of the catalog.",
            autocompletion=complete_model_name,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to make.")],
    type_name: Annotated[
        str,
        typer.Option(
            "--type", "-t", metavar="TYPE", help="Type of the large matrices: q8_0, q4_0, bf16, …"
        ),
    ] = "q8_0",
    fallback: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Type for matrices whose width TYPE cannot divide."),
    ] = None,
    pad: Annotated[
        bool, typer.Option("--pad", help="Widen with zeros, exactly, what TYPE does not fit.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Encoding threads; one a core by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Convert and quantize a Hugging Face checkpoint to GGUF.

    The large matrices become TYPE; norms, router, convolution and biases stay f32. A type that
    does not fit a matrix is refused, never replaced silently. OUT.gguf appears when it is
    complete and verified, and not before. A run that was killed goes on when given again.

    \b
    localcascade quantize tiny tiny.gguf --type q8_0
    localcascade quantize ~/Nemotron-Cascade-2-30B-A3B nc2.gguf --type iq4_nl
    localcascade quantize tiny small.gguf --type q6_k --fallback q8_0 --json
    localcascade quantize tiny padded.gguf --type q6_k --pad
    """
    from quantize.convert import quantize_checkpoint

    for given in filter(None, (type_name, fallback)):
        _check_type(given)
    folder = find_checkpoint(source)
    with _draw_progress() as on_progress:
        result = quantize_checkpoint(
            folder,
            output,
            type_name,
            fallback=fallback,
            pad=pad,
            n_threads=threads,
            on_progress=on_progress,
        )
    _report(result, as_json)


def _check_type(name: str) -> None:
    from quantize.ggml import type_named

    try:
        type_named(name)
    except ValueError as error:
        raise console.UsageError(str(error)) from error


@contextmanager
def _draw_progress() -> Iterator[OnProgress]:
    """Draw a bar for each stage on stderr, if that is a terminal: bytes, rate and time left."""
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description:<12}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console.make_console(sys.stderr),
        disable=not sys.stderr.isatty(),
    ) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_STAGES[stage], total=total)
            bars.update(tasks[stage], completed=done)

        yield draw


def _report(result: Result, as_json: bool) -> None:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        console.print_json(
            {
                "output": str(result.output),
                "file_bytes": result.file_bytes,
                "n_tensors": result.n_tensors,
                "elapsed_s": round(result.elapsed_s, 3),
                "peak_rss_bytes": result.peak_rss_bytes,
                "notes": list(result.notes),
            }
        )
        return
    print(
        f"{result.output}: {format_bytes(result.file_bytes)}, {result.n_tensors} tensors, "
        f"{format_duration(result.elapsed_s)}, peak memory {format_bytes(result.peak_rss_bytes)}"
    )
