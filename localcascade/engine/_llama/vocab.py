"""Vocabularies: text into tokens, tokens into bytes."""

from __future__ import annotations

import ctypes

from llama_cpp import llama_cpp as lib

from localcascade.engine._llama.binding import VocabHandle
from localcascade.errors import NativeError


def get_n_vocab(vocab: VocabHandle) -> int:
    """Count the tokens of a vocabulary."""
    return int(lib.llama_vocab_n_tokens(vocab))


def get_bos(vocab: VocabHandle) -> int:
    """Get the id of the beginning-of-sequence token, -1 if there is none."""
    return int(lib.llama_vocab_bos(vocab))


def get_eos(vocab: VocabHandle) -> int:
    """Get the id of the end-of-sequence token, -1 if there is none."""
    return int(lib.llama_vocab_eos(vocab))


def adds_bos(vocab: VocabHandle) -> bool:
    """Tell whether every text of this vocabulary opens with that token."""
    return bool(lib.llama_vocab_get_add_bos(vocab))


def is_eog(vocab: VocabHandle, token: int) -> bool:
    """Tell whether a token ends a generation."""
    return bool(lib.llama_vocab_is_eog(vocab, token))


def splits_words(vocab: VocabHandle) -> bool:
    """Tell whether text is split into words by regular expressions before tokens are made."""
    return bool(lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_BPE)


def find_special_tokens(vocab: VocabHandle) -> tuple[list[int], list[int]]:
    """Find the tokens that are more than text.

    Returns:
        Ids of the CONTROL tokens, ids of the USER_DEFINED ones; both ascending.
    """
    attributes = [lib.llama_vocab_get_attr(vocab, token) for token in range(get_n_vocab(vocab))]
    control, user_defined = (
        [token for token, attribute in enumerate(attributes) if attribute & wanted]
        for wanted in (lib.LLAMA_TOKEN_ATTR_CONTROL, lib.LLAMA_TOKEN_ATTR_USER_DEFINED)
    )
    return control, user_defined


def read_piece(vocab: VocabHandle, token: int) -> bytes:
    """Read the bytes a token stands for; special tokens give their own text.

    Args:
        vocab: The vocabulary.
        token: Its id, checked by the caller to be in the vocabulary.

    Returns:
        Bytes, which may be a part of a UTF-8 character.

    Raises:
        NativeError: The call failed.
    """
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = lib.llama_token_to_piece(vocab, token, buffer, size, 0, True)
        if length >= 0:
            return buffer.raw[:length]
        if -length <= size:
            raise NativeError("llama_token_to_piece", length)
        size = -length


def tokenize(vocab: VocabHandle, text: bytes, *, parse_special: bool) -> list[int]:
    """Cut text into tokens, adding none at the ends.

    Args:
        vocab: The vocabulary.
        text: UTF-8.
        parse_special: Let the text of a control token become that token.

    Returns:
        Token ids.

    Raises:
        NativeError: The call failed.
    """
    room = len(text) + 16
    while True:
        tokens = (ctypes.c_int32 * room)()
        n_tokens = lib.llama_tokenize(vocab, text, len(text), tokens, room, False, parse_special)
        if n_tokens >= 0:
            return tokens[:n_tokens]
        if -n_tokens <= room or n_tokens == -(2**31):
            raise NativeError("llama_tokenize", n_tokens)
        room = -n_tokens
