"""What the benches of alarms run on: real streams that nobody labelled, simulated healthy fleets, and what the product
made of them.

One tick of one device costs about as much as one tick of two hundred, so like streams are devices of one profile.

Axes: T ticks, F channels, D devices.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import lfilter

from sentinel.adapters.tables import Recording, read_table
from sentinel.backtest import Backtest, Plan, Result
from sentinel.model.calibrate import REFRACTORY, WEEK
from sentinel.model.learn import ANEW_AFTER
from sentinel.records import Bools, Floats, ProfileSpec
from tests.bench.runs import Progress

SPEC = ProfileSpec("bench")  # the defaults
DAY = WEEK / 7
MONTH = 30.4375 * DAY
BUDGETS = {"1/day": 1 / DAY, "1/week": 1 / WEEK, "1/month": 1 / MONTH}  # alerts per second and device
EARLY = 1 / 3  # of a run to failure that is taken for healthy
EPOCH = 1_700_006_400.0  # a midnight, UTC
NOISES = ("white", "ar", "heavy")


@dataclass(frozen=True, slots=True)
class Stream:
    """One device's ticks.

    Attributes:
        id: never changes its meaning.
        group: streams of one group have the same channels and are devices of one profile.
        time: s, (T,).
        values: (T, F), NaN where missing.
        normal: ticks that nobody calls anomalous, (T,); None: all.
    """

    id: str
    group: str
    time: Floats
    values: Floats
    channels: tuple[str, ...]
    normal: Bools | None = None

    def __len__(self) -> int:
        return len(self.time)

    @property
    def interval(self) -> float:
        """Usual seconds between ticks."""
        step = np.diff(self.time)
        return float(np.median(step[step > 0]))

    def seconds(self, counts: Bools) -> float:
        """In which the device was heard, over the ticks that count, (T,); a pause is not counted."""
        step = np.diff(self.time)
        heard = (step > 0) & (step <= ANEW_AFTER * self.interval)
        return float(step[heard & counts[1:] & counts[:-1]].sum())


# --- real streams ----------------------------------------------------------------------------------------------------


@cache
def healthy(data: Path) -> tuple[Stream, ...]:
    """The public streams without labels, whole devices of several channels, in `data`'s folders."""
    out = []
    for group, folder, pattern in (
        ("ett", "ett", "ETTh*.csv"),
        ("tetuan", "tetuan_power", "*.csv"),
        ("beijing", "beijing_air", "*.csv"),
    ):
        for path in sorted((data / folder).glob(pattern)):
            table = read_table(path)
            out.append(Stream(f"{group}/{_short(path.stem)}", group, table.time, table.values, table.channels))
    parts = sorted((read_table(path) for path in (data / "occupancy").glob("*.txt")), key=lambda part: part.time[0])
    if parts:  # one room: three recordings, one after the other
        time, values = np.concatenate([p.time for p in parts]), np.concatenate([p.values for p in parts])
        out.append(Stream("occupancy/room", "occupancy", time, values, parts[0].channels))
    for stream in bearings(data):
        n = int(EARLY * len(stream))
        out.append(replace(stream, time=stream.time[:n], values=stream.values[:n]))
    return tuple(out)


def _short(stem: str) -> str:
    """`PRSA_Data_Aotizhongxin_20130301-20170228` is the station; other names stay."""
    return stem.split("_")[2] if stem.startswith("PRSA_Data_") else stem


def bearings(data: Path) -> list[Stream]:
    """The three runs to failure, whole. Each is a profile of its own: another rig, other sensors."""
    out = []
    for path in sorted((data / "bearing").glob("ims_test*.csv")):
        table = read_table(path)
        name = f"bearing/{path.stem.removeprefix('ims_')}"
        out.append(Stream(name, name, table.time, table.values, table.channels))
    return out


@cache
def numenta(data: Path) -> tuple[Stream, ...]:
    """The benchmark's files; not `normal` in them are the windows and the refractory after them: the way back.

    Files of the same step are devices of one profile, each moved by whole days to begin on the same one.
    """
    windows = json.loads((data / "nab/labels/combined_windows.json").read_text())
    out = []
    for name in sorted(windows):
        table = read_table(data / "nab/data" / name)
        normal = np.ones(len(table), dtype=np.bool_)
        for first, last in windows[name]:
            begin, end = (_seconds(moment) for moment in (first, last))
            inside = np.flatnonzero((table.time >= begin) & (table.time <= end))
            normal[inside[0] : inside[-1] + 1 + REFRACTORY] = False
        time = table.time - DAY * ((table.time[0] - EPOCH) // DAY)
        stream = Stream(f"nab/{name.removesuffix('.csv')}", "", time, table.values, table.channels, normal)
        out.append(replace(stream, group=f"nab/{stream.interval:.0f}s"))
    return tuple(out)


def _seconds(moment: str) -> float:
    return float(np.datetime64(moment.replace(" ", "T"), "us").astype(np.int64)) / 1e6


def apart(streams: Iterable[Stream]) -> list[Stream]:
    """Each channel a device of its own."""
    out = []
    for stream in streams:
        group = f"{stream.group.split('/')[0]}/{stream.interval:.0f}s" if stream.group else stream.group
        for at, name in enumerate(stream.channels if len(stream.channels) > 1 else ()):
            column = stream.values[:, at : at + 1]
            out.append(
                replace(stream, id=f"{stream.id}/{name}", group=f"{group}/uni", values=column, channels=("value",))
            )
        if len(stream.channels) == 1:
            out.append(stream)
    return out


def grouped(streams: Iterable[Stream]) -> dict[str, list[Stream]]:
    """Streams by group, in the order given."""
    out: dict[str, list[Stream]] = {}
    for stream in streams:
        out.setdefault(stream.group, []).append(stream)
    return out


# --- simulated fleets ------------------------------------------------------------------------------------------------


def simulated(
    interval: float, channels: int, noise: str, devices: int, ticks: int, *, spread: float = 0.0
) -> list[Stream]:
    """A healthy stationary fleet.

    Args:
        noise: white: independent. ar: AR(1) of 0.9, a quarter as many common factors as channels explain two thirds of
            each channel. heavy: Student-t of 5 degrees, scaled by 1 + 0.7 sin(day). factor: common factors with a
            daily cycle explain nine tenths of each channel, white noise the rest.
        spread: of devices' levels and gains.
    """
    group = f"sim/{interval:g}s/{channels}/{noise}"
    random = np.random.default_rng(list(group.encode()))
    time: Floats = EPOCH + interval * np.arange(ticks, dtype=np.float64)
    scale, level = 10.0 ** random.uniform(-2, 3, channels), 10.0 ** random.uniform(-1, 3, channels)
    loadings = random.standard_normal((max(channels // 4, 1), channels))
    loadings /= np.linalg.norm(loadings, axis=0)
    out = []
    for number in range(devices):
        values = _noise(noise, random, time, channels, loadings)
        own = 1 + spread * random.standard_normal((2, channels))
        names = tuple(f"c{at}" for at in range(channels))
        out.append(Stream(f"{group}/{number}", group, time, level * own[0] + scale * own[1] * values, names))
    return out


def _noise(noise: str, random: np.random.Generator, time: Floats, channels: int, loadings: Floats) -> Floats:
    """Of unit variance, (T, F)."""
    shape = (len(time), channels)
    if noise == "white":
        return random.standard_normal(shape)
    if noise == "heavy":
        swing = 1 + 0.7 * np.sin(2 * np.pi * time[:, None] / DAY)
        heavy: Floats = random.standard_t(5, shape) * np.sqrt(3 / 5) * swing
        return heavy
    common = ar(random, (len(time), len(loadings)))
    if noise == "factor":
        phase = random.uniform(0, 2 * np.pi, len(loadings))
        common = np.sqrt(0.5) * common + np.sin(2 * np.pi * time[:, None] / DAY + phase)
        own, share = random.standard_normal(shape), 0.9
    else:
        own, share = ar(random, shape), 2 / 3
    out: Floats = np.sqrt(share) * common @ loadings + np.sqrt(1 - share) * own
    return out


def ar(random: np.random.Generator, shape: tuple[int, int], memory: float = 0.9) -> Floats:
    """AR(1) of unit variance, along the first axis."""
    fresh = random.standard_normal(shape)
    fresh[1:] *= np.sqrt(1 - memory**2)
    out: Floats = lfilter([1.0], [1.0, -memory], fresh, axis=0)
    return out


# --- what the product made of them -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """One alert that fired.

    Attributes:
        start, end: its first tick and the one after its last, in the stream.
        ticks: anomalous ones.
        channels: by share, largest first.
    """

    kind: str
    start: int
    end: int
    ticks: int
    score: float
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a stream.

    Attributes:
        learned: its first ticks, that were learned from.
        flagged: (T,).
        score: (T,), NaN where there is none.
        alerts: in order.
    """

    stream: Stream
    learned: int
    flagged: Bools
    score: Floats
    alerts: tuple[Found, ...]
    inside: Bools = field(init=False)
    """Ticks at which an alert was open, (T,)."""

    def __post_init__(self) -> None:
        inside = np.zeros(len(self.stream), dtype=np.bool_)
        for alert in self.alerts:
            inside[alert.start : alert.end] = True
        object.__setattr__(self, "inside", inside)

    def starts(self, kind: str = "prediction") -> list[int]:
        """Ticks at which alerts of a kind began."""
        return [alert.start for alert in self.alerts if alert.kind == kind]


def judged(streams: Sequence[Stream], budget: float, plan: Plan, who: str) -> list[Verdict]:
    """Run one profile whose devices are the streams, all else at its default; the verdicts in the same order."""
    spec = replace(SPEC, alert_budget=budget)
    return verdicts(streams, Backtest(spec, [recording(streams)], Progress(who)).run(plan))


def judged_at(
    streams: Sequence[Stream], budgets: Sequence[float], learned: int, who: str, *, declared: bool
) -> list[list[Verdict]]:
    """Learn once from the first ticks of each stream, then judge the rest at each budget, the network as it was learned.

    Returns:
        For each budget the verdicts over the rest, in the order of the streams.
    """
    first = [replace(s, time=s.time[:learned], values=s.values[:learned]) for s in streams]
    rest = [replace(s, time=s.time[learned:], values=s.values[learned:]) for s in streams]
    learner = Backtest(SPEC, [recording(first)], Progress(who))
    learner.learn_all(Plan(declared=declared))
    detector = learner.stream.detector
    assert detector is not None
    out = []
    for budget in budgets:
        bench = Backtest(replace(SPEC, alert_budget=budget), [recording(rest)], Progress(who))
        out.append(verdicts(rest, bench.run(None, (detector, learner.stream))))
    return out


def recording(streams: Sequence[Stream]) -> Recording:
    """One recording of several devices, one after the other."""
    time = np.concatenate([stream.time for stream in streams])
    return Recording(
        name="streams",
        path=Path("streams"),
        devices=tuple(stream.id for stream in streams),
        device=np.repeat(np.arange(len(streams), dtype=np.int32), [len(stream) for stream in streams]),
        time=time,
        time_text=np.zeros(len(time), dtype="S1"),
        channels=streams[0].channels,
        values=np.concatenate([stream.values for stream in streams]),
        label=None,
        notes=(),
    )


def verdicts(streams: Sequence[Stream], result: Result) -> list[Verdict]:
    """A result over `recording(streams)`, by stream."""
    ends = np.cumsum([len(stream) for stream in streams])
    begins = ends - [len(stream) for stream in streams]
    fired = {alert.id for alert in result.alerts if alert.state == "firing"}
    alerts: dict[str, list[Found]] = {}
    place = {stream.id: int(begin) for stream, begin in zip(streams, begins, strict=True)}
    length = {stream.id: len(stream) for stream in streams}
    for alert in result.final:
        row = result.starts[alert.id]
        if alert.id not in fired or row < 0 or alert.device not in place:
            continue
        start = row - place[alert.device]
        end = result.ends[alert.id] - place[alert.device] if alert.id in result.ends else length[alert.device]
        names = tuple(view.name for view in sorted(alert.channels, key=lambda view: -view.share))
        ticks = int(result.anomaly[row : place[alert.device] + end].sum())
        found = Found(alert.kind, start, end, ticks, alert.score or np.nan, names)
        alerts.setdefault(alert.device, []).append(found)
    return [
        Verdict(
            stream,
            int(result.learned[begin:end].sum()),
            result.anomaly[begin:end],
            result.score[begin:end],
            tuple(sorted(alerts.get(stream.id, ()), key=lambda alert: alert.start)),
        )
        for stream, begin, end in zip(streams, begins, ends, strict=True)
    ]


# --- output ----------------------------------------------------------------------------------------------------------


def save(folder: Path | None, summary: Mapping[str, Any], **tables: Sequence[Mapping[str, Any]]) -> None:
    """Write summary.json and a CSV a table, if a folder was given."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, default=float) + "\n")
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["id"])
            writer.writeheader()
            writer.writerows(rows)


def alert_rows(scenario: str, verdict: Verdict) -> list[dict[str, Any]]:
    """The alerts of a stream, a row each."""
    return [
        {
            "id": scenario,
            "tick": alert.start,
            "time": str(np.datetime64(int(verdict.stream.time[alert.start]), "s")),
            "kind": alert.kind,
            "open_ticks": alert.end - alert.start,
            "anomalous_ticks": alert.ticks,
            "score": round(alert.score, 4),
            "channel": alert.channels[0] if alert.channels else "",
        }
        for alert in verdict.alerts
    ]
