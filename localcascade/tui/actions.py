"""The keys that are in force: listed for help and palette, and changed as the settings say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final

from textual.app import App
from textual.binding import Binding
from textual.dom import DOMNode
from textual.screen import Screen

GROUPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "chat": "Conversation",
        "lesson": "Tutor and practice",
        "models": "Models",
        "sessions": "Conversations",
        "attach": "Attaching files",
        "practice": "Choosing a problem",
        "app": "Program",
        "": "Writing and moving",
    }
)
"""First part of an action's id -> title in the help; others are named after themselves."""


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a key does now."""

    id: str
    """As the settings name it; empty for what cannot be given other keys."""
    description: str
    keys: tuple[str, ...]
    """As they are shown."""
    command: str
    """What Textual runs."""
    node: DOMNode
    """Of which it is an action."""

    @property
    def group(self) -> str:
        """Under which title it is listed."""
        first = self.id.partition(".")[0]
        return GROUPS.get(first, first.capitalize())


def list_actions(screen: Screen[Any]) -> list[Action]:
    """List what the keys do on a screen, those of its focused widget and of the app included.

    Returns:
        Each action once with all its keys, those with an id first, as they were declared.
    """
    found: dict[tuple[str, int], tuple[DOMNode, Binding, list[str]]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if binding.description and not binding.system:
            key = (binding.action, id(active.node))
            _, _, keys = found.setdefault(key, (active.node, binding, []))
            keys.append(screen.app.get_key_display(binding))
    actions = [
        Action(binding.id or "", binding.description, tuple(keys), binding.action, node)
        for node, binding, keys in found.values()
    ]
    return sorted(actions, key=_find_place)


def _find_place(action: Action) -> tuple[bool, int, int]:
    """Where an action was declared: keys that several things want would come first otherwise."""
    declared = [binding.id for binding in _list_bindings(type(action.node))]
    place = declared.index(action.id) if action.id in declared else len(declared)
    return not action.id, -len(action.node.ancestors), place


def group_actions(actions: Iterable[Action]) -> dict[str, list[Action]]:
    """Sort actions under their titles, in the order of GROUPS, then as they come."""
    groups: dict[str, list[Action]] = {title: [] for title in GROUPS.values()}
    for action in actions:
        groups.setdefault(action.group, []).append(action)
    return {title: listed for title, listed in groups.items() if listed}


def collect_ids(*owners: type[DOMNode]) -> set[str]:
    """Collect the ids of all bindings that classes of screens, widgets and apps declare."""
    bindings = (binding for owner in owners for binding in _list_bindings(owner))
    return {binding.id for binding in bindings if binding.id}


def _list_bindings(owner: type[DOMNode]) -> list[Binding]:
    """The bindings that a class and those it inherits from declare, its own first."""
    declared = (item for base in owner.__mro__ for item in base.__dict__.get("BINDINGS", ()))
    return [item for item in declared if isinstance(item, Binding)]


def apply_keys(app: App[Any], keys: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Give actions the keys of the settings.

    Args:
        app: Whose actions.
        keys: Id of an action -> its keys, divided by commas.
        known: Ids of all actions there are, see collect_ids.

    Returns:
        What is wrong, for the user: ids that no action has, and keys that two actions are given.
        All else is in force.
    """
    ids = sorted(known)
    good = {action: chosen for action, chosen in keys.items() if action in ids}
    app.set_keymap(good)
    unknown = (_explain_unknown(action, ids) for action in keys if action not in ids)
    return [*unknown, *_find_clashes(good)]


def _explain_unknown(action: str, ids: list[str]) -> str:
    nearest = get_close_matches(action, ids, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "F1 lists them."
    return f"keys.{action}: there is no such action; {hint}"


def _find_clashes(keys: Mapping[str, str]) -> Iterable[str]:
    owners: dict[tuple[str, str], str] = {}
    for action, chosen in keys.items():
        for key in chosen.split(","):
            place = (action.partition(".")[0], key)
            other = owners.setdefault(place, action)
            if other != action:
                yield f"keys: {key} is given to {other} and to {action}"
