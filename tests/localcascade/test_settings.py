"""The settings: what a file may say, and that changing the theme changes nothing else."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade.errors import ConfigError
from localcascade.settings import (
    THEMES,
    SamplingSettings,
    Settings,
    find_settings_path,
    load_settings,
    parse_settings,
    save_theme,
    set_theme_line,
)

WHOLE = b"""
theme = "cascade-light"  # for the garden
model = "tiny"
mode = "instruct"
budget_tokens = 4096
system = "Be brief."
check_steps = false

[sampling]
temperature = 0
top_k = 40

[keys]
chat.stop = "escape,ctrl+x"
"chat.copy" = "f12"
"""


def write(text: str | bytes) -> Path:
    """Write the settings of the test's own home."""
    path = find_settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_settings_are_the_defaults_without_a_file(home: Path) -> None:
    assert load_settings() == Settings()
    assert not find_settings_path().exists()


def test_every_key_is_read(home: Path) -> None:
    write(WHOLE)
    assert load_settings() == Settings(
        theme="cascade-light",
        model="tiny",
        mode="instruct",
        budget_tokens=4096,
        system="Be brief.",
        check_steps=False,
        sampling=SamplingSettings(temperature=0, top_k=40),
        keys={"chat.stop": "escape,ctrl+x", "chat.copy": "f12"},
    )


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('thema = "x"', "thema", "Did you mean theme?"),
        ("[sampling]\ntop_o = 1", "sampling.top_o", "Did you mean top_"),
        ('theme = "pink"', "", "there are cascade-dark"),
        ("theme = 3", "theme", "string"),
        ("check_steps = 1", "check_steps", "boolean"),
        ("[sampling]\ntop_p = 0.0", "sampling", "above 0 and at most 1"),
        ("[sampling]\ntemperature = nan", "sampling", "temperature"),
        ("[sampling]\ntop_k = 1.5", "sampling.top_k", "integer"),
        ("[sampling]\nseed = -1", "sampling", "between 0 and"),
        ('mode = "loud"', "mode", "'thinking' or 'instruct'"),
        ("budget_tokens = 0", "", "at least 1"),
        ('[keys]\nchat.stop = "ctrl x"', "", "write for example ctrl+x,f2"),
        ('[keys]\n"chat stop" = "f2"', "", "no action"),
        ("[keys]\nchat.stop = 3", "keys.chat.stop", "string"),
        ("keys = 3", "keys", "table"),
        ("theme = ", "", "not TOML"),
        (b'theme = "\xff"', "", "not UTF-8 at byte 9"),
    ],
)
def test_what_makes_no_sense_is_refused(
    home: Path, text: str | bytes, key: str, words: str
) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert str(path) in refused.value.message
    assert refused.value.key == key
    assert words in f"{refused.value.message} {refused.value.hint}"


@pytest.mark.parametrize("name", THEMES)
def test_a_theme_is_remembered_and_nothing_else_changed(home: Path, name: str) -> None:
    path = write(WHOLE)
    before = tomllib.loads(WHOLE.decode())
    save_theme(name)
    assert tomllib.loads(path.read_text()) == {**before, "theme": name}
    assert "# for the garden" in path.read_text()
    assert path.read_text().splitlines()[2:] == WHOLE.decode().splitlines()[2:]


def test_a_theme_makes_the_file(home: Path) -> None:
    save_theme("cascade-contrast")
    assert load_settings() == Settings(theme="cascade-contrast")
    assert [path.name for path in find_settings_path().parent.iterdir()] == ["settings.toml"]


def test_a_damaged_file_is_left_alone(home: Path) -> None:
    path = write("theme = ")
    with pytest.raises(ConfigError):
        save_theme("cascade-light")
    assert path.read_text() == "theme = "


def test_a_file_that_a_line_cannot_be_set_in_is_left_alone(home: Path) -> None:
    text = 'system = """\ntheme = 1\n"""\n'
    path = write(text)
    with pytest.raises(ConfigError, match="safely"):
        save_theme("cascade-light")
    assert path.read_text() == text


@given(
    st.lists(
        st.sampled_from(
            ['model = "theme"', "# theme = 1", "budget_tokens = 3", "", "  theme='cascade-dark'"]
        ),
        unique=True,
    ),
    st.sampled_from(["", "[sampling]\ntop_k = 1\n", "[keys]\napp.theme = 'f2'\n"]),
    st.sampled_from(THEMES),
)
def test_only_the_theme_changes_in_any_file(head: list[str], tail: str, name: str) -> None:
    text = "".join(line + "\n" for line in head) + tail
    path = Path("settings.toml")
    before, after = (parse_settings(path, t.encode()) for t in (text, set_theme_line(text, name)))
    assert after == replace(before, theme=name)
