"""Which few of the ticks that are learned from first stand apart from all others: a fault while learning is no health.

Axes: T ticks of one device, F channels, K heads.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sentinel.model.kernel import FLOOR, QUANTUM, WINDOWS
from sentinel.records import Bools, Floats

LEAST_TICKS = 200  # that tell what is usual
# In spreads of the window means' lower half: 15 is reached by none of 72 healthy devices, where an unseen part of the day
# reaches 14, and by a spike of 6 sd over 10 ticks in 9 of 12 devices of the simulated kinds, of 20 sd in all.
PEAK, EXTENT = 15.0, 10.0
MOST_EPISODES, MOST_SHARE = 2, 1 / 3  # what comes more often, or lasts longer, is how the device is
MOST_DEVICES, SHARE_OF_DEVICES = 2, 0.1  # what more of them show in one channel is how the fleet is
DISTINCT = 20  # values of a channel that is judged: one that seldom switches is no fault


class Episode(NamedTuple):
    """Ticks [begin, end) that stand apart, the most in one channel."""

    begin: int
    end: int
    channel: int


def faults(found: Sequence[list[Episode]]) -> list[list[Episode]]:
    """Of the devices' episodes those that are not how the fleet is: few devices have one in the same channel."""
    devices = Counter(channel for episodes in found for channel in {episode.channel for episode in episodes})
    most = max(MOST_DEVICES, SHARE_OF_DEVICES * len(found))
    return [[episode for episode in episodes if devices[episode.channel] <= most] for episodes in found]


def episodes(quanta: npt.NDArray[np.int16], values: Floats, first: int, far: int) -> list[Episode]:
    """Stretches of ticks whose errors stand apart, at most two, no more than a third of all; else none.

    What is held against its median and its 10th percentile is the mean |error| over 10 and 30 ticks, of each head and
    channel. What lies closer together than the farthest forecast and a window is one stretch: a fault spoils the forecasts
    made in it, too.

    Args:
        quanta: errors, (T, K F), head by head; 0 where there is none.
        values: (T, F), NaN where missing.
        first: tick from which errors are those of ticks that the network does not know.
        far: the farthest horizon, in ticks.
    """
    count = len(quanta)
    if count < LEAST_TICKS:
        return []
    f = values.shape[1]
    judged = np.array([len(np.unique(x[~np.isnan(x)])) > DISTINCT for x in values.T])
    error = np.abs(quanta.astype(np.float64)) / QUANTUM
    error[:, ~np.tile(judged, quanta.shape[1] // f)] = 0.0
    by = np.zeros((count, f))
    for window in WINDOWS[:2]:
        off = _away(error, window, first).reshape(count - window + 1, -1, f).max(1)
        np.maximum(by[window - 1 :], off, out=by[window - 1 :])
    away = by.max(1)
    if away.max() < PEAK:
        return []
    at = np.flatnonzero(away >= EXTENT)
    runs = np.split(at, np.flatnonzero(np.diff(at) > far + max(WINDOWS)) + 1)
    # A window that stands apart began before the tick at which it does.
    found = [
        Episode(max(int(run[0]) - WINDOWS[0] + 1, 0), int(run[-1]) + 1, int(by[run].max(0).argmax()))
        for run in runs
        if away[run].max() >= PEAK
    ]
    if len(found) > MOST_EPISODES or sum(each.end - each.begin for each in found) > MOST_SHARE * count:
        return []
    return found


def _away(error: Floats, window: int, first: int) -> Floats:
    """How far the mean of each window of ticks, that ends at tick `window` - 1 and later, is off, (T', K F)."""
    means = _mean(error, window)
    usual = means[first if first < len(means) - LEAST_TICKS // 2 else 0 :]
    told: Bools = (~np.isnan(usual)).sum(0) >= LEAST_TICKS // 2
    out = np.zeros(means.shape)
    if told.any():
        low, middle = np.nanpercentile(usual[:, told], [10, 50], axis=0)
        out[:, told] = np.nan_to_num((means[:, told] - middle) / ((middle - low) / 1.2816 + FLOOR), nan=0.0)
    return out


def _mean(error: Floats, window: int) -> Floats:
    """Means over windows; NaN where more than half of one is missing."""
    none = np.zeros((1, error.shape[1]))
    sums: Floats = np.cumsum(np.vstack([none, error]), axis=0)
    counts: Floats = np.cumsum(np.vstack([none, error > 0]), axis=0)
    known = counts[window:] - counts[:-window]
    out: Floats = np.where(2 * known >= window, (sums[window:] - sums[:-window]) / np.maximum(known, 1.0), np.nan)
    return out
