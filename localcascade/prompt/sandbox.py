"""Jinja for chat templates that nobody vouches for: an allowlist of operations, all metered.

A template comes with a model file from anywhere. It sees plain data only, can call only what the
tables below name, and pays for each operation before it is carried out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace

from localcascade.prompt.costs import (
    MAX_WIDTH,
    check_json_layout,
    cost_of_filter,
    cost_of_method,
    cost_of_operator,
)
from localcascade.prompt.marks import Marks
from localcascade.prompt.meter import ELEMENT, STEP, Meter

MAX_CALL_DEPTH = 64


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (
        str,
        _words(
            "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal "
            "isdigit islower isnumeric isspace istitle isupper join lower lstrip partition "
            "removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
            "splitlines startswith strip swapcase title upper"
        ),
    ),
    (dict, _words("copy get items keys values")),
    (list, _words("copy count index")),
    (tuple, _words("count index")),
    (
        LoopContext,
        _words(
            "changed cycle depth depth0 first index index0 last length nextitem previtem revindex "
            "revindex0"
        ),
    ),
    (Cycler, _words("current next reset")),
)
"""What a template may reach from a value, by its type; everything else is refused."""

_FREE_FILTERS = _words("count d default first last length")
_SPAN_FILTERS = _words("items list map reject rejectattr reverse select selectattr")
_DEEP_FILTERS = _words(
    "abs capitalize dictsort e escape float indent int join lower max min replace round safe sort "
    "string sum title trim unique upper wordcount"
)
_COMPARING_TESTS = _words(
    "!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper"
)
_NUMBER_TESTS = _words("divisibleby even odd")
_PLAIN_TIME_FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z%])*")


class Refusal(jinja2.TemplateRuntimeError):
    """The template itself refused the conversation through raise_exception."""


class TemplateNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` is a name a template may use
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the tag's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """An environment in which every operation is on a list and on the meter.

    Args:
        marks: The marks that the template's literals carry.
        now: The clock behind strftime_now.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, marks: Marks, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[LoopControlExtension, GenerationTag],
        )
        self.marks = marks
        self.meter = Meter(0)
        self.finalize = self._emit
        self._now = now
        self._depth = 0
        self._install_filters()
        self._install_tests()
        self.globals = {
            "range": self.globals["range"],
            "dict": _make_dict,
            "namespace": TemplateNamespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _refuse,
            "strftime_now": self._format_now,
        }
        self._functions = tuple(self.globals.values())

    # What a template may reach.

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ARG002
        """Whether METHODS names the attribute, or the object is a namespace of the template's."""
        if attr.startswith("_"):
            return False
        return isinstance(obj, Namespace) or any(
            isinstance(obj, kind) and attr in names for kind, names in METHODS
        )

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse at once: an undefined value would print as nothing and hide the attempt."""
        raise SecurityError(f"{type(obj).__name__}.{attribute} is not for chat templates")

    def wrap_str_format(self, value: Any) -> None:  # noqa: ARG002
        """str.format is not offered; METHODS refuses it like every other unlisted method."""
        return

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Subscribe, at the price of hashing the key."""
        if isinstance(argument, str):
            argument = self.marks.untag(argument)
        elif type(argument) is not int:
            self.meter.weigh(argument)
        return super().getitem(obj, argument)

    # What it may call.

    def call(self, context: Context, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a listed method or one of the globals."""
        kwargs = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
        self.meter.charge(STEP)
        owner = getattr(fn, "__self__", None)
        if isinstance(owner, str):
            return self._call_text_method(fn, owner, args, kwargs)
        if not isinstance(fn, Macro | LoopContext | Undefined):
            self._permit(fn, owner)
            self.meter.weigh([*args, *kwargs.values()])
        result = self._descend(partial(context.call, fn, *args, **kwargs))
        if isinstance(result, str):
            self.meter.charge(len(result))
        return result

    def _permit(self, fn: Any, owner: Any) -> None:
        bound = isinstance(owner, dict | list | tuple | LoopContext | Cycler)
        if not (bound or isinstance(fn, Joiner) or any(fn is known for known in self._functions)):
            raise SecurityError(f"a {type(fn).__name__} cannot be called")

    def _descend(self, call: Callable[[], Any]) -> Any:
        if self._depth >= MAX_CALL_DEPTH:
            raise SecurityError(f"calls nest deeper than {MAX_CALL_DEPTH}")
        self._depth += 1
        try:
            return call()
        finally:
            self._depth -= 1

    def _call_text_method(
        self, fn: Any, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # A literal is compared with a user's text, so it must not carry marks here.
        if fn.__name__ != "join":
            args = tuple(self._untag(value) for value in args)
            kwargs = {key: self._untag(value) for key, value in kwargs.items()}
        arguments = [*args, *kwargs.values()]
        self.meter.charge(cost_of_method(fn.__name__, owner, arguments))
        return self._clean(fn(*args, **kwargs))

    # What it may compute.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Carry out an operator, having charged for its result."""
        self.meter.charge(cost_of_operator(operator, left, right))
        if operator == "%":
            self.meter.weigh_text(right)
        return super().call_binop(context, operator, left, right)

    def _emit(self, value: Any) -> Any:
        self.meter.weigh_text(value)
        return value

    def _untag(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.marks.untag(value) if self.marks.occur_in(value) else value
        if isinstance(value, list | tuple):
            self.meter.span(value)
            return type(value)(map(self._untag, value))
        return value

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.marks.clean(value)
        if isinstance(value, list | tuple):
            return type(value)(map(self._clean, value))
        return value

    def _format_now(self, form: str) -> str:
        if len(form) > MAX_WIDTH or not _PLAIN_TIME_FORMAT.fullmatch(form):
            raise SecurityError("strftime_now takes a short, plain format")
        return self._now().strftime(form)

    # Filters and tests.

    def _install_filters(self) -> None:
        allowed = _FREE_FILTERS | _SPAN_FILTERS | _DEEP_FILTERS
        self.filters = {name: self._guard_filter(name, FILTERS[name]) for name in allowed}
        self.filters["tojson"] = self._write_json
        # Names that no template can write: the syntax tree is rewritten to use them.
        self.filters["#step"] = self._step
        self.filters["#span"] = self._span
        self.filters["#weigh"] = self._weigh
        self.filters["#concat"] = self._concat

    def _guard_filter(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        @pass_context
        def guarded(context: Context, *args: Any, **kwargs: Any) -> Any:
            args = self._pay_filter(name, args, kwargs)
            result = fn(*_leading(fn, context), *args, **kwargs)
            if name in _SPAN_FILTERS or name == "unique":
                # Generators would be consumed unmetered.
                return self._collect(result) if isinstance(result, Iterator) else result
            return self._clean(result) if isinstance(result, str) else result

        return guarded

    def _pay_filter(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        self.meter.charge(STEP)
        if name in _SPAN_FILTERS:
            self.meter.span(args[0])
        elif name in _DEEP_FILTERS:
            self.meter.weigh_text([*args, *kwargs.values()])
        if name in ("replace", "trim"):
            args = (args[0], *map(self._untag, args[1:]))
        arguments = [*args[1:], *kwargs.values()]
        self.meter.charge(cost_of_filter(name, args[0], arguments))
        return args

    def _collect(self, items: Iterator[Any]) -> list[Any]:
        collected = []
        for item in items:
            self.meter.charge(ELEMENT)
            collected.append(item)
        return collected

    def _install_tests(self) -> None:
        for name in _COMPARING_TESTS:
            self.tests[name] = self._guard_comparison(TESTS[name])
        for name in _NUMBER_TESTS:
            self.tests[name] = _guard_number(TESTS[name])

    def _guard_comparison(self, fn: Any) -> Callable[..., bool]:
        def guarded(*args: Any) -> bool:
            self.meter.charge(STEP)
            return bool(fn(*map(self._weigh, args)))

        return guarded

    def _write_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self.meter.weigh_text(value)
        check_json_layout(value, indent, separators)
        text = json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        self.meter.charge(len(text))
        return text

    def _step(self, units: int) -> bool:
        self.meter.charge(units)
        return True

    def _span(self, value: Any) -> Any:
        self.meter.span(value)
        return value

    def _weigh(self, value: Any) -> Any:
        self.meter.weigh(value)
        return self._untag(value)

    def _concat(self, values: list[Any]) -> str:
        for value in values:
            self.meter.weigh_text(value)
        return "".join(map(str, values))


def _refuse(message: object = "") -> NoReturn:
    raise Refusal(str(message))


def _refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _leading(fn: Callable[..., Any], context: Context) -> tuple[Any, ...]:
    """What Jinja passes to a filter before its value, as the filter asks for it."""
    wish = getattr(fn, "jinja_pass_arg", None)
    offers = {"context": context, "eval_context": context.eval_ctx}
    return () if wish is None else (offers.get(wish.name, context.environment),)


def _guard_number(fn: Any) -> Callable[..., bool]:
    def guarded(*args: Any) -> bool:
        # `%` formats when its left side is a string.
        if not all(isinstance(value, int | float) for value in args):
            raise TypeError("odd, even and divisibleby test numbers")
        return bool(fn(*args))

    return guarded
