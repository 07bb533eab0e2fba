"""What a chat template may cost: a deterministic count of its work, not a clock.

One unit is about ten nanoseconds of work or one character of memory, so that a budget bounds both.
"""

from __future__ import annotations

from collections.abc import Collection

import jinja2

STEP = 100
"""Units of one loop step, call, filter or test."""
ELEMENT = 64
"""Units of one element of a list or dictionary: its pointer and its object."""
VISIT = 36
"""Units of looking at one value when it is weighed."""
NODE = 5
"""Units of one node of a template's syntax tree, each time it is run."""
BASE_UNITS = 64_000_000
UNITS_PER_INPUT_UNIT = 500
_UNBOUNDED = 1 << 62


class Exhausted(jinja2.TemplateRuntimeError):
    """The template used up its budget."""

    def __init__(self) -> None:
        super().__init__("it works far longer than any chat template needs to, so it was stopped")


class Meter:
    """Counts down from a budget; raises Exhausted below zero.

    Args:
        units: The budget.
    """

    def __init__(self, units: int) -> None:
        self._units = units
        self._left = units

    @property
    def spent(self) -> int:
        """Units taken so far."""
        return self._units - self._left

    def charge(self, units: int) -> None:
        """Take `units` from the budget, before they are spent."""
        self._left -= units
        if self._left < 0:
            raise Exhausted

    def span(self, value: object) -> None:
        """Charge for touching each element of `value` once, but not what is inside them."""
        self.charge(measure_span(value))

    def weigh(self, value: object, factor: int = 1) -> None:
        """Charge for all that `value` holds; a list that holds another twice pays for it twice.

        Args:
            value: Any value of a template.
            factor: What a unit costs.
        """
        stack = [value]
        while stack:
            self._open(stack.pop(), stack, factor)

    def weigh_text(self, value: object) -> None:
        """Charge for turning a value into text; lists grow by quotes and escapes."""
        if isinstance(value, str):
            self.charge(len(value))
        else:
            self.weigh(value, factor=10)

    def _open(self, value: object, stack: list[object], factor: int) -> None:
        if isinstance(value, str):
            self.charge((len(value) + VISIT) * factor)
        elif isinstance(value, Collection) and not isinstance(value, range):
            self.charge((len(value) * ELEMENT + VISIT) * factor)
            stack.extend(value)
            if isinstance(value, dict):
                stack.extend(value.values())
        else:
            self.charge(VISIT * factor)


def measure_span(value: object) -> int:
    """Units of the outermost level of a value: characters of a string, elements of a list."""
    if isinstance(value, str):
        return len(value)
    return len(value) * ELEMENT if isinstance(value, Collection) else 0


def budget_for(value: object) -> int:
    """Units that a template may spend on `value`, the variables it is given.

    Args:
        value: Plain data: strings, numbers, lists, dictionaries.

    Returns:
        A fixed part, enough for 640,000 steps, and a part that grows with the input.
    """
    scale = Meter(_UNBOUNDED)
    scale.weigh(value)
    return BASE_UNITS + UNITS_PER_INPUT_UNIT * scale.spent
