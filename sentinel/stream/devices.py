"""The device table: what the stream remembers of every device of a profile, one slot each.

Axes: N slots, B rows, F channels. Slot 0 is nobody.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sentinel.records import Bools, Floats, Ints

_FIRST = 64
_COLUMNS: dict[str, tuple[str, float]] = {  # name: dtype, value of an empty slot
    "last_time": ("f8", -np.inf),  # event time of the last tick
    "last_seen": ("f8", -np.inf),  # receive time of the last reading
    "interval": ("f4", 0.0),  # usual event-time seconds between ticks
    "heard": ("f4", 0.0),  # usual receive-time seconds between readings
    "ticks": ("i8", 0),
    "last_start": ("i8", -(1 << 40)),  # tick of the last start of a prediction alert
    "score": ("f8", np.nan),  # last score; NaN: none yet
    "onset": ("f8", np.nan),  # event time since which the score has been high
    "late": ("i4", 0),  # readings in a row that were far too late
    "silent": ("?", 0),
    "open": ("?", 0),  # has an alert
}
_PER_CHANNEL: dict[str, tuple[str, float]] = {
    "last": ("f8", np.nan),  # last value
    "run": ("i4", 0),  # ticks that it has been the same
    "known": ("?", 0),  # has ever come
    "at": ("f8", np.nan),  # event time of the last value
}
_FLAGS = ("watched", "offline", "paused")  # not in a packed slot
_RATE = 0.1  # of the interval averages


class DeviceTable:
    """Slots grow by doubling, are reused after a device is forgotten, and never exceed `most` devices."""

    def __init__(self, channels: int, most: int) -> None:
        self.most = most
        self.slot_of: dict[str, int] = {}
        self.ids: list[str] = [""]
        self._free: list[int] = []
        self.capacity = 0
        self.channels = channels
        self.last_time: Floats
        self.last_seen: Floats
        self.interval: npt.NDArray[np.float32]
        self.heard: npt.NDArray[np.float32]
        self.ticks: Ints
        self.last_start: Ints
        self.score: Floats
        self.onset: Floats
        self.silent: Bools
        self.open: Bools
        self.last: Floats
        self.run: npt.NDArray[np.int32]
        self.known: Bools
        self.at: Floats
        self.late: npt.NDArray[np.int32]
        self.dirty: Bools = np.zeros(0, dtype=np.bool_)
        self.used: Bools = np.zeros(0, dtype=np.bool_)
        self.watched: Bools = np.zeros(0, dtype=np.bool_)  # whose ticks are told as they come
        self.offline: Bools = np.zeros(0, dtype=np.bool_)  # said so; nothing heard since
        self.paused: Bools = np.zeros(0, dtype=np.bool_)  # was offline since its last tick
        self._grow(_FIRST)

    def __len__(self) -> int:
        return len(self.slot_of)

    def __iter__(self) -> Iterator[int]:
        """Slots in use, in order."""
        return iter(np.flatnonzero(self.used).tolist())

    def _grow(self, capacity: int) -> None:
        old = self.capacity
        for name, (dtype, empty) in _COLUMNS.items():
            column = np.full(capacity, empty, dtype=dtype)
            if old:
                column[:old] = getattr(self, name)
            setattr(self, name, column)
        for name, (dtype, empty) in _PER_CHANNEL.items():
            block = np.full((capacity, self.channels), empty, dtype=dtype)
            if old:
                block[:old] = getattr(self, name)
            setattr(self, name, block)
        for name in ("dirty", "used", *_FLAGS):
            flags = np.zeros(capacity, dtype=np.bool_)
            flags[:old] = getattr(self, name)
            setattr(self, name, flags)
        self.capacity = capacity

    def widen(self, channels: int) -> None:
        """Make room for more channels; those there keep their columns."""
        for name, (dtype, empty) in _PER_CHANNEL.items():
            block = np.full((self.capacity, channels), empty, dtype=dtype)
            block[:, : self.channels] = getattr(self, name)
            setattr(self, name, block)
        self.channels = channels
        self.dirty |= self.used  # packed rows are wider now

    def slots(self, devices: Sequence[str]) -> tuple[Ints, list[int]]:
        """Slot of each device, (B,), -1 where there is no room; and the slots that are new."""
        find = self.slot_of.get
        out = [find(device, -1) for device in devices]
        new = []
        if -1 in out:
            for at, slot in enumerate(out):
                if slot < 0:
                    slot = self.slot_of.get(devices[at], -1)  # noqa: PLW2901 - it may have come twice
                    if slot < 0 and len(self.slot_of) < self.most:
                        slot = self.add(devices[at])  # noqa: PLW2901
                        new.append(slot)
                    out[at] = slot
        return np.array(out, dtype=np.int64), new

    def add(self, device: str) -> int:
        """Give a device a slot."""
        if self._free:
            slot = self._free.pop()
            self.ids[slot] = device
        else:
            slot = len(self.ids)
            if slot >= self.capacity:
                self._grow(self.capacity * 2)
            self.ids.append(device)
        self.slot_of[device] = slot
        self.used[slot] = self.dirty[slot] = True
        return slot

    def forget(self, slot: int) -> None:
        """Free a slot and all that it holds."""
        del self.slot_of[self.ids[slot]]
        self.ids[slot] = ""
        for name, (_, empty) in (_COLUMNS | _PER_CHANNEL).items():
            getattr(self, name)[slot] = empty
        self.used[slot] = self.dirty[slot] = False
        for name in _FLAGS:
            getattr(self, name)[slot] = False
        self._free.append(slot)

    def heard_from(self, slots: Ints, now: float) -> None:
        """A reading came from these devices, whatever becomes of it."""
        before = self.last_seen[slots]
        known = np.isfinite(before)
        lapse = np.where(known, now - np.where(known, before, 0.0), 0.0).astype(np.float32)
        usual = self.heard[slots]
        moved = np.where(usual > 0, usual + _RATE * (lapse - usual), lapse)
        # Readings of one turn come together: that says nothing of the interval.
        self.heard[slots] = np.where(lapse > 0, moved, usual)
        self.last_seen[slots] = now
        self.dirty[slots] = True

    def advance(self, slots: Ints, time: Floats, values: Floats, dt: Floats) -> None:
        """A tick of each of these devices was taken; `values` (B, F), NaN where not seen."""
        usual, lapse = self.interval[slots], dt.astype(np.float32)
        self.interval[slots] = np.where(usual > 0, usual + _RATE * (np.minimum(lapse, 16 * usual) - usual), lapse)
        seen = ~np.isnan(values)
        before = self.last[slots]
        self.run[slots] = np.where(seen, np.where(values == before, self.run[slots] + 1, 1), self.run[slots])
        self.last[slots] = np.where(seen, values, before)
        self.known[slots] |= seen
        self.at[slots] = np.where(seen, time[:, None], self.at[slots])
        self.last_time[slots] = time
        self.ticks[slots] += 1
        self.dirty[slots] = True  # a snapshot may have come since the reading

    def pack(self, slots: Ints) -> list[bytes]:
        """The slots' contents as bytes, for a snapshot."""
        if not len(slots):
            return []
        parts = [getattr(self, name)[slots].reshape(len(slots), -1) for name in (*_COLUMNS, *_PER_CHANNEL)]
        raw = np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)
        return [row.tobytes() for row in raw]

    @staticmethod
    def width(channels: int) -> int:
        """Bytes of one packed slot."""
        fixed = sum(np.dtype(dtype).itemsize for dtype, _ in _COLUMNS.values())
        return fixed + channels * sum(np.dtype(dtype).itemsize for dtype, _ in _PER_CHANNEL.values())

    def unpack(self, slots: Ints, raw: npt.NDArray[np.uint8], columns: Ints) -> None:
        """Set slots from `pack`'s bytes, (B, width); `columns` says where each packed channel is now."""
        at = 0
        for name, (dtype, _) in (_COLUMNS | _PER_CHANNEL).items():
            size = np.dtype(dtype).itemsize * (len(columns) if name in _PER_CHANNEL else 1)
            part = np.ascontiguousarray(raw[:, at : at + size]).view(dtype)
            if name in _PER_CHANNEL:
                getattr(self, name)[np.ix_(slots, columns)] = part
            else:
                getattr(self, name)[slots] = part[:, 0]
            at += size
