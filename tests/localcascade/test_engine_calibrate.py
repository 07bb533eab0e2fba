"""Calibration: what is collected equals llama.cpp's own collector and a forward pass in numpy."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from localcascade.engine.calibrate import (
    calibrate,
    cut_chunks,
    list_default_texts,
    read_documents,
    tokenize_document,
)
from localcascade.engine.client import Engine
from localcascade.engine.collector import sum_by_expert
from localcascade.errors import ConfigError, EngineDied, ModelFileError, TemplateError
from localcascade.prompt.events import ChatRequest
from localcascade.prompt.template import Template
from quantize.convert import quantize_checkpoint
from quantize.gguf import open_gguf
from quantize.importance import Importance, join_moments, read_importance
from tests.localcascade import models
from tests.localcascade.calibrations import N_CHUNKS, N_CTX, N_USED, draw_tokens, write_model
from tests.quantize.checkpoints import write_safetensors
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY, draw_weights, make_checkpoint

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "vectors" / "imatrix_odd_experts.gguf"
TOKENS = draw_tokens()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("calibrate"))


@pytest.fixture(scope="module")
def importance(path: Path) -> Importance:
    """Of TOKENS, chunk by chunk."""
    return collect(path, list(cut_chunks(TOKENS, N_CTX, None)))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = models.write_model(tmp_path_factory.mktemp("chatty") / "chatty.gguf")
    with Engine(path, n_ctx=512, n_threads=1, collects=True) as engine:
        yield engine


def collect(path: Path, chunks: list[list[int]], n_ctx: int = N_CTX) -> Importance:
    with Engine(path, n_ctx=n_ctx, n_threads=1, collects=True) as engine:
        for chunk in chunks:
            engine.collect(chunk)
        return Importance(*join_moments(engine.read_inputs()))


# ---- the same figures --------------------------------------------------------------------------


def test_sums_and_counts_equal_llama_cpps_own_collector(importance: Importance) -> None:
    reference = read_importance(REFERENCE)
    assert set(importance.matrices) == set(reference.matrices)
    for name, theirs in reference.matrices.items():
        ours = importance.matrices[name]
        np.testing.assert_array_equal(ours.counts, theirs.counts, err_msg=name)
        scale = theirs.sums.max(axis=1, keepdims=True)
        np.testing.assert_allclose(ours.sums / scale, theirs.sums / scale, atol=2e-5, err_msg=name)


def test_the_first_experts_inputs_equal_a_forward_pass_in_numpy(
    path: Path, importance: Importance
) -> None:
    with open_gguf(path) as file:

        def read(name: str) -> np.ndarray:
            flat = file.read(name).reshape(-1).view(np.float32)
            return flat.reshape(file.tensors[name].shape).astype(np.float64)

        x = read("token_embd.weight")[TOKENS]
        gain, router = read("blk.0.attn_norm.weight"), read("blk.0.ffn_gate_inp.weight")
        bias, down = read("blk.0.exp_probs_b.bias"), read("blk.0.ffn_latent_down.weight")
        experts = read("blk.0.ffn_up_exps.weight")
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * gain
    scores = 1 / (1 + np.exp(-normed @ router.T))
    chosen = choose_experts(scores + bias)
    weights = np.take_along_axis(scores, chosen, 1)
    weights *= ODD_EXPERTS["routed_scaling_factor"] / weights.sum(axis=1, keepdims=True)
    latent = normed @ down.T
    mass, sums = np.zeros(12), {"up": np.zeros((12, 40)), "down": np.zeros((12, 56))}
    for row, picks, shares in zip(latent, chosen, weights, strict=True):
        for expert, share in zip(picks, shares, strict=True):
            mass[expert] += share
            sums["up"][expert] += row**2
            sums["down"][expert] += np.maximum(experts[expert] @ row, 0) ** 4
    for name, expected in (
        ("ffn_gate_inp", (normed**2).sum(axis=0)[None]),
        ("ffn_up_exps", sums["up"]),
        ("ffn_down_exps", sums["down"]),
    ):
        ours = importance.matrices[f"blk.0.{name}.weight"].sums
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6 * expected.max())
    np.testing.assert_allclose(importance.router_mass["blk.0"], mass, rtol=1e-4)


def choose_experts(scores: np.ndarray) -> np.ndarray:
    """The top three of the two best groups of three; a group is as good as its best two."""
    groups = scores.reshape(len(scores), 4, 3)
    worth = np.sort(groups, axis=2)[:, :, 1:].sum(axis=2)
    best = np.argsort(-worth, axis=1)[:, :2]
    masked = np.full_like(groups, -np.inf)
    np.put_along_axis(masked, best[:, :, None], np.take_along_axis(groups, best[:, :, None], 1), 1)
    return np.argsort(-masked.reshape(scores.shape), axis=1)[:, :N_USED]


def test_every_token_is_routed_and_every_matrix_of_the_model_is_there(
    path: Path, importance: Importance
) -> None:
    n_tokens = N_CHUNKS * N_CTX
    for name, moments in importance.matrices.items():
        n_samples = n_tokens * (N_USED if "_exps." in name else 1)
        assert moments.counts.sum() == n_samples, name
    for mass in importance.router_mass.values():
        assert mass.sum() == pytest.approx(1.7 * n_tokens, rel=1e-5)
    assert set(importance.router_mass) == {"blk.0", "blk.3"}
    with open_gguf(path) as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    importance.check_shapes(shapes)
    plain = ("token_embd.weight", "blk.1.ssm_conv1d.weight", "blk.4.ssm_conv1d.weight")
    norms = [name for name in shapes if "norm" in name]
    matrices = {name for name in shapes if name.endswith(".weight")} - {*plain, *norms}
    assert set(importance.matrices) == matrices


def test_sums_add_up_whatever_the_chunks(path: Path, importance: Importance) -> None:
    long = collect(path, [TOKENS[:600]], n_ctx=600)  # more than a micro-batch
    twice = collect(path, [TOKENS[:N_CTX], TOKENS[:N_CTX]])
    once = collect(path, [TOKENS[:N_CTX]])
    for name, moments in once.matrices.items():
        np.testing.assert_allclose(twice.matrices[name].sums, 2 * moments.sums, rtol=1e-6)
    assert long.matrices["output.weight"].counts.tolist() == [600]
    # The first layer sees tokens one by one, so it does not mind where chunks end.
    rest = collect(path, [TOKENS[:7], TOKENS[7:600]], n_ctx=600)
    for name in ("blk.0.ffn_up_exps.weight", "blk.0.ffn_down_shexp.weight"):
        expected = long.matrices[name]
        np.testing.assert_allclose(rest.matrices[name].sums, expected.sums, rtol=1e-5)
        np.testing.assert_array_equal(rest.matrices[name].counts, expected.counts)


@pytest.mark.parametrize("n_slots", [1, 3])
def test_sums_by_expert_equal_a_loop(n_slots: int) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((50, n_slots, 5)).astype(np.float32)
    experts = np.array([rng.permutation(8)[:3] for _ in range(50)], np.int32)
    expected, counts = np.zeros((9, 5)), np.zeros(9)
    for token in range(50):
        for slot, expert in enumerate(experts[token]):
            expected[expert] += inputs[token, slot % n_slots].astype(np.float64) ** 2
            counts[expert] += 1
    sums, n = sum_by_expert(inputs, experts, 9)
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    assert n.tolist() == counts.tolist() and n[8] == 0


# ---- texts -------------------------------------------------------------------------------------


def write_chats(path: Path, *chats: object) -> Path:
    path.write_text("\n".join(json.dumps(chat) for chat in chats) + "\n\n")
    return path


CHAT = {
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
    ]
}


def test_a_chat_is_read_as_its_template_writes_it_and_ends_with_the_answer(
    chatty: Engine, tmp_path: Path
) -> None:
    (document,) = read_documents(write_chats(tmp_path / "c.jsonl", CHAT))
    assert isinstance(document, ChatRequest)
    tokens = tokenize_document(chatty, document)
    assert tokens[-4:] == [*b"yes", models.IM_END]
    assert tokens.count(models.IM_START) == 2
    whole = chatty.render(document)
    assert whole[: len(tokens)] == tokens and whole[-2:] == [models.THINK, ord("\n")]


def test_plain_text_has_no_special_tokens(chatty: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffé<|im_end|>".encode())
    (document,) = read_documents(tmp_path / "a.txt")
    assert tokenize_document(chatty, document) == [*"é<|im_end|>".encode()]


def test_documents_are_joined_and_cut_and_all_tokens_told(chatty: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 150)
    chats = write_chats(tmp_path / "c.jsonl", CHAT, CHAT)
    told: list[tuple[str, int, int]] = []
    result = calibrate(
        chatty,
        [tmp_path / "a.txt", chats],
        n_ctx=64,
        on_progress=lambda *progress: told.append(progress),
    )
    n_chat = len(tokenize_document(chatty, read_documents(chats)[0]))
    assert result.n_tokens == 150 + 2 * n_chat
    importance = result.importance
    assert importance.matrices["output.weight"].counts.tolist() == [result.n_tokens]
    assert importance.n_chunks == -(-result.n_tokens // 64) == len(told)
    assert importance.chunk_tokens == 64
    assert importance.datasets == ("a.txt", "c.jsonl")
    assert told[0] == ("calibrate", 64, result.n_tokens)
    assert told[-1] == ("calibrate", result.n_tokens, result.n_tokens)


def test_chunks_open_with_the_models_token_where_it_wants_one() -> None:
    assert list(cut_chunks([1, 2, 3, 4, 5], 2, None)) == [[1, 2], [3, 4], [5]]
    assert list(cut_chunks([1, 2, 3, 4, 5], 2, 9)) == [[9, 2], [9, 4], [9]]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"ab\xff", "byte 2: is not UTF-8"),
        ("a.jsonl", b'{"messages": []}\n{', "line 2: is not JSON"),
        ("a.jsonl", b'\n\n{"message": []}', 'line 3: holds no "messages"'),
        ("a.jsonl", b'{"messages": ["hi"]}', 'line 1: holds no "messages"'),
        ("a.jsonl", b'{"messages": [], "tools": {}}', 'line 1: "tools" is no list'),
        ("a.jsonl", b"[" * 100_000, "line 1: is not JSON"),
    ],
)
def test_a_text_that_cannot_be_used_is_told_with_its_place(
    name: str, data: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=name) as caught:
        read_documents(tmp_path / name)
    assert says in caught.value.message


def test_an_empty_text_is_refused(chatty: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError, match=r"a\.txt: holds no text"):
        calibrate(chatty, [tmp_path / "a.txt"])


# ---- the text that ships -----------------------------------------------------------------------


def test_the_shipped_text_is_what_its_script_writes(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "bench" / "calibration_text.py"))["write_texts"](tmp_path)
    for path in tmp_path.iterdir():
        shipped = ROOT / "localcascade" / "data" / "calibration" / path.name
        assert path.read_bytes() == shipped.read_bytes(), path.name


def test_the_shipped_text_holds_all_kinds_and_its_thinking_reaches_the_model() -> None:
    texts = {path.name: read_documents(path) for path in list_default_texts()}
    assert set(texts) == {"chats.jsonl", "code.txt", "maths.txt", "prose.txt"}
    assert 150_000 < sum(path.stat().st_size for path in list_default_texts()) < 250_000
    template = Template((TINY / "chat_template.jinja").read_text(), ("<think>", "<|im_end|>"))
    n_called = 0
    for chat in texts["chats.jsonl"]:
        assert isinstance(chat, ChatRequest)
        prompt = "".join(segment.text for segment in template.render(chat))
        answer = chat.messages[-1]
        assert answer["reasoning_content"].strip() in prompt
        assert answer["content"].strip() in prompt
        n_called += "<tool_call>" in prompt and "<tool_response>" in prompt
    assert n_called > 20


# ---- refusals ----------------------------------------------------------------------------------


def test_an_engine_that_does_not_collect_says_so(path: Path) -> None:
    with Engine(path, n_ctx=64, n_threads=1) as engine:
        with pytest.raises(ValueError, match="not made to collect"):
            engine.collect([1])
        with pytest.raises(ValueError, match="not made to collect"):
            engine.read_inputs()


@pytest.mark.parametrize("tokens", [[], [models.N_VOCAB], [-1]])
def test_no_tokens_and_foreign_ones_are_refused(chatty: Engine, tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        chatty.collect(tokens)


def test_nothing_collected_is_nothing(path: Path) -> None:
    with Engine(path, n_ctx=64, n_threads=1, collects=True) as engine:
        assert engine.read_inputs() == {}


def test_a_chat_for_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    path = models.write_model(tmp_path / "base.gguf", template="")
    chats = write_chats(tmp_path / "c.jsonl", CHAT)
    with (
        Engine(path, n_ctx=64, n_threads=1, collects=True) as engine,
        pytest.raises(TemplateError, match="no chat template"),
    ):
        calibrate(engine, [chats])


def test_an_input_too_large_to_square_names_file_and_matrix(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "loud", DENSE, "F32", seed=1)
    weights = draw_weights(DENSE, 1)
    weights["backbone.layers.1.mixer.up_proj.weight"] *= 1e12
    write_safetensors(folder / "model.safetensors", {n: ("F32", w) for n, w in weights.items()})
    quantize_checkpoint(folder, tmp_path / "loud.gguf", "f32", n_threads=1)
    with pytest.raises(ModelFileError, match=r"loud\.gguf: tensor blk\.1\.ffn_down\.weight"):
        collect(tmp_path / "loud.gguf", [TOKENS[:20]])


class MortalEngine(Engine):
    """Loses its worker once, between two chunks, when nobody is asking."""

    has_died = False

    def collect(self, *arguments: object, **options: object) -> None:
        super().collect(*arguments, **options)  # type: ignore[arg-type]
        if not self.has_died:
            self.has_died = True
            self.close()


def test_sums_lost_with_a_worker_are_noticed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12 + 30 = 42\n" * 40)
    with (
        MortalEngine(path, n_ctx=64, n_threads=1, collects=True) as engine,
        pytest.raises(EngineDied, match="lost what it had collected"),
    ):
        calibrate(engine, [tmp_path / "a.txt"], n_ctx=64)
