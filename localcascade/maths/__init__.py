"""Formulas in a terminal: found in Markdown, laid out in two dimensions."""

from localcascade.maths.box import Box
from localcascade.maths.errors import LayoutError
from localcascade.maths.formula import Formula
from localcascade.maths.layout import layout
from localcascade.maths.segments import Segment, find

__all__ = ["Box", "Formula", "LayoutError", "Segment", "find", "layout"]
