"""GGUF files made to do harm: a sound one is taken apart, changed in a typed way, put together.

Reading and writing here is plain struct, apart from quantize.gguf, whose checks are what is tested.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q",
           11: "<q", 12: "<d"}  # fmt: skip
TEXT, ARRAY = 8, 9
EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    63,
    255,
    513,
    65_537,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
ARCHITECTURES = (
    "llama", "qwen3moe", "qwen2", "mamba", "mamba2", "nemotron_h", "nemotron_h_moe", "bert", "t5",
    "gemma3", "deepseek2", "rwkv7", "falcon-h1", "gpt-oss", "clip", "wavtokenizer-dec", "nonsense",
)  # fmt: skip
EXTRA_INTEGERS = (
    "A.rope.dimension_count", "A.rope.scaling.original_context_length",
    "A.attention.sliding_window",
    "A.pooling_type", "A.expert_count", "A.expert_used_count", "A.expert_group_count",
    "A.expert_group_used_count", "A.nextn_predict_layers", "A.moe_latent_size", "A.vocab_size",
    "A.expert_gating_func", "A.embedding_length_out", "A.attention.key_length", "split.count",
    "split.no", "split.tensors.count", "general.alignment", "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.padding_token_id", "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.token_type_count", "general.quantization_version", "general.file_type",
)  # fmt: skip
EXTRA_REALS = (
    "A.rope.freq_base", "A.rope.scaling.factor", "A.attention.scale", "A.attention.max_alibi_bias",
    "A.attention.clamp_kqv", "A.logit_scale", "A.expert_weights_scale", "general.sampling.temp",
    "A.rope.scaling.yarn_beta_fast", "A.attention.layer_norm_rms_epsilon",
)  # fmt: skip
EXTRA_TEXTS = (
    "A.rope.scaling.type", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre",
    "tokenizer.chat_template", "adapter.type", "general.name",
)  # fmt: skip
TEXTS = (b"", b"x", b"none", b"yarn", b"llama", b"bert", b"t5", b"rwkv", b"plamo2", b"default",
         b"qwen2", b"\xff\xfe\xff", b"\x00", b"a\x1b[31mb", b"%s%n%n", b"A" * 300_000,
         b"{{ " * 9_000,
         b"{% for i in range(10**9) %}x{% endfor %}", "\u202e\U0010ffff".encode())  # fmt: skip


@dataclass
class Entry:
    """One key of the metadata with its value."""

    key: bytes
    kind: int
    items: list[bytes]
    """The packed value or the text; those of an array, as many as it has."""
    element: int = 0
    """Kind of an array's elements."""
    claimed: int | None = None
    """Length that is written instead of the true one."""

    def pack(self) -> bytes:
        head = pack_text(self.key) + struct.pack("<I", self.kind)
        if self.kind != ARRAY:
            return head + (pack_text(self.items[0]) if self.kind == TEXT else self.items[0])
        n = len(self.items) if self.claimed is None else self.claimed
        body = map(pack_text, self.items) if self.element == TEXT else self.items
        return head + struct.pack("<IQ", self.element, n) + b"".join(body)


@dataclass
class Info:
    """One row of the tensor table."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int

    def pack(self) -> bytes:
        dims = struct.pack(f"<I{len(self.dims)}Q", len(self.dims), *self.dims)
        return pack_text(self.name) + dims + struct.pack("<IQ", self.kind, self.offset)


@dataclass
class Parts:
    """A GGUF file in pieces."""

    entries: list[Entry]
    infos: list[Info]
    data: bytes
    version: int = 3
    n_more_entries: int = 0
    n_more_infos: int = 0

    def pack(self) -> bytes:
        """Put the file together, its data at the next multiple of 32."""
        n_infos = len(self.infos) + self.n_more_infos
        n_entries = len(self.entries) + self.n_more_entries
        head = b"GGUF" + struct.pack("<I", self.version)
        head += struct.pack("<QQ", n_infos % 2**64, n_entries % 2**64)
        head += b"".join(part.pack() for part in [*self.entries, *self.infos])
        return head + bytes(-len(head) % 32) + self.data


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return int(value)

    def take_bytes(self, n: int) -> bytes:
        self.position += n
        return self.data[self.position - n : self.position]

    def take_value(self, kind: int) -> bytes:
        n = self.take("<Q") if kind == TEXT else struct.calcsize(FORMATS[kind])
        return self.take_bytes(n)

    def take_entry(self) -> Entry:
        key, kind = self.take_value(TEXT), self.take("<I")
        if kind != ARRAY:
            return Entry(key, kind, [self.take_value(kind)])
        element, n = self.take("<I"), self.take("<Q")
        return Entry(key, kind, [self.take_value(element) for _ in range(n)], element)

    def take_info(self) -> Info:
        name = self.take_value(TEXT)
        dims = [self.take("<Q") for _ in range(self.take("<I"))]
        return Info(name, dims, self.take("<I"), self.take("<Q"))


def pack_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def split_file(path: Path) -> Parts:
    """Take a sound file apart; its alignment is 32."""
    reader = _Reader(path.read_bytes())
    reader.position, version = 8, 3
    n_infos, n_entries = reader.take("<Q"), reader.take("<Q")
    entries = [reader.take_entry() for _ in range(n_entries)]
    infos = [reader.take_info() for _ in range(n_infos)]
    start = -(-reader.position // 32) * 32
    return Parts(entries, infos, reader.data[start:], version)


def make_hostile(parts: Parts, rng: random.Random) -> tuple[str, bytes]:
    """Change a file in one to three ways.

    Args:
        parts: Taken apart anew for each call: it is changed.
        rng: Decides.

    Returns:
        What was done, and the file.
    """
    names = rng.choices(list(MUTATIONS), k=rng.choice((1, 1, 1, 1, 2, 3)))
    for name in names:
        MUTATIONS[name](parts, rng)
    data = parts.pack()
    if rng.random() < 0.12:
        cut = rng.choice((rng.randrange(len(data)), rng.randrange(min(4000, len(data)))))
        return "+".join([*names, f"truncate {cut}"]), data[:cut]
    if rng.random() < 0.08:
        return "+".join([*names, "flip"]), flip_bytes(data, len(data) - len(parts.data), rng)
    return "+".join(names), data


def flip_bytes(data: bytes, n_head: int, rng: random.Random) -> bytes:
    """Overwrite one to four bytes of the header."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(n_head)] = rng.randrange(256)
    return bytes(damaged)


def pick_integer(rng: random.Random, near: int = 0) -> int:
    """An extreme, or a neighbour of `near`."""
    close = (near - 1, near + 1, near * 2, near // 2, -near, near ^ 1 << rng.randrange(8))
    return rng.choice(EXTREMES if rng.random() < 0.6 else close)


def pack_number(value: float, kind: int) -> bytes:
    """Pack as the kind says, wrapped to its width."""
    form = FORMATS[kind]
    if form[1] in "fd":
        return struct.pack(form, value if abs(value) < 3e38 else float("inf"))
    n_bytes = struct.calcsize(form)
    return (int(value) % 2 ** (8 * n_bytes)).to_bytes(n_bytes, "little")


def pick_value(kind: int, old: bytes, rng: random.Random) -> bytes:
    """Another value of the same kind."""
    if kind == TEXT:
        return rng.choice((*TEXTS, old[::-1], old[: len(old) // 2], old * 2))
    if kind not in FORMATS or len(old) != struct.calcsize(FORMATS[kind]):
        return rng.randbytes(4)  # an earlier change has left no such value
    if FORMATS[kind][1] in "fd":
        reals = (0.0, -1.0, 1e-45, 1e30, float("nan"), float("inf"), -float("inf"), 2.0)
        return struct.pack(FORMATS[kind], rng.choice(reals))
    (near,) = struct.unpack(FORMATS[kind], old)
    return pack_number(pick_integer(rng, near), kind)


def change_value(parts: Parts, rng: random.Random) -> None:
    entry = rng.choice([entry for entry in parts.entries if entry.items])
    at = rng.randrange(len(entry.items))
    kind = entry.element if entry.kind == ARRAY else entry.kind
    entry.items[at] = pick_value(kind, entry.items[at], rng)


def change_number(parts: Parts, rng: random.Random) -> None:
    """As change_value, but of the model's own numbers, where most harm is done."""
    numbers = [e for e in parts.entries if e.kind in FORMATS and not e.key.startswith(b"gen")]
    entry = rng.choice(numbers)
    entry.items[0] = pick_value(entry.kind, entry.items[0], rng)


def change_kind(parts: Parts, rng: random.Random) -> None:
    entry = rng.choice(parts.entries)
    kind = rng.choice([*FORMATS, TEXT, ARRAY, 13, 255])
    value = pick_integer(rng, 3)
    packed = pack_number(value, kind) if kind in FORMATS else str(value).encode()
    entry.kind, entry.items = kind, [packed]
    if kind == ARRAY:
        entry.element = rng.choice((4, 5, 6))
        entry.items = [pack_number(pick_integer(rng, 3), entry.element) for _ in range(3)]


def change_array(parts: Parts, rng: random.Random) -> None:
    entry = rng.choice([entry for entry in parts.entries if entry.kind == ARRAY])
    way = rng.randrange(6)
    if way == 0:
        del entry.items[rng.randrange(len(entry.items) + 1) :]
    elif way == 1:
        entry.items += entry.items[: rng.randint(1, 600)]
    elif way == 2:
        entry.claimed = pick_integer(rng, len(entry.items)) % 2**64
    elif way == 3:
        entry.element = rng.choice((0, 4, 5, 6, 7, 8, 9, 10, 12, 77))
    elif way == 4 and entry.items:
        entry.items[rng.randrange(len(entry.items))] = entry.items[0]
    else:
        rng.shuffle(entry.items)


def change_vocabulary(parts: Parts, rng: random.Random) -> None:
    entry = rng.choice([e for e in parts.entries if e.key.startswith(b"tokenizer.ggml")])
    at = rng.randrange(len(entry.items)) if entry.items else 0
    if entry.items:
        kind = entry.element if entry.kind == ARRAY else entry.kind
        entry.items[at] = pick_value(kind, entry.items[at], rng)


def drop_entry(parts: Parts, rng: random.Random) -> None:
    parts.entries.pop(rng.randrange(len(parts.entries)))


def repeat_entry(parts: Parts, rng: random.Random) -> None:
    parts.entries.append(rng.choice(parts.entries))


def add_entry(parts: Parts, rng: random.Random) -> None:
    """Add a key, or give it another value, that a model of this kind need not have."""
    architecture = find_architecture(parts)
    name = rng.choice(EXTRA_INTEGERS + EXTRA_REALS + EXTRA_TEXTS)
    kind = TEXT if name in EXTRA_TEXTS else 6 if name in EXTRA_REALS else 4
    old = b"" if kind == TEXT else bytes(4)
    key = name.replace("A.", f"{architecture}.").encode()
    parts.entries = [entry for entry in parts.entries if entry.key != key]
    parts.entries.append(Entry(key, kind, [pick_value(kind, old, rng)]))


def change_architecture(parts: Parts, rng: random.Random) -> None:
    """Claim another architecture, with all the keys renamed or none."""
    old, new = find_architecture(parts), rng.choice(ARCHITECTURES)
    for entry in parts.entries:
        if entry.key == b"general.architecture":
            entry.items = [new.encode()]
    if rng.random() < 0.7:
        for entry in parts.entries:
            if entry.key.startswith(old.encode() + b"."):
                entry.key = new.encode() + entry.key[len(old) :]


def find_architecture(parts: Parts) -> str:
    found = (e.items[0] for e in parts.entries if e.key == b"general.architecture" and e.items)
    return next(found, b"llama").decode("latin-1")[:40]


def change_shape(parts: Parts, rng: random.Random) -> None:
    info = rng.choice(parts.infos)
    at = rng.randrange(len(info.dims)) if info.dims else 0
    way = rng.randrange(5)
    if way == 0:
        info.dims.reverse()
    elif way == 1:
        info.dims += [1] * rng.randint(1, 4)
    elif way == 2:
        info.dims[at:] = []
    elif way == 3 and len(info.dims) > 1 and info.dims[0] % 2 == 0:
        info.dims[0], info.dims[1] = info.dims[0] // 2, info.dims[1] * 2
    elif info.dims:
        info.dims[at] = pick_integer(rng, info.dims[at]) % 2**64


def change_type(parts: Parts, rng: random.Random) -> None:
    rng.choice(parts.infos).kind = rng.choice((*range(44), 2**31, 2**32 - 1))


def change_offset(parts: Parts, rng: random.Random) -> None:
    info, other = rng.choice(parts.infos), rng.choice(parts.infos)
    way = rng.randrange(3)
    if way == 0:
        info.offset, other.offset = other.offset, info.offset
    else:
        near = 32 * rng.randrange(-2, 3) if way == 1 else pick_integer(rng, 16)
        info.offset = (info.offset + near) % 2**64


def rename_tensor(parts: Parts, rng: random.Random) -> None:
    info = rng.choice(parts.infos)
    names = (b"", b"x" * 64, b"blk.0.attn_q.weight", b"blk.99999.attn_norm.weight",
             b"blk.-1.ffn_up",
             b"\xff", b"a\x1b[2Jb", b"rope_freqs.weight", b"output.weight", b"token_embd.weight",
             info.name + b"s", info.name[:-3], b"blk.0.ffn_gate_inp.weight")  # fmt: skip
    info.name = rng.choice(names)


def swap_names(parts: Parts, rng: random.Random) -> None:
    one, other = rng.choice(parts.infos), rng.choice(parts.infos)
    one.name, other.name = other.name, one.name


def drop_tensor(parts: Parts, rng: random.Random) -> None:
    parts.infos.pop(rng.randrange(len(parts.infos)))


def repeat_tensor(parts: Parts, rng: random.Random) -> None:
    parts.infos.append(rng.choice(parts.infos))


def change_counts(parts: Parts, rng: random.Random) -> None:
    way = rng.randrange(3)
    if way == 0:
        parts.n_more_infos = rng.choice((-1, 1, 2**31, 2**62))
    elif way == 1:
        parts.n_more_entries = rng.choice((-1, 1, 2**31, 2**62))
    else:
        parts.version = rng.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))


def spoil_data(parts: Parts, rng: random.Random) -> None:
    """Fill a tensor with NaN, or with noise."""
    info = rng.choice(parts.infos)
    n = min(4096, len(parts.data) - info.offset)
    noise = rng.choice((b"\xff" * n, rng.randbytes(max(n, 0)), b"\x00\x00\xc0\x7f" * (n // 4)))
    parts.data = parts.data[: info.offset] + noise + parts.data[info.offset + len(noise) :]


MUTATIONS: dict[str, Callable[[Parts, random.Random], None]] = {
    act.__name__: act
    for act in (
        change_value, change_number, change_kind, change_array, change_vocabulary, drop_entry,
        repeat_entry, add_entry, change_architecture, change_shape, change_type, change_offset,
        rename_tensor, swap_names, drop_tensor, repeat_tensor, change_counts, spoil_data,
    )
}  # fmt: skip
