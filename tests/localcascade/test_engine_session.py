"""One sequence, in process: what it computes equals a bare loop, what it keeps is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from localcascade.engine import _llama
from localcascade.engine.composer import Prompt
from localcascade.engine.model import Model, choose_gpu_layers
from localcascade.engine.planning import N_BATCH
from localcascade.engine.session import Session, count_common
from localcascade.engine.wire import LoadOptions
from localcascade.errors import ContextFull, ModelFileError
from localcascade.prompt.events import ChatRequest, ContextEnd, Done, PromptProgress, Sampling
from tests.localcascade.bare import BareModel
from tests.localcascade.local_engine import GREEDY, LocalEngine, load
from tests.localcascade.models import (
    CALL,
    CALL_TEXT,
    END_THINK,
    IM_END,
    N_VOCAB,
    SPECIAL,
    write_model,
)

PROMPT = [104, 101, 108, 108, 111, 256, 257, 7, 200, 31]


@pytest.fixture(scope="module", params=["llama", "hybrid"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return write_model(folder / "model.gguf", hybrid=request.param == "hybrid")


@pytest.fixture(scope="module")
def bare(path: Path) -> Iterator[BareModel]:
    model = BareModel(path)
    yield model
    model.close()


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load(path)


@pytest.fixture
def session(model: Model) -> Session:
    _llama.clear_memory(model.context)
    session = Session(model)
    session.read_logits([1])  # leaves something behind that must not matter
    return session


@pytest.fixture
def engine(model: Model, session: Session) -> LocalEngine:
    return LocalEngine(model)


def test_greedy_tokens_equal_a_bare_loop(engine: LocalEngine, bare: BareModel) -> None:
    assert engine.go_on(PROMPT, 60).tokens == bare.generate(PROMPT, 60)


def test_logits_equal_a_bare_loop(session: Session, bare: BareModel) -> None:
    ours = session.read_logits(PROMPT)
    assert ours.shape == (len(PROMPT), N_VOCAB)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, bare.read_logits(PROMPT), atol=3e-3)


def test_more_tokens_than_a_batch_give_the_logits_of_each(
    session: Session, bare: BareModel
) -> None:
    tokens = [(7 * i) % 256 for i in range(500)]
    whole = session.read_logits(tokens)
    np.testing.assert_allclose(whole[-1], bare.read_logits(tokens)[-1], atol=0.05)


def test_a_prompt_longer_than_a_batch_is_read_in_parts(path: Path) -> None:
    engine = LocalEngine(load(path, LoadOptions(n_ctx=2048, n_threads=1)))
    heard = engine.go_on([65] * (2 * N_BATCH + 9), 1)
    steps = [event.done for event in heard.events if isinstance(event, PromptProgress)]
    assert steps == [0, N_BATCH, 2 * N_BATCH, 2 * N_BATCH + 9]


def test_what_follows_the_state_is_not_read_again(engine: LocalEngine, bare: BareModel) -> None:
    said = engine.go_on(PROMPT, 5).tokens
    longer = [*PROMPT, *said[:4], 65, 66]  # the last token said is not in the state
    heard = engine.go_on(longer, 20)
    assert heard.n_reused == len(PROMPT) + 4
    assert heard.tokens == bare.generate(longer, 20)


def test_the_same_prompt_again_says_the_same(engine: LocalEngine, model: Model) -> None:
    first, second = (engine.go_on(PROMPT, 30) for _ in range(2))
    # Hybrid memory cannot rewind, and a bare prompt has no place worth a checkpoint.
    assert second.n_reused == (0 if model.has_recurrent_state else len(PROMPT) - 1)
    assert second.tokens == first.tokens


def test_a_prompt_that_parts_from_the_state_is_not_polluted(
    engine: LocalEngine, bare: BareModel
) -> None:
    engine.go_on(PROMPT, 10)
    other = [*PROMPT[:4], 90, 91, 92]
    assert engine.go_on(other, 20).tokens == bare.generate(other, 20)


def test_a_read_that_was_left_midway_can_go_on(path: Path) -> None:
    prompt = [(3 * i) % 256 for i in range(2 * N_BATCH)]
    left, whole = (LocalEngine(load(path, LoadOptions(n_ctx=2048, n_threads=1))) for _ in range(2))
    request = ChatRequest((), sampling=GREEDY)
    reading = left.start(request, Prompt(request, tuple(prompt), opens_thinking=False))
    left.scheduler.step()
    reading.wishes.is_cancelled = True
    left.finish()
    assert reading.find_done().reason == "cancelled"
    again = left.go_on(prompt, 10)
    assert again.n_reused == N_BATCH
    assert again.tokens == whole.go_on(prompt, 10).tokens


def test_generation_ends_with_the_context(engine: LocalEngine, model: Model) -> None:
    n_ctx = model.info.n_ctx
    heard = engine.go_on([65] * (n_ctx - 3), None)
    assert len(heard.tokens) == 4  # the last one is never decoded
    assert heard.find_done().reason == "length"
    assert [type(event) for event in heard.events[-2:]] == [ContextEnd, Done]
    assert len(engine.go_on([66] * n_ctx, None).tokens) == 1


def test_logits_longer_than_the_context_are_refused_with_both_counts(session: Session) -> None:
    with pytest.raises(ContextFull) as caught:
        session.read_logits([65] * 513)
    assert (caught.value.need_tokens, caught.value.have_tokens) == (513, 512)


def test_logits_from_a_position_on_are_the_last_rows(session: Session) -> None:
    tokens = [(7 * i) % 256 for i in range(100)]
    whole = session.read_logits(tokens)
    assert whole[60:].tolist() == session.read_logits(tokens, 60).tolist()


def test_logits_in_parts_are_those_of_the_whole(path: Path, bare: BareModel) -> None:
    session = Session(load(path, LoadOptions(n_ctx=2048, n_threads=1)))
    tokens = [(7 * i) % 256 for i in range(2 * N_BATCH + 9)]
    whole = session.read_logits(tokens, N_BATCH - 2)
    session.read_logits([1, 2, 3])
    parts = []
    for start, end in ((N_BATCH - 2, N_BATCH), (N_BATCH, 2 * N_BATCH), (2 * N_BATCH, len(tokens))):
        parts.append(session.read_logits(tokens[:end], start))
        assert session.tokens == tokens[:end]
    assert np.concatenate(parts).tolist() == whole.tolist()
    np.testing.assert_allclose(whole[1], bare.read_logits(tokens[:N_BATCH])[-1], atol=0.05)


def test_logits_do_not_build_on_other_tokens(session: Session) -> None:
    tokens = [(7 * i) % 256 for i in range(20)]
    expected = session.read_logits(tokens, 10)
    session.read_logits([*tokens[:9], 77])
    assert session.read_logits(tokens, 10).tolist() == expected.tolist()


@pytest.mark.parametrize("first", [-1, 3])
def test_logits_from_no_position_are_refused(session: Session, first: int) -> None:
    with pytest.raises(ValueError, match=f"position {first}"):
        session.read_logits([1, 2, 3], first)


@pytest.mark.parametrize("tokens", [[], [N_VOCAB], [-1]])
def test_logits_of_no_token_or_a_foreign_one_are_refused(
    session: Session, tokens: list[int]
) -> None:
    with pytest.raises(ValueError, match="token"):
        session.read_logits(tokens)


def test_the_same_seed_draws_the_same_and_another_does_not(engine: LocalEngine) -> None:
    def draw(seed: int) -> list[int]:
        return engine.go_on(PROMPT, 20, Sampling(temperature=5.0, top_p=1, seed=seed)).tokens

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_top_k_of_one_is_greedy(engine: LocalEngine, bare: BareModel) -> None:
    sampling = Sampling(top_k=1, temperature=3.0, seed=5)
    assert engine.go_on(PROMPT, 20, sampling).tokens == bare.generate(PROMPT, 20)


@pytest.mark.parametrize("seed", range(5))
def test_counting_common_tokens(seed: int) -> None:
    dice = np.random.default_rng(seed)
    left = dice.integers(0, 9, 300).tolist()
    for n_same in (0, 1, 7, 150, 299, 300):
        right = [*left[:n_same], 9, *dice.integers(0, 9, 50).tolist()]
        assert count_common(left, right) == count_common(right, left) == n_same
    assert count_common(left, left[:100]) == 100
    assert count_common(left, []) == 0


def test_vocabulary_tells_special_tokens_from_text(model: Model) -> None:
    vocabulary = model.vocabulary
    assert set(vocabulary.special) == set(SPECIAL)
    assert vocabulary.special["</think>"] == END_THINK
    assert vocabulary.piece(CALL) == CALL_TEXT.encode()
    assert [vocabulary.piece(byte) for byte in range(256)] == [bytes([b]) for b in range(256)]
    assert vocabulary.is_eog(IM_END)
    assert not vocabulary.is_eog(END_THINK)
    assert vocabulary.bos_text == "<|im_start|>"


def test_control_tokens_are_parsed_only_when_asked(model: Model) -> None:
    text = "the<|im_end|>"
    assert model.vocabulary.tokenize(text, parse_special=True) == [257, IM_END]
    assert model.vocabulary.tokenize(text, parse_special=False) == [257, *b"<|im_end|>"]


def test_lone_surrogates_become_question_marks(model: Model) -> None:
    assert model.vocabulary.tokenize("a\ud800b", parse_special=False) == [*b"a?b"]


def test_context_is_the_models_unless_asked_and_32768_at_most(tmp_path: Path) -> None:
    path = write_model(tmp_path / "long.gguf", n_ctx_train=100_000)
    assert load(path).info.n_ctx == 32768
    assert load(path).info.n_ctx_train == 100_000
    assert load(path, LoadOptions(n_ctx=1024)).info.n_ctx == 1024


def test_what_llama_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    path = write_model(tmp_path / "odd.gguf", metadata={"llama.feed_forward_length": 96})
    with pytest.raises(ModelFileError, match=r"odd\.gguf.*ffn_(gate|up|down)\.weight"):
        load(path)


def test_a_model_without_a_plan_goes_to_the_gpu_whole_unless_asked() -> None:
    assert choose_gpu_layers(LoadOptions(), None) == -1
    assert choose_gpu_layers(LoadOptions(n_gpu_layers=7), None) == 7
