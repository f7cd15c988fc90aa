"""Rules that need no model: range, rate, stuck, gap. (Silence is a timer's, see the pipeline.)

Axes: B rows, F channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentinel.model.scale import stuck_after
from sentinel.records import AlertKind, Bools, Channel, Floats, ProfileSpec
from sentinel.stream.align import Batch
from sentinel.stream.devices import DeviceTable

RULES: tuple[AlertKind, ...] = ("range", "rate", "stuck", "gap")


@dataclass(frozen=True, slots=True)
class Broken:
    """Which rules a batch broke: `by_channel[rule]` (B, F); gap concerns no channel. `any` is (B, rules)."""

    any: Bools
    by_channel: dict[AlertKind, Bools]


class Rules:
    """The rules of one profile, vectorised over a batch."""

    def __init__(self, spec: ProfileSpec) -> None:
        self._spec = spec
        self._width = -1
        self._longest: Floats | None = None

    def learned(self, channels: Sequence[str], trained: Sequence[str], longest_run: Floats) -> None:
        """Take the longest healthy runs of one value, (F,) of the trained channels; they bound the stuck rule."""
        run = dict(zip(trained, longest_run.tolist(), strict=True))
        self._longest = np.array([run.get(name, np.inf) for name in channels])

    def _limits(self, channels: Sequence[str]) -> None:
        given = {channel.name: channel for channel in self._spec.channels or ()}
        every = [given.get(name, Channel(name)) for name in channels]
        self._min = np.array([-np.inf if c.min is None else c.min for c in every])
        self._max = np.array([np.inf if c.max is None else c.max for c in every])
        self._rate = np.array([np.inf if c.max_rate is None else c.max_rate for c in every])
        self._bounded = bool(np.isfinite(self._min).any() or np.isfinite(self._max).any())
        self._rated = bool(np.isfinite(self._rate).any())
        self._width = len(channels)

    def _stuck_after(self) -> Floats | None:
        """Run of one value that is one too long, (F,); None: the rule is off or nothing is known yet."""
        if self._spec.stuck_after is not None:
            return np.full(self._width, float(self._spec.stuck_after)) if self._spec.stuck_after else None
        if self._longest is None:
            return None
        longest = np.full(self._width, np.inf)
        longest[: len(self._longest)] = self._longest[: self._width]
        return stuck_after(longest)

    def judge(self, batch: Batch, dt: Floats, table: DeviceTable, channels: Sequence[str]) -> Broken:
        """Judge ticks before the table takes them up; `dt` (B,) is NaN at a device's first tick."""
        if self._width != len(channels):
            self._limits(channels)
        rules: dict[AlertKind, Bools] = {}
        x = batch.values
        with np.errstate(invalid="ignore", divide="ignore"):
            if self._bounded:
                rules["range"] = (x < self._min) | (x > self._max)
            if self._rated:
                lapse = batch.time[:, None] - table.at[batch.slots]
                rules["rate"] = (np.abs(x - table.last[batch.slots]) > self._rate * lapse) & (lapse > 0)
            limit = self._stuck_after()
            if limit is not None:
                same = x == table.last[batch.slots]
                rules["stuck"] = same & (table.run[batch.slots] + 1 >= limit)
        broken = np.zeros((len(batch), len(RULES)), dtype=np.bool_)
        for at, rule in enumerate(RULES):
            if rule in rules:
                broken[:, at] = rules[rule].any(axis=1)
        if self._spec.max_gap is not None:
            broken[:, RULES.index("gap")] = dt > self._spec.max_gap
        return Broken(broken, rules)
