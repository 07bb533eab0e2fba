"""What a request may ask of its answers: biases, penalties, grammars, probabilities, an end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localcascade.engine import chooser
from localcascade.engine.composer import Prompt
from localcascade.engine.wire import LoadOptions
from localcascade.prompt.events import ChatRequest, Delta, Event, Sampling, TokenLogprob
from localcascade.prompt.schema import write_grammar
from tests.localcascade.bare import BareModel
from tests.localcascade.local_engine import GREEDY, Heard, LocalEngine, load
from tests.localcascade.models import END_THINK, IM_END, N_VOCAB, write_model

PROMPT = [104, 101, 108, 108, 111, 256, 257, 7, 200, 31]
START = 10


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sampled") / "model.gguf", hybrid=True)


@pytest.fixture(scope="module")
def engine(path: Path) -> LocalEngine:
    return LocalEngine(load(path, LoadOptions(n_threads=1)))


@pytest.fixture(scope="module")
def bare(path: Path) -> Iterator[BareModel]:
    model = BareModel(path)
    yield model
    model.close()


def ask(engine: LocalEngine, request: ChatRequest, *, thinking: bool = False) -> Heard:
    grammar = request.sampling.grammar
    prompt = Prompt(request, tuple(PROMPT), opens_thinking=thinking, grammar=grammar)
    return engine.ask(request, prompt)


# ---- biases and penalties --------------------------------------------------------------------


def test_a_bias_forbids_and_favours(engine: LocalEngine, bare: BareModel) -> None:
    logits = bare.read_logits(PROMPT)[-1]
    first, second = np.argsort(-logits)[:2].tolist()
    assert engine.go_on(PROMPT, 1).tokens == [first]
    banned = replace(GREEDY, logit_bias={first: -100.0})
    assert engine.go_on(PROMPT, 1, banned).tokens == [second]
    favoured = Sampling(temperature=1, seed=1, logit_bias={77: 100.0})
    assert engine.go_on(PROMPT, 3, favoured).tokens == [77] * 3


def penalize(logits: np.ndarray, said: list[int], sampling: Sampling) -> np.ndarray:
    """What the penalties are defined to do, in numpy."""
    counts = np.bincount(said, minlength=N_VOCAB) if said else np.zeros(N_VOCAB)
    repeat = sampling.repeat_penalty or 1
    penalized = np.where(logits > 0, logits / repeat, logits * repeat)
    logits = np.where(counts > 0, penalized, logits)
    return logits - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty


@pytest.mark.parametrize(
    "sampling",
    [
        replace(GREEDY, presence_penalty=1.5),
        replace(GREEDY, frequency_penalty=0.8),
        replace(GREEDY, repeat_penalty=1.7),
        replace(GREEDY, repeat_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.5),
        replace(GREEDY, presence_penalty=4.0, penalty_tokens=3),
    ],
)
def test_penalties_are_what_they_are_defined_to_be(
    engine: LocalEngine, bare: BareModel, sampling: Sampling
) -> None:
    logits, said = bare.read_logits(PROMPT)[-1], list[int]()
    for _ in range(30):
        window = said[-sampling.penalty_tokens :] if sampling.penalty_tokens else said
        said.append(int(penalize(logits, window, sampling).argmax()))
        logits = bare.step(said[-1])
    assert engine.go_on(PROMPT, 30, sampling).tokens == said


# ---- probabilities ---------------------------------------------------------------------------


def test_probabilities_are_those_of_the_logits(engine: LocalEngine, bare: BareModel) -> None:
    sampling = Sampling(temperature=2.0, top_k=5, seed=3, max_tokens=6)
    heard = ask(engine, ChatRequest((), sampling=sampling, logprobs=4))
    told = [event for event in heard.events if isinstance(event, TokenLogprob)]
    logits = bare.read_logits([*PROMPT, *heard.tokens])[len(PROMPT) - 1 : -1].astype(float)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert len(told) == 6
    for event, scores, token in zip(told, expected, heard.tokens, strict=True):
        assert event.logprob == pytest.approx(scores[token], abs=0.02)
        assert [p for _, p in event.top] == pytest.approx(np.sort(scores)[::-1][:4], abs=0.02)
        assert event.text == chr(token)


# ---- an end ----------------------------------------------------------------------------------


def play(
    folder: Path, script: list[int], sampling: Sampling = GREEDY, *, thinking: bool = False
) -> Heard:
    """Let a model say a script after START."""
    model = load(write_model(folder / "script.gguf", script=[START, *script]))
    request = ChatRequest((), sampling=sampling)
    prompt = Prompt(request, (1, 2, START), opens_thinking=thinking)
    return LocalEngine(model).ask(request, prompt)


def list_pieces(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Delta)]


def test_a_stop_text_ends_the_answer_across_tokens_and_is_not_shown(tmp_path: Path) -> None:
    sampling = replace(GREEDY, stop=("fgh", "de?"))
    heard = play(tmp_path, [*b"abcdefghijk", IM_END], sampling)
    assert heard.join() == "abcde"
    assert heard.find_done().reason == "stop"
    # "d" and "e" are held back until "f" shows that "de?" is not coming.
    assert list_pieces(heard.events) == ["a", "b", "c", "de"]


def test_the_start_of_a_stop_text_is_shown_when_the_answer_ends_there(tmp_path: Path) -> None:
    heard = play(tmp_path, [*b"abcd", IM_END], replace(GREEDY, stop=("cdx",)))
    assert heard.join() == "abcd"


def test_stop_texts_do_not_end_thinking(tmp_path: Path) -> None:
    script = [*b"abc", END_THINK, *b"xyz", IM_END]
    heard = play(tmp_path, script, replace(GREEDY, stop=("b", "z")), thinking=True)
    assert heard.join("thinking") == "abc"
    assert heard.join("answer") == "xy"


def test_a_model_that_ends_in_its_thinking_is_made_to_answer(tmp_path: Path) -> None:
    # IM_END ends it; after </think>, which is put there, it says Yes.
    script = [*b"Hm", IM_END, 0, END_THINK, *b"Yes", IM_END]
    heard = play(tmp_path, script, thinking=True)
    assert heard.join("thinking") == "Hm"
    assert heard.join("answer") == "Yes"
    assert heard.find_done().reason == "stop"


def test_half_a_character_is_not_shown_before_what_ends_the_thinking(tmp_path: Path) -> None:
    # The model ends after the first of the two bytes of a letter.
    script = [*b"Hm", 0xC3, IM_END, 0, END_THINK, *b"Yes", IM_END]
    heard = play(tmp_path, script, thinking=True)
    assert heard.join("thinking") == "Hm"
    assert heard.join("answer") == "Yes"


# ---- grammars --------------------------------------------------------------------------------


def test_a_grammar_is_followed(engine: LocalEngine) -> None:
    grammar = 'root ::= ("yes" | "no") " " [0-9]{3} "."'
    for seed in range(5):
        sampling = Sampling(temperature=3.0, seed=seed, grammar=grammar, max_tokens=20)
        heard = ask(engine, ChatRequest((), sampling=sampling))
        word, _, number = heard.join().partition(" ")
        assert word in ("yes", "no")
        assert number[:3].isdigit()
        assert number[3:] == "."
        assert heard.find_done().reason == "stop"


def test_thinking_is_free_of_the_grammar(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "s.gguf", script=[START, *b"Hm", END_THINK, *b"Yes"]))
    sampling = replace(GREEDY, grammar='root ::= "No"')
    request = ChatRequest((), sampling=sampling)
    prompt = Prompt(request, (START,), opens_thinking=True, grammar=sampling.grammar)
    heard = LocalEngine(model).ask(request, prompt)
    assert heard.join("thinking") == "Hm"
    assert heard.join("answer") == "No"


def test_a_grammar_that_is_none_is_misuse(engine: LocalEngine) -> None:
    with pytest.raises(ValueError, match="GBNF"):
        ask(engine, ChatRequest((), sampling=replace(GREEDY, grammar="root ::= (")))


@pytest.mark.parametrize(
    "grammar", ['root ::= "a" "\\x00"', 'root ::= "a" <[99999]>', "root ::= [z-a]"]
)
def test_a_grammar_that_allows_nothing_fails_its_request_alone(
    engine: LocalEngine, grammar: str
) -> None:
    prompt = Prompt(
        ChatRequest((), sampling=replace(GREEDY, grammar=grammar)),
        tuple(PROMPT),
        False,
        (),
        grammar,
    )
    expected = engine.go_on(PROMPT, 20).tokens
    beside = engine.start(
        ChatRequest((), sampling=replace(GREEDY, max_tokens=20)),
        Prompt(ChatRequest((), sampling=replace(GREEDY, max_tokens=20)), tuple(PROMPT), False),
    )
    failed = engine.start(prompt.request, prompt)
    engine.finish()
    assert isinstance(failed.error, ValueError)
    assert "no token of this model can follow" in str(failed.error)
    assert beside.tokens == expected == engine.go_on(PROMPT, 20).tokens


def test_a_grammar_that_takes_too_long_fails_its_request(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chooser, "SLOW_S", -1.0)
    sampling = replace(GREEDY, grammar="root ::= .*", max_tokens=5)
    prompt = Prompt(ChatRequest((), sampling=sampling), tuple(PROMPT), False, (), "root ::= .*")
    failed = engine.start(prompt.request, prompt)
    engine.finish()
    assert "read in too many ways" in str(failed.error)


def test_a_schema_is_followed_whatever_the_model_would_say(engine: LocalEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "size": {"enum": ["small", "large"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
            "note": {"type": ["null", "integer"]},
        },
        "required": ["name", "size", "tags"],
    }
    grammar = write_grammar(schema)
    for seed in range(6):
        sampling = Sampling(temperature=2.0, seed=seed, grammar=grammar, max_tokens=300)
        heard = ask(engine, ChatRequest((), sampling=sampling))
        assert heard.find_done().reason == "stop"
        said = json.loads(heard.join())
        assert set(said) in ({"name", "size", "tags"}, {"name", "size", "tags", "note"})
        assert len(said["name"]) <= 8
        assert said["size"] in ("small", "large")
        assert 1 <= len(said["tags"]) <= 3
        assert all(isinstance(tag, bool) for tag in said["tags"])
        assert said.get("note") is None or isinstance(said["note"], int)
