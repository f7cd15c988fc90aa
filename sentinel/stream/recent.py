"""The newest ticks of every device, for people to see what came before an alert; they change nothing.

Axes: N slots, B rows, F channels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sentinel.model.kernel import NO_BAND, Band, remember
from sentinel.model.score import Scored
from sentinel.records import Floats, Ints

KEPT = 64  # ticks of each device
_PART = 12  # bytes of the time and the score of a tick, and of a channel's value and edges


class Recent:
    """A ring of KEPT ticks a device: time, score, and each channel's value and band.

    Holds: at most `most` bytes, 768 (F + 1) a device; slots beyond have none. Where a channel is added, all begins anew.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._channels, self._row = 0, _row(0)
        self._ticks = np.zeros((0, 0), dtype=np.float32)  # (N KEPT, words of a row)
        self._taken: Ints = np.zeros(0, dtype=np.int64)

    def take(
        self, slots: Ints, time: Floats, values: Floats, last: Floats, scored: Scored | None, band: Band | None
    ) -> None:
        """One tick of each of B devices, no two alike.

        Args:
            values: (B, F), NaN where not seen.
            last: the tick before, of all devices of the table, (N, F).
            band: of the detector that scored; None with `scored`.
        """
        self._fit(len(last), values.shape[1])
        b = len(slots)
        if scored is None or band is None:
            nothing = np.zeros((b, 0), dtype=np.float32)
            score, network = np.full(b, np.nan, dtype=np.float32), np.zeros(b, dtype=np.int64)
            forecasts, band = (nothing, nothing, nothing), NO_BAND
        else:
            score, network = scored.score, scored.network
            forecasts = scored.forecast, scored.location, scored.spread
        halves, values = np.ascontiguousarray(time).view(np.float32), np.ascontiguousarray(values)
        remember(self._ticks, self._taken, KEPT, slots, halves, values, last, band, score, *forecasts, network)

    def of(self, slot: int) -> npt.NDArray[Any]:
        """A device's ticks in order: records of `time`, `score`, `values`, `low` and `high`."""
        taken = int(self._taken[slot]) if slot < len(self._taken) else 0
        at = slot * KEPT + np.arange(max(taken - KEPT, 0), taken) % KEPT
        return self._ticks[at].view(self._row).reshape(-1)

    def forget(self, slot: int) -> None:
        """The device is gone."""
        if slot < len(self._taken):
            self._taken[slot] = 0

    def _fit(self, capacity: int, channels: int) -> None:
        """Have room for a table's slots, as far as there is any."""
        count = min(capacity, self._most // (KEPT * _PART * (channels + 1)))
        if channels == self._channels and count == len(self._taken):
            return
        row = _row(channels)
        ticks = np.zeros((count * KEPT, row.itemsize // 4), dtype=np.float32)
        taken = np.zeros(count, dtype=np.int64)
        if channels == self._channels:
            taken[: len(self._taken)] = self._taken
            ticks[: len(self._ticks)] = self._ticks
        self._channels, self._row, self._ticks, self._taken = channels, row, ticks, taken


def _row(channels: int) -> np.dtype[Any]:
    each = [(name, np.float32, (channels,)) for name in ("values", "low", "high")]
    return np.dtype([("time", np.float64), ("score", np.float32), *each])
