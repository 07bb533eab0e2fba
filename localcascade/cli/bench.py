"""`localcascade bench`: how fast a model reads and writes on this machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.loading import Placement, spread_options
from localcascade.cli.options import AsJson, ModelName
from localcascade.cli.units import format_bytes
from localcascade.store import find_model

if TYPE_CHECKING:
    from localcascade.engine.wire import Measurement, SpeedTest

MAX_BATCH = 65536


@dataclass(frozen=True, slots=True)
class Row:
    """One test and what came of it."""

    test: SpeedTest
    n_batch: int
    result: Measurement

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens a second, of each repetition."""
        return tuple(self.test.n_tokens / elapsed_s for elapsed_s in self.result.elapsed_s)

    @property
    def name(self) -> str:
        """As llama-bench calls it: pp512 reads, tg128 writes, after so many tokens."""
        kind = f"pp{self.test.n_prompt}" if self.test.n_prompt else f"tg{self.test.n_gen}"
        return f"{kind} @ d{self.test.depth}" if self.test.depth else kind


@spread_options
def bench(
    model: ModelName,
    n_prompt: Annotated[
        str, typer.Option("--n-prompt", "-p", metavar="N,…", help="Tokens to read; 0 for none.")
    ] = "512",
    n_gen: Annotated[
        str, typer.Option("--n-gen", "-n", metavar="N,…", help="Tokens to write; 0 for none.")
    ] = "128",
    depth: Annotated[
        str, typer.Option("--depth", "-d", metavar="N,…", help="Tokens in the context before.")
    ] = "0",
    batch: Annotated[
        str, typer.Option("--batch", "-b", metavar="N,…", help="Tokens read at once.")
    ] = "512",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, metavar="N", help="Runs of each test.")
    ] = 5,
    *,
    placement: Placement,
    as_json: AsJson = False,
) -> None:
    """Measure how many tokens a second a model reads and writes.

    The tests are those of llama.cpp's llama-bench, and so are their names: pp512 reads 512 random
    tokens, tg128 writes 128, "@ d4096" with 4096 in the context before. Nothing but llama.cpp's
    computing is timed. Memory is the most that the engine's process held of main memory, the
    mapped file included. --json writes a list, one object a test.

    \b
    localcascade bench tiny
    localcascade bench nemotron-cascade-2 -p 512,2048 -n 128 -d 0,8192
    localcascade bench ./model.gguf -b 128,512 --json | jq '.[].tokens_per_s'
    """
    path = find_model(model)
    tests = make_tests(
        parse_counts("-p", n_prompt),
        parse_counts("-n", n_gen),
        parse_counts("-d", depth),
        repetitions,
    )
    batches = [n for n in parse_counts("-b", batch) if 0 < n <= MAX_BATCH]
    if not (tests and batches):
        raise console.UsageError("there is nothing to measure", "Give -p or -n, and a --batch.")
    rows = list(measure(path, tests, batches, placement.engine_options))
    if as_json:
        print(json.dumps([describe_row(row) for row in rows], indent=2))
    else:
        _print_rows(rows)


def parse_counts(flag: str, text: str) -> list[int]:
    """Read numbers with commas between.

    Args:
        flag: Whose they are.
        text: As the user wrote them.

    Returns:
        Each once, in order.

    Raises:
        UsageError: One is no count.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) <= 10 for part in parts):
        raise console.UsageError(
            f"{flag} {text}: these are no numbers of tokens", f"For example: {flag} 128,512"
        )
    return list(dict.fromkeys(map(int, parts)))


def make_tests(
    prompts: Sequence[int], gens: Sequence[int], depths: Sequence[int], n_repetitions: int
) -> list[SpeedTest]:
    """List the tests: at each depth, every prompt and then every generation."""
    from localcascade.engine.wire import SpeedTest

    lengths = [(n, 0) for n in prompts] + [(0, n) for n in gens]
    pairs = product(depths, (pair for pair in lengths if sum(pair)))
    return [SpeedTest(*length, depth, n_repetitions) for depth, length in pairs]


def measure(
    path: Path, tests: Sequence[SpeedTest], batches: Sequence[int], loading: dict[str, Any]
) -> Iterator[Row]:
    """Run the tests at each size of micro-batch, with a bar on stderr.

    Args:
        path: The model file.
        tests: What to measure.
        batches: Sizes of micro-batches; the model is loaded anew for each.
        loading: How; arguments of Engine.

    Yields:
        A row a test.

    Raises:
        CascadeError: It cannot be loaded, or does not fit.
    """
    from localcascade.cli.progress import draw_counts
    from localcascade.engine.client import Engine
    from localcascade.settings import CHAT_OUTPUTS

    n_ctx = max(test.depth + test.n_tokens for test in tests)
    n_runs = sum(test.n_repetitions for test in tests) * len(batches)
    n_done = 0
    with draw_counts({"bench": ("Measuring", " runs")}) as on_progress:
        for n_batch in batches:
            options: dict[str, Any] = {"n_batch": n_batch, "n_outputs": CHAT_OUTPUTS}
            options["checkpoint_bytes"] = 0
            with Engine(path, n_ctx=n_ctx, **options, **loading) as engine:
                engine.load()
                for test in tests:
                    base = n_done

                    def tell(n: int, base: int = base) -> None:
                        on_progress("bench", base + n, n_runs)

                    yield Row(test, n_batch, engine.measure(test, tell))
                    n_done += test.n_repetitions


def describe_row(row: Row) -> dict[str, Any]:
    """Say one row as `--json` promises; keys are a contract, more may be added."""
    return {
        "test": row.name,
        "n_prompt": row.test.n_prompt,
        "n_gen": row.test.n_gen,
        "depth": row.test.depth,
        "n_batch": row.n_batch,
        "tokens_per_s": round(statistics.mean(row.rates), 3),
        "stddev": round(_spread(row), 3),
        "samples": [round(rate, 3) for rate in row.rates],
        "peak_memory_bytes": row.result.peak_bytes,
    }


def _spread(row: Row) -> float:
    return statistics.stdev(row.rates) if len(row.rates) > 1 else 0.0


def _print_rows(rows: Sequence[Row]) -> None:
    table = console.make_table("Test", "Batch>", "Tokens/s>", "±>", "Memory>")
    for row in rows:
        table.add_row(
            row.name,
            str(row.n_batch),
            f"{statistics.mean(row.rates):,.2f}",
            f"{_spread(row):,.2f}",
            format_bytes(row.result.peak_bytes),
        )
    console.print_tables(table)
