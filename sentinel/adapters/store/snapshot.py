"""The snapshot: the durable image of all states as of one journal position.

One SQLite file beside the journal's, so that a large snapshot never holds a journal commit up.
A row a device, opaque bytes; only the rows that changed are written.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from sentinel.adapters.store.database import Schema, connect, damaged, failure, transaction
from sentinel.errors import SentinelError

ROWS_A_STATEMENT = 128  # a statement gives the interpreter lock up once; a row each would queue for it each time

SCHEMA = Schema(
    int.from_bytes(b"SNTS", "big"),
    """
CREATE TABLE image (id INTEGER PRIMARY KEY CHECK (id = 1), position INTEGER NOT NULL, now REAL NOT NULL,
                    meta BLOB NOT NULL);
CREATE TABLE devices (profile TEXT NOT NULL, device TEXT NOT NULL, row BLOB NOT NULL, UNIQUE (profile, device))
""",
    page_size=16384,  # rows are about 1 kB: few of them overflow, little of a page is lost
)
_UPSERT = " ON CONFLICT (profile, device) DO UPDATE SET row = excluded.row"

Row = tuple[str, str, bytes]
"""Profile, device and the device's state as the caller encodes it."""
Key = tuple[str, str]
"""Profile and device."""


@dataclass(frozen=True, slots=True)
class SnapshotImage:
    """All states as of one turn.

    Attributes:
        position: sequence number of the last turn that the states include; replay what follows.
        now: receive time of the snapshot.
        meta: what the caller keeps beside the device rows.
        rows: every device's row, once; to be read before the next `save`.
    """

    position: int
    now: float
    meta: bytes
    rows: Iterator[Row]


class Snapshot:
    """The snapshot file. `save` may be called from any thread."""

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        """Raises StoreError if the file cannot be used."""
        self.file = file
        self._read_only = read_only
        self._lock = threading.Lock()
        self._connection = self._connect()

    def _connect(self) -> sqlite3.Connection:
        # A snapshot is on disk before the journal lets go of what it stands for.
        return connect(self.file, SCHEMA, synchronous="FULL", read_only=self._read_only)

    def save(self, position: int, now: float, meta: bytes, rows: Iterable[Row], deleted: Iterable[Key] = ()) -> None:
        """Replace `meta` and the given rows and remove the deleted devices, all or nothing. Blocks.

        A device both in `rows` and in `deleted` is kept. Raises Unavailable on a disk error; the
        snapshot before is then intact.
        """
        with self._lock, transaction(self._connection, self.file):
            execute = self._connection.execute
            self._connection.executemany("DELETE FROM devices WHERE profile = ? AND device = ?", deleted)
            for batch in _batched(rows, ROWS_A_STATEMENT):
                values = ", ".join(["(?, ?, ?)"] * len(batch))
                insert = f"INSERT INTO devices (profile, device, row) VALUES {values} {_UPSERT}"  # noqa: S608 - marks
                execute(insert, list(itertools.chain.from_iterable(batch)))
            execute("INSERT OR REPLACE INTO image VALUES (1, ?, ?, ?)", (position, now, meta))

    def load(self) -> SnapshotImage | None:
        """The newest snapshot, consistent even while another process writes; None: there is none.

        Rows are read as they are asked for. Raises Unavailable or StoreError, also from `rows`.
        """
        stream = self._stream()
        head = next(stream)
        if head is None:
            return None
        position, now, meta = head
        if not isinstance(position, int) or not isinstance(now, float) or not isinstance(meta, bytes):
            raise damaged(self.file, "its image is none")
        return SnapshotImage(position, now, meta, stream)

    def _stream(self) -> Iterator[Any]:
        """The image's head, then its rows, in one read transaction on a connection of its own."""
        connection = self._connect()
        try:
            connection.execute("BEGIN")
            yield connection.execute("SELECT position, now, meta FROM image").fetchone()
            yield from connection.execute("SELECT profile, device, row FROM devices")
        except sqlite3.Error as error:
            raise failure(self.file, error) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Waits for a `save` in another thread. Safe to call twice."""
        with self._lock:
            self._connection.close()


def _batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


class Saves(Protocol):
    """What a SnapshotWriter writes to: Snapshot or its twin."""

    def save(
        self, position: int, now: float, meta: bytes, rows: Iterable[Row], deleted: Iterable[Key] = ()
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What became of one submitted snapshot. `seconds` it took; `error`: None where it was written."""

    position: int
    rows: int
    seconds: float
    error: str | None


class SnapshotWriter:
    """Writes snapshots in a thread, at most one at a time.

    Rows that were handed over are written with this snapshot or, if it fails, with the next one:
    the caller marks them clean when `submit` takes them.
    """

    def __init__(self, snapshot: Saves, saved: float, clock: Callable[[], float] = perf_counter) -> None:
        """`saved`: receive time of the newest snapshot, or of the start if there is none."""
        self._snapshot = snapshot
        self._clock = clock
        self._saved = saved
        self._report: SnapshotReport | None = None
        self._thread: threading.Thread | None = None
        self._owed: dict[Key, bytes | None] = {}

    @property
    def busy(self) -> bool:
        """Whether a snapshot is in flight; `submit` would refuse."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def report(self) -> SnapshotReport | None:
        """The newest that ended, well or not; None: none yet."""
        return self._report

    def age(self, now: float) -> float:
        """Receive-time seconds since the newest snapshot that was written."""
        return now - self._saved

    def submit(self, position: int, now: float, meta: bytes, rows: Iterable[Row], deleted: Iterable[Key] = ()) -> bool:
        """Begin to write; never blocks. False: refused, one is in flight; keep the rows.

        `rows` and `deleted` are read in the thread: give what nobody changes any more.
        """
        if self.busy:
            return False
        self._thread = threading.Thread(
            target=self._write, args=(position, now, meta, rows, deleted), name="snapshot", daemon=False
        )
        self._thread.start()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the one in flight; False: it still runs after `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.busy

    def _write(self, position: int, now: float, meta: bytes, rows: Iterable[Row], deleted: Iterable[Key]) -> None:
        start = self._clock()
        rows, deleted = list(rows), list(deleted)
        if self._owed:
            changes = self._owed | dict.fromkeys(deleted) | {(profile, device): row for profile, device, row in rows}
            rows = [(profile, device, row) for (profile, device), row in changes.items() if row is not None]
            deleted = [key for key, row in changes.items() if row is None]
        error: str | None = None
        try:
            self._snapshot.save(position, now, meta, rows, deleted)
            self._owed, self._saved = {}, now
        except Exception as failed:  # whatever it is (no memory, say), what is not written is owed
            error = str(failed) if isinstance(failed, SentinelError) else repr(failed)
            self._owed = dict.fromkeys(deleted) | {(profile, device): row for profile, device, row in rows}
        self._report = SnapshotReport(position, len(rows), self._clock() - start, error)
