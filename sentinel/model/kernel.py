"""The arithmetic of a tick around the network, compiled: one device at a time, so that no row depends on another.

Axes: B rows, N slots, F channels, K heads, P horizons, D bins of a day, I inputs, G rows of the shift reference.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba.core import event as events

from sentinel.model.features import DAY, EWMA_RATE
from sentinel.model.scale import ProfileScale
from sentinel.model.slabs import FIELDS, RING, Layout, Slabs

P = ParamSpec("P")
R = TypeVar("R")
F4 = npt.NDArray[np.float32]
F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]
Scalar = Any  # a float of either width

SIGMAS = 3.0  # from what was expected to the edge of its band
SINH_LIMIT = np.float32(14.0)  # of what is brought back to the device's linear scale
EXP_LIMIT = np.exp(SINH_LIMIT)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)
LIMIT = 1e6  # scaled values are clipped here; keeps float32 arithmetic finite
QUANTUM = 1638.0  # errors are kept as int16 at 1/1638: the clip of ±20 fits, and window sums stay exact
ERROR_LIMIT = 20.0
# Ticks of a new device of a mixed fleet before it is judged (24 + 16 + 1 < 50), which count as one observation of where it
# lies; and those in which it is placed ever better. Placed by the first 24 alone, 10 to 12 of 12 new pumps of a declared
# profile, 4 of one that learns live, had a false alarm in their first ten minutes; with 600 and `doubt_of` none. Faults of 3
# and 6 sd in the first 60 to 1000 ticks are told as before.
WARM, PLACED = 24.0, 600.0
SETTLE = 16  # ticks of a fresh state that are not judged; training leaves as many unscored
# Mean |e| over the first two, |mean e| over the others; an EWMA costs 2 points of NAB, measured.
WINDOWS = (10, 30, 5, 20)
MAGNITUDES = 2
MEMORY = 1500.0  # ticks of the short memory; 600 and 5000 cost 1.3 points of NAB each, measured
# Ticks that running statistics learn at once. Learned tick by tick, what lasts k of n ticks is never more than
# sqrt(n / k) sd away, whatever its size: at 1 Hz and 1/week, 50 sd of drift went untold. NAB standard / low FP at
# T0 = 2: 75.5 / 68.2 by tick and by 32, 76.0 / 68.7 by 64, 76.5 / 69.1 by 128.
BLOCK = 64
# Ticks of the first blocks whose maxima tell a device's own tail; blocks that say something, and that make blocks longer.
TAIL_BLOCK, TAIL_LEAST, TAIL_MOST = 400, 16, 64
TAIL_SHARE = 20  # blocks in a budgeted interval, at least
EULER, GUMBEL = 0.5772156649, 0.7796968012  # of a Gumbel law: mean - location over scale, scale over sd
LEAST = 30.0  # ticks of calibration before a head is believed
FLOOR = 0.02  # in robust spreads: a deviation under 2 % of the normal range is nobody's anomaly
CEILING = 12.0  # of z
# Of the threshold, and of the threshold as the controller has raised it, so that what lasts can always be told. Raised no
# higher than 9 it could not hold the budget of heavy-tailed devices.
MOST_LEVEL, MOST_RAISED = 9.0, 11.0
RANGE_WEIGHT, RANGE_PER_LEVEL, MOST_RANGE = 6.0, 3.5, 10.0
RANGE_AFTER = 100.0
# Times that excess, where there are several channels: the windows see it besides. Fleets of 8 and 60 channels of t5 noise
# that swings with the day: 1.9 to 9 times the budget with 1, 0.9 to 1.3 with 1.7, 0.4 to 1.1 with 2.5. NAB, one channel, is
# 0.9 points lower with 2.5.
OF_SEVERAL = 2.5
LEAST_EXCESS = 0.02  # of the range so far
RAISE, RAISE_REFERENCE, RAISE_LIMIT = 0.35, 1.0, 3.0  # g, b_ref, b_max of the controller
# Tail of block maxima of healthy channels. 2.0, where statistics that learned tick by tick asked for 1.7: NAB standard / low
# FP 75.8 / 67.9 with 1.6 to 1.8, 76.4 / 69.8 with 1.9 to 2.1, 76.1 / 70.8 with 2.2 to 2.4. 1.2, where they asked for 0.9:
# simulated channels of autocorrelated noise reach 2.6, 4.0 and 5.6 once in 2,000, 10,000 and 30,000 ticks.
PRIOR_LEVEL, PRIOR_SLOPE, PRIOR_TICKS = 2.0, 1.2, 2000.0
ALONE_SLOPE = 1.5  # by which a channel alone has to stand out more among many, per ln F, where a recording was declared
SHIFT_RATE = 2 / 46  # EWMA of the shift statistic
SHIFT_LIMIT = 3.6  # times its maximum over clean ticks
# Share by which declared statistics follow what comes, at most 3 sd at once: a slow drift is followed, an event is not.
# SKAB: F1 0.834 without, 0.836, 0.837 and 0.833 with 1/1500, 1/500 and 1/200. ETT, a year after three declared months:
# 38, 31 and 28 % of the rows flagged; simulated plants under attack: F1 0.59, -, 0.55.
FOLLOWS, MOST_AT_ONCE = 1 / 500, np.float32(3.0)
# The same of the slow means' centre while they are within their limit: what drifts 3 sd in 6,000 ticks is then followed
# before it is flagged (20 % of the time with 3, 1.4 % with 12). SKAB: F1 0.838 with 3, 0.836 with 12, 0.834 at 1/200.
MOST_UNFLAGGED = np.float32(12.0)
# Share by which their variances do, to at most so many times the declared sd: a season that a recording has not seen is
# less predictable, too. Of two years of transformers and air, flagged / of long faults held beyond the clean copy: 16 / 49 %
# without, 15 / 47 % to 3 times, 13 / 51 % to 6, 11 / 51 % to 12.
WIDENS, WIDEST = 1 / 1500, np.float32(6.0)
EARLIEST_SHIFT = 80  # ticks before the slow means are believed
MOST_VISITS = 255
ROUNDING = 1e-6  # of a bin: a tick at its beginning is in it
LASTING, SETTLED_AT = 1500.0, 0.632  # ticks of an alarm, or as many in ever longer ones, that ask for a new normal
SETTLED_PRIOR = 100.0  # ticks that the declared statistics then count for
# Ticks of live calibration at which the threshold is twice its level: statistics of few ticks, which hang together over
# 30, are uncertain. NAB standard / low FP: 71.1 / 61.9 with 50, 71.5 / 62.7 with 100, 72.2 / 63.8 with 200, 71.8 / 63.9
# with 300.
UNSURE = 200.0
(
    _M,
    _S,
    _LAST,
    _MEAN,
    _LO,
    _HI,
    _V1,
    _V2,
    _VARIED,
    _ACCEPTED,
    _PEAK,
    _SHIFT,
    _CENTRE,
    _SUMS,
    _CALIBRATION,
    _PENDING,
    _N,
    _WAITING,
    _TICK,
    _SINCE,
    _WARM,
    _PLACED,
    _TAIL,
    _RAISED,
    _FROZEN,
    _ALARMED,
    _GROUP,
    _NETWORK,
    _INTERVAL,
    _REFRACTORY,
) = range(len(FIELDS))


class _First(events.Listener):
    """Tells of the first compilation alone."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: events.Event) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def on_end(self, event: events.Event) -> None:
        pass


def first_compilation(tell: Callable[[], None]) -> AbstractContextManager[object]:
    """For the time of a `with`: `tell` is called once, before anything is compiled; not where all of it is kept."""
    found: AbstractContextManager[object] = events.install_listener("numba:compile", _First(tell))
    return found


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at first use, and keep the result where there is a place to."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        made: Callable[P, R] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write the result to
        made = numba.njit(**options)(function)
    return made


class Frame(NamedTuple):
    """Where things lie.

    Attributes:
        at: offset of each field of a record, in the order of `FIELDS`.
        horizons, offsets: of the forecasts ahead, (P,).
        spread: of the devices' locations, (F,).
        mixed: whether any of them is not 0.
    """

    at: I8
    horizons: I8
    offsets: I8
    heads: int
    channels: int
    period: int
    bins: int
    spread: F4
    mixed: bool

    @staticmethod
    def of(layout: Layout, spread: F4) -> "Frame":
        """From a layout."""
        return Frame(
            np.array([layout.fields[name][0] for name in FIELDS]),
            np.array(layout.spec.horizons),
            np.array(layout.offsets),
            layout.heads,
            layout.channels,
            layout.period,
            layout.bins,
            spread,
            bool((spread > 0).any()),
        )


class Rings(NamedTuple):
    """The devices' memory but for the recurrent state; see `Slabs`."""

    records: F4
    ahead: F4
    errors: npt.NDArray[np.int16]
    daily: F4
    visits: npt.NDArray[np.uint8]

    @staticmethod
    def of(slabs: Slabs) -> "Rings":
        """Views of it, not copies."""
        return Rings(slabs.records, slabs.ahead, slabs.errors, slabs.daily, slabs.visits)


class Judgement(NamedTuple):
    """What decides: gates by channel, the budget, the shift reference.

    Attributes:
        least, up, down: gates, (F,): least deviation in profile units, 1 where that direction counts.
        declared: the user vouched for what was learned.
        budget: alerts per second and device.
        level: surprise of one channel that is the threshold; NaN: from the budget and the device's interval.
        given: the user gave that level.
        precision, most: of the shift reference, (G, 2, F, F) and (G, 2); G = 0: there is none.
    """

    least: F4
    up: F4
    down: F4
    gated: bool
    declared: bool
    budget: float
    level: float
    given: bool
    precision: F4
    most: F4
    values_only: bool


class Band(NamedTuple):
    """From forecasts to the band of what was expected, in the channels' units.

    Attributes:
        columns: of the F channels that are forecast, in ticks, (F,).
        reach: exp of what lies between a forecast and the edges, by network, (…, F).
        location, spread, counter: see `ProfileScale`, (F,).
    """

    columns: I8
    reach: F4
    location: F8
    spread: F8
    counter: npt.NDArray[np.bool_]

    @staticmethod
    def of(scale: ProfileScale, sigma: F4, columns: I8) -> "Band":
        """Of a detector's scale and sigmas."""
        return Band(columns, np.exp(np.float32(SIGMAS) * sigma), scale.location, scale.spread, scale.counter)


NO_BAND = Band(
    np.zeros(0, np.int64), np.zeros((1, 0), np.float32), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.bool_)
)


class Verdicts(NamedTuple):
    """Where the outcome goes: see `Scored`."""

    score: F4
    surprise: F4
    p_value: F4
    own: F4
    forecast: F4
    location: F4
    spread: F4
    shift: F4
    highest: F4
    together: F4
    joint: F4
    count: F4  # type: ignore[assignment] # hides tuple's own
    unsure: F4
    tail: F4
    slope: F4
    alarm: F4
    highest_rare: F4
    together_rare: F4
    settled: npt.NDArray[np.bool_]


@compiled
def features_of(
    y: F4,
    seen: npt.NDArray[np.bool_],
    interval: float,
    clock: F4,
    last: F4,
    mean: F4,
    fresh: bool,
    time: float,
    usual: float,
    daily: F4,
    visits: npt.NDArray[np.uint8],
    out: F4,
) -> None:
    """Inputs of one tick, written to `out` (I,), clipped to ±6; `last`, `mean`, `daily` and `visits` learn from it.

    Args:
        y: scaled values, (F,), 0 where not seen.
        interval: `relative_interval`.
        clock: `calendar`, (8,) or (0,).
        last, mean: each channel's last seen value and its slow mean, (F,).
        fresh: the state begins with this tick.
        time: event time.
        usual: seconds between ticks.
        daily, visits: (D, 2, F) and (D, F).
    """
    f, bins = len(y), len(visits)
    now = after = 0
    if bins:
        now = min(int((time % DAY) * bins / DAY + ROUNDING), bins - 1)
        after = min(int(((time + usual) % DAY) * bins / DAY + ROUNDING), bins - 1)
    at = 4 * f + 1 + len(clock)
    known = 0.0
    for j in range(f):
        value = min(max(y[j], np.float32(-8.0)), np.float32(8.0))
        if fresh:
            last[j] = mean[j] = value if seen[j] else np.float32(0.0)
        if not seen[j]:
            value = last[j]
        before = last[j]
        slow = mean[j] + np.float32(EWMA_RATE) * (value - mean[j])
        out[j] = value if seen[j] else np.float32(0.0)
        out[f + j] = value - before
        out[2 * f + j] = value - slow
        out[3 * f + j] = 0.0 if seen[j] else 1.0
        last[j], mean[j] = value, slow
        if bins:
            if seen[j]:
                count = visits[now, j]
                rate = np.float32(max(1.0 / (count + 1.0), 0.15))
                daily[now, 0, j] += rate * (value - daily[now, 0, j])
                if count < MOST_VISITS:
                    visits[now, j] = count + 1
            usually = visits[after, j] > 0
            known += 1.0 if usually else 0.0
            out[at + j] = daily[after, 0, j] - value if usually else np.float32(0.0)
            out[at + f + j] = daily[after, 1, j] - value if usually else np.float32(0.0)
            if seen[j]:
                daily[now, 1, j] = value
    out[4 * f] = interval
    for j in range(len(clock)):
        out[4 * f + 1 + j] = clock[j]
    if bins:
        out[at + 2 * f] = known / f
    for j in range(len(out)):
        out[j] = min(max(out[j], np.float32(-6.0)), np.float32(6.0))


@compiled
def prepare(
    frame: Frame,
    rings: Rings,
    slots: I8,
    x: F4,
    dt: F8,
    interval: F4,
    time: F8,
    clock: F4,
    reset: npt.NDArray[np.bool_],
    linear: F4,
    y: F4,
    inputs: F4,
    alive: F4,
) -> None:
    """Place each tick on its device's scale, and make the network's inputs.

    Args:
        x: in profile units, (B, F), NaN where not seen.
        dt: seconds since the tick before, (B,).
        linear, y, inputs, alive: to be written: (B, F) on the device's scale, NaN where not seen; the same through
            asinh, 0 where not seen; (B, I); and 1 for a state that goes on, (B,).
    """
    f, at = frame.channels, frame.at
    seen = np.empty(f, dtype=np.bool_)
    for i in range(len(slots)):
        record = rings.records[slots[i]]
        if reset[i]:
            record[at[_SINCE]] = 0.0
        fresh = record[at[_SINCE]] == 0.0
        if fresh:
            record[at[_TICK]] = 0.0
            record[at[_SUMS] : at[_SUMS] + 4 * frame.heads * f] = 0.0
        alive[i] = 0.0 if fresh else 1.0
        m, s = record[at[_M] : at[_M] + f], record[at[_S] : at[_S] + f]
        begun = True
        if frame.mixed:
            warm = record[at[_WARM]]
            begun = warm >= WARM
            if warm < PLACED:
                record[at[_WARM]] = warm + 1.0
                for j in range(f):
                    if frame.spread[j] > 0 and not math.isnan(x[i, j]):
                        # Posterior mean under a normal prior over the fleet's locations, one observation every WARM ticks.
                        # A fault must not place the device: a value counts for at most 3 sd of what is expected of it.
                        most = 3.0 * math.sqrt(1.0 / certainty(frame.spread[j], s[j], warm) + s[j] ** 2)
                        away = min(max(x[i, j] - m[j], -most), most)
                        m[j] += away / (WARM * (s[j] / frame.spread[j]) ** 2 + warm + 1.0)
        for j in range(f):
            seen[j] = begun and not math.isnan(x[i, j])
            linear[i, j], y[i, j] = np.nan, 0.0
            if seen[j]:
                linear[i, j] = min(max((x[i, j] - m[j]) / s[j], np.float32(-LIMIT)), np.float32(LIMIT))
                y[i, j] = math.asinh(linear[i, j])
        features_of(
            y[i],
            seen,
            0.0 if fresh else interval[i],
            clock[i],
            record[at[_LAST] : at[_LAST] + f],
            record[at[_MEAN] : at[_MEAN] + f],
            fresh,
            time[i],
            record[at[_INTERVAL]],
            rings.daily[slots[i]],
            rings.visits[slots[i]],
            inputs[i],
        )
        for j in range(f):
            y[i, j] = min(max(y[i, j], np.float32(-8.0)), np.float32(8.0))


@compiled
def squashed(values: F4) -> F4:
    """asinh of scaled values, (N,), within ±8, to the last bit as `prepare` has it: numpy's own depends on the CPU."""
    out = np.empty_like(values)
    for i in range(len(values)):
        out[i] = min(max(np.float32(math.asinh(values[i])), np.float32(-8.0)), np.float32(8.0))
    return out


@compiled
def gate(judgement: Judgement, j: int, deviation: Scalar, s: float) -> float:
    """A deviation of channel j, on the device's scale; 0 where the user's gates say that it does not count."""
    if abs(deviation) * s < judgement.least[j]:
        return 0.0
    return float(deviation) if (judgement.up[j] if deviation > 0 else judgement.down[j]) > 0 else 0.0


@compiled
def ranked(value: Scalar, highest: tuple[Scalar, Scalar, Scalar]) -> tuple[Scalar, Scalar, Scalar]:
    """The three highest of four."""
    first, second, third = highest
    if value > first:
        return value, first, second
    if value > second:
        return first, value, second
    return first, second, max(third, value)


@compiled
def certainty(spread: float, s: Scalar, warm: Scalar) -> float:
    """What is known of where a new device lies after `warm` ticks of it: one over the variance of its location."""
    return float(1.0 / spread**2 + warm / (WARM * s**2))


@compiled
def doubt_of(spread: float, s: Scalar, warm: Scalar) -> float:
    """How far a new device may lie from where it is placed, on its own scale: two sd of its location, less and less, and 0
    once it is placed.

    Args:
        spread: of the fleet's locations; 0: they are all alike.
        s: the device's own.
        warm: ticks that told where it lies.
    """
    if spread <= 0.0 or warm >= PLACED:
        return 0.0
    return float(2.0 * (1.0 - warm / PLACED) / (math.sqrt(certainty(spread, s, warm)) * s))


@compiled
def beyond_doubt(deviation: Scalar, doubt: float) -> float:
    """What is left of a deviation."""
    return math.copysign(max(abs(deviation) - doubt, 0.0), deviation)


@compiled
def varied_of(linear: F4, varied: F4, v1: F4, v2: F4, frozen: bool) -> float:
    """Note which channels have shown a third value so far, and count them.

    A channel of which a declared recording had no value is never scored: nothing says what is normal.
    """
    count = 0.0
    for j in range(len(linear)):
        value = linear[j]
        if varied[j] == 0.0 and not math.isnan(value):
            if math.isnan(v1[j]):
                if not frozen:
                    v1[j] = value
            elif value != v1[j]:
                if math.isnan(v2[j]):
                    v2[j] = value
                elif value != v2[j]:
                    varied[j] = 1.0
        count += varied[j]
    return count


@compiled
def level_of(
    level: float, budget: float, interval: float, count: Scalar, tail: Scalar = math.nan, slope: Scalar = math.nan
) -> float:
    """Surprise that one healthy channel exceeds once a budgeted interval.

    2.0 + 1.2 ln(max(N / 2000, 1)) with N = 1 / (budget x interval) ticks: the exponential tail of block maxima, fitted
    to healthy channels of five public data sets. The device's own tail may lower it down to 2.0, and never raises it:
    it knows its anomalies too.

    Args:
        level: what it is regardless; NaN: from the budget.
        budget: alerts per second and device.
        interval: seconds between ticks.
        count: channels of which the highest counts.
        tail, slope: `tail_of`.
    """
    if not math.isnan(level):
        return level
    n = 1.0 / (budget * interval)
    prior = min(PRIOR_LEVEL + PRIOR_SLOPE * math.log(max(n / PRIOR_TICKS, 1.0)), MOST_LEVEL)
    if math.isnan(tail):
        return prior
    own: float = tail + slope * math.log(n) - PRIOR_SLOPE * math.log(count)
    return max(min(prior, own), PRIOR_LEVEL)


@compiled
def tail_of(kept: F4) -> tuple[float, float]:
    """Tail and slope of a device's own surprise: it exceeds tail + slope ln N once in N ticks; NaN: not known yet.

    Maxima of blocks of M ticks follow a Gumbel law, whose location moves by its scale ln 2 as M doubles (Fisher and
    Tippett 1928); the scale from their sd, and more where they are few.
    """
    _, _, blocks, mean, var, length = kept
    if blocks < TAIL_LEAST:
        return math.nan, math.nan
    scale = GUMBEL * math.sqrt(var)
    slope = scale * (1.0 + 3.0 / math.sqrt(blocks))
    return mean - EULER * scale - slope * math.log(length), slope


@compiled
def note_tail(kept: F4, surprise: Scalar, longest: float) -> None:
    """Learn a device's own tail from the surprise of a tick.

    Args:
        kept: maximum and ticks of the block that is going on; number, mean and variance of the maxima so far; ticks of a
            block, which doubles with every 64 blocks up to `longest`.
    """
    kept[0], kept[1] = max(kept[0], surprise), kept[1] + 1.0
    kept[5] = max(kept[5], TAIL_BLOCK)
    if kept[1] < kept[5]:
        return
    kept[2] = min(kept[2] + 1.0, 2.0 * TAIL_MOST)
    away = kept[0] - kept[3]
    kept[3] += away / kept[2]
    kept[4] += (away * (kept[0] - kept[3]) - kept[4]) / kept[2]
    kept[0] = kept[1] = 0.0
    if kept[2] >= TAIL_MOST and 2.0 * kept[5] <= longest:
        kept[3] += GUMBEL * math.sqrt(kept[4]) * math.log(2.0)
        kept[2], kept[5] = kept[2] / 2.0, 2.0 * kept[5]


@compiled
def height_of(level: float, count: float, declared: bool) -> float:
    """What the highest of `count` channels is held against: more channels, a higher highest.

    Where a recording was declared, more so: there several together are held against the level of one, and one that has
    changed for good would otherwise alarm for good. A channel at its ceiling is told, however many there are.
    """
    slope = ALONE_SLOPE if declared else PRIOR_SLOPE
    return min(level + slope * math.log(count), max(MOST_LEVEL, level))


@compiled
def heaviest_of(height: float) -> float:
    """Most that leaving the range so far may add to a channel's surprise."""
    return min(max(RANGE_PER_LEVEL * height, RANGE_WEIGHT), MOST_RANGE)


@compiled
def excess_of(rate: Scalar, n: Scalar, count: Scalar) -> Scalar:
    """Share of its range so far by which one of a device's healthy channels exceeds it about once a budgeted interval.

    Of n ticks with tails x^-5, as Student's t of 5 degrees has, the next exceeds the largest of them times k with
    probability k^-5 / n. With less, each new extreme of healthy devices at 1 Hz, and of heavy tails, was an alert.

    Args:
        rate: budgeted alerts per tick.
        n: ticks that made the range.
        count: channels.
    """
    enough = (max(count / (rate * n), 1.0) ** 0.2 - 1.0) / 2.0
    return OF_SEVERAL * enough if count > 1 else enough


@compiled
def decayed(raised: float, budget: float, dt: float) -> float:
    """The controller's raise after `dt` seconds of the device's time: db/dt = -g B min(b / b_ref, 1)."""
    return max(raised - RAISE * budget * dt * min(raised / RAISE_REFERENCE, 1.0), 0.0)


@compiled
def score_of(
    highest: Scalar,
    together: float,
    joint: float,
    unsure: Scalar,
    height: float,
    level: float,
    raised: float,
) -> float:
    """Surprise over threshold.

    Args:
        highest: surprise of the most surprising channel.
        together: mean of the three most surprising, where a recording was declared.
        joint: shift of the slow means over its limit, a distance: its square rises with the others. The cube root changes
            no flag: it keeps the others in the ranking.
        unsure: by which share the level is raised because calibration has seen little.
        height, level: `height_of`, `level_of`.
        raised: b; never so much that a channel at its ceiling could not be told.
    """
    alone = min(height * (1.0 + unsure), max(MOST_LEVEL, height)) * (1.0 + raised)
    several = min(level * (1.0 + unsure), max(MOST_LEVEL, level)) * (1.0 + raised)
    score: float = highest / min(alone, max(MOST_RAISED, height))
    score = max(score, together / min(several, max(MOST_RAISED, level)))
    return max(score, float((joint / math.sqrt((1.0 + raised) * (1.0 + unsure))) ** (1.0 / 3.0)))


@compiled
def starts(
    terms: F4,
    dt: F8,
    interval: float,
    budget: float,
    level: float,
    rest: int,
    quiet: int,
    declared: bool,
) -> int:
    """How many alerts would have started on one device, (T,) ticks, at another budget.

    Args:
        terms: highest, together, joint, count, unsure, tail, slope, highest_rare and together_rare of `Scored`, (9, T);
            NaN: no score.
        dt: seconds since the tick before.
        level: NaN: from the budget.
        rest: refractory ticks.   quiet: ticks that end an alert.
    """
    highest, together, joint, count, unsure, tail, slope, highest_rare, together_rare = terms
    raised, total, still, last, going = 0.0, 0, 0, -(1 << 40), False
    for t in range(len(highest)):
        raised = decayed(raised, budget, min(dt[t], 64.0 * interval))
        if math.isnan(highest[t]):
            continue
        at = level_of(level, budget, interval, count[t], tail[t], slope[t])
        height = height_of(at, count[t], declared)
        kept = 0.0 if going and declared else raised
        over = score_of(highest[t], together[t], joint[t], unsure[t], height, at, kept) >= 1.0
        if over and declared and not going:
            rare = max(at, level_of(math.nan, budget, interval, count[t]))
            tall = height_of(rare, count[t], declared)
            over = score_of(highest_rare[t], together_rare[t], joint[t], unsure[t], tall, rare, 0.0) >= 1.0
        if over:
            still = 0
            if not going and t - last > rest:
                going, last, total = True, t, total + 1
        elif going:
            still += 1
            if still >= quiet:
                going, raised = False, min(raised + RAISE, RAISE_LIMIT)
    return total


@compiled
def learn_block(record: F4, at: I8, first: int, f: int, width: int, n: F4, waiting: F4, k: int) -> None:
    """Add the block of ticks that waits to the running mean and variance of head k's streams, in both memories.

    Of blocks of c ticks with mean a and variance s: mean += r (a - mean), var = (1 - r) (var + r (a - mean)^2) + r s, with
    r = c / n for all history, at least 1 - (1 - 1/1500)^c for the short memory (Chan, Golub and LeVeque 1979).
    """
    count = waiting[k]
    n[k] = min(n[k] + count, np.float32(1e6))
    share = np.float32(1.0) / count
    for memory in range(2):
        rate = count / n[k]
        if memory:
            rate = max(rate, np.float32(1.0 - (1.0 - 1.0 / MEMORY) ** count))
        for w in range(4):
            base, new = at[_CALIBRATION] + (2 * memory * 4 + w) * width + first, at[_PENDING] + w * width + first
            mean, var = record[base : base + f], record[base + 4 * width : base + 4 * width + f]
            one, two = record[new : new + f], record[new + 4 * width : new + 4 * width + f]
            for j in range(f):
                a = one[j] * share
                away = a - mean[j]
                own = max(two[j] * share - a * a, np.float32(0.0))
                var[j] = (np.float32(1.0) - rate) * (var[j] + rate * away * away) + rate * own
                mean[j] += rate * away
    for w in range(8):
        new = at[_PENDING] + w * width + first
        record[new : new + f] = 0.0
    waiting[k] = 0.0


@compiled
def learn_the_rest(frame: Frame, rings: Rings) -> None:
    """Add what waits to the statistics of all devices, however little it is."""
    f, at, heads = frame.channels, frame.at, frame.heads
    for slot in range(1, len(rings.records)):
        record = rings.records[slot]
        n, waiting = record[at[_N] : at[_N] + heads], record[at[_WAITING] : at[_WAITING] + heads]
        for k in range(heads):
            if waiting[k] > 0:
                learn_block(record, at, k * f, f, heads * f, n, waiting, k)


@compiled
def judge(
    frame: Frame,
    rings: Rings,
    judgement: Judgement,
    slots: I8,
    linear: F4,
    cross: F4,
    ahead: F4,
    dt: F8,
    out: Verdicts,
) -> None:
    """Score each tick by what was forecast for it, learn from it, and keep the forecasts for the ticks to come.

    Args:
        linear: (B, F), NaN where not seen.
        cross: the cross head's, (B, F); (B, 0) where there is none.
        ahead: forecasts for the ticks `horizons` ahead, (B, P, F).
        out: to be written.
    """
    f, heads, at = frame.channels, frame.heads, frame.at
    width, horizons = heads * f, len(frame.horizons)
    error = np.zeros((heads, f), dtype=np.float32)
    quanta = np.zeros(width, dtype=np.float32)
    weight = np.zeros(width, dtype=np.float32)
    teaches = np.zeros(heads, dtype=np.bool_)
    clipped = np.zeros(width, dtype=np.float32)
    pull = np.zeros(f, dtype=np.float32)
    doubt = np.zeros(f, dtype=np.float64)
    for i in range(len(slots)):
        slot = slots[i]
        record = rings.records[slot]
        since, tick = int(record[at[_SINCE]]), int(record[at[_TICK]])
        frozen = record[at[_FROZEN]] > 0
        s = record[at[_S] : at[_S] + f]
        n, waiting = record[at[_N] : at[_N] + heads], record[at[_WAITING] : at[_WAITING] + heads]

        for j in range(f):
            doubt[j] = doubt_of(frame.spread[j], s[j], record[at[_WARM]])

        # Errors: what came minus what was forecast for it, over the device's spread.
        believed = believed_past = 0
        most_n = np.float32(0.0)
        for k in range(heads):
            horizon = frame.horizons[k] if k < horizons else 1
            settled = horizon - 1 + SETTLE  # forecasts of a fresh state are not judged, however far ahead
            valid = since >= settled
            trusted = valid and n[k] >= LEAST
            believed += 1 if trusted else 0
            believed_past += 1 if trusted and k < horizons else 0
            most_n = max(most_n, n[k])
            teaches[k] = since >= settled + RING and not frozen
            if teaches[k]:
                waiting[k] += np.float32(1.0)
            for j in range(f):
                at_j = k * f + j
                weight[at_j] = 1.0 if trusted else 0.0
                clipped[at_j] = 0.0
                e = np.float32(0.0)
                if valid and not math.isnan(linear[i, j]):
                    forecast = cross[i, j] if k >= horizons else rings.ahead[slot, frame.offsets[k] + tick % horizon, j]
                    forecast = min(max(forecast, np.float32(-14.0)), np.float32(14.0))
                    e = np.float32(beyond_doubt(linear[i, j] - math.sinh(forecast), doubt[j]))
                    if judgement.gated:
                        error[k, j] = e
                        e = np.float32(gate(judgement, j, e, s[j]))
                error[k, j] = e
                quanta[at_j] = round(min(max(e, np.float32(-ERROR_LIMIT)), np.float32(ERROR_LIMIT)) * QUANTUM)

        # Windows, their surprise, and what they teach.
        memories = 1 if frozen else 2
        for w in range(4):
            back = WINDOWS[w]
            there = since >= back
            old = rings.errors[slot, (tick - back) % RING]
            sums = record[at[_SUMS] + w * width : at[_SUMS] + (w + 1) * width]
            scale = np.float32(1.0 / (back * QUANTUM))
            for j in range(width):
                before = np.float32(old[j]) if there else np.float32(0.0)
                if w < MAGNITUDES:
                    sums[j] += abs(quanta[j]) - abs(before)
                else:
                    sums[j] += quanta[j] - before
            base = at[_CALIBRATION] + (12 + w) * width
            declared = record[base : base + width]  # variances as they were, where statistics follow them
            for memory in range(memories):
                base = at[_CALIBRATION] + (2 * memory * 4 + w) * width
                mean, var = record[base : base + width], record[base + 4 * width : base + 5 * width]
                for j in range(width):
                    away = abs(sums[j]) * scale - mean[j]
                    sd = math.sqrt(var[j]) + np.float32(1e-3) * abs(mean[j]) + np.float32(FLOOR)
                    clipped[j] += min(max(away / sd, np.float32(0.0)), np.float32(CEILING))
                    if frozen:
                        was = math.sqrt(declared[j]) + np.float32(FLOOR)
                        most = MOST_AT_ONCE * was
                        far = min(away * away, min(MOST_AT_ONCE * sd, WIDEST * was) ** 2)
                        away = min(max(away, -most), most)
                        mean[j] += weight[j] * np.float32(FOLLOWS) * away
                        var[j] += weight[j] * np.float32(WIDENS) * (far - var[j])
            base = at[_PENDING] + w * width
            one, two = record[base : base + width], record[base + 4 * width : base + 5 * width]
            for k in range(heads):
                if teaches[k]:
                    for j in range(k * f, k * f + f):
                        u = abs(sums[j]) * scale
                        one[j] += u
                        two[j] += u * u
        for k in range(heads):
            if teaches[k] and waiting[k] >= min(max(n[k], np.float32(1.0)), np.float32(BLOCK)):
                learn_block(record, at, k * f, f, width, n, waiting, k)

        # Each channel's surprise, and that of all.
        lo, hi = record[at[_LO] : at[_LO] + f], record[at[_HI] : at[_HI] + f]
        varied = record[at[_VARIED] : at[_VARIED] + f]
        count = varied_of(linear[i], varied, record[at[_V1] : at[_V1] + f], record[at[_V2] : at[_V2] + f], frozen)
        every = count == 0
        count = float(f) if every else count
        accepted = record[at[_ACCEPTED] : at[_ACCEPTED] + f + 2]
        peak = record[at[_PEAK] : at[_PEAK] + f + 2]
        tail, slope = tail_of(record[at[_TAIL] : at[_TAIL] + 6])
        interval = record[at[_INTERVAL]]
        level = level_of(judgement.level, judgement.budget, interval, count, tail, slope)
        height = height_of(level, count, judgement.declared)
        heaviest = RANGE_WEIGHT if judgement.declared else heaviest_of(height)
        steep = heaviest / LEAST_EXCESS
        # A declared level makes flags. Alerts keep to the budget: 12 healthy devices at 1 Hz, of 600 or 2,000 declared
        # readings, had up to 40 at 1/week in the rest of two hours, now none. Of 144 faults of theirs 119 are told, before 121.
        rare = level
        if judgement.declared and not judgement.given:
            rare = max(level, level_of(math.nan, judgement.budget, interval, count))
        tall = height_of(rare, count, judgement.declared)
        heaviest_rare, gentle = heaviest, steep
        if rare > level or not judgement.declared:
            heaviest_rare = heaviest_of(tall)
            enough = excess_of(judgement.budget * interval, most_n, count)
            gentle = min(heaviest_rare / LEAST_EXCESS, tall / max(enough, 1e-6))
        if not judgement.declared:
            steep = gentle
        total = np.float32(0.0)
        flags = alarms = (np.float32(0.0), np.float32(0.0), np.float32(0.0))
        per = np.float32(1.0 / (4 * memories))
        for j in range(f):
            past = others = np.float32(0.0)
            for k in range(heads):
                if k < horizons:
                    past += clipped[k * f + j] * weight[k * f + j]
                else:
                    others = clipped[k * f + j] * weight[k * f + j]
            beyond = beyond_rare = np.float32(0.0)
            value = linear[i, j]
            if not math.isnan(value):
                if most_n >= RANGE_AFTER and lo[j] <= hi[j]:
                    excess = value - hi[j] if value > hi[j] else min(value - lo[j], np.float32(0.0))
                    if judgement.gated:
                        excess = np.float32(gate(judgement, j, excess, s[j]))
                    excess = abs(excess) / (hi[j] - lo[j] + FLOOR)
                    beyond = np.float32(min(excess * steep, heaviest))
                    beyond_rare = np.float32(min(excess * gentle, heaviest_rare))
                if not frozen:
                    lo[j], hi[j] = min(lo[j], value), max(hi[j], value)
                elif lo[j] <= hi[j]:
                    most = np.float32(FOLLOWS) * (hi[j] - lo[j])
                    lo[j], hi[j] = max(min(lo[j], value), lo[j] - most), min(max(hi[j], value), hi[j] + most)
            counts = every or varied[j] > 0
            if not counts:
                out.own[i, j] = 0.0
                continue
            # A channel is as surprising as its past or the other channels say, whichever more: where they no longer
            # fit together, the past alone sees nothing (such faults beyond chance at 1/week: 18 % by the mean, 41 %).
            own = max(past / max(believed_past, 1), others) * per
            out.own[i, j] = own + beyond
            total += (past + others) * per / max(believed, 1) + beyond
            flags = ranked((own + beyond) / accepted[j], flags)
            alarms = ranked((own + beyond_rare) / accepted[j], alarms)
        surprise = total / count

        # The score.
        raised = decayed(record[at[_RAISED]], judgement.budget, min(dt[i], 64.0 * interval))
        record[at[_RAISED]] = raised
        together = together_rare = 0.0
        unsure = 0.0 if judgement.declared else UNSURE / max(most_n, np.float32(1.0))
        if judgement.declared:
            together = (flags[0] + flags[1] + flags[2]) / min(count, 3.0) / accepted[f]
            together_rare = (alarms[0] + alarms[1] + alarms[2]) / min(count, 3.0) / accepted[f]

        # The shift of slow means, against their clean covariance.
        shift = record[at[_SHIFT] : at[_SHIFT] + 2 * f]
        for k in range(2):
            for j in range(f):
                value = linear[i, j] if k == 0 else error[horizons - 1, j]
                if not math.isnan(linear[i, j]):
                    value = min(max(value, np.float32(-ERROR_LIMIT)), np.float32(ERROR_LIMIT))
                    v = shift[k * f + j]
                    shift[k * f + j] = value if since == 0 else v + np.float32(SHIFT_RATE) * (value - v)
                elif since == 0:
                    shift[k * f + j] = 0.0
        out.shift[i] = shift
        joint = 0.0
        if len(judgement.most) and frozen and since >= EARLIEST_SHIFT:
            group = int(record[at[_GROUP]])
            centre = record[at[_CENTRE] : at[_CENTRE] + 2 * f]
            joint = 1.0
            for k in range(1 if judgement.values_only else 2):
                precision = judgement.precision[group, k]
                d2 = 0.0
                for j in range(f):
                    pull[j] = shift[k * f + j] - centre[k * f + j]
                    if judgement.gated:
                        pull[j] = gate(judgement, j, pull[j], s[j])
                for j in range(f):
                    row = 0.0
                    for g in range(f):
                        row += precision[j, g] * pull[g]
                    d2 += pull[j] * row
                joint *= math.sqrt(max(d2, 0.0)) / judgement.most[group, k]
            if not judgement.values_only:
                joint = math.sqrt(joint)
            joint /= SHIFT_LIMIT * accepted[f + 1]
            joint *= record[at[_WARM]] / np.float32(PLACED)
            far_at_once = MOST_AT_ONCE if joint >= 1.0 else MOST_UNFLAGGED
            for k in range(1 if judgement.values_only else 2):
                precision = judgement.precision[group, k]
                for j in range(f):
                    if precision[j, j] > 0:
                        most = far_at_once / math.sqrt(precision[j, j])
                        away = shift[k * f + j] - centre[k * f + j]
                        centre[k * f + j] += FOLLOWS * min(max(away, -most), most)
        # The controller holds back alerts, not the flag: it would hide the second of two events, and spoil the ranking.
        score = score_of(flags[0], together, joint, unsure, height, level, 0.0)
        alarm = min(
            score_of(flags[0], together, joint, unsure, height, level, raised),
            score_of(alarms[0], together_rare, joint, unsure, tall, rare, 0.0),
        )
        if believed and not judgement.declared:
            note_tail(
                record[at[_TAIL] : at[_TAIL] + 6],
                min(flags[0], np.float32(height)),
                1.0 / (TAIL_SHARE * judgement.budget * interval),
            )

        # While it alarms, remember how far it went; what alarms for too long is handed over to running statistics.
        out.settled[i] = False
        if believed and score >= 1.0:
            for j in range(f):
                peak[j] = max(peak[j], out.own[i, j] / height)
            peak[f] = max(peak[f], np.float32(together * accepted[f] / level))
            peak[f + 1] = max(peak[f + 1], np.float32(joint * accepted[f + 1]))
        if frozen:
            alarmed = record[at[_ALARMED]]
            alarmed += ((1.0 if believed and score >= 1.0 else 0.0) - alarmed) / LASTING
            record[at[_ALARMED]] = alarmed
            if alarmed > SETTLED_AT:
                out.settled[i] = True
                record[at[_FROZEN]] = 0.0
                memory = at[_CALIBRATION]
                record[memory + 8 * width : memory + 16 * width] = record[memory : memory + 8 * width]
                for k in range(heads):
                    n[k] = min(n[k], SETTLED_PRIOR)
                for j in range(f + 2):
                    accepted[j] = 1.0
        out.highest[i] = flags[0] if believed else np.nan
        out.together[i], out.joint[i], out.count[i], out.unsure[i] = together, joint, count, unsure
        out.tail[i], out.slope[i] = tail, slope
        out.highest_rare[i], out.together_rare[i] = alarms[0], together_rare
        out.score[i], out.alarm[i] = (score, alarm) if believed else (np.nan, np.nan)
        out.surprise[i] = surprise if believed else np.nan
        # As rare as the budget at the threshold, and from there on by the tail that the level is from.
        steepness = slope if level < level_of(judgement.level, judgement.budget, interval, count) else PRIOR_SLOPE
        once = max(1.0 / (judgement.budget * interval), PRIOR_TICKS)
        if not math.isnan(judgement.level):
            once = PRIOR_TICKS * math.exp((level - PRIOR_LEVEL) / PRIOR_SLOPE)
        chance = math.exp(-(score - 1.0) * level / steepness) / once
        out.p_value[i] = min(chance, 1.0) if believed else np.nan

        for j in range(f):
            out.forecast[i, j] = np.nan
            if frame.horizons[0] == 1 and since >= SETTLE:
                out.forecast[i, j] = rings.ahead[slot, frame.offsets[0], j]
            out.location[i, j], out.spread[i, j] = record[at[_M] + j], s[j]

        # Go on.
        for k in range(horizons):
            place = frame.offsets[k] + tick % frame.horizons[k]
            for j in range(f):
                rings.ahead[slot, place, j] = ahead[i, k, j]
        for j in range(width):
            rings.errors[slot, tick % RING, j] = np.int16(quanta[j])
        record[at[_TICK]] = (tick + 1) % frame.period
        begun = not frame.mixed or record[at[_WARM]] >= WARM
        record[at[_SINCE]] = min(since + 1, 1 << 20) if begun else 0


@compiled
def inputs_of(
    y: F4,
    seen: npt.NDArray[np.bool_],
    interval: F4,
    clock: F4,
    fresh: npt.NDArray[np.bool_],
    time: F8,
    usual: F8,
    bins: int,
    out: F4,
) -> None:
    """`features_of` for whole series: T ticks of S devices; arguments and `out` as there, (T, S, …), `usual` (S,)."""
    ticks, series, f = y.shape
    for k in range(series):
        last, mean = np.zeros(f, dtype=np.float32), np.zeros(f, dtype=np.float32)
        daily, visits = np.zeros((bins, 2, f), dtype=np.float32), np.zeros((bins, f), dtype=np.uint8)
        for t in range(ticks):
            features_of(
                y[t, k],
                seen[t, k],
                0.0 if fresh[t, k] else interval[t, k],
                clock[t, k],
                last,
                mean,
                fresh[t, k],
                time[t, k],
                usual[k],
                daily,
                visits,
                out[t, k],
            )


@compiled
def remember(
    rows: F4,
    taken: I8,
    kept: int,
    slots: I8,
    time: F4,
    values: F8,
    last: F8,
    band: Band,
    score: F4,
    forecast: F4,
    location: F4,
    spread: F4,
    network: I8,
) -> None:
    """Write one tick of each of B devices to their rings of `kept` rows: time, score; values, lower and upper edges.

    Args:
        rows: (N kept, 3 + 3 F), the time as the two halves of a float64.
        taken: ticks that each device's ring was given, (N,); devices beyond have none.
        time: (2 B,), such halves.
        values: in the channels' units, (B, F).
        last: the tick before, of all devices, (…, F).
        score, forecast, location, spread, network: see `Scored`.
    """
    f = values.shape[1]
    for i in range(len(slots)):
        slot = slots[i]
        if slot >= len(taken):
            continue
        row = rows[slot * kept + taken[slot] % kept]
        taken[slot] += 1
        row[0], row[1], row[2] = time[2 * i], time[2 * i + 1], score[i]
        for j in range(f):
            row[3 + j] = values[i, j]
            row[3 + f + j] = row[3 + 2 * f + j] = np.nan
        for k in range(len(band.columns)):
            if math.isnan(forecast[i, k]):
                continue
            j, reach = band.columns[k], band.reach[network[i], k]
            begun = band.location[k] + (last[slot, j] if band.counter[k] else 0.0)
            middle = math.exp(min(max(forecast[i, k], -SINH_LIMIT), SINH_LIMIT))
            low, high = max(middle / reach, _ONE / EXP_LIMIT), min(middle * reach, EXP_LIMIT)
            low, high = _HALF * (low - _ONE / low), _HALF * (high - _ONE / high)  # sinh
            row[3 + f + j] = (low * spread[i, k] + location[i, k]) * band.spread[k] + begun
            row[3 + 2 * f + j] = (high * spread[i, k] + location[i, k]) * band.spread[k] + begun
