"""Where config, data and cache lie: as the platform wants, or under LOCALCASCADE_HOME.

Nothing here creates a folder; whoever writes does.
"""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "LOCALCASCADE_HOME"


def find_config_folder() -> Path:
    """Folder of what the user writes: settings and their own models.toml."""
    return _find_folder("config")


def find_data_folder() -> Path:
    """Folder of what must survive: installed models, checkpoints, sessions."""
    return _find_folder("data")


def find_cache_folder() -> Path:
    """Folder of what can be made again."""
    return _find_folder("cache")


def find_models_folder() -> Path:
    """Folder of installed GGUF models: NAME/, or a NAME.gguf put there by hand."""
    return find_data_folder() / "models"


def find_checkpoints_folder() -> Path:
    """Folder of downloaded Hugging Face checkpoints: NAME/ with a config.json in it."""
    return find_data_folder() / "checkpoints"


def _find_folder(kind: str) -> Path:
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return Path(home).expanduser().absolute() / kind
    from platformdirs import user_cache_path, user_config_path, user_data_path

    finders = {"config": user_config_path, "data": user_data_path, "cache": user_cache_path}
    return finders[kind]("localcascade", appauthor=False)
