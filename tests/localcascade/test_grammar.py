"""Grammars: what llama.cpp would not survive is refused with its place; what it reads passes."""

from __future__ import annotations

import pytest

from localcascade.engine import _llama
from localcascade.engine.vocabulary import Vocabulary
from localcascade.prompt import grammar as module
from localcascade.prompt.grammar import check_grammar
from localcascade.prompt.schema import write_grammar
from tests.localcascade.local_engine import load
from tests.localcascade.models import write_model

# The first of these killed or hung the engine; the last ones llama.cpp refuses without a reason.
TWICE = "".join(f"a{i} ::= a{i + 1} | a{i + 1}\n" for i in range(40))
HARMFUL = {
    "a zero": ('root ::= "é\0"', "byte 12 is a zero"),
    "half a character": ('root ::= "\ud800"', "byte 10 is half a character"),
    "counting down": ('root ::=\n  "a"{5,3}', "line 2, column 6: at least 5 times"),
    "much written out": (f'root ::= "{"a" * 9000}"{{2000}}', "more than 1048576 elements"),
    "no end on the left": ('root ::= b root "x" | "y"\nb ::= c\nc ::= ""', "`root` begins with"),
    "far around": ("root ::= a\na ::= (b)*\nb ::= a", "begins with itself"),
    "twice at each turn": (f"root ::= a0\na40 ::= [x]\n{TWICE}", "more than 20000 ways"),
    "many at once": ("root ::= " + " | ".join(f'"{i}"' for i in range(30_000)), "20000 ways"),
    "all of which may be missing": ('root ::= ((([a]?){2000} "b"?){2000} "c"?){9}', "20000 ways"),
    "deep": ("root ::= " + "(" * 101 + '"a"' + ")" * 101, "100 deep"),
    "long": ('root ::= "a" #' + "x" * 2**20, "but may have 1048576"),
    "forgotten": ('root ::= "a"{0,5000}', "2000 times"),
    "absurd": (f'root ::= "a"{{{"9" * 5000}}}', "2000 times"),
    "empty": (" \n", "it is empty"),
    "open": ('root ::= ("a"', "left open"),
    "open before the next": ('root ::= ("a"\nb ::= "c"', "left open"),
    "closed": ('root ::= "a")', "column 13: no bracket is open"),
    "nothing": ("root ::= *", "column 10: there is nothing to repeat"),
    "not there": ('root ::= "a" b', "no rule `b`"),
    "no start": ('b ::= "a"', "no rule `root`"),
    "headless": ('"a"', "in GBNF a rule begins with"),
    "something else": ('root ::= "a" ; "b"', "column 14: this is no GBNF"),
}  # fmt: skip

SOUND = [
    'root ::= "\\x00"',
    'root ::= (("a"?)*)*',
    'root ::= | "" | [] [^] .',
    'root ::= "a\nb" # what it says\r\n\r\nc ::= [^"\\]\\x00-\\U0010FFFF]{2,}',
    'root ::= (\n "a" |\n b+ \n) {2,3} !<[65]> <|im_end|>\nb ::= "c" {0} "d" | "\\"" b',
    'root ::= "old"\nroot ::= item ("," item)*\nitem ::= [0-9]{1,3} | "(" root ")"',
]


@pytest.mark.parametrize(("grammar", "problem"), HARMFUL.values(), ids=HARMFUL)
def test_what_does_harm_is_refused_with_its_place(grammar: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^grammar: .*{problem}"):
        check_grammar(grammar)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return load(write_model(tmp_path_factory.mktemp("grammar") / "m.gguf")).vocabulary


@pytest.mark.parametrize("grammar", SOUND)
def test_what_llama_cpp_reads_passes(vocabulary: Vocabulary, grammar: str) -> None:
    check_grammar(grammar)
    _llama.free_sampler(vocabulary.create_grammar(grammar))


def test_elements_are_counted_as_often_as_they_are_written_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grammar = 'root ::= "\\x41\\u00e9\\n-"{3} [^a-c]{2}'  # 4 + 3 x 4, and 3 + 2 x 3
    monkeypatch.setattr(module, "MAX_ELEMENTS", 4 + 12 + 1 + 3 + 6 + 1)
    check_grammar(grammar)
    monkeypatch.setattr(module, "MAX_ELEMENTS", 4 + 12 + 1 + 3 + 6)
    with pytest.raises(ValueError, match="elements"):
        check_grammar(grammar)


def test_a_schema_that_makes_such_a_grammar_is_told_as_a_schema() -> None:
    steps = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    schema = {"$defs": steps | {"a40": {"type": "null"}}, "$ref": "#/$defs/a0"}
    with pytest.raises(ValueError, match=r"^JSON schema, as a grammar: .* 20000 ways"):
        write_grammar(schema)
    with pytest.raises(ValueError, match=r"^JSON schema, as a grammar: rule `ref-0` begins with"):
        write_grammar({"$ref": "#"})
