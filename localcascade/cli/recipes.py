"""What `localcascade quantize` would make: a recipe for a budget, or a given one, and its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcascade.cli import console
from localcascade.cli.progress import OnProgress
from localcascade.cli.units import format_bytes, parse_size
from localcascade.errors import ModelNotFound, OutOfBudget
from localcascade.store import find_checkpoint

if TYPE_CHECKING:
    from localcascade.fit import ModelShape
    from quantize.allocate import Allocation
    from quantize.choices import Choices
    from quantize.costs import Costs
    from quantize.draft import Draft
    from quantize.importance import Importance
    from quantize.recipe_file import RecipeRules

TRIAL_STAGES = {"try": ("Trying types", " matrices")}


@dataclass(frozen=True)
class Request:
    """What the user wants the file to be; one of fit, size and recipe is given."""

    fit: str | None = None
    """Memory of the card it is to run on, as "16G"."""
    size: str | None = None
    """Size of the file, as "14.5G"."""
    recipe: str | None = None
    """A recipe file, or the name of a preset of the catalog."""
    ctx: int | None = None
    kv: str = "f16"
    parallel: int = 1
    imatrix: Path | None = None
    sensitivity: Path | None = None

    @property
    def is_any(self) -> bool:
        """Whether types are to be chosen, or read, matrix by matrix."""
        return any((self.fit, self.size, self.recipe))


@dataclass(frozen=True)
class Proposal:
    """A recipe with all that is expected of it."""

    request: Request
    draft: Draft
    costs: Costs
    allocation: Allocation
    notes: tuple[str, ...]

    @cached_property
    def memory(self) -> Mapping[str, Any]:
        """As `plan --json` has it, for the card of --fit, else for main memory alone."""
        return _plan_memory(self.draft, self.allocation, self.request)

    @property
    def choices(self) -> Choices:
        """The recipe itself."""
        return self.allocation.choices

    @property
    def expert_bits(self) -> float:
        """Bits that a weight of the routed experts takes."""
        from quantize.allocate import measure_bits

        return measure_bits(self.draft.list_tensors(self.choices), self.choices)

    def format_recipe(self) -> str:
        """Write the recipe as TOML, with what is expected of it on top."""
        from quantize.recipe_file import format_recipe

        found = self.allocation
        return format_recipe(
            self.choices,
            (
                f"{self.draft.name}: {found.file_bytes} bytes; budget {found.budget_bytes}.",
                f"Routed experts: {self.expert_bits:.3f} bits a weight.",
                f"Expected divergence: {found.expected_kl:.4f} nats a token, to first order.",
                "Of several rules for a matrix the last one holds.",
            ),
        )


def propose(
    source: str, folder: Path | None, name: str | None, request: Request, on_progress: OnProgress
) -> Proposal:
    """Decide the recipe of a file that is not made yet.

    Args:
        source: As the user named it.
        folder: Where config and tokenizer are; None takes the checkpoint of that name, or the
            catalog's geometry if it is not here.
        name: The model's name in the file; None takes the folder's.
        request: What is wanted.
        on_progress: Called with (stage, done, in all); stages as in TRIAL_STAGES.

    Raises:
        ModelNotFound: No such checkpoint, and no geometry in the catalog.
        OutOfBudget: No recipe makes the file so small; names the smallest budget.
        UsageError: A size, a type of cache or a preset that there is not.
        QuantizeError: A file is damaged, or another model's.
    """
    from quantize.costs import AssumedSensitivity
    from quantize.draft import open_draft
    from quantize.importance import read_importance
    from quantize.sensitivity import read_sensitivity
    from quantize.trial import make_costs

    importance = read_importance(request.imatrix) if request.imatrix else None
    notes: list[str] = []
    weights = None if folder else _find_folder(source)
    home = folder or weights
    if home is None:
        draft = _draft_from_catalog(source, importance)
        notes.append(
            f"{source} is not here: sizes from the catalog, its tokenizer estimated at "
            f"{format_bytes(draft.filler_bytes)}, errors as on Gaussian weights"
        )
    else:
        draft = open_draft(home, name or home.resolve().name, importance)
    measured = (
        _try_types(weights, importance, on_progress) if weights and not request.recipe else {}
    )
    probed = read_sensitivity(request.sensitivity) if request.sensitivity else None
    costs = make_costs(
        probed or AssumedSensitivity(frozenset(draft.matrices)), importance, measured
    )
    if not probed:
        notes.append("sensitivities are assumed; `localcascade calibrate --probe` measures them")
    allocation = _decide(source, draft, costs, request)
    notes += _note_importance(allocation, request)
    return Proposal(request, draft, costs, allocation, tuple(notes))


def weigh_again(proposal: Proposal, weights: Mapping[str, float]) -> Proposal:
    """Solve a proposal of --fit or --size again, within the same bytes.

    Args:
        proposal: As propose made it.
        weights: Kind of matrix -> how much more it counts than the proposal's sensitivities say.

    Returns:
        The new one; what is expected of it is what the unchanged sensitivities say.
    """
    from quantize.allocate import allocate, estimate
    from quantize.costs import WeighedSensitivity

    costs, budget_bytes = proposal.costs, proposal.allocation.budget_bytes
    weighed = replace(costs, sensitivity=WeighedSensitivity(costs.sensitivity, weights))
    choices = allocate(proposal.draft, weighed, budget_bytes).choices
    found = replace(estimate(proposal.draft, costs, choices), budget_bytes=budget_bytes)
    return replace(proposal, allocation=found)


def _find_folder(source: str) -> Path | None:
    try:
        return find_checkpoint(source)
    except ModelNotFound:
        return None


def _draft_from_catalog(source: str, importance: Importance | None) -> Draft:
    from localcascade.catalog import load_catalog
    from quantize.draft import Draft
    from quantize.families import Config

    found = load_catalog().find_entry(source)
    if found is None or not found[1].geometry:
        find_checkpoint(source)  # says what is not found, and what to do
    assert found
    name, entry = found
    config = Config(Path(f"models.toml: {name}.geometry"), entry.geometry)
    return Draft(config, name, filler_bytes=entry.tokenizer_bytes, importance=importance)


def _try_types(
    folder: Path, importance: Importance | None, on_progress: OnProgress
) -> dict[str, dict[str, float]]:
    from quantize.families import describe_model
    from quantize.safetensors import open_checkpoint
    from quantize.trial import try_types

    with open_checkpoint(folder) as checkpoint:
        model = describe_model(checkpoint)
        return try_types(checkpoint, model, importance=importance, on_progress=on_progress)


# ---- budgets -----------------------------------------------------------------------------------


def _decide(source: str, draft: Draft, costs: Costs, request: Request) -> Allocation:
    from quantize.allocate import allocate, estimate
    from quantize.errors import BudgetTooSmall

    if request.recipe:
        rules = _find_recipe(source, request.recipe)
        return estimate(draft, costs, rules.choose(draft.matrices))
    option, wanted = ("--fit", request.fit) if request.fit else ("--size", request.size)
    total = _parse(option, wanted or "")
    other = measure_context_bytes(draft, request) if request.fit else 0
    try:
        return allocate(draft, costs, total - other)
    except BudgetTooSmall as error:
        need = error.need_bytes + other
        held = f", of which {format_bytes(other)} are for the context" if other else ""
        raise OutOfBudget(
            f"{option} {wanted}: the least that does is {need} bytes ({format_bytes(need)}){held}",
            need_bytes=need,
            have_bytes=total,
            hint="A shorter --ctx, or --kv q8_0, needs less."
            if other
            else ""
            if request.imatrix
            else "With an importance matrix (--imatrix) less does.",
        ) from error


def _parse(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise console.UsageError(f"{option}: {error}") from error


def measure_context_bytes(draft: Draft, request: Request) -> int:
    """Measure what a card holds besides weights: cache, state, buffers, and the driver's share."""
    from localcascade.fit import non_weight_bytes
    from quantize.allocate import SUPERBLOCK
    from quantize.choices import Choices

    own = _shape(draft, Choices({}))
    stream = own.geometry.n_embd
    tied = own.geometry.tied
    # The widest stream that the recipe may choose: its buffers are a little larger.
    widest = Choices({}, n_embd=stream if tied else -(-stream // SUPERBLOCK) * SUPERBLOCK)
    try:
        return non_weight_bytes(
            _shape(draft, widest), _choose_context(own, request), request.kv, request.parallel
        )
    except ValueError as error:
        raise console.UsageError(f"--kv {request.kv}: {error}") from error


def _shape(draft: Draft, choices: Choices) -> ModelShape:
    from localcascade.fit import make_spec_shape
    from quantize.allocate import measure_tensor

    spec = draft.describe(choices)
    types = choices.types
    n_bytes = {t.name: measure_tensor(t, types[t.name]) for t in spec.tensors if t.name in types}
    return make_spec_shape(draft.config.path, spec, n_bytes)


def _choose_context(shape: ModelShape, request: Request) -> int:
    from localcascade.fit import DEFAULT_N_CTX

    return request.ctx or min(DEFAULT_N_CTX, shape.geometry.n_context)


def _plan_memory(draft: Draft, allocation: Allocation, request: Request) -> Mapping[str, Any]:
    from localcascade.cli.plan import find_machine
    from localcascade.fit import Wishes, describe_plan, plan

    shape = _shape(draft, allocation.choices)
    wishes = Wishes(_choose_context(shape, request), request.kv, request.parallel)
    return describe_plan(plan(shape, find_machine([request.fit or "0"], None), wishes))


def _find_recipe(source: str, recipe: str) -> RecipeRules:
    from localcascade.catalog import load_catalog
    from quantize.recipe_file import parse_recipe, read_recipe

    if Path(recipe).exists():
        return read_recipe(Path(recipe))
    _, entry = load_catalog().find_entry(source) or (source, None)
    presets = entry.presets if entry else {}
    if recipe not in presets:
        names = f" Presets of {source}: {', '.join(presets)}." if presets else ""
        raise console.UsageError(f"--recipe {recipe}: there is no such file.{names}")
    return parse_recipe(presets[recipe].recipe, Path(f"models.toml: {source}.presets.{recipe}"))


def _note_importance(allocation: Allocation, request: Request) -> list[str]:
    """Say what an importance matrix would change."""
    from quantize.costs import TYPE_ERRORS

    if request.imatrix:
        return []
    blind = {name for name, (plain, _) in TYPE_ERRORS.items() if plain is None}
    needed = sorted(blind & set(allocation.choices.types.values()))
    if needed:
        return [f"{', '.join(needed)} cannot be encoded without --imatrix"]
    return ["an importance matrix (`localcascade calibrate`, then --imatrix) lowers the errors"]
