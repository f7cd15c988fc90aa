"""The journal: every input of the stream in order, grouped by turn.

One SQLite file in WAL mode with one writer; other processes read while it is written. Readings lie
columnar in one blob an entry, everything else as JSON. The key of an entry is its turn's sequence
number and its place in the turn in one integer, so that order, grouping and ranges need no index.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from sentinel.adapters.store.database import Schema, connect, damaged, failure, pragma, transaction
from sentinel.errors import StoreError
from sentinel.records import (
    Announcement,
    Birth,
    Command,
    Configuration,
    Death,
    Entry,
    Heard,
    ProfileSpec,
    Promotion,
    Readings,
    Timer,
)

Durability = Literal["journal", "none"]
Blob = bytes

PLACE_BITS = 16  # entries a turn: 65 536
PAGE_ROWS = 64  # rows read at once; a reader holds no transaction between them
STEP_ROWS = 512  # limits of one step of trim
STEP_BYTES = 256 << 10
STEP_PAGES = 512

SCHEMA = Schema(
    int.from_bytes(b"SNTJ", "big"),
    """
CREATE TABLE layouts (id INTEGER PRIMARY KEY, channels TEXT NOT NULL UNIQUE);
CREATE TABLE entries (id INTEGER PRIMARY KEY, now REAL NOT NULL, kind TEXT NOT NULL, profile TEXT NOT NULL,
                      count INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX entries_by_profile ON entries (profile, id, count)
""",
    migrations=("CREATE INDEX promotions ON entries (profile, id) WHERE kind = 'promotion'",),
)

_KINDS: dict[str, Callable[..., Entry]] = {
    "command": Command,
    "timer": Timer,
    "promotion": Promotion,
    "announcement": Announcement,
    "configuration": lambda spec: Configuration(ProfileSpec.load(spec)),
    "birth": lambda **raw: Birth.load(raw),
    "death": lambda **raw: Death.load(raw),
    "heard": Heard,
}
_HEADER = struct.Struct("<4B4I")
_CODEC = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the reactor as journalled. `seq` counts from 1; `now` is the turn's receive time."""

    seq: int
    now: float
    entries: tuple[Entry, ...]


def encode(readings: Readings, layout: int) -> bytes:
    """Readings as one blob: distinct device ids once, an index, float64 times and values bit for bit."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(readings.device))}
    index: npt.NDArray[np.unsignedinteger] = np.zeros(0, np.uint8)
    if len(codes) < len(readings):
        index = _narrow(np.fromiter(map(codes.__getitem__, readings.device), np.uint32, len(readings)))
    lengths = _narrow(np.fromiter(map(len, codes), np.uint32, len(codes)))
    names = "".join(codes).encode()
    return b"".join(
        (
            _HEADER.pack(
                _CODEC,
                index.itemsize if len(index) else 0,
                lengths.itemsize,
                0,
                layout,
                len(readings),
                len(codes),
                len(names),
            ),
            index.tobytes(),
            lengths.tobytes(),
            names,
            np.ascontiguousarray(readings.time, "<f8").tobytes(),
            np.ascontiguousarray(readings.values, "<f8").tobytes(),
        )
    )


def decode(body: bytes, profile: str, channels_of: Callable[[int], tuple[str, ...]]) -> Readings:
    """What `encode` was given, but for the message indexes, which are 0."""
    codec, index_width, length_width, _, layout, count, distinct, name_bytes = _HEADER.unpack_from(body)
    if codec != _CODEC:
        raise StoreError(f"the journal holds readings in an unknown form ({codec}); upgrade sentinel")
    channels = channels_of(layout)
    at = _HEADER.size
    index = np.frombuffer(body, f"<u{index_width}", count, at) if index_width else None
    at += index_width * count
    ends = np.frombuffer(body, f"<u{length_width}", distinct, at).cumsum(dtype=np.int64).tolist()
    at += length_width * distinct
    text = body[at : at + name_bytes].decode()
    at += name_bytes
    names = [text[start:end] for start, end in itertools.pairwise([0, *ends])]
    time = np.frombuffer(body, "<f8", count, at).astype(np.float64)
    values = np.frombuffer(body, "<f8", count * len(channels), at + 8 * count).astype(np.float64)
    return Readings(
        profile=profile,
        channels=channels,
        device=names if index is None else [names[code] for code in index.tolist()],
        time=time,
        values=values.reshape(count, len(channels)),
        message=np.zeros(count, np.int64),
    )


def _narrow(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.unsignedinteger]:
    """The same in the smallest little-endian unsigned type that holds them."""
    largest = int(numbers.max(initial=0))
    return numbers.astype("<u1" if largest < 1 << 8 else "<u2" if largest < 1 << 16 else "<u4")


class JournalReader:
    """A journal that another process may be writing. Sees each turn whole, once it is committed."""

    def __init__(self, file: Path) -> None:
        """Raises StoreError if there is no journal of ours at `file`."""
        self.file = file
        self._connection = self._connect()
        self._channels: dict[int, tuple[str, ...]] = {}

    def _connect(self) -> sqlite3.Connection:
        return connect(self.file, SCHEMA, read_only=True)

    def last(self) -> int:
        """Sequence number of the newest turn; 0: none yet."""
        row = self._query("SELECT max(id) FROM entries")[0]
        return 0 if row[0] is None else int(row[0]) >> PLACE_BITS

    def read(
        self, after: int = 0, upto: int | None = None, profile: str | None = None, since: float | None = None
    ) -> Iterator[Turn]:
        """Turns with `after` < seq <= `upto`, oldest first, in bounded memory.

        With `profile`, only the entries that name it; turns without any are left out. With `since`,
        only turns whose `now` is at least that. Turns appended or trimmed meanwhile may be seen or
        not. Raises Unavailable on a disk error, StoreError if the file is damaged.
        """
        rows = self._rows(after, upto, profile, since)
        for seq, group in itertools.groupby(rows, lambda row: int(row[0]) >> PLACE_BITS):
            parts = list(group)
            entries = tuple(self._entry(kind, name, body) for _, _, kind, name, body in parts)
            yield Turn(seq, float(parts[0][1]), entries)

    def readings_count(self, profile: str, after: int = 0) -> int:
        """Readings of `profile` held, of turns with seq > `after`. Takes about 50 ms a million turns."""
        query = "SELECT total(count) FROM entries WHERE profile = ? AND id >= ?"
        return int(self._query(query, profile, (after + 1) << PLACE_BITS)[0][0])

    def first(self) -> int:
        """Sequence number of the oldest turn held; above 1 where older ones were trimmed; 0: none is held."""
        row = self._query("SELECT min(id) FROM entries")[0]
        return 0 if row[0] is None else int(row[0]) >> PLACE_BITS

    def promotions(self, profile: str) -> list[Promotion]:
        """The promotions of `profile` held, oldest first: models that a replay needs."""
        query = "SELECT body FROM entries WHERE kind = 'promotion' AND profile = ? ORDER BY id"
        return [Promotion(**json.loads(body)) for (body,) in self._query(query, profile)]

    def bytes(self) -> int:
        """Size of what is held, free pages in the file left out."""
        (pages,), (free,), (size,) = (
            self._query(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def close(self) -> None:
        """Safe to call twice."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _rows(
        self, after: int, upto: int | None, profile: str | None, since: float | None
    ) -> Iterator[tuple[Any, ...]]:
        where, last = ["id > ?", "id < ?"], ((after + 1) << PLACE_BITS) - 1
        end = (upto + 1) << PLACE_BITS if upto is not None else (1 << 63) - 1
        extra: list[str | float | Blob] = []
        if profile is not None:
            where.append("profile = ?")
            extra.append(profile)
        if since is not None:
            where.append("now >= ?")
            extra.append(since)
        part, values = self._part()
        where, extra = [*where, *part], [*extra, *values]
        columns = "id, now, kind, profile, body"
        query = f"SELECT {columns} FROM entries WHERE {' AND '.join(where)} ORDER BY id LIMIT ?"  # noqa: S608 - constants
        while rows := self._query(query, last, end, *extra, PAGE_ROWS):
            yield from rows
            last = rows[-1][0]

    def _part(self) -> tuple[list[str], list[str | Blob]]:
        """Conditions on entries, and their parameters, beside those that `read` is given."""
        return [], []

    def _entry(self, kind: str, profile: str, body: Blob) -> Entry:
        if kind != "readings" and kind not in _KINDS:
            raise StoreError(f"{self.file} holds an entry of unknown kind {kind!r}; upgrade sentinel")
        try:
            return decode(body, profile, self._channels_of) if kind == "readings" else _KINDS[kind](**json.loads(body))
        except (ValueError, TypeError, LookupError, struct.error) as error:
            raise damaged(self.file, f"an entry of kind {kind!r}: {error}") from error

    def _channels_of(self, layout: int) -> tuple[str, ...]:
        if layout not in self._channels:
            rows = self._query("SELECT channels FROM layouts WHERE id = ?", layout)
            if not rows:
                raise damaged(self.file, f"layout {layout} is missing")
            self._channels[layout] = tuple(json.loads(rows[0][0]))
        return self._channels[layout]

    def _query(self, query: str, *parameters: str | float | Blob) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise failure(self.file, error) from error


class DeviceReader(JournalReader):
    """A journal of which only that is seen which one device's state depends on, timers included. Read without `profile`."""

    def __init__(self, file: Path, profile: str, device: str) -> None:
        """As JournalReader."""
        super().__init__(file)
        self._profile, self._device = profile, device

    def read(
        self, after: int = 0, upto: int | None = None, profile: str | None = None, since: float | None = None
    ) -> Iterator[Turn]:
        for turn in super().read(after, upto, None, since):
            cut = (entry.of(self._device) if isinstance(entry, Readings) else entry for entry in turn.entries)
            if entries := tuple(entry for entry in cut if not isinstance(entry, Readings) or len(entry)):
                yield Turn(turn.seq, turn.now, entries)

    def _part(self) -> tuple[list[str], list[str | Blob]]:
        # The ids lie in a blob as they are: one that cannot hold this one need not be decoded.
        mine = "((profile = ? AND (kind <> 'readings' OR instr(body, ?))) OR kind = 'timer')"
        return [mine], [self._profile, self._device.encode()]


class Journal(JournalReader):
    """The journal of the daemon that holds the store's lock."""

    def __init__(self, file: Path, durability: Durability = "journal", after: int = 0) -> None:
        """Open or create.

        Args:
            durability: "journal": a turn survives a power cut once `append` returned; "none": it
                survives the end of the process alone. Neither damages what was held before.
            after: the next turn's sequence number is above this, and above all that are held.
        """
        self._synchronous = "FULL" if durability == "journal" else "NORMAL"
        super().__init__(file)
        try:
            rows = self._query("SELECT channels, id FROM layouts")
            self._layouts = {tuple(json.loads(text)): int(layout) for text, layout in rows}
        except (ValueError, TypeError) as error:
            self.close()
            raise damaged(file, "a layout is none") from error
        except BaseException:
            self.close()
            raise
        self._inode = file.stat().st_ino
        self._last = max(super().last(), after)
        self._counts: dict[str, int] = {}

    def _connect(self) -> sqlite3.Connection:
        return connect(self.file, SCHEMA, synchronous=self._synchronous)

    def last(self) -> int:
        """Sequence number of the newest turn; 0: none yet."""
        return self._last

    def append(self, entries: Sequence[Entry], now: float) -> int:
        """Commit one turn and return its sequence number; blocks until it is safe.

        A turn without entries is not written; the newest number is returned. Raises Unavailable on a
        disk error: nothing of the turn is kept, and the same may be appended again later; StoreError
        if the file is not the one that was opened: SQLite would write on where nobody finds it.
        """
        if not entries:
            return self._last
        if self._is_gone():
            raise StoreError(f"{self.file} was removed or replaced while in use; start again, on a store that stays")
        seq = self._last + 1
        layouts: dict[tuple[str, ...], int] = {}
        with transaction(self._connection, self.file):
            self._connection.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
                [((seq << PLACE_BITS) + place, now, *self._row(entry, layouts)) for place, entry in enumerate(entries)],
            )
        self._last = seq
        self._layouts |= layouts
        for entry in entries:
            if isinstance(entry, Readings) and entry.profile in self._counts:
                self._counts[entry.profile] += len(entry)
        return seq

    def _is_gone(self) -> bool:
        try:
            return self.file.stat().st_ino != self._inode
        except FileNotFoundError:
            return True
        except OSError:  # it may be there: what is open can be written on
            return False

    def readings_count(self, profile: str, after: int = 0) -> int:
        """As of a reader; of all turns, the first call for a profile alone takes its time."""
        if after:
            return super().readings_count(profile, after)
        if profile not in self._counts:
            self._counts[profile] = super().readings_count(profile)
        return self._counts[profile]

    def trim(self, max_bytes: float, max_age: float, now: float, keep_after: int) -> int:
        """Delete some of the oldest turns that are too many or too old; returns how many.

        One step, of a few milliseconds: call again while it returns more than 0. Space is reused by
        later turns; where much is free the file shrinks, a step a call.

        Args:
            max_bytes: hold no more than this, as `bytes` counts it.
            max_age: receive-time seconds.
            keep_after: turns after this one stay, whatever their size and age, and so does the newest.

        Raises Unavailable on a disk error.
        """
        deletable = min(keep_after, self._last - 1)
        query = "SELECT id, now, length(body) FROM entries WHERE id < ? ORDER BY id LIMIT ?"
        excess, freed, end, turns = self.bytes() - max_bytes, 0, 0, 0
        for key, born, size in self._query(query, (deletable + 1) << PLACE_BITS, STEP_ROWS):
            seq = int(key) >> PLACE_BITS
            if seq >= end:
                if freed >= STEP_BYTES or (freed >= excess and born >= now - max_age):
                    break
                turns, end = turns + 1, seq + 1
            freed += int(size)
        if turns:
            with transaction(self._connection, self.file):
                gone = self._connection.execute(
                    "SELECT profile, sum(count) FROM entries WHERE id < ? GROUP BY profile", (end << PLACE_BITS,)
                ).fetchall()
                self._connection.execute("DELETE FROM entries WHERE id < ?", (end << PLACE_BITS,))
            for profile, count in gone:
                if profile in self._counts:
                    self._counts[profile] -= int(count)
        self._shrink()
        return turns

    def _shrink(self) -> None:
        free = pragma(self._connection, "freelist_count")
        if free > 8 * STEP_PAGES and 4 * free > pragma(self._connection, "page_count"):
            self._connection.executescript(f"PRAGMA incremental_vacuum({STEP_PAGES})")  # steps to its end

    def _row(self, entry: Entry, layouts: dict[tuple[str, ...], int]) -> tuple[str, str, int, Blob]:
        """Kind, profile, count and body of an entry; layouts made for it are added to `layouts`."""
        if isinstance(entry, Readings):
            layout = self._layouts.get(entry.channels) or layouts.get(entry.channels)
            if layout is None:
                text = json.dumps(entry.channels)
                layout = self._connection.execute("INSERT INTO layouts (channels) VALUES (?)", (text,)).lastrowid or 0
                layouts[entry.channels] = layout
            return "readings", entry.profile, len(entry), encode(entry, layout)
        profile = "" if isinstance(entry, Timer) else entry.profile
        return type(entry).__name__.lower(), profile, 0, json.dumps(dataclasses.asdict(entry)).encode()
