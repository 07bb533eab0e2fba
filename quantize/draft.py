"""A model of which nothing is decided yet: what shapes and how large a file a choice would give.

For this a config and a tokenizer are enough; no weights are needed, nor their headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from quantize.choices import Choices
from quantize.errors import UnsupportedModel
from quantize.families import FAMILIES, Config, ModelSpec, OutputTensor
from quantize.gguf import MetadataEntry, TensorSpec, plan_file
from quantize.importance import Importance
from quantize.recipe import list_metadata, plan_tensors
from quantize.recipe_file import format_recipe
from quantize.safetensors import read_object
from quantize.tokenizer import read_tokenizer
from quantize.transform import Transforms

RECIPE_KEY = "localcascade.recipe"
"""Key of the recipe, as TOML, in the file that was made by it."""

_FILLER = "filler"
_FEW = 1000
"""Elements up to which an array of the metadata is packed anew for every measurement."""


@dataclass(frozen=True)
class Draft:
    """A model before its recipe."""

    config: Config
    name: str
    vocabulary: tuple[MetadataEntry, ...] = ()
    """What its tokenizer says in the header, without long arrays."""
    filler_bytes: int = 0
    """What else the tokenizer takes there: exact if it is known, else an estimate."""
    importance: Importance | None = None
    transforms: Transforms = field(default_factory=Transforms)

    def describe(self, choices: Choices) -> ModelSpec:
        """Say what the model becomes at the widths chosen.

        Raises:
            UnsupportedModel: No family of ours knows the architecture.
            CheckpointError: The config is damaged.
            ChoiceRefused: A width that it cannot have.
        """
        names = self.config.values.get("architectures")
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str) and name in FAMILIES:
                return FAMILIES[name](self.config, frozenset(), choices)
        raise UnsupportedModel(
            f"{self.config.path}: key architectures: {names!r} is not a model known here",
            f"There are {', '.join(FAMILIES)}.",
        )

    def list_tensors(self, choices: Choices) -> Sequence[OutputTensor]:
        """Every tensor of the file with the shape it has at the widths chosen."""
        return self.describe(choices).tensors

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of the matrices that have a choice of type."""
        return tuple(t.name for t in self.list_tensors(Choices({})) if t.matrix)

    def measure_file(self, choices: Choices) -> int:
        """Bytes of the whole file: header, metadata, alignment, everything."""
        model = self.describe(choices)
        entries = list_metadata(
            model,
            [*self.vocabulary, *_fill(self.filler_bytes)],
            "f32",
            importance=self.importance,
            transforms=self.transforms,
            metadata=list_recipe_metadata(choices),
            name=self.name,
        )
        planned, _ = plan_tensors(model, choices.types, self.transforms)
        tensors = [TensorSpec(t.spec.name, t.spec.shape, t.type.id) for t in planned]
        return plan_file(entries, tensors).file_bytes


def open_draft(folder: Path, name: str, importance: Importance | None = None) -> Draft:
    """Read config and tokenizer of a checkpoint.

    Args:
        folder: Holds them.
        name: The model's name in the file.
        importance: Importance matrix that the conversion will use.

    Raises:
        CheckpointError: A file is missing or damaged.
        UnsupportedModel: No family of ours knows the model, or llama.cpp not its tokenizer.
    """
    path = folder / "config.json"
    config = Config(path, read_object(path, allow_infinity=True))
    draft = Draft(config, name, importance=importance)
    n_tokens = draft.describe(Choices({})).n_embeddings
    entries = read_tokenizer(folder, n_tokens, config.values).to_metadata()
    long = [e for e in entries if e[2].startswith("arr:") and len(e[1]) > _FEW]
    return replace(
        draft,
        vocabulary=tuple(entry for entry in entries if entry not in long),
        filler_bytes=sum(map(measure_entry, long)),
    )


def list_recipe_metadata(choices: Choices) -> tuple[MetadataEntry, ...]:
    """What a file says of the recipe that made it."""
    return ((RECIPE_KEY, format_recipe(choices), "str"),)


def measure_entry(entry: MetadataEntry) -> int:
    """Bytes that an array of texts, or of numbers of 4 bytes, takes in the header of a GGUF."""
    key, values, kind = entry
    sizes = (8 + len(v.encode()) for v in values) if kind == "arr:str" else (4 for _ in values)
    # Key, type of the value, type and number of the elements.
    return 8 + len(key.encode()) + 4 + 4 + 8 + sum(sizes)


def _fill(n_bytes: int) -> list[MetadataEntry]:
    """Entries that take so many bytes together."""
    text_bytes = n_bytes - (8 + len(_FILLER) + 4 + 8)
    return [(_FILLER, "x" * text_bytes, "str")] if text_bytes >= 0 else []
