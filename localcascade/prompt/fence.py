"""Rewrites a chat template's syntax tree so that its loops pay and its literals carry marks."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.visitor import NodeTransformer

from localcascade.prompt.marks import Marks
from localcascade.prompt.meter import NODE, STEP


class Fence(NodeTransformer):
    """One pass over the tree; the filters it inserts belong to BoundedEnvironment.

    Args:
        marks: How to mark the special texts in literals.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        """Mark the text between tags."""
        node.data = self._marks.tag(node.data)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        """Mark a string in an expression."""
        if isinstance(node.value, str):
            node.value = self._marks.tag(node.value)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Let each step pay, also those that the loop's own `if` skips."""
        self._charge_body(node)
        if node.test is not None:
            node.test = nodes.And(_apply("#step", nodes.Const(STEP)), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """Let each call pay for the body."""
        return self._charge_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        """Let each call pay for the body."""
        return self._charge_body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Let `~` pay; the sandbox does not see it."""
        self.generic_visit(node)
        return _apply("#concat", nodes.List(node.nodes))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Let comparisons pay for what they may have to walk."""
        self.generic_visit(node)
        node.expr = _apply("#weigh", node.expr)
        for operand in node.ops:
            operand.expr = _apply("#weigh", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Let slices pay for the copy; the sandbox does not see them."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _apply("#span", node.node)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        """Let computed keys pay for their hash; literal keys stay bare, they are compared."""
        node.value = self.visit(node.value)
        if not isinstance(node.key, nodes.Const):
            node.key = _apply("#weigh", self.visit(node.key))
        return node

    def _charge_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        units = STEP + sum(map(_count_units, node.body))
        self.generic_visit(node)
        payment = nodes.ExprStmt(_apply("#step", nodes.Const(units)))
        node.body.insert(0, payment.set_lineno(node.lineno))
        return node

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        kind = type(node).__name__.lower()
        raise TemplateSyntaxError(f"a chat template cannot use {kind}", node.lineno)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refuse


def _count_units(tree: nodes.Node) -> int:
    units, stack = 0, [tree]
    while stack:
        node = stack.pop()
        units += NODE + (len(node.data) if isinstance(node, nodes.TemplateData) else 0)
        stack.extend(node.iter_child_nodes())
    return units


def _apply(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)
