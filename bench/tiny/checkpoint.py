"""Writing the checkpoint directory: tokenizer, configs and weights, in Hugging Face layout."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tiny import corpus
from tiny.model import SPECIAL_TOKENS, VOCABULARY_TOKENS, configure

SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pre-tokenizer of the tekken family: every digit is a token of its own."""

N_TOKENIZER_CHATS = 20_000
SHARD_BYTES = 6_100_000
"""Slightly more than half of the weights, so that two shards come out."""

GENERATION = {"do_sample": True, "temperature": 1.0, "top_p": 0.95}


def train_tokenizer(template_path: Path, seed: int) -> Tokenizer:
    """Byte-level BPE over a sample of the corpus, all 256 bytes included."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    template = corpus.load_template(template_path)
    chats = itertools.islice(corpus.generate_chats(seed), N_TOKENIZER_CHATS)
    tokenizer.train_from_iterator(
        ("".join(corpus.render_chat(template, chat)) for chat in chats), trainer
    )
    return tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; the chat template has its own file."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": configure()["max_position_embeddings"],
    }
    write_json(folder / "tokenizer_config.json", config)


def build_transformers(state: dict[str, Tensor]) -> Any:
    """Transformers' model holding these weights, in float32."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    model = NemotronHForCausalLM(NemotronHConfig(**configure())).float()
    model.load_state_dict(state, strict=True)
    return model.eval()


def write_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Round to BF16 and save as transformers does, in two shards; the router bias stays float32."""
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    model = build_transformers(state).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = state[name].float()
    ends = [SPECIAL_TOKENS.index(token) for token in ("<|im_end|>", "</s>")]
    model.generation_config.update(**GENERATION, eos_token_id=ends)
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    for shard in folder.glob("*.safetensors"):
        shard.chmod(0o644)  # safetensors leaves them readable by the owner alone


def count_bytes(folder: Path) -> int:
    """Size of all files of the checkpoint."""
    return sum(path.stat().st_size for path in folder.iterdir())
