"""How the two labelled benchmarks are scored, as functions of arrays.

Axes: n rows of one file, W of its windows.

NAB: Lavin and Ahmad 2015, "Evaluating Real-time Anomaly Detection Algorithms – the Numenta Anomaly Benchmark".
SKAB: Katser and Kozitsin 2020, "Skoltech Anomaly Benchmark", the outlier problem.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sentinel.records import Bools, Floats, Ints

PROBATION_SHARE, PROBATION_MOST = 0.15, 750


class Costs(NamedTuple):
    """What NAB gives for a window hit at its left edge, and takes for a far false alarm and for a missed window."""

    hit: float
    false: float
    missed: float


PROFILES = {
    "standard": Costs(1.0, 0.11, 1.0),
    "reward_low_FP_rate": Costs(1.0, 0.22, 1.0),
    "reward_low_FN_rate": Costs(1.0, 0.11, 2.0),
}


@dataclass(frozen=True, slots=True)
class Judged:
    """What a detection in each row of one NAB file is worth.

    Attributes:
        window: which window a row is in, (n,); -1: none.
        worth: in a window 0 to 1, of `hit`; outside -1 to 0, of `false`; 0 in the probation, which counts for nothing.
        windows: W.
    """

    window: Ints
    worth: Floats
    windows: int


def probation(rows: int) -> int:
    """Rows of a file at its start that NAB does not score."""
    return min(int(PROBATION_SHARE * rows), PROBATION_MOST)


def window_rows(times: Sequence[str], windows: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """First and last row of each window, both inclusive: the first row with its start time and with its end time.

    Args:
        times: of the rows, as the file has them.
        windows: start and end; fractions of a second are left out. ValueError if no row has that time.
    """
    return [(times.index(start.split(".")[0]), times.index(end.split(".")[0])) for start, end in windows]


def judge(rows: int, windows: Sequence[tuple[int, int]]) -> Judged:
    """Windows, in order and apart from each other, to what a detection is worth in each of n rows.

    S(y) = 2 / (1 + exp(5 y)) - 1, and -1 for y > 3. In a window of w rows that ends with row r, row i is worth
    S(-(r - i + 1) / w) / S(-1); after it, and before the next, S((i - r) / (w - 1)); before the first, -1.
    """
    row = np.arange(rows)
    window, worth = np.full(rows, -1), np.full(rows, -1.0)
    for at, (first, last) in enumerate(windows):
        width = last - first + 1
        worth[last + 1 :] = _sigmoid((row[last + 1 :] - last) / max(width - 1, 1))
        inside = slice(first, last + 1)
        window[inside] = at
        worth[inside] = _sigmoid(-(last - row[inside] + 1) / width) / _sigmoid(np.array(-1.0))
    worth[: probation(rows)] = 0.0
    return Judged(window, worth, len(windows))


def nab_score(files: Sequence[Judged], scores: Sequence[Floats], costs: Costs, threshold: float) -> float:
    """NAB's final score, 100 for perfect and 0 for never firing; NaN without windows.

    A window is worth its best detection, false alarms add up.

    Args:
        scores: of each file's rows, (n,) each; a row is a detection where its score reaches the threshold.
    """
    gain = 0.0  # over a detector that never fires
    for file, score in zip(files, scores, strict=True):
        hits = score >= threshold
        gain += costs.false * float(file.worth[hits & (file.window < 0)].sum())
        for at in range(file.windows):
            best = float(file.worth[hits & (file.window == at)].max(initial=0.0))
            gain += costs.hit * best + costs.missed if best else 0.0
    return _final(gain, files, costs)


def nab_sweep(files: Sequence[Judged], scores: Sequence[Floats], costs: Costs) -> tuple[Floats, Floats]:
    """Every threshold that makes a difference, falling from infinity, and NAB's final score at each, (K,) each.

    One pass: as the threshold falls past a row, that row adds its false alarm, or what it is worth above the best
    detection so far in its window.
    """
    first = np.concatenate([[0], np.cumsum([file.windows for file in files])])
    window = np.concatenate([np.where(f.window < 0, -1, f.window + at) for f, at in zip(files, first, strict=False)])
    worth, score = np.concatenate([file.worth for file in files]), np.concatenate(scores)
    order = np.flatnonzero(worth)
    order = order[np.argsort(-score[order], kind="stable")]
    window, worth, score = window[order], worth[order], score[order]
    gain = costs.false * worth
    inside = np.flatnonzero(window >= 0)
    inside = inside[np.argsort(window[inside], kind="stable")]
    for rows in np.split(inside, np.flatnonzero(np.diff(window[inside])) + 1):
        gain[rows] = np.diff(np.maximum.accumulate(costs.hit * worth[rows]), prepend=-costs.missed)
    last = np.flatnonzero(np.diff(score, append=-np.inf))  # of the rows of one score
    totals = np.concatenate([[0.0], np.cumsum(gain)[last]])
    return np.concatenate([[np.inf], score[last]]), np.array([_final(gain, files, costs) for gain in totals.tolist()])


def nab_best(files: Sequence[Judged], scores: Sequence[Floats], costs: Costs) -> tuple[float, float]:
    """The threshold that gives the highest final score on these files, the highest of several, and that score."""
    thresholds, finals = nab_sweep(files, scores, costs)
    at = int(np.argmax(finals))
    return float(thresholds[at]), float(finals[at])


def _sigmoid(y: Floats) -> Floats:
    return np.where(y > 3, -1.0, 2 / (1 + np.exp(5 * np.minimum(y, 3))) - 1)


def _final(gain: float, files: Sequence[Judged], costs: Costs) -> float:
    windows = sum(file.windows for file in files)
    return 100 * gain / (windows * (costs.hit + costs.missed)) if windows else math.nan


@dataclass(frozen=True, slots=True)
class Flags:
    """How well rows were flagged, counts summed over files.

    Attributes:
        f1, far, mar: F1, false-alarm rate FP / (FP + TN), missed-alarm rate FN / (FN + TP), 0 to 1; NaN for 0 / 0.
        events, found: runs of anomalous rows; those in which a row is flagged.
        delays: rows from an event's first to its first flagged one, of those found.
    """

    f1: float
    far: float
    mar: float
    events: int
    delays: tuple[int, ...]

    @property
    def found(self) -> int:
        return len(self.delays)

    def delay(self, share: float) -> float:
        """Quantile of the delays in rows; NaN where nothing was found."""
        return float(np.quantile(self.delays, share)) if self.delays else math.nan


def judge_flags(truths: Sequence[Bools], flags: Sequence[Bools]) -> Flags:
    """Point-wise and unadjusted, over the test rows of each file, (n,) each. An event may begin with the first row."""
    truth, flag = np.concatenate(truths), np.concatenate(flags)
    hit, false = int((truth & flag).sum()), int((flag & ~truth).sum())
    missed, right = int((truth & ~flag).sum()), int((~truth & ~flag).sum())
    events, delays = 0, []
    for one, raised in zip(truths, flags, strict=True):
        edges = np.flatnonzero(np.diff(one.astype(np.int8), prepend=0, append=0))
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            events += 1
            delays += np.flatnonzero(raised[first:end])[:1].tolist()
    return Flags(
        f1=_ratio(hit, hit + (false + missed) / 2),
        far=_ratio(false, false + right),
        mar=_ratio(missed, missed + hit),
        events=events,
        delays=tuple(delays),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
