"""`localcascade quantize`: a checkpoint becomes one GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.progress import OnProgress, draw_progress
from localcascade.cli.units import format_bytes, format_duration
from localcascade.store import complete_model_name, find_checkpoint, mark_used

if TYPE_CHECKING:
    from localcascade.download.remote import Stream
    from quantize.convert import Result

_STAGES = {"fetch": "Fetching", "write": "Encoding", "verify": "Reading back"}


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, or a name of the catalog; or ORG/REPO[@REV] to stream.",
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
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix, from `localcascade calibrate`."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read the weights from the Hub, and keep none of them.")
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

    With --stream the disk needs room for OUT.gguf only: each file of the repository is read once,
    in order, and must have the hash that the Hub announces.

    \b
    localcascade quantize tiny tiny.gguf --type q8_0
    localcascade quantize ~/Nemotron-Cascade-2-30B-A3B nc2.gguf --type iq4_nl
    localcascade quantize tiny small.gguf --type q6_k --fallback q8_0 --json
    localcascade quantize tiny t.gguf --type iq3_s --pad --imatrix t.imatrix
    localcascade quantize --stream nemotron-cascade-2 nc2.gguf --type iq4_nl
    localcascade quantize --stream ORG/REPO@v1.0 out.gguf
    """
    from quantize.convert import quantize_checkpoint

    for given in filter(None, (type_name, fallback)):
        _check_type(given)
    with (
        draw_progress(_STAGES) as on_progress,
        _open_source(source, stream, on_progress) as opened,
    ):
        result = quantize_checkpoint(
            opened.folder,
            output,
            type_name,
            fallback=fallback,
            pad=pad,
            importance=imatrix,
            name=opened.name,
            shards=opened.stream.shards if opened.stream else None,
            n_threads=threads,
            on_progress=on_progress,
        )
    _report(result, opened.stream, as_json)


@dataclass(frozen=True)
class _Source:
    """Where a checkpoint is read from."""

    folder: Path
    name: str | None = None
    """Of the model; None takes the folder's."""
    stream: Stream | None = None
    """The Hub, if the weights come from there."""


@contextmanager
def _open_source(source: str, is_streamed: bool, on_progress: OnProgress) -> Iterator[_Source]:
    if not is_streamed:
        folder = find_checkpoint(source)
        mark_used(folder)
        yield _Source(folder)
        return
    from localcascade.download.remote import open_stream

    with open_stream(source, on_progress=on_progress) as stream:
        licence = stream.plan.licence or f"none is stated; look at {stream.plan.page}"
        print(f"note: licence: {console.escape_controls(licence)}", file=sys.stderr)
        yield _Source(stream.folder, stream.plan.name, stream)


def _check_type(name: str) -> None:
    from quantize.ggml import type_named

    try:
        type_named(name)
    except ValueError as error:
        raise console.UsageError(str(error)) from error


def _report(result: Result, stream: Stream | None, as_json: bool) -> None:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    for name in result.unverified if stream else ():
        print(
            f"note: {console.escape_controls(name)} took several runs to read, so its hash could "
            "not be checked",
            file=sys.stderr,
        )
    if as_json:
        console.print_json(
            _describe(result) | ({"stream": _describe_stream(result, stream)} if stream else {})
        )
        return
    print(
        f"{result.output}: {format_bytes(result.file_bytes)}, {result.n_tensors} tensors, "
        f"{format_duration(result.elapsed_s)}, peak memory {format_bytes(result.peak_rss_bytes)}"
    )
    if stream:
        n_files = len(result.verified) + len(result.unverified)
        print(
            f"{stream.plan.repo}@{stream.plan.commit[:12]}: "
            f"{format_bytes(stream.shards.fetched_bytes)} fetched, "
            f"{len(result.verified)} of {n_files} files verified"
        )


def _describe(result: Result) -> dict[str, Any]:
    return {
        "output": str(result.output),
        "file_bytes": result.file_bytes,
        "n_tensors": result.n_tensors,
        "elapsed_s": round(result.elapsed_s, 3),
        "peak_rss_bytes": result.peak_rss_bytes,
        "notes": list(result.notes),
    }


def _describe_stream(result: Result, stream: Stream) -> dict[str, Any]:
    return {
        "repo": stream.plan.repo,
        "commit": stream.plan.commit,
        "fetched_bytes": stream.shards.fetched_bytes,
        "verified": list(result.verified),
        "unverified": list(result.unverified),
    }
