"""Learning a profile: weights by truncated back-propagation through time, then calibration by streaming.

Axes: S series (one device's ticks each), T ticks, B lanes of a training batch, W ticks of a window, F channels.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from sentinel.errors import TrainingError
from sentinel.model import calibrate, features, kernel
from sentinel.model.apart import Episode, episodes, faults
from sentinel.model.calibrate import ShiftReference
from sentinel.model.forecaster import Forecaster, head_count, weight_shapes
from sentinel.model.kernel import EARLIEST_SHIFT, FLOOR, LEAST, PLACED, SETTLE, WARM
from sentinel.model.scale import ProfileScale, counters, last_seen, learned_run, location_and_spread, longest_runs
from sentinel.model.score import Detector, Scored, Scorer
from sentinel.model.slabs import RING, Array, Layout, Memory, Slabs
from sentinel.records import Bools, Channel, Floats, Ints, ModelSpec

STEPS, FINE_STEPS = 600, 200  # of AdamW, from scratch and from the profile's weights
# A network that runs learns on once there are so many times as many ticks. NAB standard / low FP: 74.5 / 66 with 2,
# 75.2 / 66.5 with 1.25, 75.6 / 67.2 with 1.1, 76.0 / 67.4 with a step every 64 ticks.
GROWTH = 1.1
MORE_STEPS, MORE_RATE = 20, 1e-3  # of AdamW each time, at a rate that stays
WINDOW = 64
CARRIED = 4  # windows that a lane goes on with its state before it jumps
NOISE = 0.3  # on inputs, with a declared recording: 0 and 0.1 are clearly worse; live none: it costs 1 point of NAB
MISSING = 0.02  # values hidden while training, so that a missing channel is nothing new
PATIENCE = 3  # validations without gain
VALIDATE_EVERY = 50
FIT_SHARE = 0.75  # of what is learned from first; the rest is held out, for stopping and calibration
MOST_ROWS = 400_000  # of all series, side by side and padded to the longest
FEWEST_TICKS, MOST_TICKS = 500, 50_000  # bounds of a series' share of them
MOST_SERIES = 256  # that weights are fitted to
MOST_VALIDATED = 64, 2048  # series, ticks
MOST_CALIBRATION = 20_000  # ticks a device
RATE, DECAY = 5e-3, 1e-3  # of AdamW
NEVER = 1e6
LIVE_PRIOR = 100.0  # ticks that the fleet's calibration counts for with a new device
STAGE_STEPS, FINE_STAGE_STEPS = 150, 50
STAGES = (0.25, 0.5, 0.75)  # shares of a series after which the rest is forecast anew, for calibration
REPLAYED = 1000  # newest ticks that bring the states of a new network up to date
ANEW_AFTER = 64  # usual intervals; a longer gap begins a new state

PLACED_ON = 600  # first ticks that give a device that learns live its location and spread; then they stay
OUTGROWN = 8.0  # spreads by which a device may move, or times that its spread may grow, before it is placed anew

Progress = Callable[[str, float], None]
Place = tuple[kernel.F4, kernel.F4]
"""A device's location and spread, in the profile's units, (F,) each."""


@dataclass(frozen=True, slots=True)
class Series:
    """One device's ticks in order: event times (T,), values in the channels' units (T, F), NaN where missing."""

    device: str
    time: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True, slots=True)
class Apart:
    """Ticks of a device unlike all others that it was learned from: event times, and the value that is farthest off.

    Attributes:
        value, usual: in the channel's unit: that value, and the median of all.
    """

    device: str
    since: float
    until: float
    ticks: int
    channel: str
    value: float
    usual: float

    @property
    def stretch(self) -> "Stretch":
        return self.device, self.since, self.until


Stretch = tuple[str, float, float]  # device, and the event times at which something of it began and ended


@dataclass(frozen=True, slots=True)
class Learned:
    """A detector, and the memory of each device that it was learned from.

    Attributes:
        devices: ids, (S,).
        memory: `Slabs.take` of those devices at the end of their series.
        losses: validation loss, at the start and at its best; the mean of all networks'.
        better: whether any network gained on its start, or there was none.
        moving: channels that went one way all through a declared recording, in half of the devices or more.
        apart: ticks that stood apart from all others, where a detector was learned that goes on from none.
    """

    detector: Detector
    devices: tuple[str, ...]
    memory: Memory
    losses: tuple[float, float]
    better: bool
    moving: tuple[str, ...] = ()
    apart: tuple[Apart, ...] = ()


def learn(
    series: Sequence[Series],
    channels: Sequence[Channel],
    spec: ModelSpec,
    *,
    seed: int,
    declared: bool,
    start: Detector | None = None,
    placed: Mapping[str, Place] | None = None,
    left_out: Sequence[Stretch] = (),
    progress: Progress = lambda _what, _share: None,
) -> Learned:
    """Learn a detector from healthy ticks, the newest of each series: 50 000, fewer of many devices.

    What stands apart from all else in a series where a detector begins anew counts as not seen, unless the recording is
    declared: a fault while learning is found afterwards, though learning then takes twice as long. Faults of
    10 to 60 ticks among the 600 that simulated devices learned from hid 50 to 100 % of the like of them, mostly 75 %; now 0
    to 17 %, and two thirds of 6 sd over 10 ticks of a channel of autocorrelated noise, a third of which are told in any case.

    Args:
        channels: of the F columns; their gates do not matter here.
        declared: the user vouches for this recording: its statistics follow only slowly.
        start: the detector to start from, if its weights have the shapes that are needed now, and its channels are of
            the kinds that they were.
        placed: location and spread of those devices whose place is fixed; they keep it, as long as it fits at all.
        left_out: what stood apart before, and counts as not seen.
        progress: told what is being done and the share done.

    Raises:
        TrainingError: fewer than two ticks in all, no channel, or the training diverged.
    """
    newest = _newest([s for s in series if len(s) >= 2], declared=declared)
    series = [_without(s, _within(s, left_out)) for s in newest]
    if not series or not channels:
        msg = "nothing to learn from: no device has two ticks"
        raise TrainingError(msg)
    learned, found = _learn(series, channels, spec, seed, declared, start, placed or {}, progress)
    if not any(found):
        return learned
    told = tuple(_told(s, learned.detector, place) for s, places in zip(series, found, strict=True) for place in places)
    if not declared:
        series = [_without(s, _inside(len(s), places)) for s, places in zip(series, found, strict=True)]

        def again(what: str, share: float) -> None:
            progress(f"{what} again without what stood apart", share)

        learned, _ = _learn(series, channels, spec, seed, declared, None, {}, again)
    return replace(learned, apart=told)


def _learn(
    series: Sequence[Series],
    channels: Sequence[Channel],
    spec: ModelSpec,
    seed: int,
    declared: bool,
    start: Detector | None,
    placed: Mapping[str, Place],
    progress: Progress,
) -> tuple[Learned, list[list[Episode]]]:
    """As `learn`; and which ticks [begin, end) of each series stand apart, where it goes on from no detector."""
    names = tuple(channel.name for channel in channels)
    networks = tuple(s.device for s in series) if spec.weights == "device" else ()
    stacked = _Stack.of(series, declared=declared, alike=not networks)
    shapes = weight_shapes(spec, len(names), stacked.calendar, stacked.bins)
    if start is not None and not _goes_on(start, names, shapes, stacked.scale.counter):
        start = None
    if start is not None:
        stacked = stacked.going_on(start.scale, [placed.get(s.device) for s in series])
    stages, losses, better = _fit(stacked, networks, spec, shapes, seed, start, progress)
    runs = longest_runs([s.values for s in series])
    forecaster = Forecaster(spec, len(names), stacked.calendar, stacked.bins, stages[-1])
    layout = Layout(spec, len(names), stacked.bins)
    detector = Detector(
        channels=names,
        scale=stacked.scale,
        forecaster=forecaster,
        prior=_blank(layout, stacked.interval),
        spread_of_locations=np.zeros(len(names), dtype=np.float32),
        interval=stacked.interval,
        longest_run=runs if start is None else learned_run(start.longest_run, runs),
        declared=declared,
        networks=networks,
        learned_until=tuple(_learning_until(start, s) for s in series) if networks else (),
    )
    if start is not None:
        stacked = _end(stacked, REPLAYED)  # devices keep their statistics
    detector, slabs, found = _calibrate(detector, stages, stacked, progress, seek=start is None)
    devices = tuple(s.device for s in series)
    memory = slabs.take(np.arange(1, len(series) + 1))
    moving = _moving(series, names, stacked.scale.counter) if declared else ()
    return Learned(detector, devices, memory, losses, better, moving), found


def _moving(series: Sequence[Series], names: Sequence[str], counter: Bools) -> tuple[str, ...]:
    """Channels that rise or fall from each quarter to the next, by more than they vary within one; no counters."""
    moves = np.zeros(len(names))
    for one in series:
        parts = [location_and_spread(part) for part in np.array_split(one.values, 4) if len(part) >= QUARTER]
        if len(parts) == 4:
            levels, spreads = np.array([m for m, _ in parts]), np.array([s for _, s in parts])
            steps = np.diff(levels, axis=0)
            one_way = (steps > 0).all(0) | (steps < 0).all(0)
            moves += one_way & (np.abs(levels[3] - levels[0]) > MOVES * spreads.mean(0))
    return tuple(np.array(names)[~counter & (2 * moves >= len(series))].tolist())


def _within(series: Series, left_out: Sequence[Stretch]) -> Bools:
    """Which ticks lie in those stretches that are of the series' device, (T,)."""
    out = np.zeros(len(series), dtype=np.bool_)
    for device, since, until in left_out:
        if device == series.device:
            out |= (series.time >= since) & (series.time <= until)
    return out


def _inside(count: int, places: Sequence[Episode]) -> Bools:
    """Which of so many ticks lie in one of the places, (T,)."""
    out = np.zeros(count, dtype=np.bool_)
    for begin, end, _ in places:
        out[begin:end] = True
    return out


def _without(series: Series, unseen: Bools) -> Series:
    """The same, with nothing seen at some of its ticks, (T,)."""
    return replace(series, values=np.where(unseen[:, None], np.nan, series.values)) if unseen.any() else series


def _told(series: Series, detector: Detector, place: Episode) -> Apart:
    """What to say of a stretch: its channel, and the value in it that is farthest from the usual one; a counter's step."""
    values = series.values[:, place.channel]
    if detector.scale.counter[place.channel]:
        values = np.diff(values, prepend=np.nan)
    usual = float(np.nanmedian(values))
    within = values[place.begin : place.end]
    return Apart(
        device=series.device,
        since=float(series.time[place.begin]),
        until=float(series.time[place.end - 1]),
        ticks=place.end - place.begin,
        channel=detector.channels[place.channel],
        value=float(within[int(np.nan_to_num(np.abs(within - usual)).argmax())]),
        usual=usual,
    )


def _goes_on(start: Detector, channels: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], counter: Bools) -> bool:
    """Whether nothing has come since that asks for a new beginning: a channel, dates, a daily profile, a counter."""
    had = {name: tuple(weight.shape[1:]) for name, weight in start.forecaster.weights.items()}
    return start.channels == channels and had == shapes and np.array_equal(start.scale.counter, counter)


def anew(dt: Floats, interval: float | Floats, max_gap: float | None = None) -> Bools:
    """Which ticks begin a new state: those after a gap longer than `max_gap`, or 64 usual intervals, in seconds.

    Args:
        interval: the usual one of all, or of each tick's device, (B,).
    """
    out: Bools = dt > (max_gap or ANEW_AFTER * interval)
    return out


def _newest(series: Sequence[Series], *, declared: bool) -> list[Series]:
    """The newest ticks of each series, so many that all of them side by side fit MOST_ROWS, or nearly."""
    fewest = max(FEWEST_TICKS, calibrate.HELD_OUT_AT_LEAST) if declared else FEWEST_TICKS
    most = min(max(MOST_ROWS // max(len(series), 1), fewest), MOST_TICKS)
    return [Series(s.device, s.time[-most:], s.values[-most:]) for s in series]


def _usual(step: Floats) -> float:
    """Median of those seconds between ticks that are not 0; 0 where all are."""
    return float(np.median(step[step > 0])) if (step > 0).any() else 0.0


@dataclass(frozen=True, slots=True)
class _Stack:
    """S series side by side, padded at the end.

    Attributes:
        x: in profile units, (T, S, F), NaN where missing or padded.
        time, dt: (T, S).
        fresh: begins a new state, (T, S).
        length, fit: ticks of each series, and of its part to fit on, (S,).
        m, s: the devices' location and spread, (S, F).
        placed: ticks that `m` and `s` are from, (S,).
        lately: devices that joined the others of late, whose own ticks do not tell yet what they are like, (S,).
        usual: the devices' own interval, (S,).
        calendar: whether the time of day can be learned: real dates (not row numbers), two days of them, several ticks
            a day.
        bins: of the daily profile.
    """

    scale: ProfileScale
    x: Floats
    time: Floats
    dt: Floats
    fresh: Bools
    length: Ints
    fit: Ints
    m: Floats
    s: Floats
    placed: Ints
    lately: Bools
    usual: Floats
    interval: float
    calendar: bool
    bins: int
    declared: bool

    @staticmethod
    def of(series: Sequence[Series], *, declared: bool, alike: bool) -> "_Stack":
        """`alike`: the devices are of one kind, and tell of each other."""
        interval = _usual(np.concatenate([np.diff(s.time) for s in series])) or 1.0
        counter = counters([s.values for s in series])
        width = series[0].values.shape[1]
        raw = ProfileScale(np.zeros(width), np.ones(width), counter)
        none = np.full((1, width), np.nan)
        plain = [raw.scaled(s.values, np.vstack([none, last_seen(s.values)[:-1]])) for s in series]
        least = HOLD_OUT_LIVE if not declared else calibrate.HELD_OUT_AT_LEAST
        longest = max(len(s) for s in series)
        fit = np.array([int(FIT_SHARE * len(s)) if len(s) >= least else len(s) for s in series])
        most = longest if declared else PLACED_ON
        own = [location_and_spread(p[: min(n, most)]) for p, n in zip(plain, fit, strict=True)]
        locations, spreads = np.array([m for m, _ in own]), np.array([s for _, s in own])
        lately = (
            fit < min(int(fit.max()), PLACED_ON) if alike and not declared else np.zeros(len(series), dtype=np.bool_)
        )
        lately &= (~lately).sum() >= ENOUGH_DEVICES
        if lately.any():
            _lean_on_fleet(locations, spreads, fit, lately)
        scale = ProfileScale(np.median(locations, 0), np.median(spreads, 0), counter)
        shape = (longest, len(series))
        x, time, dt = np.full((*shape, width), np.nan), np.zeros(shape), np.zeros(shape)
        fresh, usual = np.zeros(shape, dtype=np.bool_), np.full(len(series), interval)
        for i, (s, p) in enumerate(zip(series, plain, strict=True)):
            n = len(s)
            x[:n, i] = (p - scale.location) / scale.spread
            time[:n, i] = s.time
            step = np.diff(s.time)
            dt[1:n, i] = np.maximum(step, 0.0)
            # Time steps back only where one recording ends and the next begins.
            # A slow device of a fast fleet would else begin anew with each tick.
            usual[i] = _usual(step) or interval
            fresh[1:n, i] = anew(dt[1:n, i], max(interval, usual[i])) | (step < 0)
            fresh[0, i] = True
        lasted = max(float(s.time[-1] - s.time[0]) for s in series)
        dated = min(float(s.time[0]) for s in series) > 1e8
        calendar = dated and lasted >= 2 * features.DAY and interval <= features.DAY / 4
        return _Stack(
            scale=scale,
            x=x,
            time=time,
            dt=dt,
            fresh=fresh,
            length=np.array([len(s) for s in series]),
            fit=fit,
            m=(locations - scale.location) / scale.spread,
            s=spreads / scale.spread,
            placed=np.minimum(fit, PLACED_ON),
            lately=lately,
            usual=usual,
            interval=interval,
            calendar=calendar,
            bins=features.bins(width, calendar, interval),
            declared=declared,
        )

    def going_on(self, scale: ProfileScale, placed: Sequence[Place | None]) -> "_Stack":
        """The same on the scale of a detector that learns on, its devices where it placed them, if they still fit at all.

        NAB is 2 points lower where all that came since, faults and all, moves a device's scale, and as much where 150
        ticks have fixed it.
        """
        m, s = self.m * self.scale.spread + self.scale.location, self.s * self.scale.spread
        x, fixed = self.x * self.scale.spread + self.scale.location, self.placed.copy()
        for i, place in enumerate(placed):
            if place is not None:
                own, spread = place[0] * scale.spread + scale.location, place[1] * scale.spread
                now, wide = location_and_spread(x[max(self.fit[i] - PLACED_ON, 0) : self.fit[i], i])
                fits = (abs(now - own) <= OUTGROWN * spread) & (wide <= OUTGROWN * spread)
                m[i], s[i], fixed[i] = np.where(fits, own, now), np.where(fits, spread, wide), PLACED_ON
        return replace(
            self,
            scale=scale,
            x=(x - scale.location) / scale.spread,
            fit=np.where(self.fit < self.length, (self.length / GROWTH).astype(np.int64), self.length),
            m=(m - scale.location) / scale.spread,
            s=s / scale.spread,
            placed=fixed,
        )

    def one(self, at: int) -> "_Stack":
        """One of the series, without its padding."""
        n = self.length[at]
        cut = {name: getattr(self, name)[:n, at : at + 1] for name in ("x", "time", "dt", "fresh")}
        names = ("length", "fit", "m", "s", "placed", "lately", "usual")
        own = {name: getattr(self, name)[at : at + 1] for name in names}
        return replace(self, **cut, **own)


def _lean_on_fleet(m: Floats, s: Floats, ticks: Ints, lately: Bools) -> None:
    """Place those that joined lately as new devices are, and let their spread be the fleet's, until their own is known.

    From a part of a slow cycle alone they had spreads so small that most of them alarmed once it was learned on.

    Args:
        m, s: each device's own location and spread, (S, F); to be changed.
        ticks: that these are from, (S,).
    """
    tau, spread, middle = _unlike(m[~lately], s[~lately]), np.median(s[~lately], 0), np.median(m[~lately], 0)
    share = tau**2 / (tau**2 + WARM * spread**2 / ticks[lately, None])
    m[lately] = middle + share * (m[lately] - middle)
    weight = ticks[lately, None] / PLACED_ON
    s[lately] = np.maximum(s[lately], FLOOR * spread) ** weight * spread ** (1 - weight)


def _unlike(m: Floats, s: Floats) -> Floats:
    """Spread of the devices' locations, (F,); 0: they lie together, or are too few to tell.

    1.4826 MAD, or the sd: one device far from all others says that a new one may be, too. A spread that is small beside
    the devices' own is none; one over theirs would say no more.

    Args:
        m, s: location and spread, (S, F).
    """
    if len(m) < ENOUGH_DEVICES:
        return np.zeros(m.shape[1])
    own = np.median(s, 0)
    tau = np.maximum(1.4826 * np.median(np.abs(m - np.median(m, 0)), 0), np.minimum(np.std(m, 0), own))
    return np.where(tau > 0.1 * own, tau, 0.0)


QUARTER, MOVES = 25, 4.0  # ticks at least; spreads: of one that rises steadily 8
ENOUGH_DEVICES = 3  # to tell how unlike they are
HOLD_OUT_LIVE = 200  # ticks a device from which a quarter is held out, when learning live


def _blank(layout: Layout, interval: float) -> kernel.F4:
    """Record of a device of which nothing is known but that it is of an average kind, (width,)."""
    record = np.zeros((1, layout.width), dtype=np.float32)
    for name, value in (
        ("s", 1.0),
        ("lo", math.inf),
        ("hi", -math.inf),
        ("v1", math.nan),
        ("v2", math.nan),
        ("warm", PLACED),
        ("accepted", 1.0),
        ("interval", interval),
        ("refractory", calibrate.REFRACTORY),
    ):
        layout.view(record, name)[...] = value
    blank: kernel.F4 = record[0]
    return blank


def warm(compiling: Callable[[], None] = lambda: None) -> None:
    """Compile the arithmetic of a tick, where no earlier run has left it compiled: some 20 s, else one.

    Args:
        compiling: called once, before that begins, where it takes long.
    """
    spec = ModelSpec(hidden=1, horizons=(1,))
    shapes = weight_shapes(spec, 1, calendar=False, bins=0)
    forecaster = Forecaster(spec, 1, False, 0, {name: torch.zeros(1, *shape) for name, shape in shapes.items()})
    one = np.ones(1)
    detector = Detector(
        channels=("",),
        scale=ProfileScale(0 * one, one, one < 1),
        forecaster=forecaster,
        prior=_blank(Layout(spec, 1), 1.0),
        spread_of_locations=np.zeros(1, dtype=np.float32),
        interval=1.0,
        longest_run=one,
        declared=False,
    )
    slabs = Slabs(detector.layout, torch.device("cpu"), 2)
    scorer = Scorer(detector, {}, 1 / calibrate.WEEK, None)
    with kernel.first_compilation(compiling):
        scorer.begin(slabs, np.array([1]))
        it = scorer.observe(slabs, np.array([1]), one[None], one, one, one > 0)
        band = kernel.Band.of(detector.scale, forecaster.sigma[:, 0].numpy(), np.array([0]))
        rows, taken, forecasts = np.zeros((2, 6), np.float32), np.array([0, 0]), (it.forecast, it.location, it.spread)
        args = one.view(np.float32), one[None], np.zeros((2, 1)), band, it.score, *forecasts, it.network
        kernel.remember(rows, taken, 1, np.array([1]), *args)


# --- weights -----------------------------------------------------------------------------------------------------


class _Network(nn.Module):
    """The forecaster with torch's own fused recurrence, for training: the same weights under the same names."""

    def __init__(self, spec: ModelSpec, inputs: int, channels: int, start: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.spec, self.channels = spec, channels
        cell = nn.LSTM if spec.cell == "lstm" else nn.GRU
        self.recurrence = cell(inputs, spec.hidden, spec.layers, dropout=spec.dropout if spec.layers > 1 else 0)
        if spec.cell == "lstm":
            for name, parameter in self.recurrence.named_parameters():
                if name.startswith("bias_ih"):
                    nn.init.ones_(parameter[spec.hidden : 2 * spec.hidden])  # forget gate open: Gers et al. 2000
        self.head = nn.Linear(spec.hidden, len(spec.horizons) * channels)
        self.log_sigma = nn.Parameter(torch.full((head_count(spec, channels), channels), -0.5))
        self.reconstruct = nn.Linear(spec.hidden, channels)  # for training only: keeps y(t) readable in h(t)
        if channels >= 2:
            self.cross_h = nn.Parameter(torch.randn(channels, spec.hidden) * 0.05)
            self.cross_y = nn.Parameter(torch.zeros(channels, channels))
            self.cross_bias = nn.Parameter(torch.zeros(channels))
        self.others = 1.0 - torch.eye(channels)
        if start is not None:
            with torch.no_grad():
                for name, weight in self._named().items():
                    if name in start and start[name].shape == weight.shape:
                        weight.copy_(start[name])

    def _named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        named.update(self.recurrence.named_parameters())
        named |= {"head_weight": self.head.weight, "head_bias": self.head.bias, "log_sigma": self.log_sigma}
        if self.channels >= 2:
            named |= {"cross_h": self.cross_h, "cross_y": self.cross_y, "cross_bias": self.cross_bias}
        return named

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._named().items()}

    def forward(self, inputs: Tensor, y: Tensor, state: "_State | None") -> tuple[Tensor, Tensor, "_State"]:
        """From inputs (W, B, I) and y (W, B, F): locations (W, B, K, F), y read back (W, B, F), the state after."""
        out, state_after = self.recurrence(inputs, state)
        w, b, _ = out.shape
        ahead = self.head(out).view(w, b, len(self.spec.horizons), self.channels)
        if self.channels >= 2:
            first = torch.zeros_like(out[:1])
            if state is not None:
                first = (state[0] if isinstance(state, tuple) else state)[-1:]
            past = torch.cat([first, out[:-1]])
            cross = past @ self.cross_h.t() + y @ (self.cross_y * self.others).t() + self.cross_bias
            ahead = torch.cat([ahead, cross.unsqueeze(2)], 2)
        return ahead, self.reconstruct(out), state_after


_State = tuple[Tensor, Tensor] | Tensor


@dataclass(frozen=True, slots=True)
class _Ticks:
    """Network inputs (T, S, I), scaled values y (T, S, F), seen (T, S, F), and where each tick's state ends (T, S)."""

    inputs: Tensor
    y: Tensor
    seen: Tensor
    until: Tensor
    fit: Tensor
    length: Tensor

    @staticmethod
    def of(stack: _Stack, chosen: Ints) -> "_Ticks":
        x = ((stack.x[:, chosen] - stack.m[chosen]) / stack.s[chosen]).astype(np.float32)
        seen = ~np.isnan(x)
        y: Array = kernel.squashed(np.where(seen, x, np.float32(0.0)).ravel()).reshape(x.shape)
        fresh, dt, time = stack.fresh[:, chosen], stack.dt[:, chosen], stack.time[:, chosen]
        ticks, count, f = y.shape
        clock = np.zeros((ticks, count, 0), dtype=np.float32)
        if stack.calendar:
            clock = features.calendar(time.reshape(-1)).reshape(ticks, count, -1)
        inputs = np.empty((ticks, count, features.width(f, stack.calendar, stack.bins)), dtype=np.float32)
        interval = features.relative_interval(dt, stack.usual[chosen])
        kernel.inputs_of(y, seen, interval, clock, fresh, time, stack.usual[chosen], stack.bins, inputs)
        return _Ticks(
            torch.from_numpy(inputs),
            torch.from_numpy(y),
            torch.from_numpy(seen),
            _until(torch.from_numpy(fresh)),
            torch.from_numpy(stack.fit[chosen]),
            torch.from_numpy(stack.length[chosen]),
        )

    def rows(self, at: Tensor, who: Tensor) -> Tensor:
        """Numbers of ticks (W, B) of series (B,) for `_pick`; those behind the end are the last."""
        return at.clamp(max=len(self.y) - 1) * self.y.shape[1] + who


def _until(fresh: Tensor) -> Tensor:
    """For each tick the next that begins a new state, or the number of ticks, (T, S)."""
    ticks = len(fresh)
    begins = torch.where(fresh, torch.arange(ticks).unsqueeze(1), ticks)
    after = torch.cat([begins[1:], torch.full_like(begins[:1], ticks)])
    return after.flip(0).cummin(0).values.flip(0)


def _pick(values: Tensor, rows: Tensor) -> Tensor:
    """Of values (T, S, …) those of `_Ticks.rows`, (*rows, …)."""
    return values.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, *values.shape[2:])


def _loss(
    network: _Network,
    ticks: _Ticks,
    at: Tensor,
    who: Tensor,
    end: Tensor,
    inputs: Tensor,
    y: Tensor,
    state: _State | None,
    skip: Tensor,
) -> tuple[Tensor, Tensor, _State]:
    """Student-t (nu = 4) negative log-likelihood of a window, the mean of all heads; how far y was read back wrong;
    the state after it.

    Args:
        y: what the cross head sees, (W, B, F).
        at: tick numbers, (W, B).   who: series, (B,).   end: targets lie before this tick, (B,).
        skip: ticks that give no loss, (W, B).
    """
    ahead = torch.tensor([*network.spec.horizons, 0])
    to = at.unsqueeze(2) + ahead
    rows = ticks.rows(to, who.unsqueeze(1))
    target, seen = _pick(ticks.y, rows), _pick(ticks.seen, rows)  # (W, B, P + 1, F)
    until = torch.minimum(_pick(ticks.until, rows[:, :, -1]), end)
    counts = (to < until.unsqueeze(2)) & ~skip.unsqueeze(2)
    mask = (seen & counts.unsqueeze(3)).to(target.dtype)
    location, read_back, after = network(inputs, y, state)
    heads = location.shape[2]
    log_sigma = network.log_sigma.clamp(-6.0, 4.0)
    error = (target[:, :, :heads] - location) / log_sigma.exp()
    loss = log_sigma + 2.5 * torch.log1p(error * error / 4.0)
    by_head = (loss * mask[:, :, :heads]).sum((0, 1, 3)) / mask[:, :, :heads].sum((0, 1, 3)).clamp(min=1.0)
    wrong = (target[:, :, -1] - read_back).abs() * mask[:, :, -1]
    auxiliary = wrong.sum() / mask[:, :, -1].sum().clamp(min=1.0)
    return by_head.mean(), auxiliary, after


def _fit(
    stack: _Stack,
    devices: Sequence[str],
    spec: ModelSpec,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    start: Detector | None,
    progress: Progress,
) -> tuple[list[dict[str, Tensor]], tuple[float, float], bool]:
    """The profile's network, from all series, and where weights are by device, then each series' own from its own.

    Returns stacked weights: after each share of `STAGES`, where the series are learned from for the first time, and
    last those that count; their losses; and whether any of them is better than what it started from.

    One after the other: side by side in one batched product they took longer (58 networks, 6 windows of 64 ticks
    each: 103 ms a step against 81 ms).
    """
    seed += int(stack.length.sum()) if start is not None else 0  # other windows each time
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(stack.length), generator=generator)[:MOST_SERIES].numpy()
    inputs = features.width(stack.x.shape[2], stack.calendar, stack.bins)
    own = len(devices)
    noise = NOISE if stack.declared else 0.0
    short = bool((stack.fit == stack.length).any())  # then nothing is held out
    early: list[list[dict[str, Tensor]]] = [[] for _ in (STAGES if short else STAGES[:-1])]
    if start is not None or (stack.declared and not short):
        early = []
    networks: list[dict[str, Tensor]] = []
    losses: list[tuple[float, float]] = []
    with torch.random.fork_rng(devices=[]):
        for at in range(own + 1):
            begin = _start(start, devices[at - 1] if at else None, networks)
            if at and _knows(start, devices[at - 1], stack.time[: stack.length[at - 1], at - 1]):
                networks.append(dict(begin or {}))
                continue
            torch.manual_seed(seed + at)
            ticks = _Ticks.of(stack, chosen) if at == 0 else _Ticks.of(stack.one(at - 1), np.zeros(1, dtype=np.int64))
            network = _Network(spec, inputs, stack.x.shape[2], begin)
            steps = STEPS if begin is None else FINE_STEPS
            rates = RATE, 0.0
            if start is not None and (at == 0 or devices[at - 1] in start.networks):
                steps, rates = MORE_STEPS, (MORE_RATE, MORE_RATE)

            much = FINE_STAGE_STEPS if at else STAGE_STEPS

            def tell(before: int, own_steps: int, at: int = at, of: int = much * len(early) + steps) -> Progress:
                return lambda what, done: progress(what, (at + (before + done * own_steps) / of) / (own + 1))

            for number, (stage, share) in enumerate(zip(early, STAGES, strict=False)):
                until = (ticks.length * share).long().clamp(min=2)
                learner = _Network(spec, inputs, stack.x.shape[2], stage[0]) if at else network
                known = replace(ticks, fit=until, length=until)
                said = tell(number * much, much)
                stage.append(_descend(learner, known, much, (RATE, 0.0), noise, generator, said)[0])
            said = tell(len(early) * much, steps)
            weights, loss = _descend(network, ticks, steps, rates, noise, generator, said)
            assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
            networks.append(weights)
            losses.append(loss)
    stacked = [
        {name: torch.stack([weights[name] for weights in stage]) for name in shapes} for stage in [*early, networks]
    ]
    before, after = (float(np.mean([pair[at] for pair in losses])) for at in (0, 1))
    return stacked, (before, after), start is None or any(last < first for first, last in losses)


def next_learning(ticks: int) -> int:
    """Ticks at which what has learned from `ticks` learns on."""
    return math.ceil(GROWTH * ticks)


def _learning_until(start: Detector | None, series: Series) -> float:
    """Event time up to which a device's network has learned, this learning included."""
    known = _knows(start, series.device, series.time)
    return _learned_until(start, series.device) if known else float(series.time[-1])


def _learned_until(start: Detector | None, device: str) -> float:
    if start is None or device not in start.networks:
        return -math.inf
    return start.learned_until[start.networks.index(device)]


def _knows(start: Detector | None, device: str, time: Floats) -> bool:
    """Whether a device's network has learned from nearly all of its ticks, (T,)."""
    before = int((time <= _learned_until(start, device)).sum())
    return len(time) < next_learning(before)


def _start(
    start: Detector | None, device: str | None, networks: Sequence[Mapping[str, Tensor]]
) -> Mapping[str, Tensor] | None:
    """Weights that the network of a device, or of the profile, starts from."""
    if start is not None and (device is None or device in start.networks):
        at = 0 if device is None else 1 + start.networks.index(device)
        return {name: value[at] for name, value in start.forecaster.weights.items()}
    return None if device is None else networks[0]


def _descend(
    network: _Network,
    ticks: _Ticks,
    steps: int,
    rates: tuple[float, float],
    noise: float,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Weights after so many steps, or the best of them on held-out ticks; the loss there, at the start and at its best.

    Args:
        rates: of AdamW, at the start and at the end.
    """
    f = network.channels
    window = min(WINDOW, max(int(ticks.fit.max()) - 1, 2))
    room = (ticks.fit - window).clamp(min=0)
    usable = torch.where(ticks.fit >= 2, ticks.fit, 0).double()
    lanes = min(48, 6 * len(ticks.fit))
    optimiser = torch.optim.AdamW(network.parameters(), lr=rates[0], weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=rates[1])
    held_out = _held_out(ticks)
    first = best = _finite(_validate(network, ticks, held_out), 0) if len(held_out) else math.nan
    kept, since_best = network.weights(), 0
    who = torch.multinomial(usable, lanes, replacement=True, generator=generator)
    at = torch.zeros(lanes, dtype=torch.long)
    left = torch.zeros(lanes, dtype=torch.long)
    state: _State | None = None
    span = torch.arange(window).unsqueeze(1)
    network.train()
    for step in range(steps):
        jump = (left <= 0) | (at > room[who])
        drawn = torch.multinomial(usable, lanes, replacement=True, generator=generator)
        who = torch.where(jump, drawn, who)
        random = torch.rand(lanes, generator=generator)
        at = torch.where(jump, (random * (room[who] + 1)).long(), at)
        left = torch.where(jump, torch.full_like(left, CARRIED), left)
        state = _forget(state, jump)
        index = at + span
        inputs = _pick(ticks.inputs, ticks.rows(index, who))
        noisy = torch.randn(window, lanes, 3 * f, generator=generator) * noise
        hidden = torch.rand(window, lanes, f, generator=generator) < MISSING
        inputs[..., : 3 * f] += noisy
        # The cross head sees no noise: its answer to a value would shrink (simulated plants: F1 0.45 with, 0.52 without).
        y = _pick(ticks.y, ticks.rows(index, who)).masked_fill_(hidden, 0.0)
        inputs[..., :f].masked_fill_(hidden, 0.0)
        inputs[..., 3 * f : 4 * f].masked_fill_(hidden, 1.0)
        skip = (jump & (window > 2 * SETTLE)).unsqueeze(0) & (span < SETTLE)
        skip = skip | (index >= ticks.fit[who])
        loss, auxiliary, after = _loss(network, ticks, index, who, ticks.fit[who], inputs, y, state, skip)
        loss = loss + 0.1 * auxiliary
        _finite(loss.item(), step)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        state = (after[0].detach(), after[1].detach()) if isinstance(after, tuple) else after.detach()
        at, left = at + window, left - 1
        progress("fitting", (step + 1) / steps)
        if len(held_out) and ((step + 1) % VALIDATE_EVERY == 0 or step + 1 == steps):
            now = _finite(_validate(network, ticks, held_out), step)
            since_best += 1
            if now < best:
                best, kept, since_best = now, network.weights(), 0
            if since_best >= PATIENCE and step > steps // 2:
                break
    if not len(held_out):
        kept = network.weights()
    _finite(sum(float(weight.abs().sum()) for weight in kept.values()), STEPS)
    return kept, (first, best)


def _finite(value: float, step: int) -> float:
    if not math.isfinite(value):
        msg = f"training diverged at step {step} of {STEPS} ({value}): train again, or with fewer units in model.hidden"
        raise TrainingError(msg)
    return value


def _forget(state: _State | None, rows: Tensor) -> _State | None:
    if state is None:
        return None
    keep = (~rows).float().view(1, -1, 1)
    return (state[0] * keep, state[1] * keep) if isinstance(state, tuple) else state * keep


def _held_out(ticks: _Ticks) -> Tensor:
    """Series with held-out values, at most 64 of them."""
    at = torch.arange(len(ticks.y)).unsqueeze(1)
    within = (at >= ticks.fit) & (at < ticks.length) & (at < (ticks.fit - WINDOW).clamp(min=0) + MOST_VALIDATED[1])
    return (within & ticks.seen.any(2)).any(0).nonzero().squeeze(1)[: MOST_VALIDATED[0]]


def _validate(network: _Network, ticks: _Ticks, who: Tensor) -> float:
    """Loss over the held-out tail of some series, in one pass, with a lead-in of one window.

    What is read back takes no part: a model is saved without it, and starts anew without it.
    """
    network.eval()
    begin = (ticks.fit[who] - WINDOW).clamp(min=0)
    span = torch.arange(min(int((ticks.length[who] - begin).max()), MOST_VALIDATED[1])).unsqueeze(1)
    at = begin + span
    skip = (at < ticks.fit[who]) | (at >= ticks.length[who])
    with torch.no_grad():
        rows = ticks.rows(at, who)
        inputs, y = _pick(ticks.inputs, rows), _pick(ticks.y, rows)
        loss, _, _ = _loss(network, ticks, at, who, ticks.length[who], inputs, y, None, skip)
    network.train()
    return float(loss)


# --- calibration ---------------------------------------------------------------------------------------------------


def _calibrate(
    detector: Detector, stages: Sequence[Mapping[str, Tensor]], stack: _Stack, progress: Progress, *, seek: bool
) -> tuple[Detector, Slabs, list[list[Episode]]]:
    """Stream the series through the detector: each device's statistics, the shift reference, the prior.

    Also which ticks of each series stand apart, if it is to `seek` them.

    Where there are stages, each part of a series is forecast by a network that was fitted on the parts before it alone
    (prequential: Dawid 1984): errors of ticks that a network knows are too small to be a measure.
    """
    cut = np.maximum(stack.length - MOST_CALIBRATION, 0)
    stack = _end(stack, MOST_CALIBRATION)
    layout, count = detector.layout, len(stack.length)
    staged = _Staged.of(detector, stages, stack)
    slabs = Slabs(layout, torch.device("cpu"), count + 1)
    slabs.records[1:] = detector.prior
    for name, values in (("m", stack.m), ("s", stack.s), ("placed", stack.placed), ("interval", stack.usual)):
        slabs.view(name)[1:] = values
    slabs.view("refractory")[1:] = calibrate.refractory(stack.length)
    slabs.view("warm")[1:] = np.where(stack.lately, stack.placed, PLACED)
    if detector.networks:
        slabs.view("network")[1:] = np.arange(1, count + 1)
    slow = np.full((*stack.x.shape[:2], 2 * layout.channels), np.nan, dtype=np.float32) if detector.declared else None
    ticks = len(stack.x)
    quanta = np.zeros((ticks if seek else 0, count, layout.heads * layout.channels), dtype=np.int16)
    for t, who, scored in _stream(staged, stack, slabs, np.zeros(count, dtype=np.int64)):
        progress("calibrating", (t + 1) / ticks)
        if seek:
            quanta[t, who] = slabs.errors[who + 1, (slabs.view("tick")[who + 1].astype(np.int64) - 1) % RING]
        if slow is not None:
            slow[t, who] = scored.shift
        known = who[staged.first[who] == t + 1] + 1
        for name in ("n", "waiting", "calibration", "pending", "tail"):
            slabs.view(name)[known] = 0.0
    kernel.learn_the_rest(kernel.Frame.of(layout, detector.spread_of_locations), kernel.Rings.of(slabs))
    shift = None
    if slow is not None:
        shift = _shift(slabs, stack, slow)
        _freeze(slabs)
        staged = replace(staged, detector=replace(staged.detector, shift=shift))
        _floors(staged, stack, slabs)
    slabs.view("peak")[:] = slabs.view("alarmed")[:] = 0.0
    prior, spread = _prior(layout, slabs.records[1:][~stack.lately], stack)
    for row in np.flatnonzero(stack.lately).tolist():
        _lend(layout, prior, slabs.records[1 + row])
    if shift is not None:
        layout.view(prior[None], "centre")[...] = shift.centre[0]
    detector = replace(detector, shift=shift, prior=prior, spread_of_locations=spread)
    found: list[list[Episode]] = []
    for i, n in enumerate(stack.length.tolist() if seek else ()):
        places = episodes(quanta[:n, i], stack.x[:n, i], int(staged.first[i]), detector.spec.horizons[-1])
        found.append([Episode(begin + int(cut[i]), end + int(cut[i]), channel) for begin, end, channel in places])
    return detector, slabs, found if detector.networks else faults(found)


@dataclass(frozen=True, slots=True)
class _Staged:
    """A detector whose networks take turns.

    Attributes:
        detector: with the networks of all stages, one stage after the other.
        own: networks of a stage.
        first: tick from which errors are those of ticks that the network does not know, (S,); 0: from the start.
        ends: tick at which each stage but the last ends, (stages - 1, S).
    """

    detector: Detector
    own: int
    first: Ints
    ends: Ints

    @staticmethod
    def of(detector: Detector, stages: Sequence[Mapping[str, Tensor]], stack: _Stack) -> "_Staged":
        cells = detector.forecaster
        weights = {name: torch.cat([stage[name] for stage in stages]) for name in stages[-1]}
        together = Forecaster(cells.spec, cells.channels, cells.calendar, cells.bins, weights)
        fitted = [(stack.length * share).astype(np.int64) for share in STAGES[: len(stages) - 1]]
        ends = np.array([*fitted[1:], stack.fit])[: len(stages) - 1].reshape(len(stages) - 1, len(stack.length))
        first = fitted[0] if fitted else np.zeros_like(stack.length)
        return _Staged(replace(detector, forecaster=together), len(cells), first, ends)


def _end(stack: _Stack, most: int) -> _Stack:
    """At most the newest `most` ticks of each series; each series keeps its fitted part's end."""
    if len(stack.x) <= most:
        return stack
    cut = np.maximum(stack.length - most, 0)
    index = np.minimum(np.arange(most)[:, None] + cut, len(stack.x) - 1)
    who = np.arange(len(cut))
    return replace(
        stack,
        x=stack.x[index, who],
        time=stack.time[index, who],
        dt=stack.dt[index, who],
        fresh=stack.fresh[index, who],
        length=stack.length - cut,
        fit=np.maximum(stack.fit - cut, 1),
    )


def _stream(staged: _Staged, stack: _Stack, slabs: Slabs, begin: Ints) -> Iterator[tuple[int, Ints, Scored]]:
    scorer = Scorer(staged.detector, {}, 1 / calibrate.WEEK, None)
    network = slabs.view("network")
    home = network[1:].copy()
    for t in range(int(begin.min()), len(stack.x)):
        who = np.flatnonzero((t >= begin) & (t < stack.length))
        if len(who):
            network[who + 1] = home[who] + staged.own * (t >= staged.ends[:, who]).sum(0)
            reset = stack.fresh[t, who] | (t == begin[who])
            yield t, who, scorer.observe(slabs, who + 1, stack.x[t, who], stack.dt[t, who], stack.time[t, who], reset)
    network[1:] = home


def _freeze(slabs: Slabs) -> None:
    """What a declared recording taught stays, but for slow drift: in the long memory alone."""
    slabs.view("frozen")[:] = 1.0
    memories = slabs.view("calibration")
    memories[:, 1] = memories[:, 0]


def _shift(slabs: Slabs, stack: _Stack, slow: kernel.F4) -> ShiftReference | None:
    varied, f = slabs.view("varied")[1:], slabs.layout.channels
    if f < 2 or varied.sum(1).max() < 2:
        return None
    far = slabs.layout.spec.horizons[-1]
    parts, rows = [], []
    for i, n in enumerate(stack.length):
        first = max(EARLIEST_SHIFT, far + 20, 150 if n > 450 else 0)
        rows.append(slow[min(first, max(n - 1, 0)) : n, i].astype(np.float64))
    for i, v in enumerate([np.concatenate(rows)[-MOST_CALIBRATION:], *rows]):
        parts.append(calibrate.shift_reference(v[:, :f], v[:, f:], varied.max(0) if i == 0 else varied[i - 1]))
    centre, precision, most = (np.array(part, dtype=np.float32) for part in zip(*parts, strict=True))
    slabs.view("group")[1:] = np.arange(1, len(rows) + 1)
    slabs.view("centre")[1:] = centre[1:]
    return ShiftReference(centre, precision, most, values_only=bool((stack.fit == stack.length).any()))


def _floors(staged: _Staged, stack: _Stack, slabs: Slabs) -> None:
    """What is normal for each device and each of its channels: mean + k sd of the surprise of ticks not fitted on.

    k = 4 (1 + 200 / n). Of several channels in a recording too short to hold any of it out, nothing is surprising: the
    shift of their values is all that can be told (SKAB, 400 rows: false-alarm rate 50 % with surprise, 21 % without).
    """
    held_out = stack.fit < stack.length
    begin = np.where(held_out, np.maximum(stack.fit - 2 * WINDOW, 0), np.maximum(staged.first - 2 * WINDOW, 0))
    count = np.where(held_out, stack.fit, staged.first)
    f = len(staged.detector.channels)
    sums, squares = np.zeros((len(stack.length), f + 1)), np.zeros((len(stack.length), f + 1))
    n = np.zeros((len(stack.length), 1))
    for t, who, scored in _stream(staged, stack, slabs, begin):
        both = np.column_stack([scored.own, scored.together]).astype(np.float64)
        use = ~np.isnan(scored.surprise) & (t >= count[who])
        n[who[use]] += 1
        sums[who[use]] += both[use]
        squares[who[use]] += both[use] ** 2
    known = n[:, 0] >= LEAST
    n = np.maximum(n, 1.0)
    mean = sums / n
    limit = mean + 4.0 * (1.0 + 200.0 / n) * np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    varied = np.maximum(slabs.view("varied")[1:].sum(1, keepdims=True), 1.0)
    limit[:, :f] /= [[kernel.height_of(calibrate.DECLARED_LEVEL, count, True)] for count in varied[:, 0].tolist()]
    limit[:, f:] /= calibrate.DECLARED_LEVEL
    if staged.detector.shift is not None:
        limit[~held_out] = NEVER
    slabs.view("accepted")[1:][known, : f + 1] = np.maximum(limit, 1.0)[known]


def _lend(layout: Layout, prior: kernel.F4, record: kernel.F4) -> None:
    """Give a device that joined lately the statistics of new ones, where its own are from less."""
    if layout.view(record[None], "n").max() < layout.view(prior[None], "n").max():
        for name in _STATISTICS:
            layout.view(record[None], name)[...] = layout.view(prior[None], name)


_STATISTICS = ("n", "waiting", "calibration", "pending", "tail", "lo", "hi", "v1", "v2", "varied", "accepted")


def _prior(layout: Layout, records: kernel.F4, stack: _Stack) -> tuple[kernel.F4, kernel.F4]:
    """What a new device starts from, (width,), and the spread of the devices' locations, (F,)."""
    prior = _blank(layout, stack.interval)[None]
    pooled: dict[str, Array] = {"s": np.median(stack.s[~stack.lately], 0), "m": np.median(stack.m[~stack.lately], 0)}

    def of(name: str) -> Array:
        return layout.view(records, name)

    known = of("n").max(1) >= LEAST
    if known.any():
        mean, var = np.moveaxis(of("calibration")[known], 2, 0)
        pooled["calibration"] = np.stack([mean.mean(0), var.mean(0) + mean.var(0)], 1)
        pooled["n"] = np.median(of("n")[known], 0)
        pooled["accepted"] = np.median(of("accepted")[known], 0)
    pooled["lo"], pooled["hi"] = of("lo").min(0), of("hi").max(0)
    pooled["varied"] = of("varied").max(0)
    pooled["centre"] = of("centre").mean(0)
    for name in ("v1", "v2", "frozen"):
        pooled[name] = of(name)[0]
    for name, value in pooled.items():
        layout.view(prior, name)[0] = value
    if not of("frozen")[0]:
        layout.view(prior, "v1")[...] = layout.view(prior, "v2")[...] = np.nan
        n = layout.view(prior, "n")
        np.minimum(n, LIVE_PRIOR, out=n)
    spread = _unlike(stack.m[~stack.lately], stack.s[~stack.lately]).astype(np.float32)
    layout.view(prior, "warm")[...] = 0.0 if (spread > 0).any() else PLACED
    return prior[0], spread
