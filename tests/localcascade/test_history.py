"""The history: trees of messages, streams, searches, several processes, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from localcascade.errors import HistoryDamaged, HistoryError, SessionNotFound
from localcascade.history import Attachment, History, ModelIdentity, database, salvage, schema
from localcascade.history.database import may_use_wal, migrate
from localcascade.history.history import UNDO_S
from localcascade.history.owner import is_alive, name_owner
from localcascade.history.statements import INTERRUPTED

ROOT = Path(__file__).parents[2]
MODEL = ModelIdentity("tiny", "/models/tiny.gguf", 12, "ab" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions.sqlite3"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History.open(path) as history:
        yield history


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Ask the file, as somebody who knows nothing of us."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def fill(path: Path, n_messages: int, words: str = "word " * 100) -> list[str]:
    with History.open(path) as history:
        session = history.create_session("filled", MODEL)
        ids: list[str] = []
        for i in range(n_messages):
            parent = ids[-1] if ids else None
            ids.append(history.append(session.id, parent, "user", f"{i} {words}").id)
    return ids


def test_a_message_comes_back_as_it_was_given(path: Path) -> None:
    with History.open(path) as history:
        session = history.create_session("A \0 title", MODEL)
        given = history.append(
            session.id, None, "assistant", "text \0 é 数 😀\r\n", thinking="<b>'\";--",
            state="stopped", note="why",
            tool_calls=[{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}],
            tool_call_id="c", attachments=[Attachment("a.py", 3, "cd" * 32)],
            timings={"prompt_s": 0.25}, model=MODEL, sampling={"temperature": 0.0},
        )  # fmt: skip
    with History.open(path) as history:
        assert history.read(given.id) == given
        (found,) = history.list_sessions()
        assert (found.title, found.model, found.leaf) == ("A \0 title", MODEL, given.id)
        assert found.n_messages == 1


def test_half_a_surrogate_pair_keeps_nothing_from_being_written(history: History) -> None:
    session = history.create_session("\ud800")
    message = history.append(session.id, None, "user", "a\ud83db", tool_calls=[{"x": "\udfff"}])
    history.flush()
    kept = history.read(message.id)
    assert (kept.text, kept.tool_calls) == ("a?b", ({"x": "\udfff"},))


def test_branches_and_the_path_on_the_screen(history: History) -> None:
    session = history.create_session("tree").id
    root = history.append(session, None, "user", "root").id
    left = history.append(session, root, "assistant", "left").id
    right = history.append(session, root, "assistant", "right").id
    end = history.append(session, right, "user", "end").id
    other = history.append(session, None, "user", "another beginning").id
    assert history.children(session, root) == [left, right]
    assert history.children(session, None) == [root, other]
    assert [m.text for m in history.path_to(end)] == ["root", "right", "end"]
    assert [m.text for m in history.path_to(end, 2)] == ["right", "end"]
    assert history.find_session(session).leaf == other
    history.set_leaf(session, left)
    assert [m.text for m in history.export(session).path] == ["root", "left"]
    assert [m.id for m in history.read_tree(session)] == [root, left, right, end, other]


def test_a_stream_is_on_the_disk_before_it_ends(path: Path, history: History) -> None:
    session = history.create_session("s").id
    stream = history.begin(session, None)
    written = ""
    until_s = time.monotonic() + 120
    while not query(path, "SELECT text FROM pieces") and time.monotonic() < until_s:
        stream.write(text="word ")
        written += "word "
        time.sleep(0.02)
    early = "".join(str(text) for (text,) in query(path, "SELECT text FROM pieces ORDER BY n"))
    assert early
    assert written.startswith(early)
    assert history.read(stream.id).text == written
    whole = stream.finish(timings={"tokens_per_s": 3.0}, tool_calls=[{"id": "1"}])
    assert history.read(stream.id) == whole
    assert (whole.state, whole.text) == ("complete", written)
    assert query(path, "SELECT count(*) FROM pieces") == [(0,)]


def test_a_stopped_message_goes_on(history: History) -> None:
    session = history.create_session("s").id
    first = history.begin(session, None, model=MODEL)
    first.write("thought ", "alpha ")
    first.finish("stopped", note="by you")
    again = history.reopen(first.id)
    again.write("more", "beta")
    assert history.read(first.id).text == "alpha beta"
    whole = again.finish()
    assert (whole.thinking, whole.text, whole.note) == ("thought more", "alpha beta", "")
    assert whole.model == MODEL
    assert len(history.search("alpha beta")) == 1


def test_sessions_are_found_by_a_unique_beginning(history: History) -> None:
    ids = [history.create_session(f"{i}").id for i in range(40)]
    for id in ids:
        assert history.find_session(id).id == id
        assert history.find_session(id[:12].upper()).id == id
    shared = next(a[0] for i, a in enumerate(ids) if any(b[0] == a[0] for b in ids[:i]))
    with pytest.raises(SessionNotFound, match="more than one"):
        history.find_session(shared)
    for nothing in ("", "g", "%", "_", "'"):
        with pytest.raises(SessionNotFound, match="no session"):
            history.find_session(nothing)
    last = history.find_session(None)
    assert last.id == ids[-1]
    history.append(ids[3], None, "user", "hello")
    assert history.find_session(None).id == ids[3]


def test_a_deleted_session_can_be_restored_until_it_is_purged(path: Path) -> None:
    with History.open(path) as history:
        kept, gone = (history.create_session(name).id for name in ("kept", "gone"))
        history.append(gone, None, "user", "unmistakable")
        history.delete(gone)
        assert [s.id for s in history.list_sessions()] == [kept]
        assert history.search("unmistakable") == []
        history.restore(gone)
        assert len(history.search("unmistakable")) == 1
        history.delete(gone)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE sessions SET deleted_s = deleted_s - ?", (UNDO_S,))
    History.open(path).close()
    assert query(path, "SELECT title FROM sessions") == [("kept",)]
    assert query(path, "SELECT count(*) FROM messages") == [(0,)]


def test_nothing_of_a_purged_session_stays_in_the_file(path: Path) -> None:
    with History.open(path) as history:
        kept = history.create_session("kept").id
        history.append(kept, None, "user", "harmless " * 50)
        gone = history.create_session("topsecrettitle").id
        history.append(gone, None, "user", "verysecretword " * 3000, thinking="evenmoresecret")
        history.flush()
        assert b"verysecretword" in path.read_bytes()
        history.purge(gone)
        history.flush()
        assert len(history.search("harmless")) == 1
    data = path.read_bytes()
    for secret in (b"secretword", b"topsecret", b"moresecret"):
        assert secret not in data


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("derivative", True),
        ("deriv", True),
        ("DERIV chain", True),
        ("ableitung", False),
        ('"chain rule"', True),
        ('"rule chain"', False),
        ('"cha"', True),  # only by comparing texts, as no word is so called
        ("cafe", True),
        ("数学", True),
        ("学", True),
        ("x^2", True),
        ("∂", True),
        ("100%", True),
        ("100_", False),
        ("\\", True),
        ('"', False),
        ("", False),
        ("NEAR(", False),
        ("text:chain", False),
        ("thought", True),
        ("' OR 1=1 --", False),
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_searching(
    path: Path, words: str, found: bool, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not indexed:
        monkeypatch.setattr(schema, "MAKE_INDEX", "SELECT 1")
    if words in ("cafe", "100_"):  # only the index passes over accents and signs
        found = indexed
    with History.open(path) as history:
        session = history.create_session("maths").id
        text = "The chain rule: the derivative of x^2 is 100% clear. Café, 我爱数学, ∂f \\ g"
        message = history.append(session, None, "assistant", text, thinking="a second thought")
        history.append(session, None, "user", "something else")
        matches = history.search(words)
        assert [match.message for match in matches] == [message.id] * found
        for match in matches:
            assert match.in_thinking == (words == "thought")
            marked = "".join(match.snippet[1::2]).casefold()
            assert marked
            whole = text if not match.in_thinking else "a second thought"
            assert "".join(match.snippet).strip("…") in whole


def test_what_was_written_without_an_index_is_indexed_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MAKE_INDEX", "SELECT 1")
        ids = fill(path, 3)
    with History.open(path) as history:
        assert {match.message for match in history.search("word")} == set(ids)
    sql = "INSERT INTO words(words, rank) VALUES ('integrity-check', 1)"
    assert query(path, sql) == []


def test_a_dead_process_leaves_its_words_as_stopped(path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", DIE.format(path=str(path))], cwd=ROOT, capture_output=True, text=True
    )
    assert dead.returncode == -9, dead.stderr
    id = dead.stdout.strip()
    assert query(path, f"SELECT state FROM messages WHERE id = '{id}'") == [("streaming",)]
    with History.open(path) as history:
        message = history.read(id)
        assert (message.thinking, message.text) == ("thought", "said")
        assert (message.state, message.note) == ("stopped", INTERRUPTED)
        assert len(history.search("said")) == 1


DIE = """
import os, pathlib
from localcascade.history import History
history = History.open(pathlib.Path({path!r}))
stream = history.begin(history.create_session("s").id, None)
stream.write("thought", "said")
history.flush()
print(stream.id, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_living_process_keeps_its_stream(history: History, path: Path) -> None:
    stream = history.begin(history.create_session("s").id, None)
    stream.write(text="a")
    history.flush()
    with History.open(path) as other:
        assert other.read(stream.id).state == "streaming"
        stream.write(text="b")
        history.flush()
        assert other.read(stream.id).text == "ab"
    assert stream.finish().text == "ab"


def test_a_process_is_known_by_its_number_and_its_beginning() -> None:
    own = name_owner()
    pid, started_s = own.split()
    assert pid == str(os.getpid())
    assert is_alive(own)
    assert not is_alive(f"{pid} {float(started_s) - 60}")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not is_alive(f"{child.pid} {time.time()}")
    assert not is_alive("")


def test_two_processes_write_at_once(path: Path) -> None:
    command = [sys.executable, "-m", "tests.localcascade.history_child", str(path)]
    children = [
        subprocess.Popen([*command, tag], cwd=ROOT, stdout=subprocess.PIPE) for tag in ("a", "b")
    ]
    told: dict[str, str] = {}
    for child in children * 15:
        assert child.stdout is not None
        told |= json.loads(child.stdout.readline())
    for child in children:
        child.kill()
        child.communicate()
    with History.open(path) as history:
        kept = {message.id: message.text for message in history.read_messages(list(told))}
        assert all(kept[id].startswith(text) for id, text in told.items())
        assert {session.title for session in history.list_sessions()} == {"session a", "session b"}


def test_a_session_that_another_process_removed(history: History, path: Path) -> None:
    session = history.create_session("s").id
    history.flush()
    with History.open(path) as other:
        other.purge(session)
    history.append(session, None, "user", "into nothing")
    with pytest.raises(HistoryError, match="another process has removed"):
        history.flush()
    new = history.create_session("new").id
    history.append(new, None, "user", "hello")
    history.flush()
    assert history.problem is None
    assert query(path, "SELECT text FROM messages") == [("hello",)]


def test_nothing_is_forgotten_while_the_disk_is_full(path: Path, history: History) -> None:
    history.create_session("first")
    history.flush()
    limit = history._database.connection
    (n_pages,) = limit.execute("PRAGMA page_count").fetchone()
    limit.execute(f"PRAGMA max_page_count = {n_pages}")
    session = history.create_session("second").id
    message = history.append(session, None, "user", "long " * 10_000)
    with pytest.raises(HistoryError, match="disk is full"):
        history.flush()
    assert history.list_sessions()[-1].title == "first"  # reading goes on
    assert query(path, "SELECT count(*) FROM messages") == [(0,)]
    limit.execute("PRAGMA max_page_count = 1000000")
    history.flush()
    assert history.read(message.id).text == "long " * 10_000
    assert history.problem is None


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_file_that_cannot_be_written_is_read(path: Path) -> None:
    ids = fill(path, 3)
    path.chmod(0o400)
    with History.open(path) as history:
        assert [message.id for message in history.path_to(ids[-1])] == ids
        assert history.problem is not None
        with pytest.raises(HistoryError, match="cannot be written"):
            history.create_session("x")


def test_a_database_that_cannot_be_written_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for everybody: SQLite is told so, whatever the file's permissions say."""
    ids = fill(path, 3)
    connect = database._connect
    monkeypatch.setattr(database, "_connect", lambda path, _: connect(path, "mode=ro"))
    with History.open(path) as history:
        assert [message.id for message in history.path_to(ids[-1])] == ids
        assert len(history.search("word")) == 3
        for change in (history.create_session, lambda: history.begin("x", None)):
            with pytest.raises(HistoryError, match="cannot be written"):
                change()


def test_only_its_owner_may_read_it(path: Path) -> None:
    fill(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    fill(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="newer LocalCascade \\(version 99"):
        History.open(path)
    assert path.read_bytes() == before


def test_a_file_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE recipes (soup TEXT)")
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="another program"):
        History.open(path)
    assert path.read_bytes() == before


def test_a_migration_leaves_a_copy_of_the_old_file(path: Path) -> None:
    fill(path, 5)
    steps = (*schema.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN colour TEXT DEFAULT 'blue'")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, path, steps)
        migrate(connection, path, steps)
    assert query(path, "SELECT colour FROM sessions") == [("blue",)]
    assert query(path, "PRAGMA user_version") == [(len(steps),)]
    backup = path.with_name("sessions.sqlite3.v1.bak")
    assert query(backup, "PRAGMA user_version") == [(1,)]
    assert query(backup, "SELECT count(*) FROM messages") == [(5,)]
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    fill(path, 2)
    steps = (*schema.MIGRATIONS, "DROP TABLE messages;\nALTER TABLE nothing ADD COLUMN x")
    connection = sqlite3.connect(path, isolation_level=None)
    with closing(connection), pytest.raises(sqlite3.OperationalError):
        migrate(connection, path, steps)
    with History.open(path) as history:
        assert history.list_sessions()[0].n_messages == 2


def test_several_processes_may_make_the_file(path: Path) -> None:
    threads = [threading.Thread(target=fill, args=(path, 2)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with History.open(path) as history:
        assert [session.n_messages for session in history.list_sessions()] == [2] * 4


class Watched(sqlite3.Connection):
    """A connection during whose opening others open the same file."""

    interruptions: dict[str, threading.Thread]

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        other = self.interruptions.pop(sql, None)
        if other:
            other.start()
            other.join(0.3)  # it may have to wait for us
        return super().execute(sql, *values)


@pytest.mark.parametrize("sql", ["PRAGMA user_version", "BEGIN IMMEDIATE", schema.MAKE_INDEX])
def test_another_may_make_the_file_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    path.parent.mkdir()
    other = threading.Thread(target=fill, args=(path, 2))
    monkeypatch.setattr(Watched, "interruptions", {sql: other}, raising=False)
    connect = partial(sqlite3.connect, factory=Watched)
    monkeypatch.setattr(database.sqlite3, "connect", connect)
    fill(path, 2)
    other.join()
    with History.open(path) as history:
        assert [session.n_messages for session in history.list_sessions()] == [2, 2]
        assert len(history.search("word")) == 4
    assert [file.name for file in path.parent.glob("*.bak")] == []


# sqlite.org/wal.html, section 11: "fixed in 3.51.3", with backports in 3.50.7 and 3.44.6.
@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ((3, 51, 3), True), ((3, 52, 0), True), ((4, 0, 0), True), ((3, 51, 2), False),
        ((3, 50, 7), True), ((3, 50, 6), False), ((3, 44, 6), True), ((3, 44, 5), False),
        ((3, 45, 9), False), ((3, 40, 1), False),
    ],
)  # fmt: skip
def test_wal_is_used_only_where_it_is_safe(version: tuple[int, int, int], fixed: bool) -> None:
    assert may_use_wal(version) == fixed


def test_the_journal_is_as_safe_as_it_can_be(history: History) -> None:
    connection = history._database.connection
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    safe = may_use_wal(sqlite3.sqlite_version_info)
    assert (mode, level) == (("wal", 2) if safe else ("delete", 3))


def damage(path: Path, n_pages: int) -> None:
    """Overwrite pages in the middle of the file, one in so many."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    for page in range(size * (n_pages + 4), len(data) - size, size * n_pages):
        data[page : page + size] = b"\xa5" * size
    path.write_bytes(data)


def test_of_a_damaged_file_what_can_be_read_is_saved(path: Path) -> None:
    ids = fill(path, 400)
    damage(path, 12)
    with pytest.raises(HistoryDamaged, match="damaged"), History.open(path) as history:
        history.read_tree(history.list_sessions()[0].id)
    before = path.read_bytes()
    saved = salvage(path)
    assert path.read_bytes() == before
    (transcript,) = saved.transcripts
    kept = [message.id for message in transcript.messages]
    assert kept == [id for id in ids if id in set(kept)]
    assert 200 < len(kept) < 400
    assert saved.n_lost == 400 - len(kept)
    for message in transcript.messages:
        assert message.text == f"{ids.index(message.id)} {'word ' * 100}"


def test_of_a_sound_file_everything_is_saved(path: Path) -> None:
    fill(path, 3)
    with History.open(path) as history:
        stream = history.begin(history.create_session("open").id, None)
        stream.write(text="so far")
        history.flush()
        saved = salvage(path)
        assert saved.n_lost == 0
        assert {t.session.title for t in saved.transcripts} == {"filled", "open"}
        assert saved.transcripts[-1].messages[0].text == "so far"


def test_a_journal_that_a_crash_left_is_taken_in(path: Path, tmp_path: Path) -> None:
    ids = fill(path, 50)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 2")
        connection.execute("BEGIN")
        connection.execute("UPDATE messages SET text = hex(zeroblob(3000))")
        crashed = Path(shutil.copytree(path.parent, tmp_path / "crashed")) / path.name
        connection.execute("ROLLBACK")
    files = {file: file.read_bytes() for file in crashed.parent.iterdir()}
    assert len(files) > 1
    saved = salvage(crashed)
    (transcript,) = saved.transcripts
    assert [message.id for message in transcript.messages] == ids
    assert {message.text[-5:] for message in transcript.messages} == {"word "}
    assert {file: file.read_bytes() for file in crashed.parent.iterdir()} == files


@pytest.mark.parametrize("content", [b"not a database" * 500, b"\0" * 9000])
def test_what_is_no_database_is_said_to_be_damaged(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for read in (History.open, salvage):
        with pytest.raises(HistoryDamaged):
            read(path)
    assert path.read_bytes() == content
