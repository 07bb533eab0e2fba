"""What was said: sessions as trees of messages in one SQLite file, written while they stream."""

from localcascade.history.history import History, find_history_path
from localcascade.history.records import (
    Attachment,
    Match,
    Message,
    ModelIdentity,
    Role,
    Session,
    State,
    Transcript,
)
from localcascade.history.salvage import Salvage, salvage
from localcascade.history.stream import Stream

__all__ = [
    "Attachment",
    "History",
    "Match",
    "Message",
    "ModelIdentity",
    "Role",
    "Salvage",
    "Session",
    "State",
    "Stream",
    "Transcript",
    "find_history_path",
    "salvage",
]
