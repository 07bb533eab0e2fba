"""Prompts: the same tokens as one by one, and the places that later prompts really share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from localcascade.engine import composer as composer_module
from localcascade.engine.composer import Composer, list_droppable, thin_out
from localcascade.engine.model import Model
from localcascade.errors import ContextFull
from localcascade.prompt.events import ChatRequest, Message
from tests.localcascade.local_engine import load
from tests.localcascade.models import write_model

TEMPLATE = (Path(__file__).parents[2] / "localcascade/data/tiny/chat_template.jinja").read_text()
SYSTEM: Message = {"role": "system", "content": "You are terse. " * 5}
ANSWER: Message = {"role": "assistant", "content": "Yes, " * 20, "reasoning_content": "Hm. " * 30}


def question(text: str) -> Message:
    return {"role": "user", "content": text * 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("composer")
    return load(write_model(folder / "m.gguf", hybrid=True, template=TEMPLATE, n_ctx_train=2048))


@pytest.fixture
def composer(model: Model) -> Composer:
    return Composer(model)


def compose(composer: Composer, *messages: Message, thinking: bool = True) -> tuple[int, ...]:
    return composer.compose(ChatRequest(messages, thinking=thinking), lambda stage: None).tokens


def count_shared(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


@pytest.mark.parametrize("thinking", [False, True])
def test_the_marks_are_where_later_prompts_part(composer: Composer, thinking: bool) -> None:
    chat = (SYSTEM, question("Why? "), ANSWER, question("How? "))
    prompt = composer.compose(ChatRequest(chat, thinking=thinking), lambda stage: None)
    others = {
        "new": (SYSTEM, question("Who? ")),
        "edit": (*chat[:-1], question("Who? ")),
        "next": (*chat, ANSWER, question("So? ")),
    }
    shared = {
        name: min(
            count_shared(prompt.tokens, compose(composer, *other, thinking=thinking)),
            len(prompt.tokens) - 1,
        )
        for name, other in others.items()
    }
    # Marks stand before the role, whatever the questions share besides.
    marks = prompt.marks
    assert len(marks) == 3
    for mark, name in zip(marks, ("new", "edit", "next"), strict=True):
        assert 0 <= shared[name] - mark <= len("user\nWh")
    assert list(marks) == sorted(set(marks))


def test_the_places_of_a_tool_loop_keep_its_thinking(composer: Composer) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": {"a": "b" * 50}}}
    result: Message = {"role": "tool", "content": "12:00 " * 10}
    chat = (SYSTEM, question("When? "), {**ANSWER, "tool_calls": [call]}, result)
    prompt = composer.compose(ChatRequest(chat), lambda stage: None)
    following = compose(composer, *chat, {**ANSWER, "tool_calls": [call]}, result)
    shared = min(count_shared(prompt.tokens, following), len(prompt.tokens) - 1)
    assert prompt.marks[-1] == shared > prompt.marks[-2]


def test_a_prompt_is_the_same_whether_its_parts_were_seen_before(composer: Composer) -> None:
    chat = (SYSTEM, question("Why? "), ANSWER, question("Why? "))
    first, again = compose(composer, *chat), compose(composer, *chat)
    request = ChatRequest(chat)
    assert first == again == tuple(composer.render(request, lambda stage: None, is_complete=False))


def test_a_prompt_too_long_tells_what_each_message_takes(composer: Composer) -> None:
    chat = (SYSTEM, question("x" * 60), question("y" * 60))
    with pytest.raises(ContextFull) as caught:
        composer.compose(ChatRequest(chat), lambda stage: None)
    assert caught.value.have_tokens == 2048 < caught.value.need_tokens
    assert caught.value.message_tokens == [75, 1200, 1200]
    assert caught.value.droppable == [[1]]
    assert "leave out the oldest turn, about 1200 tokens" in caught.value.hint
    composer.compose(replace(ChatRequest(chat), messages=chat[:2]), lambda stage: None)


def test_a_prompt_far_too_long_is_not_counted_to_its_end(composer: Composer) -> None:
    chat = (SYSTEM, question("x" * 50_000), question("y" * 60))
    with pytest.raises(ContextFull) as caught:
        composer.compose(ChatRequest(chat), lambda stage: None)
    assert caught.value.is_least
    assert 2 * 2048 < caught.value.need_tokens < 100_000
    assert "at least" in str(caught.value)
    # By its first piece, and its length.
    assert caught.value.message_tokens == [75, 1_000_000, 1200]
    assert "leave out the oldest turn, about 1000000 tokens" in caught.value.hint
    # Who asks for all tokens gets them, whatever was remembered of their beginning.
    whole = composer.render(ChatRequest(chat), lambda stage: None, is_complete=False)
    assert len(whole) > 1_000_000


def test_of_very_many_messages_most_are_estimated(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tuple(question("x") for _ in range(8))
    monkeypatch.setattr(composer_module, "MAX_COUNTED", 3)
    assert composer_module.count_message_tokens(model.vocabulary, chat, 10**9) == (20,) * 8
    few = (question("ab"), {"role": "user", "content": None}, question("the "))
    assert composer_module.count_message_tokens(model.vocabulary, few, 10) == (40, 0, 80)


def test_whole_turns_can_be_dropped_but_no_instructions_and_no_last_question() -> None:
    roles = ["system", "user", "assistant", "tool", "assistant", "developer", "user", "user"]
    chat: list[Message] = [{"role": role, "content": "x"} for role in roles]
    assert list_droppable(chat) == ((1, 2, 3, 4), (6,))
    assert list_droppable(chat[:5]) == list_droppable(chat[:1]) == list_droppable([]) == ()


@pytest.mark.parametrize(
    ("need", "advice"),
    [
        (110, "leave out the oldest turn, about 30 tokens"),
        (131, "leave out the oldest 2 turns, about 70 tokens"),
        (171, "shorten the conversation"),
    ],
)
def test_a_full_context_says_how_many_turns_are_too_many(need: int, advice: str) -> None:
    error = ContextFull(need, 100, [50, 10, 20, 40, 60], [[1, 2], [3]])
    assert error.hint == f"Start with a larger --ctx, or {advice}."


def test_a_model_that_can_rewind_needs_no_marks(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", template=TEMPLATE, n_ctx_train=2048)
    chat = (SYSTEM, question("Why? "))
    assert Composer(load(path)).compose(ChatRequest(chat), lambda stage: None).marks == ()


def test_of_two_places_close_by_the_first_is_kept() -> None:
    assert thin_out([3, 40, 50, 72, 71, 200]) == (40, 72, 200)
    assert thin_out([]) == ()
