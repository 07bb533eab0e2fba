"""What the client refuses before llama.cpp sees a file; llama.cpp itself is the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcascade.engine.header import check_header
from localcascade.errors import ModelFileError
from tests.localcascade.models import write_model


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
