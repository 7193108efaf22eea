"""Where a server keeps what it knows of users: one interface, an embedded store behind it.

tests/conformance/test_user_stores.py says what every store has to keep to.
"""

import contextlib
import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from watchnext.errors import InputError
from watchnext.recommend.state import UserFacts
from watchnext.serving.events import Event

_BUSY_TIMEOUT_S = 1.0
RETRY_S = 2.0
"""How long a store that has just failed is left alone."""
_LAYOUT = 2
_LAYOUTS = (1, 2)
"""That are read; the first has no table of videos yet."""
_ROWS_AT_ONCE = 500
_EMPTIED_WITHIN_S = 10.0
_CHECKPOINT_S = 1.0
_LOG_PAGES = 10_000
"""So many pages of the log of writes, 40 MB, whoever writes moves into the file himself."""


class StoreUnavailableError(Exception):
    """The store cannot be read or written now. Nothing of the call took effect."""


class UserStore(Protocol):
    """Events and facts of users. Safe to be used by several threads and processes at once.

    Every method raises StoreUnavailableError where the store cannot be reached.
    """

    def add(self, events: Sequence[Event]) -> list[bool]:
        """Keep events, all of them or none.

        Once this returns, they survive the end of this process, however sudden, and every later `events` has them.

        Returns:
            Of each event, whether it was new. One whose id the user already has is left out, the first one stays.
        """

    def events(self, user_id: str) -> list[Event]:
        """All events of a user, in no order; none for somebody unknown."""

    def put_facts(self, facts: Mapping[str, UserFacts]) -> None:
        """Keep facts of users, in place of what was known of them."""

    def facts(self, user_id: str) -> UserFacts:
        """Facts of a user; all absent for somebody unknown."""

    def forget(self, user_id: str) -> int:
        """Delete everything of a user; how many events that were."""

    def user_ids(self, at_most: int) -> list[str]:
        """Some users that have events, for a person to choose from."""

    def walk(self) -> Iterator[list[Event]]:
        """All events, those of one user at a time; what is added meanwhile may be there or not."""

    def put_videos(self, videos: Mapping[str, str]) -> None:
        """Keep what became of videos, id -> JSON, in place of what was known of each."""

    def videos_since(self, revision: int) -> tuple[int, dict[str, str]]:
        """The revision of now, which grows with every `put_videos`, and what was put since another one; 0: ever."""

    def close(self) -> None:
        """Give back what is held open."""


class Patience:
    """Lets nobody wait for a store that has just failed: for a while calls fail at once, then one call tries again.

    A store that hangs costs the calls that find it out a timeout each; without this, every request would wait as long.

    Args:
        store: what it is called in errors.
        errors: by which a call says that the store failed.
    """

    def __init__(self, store: str, *errors: type[Exception]) -> None:
        self._store = store
        self._errors = errors
        self._lock = threading.Lock()
        self._why = ""
        self._until = 0.0

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around a call of the store.

        Raises:
            StoreUnavailableError: the call failed, or one has a moment ago.
        """
        with self._lock:
            now = time.monotonic()
            if self._why:
                if now < self._until:
                    raise StoreUnavailableError(self._why)
                self._until = now + RETRY_S  # this call tries, and the others do not wait for it
        try:
            yield
        except self._errors as error:
            with self._lock:
                self._why = f"{self._store}: {error}"
                self._until = time.monotonic() + RETRY_S
            raise StoreUnavailableError(self._why) from error
        self._why = ""


class SqliteUserStore:
    """A `UserStore` in one SQLite file (write-ahead log).

    A user's events lie side by side, so that reading them is one walk. What was acknowledged survives `kill -9`; at a
    power cut the last moments can be lost, the file stays whole (`synchronous=NORMAL`). A file that is taken away or
    exchanged while it is open is noticed: what went on into the old one would be acknowledged, and gone.

    Args:
        path: the file; made, with its folder, if it does not exist.

    Raises:
        InputError: the file is something else, or of another layout.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._opening = threading.Lock()
        self._writing = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._closed = threading.Event()
        self._moving: threading.Thread | None = None
        # Somebody who holds the file's lock keeps others from writing alone.
        self._reads = Patience(str(path), sqlite3.Error, OSError)
        self._writes = Patience(str(path), sqlite3.Error, OSError)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._connection()
            layout = connection.execute("PRAGMA user_version").fetchone()[0]
            if layout < _LAYOUT:
                with connection:
                    connection.executescript(
                        "BEGIN IMMEDIATE;"
                        "CREATE TABLE IF NOT EXISTS events ("
                        " user_id TEXT NOT NULL, event_id TEXT NOT NULL, event TEXT NOT NULL,"
                        " PRIMARY KEY (user_id, event_id)) WITHOUT ROWID;"
                        "CREATE TABLE IF NOT EXISTS users ("
                        " user_id TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;"
                        "CREATE TABLE IF NOT EXISTS videos ("
                        " video_id TEXT PRIMARY KEY, video TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;"
                        "CREATE INDEX IF NOT EXISTS videos_by_revision ON videos (revision);"
                        f"PRAGMA user_version = {_LAYOUT};"
                        "COMMIT;"
                    )
            self._file = _identity(path)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise InputError(
                "the user state cannot be opened",
                where=str(path),
                offenders=[error],
                remedy="give the path of a file that can be written, or of none yet",
            ) from error
        if layout not in (0, *_LAYOUTS):
            self.close()
            raise InputError(
                f"the user state has layout {layout}, this watchnext reads {_LAYOUT}",
                where=str(path),
                remedy="move the file away and run `watchnext load-events`",
            )

    def add(self, events: Sequence[Event]) -> list[bool]:
        with self._writes.asked(), self._transaction() as connection:
            return [
                new
                for begin in range(0, len(events), _ROWS_AT_ONCE)
                for new in _insert(connection, events[begin : begin + _ROWS_AT_ONCE])
            ]

    def events(self, user_id: str) -> list[Event]:
        with self._reads.asked():
            # As one row: each gives the interpreter to other threads and waits for it again. In hexadecimal digits an id
            # needs no quoting.
            ((together,),) = self._connection().execute(
                "SELECT group_concat('[\"' || hex(event_id) || '\",' || event || ']') FROM events WHERE user_id = ?",
                (user_id,),
            )
            return [
                Event(user_id, bytes.fromhex(digits).decode(), table, row)
                for digits, (table, row) in json.loads(f"[{together or ''}]")
            ]

    def put_facts(self, facts: Mapping[str, UserFacts]) -> None:
        with self._writes.asked(), self._transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO users VALUES (?, ?)",
                [(user_id, facts_to_json(one)) for user_id, one in facts.items()],
            )

    def facts(self, user_id: str) -> UserFacts:
        with self._reads.asked():
            row = (
                self._connection().execute("SELECT facts FROM users WHERE user_id = ?", (user_id,)).fetchone()
            )
            return UserFacts() if row is None else facts_from_json(row[0])

    def forget(self, user_id: str) -> int:
        with self._writes.asked():
            with self._transaction() as connection:
                connection.execute("DELETE FROM users WHERE user_id = ?", (user_id,))
                forgotten = connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            # Where SQLite moved a row to another page, as it does when one is full, the old one keeps a copy in its free
            # space, which `secure_delete` overlooks. A file written anew has rows alone.
            with self._writing:
                connection.execute("VACUUM")
            # Out of the log of writes too, where it would stand until others have overwritten it. While somebody else
            # moves its pages, SQLite does not wait but says so.
            until = time.monotonic() + _EMPTIED_WITHIN_S
            while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise sqlite3.OperationalError(
                        "the log of writes, where what was deleted still stands, is being read"
                    )
                time.sleep(0.01)
        return forgotten

    def user_ids(self, at_most: int) -> list[str]:
        found: list[str] = []
        last = ""
        with self._reads.asked():
            # From user to user by the key: `DISTINCT` would walk every event.
            while len(found) < at_most:
                row = (
                    self._connection()
                    .execute("SELECT user_id FROM events WHERE user_id > ? LIMIT 1", (last,))
                    .fetchone()
                )
                if row is None:
                    break
                last = row[0]
                found.append(last)
        return found

    def walk(self) -> Iterator[list[Event]]:
        with self._reads.asked():
            rows = self._connection().execute("SELECT user_id, event_id, event FROM events ORDER BY user_id")
            for _, of_user in itertools.groupby(rows, key=itemgetter(0)):
                yield [Event.from_json(*row) for row in of_user]

    def put_videos(self, videos: Mapping[str, str]) -> None:
        with self._writes.asked(), self._transaction() as connection:
            (revision,) = connection.execute("SELECT coalesce(max(revision), 0) + 1 FROM videos").fetchone()
            connection.executemany(
                "INSERT OR REPLACE INTO videos VALUES (?, ?, ?)",
                [(video_id, text, revision) for video_id, text in videos.items()],
            )

    def videos_since(self, revision: int) -> tuple[int, dict[str, str]]:
        with self._reads.asked():
            rows = (
                self._connection()
                .execute("SELECT video_id, video, revision FROM videos WHERE revision > ?", (revision,))
                .fetchall()
            )
        return max([revision, *(row[2] for row in rows)]), {row[0]: row[1] for row in rows}

    def close(self) -> None:
        self._closed.set()
        if self._moving is not None:
            self._moving.join()
        with self._opening:
            for connection in self._opened:
                connection.close()
            self._opened.clear()

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection.

        Raises:
            OSError: the file is gone.
            sqlite3.Error: it cannot be opened, or is not the one that was.
        """
        if self._file is not None and _identity(self.path) != self._file:
            # Closing and opening anew would follow it, and delete whatever another process has in its write-ahead log.
            raise sqlite3.OperationalError("another file lies there now: put the first back, or start anew")
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # Used by this thread alone, but closed by whoever closes the store.
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            with self._opening:
                self._opened.append(connection)
            self._local.connection = connection
        return connection

    def _move(self) -> None:
        """Move what was written from the log of writes into the file, until the store is closed.

        SQLite would do it within the write that fills a thousand pages, and that request would wait for a thousand others'.
        """
        while not self._closed.wait(_CHECKPOINT_S):
            try:
                self._connection().execute("PRAGMA wal_checkpoint(PASSIVE)")
            except (OSError, sqlite3.Error):
                continue  # whoever reads or writes is told

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        # Threads of this process queue here, in turn; SQLite makes them poll.
        with self._writing:
            if self._moving is None:
                self._moving = threading.Thread(target=self._move, name="checkpoints", daemon=True)
                self._moving.start()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def _identity(path: Path) -> tuple[int, int]:
    """Which file this is, whatever it is called.

    Raises:
        OSError: there is none.
    """
    status = path.stat()
    return status.st_dev, status.st_ino


def _insert(connection: sqlite3.Connection, events: Sequence[Event]) -> list[bool]:
    """Insert by one statement, since each gives the interpreter to other threads and waits for it again: which were new."""
    rows = ", ".join(["(?, ?, ?)"] * len(events))
    values = [value for event in events for value in (event.user_id, event.id, event.to_json())]
    inserted = connection.execute(
        f"INSERT OR IGNORE INTO events VALUES {rows} RETURNING user_id, event_id", values
    )
    kept = set(inserted.fetchall())
    new = []
    for key in ((event.user_id, event.id) for event in events):
        new.append(key in kept)
        kept.discard(key)  # told twice in one batch, it is new once
    return new


def facts_to_json(facts: UserFacts) -> str:
    """Facts as a store keeps them."""
    return json.dumps(asdict(facts), separators=(",", ":"), ensure_ascii=False)


def facts_from_json(text: str | bytes) -> UserFacts:
    """The facts that `facts_to_json` wrote."""
    return UserFacts(**json.loads(text))
