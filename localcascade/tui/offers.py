"""How offers of models are drawn: a row of the list, and all about one of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from localcascade.chat.controls import make_safe
from localcascade.errors import CascadeError
from localcascade.tui.shelf import FIT_WORDS, Fit, Offer, Share, State, Transfer
from localcascade.tui.widgets.gauge import write_bytes, write_count

FIT_STYLES: Final[Mapping[Fit, str]] = MappingProxyType(
    {
        "gpu": "$text-success",
        "memory": "$text-success",
        "experts": "$text-warning",
        "layers": "$text-warning",
        "no": "$text-error",
        "unknown": "$foreground-muted",
    }
)
STATE_WORDS: Final[Mapping[State, str]] = MappingProxyType(
    {"installed": "installed", "bundled": "bundled", "catalog": "to be fetched"}
)
_MARKS: Final[Mapping[State, str]] = MappingProxyType(
    {"installed": "●", "bundled": "◐", "catalog": "○"}
)
# Column: cells it takes; the last ones go first where the row is short.
_COLUMNS: Final[Mapping[str, int]] = MappingProxyType(
    {"fit": 16, "size": 9, "speed": 11, "type": 7}
)
_NAME_CELLS = 18
_BAR_CELLS = 20


def draw_row(offer: Offer, width: int) -> Content:
    """Draw an offer in one line.

    Args:
        offer: What to draw.
        width: Cells there are.
    """
    columns = choose_columns(width)
    room = width - sum(_COLUMNS[name] + 2 for name in columns) - 2
    name = fit_cells(make_safe(offer.name).replace("\n", " "), max(room, 1))
    mark = "$text-primary" if offer.state != "catalog" else "$foreground-muted"
    parts: list[str | tuple[str, str]] = [(f"{_MARKS[offer.state]} ", mark), (name, "bold")]
    for column in columns:
        text, style = _write_column(offer, column)
        cells = _COLUMNS[column]
        aligned = text.rjust(cells) if column in ("size", "speed") else fit_cells(text, cells)
        parts += ["  ", (aligned, style)]
    return Content.assemble(*parts)


def choose_columns(width: int) -> list[str]:
    """Choose the columns that a row has room for beside the name, in the order they are drawn."""
    room, chosen = width - _NAME_CELLS - 2, []
    for name, cells in _COLUMNS.items():
        if cells + 2 > room:
            break
        room -= cells + 2
        chosen.append(name)
    order = ("type", "size", "fit", "speed")
    return [name for name in order if name in chosen]


def fit_cells(text: str, cells: int) -> str:
    """Cut or fill a text to so many cells, wide characters counted as two."""
    if cell_len(text) <= cells:
        return text + " " * (cells - cell_len(text))
    return set_cell_size(text, max(cells - 1, 0)) + "…"


def _write_column(offer: Offer, column: str) -> tuple[str, str]:
    quiet = "$foreground-muted"
    if column == "fit":
        return FIT_WORDS[offer.fit], FIT_STYLES[offer.fit]
    if column == "size":
        return (write_bytes(offer.size_bytes) if offer.size_bytes else "", quiet)
    if column == "speed":
        return (f"~{offer.tokens_per_s:.0f} tok/s" if offer.tokens_per_s else "", quiet)
    return make_safe(offer.type), quiet


def draw_details(offer: Offer) -> Content:
    """Draw all that is known of an offer, in lines of any width."""
    head = Content.assemble((make_safe(offer.name), "bold"))
    lines = [head, *_list_lines(offer)]
    return Content("\n").join(lines)


def _list_lines(offer: Offer) -> Iterable[Content]:
    if offer.summary:
        yield Content(make_safe(offer.summary))
    yield Content("")
    yield Content.assemble((write_fit(offer), FIT_STYLES[offer.fit]))
    for share in offer.shares:
        yield from draw_share(share)
    yield Content("")
    for label, value in _list_facts(offer):
        yield Content.assemble((label.ljust(10), "$foreground-muted"), value)
    for note in offer.notes:
        yield Content("")
        yield Content.assemble((make_safe(note), "$foreground-muted"))


def write_fit(offer: Offer) -> str:
    """Say whether an offer fits, as the beginning of a sentence."""
    words = FIT_WORDS[offer.fit]
    return words[:1].upper() + words[1:]


def _list_facts(offer: Offer) -> Iterable[tuple[str, str]]:
    yield "State", STATE_WORDS[offer.state]
    if offer.type:
        yield "Type", make_safe(offer.type)
    if offer.size_bytes:
        yield "File", write_bytes(offer.size_bytes)
    if offer.n_ctx:
        yield "Context", f"{write_count(offer.n_ctx)} tokens"
    if offer.tokens_per_s:
        yield "Speed", f"about {offer.tokens_per_s:.0f} tokens/s"
    if offer.download_bytes:
        yield "Download", write_bytes(offer.download_bytes)
    if offer.licence:
        yield "Licence", make_safe(offer.licence)


def draw_share(share: Share) -> Iterable[Content]:
    """Draw what a model takes of a device: a bar, and the figures under it."""
    is_over = share.used_bytes > share.free_bytes
    style = "$text-error" if is_over else "$text-primary"
    part = share.used_bytes / share.free_bytes if share.free_bytes else 1.0
    n_full = max(min(round(part * _BAR_CELLS), _BAR_CELLS), 1 if share.used_bytes else 0)
    bar = ("━" * n_full, style), ("─" * (_BAR_CELLS - n_full), "$foreground-muted")
    figures = f"{write_bytes(share.used_bytes)} of {write_bytes(share.free_bytes)}"
    yield Content.assemble(*bar)
    yield Content.assemble((f"{make_safe(share.device)}: {figures} free", "$foreground-muted"))


def describe_key(offer: Offer | None) -> str:
    """Say what Enter does with an offer."""
    if offer is None:
        return "Nothing matches"
    if offer.state == "catalog":
        n_bytes = offer.download_bytes
        return f"Enter fetches {write_bytes(n_bytes)}" if n_bytes else "Enter tells the next step"
    return "Enter opens" if offer.state == "installed" else "Enter quantizes and opens"


def describe_transfer(transfer: Transfer) -> str:
    """Say how far a transfer is, in one line."""
    if not transfer.bytes_per_s:
        return transfer.stage
    parts = [transfer.stage, f"{write_bytes(transfer.done)} of {write_bytes(transfer.total)}"]
    parts.append(f"{write_bytes(round(transfer.bytes_per_s))}/s")
    if transfer.left_s is not None:
        parts.append(f"{write_duration(transfer.left_s)} left")
    return "  ·  ".join(parts)


def write_error(error: CascadeError) -> str:
    """Write an error with what to do about it, in one line."""
    return make_safe(f"{error}. {error.hint}" if error.hint else f"{error}.").replace("\n", " ")


def write_duration(seconds: float) -> str:
    """Write a duration for people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
