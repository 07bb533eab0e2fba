"""What a formula means: a tree of plain tuples, made without any algebra program.

A tree is ("number", numerator, denominator), ("symbol", name), ("constant", "pi" | "e" | "oo"),
or an operation and its trees: add, multiply, power, factorial, binomial, abs, call (name first),
derivative, integral, sum, product, limit. Whatever can be read in two ways is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from localcascade.maths.lexemes import CALLS, Lexeme, Unreadable, read_lexemes

Tree = tuple[Any, ...]

MAX_EXACT_BITS = 4096
LEAST_DEGREES = 10
"""A whole number from which on the argument of a sine may be meant in degrees."""
_FUNCTION_LETTERS: Final = frozenset("fghFGHPQ")
_OF_ANGLES: Final = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
_BIG: Final = {"sum": "sum", "prod": "product"}
_BLOCK_SIGNS: Final = frozenset("+-,;|)}≤≥<>=≠≈→")


def parse_expression(latex: str) -> Tree:
    """Read one expression.

    Args:
        latex: Without delimiters and relations.

    Raises:
        Unreadable: Its meaning is not certain.
    """
    return parse_lexemes(read_lexemes(latex))


def parse_lexemes(lexemes: Sequence[Lexeme]) -> Tree:
    """Read one expression whose words are known; raises as `parse_expression` does."""
    parser = _Parser(lexemes)
    try:
        tree = parser.read_sum()
    except RecursionError as error:
        raise Unreadable("brackets or functions nested too deep") from error
    if parser.rest:
        raise Unreadable(f"what {parser.rest[0].text or 'a group'} means here")
    return tree


def find_symbols(tree: Tree) -> frozenset[str]:
    """The names that stand for something unknown; those bound by a sum or integral are not."""
    if tree[0] == "symbol":
        return frozenset([tree[1]])
    inner: frozenset[str] = frozenset().union(
        *(find_symbols(part) for part in tree[1:] if isinstance(part, tuple))
    )
    return inner - {tree[2]} if tree[0] in ("sum", "product", "limit", "area") else inner


def substitute(tree: Tree, name: str, value: Tree) -> Tree:
    """Put a value in the place of a symbol."""
    if tree == ("symbol", name):
        return value
    parts = (substitute(part, name, value) if isinstance(part, tuple) else part for part in tree)
    return tuple(parts)


def evaluate_exactly(tree: Tree) -> Fraction | None:
    """The value of a tree of numbers and the four operations; None if it is another one or huge."""
    kind, *parts = tree
    if kind == "number":
        return Fraction(parts[0], parts[1])
    if kind not in ("add", "multiply", "power"):
        return None
    values = [evaluate_exactly(part) for part in parts]
    if None in values:
        return None
    total, *rest = [value for value in values if value is not None]
    for value in rest:
        if kind == "power":
            return _raise_exactly(total, value)
        total = total + value if kind == "add" else total * value
    return total


def _raise_exactly(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        return None
    n_bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * n_bits > MAX_EXACT_BITS:
        return None
    return Fraction(base ** int(exponent))


def _number(value: Fraction) -> Tree:
    return ("number", value.numerator, value.denominator)


_MINUS_ONE = _number(Fraction(-1))
_ONE = (Lexeme("number", "1", Fraction(1)),)


class _Parser:
    """Reads lexemes from left to right, one method for each level of binding."""

    def __init__(self, lexemes: Sequence[Lexeme]) -> None:
        self.rest = list(lexemes)
        self.ends_in_percent = False

    def read_sum(self) -> Tree:
        """Terms with + and - between them."""
        terms = [self._read_product()]
        shares = [self.ends_in_percent]
        while sign := self._take("+-"):
            term = self._read_product()
            terms.append(("multiply", _MINUS_ONE, term) if sign == "-" else term)
            shares.append(self.ends_in_percent)
        if any(shares) and not all(map(_fits_percent, terms, shares)):
            raise Unreadable("of what a percentage is taken")
        return ("add", *terms) if len(terms) > 1 else terms[0]

    def _read_product(self) -> Tree:
        factors = [self._read_signed()]
        while True:
            if self._take("*"):
                factors.append(self._read_signed())
            elif self._take("/:"):
                factors.append(("power", self._read_signed(), _MINUS_ONE))
                if self._starts_factor():
                    raise Unreadable("what is divided by a product without brackets")
            elif self._starts_factor():
                if self.rest[0].kind == "number":
                    raise Unreadable("a number behind a factor")
                factors.append(self._read_power())
            else:
                return ("multiply", *factors) if len(factors) > 1 else factors[0]

    def _starts_factor(self) -> bool:
        return bool(self.rest) and (
            self.rest[0].kind != "sign" or self.rest[0].text in ("(", "π", "∞")
        )

    def _read_signed(self) -> Tree:
        if sign := self._take("+-"):
            inner = self._read_signed()
            return ("multiply", _MINUS_ONE, inner) if sign == "-" else inner
        return self._read_power()

    def _read_power(self) -> Tree:
        return self._read_behind(self._read_atom())

    def _read_behind(self, tree: Tree) -> Tree:
        """What may follow a factor: exponents, factorials, per cent."""
        is_raised = False
        self.ends_in_percent = False
        while sign := self._take("^!%"):
            self.ends_in_percent = sign == "%"
            if sign == "^" and tree[0] == "power" and is_raised:
                raise Unreadable("two exponents side by side")
            if sign == "^":
                is_raised = True
                tree = ("power", tree, self._read_script())
            elif sign == "!":
                tree = ("factorial", tree)
            else:
                tree = ("multiply", tree, ("number", 1, 100))
        return tree

    def _read_script(self) -> Tree:
        if self.rest and self.rest[0].kind == "group":
            return parse_lexemes(self.rest.pop(0).parts[0] or ())
        if self._take("-"):
            return ("multiply", _MINUS_ONE, self._read_atom())
        return self._read_atom()

    def _read_atom(self) -> Tree:
        if not self.rest:
            raise Unreadable("something is missing")
        word = self.rest.pop(0)
        if word.kind == "number":
            return self._read_mixed(word)
        if word.kind == "name":
            return self._read_symbol(word.text)
        if word.kind == "group":
            return parse_lexemes(word.parts[0] or ())
        if word.kind == "command":
            return self._read_command(word)
        return self._read_sign(word.text)

    def _read_mixed(self, word: Lexeme) -> Tree:
        """A number; with a fraction of digits right behind it, as in 1 1/2, a mixed one."""
        follower = self.rest[0] if self.rest else None
        if follower and follower.kind == "command" and "frac" in follower.text:
            parts = follower.parts
            if all(part and len(part) == 1 and part[0].kind == "number" for part in parts):
                return ("add", _number(word.value), self._read_power())
        if follower and follower.kind == "number":
            raise Unreadable("two numbers side by side")
        return _number(word.value)

    def _read_symbol(self, name: str) -> Tree:
        if self._take("_"):
            return ("symbol", f"{name}_{_spell(self._take_script())}")
        if self.rest and self.rest[0].text == "'":
            raise Unreadable("a derivative of an unknown function")
        if self.rest and self.rest[0].text == "(" and self._looks_applied(name):
            raise Unreadable("whether this is a product or a function's value")
        return ("constant", "e") if name == "e" else ("symbol", name)

    def _looks_applied(self, name: str) -> bool:
        """f(x): a letter that is used for functions, or a single thing in the brackets."""
        is_single = len(self.rest) > 2 and self.rest[2].text == ")"
        has_comma = any(word.text == "," for word in self.rest)
        return name in _FUNCTION_LETTERS or is_single or has_comma

    def _take_script(self) -> Sequence[Lexeme]:
        if not self.rest:
            raise Unreadable("an empty index")
        word = self.rest.pop(0)
        return (word.parts[0] or ()) if word.kind == "group" else (word,)

    def _read_sign(self, sign: str) -> Tree:
        if sign == "(":
            return self._read_until(")")
        if sign == "|":
            return ("abs", self._read_until("|"))
        if sign in "π∞":
            return ("constant", "pi" if sign == "π" else "oo")
        raise Unreadable(f"what {sign} means here")

    def _read_until(self, closing: str) -> Tree:
        tree = self.read_sum()
        if not self._take(closing):
            raise Unreadable(f"where {closing} is")
        return tree

    def _read_command(self, word: Lexeme) -> Tree:
        name = word.text
        if name.endswith("frac"):
            return self._read_fraction(word)
        if name == "sqrt" and word.parts:
            root, inside = word.parts
            degree = parse_lexemes(root) if root else _number(Fraction(2))
            return ("power", parse_lexemes(inside or ()), ("power", degree, _MINUS_ONE))
        if name in ("binom", "dbinom"):
            return ("binomial", *(parse_lexemes(part or ()) for part in word.parts))
        if name == "boxed":
            return parse_lexemes(word.parts[0] or ())
        if name in CALLS:
            return self._read_call(name)
        if name in _BIG:
            return self._read_big(_BIG[name])
        if name == "int":
            return self._read_integral()
        if name == "lim":
            return self._read_limit()
        raise Unreadable(f"what \\{name} means")

    def _read_fraction(self, word: Lexeme) -> Tree:
        top, bottom = (part or () for part in word.parts)
        if bottom and bottom[0].text == "d" and len(bottom) == 2 and bottom[1].kind == "name":
            if len(top) != 1 or top[0].text != "d":
                raise Unreadable("a derivative of an unknown function")
            return ("derivative", self._read_block(), bottom[1].text)
        inverse = ("power", parse_lexemes(bottom), _MINUS_ONE)
        return ("multiply", parse_lexemes(top), inverse)

    def _read_call(self, name: str) -> Tree:
        base: Tree = ("constant", "e") if name == "ln" else ("number", 10, 1)
        if name == "log" and self._take("_"):
            base = parse_lexemes(self._take_script())
        elif name == "log":
            raise Unreadable("the base of log")
        exponent = self._read_script() if self._take("^") else None
        if exponent is not None and evaluate_exactly(exponent) in (None, Fraction(-1)):
            raise Unreadable("whether this is a power or an inverse")
        argument = self._read_argument()
        if name in _OF_ANGLES and _may_be_degrees(argument):
            raise Unreadable("whether these are degrees")
        tree: Tree = ("call", name, argument)
        if name in ("ln", "log"):
            tree = ("call", "log", argument, base)
        elif name == "sqrt":
            tree = ("power", argument, ("number", 1, 2))
        elif name == "exp":
            tree = ("power", ("constant", "e"), argument)
        return tree if exponent is None else ("power", tree, exponent)

    def _read_argument(self) -> Tree:
        """What a function is applied to: brackets, or the factors up to the next sign."""
        if self._take("("):
            return self._read_until(")")
        factors = [self._read_power()]
        while self._starts_factor() and self.rest[0].text not in ("(", *CALLS):
            factors.append(self._read_power())
        return ("multiply", *factors) if len(factors) > 1 else factors[0]

    def _read_block(self) -> Tree:
        """What an operator is applied to: brackets, or one product."""
        return self._read_product()

    def _read_big(self, kind: str) -> Tree:
        low = self._read_bound("_")
        high = self._read_bound("^")
        name, start = _split_at(low, "=")
        if len(name) != 1 or name[0].kind != "name":
            raise Unreadable("what is added up")
        body = self._read_block()
        return (kind, body, name[0].text, parse_lexemes(start), parse_lexemes(high))

    def _read_limit(self) -> Tree:
        name, target = _split_at(self._read_bound("_"), "→")
        if len(name) != 1 or any(word.text == "^" for word in target):
            raise Unreadable("from where the limit is taken")
        return ("limit", self._read_block(), name[0].text, parse_lexemes(target))

    def _read_integral(self) -> Tree:
        has_bounds = bool(self.rest) and self.rest[0].text == "_"
        bounds = [parse_lexemes(self._read_bound(sign)) for sign in "_^"] if has_bounds else []
        body, name = self._take_integrand()
        inner = parse_lexemes(body) if body else _number(Fraction(1))
        return ("area", inner, name, *bounds) if bounds else ("integral", inner, name)

    def _take_integrand(self) -> tuple[Sequence[Lexeme], str]:
        """What is integrated, up to its dx, and over what; the dx may stand in a numerator."""
        for at, word in enumerate(self.rest):
            if _is_differential(self.rest[at : at + 2]):
                body, name = self.rest[:at], self.rest[at + 1].text
                self.rest = self.rest[at + 2 :]
                return body, name
            top, bottom = (*(part or () for part in word.parts), (), ())[:2]
            is_fraction = word.kind == "command" and word.text.endswith("frac")
            if is_fraction and _is_differential(top[-2:]) and not _is_differential(bottom):
                body = [*self.rest[:at], replace(word, parts=(top[:-2] or _ONE, bottom))]
                self.rest = self.rest[at + 1 :]
                return body, top[-1].text
        raise Unreadable("over what is integrated")

    def _read_bound(self, sign: str) -> Sequence[Lexeme]:
        if not self._take(sign):
            raise Unreadable("the bounds")
        return self._take_script()

    def _take(self, signs: str) -> str:
        if self.rest and self.rest[0].kind == "sign" and self.rest[0].text in signs:
            return self.rest.pop(0).text
        return ""


def _fits_percent(term: Tree, is_share: bool) -> bool:
    """Whether a term may stand beside percentages: 80 - 20 % may be 64 or 79.8; 1 - 20 % is 0.8."""
    return is_share or term == _number(Fraction(1))


def _may_be_degrees(argument: Tree) -> bool:
    value = evaluate_exactly(argument)
    return value is not None and value.denominator == 1 and abs(value) >= LEAST_DEGREES


def _is_differential(words: Sequence[Lexeme]) -> bool:
    return [word.kind for word in words] == ["name", "name"] and words[0].text == "d"


def _split_at(lexemes: Sequence[Lexeme], sign: str) -> tuple[Sequence[Lexeme], Sequence[Lexeme]]:
    for at, word in enumerate(lexemes):
        if word.text == sign:
            return lexemes[:at], lexemes[at + 1 :]
    raise Unreadable(f"where {sign} is")


def _spell(lexemes: Sequence[Lexeme]) -> str:
    return "".join(word.text or "?" for word in lexemes)
