"""Readings to ticks: at most one tick a device in a wave, in event-time order.

Axes: B rows, F channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sentinel.records import Bools, Fate, Floats, Ints
from sentinel.stream.devices import DeviceTable

CLOCK_ERROR, CLOCK_ERROR_INTERVALS, CLOCK_ERROR_READINGS = 3600.0, 64.0, 16  # seconds, usual intervals, in a row


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows, in order of arrival: slots (B,), event times (B,), values (B, F) NaN where missing, messages (B,)."""

    slots: Ints
    time: Floats
    values: Floats
    message: Ints

    def __len__(self) -> int:
        return len(self.slots)

    def rows(self, index: Ints) -> "Batch":
        return Batch(self.slots[index], self.time[index], self.values[index], self.message[index])


def mend_clocks(slots: Ints, lateness: Floats, table: DeviceTable) -> Bools:
    """Begin a new timeline for devices whose clock was far ahead once: many readings in a row, all far too late, (B,)."""
    far = lateness > np.maximum(CLOCK_ERROR, CLOCK_ERROR_INTERVALS * table.interval[slots])
    table.late[slots] = np.where(far, table.late[slots] + 1, 0)
    mended: Bools = table.late[slots] >= CLOCK_ERROR_READINGS
    table.last_time[slots[mended]] = -np.inf
    return mended


def waves(slots: Ints) -> Iterator[Ints]:
    """Cut rows (B,) so that each part has a device at most once; k rows of one device make k waves."""
    if len(np.unique(slots)) == len(slots):
        yield np.arange(len(slots))
        return
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    rank = np.arange(len(slots)) - np.repeat(begins, np.diff(np.append(begins, len(slots))))
    by_rank = np.lexsort((order, rank))
    cuts = np.flatnonzero(np.diff(rank[by_rank])) + 1
    yield from np.split(order[by_rank], cuts)


@dataclass(slots=True)
class _Pending:
    time: float
    values: Floats
    since: float
    message: int
    push: int


@dataclass(frozen=True, slots=True)
class _Past:
    """A device's last tick: its event time, and each channel's last value (F,), NaN where none came yet."""

    time: float
    values: Floats

    def after(self, held: _Pending) -> "_Past":
        """What will be last once `held` was taken."""
        return _Past(max(self.time, held.time), np.where(np.isnan(held.values), self.values, held.values))

    def repeats(self, time: float, values: Floats, seen: Bools) -> bool:
        """Whether a reading says what is said already."""
        return time == self.time and np.array_equal(values[seen], self.values[seen])


class Aligner:
    """Joins readings of one device that lie within `window` seconds of event time into one tick.

    Holds: one pending tick a device.   Blocks: never.   Raises: nothing.   Drops: what is late or a duplicate, with
    that fate.
    Emits a tick when all channels that the device is known for came, when a channel comes again or outside the
    window, or when `window` seconds of receive time have passed, whichever is first. A device's ticks come in the
    order of their times and none repeats the one before, so what is accepted here is in a tick that is taken, and each
    reading has one fate.
    """

    def __init__(self, window: float, by_arrival: bool = False) -> None:
        """Join within `window` seconds; `by_arrival`: times are those of receipt, and nothing is late or doubled."""
        self.window = window
        self._by_arrival = by_arrival
        self._pending: dict[int, _Pending] = {}
        self._pushes = 0

    def push(self, batch: Batch, table: DeviceTable, now: float) -> tuple[Batch, list[Fate]]:
        """Ticks that these readings completed, in order, and each reading's fate.

        Args:
            table: as of the ticks that were emitted before; those of this push are taken from it afterwards.
        """
        done: list[tuple[int, _Pending]] = []
        ended: dict[int, _Past] = {}  # ticks of this push, which the table does not have yet
        fates = []
        pending = self._pending
        self._pushes += 1
        for slot, time, values, message in zip(
            batch.slots.tolist(), batch.time.tolist(), batch.values, batch.message.tolist(), strict=True
        ):
            past = ended.get(slot) or _Past(float(table.last_time[slot]), table.last[slot])
            held = pending.get(slot)
            if held is not None and len(held.values) < len(values):  # channels were learned since
                held.values = np.append(held.values, np.full(len(values) - len(held.values), np.nan))
            seen, known = ~np.isnan(values), ~np.isnan(past.values)
            if self._by_arrival:
                time = max(time, past.time)  # noqa: PLW2901 - our clock may have stepped back
            joins = held is not None and self._joins(held, time, seen)
            before = past if held is None or joins else past.after(held)
            fate = self._fate(time, values, seen, past, before)
            if fate is Fate.ACCEPTED:
                table.late[slot] = 0
            elif held is None and mend_clocks(np.array([slot]), np.array([past.time - time]), table)[0]:
                past = before = ended[slot] = _Past(-np.inf, past.values)
                fate = Fate.ACCEPTED
            fates.append(fate)
            if fate is not Fate.ACCEPTED:
                continue
            if held is not None and joins:
                held.values = np.where(seen, values, held.values)
                held.message, held.push = message, self._pushes
                seen = ~np.isnan(held.values)
            else:
                if held is not None:
                    done.append((slot, pending.pop(slot)))
                    ended[slot] = before
                held = pending[slot] = _Pending(time, values.copy(), now, message, self._pushes)
            if known.any() and not (known & ~seen).any():
                done.append((slot, pending.pop(slot)))
                ended[slot] = before.after(held)
        return self._batch(done, table.channels), fates

    def _joins(self, held: _Pending, time: float, seen: Bools) -> bool:
        return abs(time - held.time) <= self.window and bool(np.isnan(held.values[seen]).all())

    def _fate(self, time: float, values: Floats, seen: Bools, past: _Past, before: _Past) -> Fate:
        """Of a reading whose tick comes after `before`, which is `past` or what is held now."""
        if self._by_arrival:
            return Fate.ACCEPTED
        if past.repeats(time, values, seen) or before.repeats(time, values, seen):
            return Fate.DUPLICATE
        return Fate.LATE if time < before.time else Fate.ACCEPTED

    def due(self, now: float, channels: int) -> Batch:
        """Ticks whose window has closed by `now`."""
        if not self._pending:
            return self._batch([], channels)
        # A beginning ahead of now: the clock was set back.
        done = [(slot, p) for slot, p in self._pending.items() if not 0 <= now - p.since < self.window]
        for slot, _ in done:
            del self._pending[slot]
        return self._batch(done, channels)

    def next_due(self, now: float) -> float | None:
        """Receive time at which `due` has something; None: nothing waits."""
        if not self._pending:
            return None
        since = next(iter(self._pending.values())).since
        return since + self.window if since <= now else now

    def drop(self, slot: int) -> None:
        """Forget a device."""
        self._pending.pop(slot, None)

    def export(self) -> list[tuple[int, float, list[float | None], float]]:
        """What waits, for a snapshot."""
        return [
            (slot, p.time, [None if np.isnan(v) else v for v in p.values.tolist()], p.since)
            for slot, p in self._pending.items()
        ]

    def restore(self, rows: list[tuple[int, float, list[float | None], float]]) -> None:
        """Undo `export`."""
        for slot, time, values, since in rows:
            filled = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
            self._pending[slot] = _Pending(time, filled, since, -1, 0)

    def _batch(self, done: list[tuple[int, _Pending]], channels: int) -> Batch:
        values = np.full((len(done), channels), np.nan)
        for row, (_, held) in enumerate(done):
            values[row, : len(held.values)] = held.values
        return Batch(
            np.array([slot for slot, _ in done], dtype=np.int64),
            np.array([held.time for _, held in done], dtype=np.float64),
            values,
            np.array([held.message if held.push == self._pushes else -1 for _, held in done], dtype=np.int64),
        )
