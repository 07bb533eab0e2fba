"""The line at the bottom: what the model is doing, how fast, and how full its context is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from localcascade.chat.conversation import Message
from localcascade.chat.turn import Turn

WARN_SHARE = 0.8
_BAR_CELLS = 8
_SEPARATOR = "  ·  "


@dataclass(frozen=True, slots=True)
class Readings:
    """All that the gauge shows; zero where nothing is known."""

    state: str = ""
    """In a word or two: ready, loading 42 %, thinking."""
    is_busy: bool = False
    tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    context_tokens: int = 0
    n_ctx: int = 0
    reused_tokens: int = 0
    memory_bytes: int = 0
    mode: str = ""

    @property
    def context_share(self) -> float:
        """Of the context that is used, 0 to 1."""
        return self.context_tokens / self.n_ctx if self.n_ctx else 0.0


class Gauge(Static):
    """Draws readings in one line; what matters less goes where the line is short."""

    readings: reactive[Readings] = reactive(Readings())

    def render(self) -> Content:
        """Put as many of the figures on the line as fit."""
        left = f"{'●' if self.readings.is_busy else '○'} {self.readings.state}"
        parts = list_figures(self.readings)
        room = self.size.width - cell_len(left) - 2
        while parts and cell_len(_SEPARATOR.join(parts)) > room:
            parts.pop()
        right = _SEPARATOR.join(parts)
        gap = " " * max(self.size.width - cell_len(left) - cell_len(right), 1)
        is_full = self.readings.context_share >= WARN_SHARE
        return Content.assemble(
            (left, "$accent" if self.readings.is_busy else "$foreground-muted"),
            gap,
            (right, "$text-warning" if is_full else "$foreground-muted"),
        )


def list_figures(readings: Readings) -> list[str]:
    """Write the figures, the most important first."""
    figures = []
    if readings.n_ctx:
        bar = draw_bar(readings.context_share)
        used, size = write_count(readings.context_tokens), write_count(readings.n_ctx)
        figures.append(f"{bar} {used} / {size}")
    if readings.tokens_per_s:
        figures.append(f"{readings.tokens_per_s:.0f} tok/s")
    if readings.mode:
        figures.append(readings.mode)
    if readings.prompt_tokens_per_s:
        figures.append(f"prompt {write_count(round(readings.prompt_tokens_per_s))} tok/s")
    if readings.reused_tokens:
        figures.append(f"{write_count(readings.reused_tokens)} reused")
    if readings.memory_bytes:
        figures.append(write_bytes(readings.memory_bytes))
    return figures


def draw_bar(share: float) -> str:
    """A bar of eight cells."""
    n_full = min(round(share * _BAR_CELLS), _BAR_CELLS)
    return "▰" * n_full + "▱" * (_BAR_CELLS - n_full)


def write_count(count: int) -> str:
    """A count in at most four characters: 950, 1.2k, 128k."""
    if count < 1000:
        return str(count)
    thousands = count / 1000
    return f"{thousands:.1f}k" if thousands < 9.95 else f"{thousands:.0f}k"


def write_bytes(n_bytes: int) -> str:
    """A size in MiB or GiB."""
    mebibytes = n_bytes / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def read_turn(readings: Readings, turn: Turn, *, is_compacting: bool = False) -> Readings:
    """Read off an answer what the gauge shows of it.

    Args:
        readings: What it shows now.
        turn: The answer, as far as it has come.
        is_compacting: Whether it is a summary.
    """
    stats = turn.stats
    speed = (stats.prompt_tokens - stats.reused_tokens) / stats.prompt_s if stats.prompt_s else 0
    return replace(
        readings,
        state=_name_state(turn, is_compacting),
        is_busy=not turn.is_over,
        tokens_per_s=turn.tokens_per_s,
        prompt_tokens_per_s=speed or readings.prompt_tokens_per_s,
        context_tokens=stats.prompt_tokens + stats.completion_tokens,
        reused_tokens=stats.reused_tokens,
    )


def count_context(path: Sequence[Message]) -> int:
    """Tokens that a conversation took of the context when its last answer was finished."""
    answers = [message for message in path if message.role == "assistant"]
    stats = answers[-1].stats if answers else None
    return stats.prompt_tokens + stats.completion_tokens if stats else 0


def _name_state(turn: Turn, is_compacting: bool) -> str:
    if turn.is_over:
        return "ready" if turn.state != "failed" else "failed"
    if is_compacting:
        return "compacting"
    if turn.first_s is None:
        prompt = turn.prompt
        return f"reading {prompt.done:,} / {prompt.total:,}" if prompt else "loading"
    return "thinking" if turn.n_thinking == turn.n_tokens else "answering"
