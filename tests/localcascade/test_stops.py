"""Stop texts: found however the text is cut, and nothing else is lost or late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localcascade.prompt.stops import StopFinder

LETTERS = st.text("ab", max_size=30)


@given(LETTERS, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cut_gives_the_text_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    finder, said, start = StopFinder(stops), "", 0
    while start < len(text):
        end = data.draw(st.integers(start + 1, len(text)))
        said += finder.feed(text[start:end])
        # What is held back may still become a stop text; all else has been said.
        assert finder.is_met or any(stop.startswith(text[len(said) : end]) for stop in ["", *stops])
        if finder.is_met:
            break
        start = end
    ends = [text[:end].find(stop) for end in range(len(text) + 1) for stop in stops]
    first_end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    assert finder.is_met == (first_end is not None)
    if first_end is None:
        assert said + finder.flush() == text
        assert max(ends, default=-1) == -1
    else:
        assert text.startswith(said)
        assert any(text[len(said) :].startswith(stop) for stop in stops)
