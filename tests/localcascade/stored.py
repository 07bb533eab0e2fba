"""Small models for tests of the store, and ways to die while one is handled."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gguf
import numpy as np

from localcascade import digest, store
from localcascade.store import InstalledModel
from tests.quantize.checkpoints import write_checkpoint

MIB = 1 << 20
_TRACED = (str(Path(store.__file__).parent), digest.__file__, "shutil.py")


def write_gguf(
    path: Path, n_weights: int = 1024, *, seed: int = 0, split: tuple[int, int] | None = None
) -> Path:
    """Write a GGUF file of one F32 tensor; as split NUMBER of COUNT, counted from 0, on wish."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("stored")
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    weights = np.random.default_rng(seed).standard_normal((n_weights // 32, 32), np.float32)
    writer.add_tensor(f"blk.{split[0] if split else 0}.ffn_up.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_splits(folder: Path, stem: str, n_splits: int) -> list[Path]:
    """Write a GGUF model in several files."""
    return [
        write_gguf(folder / f"{stem}-{i + 1:05}-of-{n_splits:05}.gguf", split=(i, n_splits), seed=i)
        for i in range(n_splits)
    ]


def write_small_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of two shards, with a file of code and a pickle beside them."""
    weights = np.arange(512, dtype=np.float32).reshape(16, 32)
    tensors = {"a.weight": ("BF16", weights), "b.weight": ("F32", weights)}
    write_checkpoint(folder, {"model_type": "nemotron_h"}, tensors, n_shards=2)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_nemotron_h.py").write_text("raise SystemExit\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def install(
    name: str, files: dict[str, bytes], kind: store.Kind = "gguf", **origin: Any
) -> InstalledModel:
    """Put files into the store as a pull would."""
    with store.open_staging(kind, name) as folder:
        for path, data in files.items():
            target = folder / "files" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        manifest = store.make_manifest(folder / "files", name, kind, **origin)
        return store.install_model(folder / "files", manifest)


def count_lines(action: Callable[[], object]) -> int:
    """Count the lines of the store's code that an action runs, in a process of its own."""
    reader, writer = os.pipe()

    def report(n_lines: int) -> None:
        os.write(writer, str(n_lines).encode())

    _fork(action, None, report)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def run_killed(action: Callable[[], object], at_line: int) -> None:
    """Run an action in a process that kills itself before so many lines of the store's code."""
    status = _fork(action, at_line, lambda _n_lines: None)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _fork(action: Callable[[], object], at_line: int | None, report: Callable[[int], None]) -> int:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    n_lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal n_lines
        if not frame.f_code.co_filename.startswith(_TRACED[:2]) and not (
            frame.f_code.co_filename.endswith(_TRACED[2])
        ):
            return None
        n_lines += event == "line"
        if n_lines == at_line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
        report(n_lines)
        os._exit(0)
