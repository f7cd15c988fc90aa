"""Readings to ticks: at most one tick a device in a wave, in event-time order.

Axes: B rows, F channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sentinel.records import Bools, Fate, Floats, Ints
from sentinel.stream.devices import DeviceTable


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


class Aligner:
    """Joins readings of one device that lie within `window` seconds of event time into one tick.

    Holds: one pending tick a device.   Blocks: never.   Raises: nothing.   Drops: what is late or a duplicate, with
    that fate.
    Emits a tick when all channels that the device is known for came, when a channel comes again or outside the
    window, or when `window` seconds of receive time have passed, whichever is first.
    """

    def __init__(self, window: float, by_arrival: bool = False) -> None:
        """Join within `window` seconds; `by_arrival`: times are those of receipt, and nothing is late or doubled."""
        self.window = window
        self._by_arrival = by_arrival
        self._pending: dict[int, _Pending] = {}
        self._pushes = 0

    def push(self, batch: Batch, table: DeviceTable, now: float) -> tuple[Batch, list[Fate]]:
        """Ticks that these readings completed, in order, and each reading's fate."""
        done: list[tuple[int, _Pending]] = []
        fates = []
        pending = self._pending
        self._pushes += 1
        for slot, time, values, message in zip(
            batch.slots.tolist(), batch.time.tolist(), batch.values, batch.message.tolist(), strict=True
        ):
            held = pending.get(slot)
            if held is not None and len(held.values) < len(values):  # channels were learned since
                held.values = np.append(held.values, np.full(len(values) - len(held.values), np.nan))
            seen = ~np.isnan(values)
            if self._by_arrival:
                time = max(time, float(table.last_time[slot]))  # noqa: PLW2901 - our clock may have stepped back
            fate = self._fate(time, values, seen, held, float(table.last_time[slot]), table.last[slot])
            fates.append(fate)
            if fate is not Fate.ACCEPTED:
                continue
            if held is not None:
                have = ~np.isnan(held.values)
                if abs(time - held.time) <= self.window and not (have & seen).any():
                    held.values = np.where(seen, values, held.values)
                    held.message, held.push = message, self._pushes
                    seen = have | seen
                else:
                    done.append((slot, pending.pop(slot)))
                    held = None
            if held is None:
                held = pending[slot] = _Pending(time, values.copy(), now, message, self._pushes)
            known = table.known[slot]
            if table.ticks[slot] > 0 and known.any() and not (known & ~seen).any():
                done.append((slot, pending.pop(slot)))
        return self._batch(done, table.channels), fates

    def _fate(
        self, time: float, values: Floats, seen: Bools, held: _Pending | None, last_time: float, last: Floats
    ) -> Fate:
        if self._by_arrival:
            return Fate.ACCEPTED
        if held is not None and time == held.time and np.array_equal(values[seen], held.values[seen]):
            return Fate.DUPLICATE
        if time == last_time and np.array_equal(values[seen], last[: len(values)][seen]):
            return Fate.DUPLICATE
        if time < last_time or (held is not None and time < held.time - self.window):
            return Fate.LATE
        return Fate.ACCEPTED

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
