"""A bar for each stage of long work on stderr: what is done, rate and time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localcascade.cli import console

if TYPE_CHECKING:
    from rich.progress import Task

OnProgress = Callable[[str, int, int], None]
"""Called with stage, bytes (or what the stage counts) done and in all."""


@contextmanager
def draw_progress(stages: Mapping[str, str]) -> Iterator[OnProgress]:
    """Draw progress while the body runs, if stderr is a terminal.

    Args:
        stages: What each stage is called on the screen.
    """
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
                tasks[stage] = bars.add_task(stages[stage], total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield draw


@contextmanager
def draw_counts(stages: Mapping[str, tuple[str, str]]) -> Iterator[OnProgress]:
    """Draw progress that is not in bytes while the body runs, if stderr is a terminal.

    Args:
        stages: What each stage is called on the screen, and its unit: " tokens", or "%".
    """
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description:<17}"),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.fields[state]}"),
        progress.TimeRemainingColumn(),
        console=console.make_console(sys.stderr),
        disable=not sys.stderr.isatty(),
    ) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def draw(stage: str, done: int, total: int) -> None:
            name, unit = stages[stage]
            if stage not in tasks:
                tasks[stage] = bars.add_task(name, total=total, state="")
            bars.update(tasks[stage], completed=done)
            task = bars.tasks[tasks[stage]]
            bars.update(task.id, state=_describe_state(task, unit))

        yield draw


def _describe_state(task: Task, unit: str) -> str:
    if unit == "%":
        return f"{task.completed:.0f}%"
    rate = f", {task.speed:.0f}/s" if task.speed else ""
    return f"{task.completed:,.0f} of {task.total:,.0f}{unit}{rate}"
