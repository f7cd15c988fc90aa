"""The detector: judges a tick by what was forecast for it, then steps the state on.

Axes: B rows in a batch (one device each), F channels, K heads, P horizons, N slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentinel.model import calibrate, features
from sentinel.model.calibrate import ShiftReference
from sentinel.model.cells import State
from sentinel.model.forecaster import Forecaster
from sentinel.model.scale import LIMIT, ProfileScale
from sentinel.model.slabs import MEMORIES, PAD, RING, STREAMS, Layout, Slabs
from sentinel.records import Bools, Channel, Floats, Ints, ModelSpec

QUANTUM = 1638.0  # errors are kept as int16 at 1/1638: the clip of ±20 fits, and window sums stay exact
ERROR_LIMIT = 20.0
SETTLE = 16  # ticks of a fresh state that are not judged; training leaves as many unscored
WARM = 24  # ticks that give a new device of a mixed fleet its own location; 24 + 16 + 1 < 50
WINDOWS = (
    (10, True),
    (30, True),
    (5, False),
    (20, False),
)  # mean |e| and |mean e|; an EWMA instead costs 2 points of NAB, measured
RANGE_WEIGHT, RANGE_AFTER = 6.0, 300.0
EARLIEST_SHIFT = 80  # ticks before the slow means are believed
BAND = 3.0  # sigmas
# Ticks of live calibration at which the threshold is twice its level. On 100 healthy simulated devices, in the 560 ticks
# after learning: 24 alerts with 0, 8 with 50, 3 with 100; but the higher, the longer one channel of several is not told.
UNSURE = 50.0


@dataclass(frozen=True, slots=True)
class Detector:
    """A trained profile: forecaster, scales, and what a new device starts from.

    Attributes:
        channels: names of the F channels, in the network's order.
        prior: record of a new device, (width,).
        spread_of_locations: of the trained devices' locations, in profile units, (F,); 0: all alike.
        interval: usual seconds between ticks.
        longest_run: longest run of one value while healthy, in ticks, (F,).
        declared: trained on a recording that the user gave as clean; statistics stay frozen.
        version: hash of all this; empty until saved.
    """

    channels: tuple[str, ...]
    scale: ProfileScale
    forecaster: Forecaster
    prior: Tensor
    spread_of_locations: Tensor
    interval: float
    longest_run: Floats
    declared: bool
    shift: ShiftReference | None = None
    version: str = ""

    @property
    def spec(self) -> ModelSpec:
        return self.forecaster.spec

    @property
    def layout(self) -> Layout:
        return Layout(self.spec, len(self.channels))


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of B ticks, rows as given.

    Attributes:
        score: surprise over threshold, (B,); NaN: no score yet.
        surprise: A, joined over channels, (B,).
        p_value: (B,), NaN where there is no score.
        blame: each channel's part in the surprise, >= 0, (B, F).
        forecast: location forecast one step ahead, scaled, (B, F); NaN where there is none.
        location, spread: the devices' own, in profile units, (B, F).
        shift: slow means of values and far errors, (B, 2, F).
    """

    score: Tensor
    surprise: Tensor
    p_value: Tensor
    blame: Tensor
    forecast: Tensor
    location: Tensor
    spread: Tensor
    shift: Tensor


class Scorer:
    """Runs a detector over the device table. Holds no state of devices: that is in the slabs it is given."""

    def __init__(
        self,
        detector: Detector,
        channels: Mapping[str, Channel],
        budget: float,
        threshold: float | None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take gates (`min_deviation`, `direction`) from `channels`, and the threshold from budget or `threshold`.

        Args:
            budget: alerts per second and device.
            threshold: explicit threshold on the surprise; None: from the budget.
        """
        self.detector = detector
        self.device = torch.device(device)
        self.layout = detector.layout
        self.level = calibrate.level(budget, detector.interval, declared=detector.declared)
        self.threshold = threshold
        self.budget = budget or 1 / calibrate.WEEK
        moved = {name: weight.to(self.device) for name, weight in detector.forecaster.weights.items()}
        self.forecaster = Forecaster(detector.spec, len(detector.channels), detector.forecaster.calendar, moved)
        self._shift = None if detector.shift is None else detector.shift.to(self.device)
        gates = [channels.get(name, Channel(name)) for name in detector.channels]
        unit = detector.scale.spread
        self._least = self._tensor(np.array([g.min_deviation for g in gates]) / unit)
        self._up = self._tensor([g.direction != "below" for g in gates])
        self._down = self._tensor([g.direction != "above" for g in gates])
        self._gated = any(g.min_deviation > 0 or g.direction != "both" for g in gates)
        horizons = detector.spec.horizons
        self._horizons = torch.tensor(horizons, device=self.device)
        self._offsets = torch.tensor(self.layout.offsets, device=self.device)
        # The cross head needs no forecast from before, only a settled state.
        self._valid_from = torch.tensor([max(h, SETTLE) for h in horizons], device=self.device)
        if self.layout.heads > len(horizons):
            self._valid_from = torch.cat([self._valid_from, torch.tensor([SETTLE], device=self.device)])
        self._back = torch.tensor([w for w, _ in WINDOWS], device=self.device)
        self._lengths = self._tensor([w * QUANTUM for w, _ in WINDOWS]).view(1, -1, 1)
        self._magnitudes = sum(magnitude for _, magnitude in WINDOWS)
        self._spread = self._tensor(detector.spread_of_locations)
        self._mixed = bool((self._spread > 0).any())

    def _tensor(self, values: object) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    def begin(self, slabs: Slabs, rows: Tensor) -> None:
        """Make `rows` new devices of the profile."""
        slabs.records[rows] = self.detector.prior.to(self.device)
        slabs.ahead[rows] = 0.0
        slabs.errors[rows] = 0

    def raise_threshold(self, slabs: Slabs, row: int) -> None:
        """An alert of this device has ended: raise its threshold."""
        raised = self.layout.view(slabs.records, "raised")
        raised[row] = min(float(raised[row]) + calibrate.RAISE, calibrate.RAISE_LIMIT)

    def ready(self, slabs: Slabs) -> tuple[Bools, Bools]:
        """Which slots are calibrated, and which states have settled, (N,) each: both give a score."""
        view = self.layout.view
        enough: Bools = (view(slabs.records, "n").amax(1) >= calibrate.LEAST).cpu().numpy()
        settled: Bools = (view(slabs.records, "since") >= SETTLE).cpu().numpy()
        return enough, settled

    def saturation(self, slabs: Slabs, rows: Tensor, limit: float = 8.0) -> float:
        """Share of cells with |c| over `limit`: an LSTM fed without end can saturate (Gers et al. 1999)."""
        if self.detector.spec.cell != "lstm" or not len(rows):
            return 0.0
        return float((self.layout.view(slabs.records[rows], "c").abs() > limit).float().mean())

    @torch.inference_mode()
    def observe(self, slabs: Slabs, slots: Ints, values: Floats, dt: Floats, time: Floats, reset: Bools) -> Scored:
        """Score one tick of each of B devices, learn from it, and step their state on in `slabs`.

        Args:
            slots: the devices, (B,), no two alike, none 0.
            values: in profile units (`ProfileScale.scaled`), (B, F), NaN where not seen.
            dt: seconds since each device's previous tick, (B,), >= 0.
            time: event times, (B,).
            reset: devices whose state begins anew with this tick, (B,).
        """
        count = len(slots)
        padded = -(-count // PAD) * PAD
        rows = torch.from_numpy(_pad(slots, padded)).to(self.device)
        x = torch.from_numpy(_pad(values.astype(np.float32), padded)).to(self.device)
        lapse = torch.from_numpy(_pad(dt.astype(np.float32), padded)).to(self.device)
        anew = torch.from_numpy(_pad(reset, padded)).to(self.device)
        clock = features.calendar(_pad(time, padded)).to(self.device) if self.forecaster.calendar else None
        scored = self._observe(slabs, rows, x, lapse, clock, anew)
        return Scored(*(getattr(scored, name)[:count].cpu() for name in Scored.__slots__))

    def _observe(
        self, slabs: Slabs, rows: Tensor, x: Tensor, dt: Tensor, clock: Tensor | None, reset: Tensor
    ) -> Scored:
        layout, spec, b, f = self.layout, self.detector.spec, len(rows), self.layout.channels
        record = slabs.records.index_select(0, rows)
        ahead_by_cell = slabs.ahead.view(-1, f)
        errors_by_cell = slabs.errors.view(-1, layout.heads * f)

        def get(name: str) -> Tensor:
            return layout.view(record, name)

        # Where each device stands.
        since, tick = get("since"), get("tick")
        since.masked_fill_(reset, 0.0)
        fresh = since == 0
        tick.masked_fill_(fresh, 0.0)
        position = tick.long()
        age = since.unsqueeze(1)
        unseen = torch.isnan(x)
        x = x.masked_fill(unseen, 0.0)
        seen = ~unseen
        if self._mixed:
            seen = seen & self._warm(record, x, seen).unsqueeze(1)
        m, s = get("m"), get("s")
        linear = ((x - m) / s).clamp(-LIMIT, LIMIT)
        y = torch.asinh(linear).mul_(seen)

        # Errors: what came minus what was forecast for it, over the device's spread.
        alive = (~fresh).to(x.dtype).view(b, 1, 1)
        h = get("h") * alive
        c = get("c") * alive if spec.cell == "lstm" else torch.zeros_like(h)
        state = State(h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        cells = (rows * layout.depth).unsqueeze(1) + self._offsets + position.unsqueeze(1) % self._horizons  # (B, P)
        cells = cells.view(-1)
        forecast = ahead_by_cell.index_select(0, cells).view(b, -1, f)  # (B, P, F)
        if layout.heads > len(spec.horizons):
            forecast = torch.cat([forecast, self.forecaster.cross(y.clamp(-8.0, 8.0), state).unsqueeze(1)], 1)
        valid = age >= self._valid_from  # (B, K)
        unjudged = ~(valid.unsqueeze(2) & seen.unsqueeze(1))  # (B, K, F)
        error = (linear.unsqueeze(1) - torch.sinh(forecast.clamp(-14.0, 14.0))).masked_fill_(unjudged, 0.0)
        gated = self._gate(error, s) if self._gated else error
        quanta = torch.round(gated.clamp(-ERROR_LIMIT, ERROR_LIMIT) * QUANTUM).view(b, 1, -1)  # (B, 1, K F)

        # Window sums, exact in whole quanta.
        rings = (rows * RING).unsqueeze(1)
        back = (rings + (position.unsqueeze(1) - self._back) % RING).view(-1)
        old = errors_by_cell.index_select(0, back).view(b, len(WINDOWS), -1) * (age >= self._back).unsqueeze(2)
        # Streams of magnitudes come first.
        split = self._magnitudes
        change = torch.cat([quanta.abs() - old[:, :split].abs(), quanta - old[:, split:]], 1)
        sums = get("sums") * alive + change
        u = (sums / self._lengths).abs()

        # Surprise A.
        n = get("n")
        calibration = get("calibration")
        believed = valid & (n >= calibrate.LEAST)  # (B, K)
        z, raw, away = calibrate.standardise(u, calibration)
        weight = (believed / (STREAMS * MEMORIES)).unsqueeze(2)
        z = z.view(b, layout.heads, f) * weight
        heads = believed.sum(1, keepdim=True)
        frozen = get("frozen") > 0
        beyond = self._beyond(record, linear, seen, frozen, n.amax(1) >= RANGE_AFTER)
        surprises = z.sum(1) / heads.clamp(min=1) + beyond  # (B, F)
        counts = self._varied(record, linear, seen, frozen)
        channels = counts.sum(1)
        surprise = (surprises * counts).sum(1) / channels
        has_score = heads.squeeze(1) > 0

        # Score: the threshold falls with the channels averaged over, and is raised by past alerts.
        raised = get("raised")
        raised.copy_(calibrate.decay(raised, dt.clamp(max=64 * self.detector.interval), self.budget))
        breadth = channels**0.75
        # Statistics of few ticks are uncertain: the threshold comes down to its level as they grow.
        unsure = torch.where(frozen, 0.0, UNSURE / n.amax(1).clamp(min=1.0))
        if self.threshold is not None:
            base = torch.full_like(surprise, self.threshold)
        else:
            base = torch.maximum(get("floor"), self.level / breadth)
        # Never so high that a channel at its ceiling could not be told.
        limit = torch.maximum(calibrate.CEILING / breadth, base)
        score = surprise / torch.minimum(base * (1 + unsure) * (1 + raised), limit)

        # Shift B: slow means against their clean covariance.
        shift = torch.stack([get("shift_y"), get("shift_e")], 1) * alive
        far = torch.stack([linear.clamp(-ERROR_LIMIT, ERROR_LIMIT), error[:, len(spec.horizons) - 1]], 1)
        far = far.clamp(-ERROR_LIMIT, ERROR_LIMIT)
        slow = torch.where(fresh.view(b, 1, 1), far, shift + calibrate.SHIFT_RATE * (far - shift))
        shift = torch.where(seen.unsqueeze(1), slow, shift)
        # Heads of the past alone say which channel: the cross head raises a fault's neighbours too.
        past = len(spec.horizons)
        own = ((raw.view(b, layout.heads, f) * weight)[:, :past].sum(1) + beyond) * counts
        blame = torch.where(own.sum(1, keepdim=True) > 0, own, surprises * counts)
        if self._shift is not None:
            blunt = self._gate_shift(shift, s)
            distance, parts = self._shift.distance(shift, get("group").long(), blunt)
            distance = torch.where(since >= EARLIEST_SHIFT, distance, 0.0)
            by_shift = (distance / calibrate.SHIFT_LIMIT).pow(1 / 3) / (1 + raised)
            # Two channels that explain each other tie in `parts`; what the past says of each decides.
            both = _shares(parts) + _shares(blame)
            blame = torch.where((by_shift > score).unsqueeze(1), both, blame)
            score = torch.maximum(score, by_shift)
        p = calibrate.p_value(score * (1 + raised) * self.level)
        scoreless, unforeseen = ~has_score, ~valid[:, :1]
        if spec.horizons[0] != 1:
            unforeseen = torch.ones_like(unforeseen)
        scored = Scored(
            score=score.masked_fill_(scoreless, torch.nan),
            surprise=surprise.masked_fill_(scoreless, torch.nan),
            p_value=p.masked_fill_(scoreless, torch.nan),
            blame=blame,
            forecast=forecast[:, 0].masked_fill(unforeseen, torch.nan),
            location=m.clone(),
            spread=s.clone(),
            shift=shift,
        )

        # Learn: from everything, unless the user's recording says what is normal.
        learns = (age >= self._valid_from + RING) & ~frozen.unsqueeze(1)
        if bool(learns.any()):
            calibrate.update_(calibration, away, n, learns)

        # Step: the forecasts for the ticks to come.
        usual = features.relative_interval(dt, self.detector.interval) * (~fresh)
        inputs, last, mean = features.step(
            y.clamp(-8.0, 8.0), seen, usual, clock, get("last") * alive[:, 0], get("mean") * alive[:, 0], fresh
        )
        ahead, state = self.forecaster.step(inputs, state)
        started = (get("warm") >= WARM).to(x.dtype)
        get("h").copy_(state.h.transpose(0, 1) * started.view(b, 1, 1))
        if spec.cell == "lstm":
            get("c").copy_(state.c.transpose(0, 1) * started.view(b, 1, 1))
        get("sums").copy_(sums)
        get("last").copy_(last)
        get("mean").copy_(mean)
        get("shift_y").copy_(shift[:, 0])
        get("shift_e").copy_(shift[:, 1])
        tick.copy_((tick + 1) % layout.period)
        since.copy_((since + 1).clamp(max=2.0**20) * started)
        ahead_by_cell.index_copy_(0, cells, ahead.reshape(-1, f))
        errors_by_cell.index_copy_(0, rings.squeeze(1) + position % RING, quanta.squeeze(1).to(torch.int16))
        slabs.records.index_copy_(0, rows, record)
        return scored

    def _warm(self, record: Tensor, x: Tensor, seen: Tensor) -> Tensor:
        """Give new devices of a mixed fleet a location of their own, from their first ticks and the fleet's; (B,).

        Normal prior over the fleet's locations, one effective observation of the device:
        m = (M / tau^2 + mean / s^2) / (1 / tau^2 + 1 / s^2).
        """
        view = self.layout.view
        warm, total, m = view(record, "warm"), view(record, "warm_sum"), view(record, "m")
        begun = warm >= WARM
        # One wild value must not place the device: it counts for at most six spreads.
        most = 6.0 * (self._spread**2 + view(record, "s") ** 2).sqrt()
        near = torch.minimum(torch.maximum(x, m - most), m + most)
        total.copy_(torch.where(begun.unsqueeze(1), total, total + torch.where(seen, near, m)))
        warm.copy_((warm + 1).clamp(max=WARM))
        ends = ~begun & (warm >= WARM)
        weight = self._spread**2 / (self._spread**2 + view(record, "s") ** 2)
        m.copy_(torch.where(ends.unsqueeze(1), m + weight * (total / WARM - m), m))
        return begun

    def _gate(self, error: Tensor, s: Tensor) -> Tensor:
        """Errors (B, K, F), 0 where the user's gates say that they do not count."""
        kept = (error.abs() * s.unsqueeze(1) >= self._least) & torch.where(error > 0, self._up > 0, self._down > 0)
        return torch.where(kept, error, 0.0)

    def _gate_shift(self, shift: Tensor, s: Tensor) -> Tensor:
        """1 where a slow deviation (B, 2, F) passes the user's gates, else 0."""
        if not self._gated or self._shift is None:
            return torch.ones_like(shift)
        away = shift - self._shift.centre[:1]
        return (self._gate(away, s) != 0).to(shift.dtype)

    def _beyond(self, record: Tensor, linear: Tensor, seen: Tensor, frozen: Tensor, active: Tensor) -> Tensor:
        """The range term, 6 clip(r / 0.02, 0, 1), r the excess over the historical range over that range; (B, F).

        Widens the range by this tick unless frozen.
        """
        lo, hi = self.layout.view(record, "lo"), self.layout.view(record, "hi")
        counts = seen & active.unsqueeze(1) & (lo <= hi)
        excess = torch.maximum(lo - linear, linear - hi).clamp_(min=0.0)
        if self._gated:
            excess = self._gate(torch.where(linear > hi, excess, -excess).unsqueeze(1), self.layout.view(record, "s"))
            excess = excess.squeeze(1).abs()
        ratio = excess / (hi - lo + calibrate.FLOOR)
        learns = seen & ~frozen.unsqueeze(1)
        lo.copy_(torch.where(learns, torch.minimum(lo, linear), lo))
        hi.copy_(torch.where(learns, torch.maximum(hi, linear), hi))
        return torch.where(counts, (ratio * (RANGE_WEIGHT / 0.02)).clamp_(max=RANGE_WEIGHT), 0.0)

    def _varied(self, record: Tensor, linear: Tensor, seen: Tensor, frozen: Tensor) -> Tensor:
        """Which channels are scored, 0 or 1, (B, F): those that showed a third value so far; if none did, all.

        A channel of which a declared recording had no value is never scored: nothing says what is normal.
        """
        view = self.layout.view
        varied = view(record, "varied")
        if bool(varied.all()):
            return varied
        v1, v2 = view(record, "v1"), view(record, "v2")
        none1, none2 = torch.isnan(v1), torch.isnan(v2)
        third = seen & ~none1 & ~none2 & (linear != v1) & (linear != v2)
        varied.copy_(torch.maximum(varied, third.to(varied.dtype)))
        second = seen & ~none1 & none2 & (linear != v1)
        v2.copy_(torch.where(second, linear, v2))
        v1.copy_(torch.where(seen & none1 & ~frozen.unsqueeze(1), linear, v1))
        return torch.where(varied.sum(1, keepdim=True) > 0, varied, 1.0)


def _shares(blame: Tensor) -> Tensor:
    return blame / blame.sum(1, keepdim=True).clamp(min=1e-9)


def _pad(values: np.ndarray[Any, np.dtype[Any]], rows: int) -> np.ndarray[Any, np.dtype[Any]]:
    if len(values) == rows:
        return values
    out = np.zeros((rows, *values.shape[1:]), dtype=values.dtype)
    out[: len(values)] = values
    return out
