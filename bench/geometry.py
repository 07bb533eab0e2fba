"""The 30 B model's real geometry, a few layers of it, through the whole house.

    python bench/geometry.py [--pattern "MEM*E"] [--experts 128] [--types q8_0,iq2_s,iq3_s]

Writes a checkpoint of random BF16 weights with the model's exact tensor names and shapes into a
temporary folder (128 experts of 1856 x 2688, 131072 tokens; 5 layers take 7 GiB), an importance
matrix for it, and second moments of what each expert of the last MoE layer reads. Then plans,
converts with a mixed recipe, in a process of its own, and loads the file in the engine, which
answers with a few tokens. The recipe: residual stream padded to 2816; experts of the last MoE layer
trimmed to 1792 and encoded as the second and third type say, up and down, with feedback; those of
the other MoE layers as wide as they were, q2_0; everything else the first type. Prints seconds,
bytes and peak resident memory; writes bench/results/geometry.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from convert import CONFIG, ROOT, TINY, write_checkpoint

from localcascade.engine.client import Engine
from localcascade.prompt.events import ChatRequest, Done, Sampling
from quantize.choices import Choices
from quantize.convert import Result, choose_uniformly, quantize_checkpoint
from quantize.families import ModelSpec, describe_model
from quantize.ggml import F32Array, type_named
from quantize.importance import Importance, Moments, write_importance
from quantize.moments import Stack, pack_triangle, read_moments, write_moments
from quantize.safetensors import open_checkpoint

T = TypeVar("T")
VOCABULARY_TOKENS = 131072
GEOMETRY = CONFIG | {
    "vocab_size": VOCABULARY_TOKENS,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "tie_word_embeddings": False,
}
PADDED, TRIMMED = 2816, 1792
PROPORTIONS = "MEMEM*EME"
"""Of 23 Mamba-2, 23 MoE and 6 attention layers, in nine."""
LIMIT_MIB = 4096


def fill_vocabulary(folder: Path) -> None:
    """Give the small tokenizer its template, and as many tokens as the model has embeddings."""
    shutil.copy(TINY / "chat_template.jinja", folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    model = tokenizer["model"]
    merged = {symbol for merge in model["merges"] for symbol in "".join(merge)}
    symbols = [token for token in model["vocab"] if len(token) == 1 and token not in merged]
    # Of symbols of which the right ones begin no merge, each token is built in one way only.
    left, right = symbols[::2], symbols[1::2]
    pairs = [*product(left, right), *product(map("".join, product(left, right)), right)]
    taken = {*model["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])}
    free = (i for i in range(VOCABULARY_TOKENS) if i not in taken)
    for i, pair in zip(free, pairs, strict=False):
        model["vocab"]["".join(pair)] = i
        model["merges"].append([*pair])
    path.write_text(json.dumps(tokenizer))


def choose(folder: Path, types: list[str]) -> tuple[Choices, ModelSpec]:
    """Plan the mixed recipe; also the model as it is in the checkpoint."""
    rest, up, down = types
    with open_checkpoint(folder) as checkpoint:
        model = describe_model(checkpoint)
        choices, _ = choose_uniformly(checkpoint, type_named(rest), fallback=None, pad=False)
    *wide, trimmed = sorted(
        int(tensor.name.split(".")[1]) for tensor in model.tensors if "ffn_up_exps" in tensor.name
    )
    experts = {f"blk.{i}.ffn_{side}_exps.weight": "q2_0" for i in wide for side in ("up", "down")}
    experts |= {
        f"blk.{trimmed}.ffn_{side}_exps.weight": name for side, name in (("up", up), ("down", down))
    }
    mixed = replace(
        choices,
        types={**choices.types, **experts},
        n_embd=PADDED,
        expert_widths={**choices.expert_widths, trimmed: TRIMMED},
    )
    return mixed, model


def make_importance(path: Path, model: ModelSpec) -> None:
    """Write log-normal importance for every matrix, 512 samples for each expert."""
    rng = np.random.Generator(np.random.PCG64(1))
    moments = {}
    for tensor in model.tensors:
        if tensor.matrix:
            stacked = len(tensor.sources)
            means = np.exp(rng.standard_normal((stacked, tensor.source_shape[-1])))
            moments[tensor.name] = Moments(means * 512, np.full(stacked, 512.0))
    write_importance(path, Importance(moments, n_chunks=1, chunk_tokens=512))


def make_moments(path: Path, model: ModelSpec) -> None:
    """Write second moments of what the experts of the last MoE layer read, of 64 samples each."""
    rng = np.random.Generator(np.random.PCG64(2))
    names = [tensor.name for tensor in model.tensors if "_exps" in tensor.name]
    layer = max(names, key=lambda name: int(name.split(".")[1])).partition(".ffn")[0]
    stacks = [
        Stack(
            tensor.name,
            len(tensor.sources) if "down" in tensor.name else 1,
            tensor.source_shape[-1],
        )
        for tensor in model.tensors
        if tensor.name in names and tensor.name.startswith(f"{layer}.")
    ]

    def draw(stack: Stack) -> Iterator[tuple[F32Array, int]]:
        for _ in range(stack.n_matrices):
            inputs = rng.standard_normal((64, stack.width), np.float32)
            yield pack_triangle(inputs.T @ inputs), len(inputs)

    with write_moments(path, stacks, ["drawn"], "drawn") as part:
        for stack in stacks:
            part.write(stack, draw(stack))


def convert(
    folder: Path, output: Path, choices: Choices, importance: Path, moments: Path, n_threads: int
) -> Result:
    """Convert with all that a calibration gives."""
    with read_moments(moments) as opened:
        return quantize_checkpoint(
            folder, output, choices=choices, importance=importance, moments=opened,
            n_threads=n_threads,
        )  # fmt: skip


def run_alone(call: Callable[..., T], *arguments: object, **options: object) -> T:
    """Call in a process of its own, so that its peak memory is its own.

    Linux lets a new process inherit its parent's peak, so the large work must all be done so.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *arguments, **options).result()


def write_layers(path: Path, pattern: str = PROPORTIONS, n_experts: int = 16) -> None:
    """Write a file of a few layers, random weights in q4_0, for a bench that needs it to be quick.

    The pattern has the layers of the real model in its proportions. A token takes 6 experts of 16
    as it would of 128, so that what it costs is the same.
    """
    config = GEOMETRY | {"hybrid_override_pattern": pattern, "n_routed_experts": n_experts}
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        source = Path(temporary) / "model"
        run_alone(write_checkpoint, source, config)
        fill_vocabulary(source)
        run_alone(quantize_checkpoint, source, path, "q4_0")


def answer(path: Path, n_tokens: int = 8) -> tuple[float, float]:
    """Load the file in the engine and let it answer; seconds of each."""
    started = time.monotonic()
    request = ChatRequest(
        ({"role": "user", "content": "2 + 2"},), sampling=Sampling(max_tokens=n_tokens, seed=1)
    )
    with Engine(path, n_ctx=512) as engine:
        engine.load()
        loaded = time.monotonic()
        last = list(engine.chat(request))[-1]
    if not isinstance(last, Done):
        raise SystemExit(f"no answer: {last}")
    return loaded - started, time.monotonic() - loaded


def measure(pattern: str, n_experts: int, types: list[str], n_threads: int) -> dict[str, Any]:
    """Take one model through the house."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, output = Path(temporary) / "model", Path(temporary) / "model.gguf"
        importance, moments = (Path(temporary) / f"{what}.gguf" for what in ("imatrix", "moments"))
        config = GEOMETRY | {"hybrid_override_pattern": pattern, "n_routed_experts": n_experts}
        run_alone(write_checkpoint, folder, config)
        fill_vocabulary(folder)
        source_bytes = (folder / "model.safetensors").stat().st_size
        started = time.monotonic()
        choices, model = choose(folder, types)
        plan_s = time.monotonic() - started
        make_importance(importance, model)
        make_moments(moments, model)
        result = run_alone(convert, folder, output, choices, importance, moments, n_threads)
        moments_bytes = moments.stat().st_size
        load_s, answer_s = answer(output)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "pattern": pattern,
        "experts": n_experts, "types": " ".join(types), "threads": n_threads,
        "source_bytes": source_bytes, "moments_bytes": moments_bytes,
        "file_bytes": result.file_bytes, "plan_s": f"{plan_s:.2f}",
        "convert_s": f"{result.elapsed_s:.1f}", "peak_rss_mib": result.peak_rss_bytes >> 20,
        "load_s": f"{load_s:.2f}", "answer_s": f"{answer_s:.2f}",
    }  # fmt: skip


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pattern", default="MEM*E")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--types", default="q8_0,iq2_s,iq3_s")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    row = measure(options.pattern, options.experts, options.types.split(","), options.threads)
    for key, value in row.items():
        print(f"{key:<14} {value}")
    with (ROOT / "bench" / "results" / "geometry.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    if row["peak_rss_mib"] > LIMIT_MIB:
        raise SystemExit("the conversion took more than 4 GiB")


if __name__ == "__main__":
    main()
