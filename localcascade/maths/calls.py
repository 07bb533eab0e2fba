"""One use of a command in a formula, with what its drawing needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pylatexenc.latexwalker import LatexGroupNode

from localcascade.maths.atoms import Atom, Style, join_atoms
from localcascade.maths.box import Box
from localcascade.maths.errors import LayoutError
from localcascade.maths.grammar import Item, Node, flatten
from localcascade.maths.shapes import ASCII_PEN, UNICODE_PEN, Pen

Draw = Callable[[Sequence[Item], Style], list[Atom]]
"""What draws a row of items: layout.draw."""


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a command in a formula."""

    name: str
    """The command, without its backslash."""

    arguments: Sequence[Node | None]
    """Its arguments; None for an optional one that is not there."""

    style: Style
    """The style around it."""

    draw_items: Draw
    """What draws the arguments."""

    def node(self, index: int) -> Node:
        """An argument that must be there."""
        if index >= len(self.arguments) or self.arguments[index] is None:
            raise LayoutError(f"\\{self.name} needs its argument in braces")
        return self.arguments[index]

    def nodes(self, index: int) -> list[Node]:
        """What is inside the braces of an argument; the argument itself if it has none."""
        node = self.node(index)
        return list(node.nodelist) if isinstance(node, LatexGroupNode) else [node]

    def atoms(self, index: int, style: Style | None = None) -> list[Atom]:
        """The atoms of an argument, in the style around unless another is given."""
        return self.draw_items(flatten(self.nodes(index)), style or self.style)

    def box(self, index: int, style: Style | None = None) -> Box:
        """The box of an argument."""
        style = style or self.style
        return join_atoms(self.atoms(index, style), style.small)

    def source(self, index: int) -> str:
        """The text of an argument, as it stands in the source, without braces."""
        return str(self.node(index).latex_verbatim()).strip("{}[] ")

    @property
    def pen(self) -> Pen:
        """The characters for lines."""
        return ASCII_PEN if self.style.ascii else UNICODE_PEN

    @property
    def is_linear(self) -> bool:
        """Whether forms on one line are wanted."""
        return self.style.flat or self.style.small


@dataclass(frozen=True, slots=True)
class Command:
    """How a command takes its arguments and is drawn."""

    arguments: str
    """As `make_grammar` reads it."""

    draw: Callable[[Call], Atom | None]
    """What draws it; None as the result draws nothing."""
