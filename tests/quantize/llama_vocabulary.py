"""llama.cpp's own tokenizer on a GGUF file that holds nothing but a vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import llama_cpp

from quantize.gguf import plan_file
from quantize.tokenizer import Vocabulary


class LlamaVocabulary:
    """A vocabulary as llama.cpp has loaded it."""

    def __init__(self, model: object) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.n_tokens = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def tokenize(
        self, text: str, *, parse_special: bool = False, add_special: bool = False
    ) -> list[int]:
        """Tokenize a text; with `parse_special`, special tokens in it are recognised."""
        encoded = text.encode()
        room = (llama_cpp.llama_token * (len(encoded) + 2))()
        n_tokens = llama_cpp.llama_tokenize(
            self._vocab, encoded, len(encoded), room, len(room), add_special, parse_special
        )
        assert n_tokens >= 0
        return list(room[:n_tokens])

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Put the pieces of the tokens together, special ones included."""
        return b"".join(self._piece(token) for token in tokens)

    def is_control(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def is_end(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def special_ids(self) -> dict[str, int]:
        return {
            name: getattr(llama_cpp, f"llama_vocab_{name}")(self._vocab)
            for name in ("bos", "eos", "eot", "pad")
        }

    def adds(self) -> tuple[bool, bool]:
        """Whether a bos and an eos are put around a text."""
        return (
            bool(llama_cpp.llama_vocab_get_add_bos(self._vocab)),
            bool(llama_cpp.llama_vocab_get_add_eos(self._vocab)),
        )

    def _piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(1024)
        n_bytes = llama_cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, True)
        assert n_bytes >= 0
        return room.raw[:n_bytes]


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Write a GGUF file without tensors, from our own metadata through our own writer."""
    metadata = [("general.architecture", "nemotron_h_moe", "str"), *vocabulary.to_metadata()]
    path.write_bytes(plan_file(metadata, []).header)


@contextmanager
def open_vocabulary(path: Path) -> Iterator[LlamaVocabulary]:
    """Load a file's vocabulary, without logging."""
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp refuses {path}"
    try:
        yield LlamaVocabulary(model)
    finally:
        llama_cpp.llama_model_free(model)
