"""A simulated fleet with ground truth: healthy devices that can be learned in minutes, and faults on demand.

Axes: N devices, F channels. A tick is one step of every device; the daily rhythm is `PERIOD` ticks long,
so that a few hundred ticks hold several days.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sentinel.records import Bools, Floats

PERIOD = 96
"""Ticks a simulated day."""

FaultKind = Literal["spike", "drift", "stuck", "level_shift", "broken_correlation", "dropout", "noise"]
FAULT_KINDS: tuple[FaultKind, ...] = (
    "spike", "drift", "stuck", "level_shift", "broken_correlation", "dropout", "noise",
)  # fmt: skip

_NOISE_MEMORY = 0.5  # AR(1) coefficient of the sensor noise
_SWITCH = 1 / 8  # chance a tick that a device takes a new set point
_SETTLE = 1 / 6  # share of the way to its set point that the drive goes a tick
_SLOW = 1 / 20  # the same for heat, air and moisture behind the drive
_MIDDLE = 0.5  # of the drive
_CONTRARY = 1.5  # how much more than the true drive the one moves that a decoupled channel follows
_SPIKE = 3  # ticks


@dataclass(frozen=True, slots=True)
class Quantity:
    """One channel of a simulated device.

    Attributes:
        base, drive, square, slow, rhythm: value = base + drive u + square u² + slow s + rhythm r, where u is
            the device's drive (load, occupancy; 0 to 1), s follows it slowly, and r is the day, -1 to 1.
        noise: standard deviation of the sensor noise, in `unit`; what fault sizes are counted in.
    """

    name: str
    unit: str
    base: float
    noise: float
    drive: float = 0.0
    square: float = 0.0
    slow: float = 0.0
    rhythm: float = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A class of like devices.

    Attributes:
        device: device id with a place for its number; its levels fill the wildcards of `topic`.
        topic: MQTT topic of a device, `{device}` for its id.
        swing: amplitude of the drive over the day.
        steps: largest distance of a set point from the day's drive.
    """

    name: str
    device: str
    topic: str
    template: str
    quantities: tuple[Quantity, ...]
    swing: float
    steps: float

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names, in column order."""
        return tuple(quantity.name for quantity in self.quantities)


PUMP = Machine(
    name="pump",
    device="north/pump-{number}",
    topic="plant/{device}/telemetry",
    template="plant/{site}/{device}/telemetry",
    quantities=(
        Quantity("pressure", "bar", base=8.0, square=-3.0, noise=0.03),
        Quantity("flow", "m3/h", base=2.0, drive=40.0, noise=0.4),
        Quantity("vibration", "mm/s", base=1.2, square=3.0, noise=0.04),
        Quantity("temperature", "°C", base=30.0, slow=25.0, rhythm=2.0, noise=0.25),
    ),
    swing=0.22,
    steps=0.02,
)
ROOM = Machine(
    name="room",
    device="room-{number}",
    topic="home/{device}/climate",
    template="home/{device}/climate",
    quantities=(
        Quantity("temperature", "°C", base=18.0, slow=6.0, rhythm=0.5, noise=0.08),
        Quantity("humidity", "%", base=38.0, slow=14.0, drive=2.0, rhythm=-1.5, noise=0.2),
        Quantity("co2", "ppm", base=420.0, slow=700.0, drive=80.0, noise=9.0),
    ),
    swing=0.28,
    steps=0.02,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Ground truth: one fault of one device.

    Attributes:
        channel: empty for a dropout, which takes the whole device.
        start, end: event times; the fault shows in ticks with start <= time < end.
        size: in standard deviations of the channel's noise, signed; 0 where the kind has none.
    """

    kind: FaultKind
    profile: str
    device: str
    channel: str
    start: float
    end: float
    size: float


@dataclass(frozen=True, slots=True)
class Tick:
    """What a fleet sends at one tick.

    Attributes:
        time: event time of each device, (N,).
        values: (N, F), in the channels' units.
        sends: which devices send at all, (N,).
        faulty: which devices have a fault now, (N,).
    """

    time: Floats
    values: Floats
    sends: Bools
    faulty: Bools


class Fleet:
    """N like devices, each with its own gains, offsets, set points and noise. Seeded; the same seed, the same fleet.

    Devices tick one after the other over the share `spread` of a tick's `interval` seconds.
    """

    def __init__(self, machine: Machine, count: int, *, interval: float, seed: int = 0, spread: float = 1.0) -> None:
        self.machine = machine
        self.devices = tuple(machine.device.format(number=number) for number in range(1, count + 1))
        self.topics = tuple(machine.topic.format(device=device) for device in self.devices)
        self.interval = interval
        self.faults: list[Fault] = []
        self._row = {device: row for row, device in enumerate(self.devices)}
        self._column = {name: column for column, name in enumerate(machine.channels)}
        self._rng = rng = np.random.default_rng(seed)
        width = len(machine.quantities)

        def of(name: str) -> Floats:
            return np.array([getattr(quantity, name) for quantity in machine.quantities])

        self._weights = np.stack([of("drive"), of("square"), of("slow"), of("rhythm")])
        self._sd = of("noise")
        self._gain = 1 + 0.05 * rng.standard_normal((count, width))
        self._base = of("base") * (1 + 0.03 * rng.standard_normal((count, width)))
        self._phase = 0.15 * rng.standard_normal(count)
        self._offset = np.arange(count) / max(count, 1) * interval * spread
        self._ticks = 0
        self._set_point = rng.uniform(-1, 1, count)
        self._drive = _MIDDLE + self._set_point * machine.steps + machine.swing * np.sin(self._phase)
        self._slow = self._drive.copy()
        self._noise = rng.standard_normal((count, width))
        self._sent = np.full((count, width), np.nan)

    def step(self, time: float) -> Tick:
        """Advance all devices by one tick, the first of them at event time `time`."""
        rng, machine, count = self._rng, self.machine, len(self.devices)
        switching = rng.random(count) < _SWITCH
        self._set_point = np.where(switching, rng.uniform(-1, 1, count), self._set_point)
        rhythm = np.sin(2 * np.pi * self._ticks / PERIOD + self._phase)
        goal = _MIDDLE + machine.swing * rhythm + machine.steps * self._set_point
        self._drive = self._drive + _SETTLE * (goal - self._drive)
        self._slow = self._slow + _SLOW * (self._drive - self._slow)
        fresh = rng.standard_normal(self._noise.shape) * np.sqrt(1 - _NOISE_MEMORY**2)
        self._noise = _NOISE_MEMORY * self._noise + fresh
        self._ticks += 1

        times = time + self._offset
        values = self._respond(self._drive, self._slow, rhythm) + self._sd * self._noise
        sends, faulty = np.ones(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
        for fault in self.faults:
            row = self._row[fault.device]
            if fault.start <= times[row] < fault.end:
                faulty[row] = True
                if fault.kind == "dropout":
                    sends[row] = False
                else:
                    values[row, self._column[fault.channel]] = self._spoil(fault, times[row], row, rhythm, values[row])
        self.faults = [fault for fault in self.faults if fault.end > time]
        self._sent = values
        return Tick(times, values, sends, faulty)

    def _respond(self, drive: Floats, slow: Floats, rhythm: Floats) -> Floats:
        inputs = np.stack([drive, drive * drive, slow, rhythm], axis=1)
        return self._base + self._gain * (inputs @ self._weights)

    def _spoil(self, fault: Fault, time: float, row: int, rhythm: Floats, values: Floats) -> float:
        column = self._column[fault.channel]
        value, sd = float(values[column]), float(self._sd[column])
        match fault.kind:
            case "spike" | "level_shift":
                return value + fault.size * sd
            case "drift":
                return value + fault.size * sd * (time - fault.start) / (fault.end - fault.start)
            case "noise":
                return value + fault.size * sd * float(self._rng.standard_normal())
            case "broken_correlation":
                # As if it followed a drive that does the opposite: against the other channels.
                wrong = self._respond(_opposite(self._drive), _opposite(self._slow), rhythm)
                return float(wrong[row, column] + sd * self._noise[row, column])
            case _:  # stuck
                held = float(self._sent[row, column])
                return value if np.isnan(held) else held


def _opposite(drive: Floats) -> Floats:
    return _MIDDLE - _CONTRARY * (drive - _MIDDLE)


@dataclass(slots=True)
class Faults:
    """Starts a fault every `every` seconds of event time on a device that is well, kinds taking turns.

    Attributes:
        start, stop: event times of the first fault and after which none starts.
        length: shortest and longest fault, in ticks; a spike is three.
        recovery: ticks after a fault in which its device gets no other.
    """

    fleets: Sequence[Fleet]
    start: float
    every: float
    seed: int = 0
    stop: float = float("inf")
    length: tuple[int, int] = (100, 160)
    recovery: int = 600
    _rng: np.random.Generator = field(init=False)
    _next: float = field(init=False)
    _well: dict[tuple[str, str], float] = field(init=False, default_factory=dict)
    _kinds: Iterator[FaultKind] = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng((self.seed, 1))
        self._next = self.start
        order = self._rng.permutation(len(FAULT_KINDS))
        self._kinds = itertools.cycle([FAULT_KINDS[index] for index in order])

    def begin(self, time: float) -> list[Fault]:
        """Put the faults that are due by `time` on the fleets and return them. Call before each step."""
        begun = []
        while self._next <= min(time, self.stop):
            self._next += self.every
            well = [
                (fleet, device)
                for fleet in self.fleets
                for device in fleet.devices
                if self._well.get((fleet.machine.name, device), -np.inf) <= time
            ]
            if well:
                fleet, device = well[int(self._rng.integers(len(well)))]
                fault = self._make(fleet, device, time)
                fleet.faults.append(fault)
                self._well[fleet.machine.name, device] = fault.end + self.recovery * fleet.interval
                begun.append(fault)
        return begun

    def _make(self, fleet: Fleet, device: str, time: float) -> Fault:
        kind, rng = next(self._kinds), self._rng
        channel = str(rng.choice(fleet.machine.channels))
        length = int(rng.integers(*self.length)) * fleet.interval
        sign = float(rng.choice([-1.0, 1.0]))
        size = 0.0
        match kind:
            case "spike":
                length, size = _SPIKE * fleet.interval, sign * float(rng.uniform(80, 120))
            case "level_shift" | "drift":
                size = sign * float(rng.uniform(45, 70))
            case "noise":
                size = float(rng.uniform(28, 40))
            case "dropout":
                channel = ""
            case "stuck" | "broken_correlation":
                pass
        return Fault(kind, fleet.machine.name, device, channel, time, time + length, size)


def write_recording(path: Path, fleet: Fleet, ticks: int, *, start: float, faults: Faults | None = None) -> list[Fault]:
    """Write `ticks` ticks as wide CSV (time, device, channels, label) and return the faults in it.

    `label` is 1 while a fault shows; a device that doesn't send has no row. Raises OSError.
    """
    injected: list[Fault] = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "device", *fleet.machine.channels, "label"])
        for number in range(ticks):
            time = start + number * fleet.interval
            if faults is not None:
                injected += faults.begin(time)
            writer.writerows(_lines(fleet, fleet.step(time)))
    return injected


def _lines(fleet: Fleet, tick: Tick) -> Iterable[list[object]]:
    values = np.round(tick.values, 4).tolist()
    times = np.round(tick.time, 4).tolist()
    for row in np.flatnonzero(tick.sends).tolist():
        yield [times[row], fleet.devices[row], *values[row], int(tick.faulty[row])]


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that began to fire on a device at `time`."""

    profile: str
    device: str
    time: float


@dataclass(frozen=True, slots=True)
class Tally:
    """What a detector made of the faults.

    Attributes:
        delays: of each fault, in the order given, seconds from its start to the first alert; None: missed.
        false_alarms: alerts on devices that had no fault.
    """

    faults: tuple[Fault, ...]
    delays: tuple[float | None, ...]
    false_alarms: tuple[Firing, ...]

    @property
    def found(self) -> int:
        """Number of faults found."""
        return sum(delay is not None for delay in self.delays)

    def of(self, kind: FaultKind) -> Tally:
        """The part of one kind of fault, without false alarms."""
        judged = [(f, d) for f, d in zip(self.faults, self.delays, strict=True) if f.kind == kind]
        return Tally(tuple(f for f, _ in judged), tuple(d for _, d in judged), ())

    @property
    def median_delay(self) -> float:
        """Over the faults found, in seconds; 0 when there are none."""
        delays = [delay for delay in self.delays if delay is not None]
        return float(np.median(delays)) if delays else 0.0


def tally(faults: Sequence[Fault], firings: Sequence[Firing], *, now: float = np.inf, grace: float = 30.0) -> Tally:
    """Match alerts with faults.

    A fault is found by an alert that begins on its device between its start and `grace` seconds after its end;
    an alert in no fault's such window is a false alarm. A fault that has not ended by `now` counts when found.
    """
    windows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    times: dict[tuple[str, str], list[float]] = {}
    for fault in faults:
        windows.setdefault((fault.profile, fault.device), []).append((fault.start, fault.end + grace))
    for firing in firings:
        times.setdefault((firing.profile, firing.device), []).append(firing.time)
    judged: list[tuple[Fault, float | None]] = []
    for fault in faults:
        hits = [t for t in times.get((fault.profile, fault.device), ()) if fault.start <= t <= fault.end + grace]
        if hits or fault.end <= now:
            judged.append((fault, min(hits) - fault.start if hits else None))
    false_alarms = tuple(
        firing
        for firing in firings
        if not any(start <= firing.time <= end for start, end in windows.get((firing.profile, firing.device), ()))
    )
    return Tally(tuple(fault for fault, _ in judged), tuple(delay for _, delay in judged), false_alarms)
