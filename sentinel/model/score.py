"""The detector: judges a tick by what was forecast for it, then steps the state on.

Axes: B rows in a batch (one device each), F channels, K heads, P horizons, N slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch

from sentinel.model import calibrate, features, kernel
from sentinel.model.calibrate import ShiftReference
from sentinel.model.cells import PAD, State
from sentinel.model.forecaster import Forecaster
from sentinel.model.scale import ProfileScale
from sentinel.model.slabs import Array, Layout, Slabs
from sentinel.records import Bools, Channel, Floats, Ints, ModelSpec

BAND = kernel.SIGMAS
ACCEPTED_ROOM = 1.1
SATURATED = 8.0  # |c| of a cell beyond which its output gate sees ±1 whatever comes


@dataclass(frozen=True, slots=True)
class Detector:
    """A trained profile: forecaster, scales, and what a new device starts from.

    Attributes:
        channels: names of the F channels, in the network's order.
        prior: record of a new device, (width,).
        spread_of_locations: of the trained devices' locations, in profile units, (F,); 0: all alike.
        interval: usual seconds between ticks.
        longest_run: longest run of one value while healthy, in ticks, (F,).
        declared: trained on a recording that the user gave as clean: statistics follow only slowly.
        networks: devices that have a network of their own, in the order of the forecaster's weights after the first,
            which is the profile's.
        learned_until: event time of the newest tick of each of those devices that its network has learned from.
        version: hash of all this; empty until saved.
    """

    channels: tuple[str, ...]
    scale: ProfileScale
    forecaster: Forecaster
    prior: kernel.F4
    spread_of_locations: kernel.F4
    interval: float
    longest_run: Floats
    declared: bool
    shift: ShiftReference | None = None
    networks: tuple[str, ...] = ()
    learned_until: tuple[float, ...] = ()
    version: str = ""

    @property
    def spec(self) -> ModelSpec:
        return self.forecaster.spec

    @property
    def layout(self) -> Layout:
        return Layout(self.spec, len(self.channels), self.forecaster.bins)


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of B ticks, rows as given.

    Attributes:
        score: surprise over threshold, (B,); NaN: no score yet.
        alarm: the same over the threshold as the budget's controller has raised it, (B,): what makes alerts.
        surprise: joined over channels, (B,).
        p_value: tail probability a tick of such a surprise, (B,), NaN where there is no score.
        own: each channel's surprise, (B, F).
        forecast: location forecast one step ahead, scaled, (B, F); NaN where there is none.
        location, spread: the devices' own, in profile units, (B, F).
        shift: slow means of values and far errors, (B, 2 F).
        highest, together, joint, count, unsure, tail, slope: what the score is made of, see `kernel.score_of` and
            `kernel.level_of`, (B,).
        highest_rare, together_rare: the same of what alerts of declared profiles must exceed besides, (B,).
        network: whose weights forecast it, (B,).
        settled: devices that alarmed for so long that their statistics run from here on, (B,).
    """

    score: kernel.F4
    alarm: kernel.F4
    surprise: kernel.F4
    p_value: kernel.F4
    own: kernel.F4
    forecast: kernel.F4
    location: kernel.F4
    spread: kernel.F4
    shift: kernel.F4
    highest: kernel.F4
    together: kernel.F4
    joint: kernel.F4
    count: kernel.F4
    unsure: kernel.F4
    tail: kernel.F4
    slope: kernel.F4
    highest_rare: kernel.F4
    together_rare: kernel.F4
    settled: Bools
    network: Ints

    def row(self, at: int) -> "Scored":
        """One of the ticks."""
        return self.rows(slice(at, at + 1))

    def rows(self, index: Ints | slice) -> "Scored":
        """Some of the ticks."""
        return Scored(*(getattr(self, part.name)[index] for part in fields(self)))


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
            device: where the network runs; the rest runs on the CPU.
        """
        self.detector = detector
        self.device = torch.device(device)
        self.layout = detector.layout
        moved = {name: weight.to(self.device) for name, weight in detector.forecaster.weights.items()}
        own = detector.forecaster
        self.forecaster = Forecaster(detector.spec, len(detector.channels), own.calendar, own.bins, moved)
        gates = [channels.get(name, Channel(name)) for name in detector.channels]
        f = len(gates)
        shift = detector.shift
        level = threshold
        if level is None and detector.declared:
            level = calibrate.declared_level(budget)
        self._frame = kernel.Frame.of(self.layout, detector.spread_of_locations)
        self._judgement = kernel.Judgement(
            least=np.array([g.min_deviation for g in gates] / detector.scale.spread, dtype=np.float32),
            up=np.array([g.direction != "below" for g in gates], dtype=np.float32),
            down=np.array([g.direction != "above" for g in gates], dtype=np.float32),
            gated=any(g.min_deviation > 0 or g.direction != "both" for g in gates),
            declared=detector.declared,
            budget=budget or 1 / calibrate.WEEK,
            level=float("nan") if level is None else float(level),
            given=threshold is not None,
            precision=np.zeros((0, 2, f, f), dtype=np.float32) if shift is None else shift.precision,
            most=np.zeros((0, 2), dtype=np.float32) if shift is None else shift.most,
            values_only=shift is not None and shift.values_only,
        )

    def begin(self, slabs: Slabs, rows: Array) -> None:
        """Make `rows` new devices of the profile."""
        slabs.records[rows] = self.detector.prior
        slabs.blank(rows)

    def raise_threshold(self, slabs: Slabs, row: int) -> None:
        """An alert of this device has ended: raise its threshold."""
        raised = slabs.view("raised")
        raised[row] = min(float(raised[row]) + kernel.RAISE, kernel.RAISE_LIMIT)

    def accept(self, slabs: Slabs, row: int) -> None:
        """What came while this device's alert was open is normal: it, and a tenth more, alarms no longer."""
        accepted, peak = slabs.view("accepted")[row], slabs.view("peak")[row]
        np.maximum(accepted, np.where(peak >= 1.0, ACCEPTED_ROOM * peak, accepted), out=accepted)
        peak[:] = 0.0

    def alert_begins(self, slabs: Slabs, row: int, scored: Scored, at: int) -> None:
        """With tick `at` of `scored` an alert of this device begins: what is remembered of it begins there."""
        peak, f, count = slabs.view("peak")[row], self.layout.channels, float(scored.count[at])
        own = self._judgement
        tail, slope = float(scored.tail[at]), float(scored.slope[at])
        level = kernel.level_of(own.level, own.budget, float(slabs.view("interval")[row]), count, tail, slope)
        peak[:f] = scored.own[at] / kernel.height_of(level, count, own.declared)
        peak[f] = scored.together[at] * slabs.view("accepted")[row, f] / level
        peak[f + 1] = scored.joint[at] * slabs.view("accepted")[row, f + 1]

    def ready(self, slabs: Slabs) -> tuple[Bools, Bools]:
        """Which slots are calibrated, and which states have settled, (N,) each: both give a score."""
        return slabs.view("n").max(1) >= kernel.LEAST, slabs.view("since") >= kernel.SETTLE

    def saturation(self, slabs: Slabs, rows: Array, limit: float = SATURATED) -> float:
        """Share of cells with |c| over `limit`: an LSTM fed without end can saturate (Gers et al. 1999)."""
        if self.detector.spec.cell != "lstm" or not len(rows):
            return 0.0
        return float((slabs.state[torch.from_numpy(rows).to(self.device), 1].abs() > limit).float().mean())

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
        frame, b, f = self._frame, len(slots), self.layout.channels
        rings = kernel.Rings.of(slabs)
        padded = -(-b // PAD) * PAD
        inputs = np.zeros((padded, features.width(f, self.forecaster.calendar, self.layout.bins)), dtype=np.float32)
        y, alive = np.zeros((padded, f), dtype=np.float32), np.zeros(padded, dtype=np.float32)
        linear = np.empty((b, f), dtype=np.float32)
        clock = features.calendar(time) if self.forecaster.calendar else np.empty((b, 0), dtype=np.float32)
        lapse = features.relative_interval(dt, slabs.view("interval")[slots])
        x = np.ascontiguousarray(values, dtype=np.float32)
        kernel.prepare(frame, rings, slots, x, dt, lapse, time, clock, reset, linear, y, inputs, alive)
        network = slabs.view("network")[slots].astype(np.int64)
        cross, ahead = self._step(slabs, slots, network, inputs, y, alive)
        one, each = np.empty((13, b), dtype=np.float32), np.empty((4, b, f), dtype=np.float32)
        out = Scored(
            score=one[0],
            surprise=one[1],
            p_value=one[2],
            own=each[0],
            forecast=each[1],
            location=each[2],
            spread=each[3],
            shift=np.empty((b, 2 * f), dtype=np.float32),
            highest=one[3],
            together=one[4],
            joint=one[5],
            count=one[6],
            unsure=one[7],
            tail=one[8],
            slope=one[9],
            alarm=one[10],
            highest_rare=one[11],
            together_rare=one[12],
            settled=np.empty(b, dtype=np.bool_),
            network=network,
        )
        verdicts = kernel.Verdicts(*(getattr(out, name) for name in kernel.Verdicts._fields))
        kernel.judge(frame, rings, self._judgement, slots, linear, cross, ahead, dt, verdicts)
        return out

    def _step(
        self, slabs: Slabs, slots: Ints, networks: Ints, inputs: kernel.F4, y: kernel.F4, alive: kernel.F4
    ) -> tuple[kernel.F4, kernel.F4]:
        """Step the network on; returns what the cross head says of this tick, (B, F) or (B, 0), and (B, P, F)."""
        b, padded = len(slots), len(inputs)
        rows = self._padded(slots, padded)
        network = self._padded(networks, padded) if len(self.forecaster) > 1 else None
        lives = torch.from_numpy(alive).to(self.device).view(-1, 1, 1, 1)
        state = (slabs.state.index_select(0, rows) * lives).permute(1, 2, 0, 3)  # (2, L, B, H)
        before = State(state[0], state[-1] if len(state) > 1 else torch.zeros_like(state[0]))
        cross = np.empty((b, 0), dtype=np.float32)
        if self.layout.heads > len(self.detector.spec.horizons):
            seen = torch.from_numpy(y).to(self.device)
            cross = self.forecaster.cross(seen, before, network)[:b].cpu().numpy()
        ahead, after = self.forecaster.step(torch.from_numpy(inputs).to(self.device), before, network)
        rows, new = rows[:b], torch.stack([after.h, after.c][: len(state)]).permute(2, 0, 1, 3)[:b]
        if self._frame.mixed:  # a device that is not placed yet has no state yet
            placed = torch.from_numpy(slabs.view("warm")[slots] >= kernel.WARM).to(self.device)
            rows, new = rows[placed], new[placed]
        slabs.state.index_copy_(0, rows, new)
        return cross, ahead[:b].cpu().numpy()

    def _padded(self, index: Ints, count: int) -> torch.Tensor:
        out = torch.zeros(count, dtype=torch.int64)
        out[: len(index)] = torch.from_numpy(index)
        return out.to(self.device)
