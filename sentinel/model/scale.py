"""Robust location and spread, kinds of channel, and the way between units and scaled values.

Two scales in turn keep float32 exact enough: the profile's (float64, in the channel's unit) brings any value
near 1, the device's (float32, in the profile's units) fits the device.

Axes: B rows, F channels, T ticks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentinel.records import Bools, Floats

LEAST_RUN = 30  # ticks of one value before a channel can count as stuck
RUN_FACTOR = 4  # times the longest run seen while healthy
COUNTERS_AT_LEAST = 0.9  # share of the series in which a counter grows


def location_and_spread(values: Floats) -> tuple[Floats, Floats]:
    """Robust location and spread of each column, both (F,), from (T, F) with NaN where missing.

    spread = max(IQR / 1.349, (P95 - P5) / 3.29, 0.1 sd); where that is 0, max(0.05 |median|, 1e-3).
    A column without a value has location 0 and spread 1.
    """
    known = ~np.isnan(values)
    empty = ~known.any(axis=0)
    filled = np.where(empty, 0.0, values)
    p5, p25, median, p75, p95 = np.nanpercentile(filled, [5, 25, 50, 75, 95], axis=0)
    spread = np.maximum(np.maximum((p75 - p25) / 1.349, (p95 - p5) / 3.29), 0.1 * np.nanstd(filled, axis=0))
    # A spread that is only rounding noise of the values is no spread.
    spread = np.where(spread <= 1e-9 * np.abs(median), 0.0, spread)
    spread = np.where(spread > 0, spread, np.maximum(0.05 * np.abs(median), 1e-3))
    return median, np.where(empty, 1.0, spread)


def counters(series: Sequence[Floats]) -> Bools:
    """Which channels of series (T, F) are counters and will be differenced, (F,): they grow in 90 % of the series.

    Series with at most 20 distinct values of a channel have no say in it.
    """
    out = np.zeros(series[0].shape[1], dtype=np.bool_)
    for f in range(len(out)):
        columns = [column for column in (_known(values, f) for values in series) if len(np.unique(column)) > 20]
        out[f] = bool(columns) and float(np.mean([_grows(column) for column in columns])) >= COUNTERS_AT_LEAST
    return out


def _known(values: Floats, channel: int) -> Floats:
    column: Floats = values[:, channel]
    return column[~np.isnan(column)]


def _grows(column: Floats) -> bool:
    """Whether values only ever grow, but for rare restarts: 0.5 % of the steps, to below half of what they were."""
    falls = np.flatnonzero(np.diff(column) < 0)
    before, after = column[falls], column[falls + 1]
    return len(falls) <= max(1.0, 0.005 * (len(column) - 1)) and bool(((after >= 0) & (after < before / 2)).all())


def last_seen(values: Floats) -> Floats:
    """Values (T, F) with each missing one replaced by the last seen before it; NaN where there was none."""
    rows = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    out: Floats = np.take_along_axis(values, np.maximum.accumulate(rows, axis=0), axis=0)
    return out


def longest_runs(series: Sequence[Floats]) -> Floats:
    """Longest run of one value in each channel of series (T, F), in ticks, (F,).

    Infinite where that says nothing of health: in more than half of the series with 100 values (of the longest, where
    none has as many) `longest_run` is infinite.
    """
    runs = np.array([longest_run(values) for values in series])
    known = np.array([(~np.isnan(values)).sum(axis=0) for values in series])
    asked = known >= np.minimum(known.max(axis=0), 100)
    finite = np.isfinite(runs)
    most = np.where(finite, runs, -np.inf).max(axis=0)
    out: Floats = np.where(2 * (finite & asked).sum(axis=0) >= asked.sum(axis=0), most, np.inf)
    return out


def longest_run(values: Floats) -> Floats:
    """Longest run of one value in each column of (T, F), in ticks, (F,).

    Infinite where that says nothing of health: at most two distinct values, or runs over a twentieth of the ticks.
    """
    out = np.full(values.shape[1], np.inf)
    for f in range(values.shape[1]):
        column = _known(values, f)
        if len(np.unique(column)) > 2:
            edges = np.flatnonzero(np.diff(column) != 0)
            run = float(np.max(np.diff(np.concatenate([[-1], edges, [len(column) - 1]]))))
            if run <= max(0.05 * len(column), 5.0):
                out[f] = run
    return out


def stuck_after(longest: Floats) -> Floats:
    """Run of one value that is one too long, in ticks, (F,), from the longest healthy ones."""
    out: Floats = np.maximum(LEAST_RUN, RUN_FACTOR * longest)
    return out


def learned_run(before: Floats, seen: Floats) -> Floats:
    """Longest healthy run, (F,), after longer ones were seen: one that would have been an alert was not healthy."""
    longer = np.where(seen < stuck_after(before), np.maximum(seen, before), before)
    out: Floats = np.where(np.isinf(before), seen, longer)
    return out


@dataclass(frozen=True, slots=True)
class ProfileScale:
    """From the channels' units to the profile's scaled units.

    Attributes:
        location, spread: in the channel's unit, (F,).
        counter: channels replaced by their first difference, (F,).
    """

    location: Floats
    spread: Floats
    counter: Bools

    def scaled(self, values: Floats, previous: Floats) -> Floats:
        """Values (B, F) in the profile's units; NaN stays NaN.

        Args:
            previous: each device's previous values, (B, F), NaN where there are none; for counters only.
                A counter that fell restarted: its difference is 0. One without a previous value is missing.
        """
        if self.counter.any():
            step = values - previous
            values = np.where(self.counter, np.where(step < 0, 0.0, step), values)
        out: Floats = (values - self.location) / self.spread
        return out
