"""One sequence, in process: what it computes equals a bare loop, what it keeps is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from localcascade.engine import _llama
from localcascade.engine.model import N_BATCH, Log, Model, choose_gpu_layers
from localcascade.engine.session import Session
from localcascade.engine.wire import LoadOptions
from localcascade.errors import ContextFull, ModelFileError
from tests.localcascade.bare import BareModel
from tests.localcascade.models import (
    CALL,
    CALL_TEXT,
    END_THINK,
    IM_END,
    N_VOCAB,
    SPECIAL,
    write_model,
)

GREEDY = (("greedy", ()),)
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
    session = Session(model)
    session.read_logits([1])  # leaves something behind that must not matter
    return session


def load(path: Path, options: LoadOptions | None = None) -> Model:
    log = Log()
    _llama.set_log(log.write)
    _llama.start_backend()
    return Model(path, options or LoadOptions(n_threads=1), log, lambda share: None)


def read(session: Session, prompt: list[int]) -> int:
    """Read a prompt to its end; how many of its tokens were reused."""
    *_, last = session.read_prompt(prompt)
    assert last.done == last.total == len(prompt)
    return last.reused


def generate(session: Session, n_tokens: int) -> list[int]:
    return list(session.generate(GREEDY, n_tokens))


def test_greedy_tokens_equal_a_bare_loop(session: Session, bare: BareModel) -> None:
    read(session, PROMPT)
    assert generate(session, 60) == bare.generate(PROMPT, 60)


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
    session = Session(load(path, LoadOptions(n_ctx=2048, n_threads=1)))
    steps = list(session.read_prompt([65] * (2 * N_BATCH + 9)))
    assert [step.done for step in steps] == [0, N_BATCH, 2 * N_BATCH, 2 * N_BATCH + 9]


def test_what_follows_the_state_is_not_read_again(session: Session, bare: BareModel) -> None:
    read(session, PROMPT)
    said = generate(session, 5)
    longer = [*PROMPT, *said[:4], 65, 66]  # the last token said is not in the state
    assert read(session, longer) == len(PROMPT) + 4
    assert generate(session, 20) == bare.generate(longer, 20)


def test_the_same_prompt_again_says_the_same(session: Session, model: Model) -> None:
    read(session, PROMPT)
    first = generate(session, 30)
    reused = read(session, PROMPT)
    hybrid = model.metadata["general.architecture"] == "nemotron_h"
    assert reused == (0 if hybrid else len(PROMPT) - 1)  # hybrid memory cannot rewind
    assert generate(session, 30) == first


def test_a_prompt_that_parts_from_the_state_is_not_polluted(
    session: Session, bare: BareModel
) -> None:
    read(session, PROMPT)
    generate(session, 10)
    other = [*PROMPT[:4], 90, 91, 92]
    read(session, other)
    assert generate(session, 20) == bare.generate(other, 20)


def test_a_read_that_was_left_midway_can_go_on(path: Path) -> None:
    prompt = [(3 * i) % 256 for i in range(2 * N_BATCH)]
    left, whole = (Session(load(path, LoadOptions(n_ctx=2048, n_threads=1))) for _ in range(2))
    reading = left.read_prompt(prompt)
    next(reading), next(reading)
    reading.close()
    assert read(left, prompt) == N_BATCH
    read(whole, prompt)
    assert generate(left, 10) == generate(whole, 10)


def test_generation_ends_with_the_context(session: Session, model: Model) -> None:
    n_ctx = model.info.n_ctx
    read(session, [65] * (n_ctx - 3))
    assert len(list(session.generate(GREEDY, None))) == 4  # the last one is never decoded
    assert read(session, [66] * n_ctx) == 0
    assert len(list(session.generate(GREEDY, None))) == 1


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(session: Session) -> None:
    with pytest.raises(ContextFull) as caught:
        read(session, [65] * 513)
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


def test_the_same_seed_draws_the_same_and_another_does_not(session: Session) -> None:
    def draw(seed: int) -> list[int]:
        read(session, PROMPT)
        return list(session.generate((("temperature", (5.0,)), ("draw", (seed,))), 20))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_top_k_of_one_is_greedy(session: Session, bare: BareModel) -> None:
    read(session, PROMPT)
    chain = (("top_k", (1,)), ("temperature", (3.0,)), ("draw", (5,)))
    assert list(session.generate(chain, 20)) == bare.generate(PROMPT, 20)


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


def test_context_is_the_models_unless_asked_and_8192_at_most(tmp_path: Path) -> None:
    path = write_model(tmp_path / "long.gguf", n_ctx_train=100_000)
    assert load(path).info.n_ctx == 8192
    assert load(path).info.n_ctx_train == 100_000
    assert load(path, LoadOptions(n_ctx=1024)).info.n_ctx == 1024


def test_what_llama_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    path = write_model(tmp_path / "odd.gguf", metadata={"llama.feed_forward_length": 96})
    with pytest.raises(ModelFileError, match=r"odd\.gguf.*ffn_(gate|up|down)\.weight"):
        load(path)


def test_layers_go_to_a_gpu_only_if_there_is_one() -> None:
    cpu = _llama.Device("CPU", "some CPU", "cpu")
    gpu = _llama.Device("CUDA0", "some card", "gpu")
    assert choose_gpu_layers(None, (cpu,)) == 0
    assert choose_gpu_layers(None, (gpu, cpu)) == -1
    assert choose_gpu_layers(7, (gpu, cpu)) == 7
