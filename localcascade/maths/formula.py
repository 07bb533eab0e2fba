"""A formula that grows while a model writes it."""

from __future__ import annotations

from localcascade.maths.box import Box
from localcascade.maths.errors import LayoutError
from localcascade.maths.layout import layout


class Formula:
    """Holds the last layout that worked, so that a formula does not flicker while it streams.

    Args:
        ascii: As in `layout`.
        display: As in `layout`.
    """

    def __init__(self, *, ascii: bool = False, display: bool = True) -> None:
        self._ascii = ascii
        self._display = display
        self._latex: str | None = None
        self._box: Box | None = None
        self._problem = ""

    @property
    def box(self) -> Box | None:
        """The last layout that worked; None before the first, and for a finished formula that has
        none: show its source then."""
        return self._box

    @property
    def problem(self) -> str:
        """Why the latest source could not be laid out; empty if it could."""
        return self._problem

    def update(self, latex: str, *, closed: bool = False) -> Box | None:
        """Take the source so far.

        Args:
            latex: All of it, without delimiters.
            closed: Whether it is finished: then only its own layout will do.

        Returns:
            What to show, as `box`.
        """
        if latex != self._latex:
            self._latex = latex
            self._try(latex)
        if closed and self._problem:
            self._box = None
        return self._box

    def _try(self, latex: str) -> None:
        try:
            box = layout(latex, ascii=self._ascii, display=self._display)
        except LayoutError as error:
            self._problem = error.message
        else:
            self._box, self._problem = box, ""
