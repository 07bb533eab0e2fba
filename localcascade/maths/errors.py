"""What the layout of formulas can refuse."""

from __future__ import annotations

from localcascade.errors import CascadeError


class LayoutError(CascadeError):
    """A formula that cannot be laid out; show its source instead."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, "Show the source of the formula.")
