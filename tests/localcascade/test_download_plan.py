"""Which files a pull takes, and what it refuses to take: plain values, no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from localcascade.download import plan as planning
from localcascade.download.metadata import HubFile, HubRepo
from localcascade.download.plan import Target, choose_files, parse_target, resolve_pull
from localcascade.errors import DownloadError, ModelNotFound, OfflineError, UnsafeName

CHECKPOINT = ("config.json", "tokenizer.json", "model.safetensors")


def make_repo(paths: Iterable[str], size_bytes: int = 1 << 30) -> HubRepo:
    digest = hashlib.sha256(b"").hexdigest()
    files = tuple(HubFile(path, size_bytes, digest, "", f"http://hub/{path}") for path in paths)
    return HubRepo("org/model", "0" * 40, files, "", False, "http://hub/org/model")


def choose(
    paths: Iterable[str], *patterns: str, quantization: str | None = None
) -> tuple[str, str, list[str]]:
    kind, name, files = choose_files(make_repo(paths), patterns, quantization)
    return kind, name, [file.path for file in files]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("tiny", Target("tiny", None, None)),
        ("org/model", Target("org/model", None, None)),
        ("org/model@v1.0", Target("org/model", "v1.0", None)),
        ("org/model@refs/pr/3", Target("org/model", "refs/pr/3", None)),
        ("org/model:Q4_K_M", Target("org/model", None, "Q4_K_M")),
        ("org/model@main:IQ2_XS", Target("org/model", "main", "IQ2_XS")),
    ],
)
def test_a_target_is_taken_apart(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "@main", ":Q4_0", "a@", "a:", "a@b@", "a:b@c:"])
def test_what_is_no_target_is_refused(text: str) -> None:
    try:
        parsed = parse_target(text)
    except ModelNotFound:
        return
    # What may be a revision or a quantization is for the Hub to know.
    assert parsed in (Target("a", "b@", None), Target("a", None, "b@c:"))


def test_a_checkpoint_is_its_weights_settings_and_licence() -> None:
    wanted = [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json",
        "model.safetensors.index.json", "tokenizer.json", "chat_template.jinja", "LICENSE",
    ]  # fmt: skip
    code = ["modeling_nemotron_h.py", "pytorch_model.bin", "model.pkl", "x.pt", "run.sh", "a.so"]
    other = ["README.md", "images/plot.png", ".gitattributes", "original/config.json",
             "consolidated.safetensors", "onnx/model.onnx"]  # fmt: skip
    kind, name, files = choose([*other, *code, *wanted])
    assert (kind, name) == ("checkpoint", "model")
    assert sorted(files) == sorted(wanted)


@pytest.mark.parametrize(
    "pattern", ["*.py", "modeling.py", "*.bin", "*.pkl", "weights.pt", "lib/*", "*.sh"]
)
def test_code_is_never_taken_even_if_asked_for(pattern: str) -> None:
    code = ("modeling.py", "pytorch_model.bin", "data.pkl", "weights.pt", "lib/x.so", "setup.sh")
    with pytest.raises(DownloadError, match="no weights, settings or text") as caught:
        choose((*CHECKPOINT, *code), pattern)
    assert "never fetched" in caught.value.hint
    assert choose((*CHECKPOINT, *code), "*")[2] == list(CHECKPOINT)


def test_a_missing_part_is_named() -> None:
    shards = [f"model-{i:05}-of-00004.safetensors" for i in (1, 2, 4)]
    with pytest.raises(DownloadError, match="part 3 of 4 is missing"):
        choose(["config.json", *shards])
    with pytest.raises(DownloadError, match="part 2 of 2 is missing"):
        choose(["x-Q4_0-00001-of-00002.gguf"])


GGUFS = [
    "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-UD-Q4_K_M.gguf", "m-IQ2_XS.gguf", "mmproj-F16.gguf",
    "m.imatrix.gguf", "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        ("Q4_K_M", ["m-Q4_K_M.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("UD-Q4_K_M", ["m-UD-Q4_K_M.gguf"]),
        ("m-iq2_xs", ["m-IQ2_XS.gguf"]),
        ("BF16", ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
    ],
)
def test_a_quantization_is_found_by_name(asked: str, files: list[str]) -> None:
    kind, name, chosen = choose(GGUFS, quantization=asked)
    assert (kind, chosen) == ("gguf", files)
    assert name == files[0].split("/")[-1].split("-0000")[0].removesuffix(".gguf")


@pytest.mark.parametrize("asked", [None, "Q5_K_M", "Q4"])
def test_an_ambiguous_quantization_lists_the_choices(asked: str | None) -> None:
    with pytest.raises(ModelNotFound) as caught:
        choose(GGUFS, quantization=asked)
    for choice in ("Q4_K_M (1.0 GiB)", "Q8_0 (1.0", "UD-Q4_K_M", "IQ2_XS", "BF16 (2.0 GiB)"):
        assert choice in caught.value.hint
    assert "mmproj" not in caught.value.hint and "imatrix" not in caught.value.hint


def test_the_only_gguf_needs_no_name() -> None:
    assert choose(["README.md", "m-Q4_0.gguf", "mmproj-m.gguf"])[2] == ["m-Q4_0.gguf"]
    assert choose([*GGUFS], "*IQ2*")[2] == ["m-IQ2_XS.gguf"]


def test_a_checkpoint_goes_before_a_gguf_unless_one_is_named() -> None:
    both = (*CHECKPOINT, "m-Q4_0.gguf")
    assert choose(both)[0] == "checkpoint"
    assert choose(both, quantization="Q4_0")[2] == ["m-Q4_0.gguf"]
    with pytest.raises(DownloadError, match="safetensors and GGUF"):
        choose(both, "*")


def test_patterns_narrow_the_choice() -> None:
    assert choose((*CHECKPOINT, "extra.json"), "config.json", "*.safetensors")[2] == [
        "config.json", "model.safetensors",
    ]  # fmt: skip
    with pytest.raises(ModelNotFound, match="no file matches"):
        choose(CHECKPOINT, "*.gguf")
    with pytest.raises(DownloadError, match="no safetensors and no GGUF"):
        choose(CHECKPOINT, "*.json")
    with pytest.raises(DownloadError, match=r"no config.json .* among the files that match"):
        choose(CHECKPOINT, "*.safetensors")
    with pytest.raises(DownloadError, match=r"no config.json .* in its root"):
        choose(["model.safetensors", "sub/config.json"])
    with pytest.raises(DownloadError, match="no GGUF among its 3 files"):
        choose(CHECKPOINT, quantization="Q4_0")


HOSTILE = [
    "../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "C:evil.gguf", "C:\\evil.gguf",
    "a\\..\\evil.gguf", "con.gguf", "nul.x.gguf", "a\nb.gguf", "a\x1b[2J.gguf", "a\u202eb.gguf",
    "a\0.gguf", " .gguf", "a//b.gguf", "./a.gguf", "x" * 300 + ".gguf", "a/" * 500 + "b.gguf",
    "a?.gguf", "\ud800.gguf",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_name_is_refused(path: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "read_repo", lambda *_, **__: make_repo([path]))
    with pytest.raises(UnsafeName):
        resolve_pull("org/model")


def test_names_that_are_one_file_elsewhere_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        planning,
        "read_repo",
        lambda *_, **__: make_repo([*CHECKPOINT, "Config.JSON", "config.json"]),
    )
    with pytest.raises(UnsafeName, match="cannot lie in one folder"):
        resolve_pull("org/model")


def test_a_stranger_never_gets_a_name_of_the_catalog(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo([*CHECKPOINT])
    stranger = HubRepo("someone/Nemotron-3-Nano", repo.commit, repo.files, "", False, repo.page)
    monkeypatch.setattr(planning, "read_repo", lambda *_, **__: stranger)
    assert resolve_pull("someone/Nemotron-3-Nano").name == "someone-Nemotron-3-Nano"
    assert resolve_pull("nemotron-3-nano").name == "nemotron-3-nano"


def test_a_catalog_name_brings_its_own_licence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def describe(name: str, *_: object, **__: object) -> HubRepo:
        asked.append(name)
        return make_repo(CHECKPOINT)

    monkeypatch.setattr(planning, "read_repo", describe)
    plan = resolve_pull("nemotron-cascade-2")
    assert asked == ["nvidia/Nemotron-Cascade-2-30B-A3B"]
    assert plan.licence.startswith("NVIDIA Open Model License, https://")
    assert (plan.kind, plan.size_bytes) == ("checkpoint", 3 << 30)


@pytest.mark.parametrize("target", ["tiny", "nobody", "a/b/c", "../x", "org/"])
def test_what_is_nowhere_is_refused_without_a_question(target: str, home: Path) -> None:
    with pytest.raises(ModelNotFound):
        resolve_pull(target)


@pytest.mark.parametrize("variable", ["LOCALCASCADE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_refused_first(
    variable: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match=variable):
        resolve_pull("org/model")
