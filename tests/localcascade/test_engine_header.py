"""What the client refuses before llama.cpp sees a file; llama.cpp itself is the reference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localcascade.engine.header import check_header
from localcascade.errors import ModelFileError
from tests.localcascade.hostile import Entry, Info, Parts, split_file
from tests.localcascade.models import write_model
from tests.soak import sample


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_sound_file_passes(tmp_path: Path, hybrid: bool) -> None:
    check_header(write_model(tmp_path / "model.gguf", hybrid=hybrid))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nemotron_h.block_count", 10**6),
        ("nemotron_h.block_count", 0),
        ("nemotron_h.block_count", "three"),
        ("nemotron_h.embedding_length", 0),
        ("nemotron_h.context_length", 2**32 - 1),
        ("nemotron_h.ssm.group_count", 0),
        ("nemotron_h.ssm.conv_kernel", 0),
        ("nemotron_h.ssm.time_step_rank", 2**30),
        ("nemotron_h.expert_count", 100_000),
        ("nemotron_h.attention.head_count", 1.5),
        ("nemotron_h.attention.layer_norm_rms_epsilon", float("nan")),
        ("nemotron_h.attention.layer_norm_epsilon", -1.0),
        ("nemotron_h.nextn_predict_layers", 3),
        ("nemotron_h.expert_used_count", 1),
        ("nemotron_h.expert_group_count", 2),
        ("nemotron_h.rope.scaling.type", "x"),
    ],
)
def test_a_hostile_value_is_refused_by_key(tmp_path: Path, key: str, value: object) -> None:
    path = write_model(tmp_path / "model.gguf", hybrid=True, metadata={key: value})
    with pytest.raises(ModelFileError, match=key) as caught:
        check_header(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("experts", "key"),
    [
        ({"expert_count": 8}, "expert_used_count"),
        ({"expert_count": 8, "expert_used_count": 9}, "expert_used_count"),
        ({"expert_count": 8, "expert_used_count": 2, "expert_group_count": 8}, "group_count"),
        ({"expert_count": 8, "expert_used_count": 2, "expert_group_count": 3}, "group_count"),
        ({"expert_count": 8, "expert_used_count": 2, "expert_group_count": 4}, "group_used_count"),
    ],
)
def test_experts_that_contradict_each_other_are_refused(
    tmp_path: Path, experts: dict[str, int], key: str
) -> None:
    metadata = {f"llama.{suffix}": value for suffix, value in experts.items()}
    path = write_model(tmp_path / "model.gguf", metadata=dict(metadata))
    with pytest.raises(ModelFileError, match=rf"{key} is .* contradicts"):
        check_header(path)


def test_alignment_zero_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", metadata={"general.alignment": 32})
    data = path.read_bytes()
    at = data.index(b"general.alignment") + len(b"general.alignment") + 4
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    with pytest.raises(ModelFileError, match="alignment"):
        check_header(path)


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama.block_count", b"llama.block_caunt"))
    with pytest.raises(ModelFileError, match=r"llama\.block_count is missing"):
        check_header(path)


def test_token_types_must_be_as_many_as_tokens(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", n_token_types=10)
    with pytest.raises(ModelFileError, match="token_type has 10 entries for 265 tokens"):
        check_header(path)


@pytest.mark.parametrize("n_kept", [0, 3, 4, 100, 2000])
def test_a_truncated_file_is_refused(tmp_path: Path, n_kept: int) -> None:
    path = write_model(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:n_kept])
    with pytest.raises(ModelFileError, match=r"model\.gguf"):
        check_header(path)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ModelFileError):
            check_header(path)


def spoil(path: Path, change: Callable[[Parts], None]) -> Path:
    """Change a sound hybrid model in one way."""
    parts = split_file(write_model(path, hybrid=True))
    change(parts)
    path.write_bytes(parts.pack())
    return path


def find_entry(parts: Parts, key: str) -> Entry:
    return next(entry for entry in parts.entries if entry.key == key.encode())


def find_info(parts: Parts, name: str) -> Info:
    return next(info for info in parts.infos if info.name == name.encode())


def repeat_token(parts: Parts) -> None:
    items = find_entry(parts, "tokenizer.ggml.tokens").items
    items[70] = items[71]


def swell_token(parts: Parts) -> None:
    find_entry(parts, "tokenizer.ggml.tokens").items[70] = b"{ " * 6000


def call_letter_a_byte(parts: Parts) -> None:
    find_entry(parts, "tokenizer.ggml.token_type").items[65] = (6).to_bytes(4, "little")


def invent_token_type(parts: Parts) -> None:
    find_entry(parts, "tokenizer.ggml.token_type").items[65] = (99).to_bytes(4, "little")


def claim_sentencepiece(parts: Parts) -> None:
    find_entry(parts, "tokenizer.ggml.model").items = [b"llama"]


def claim_rwkv(parts: Parts) -> None:
    find_entry(parts, "tokenizer.ggml.model").items = [b"rwkv"]


def lengthen_heads(parts: Parts) -> None:
    entry = find_entry(parts, "nemotron_h.attention.head_count_kv")
    entry.items.append(entry.items[0])


def swell_template(parts: Parts) -> None:
    find_entry(parts, "tokenizer.chat_template").items = [b"x" * (1 << 21)]


def make_state_integer(parts: Parts) -> None:
    find_info(parts, "blk.0.ssm_d").kind = 26


def make_norm_integer(parts: Parts) -> None:
    find_info(parts, "output_norm.weight").kind = 26


def make_matrix_integer(parts: Parts) -> None:
    find_info(parts, "blk.2.ffn_down.weight").kind = 26


def leave_a_gap(parts: Parts) -> None:
    parts.infos[-1].offset += 32
    parts.data += bytes(32)


def add_a_layer(parts: Parts) -> None:
    find_info(parts, "blk.2.attn_norm.weight").name = b"blk.3.attn_norm.weight"


def forget_the_groups(parts: Parts) -> None:
    parts.entries.remove(find_entry(parts, "nemotron_h.ssm.group_count"))


def split_groups_unevenly(parts: Parts) -> None:
    find_entry(parts, "nemotron_h.ssm.group_count").items = [(3).to_bytes(4, "little")]


def turn_embedding(parts: Parts) -> None:
    find_info(parts, "token_embd.weight").dims.reverse()


SPOILED = (
    (add_a_layer, r"tensor blk\.3\.attn_norm\.weight: is of a layer beyond the 3 there are"),
    (forget_the_groups, r"ssm\.group_count is missing"),
    (split_groups_unevenly, r"ssm\.group_count is 3, which contradicts the rest"),
    (repeat_token, r"tokenizer\.ggml\.tokens has the token .* twice"),
    (swell_token, r"tokenizer\.ggml\.tokens has tokens too long to read, up to 12000 letters"),
    (call_letter_a_byte, r"tokenizer\.ggml\.token_type calls .* a byte"),
    (invent_token_type, r"tokenizer\.ggml\.token_type holds 99"),
    (claim_sentencepiece, "tokens lacks the token <0x"),
    (claim_rwkv, r"tokenizer\.ggml\.model is 'rwkv'"),
    (lengthen_heads, "head_count_kv has 4 entries for 3 layers"),
    (swell_template, r"tokenizer\.chat_template is no text"),
    (make_state_integer, r"tensor blk\.0\.ssm_d: is i32, but must be f32"),
    (make_norm_integer, r"tensor output_norm\.weight: is i32, but must be f32"),
    (make_matrix_integer, r"tensor blk\.2\.ffn_down\.weight: is i32"),
    (leave_a_gap, "tensor .*: lies at byte"),
    (turn_embedding, r"token_embd\.weight is of the shape \[320, 265\], not \[265, 320\]"),
)


@pytest.mark.parametrize(
    ("change", "words"), SPOILED, ids=[change.__name__ for change, _ in SPOILED]
)
def test_what_llama_cpp_would_die_of_or_refuse_is_refused_by_name(
    tmp_path: Path, change: Callable[[Parts], None], words: str
) -> None:
    path = spoil(tmp_path / "model.gguf", change)
    with pytest.raises(ModelFileError, match=words) as caught:
        check_header(path)
    assert caught.value.hint


def test_llama_cpp_takes_none_of_them(tmp_path: Path) -> None:
    """Refused, or died of; by llama.cpp itself, each in a process of its own."""
    program = "import sys; from tests.localcascade.bare import BareModel as B; from pathlib import"
    program += " Path; m = B(Path(sys.argv[1])); assert m.model and m.context; m.step(65)"
    strict = {call_letter_a_byte, invent_token_type, claim_sentencepiece, claim_rwkv}
    strict |= {
        swell_template,
        swell_token,
    }  # harm is done later, when a text is read or a prompt is written
    for number, (change, _) in enumerate(sample(SPOILED, 4)):
        path = spoil(tmp_path / f"{number}.gguf", change)
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True)
        assert change in strict or done.returncode != 0, change
