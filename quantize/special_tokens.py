"""What the files beside tokenizer.json say: special tokens, chat template, sampling.

Where several files name a token, the first of generation_config.json, tokenizer_config.json and
config.json that does is believed: it is the order in which transformers' `generate` asks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import CheckpointError, UnsupportedModel
from quantize.safetensors import read_object

MAX_TEMPLATE_BYTES = 1 << 20
TURN_END = "<|im_end|>"
ENDS_BY_TEXT = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
"""Tokens at which llama.cpp ends an answer because of how they are spelled.

Source: src/llama-vocab.cpp, special_eog_ids.
"""
_CORRECT = "Correct the file, or download the checkpoint again."


@dataclass(frozen=True)
class TextSettings:
    """The files that speak of text, as they are."""

    folder: Path
    tokenizer: Mapping[str, Any]
    """tokenizer_config.json, empty if there is none."""
    generation: Mapping[str, Any]
    """generation_config.json, empty if there is none."""
    config: Mapping[str, Any]
    """config.json."""

    @property
    def tokenizer_path(self) -> Path:
        """tokenizer_config.json, for messages."""
        return self.folder / "tokenizer_config.json"

    @property
    def generation_path(self) -> Path:
        """generation_config.json, for messages."""
        return self.folder / "generation_config.json"


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens with a role, by id."""

    bos_id: int | None
    """Without one llama.cpp takes token 11, but puts it nowhere as long as add_bos is off."""
    eos_id: int
    eot_id: int | None
    """End of a turn: <|im_end|> if there is one, else the second token that ends an answer."""
    pad_id: int | None
    unk_id: int | None
    add_bos: bool
    add_eos: bool


@dataclass(frozen=True)
class Sampling:
    """How the authors sample; None where generation_config.json does not say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


def read_settings(folder: Path, config: Mapping[str, Any]) -> TextSettings:
    """Read the files that speak of text; each but config.json may be missing.

    Raises:
        CheckpointError: One of them is not a JSON object.
    """
    paths = folder / "tokenizer_config.json", folder / "generation_config.json"
    tokenizer, generation = (
        read_object(path, allow_infinity=True) if path.exists() else {} for path in paths
    )
    return TextSettings(folder, tokenizer, generation, config)


def find_special_tokens(
    settings: TextSettings, ids: Mapping[str, int], post_processor: Any
) -> SpecialTokens:
    """Find the tokens with a role.

    Args:
        settings: From `read_settings`.
        ids: Id of every token, by its text as the files spell it.
        post_processor: Value of that key in tokenizer.json: what it puts around a text, which
            counts where tokenizer_config.json does not say.

    Raises:
        CheckpointError: A file names a token that does not exist or contradicts another; no token
            ends an answer.
        UnsupportedModel: llama.cpp has no place for all of them.
    """
    eos_id, eot_id = _find_ends(settings, ids)
    before, after = _read_affixes(settings.folder / "tokenizer.json", post_processor)
    bos_id = _find_id(settings, ids, "bos")
    return SpecialTokens(
        bos_id=before if bos_id is None else bos_id,
        eos_id=eos_id,
        eot_id=eot_id,
        pad_id=_find_id(settings, ids, "pad"),
        unk_id=_find_id(settings, ids, "unk"),
        add_bos=_is_added(settings, "bos", bos_id, before),
        add_eos=_is_added(settings, "eos", eos_id, after),
    )


def read_chat_template(settings: TextSettings) -> str | None:
    """Read the chat template: chat_template.jinja, else the one in tokenizer_config.json.

    Raises:
        CheckpointError: It is not text, or larger than 1 MiB.
    """
    path = settings.folder / "chat_template.jinja"
    try:
        if path.exists():
            template: Any = _read_start(path, MAX_TEMPLATE_BYTES + 1).decode()
        else:
            path = settings.tokenizer_path
            template = _choose_template(path, settings.tokenizer.get("chat_template"))
        if template is None:
            return None
        if len(template.encode()) > MAX_TEMPLATE_BYTES or "\0" in template:
            raise _refuse_template(path, f"more than {MAX_TEMPLATE_BYTES} bytes, or a zero byte")
    except (UnicodeError, AttributeError) as error:
        raise _refuse_template(path, "not UTF-8 text") from error
    return str(template)


def read_sampling(settings: TextSettings) -> Sampling:
    """Read how the authors sample; nothing if they decode greedily.

    Raises:
        CheckpointError: A value is not a number, or outside its range.
    """
    if settings.generation.get("do_sample") is False:
        return Sampling()
    top_k = _read_number(settings, "top_k", 2**31 - 1)
    if top_k is not None and top_k != int(top_k):
        raise CheckpointError(
            settings.generation_path, f"top_k {top_k} is not whole", hint=_CORRECT
        )
    return Sampling(
        temperature=_read_number(settings, "temperature", 100.0),
        top_p=_read_number(settings, "top_p", 1.0),
        top_k=None if top_k is None else int(top_k),
    )


def _read_start(path: Path, n_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(n_bytes)


def _choose_template(path: Path, stated: Any) -> Any:
    """Choose the template named default where there are several."""
    if not isinstance(stated, list):
        return stated
    named = {entry.get("name"): entry for entry in stated if isinstance(entry, Mapping)}
    if "default" not in named:
        raise _refuse_template(path, f"none is named default, but {sorted(map(str, named))}")
    return named["default"].get("template")


def _read_number(settings: TextSettings, key: str, most: float) -> float | None:
    value = settings.generation.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise CheckpointError(
            settings.generation_path, f"{key} {value!r} is not a number from 0 to {most:g}",
            hint=_CORRECT,
        )  # fmt: skip
    return value


def _find_id(settings: TextSettings, ids: Mapping[str, int], role: str) -> int | None:
    """Find the one token of a role; the first one where a list is given."""
    found = _find_all(settings, ids, role)
    return found[0] if found else None


def _find_all(settings: TextSettings, ids: Mapping[str, int], role: str) -> list[int]:
    """Find the tokens of a role in the first file that names any."""
    key = f"{role}_token_id"
    stated = _read_ids(settings.generation_path, key, settings.generation.get(key), len(ids))
    return (
        stated
        or _look_up(settings.tokenizer_path, f"{role}_token", settings.tokenizer, ids)
        or _read_ids(settings.folder / "config.json", key, settings.config.get(key), len(ids))
    )


def _read_ids(path: Path, key: str, value: Any, n_tokens: int) -> list[int]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    for token in found:
        if type(token) is not int or not 0 <= token < n_tokens:
            raise CheckpointError(
                path, f"{key} {token!r} is not one of the {n_tokens} tokens", hint=_CORRECT
            )
    return list(dict.fromkeys(found))


def _look_up(path: Path, key: str, stated: Mapping[str, Any], ids: Mapping[str, int]) -> list[int]:
    """Look up a token given as text, or as an object with its text in `content`."""
    value = stated.get(key)
    text = value.get("content") if isinstance(value, Mapping) else value
    if text is None:
        return []
    if not isinstance(text, str) or text not in ids:
        raise CheckpointError(path, f"{key} {text!r} is not in the vocabulary", hint=_CORRECT)
    return [ids[text]]


def _find_ends(settings: TextSettings, ids: Mapping[str, int]) -> tuple[int, int | None]:
    """Find the end of sequence and the end of a turn, and see that no other end is lost."""
    ends = _find_all(settings, ids, "eos")
    if not ends:
        raise CheckpointError(
            settings.generation_path, "no token ends an answer: eos_token_id is nowhere given",
            hint="Add eos_token_id to generation_config.json, as the model's authors state it.",
        )  # fmt: skip
    others = [end for end in ends if end != ends[0]]
    eot_id = ids.get(TURN_END, others[0] if others else None)
    by_text = {ids[text] for text in ENDS_BY_TEXT if text in ids}
    lost = [end for end in others if end != eot_id and end not in by_text]
    if lost:
        raise UnsupportedModel(
            f"{settings.generation_path}: eos_token_id {ends}: llama.cpp would not stop at {lost}",
            "It has place for two ends besides those that it knows by their text; remove one.",
        )
    return ends[0], eot_id


def _is_added(settings: TextSettings, role: str, token: int | None, affix: int | None) -> bool:
    """Tell whether a text gets this token, and see that it would be the right one."""
    stated = settings.tokenizer.get(f"add_{role}_token")
    is_added = stated if isinstance(stated, bool) else affix is not None
    if is_added and (token is None if affix is None else token not in (None, affix)):
        raise CheckpointError(
            settings.tokenizer_path,
            f"a text gets a {role} token, which is {token} here but {affix} in tokenizer.json",
            hint=_CORRECT,
        )
    return is_added


def _read_affixes(path: Path, post_processor: Any) -> tuple[int | None, int | None]:
    """Read which token tokenizer.json puts before a text, and which after."""
    is_sequence = _is_kind(post_processor, "Sequence")
    steps = post_processor.get("processors") if is_sequence else [post_processor]
    steps = [step for step in steps or [] if step is not None and not _is_kind(step, "ByteLevel")]
    if not steps:
        return None, None
    if len(steps) > 1 or not _is_kind(steps[0], "TemplateProcessing"):
        raise _refuse_post_processor(path)
    try:
        before, after = _read_template_processing(steps[0])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(path, "post_processor is damaged", hint=_CORRECT) from error
    if len(before) > 1 or len(after) > 1:
        raise _refuse_post_processor(path)
    return (before[0] if before else None), (after[0] if after else None)


def _read_template_processing(step: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Read the tokens before a single text, and those after it."""
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for part in step["single"]:
        if "Sequence" in part:
            side += 1
        else:
            name = part["SpecialToken"]["id"]
            sides[side].extend(int(number) for number in step["special_tokens"][name]["ids"])
    if side != 1:
        raise ValueError("not one text")
    return sides


def _is_kind(step: Any, kind: str) -> bool:
    return isinstance(step, Mapping) and step.get("type") == kind


def _refuse_post_processor(path: Path) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path}: post_processor puts more around a text than one token before and one after",
        "llama.cpp can add a bos and an eos token and nothing else; it cannot be converted.",
    )


def _refuse_template(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(path, f"chat template: {problem}", hint=_CORRECT)
