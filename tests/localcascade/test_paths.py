"""Where things lie, with and without LOCALCASCADE_HOME."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from localcascade import paths


def test_home_moves_every_folder_and_makes_none(home: Path) -> None:
    assert paths.find_config_folder() == home / "config"
    assert paths.find_data_folder() == home / "data"
    assert paths.find_cache_folder() == home / "cache"
    assert paths.find_models_folder() == home / "data" / "models"
    assert paths.find_checkpoints_folder() == home / "data" / "checkpoints"
    assert list(home.iterdir()) == []


def test_without_home_the_platform_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALCASCADE_HOME", raising=False)
    expected = platformdirs.PlatformDirs("localcascade", appauthor=False)
    assert paths.find_config_folder() == expected.user_config_path
    assert paths.find_data_folder() == expected.user_data_path
    assert paths.find_cache_folder() == expected.user_cache_path


def test_a_relative_home_is_relative_to_the_working_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALCASCADE_HOME", "here")
    found = paths.find_data_folder()
    monkeypatch.chdir("/")
    assert found == home.parent / "work" / "here" / "data"


def test_a_tilde_in_home_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALCASCADE_HOME", "~/cascade")
    assert paths.find_cache_folder() == tmp_path / "cascade" / "cache"
