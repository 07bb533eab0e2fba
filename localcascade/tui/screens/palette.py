"""The command palette: everything that a key does can be found by its name."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from localcascade.tui.actions import Action, list_actions

_OWN = "command_palette"


class ActionProvider(Provider):
    """Offers the actions of the screen below the palette."""

    async def startup(self) -> None:
        """List the actions once, as they are when the palette opens."""
        listed = list_actions(self.screen)
        self._actions = [action for action in listed if action.id and action.command != _OWN]

    async def discover(self) -> Hits:
        """Offer all of them before anything is typed."""
        for action in self._actions:
            yield DiscoveryHit(
                action.description, partial(self._run, action), help=_describe(action)
            )

    async def search(self, query: str) -> Hits:
        """Offer those whose description or id has the letters typed."""
        matcher = self.matcher(query)
        for action in self._actions:
            score = max(matcher.match(action.description), matcher.match(action.id))
            if score > 0:
                shown = matcher.highlight(action.description)
                yield Hit(score, shown, partial(self._run, action), help=_describe(action))

    async def _run(self, action: Action) -> None:
        await self.app.run_action(action.command, default_namespace=action.node)


def _describe(action: Action) -> str:
    return f"{action.group}  ·  {' '.join(action.keys)}"
