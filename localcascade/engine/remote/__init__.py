"""Models that run on another machine, or in another program, behind the OpenAI format."""

from localcascade.engine.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]
