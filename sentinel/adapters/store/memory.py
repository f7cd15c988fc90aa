"""The store in memory: the twin that tests and demos run on."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from sentinel.adapters.store.journal import Turn
from sentinel.adapters.store.snapshot import Key, Row, SnapshotImage
from sentinel.errors import StoreError, Unavailable
from sentinel.records import Entry, Promotion, Readings, Timer

STEP_TURNS = 512
ENTRY_BYTES = 64


@dataclass
class MemoryDisk:
    """What survives the end of a MemoryStore: hand it to the next one to restart.

    Attributes:
        full: set it, and every write raises Unavailable.
    """

    client_id: str = field(default_factory=lambda: f"sentinel-{secrets.token_hex(6)}")
    seed: int = field(default_factory=lambda: secrets.randbits(63))
    turns: list[Turn] = field(default_factory=list)
    last: int = 0
    image: tuple[int, float, bytes] | None = None
    rows: dict[Key, bytes] = field(default_factory=dict)
    full: bool = False
    held: bool = False

    def __post_init__(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="sentinel-models-")
        self.models = Path(folder.name)
        weakref.finalize(self, folder.cleanup)


class MemoryJournal:
    """As Journal, in memory."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        disk.last = max(disk.last, disk.image[0] if disk.image else 0)

    def last(self) -> int:
        return self._disk.last

    def append(self, entries: Sequence[Entry], now: float) -> int:
        if not entries:
            return self._disk.last
        self._check()
        self._disk.turns.append(Turn(self._disk.last + 1, now, tuple(map(_copy, entries))))
        self._disk.last += 1
        return self._disk.last

    def read(
        self, after: int = 0, upto: int | None = None, profile: str | None = None, since: float | None = None
    ) -> Iterator[Turn]:
        for turn in list(self._disk.turns):
            if turn.seq <= after or (upto is not None and turn.seq > upto) or (since is not None and turn.now < since):
                continue
            entries = tuple(_copy(entry) for entry in turn.entries if profile is None or _profile(entry) == profile)
            if entries:
                yield Turn(turn.seq, turn.now, entries)

    def readings_count(self, profile: str, after: int = 0) -> int:
        entries = (entry for turn in self._disk.turns if turn.seq > after for entry in turn.entries)
        return sum(len(entry) for entry in entries if isinstance(entry, Readings) and entry.profile == profile)

    def first(self) -> int:
        return self._disk.turns[0].seq if self._disk.turns else 0

    def promotions(self, profile: str) -> list[Promotion]:
        entries = (entry for turn in self._disk.turns for entry in turn.entries)
        return [entry for entry in entries if isinstance(entry, Promotion) and entry.profile == profile]

    def bytes(self) -> int:
        return sum(map(_size, self._disk.turns))

    def trim(self, max_bytes: float, max_age: float, now: float, keep_after: int) -> int:
        self._check()
        excess, gone = self.bytes() - max_bytes, 0
        for turn in self._disk.turns[: min(STEP_TURNS, len(self._disk.turns) - 1)]:
            if turn.seq > keep_after or (excess <= 0 and turn.now >= now - max_age):
                break
            excess -= _size(turn)
            gone += 1
        del self._disk.turns[:gone]
        return gone

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if self._disk.full:
            raise Unavailable("memory: the disk is full")


class MemorySnapshot:
    """As Snapshot, in memory."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk

    def save(self, position: int, now: float, meta: bytes, rows: Iterable[Row], deleted: Iterable[Key] = ()) -> None:
        if self._disk.full:
            raise Unavailable("memory: the disk is full")
        kept = dict(self._disk.rows)
        for key in deleted:
            kept.pop(key, None)
        kept.update({(profile, device): row for profile, device, row in rows})
        self._disk.rows, self._disk.image = kept, (position, now, meta)

    def load(self) -> SnapshotImage | None:
        if self._disk.image is None:
            return None
        rows = ((profile, device, row) for (profile, device), row in self._disk.rows.items())
        return SnapshotImage(*self._disk.image, rows)

    def close(self) -> None:
        pass


class MemoryStore:
    """As Store, on a MemoryDisk; `models` is a temporary directory that goes with the disk."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = disk or MemoryDisk()
        if self.disk.held:
            raise StoreError("the store in memory is in use: close the other one")
        self.disk.held = True
        self.client_id, self.seed = self.disk.client_id, self.disk.seed
        self.path = self.models = self.disk.models
        self.journal = MemoryJournal(self.disk)
        self.snapshot = MemorySnapshot(self.disk)

    def close(self) -> None:
        self.disk.held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _copy(entry: Entry) -> Entry:
    if not isinstance(entry, Readings):
        return entry
    return dataclasses.replace(
        entry,
        device=list(entry.device),
        time=np.array(entry.time, np.float64),
        values=np.array(entry.values, np.float64),
        message=np.zeros(len(entry), np.int64),
    )


def _profile(entry: Entry) -> str | None:
    return None if isinstance(entry, Timer) else entry.profile


def _size(turn: Turn) -> int:
    return sum(
        ENTRY_BYTES + (entry.time.nbytes + entry.values.nbytes if isinstance(entry, Readings) else 0)
        for entry in turn.entries
    )
