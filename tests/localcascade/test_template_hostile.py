"""Templates that loop, grow, call or pry: each must end in a TemplateError, deterministically."""

from __future__ import annotations

import tracemalloc

import pytest

from localcascade.errors import TemplateError
from localcascade.prompt.events import ChatRequest
from localcascade.prompt.template import Template

REQUEST = ChatRequest(({"role": "user", "content": "hi " * 100},))

LOOPS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}"
    "{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in [[0]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "wide recursive loop": "{% for a in range(99999) recursive %}"
    "{{ loop(range(99999)) if loop.depth < 9 }}{% endfor %}",
    "huge body": "{% for a in range(99999) %}" + "{% set x = 1 %}" * 10_000 + "{% endfor %}",
    "recursive macro": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(50) }}",
    "macro by call block": "{% macro m() %}{{ caller() }}{% endmacro %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% call m() %}x{% endcall %}"
    "{% endfor %}{% endfor %}",
    "lazy filters": "{% for i in range(99999) %}"
    "{{ range(99999)|select|map('string')|reject|list|length }}{% endfor %}",
    "membership": "{% set l = range(99999)|list %}{% for i in range(99999) %}"
    "{{ 'x' in l }}{% endfor %}",
    "membership test": "{% set l = range(99999)|list %}{% for i in range(99999) %}"
    "{{ 'x' is in(l) }}{% endfor %}",
    "slices": "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{{ s[1:]|length }}"
    "{% endfor %}",
    "searches": "{% set s = 'a' * 300000 %}{% set t = 'b' ~ 'a' * 150000 %}{{ s.rfind(t) }}",
    "strips": "{% set s = 'a' * 300000 %}{{ s.strip('b' * 300000 ~ 'a') }}",
    "trims": "{% set s = 'a' * 300000 %}{{ s|trim('b' * 300000 ~ 'a') }}",
    "sorting": "{% for i in range(99999) %}{{ range(99999)|sort }}{% endfor %}",
    "loop changed": "{% set l = range(99999)|list %}{% for i in range(99999) %}"
    "{{ loop.changed(l + [i]) }}{% endfor %}",
}  # fmt: skip

GROWTH = {
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat a list": "{{ [1] * 10**9 }}",
    "repeat from the left": "{{ 10**9 * 'a' }}",
    "doubling by ~": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
    "doubling by str.join": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ''.join([ns.s, ns.s]) %}{% endfor %}",
    "doubling by set block": "{% set x %}aaaaaaaa{% endset %}"
    + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubling by format": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "doubling by replace": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
    "doubling by lists": "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}"
    "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "shared lists printed": "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}"
    "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "shared lists as JSON": "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}"
    "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
    "shared lists compared": "{% set a = namespace(l=[1]) %}{% set b = namespace(l=[1]) %}"
    "{% for i in range(60) %}{% set a.l = [a.l, a.l] %}{% set b.l = [b.l, b.l] %}{% endfor %}"
    "{{ a.l == b.l }}",
    "shared tuples hashed": "{% set a = namespace(l=(1,)) %}{% for i in range(60) %}"
    "{% set a.l = (a.l, a.l) %}{% endfor %}{{ {a.l: 1} }}",
    "shared tuples as keys": "{% set a = namespace(l=(1,)) %}{% for i in range(60) %}"
    "{% set a.l = (a.l, a.l) %}{% endfor %}{{ {}[a.l] }}",
    "shared tuples in get": "{% set a = namespace(l=(1,)) %}{% for i in range(60) %}"
    "{% set a.l = (a.l, a.l) %}{% endfor %}{{ {}.get(a.l) }}",
    "shared tuples in dict": "{% set a = namespace(l=(1,)) %}{% for i in range(60) %}"
    "{% set a.l = (a.l, a.l) %}{% endfor %}{{ dict([(a.l, 1)]) }}",
    "unique": "{% set a = namespace(l=(1,)) %}{% for i in range(60) %}"
    "{% set a.l = (a.l, a.l) %}{% endfor %}{{ [a.l]|unique }}",
    "indent": "{{ ('a\n' * 1000)|indent(10**9) }}",
    "indent by text": "{{ ('a\n' * 100000)|indent('x' * 1000) }}",
    "join": "{{ range(99999)|join('x' * 99999) }}",
    "replace": "{{ ('x' * 99999)|replace('x', 'y' * 99999) }}",
    "replace nothing": "{{ ('x' * 99999)|replace('', 'y' * 99999) }}",
    "JSON indent": "{{ messages|tojson(indent=10**9) }}",
    "JSON separators": "{{ range(99999)|list|tojson(separators=['x' * 99999, 'y']) }}",
    "power": "{{ 10**(10**9) }}",
    "square": "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}",
    "sum of itself": "{% set ns = namespace(n=3) %}{% for i in range(99999) %}"
    "{% set ns.n = ns.n - (-ns.n) %}{% endfor %}",
    "wide format": "{{ '%1000000000d' % 1 }}",
    "wide format by argument": "{{ '%*d' % (10**9, 1) }}",
    "wide format by precision": "{{ '%.1000000000f' % 1 }}",
    "wide format by name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "format by a test": "{{ '%1000000000d' is odd }}",
    "format by another test": "{{ '%1000000000d' is divisibleby(1) }}",
    "rounding": "{{ 1|round(10**9, 'ceil') }}",
    "rounding text": "{{ 'aaaaaaaaaa'|round(9, 'ceil') }}",
    "range": "{{ range(10**12) }}",
    "literal text in loops": "{% for a in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    "split into pieces": "{{ ('a ' * 9999999).split(' ')|length }}",
    "characters": "{{ ('ab' * 9999999)|list|length }}",
    "long time": "{{ strftime_now('%1000000000d') }}",
    "sum of lists": "{{ [[1]]|sum(start=[]) }}",
}  # fmt: skip

PRYING = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__ }}",
    "class by key": "{{ ''['__class__'] }}",
    "class by attr": "{{ ''|attr('__class__') }}",
    "class by map": "{{ ['']|map(attribute='__class__')|list }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "joiner": "{{ joiner.__init__.__globals__.os }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "range": "{{ range.__globals__ }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "loop": "{% for m in messages %}{{ loop._iterable }}{% endfor %}",
    "format": "{{ '{0.__class__}'.format('x') }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "wide format": "{{ '{:1000000000}'.format(1) }}",
    "format by map": "{{ ['{0.__class__}']|map('format', 1)|list }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "mutation of a message": "{{ messages[0].update({'role': 'system'}) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "center filter": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "translate": "{{ 'a'.translate({97: 'b' * 9}) }}",
    "encode": "{{ 'a'.encode() }}",
    "to_bytes": "{{ 1 .to_bytes(10**9, 'big') }}",
    "calling data": "{{ messages() }}",
    "dunder in a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "dunder in a new namespace": "{{ namespace(__init__=1) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "pprint": "{{ messages|pprint }}",
}  # fmt: skip

BROKEN = {
    "include": ("\n{% include 'x' %}", "line 2"),
    "import": ("{% import 'x' as x %}", "line 1"),
    "from import": ("{% from 'x' import y %}", "line 1"),
    "extends": ("{% extends 'x' %}", "line 1"),
    "block": ("{% block a %}{% endblock %}", "line 1"),
    "unknown filter": ("\n\n{{ messages|nonsense }}", "line 3"),
    "unknown test": ("{{ messages is nonsense }}", "line 1"),
    "unclosed": ("a\n{% if x %}", "line 2"),
    "unknown tag": ("{% nonsense %}", "line 1"),
    "undefined attribute": ("\n\n\n{{ nobody.name }}", "line 4"),
    "undefined call": ("{{ nobody() }}", "line 1"),
    "type error": ("\n{{ 1 + 'a' }}", "line 2"),
    "deep parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "chat template"),
    "long": ("x" * 300_000, "300000 characters"),
}


def render(source: str) -> str:
    template = Template(source, ["<s>"])
    return "".join(segment.text for segment in template.render(REQUEST))


@pytest.mark.parametrize("name", LOOPS)
def test_endless_work_is_stopped(name: str) -> None:
    with pytest.raises(TemplateError, match=r"it works far longer|nest deeper"):
        render(LOOPS[name])


@pytest.mark.parametrize("name", GROWTH)
def test_growth_is_stopped_before_the_memory_is_taken(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            render(GROWTH[name])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 400 << 20


@pytest.mark.parametrize("name", PRYING)
def test_nothing_leads_out_of_the_data(name: str) -> None:
    with pytest.raises(TemplateError):
        render(PRYING[name])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_templates_name_their_line(name: str) -> None:
    source, where = BROKEN[name]
    with pytest.raises(TemplateError, match=where):
        render(source)


def test_a_refusal_tells_the_templates_own_message() -> None:
    source = "{{ raise_exception('roles must alternate <s>') }}"
    with pytest.raises(TemplateError, match="roles must alternate <s>"):
        render(source)


def test_the_budget_grows_with_the_conversation() -> None:
    """A thousand long messages, looked at quadratically, are work but not an attack."""
    source = (
        "{% for m in messages %}{% if loop.index0 + 1 == messages|length %}last{% endif %}"
        "{% for n in messages %}{{ '' if n.role == m.role }}{% endfor %}{% endfor %}"
    )
    messages = tuple({"role": "user", "content": "word " * 200} for _ in range(300))
    segments = Template(source, []).render(ChatRequest(messages))
    assert "".join(segment.text for segment in segments) == "last"
