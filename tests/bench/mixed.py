"""Devices of many channels of every kind, each with a clean recording of its own, as `sentinel backtest --train` runs them.

    mixed-38, mixed-55   45 % continuous channels, 25 % binary, 12 % constant, 10 % exact duplicates, the rest counters;
                         1,000 clean rows
    telemetry-25         one measurement and 24 commands, on or off, some of which move it; 2,500 clean rows, no dates
    plant-40             hourly: tanks, pumps, valves, flows and pressures under a daily demand and a season; a clean year

Each device has events of different kinds in its test rows, the same for ever by its name. Told of each family: the share
of rows flagged outside events, and outside them and the 64 rows after each; F1 of the flags by rows; the area under the
precision-recall curve of the scores; events with a flag; prediction alerts that started inside and outside of events.

    python -m tests.bench.mixed [--out DIR] [--only SUBSTRING] [--devices N] [--seed N] [--jobs N]

Writes OUT/devices.csv, OUT/events.csv and OUT/summary.json.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.backtest import Backtest, Plan
from sentinel.records import Bools, Floats
from tests.bench.runs import Progress, over_seeds
from tests.bench.scoring import judge_flags
from tests.bench.streams import EPOCH, SPEC, Stream, Verdict, ar, recording, save, verdicts

SETTLED = 64  # rows after an event in which windows still hold it
HOUR = 3600.0
Random = np.random.Generator


@dataclass(frozen=True, slots=True)
class Event:
    """Test rows first to last are anomalous, in the way of `kind`."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Device:
    """A clean recording, and one to judge."""

    clean: Stream
    test: Stream
    events: tuple[Event, ...]

    @property
    def truth(self) -> Bools:
        out = np.zeros(len(self.test), dtype=np.bool_)
        for event in self.events:
            out[event.first : event.last + 1] = True
        return out


def spaced(random: Random, kinds: Sequence[str], rows: int, lengths: tuple[int, int], begin: int) -> Iterator[Event]:
    """One event of each kind, in random order, each somewhere in its share of the rows from `begin` on."""
    room = (rows - begin) // len(kinds)
    for at, kind in enumerate(random.permutation(kinds).tolist()):
        length = int(random.integers(*lengths))
        first = begin + at * room + int(random.integers(max(room - length - 2 * SETTLED, 1)))
        yield Event(kind, first, first + length - 1)


def _split(name: str, values: Floats, clean: int, interval: float, events: Sequence[Event], dated: bool) -> Device:
    time: Floats = (EPOCH if dated else 0.0) + interval * np.arange(len(values), dtype=np.float64)
    names = tuple(f"c{at}" for at in range(values.shape[1]))
    whole = Stream(name, name.rsplit("/", 1)[0], time, values, names)
    return Device(
        replace(whole, time=time[:clean], values=values[:clean]),
        replace(whole, time=time[clean:], values=values[clean:]),
        tuple(events),
    )


# --- mixed -----------------------------------------------------------------------------------------------------------

MIXED_KINDS = ("shift", "spike", "drift", "stuck", "noise", "decoupled", "gain", "outage")


def mixed(name: str, width: int, random: Random) -> Device:
    """Continuous channels follow a few slow loads, a cycle and the switches."""
    clean, rows = 1000, 5000
    of = {kind: round(share * width) for kind, share in (("real", 0.45), ("binary", 0.25), ("constant", 0.12))}
    copies = round(0.1 * width)
    counters = width - sum(of.values()) - copies
    t = np.arange(rows)
    periods = random.uniform(30, 200, 3)
    loads = np.sin(2 * np.pi * (t[:, None] / periods + random.random(3)))
    switches = _switches(random, rows, of["binary"], (10, 120))
    drive = np.column_stack([loads, ar(random, (rows, 2), 0.98), switches[:, :3]])
    real = drive @ random.normal(size=(drive.shape[1], of["real"])) + 0.3 * ar(random, (rows, of["real"]), 0.5)
    real += np.where(random.random(of["real"]) < 0.3, 0.5, 0.0) * ar(random, (rows, of["real"]), 0.999)
    spread = real[:clean].std(axis=0)
    events = list(spaced(random, MIXED_KINDS, rows - clean, (60, 200), 200))
    for event in events:
        at, rows_ = int(random.integers(of["real"])), slice(clean + event.first, clean + event.last + 1)
        x, sign, length = real[rows_, at], random.choice((-1.0, 1.0)), event.last + 1 - event.first
        match event.kind:
            case "shift":
                x += sign * 4 * spread[at]
            case "spike":
                x[:: max(length // 6, 1)] += sign * 6 * spread[at]
            case "drift":
                x += sign * 6 * spread[at] * np.linspace(0, 1, length)
            case "stuck":
                x[:] = x[0]
            case "noise":
                x += 2 * spread[at] * random.standard_normal(length)
            case "decoupled":
                x[:] = real[: clean - length, at][-length:]
            case "gain":
                x[:] = 3 * (x - real[:clean, at].mean()) + real[:clean, at].mean()
            case _:
                x[:] = real[:clean, at].min() - 0.5 * spread[at]
    scale, level = 10.0 ** random.uniform(-2, 3, of["real"]), 10.0 ** random.uniform(-1, 3, of["real"])
    real = level + scale * real
    parts = [
        real,
        switches,
        np.tile(random.choice((0.0, 1.0, 7.5), of["constant"]), (rows, 1)),
        real[:, random.integers(of["real"], size=copies)],
        np.cumsum(random.integers(1, 9, (rows, counters)), axis=0).astype(np.float64),
    ]
    return _split(name, np.column_stack(parts), clean, 60.0, events, dated=True)


def _switches(random: Random, rows: int, count: int, stay: tuple[int, int]) -> Floats:
    """On and off, staying for some rows each, (rows, count)."""
    out = np.zeros((rows, count))
    for k in range(count):
        edges = np.cumsum(random.integers(*stay, size=2 * rows // stay[0] + 2))
        out[:, k] = np.searchsorted(edges, np.arange(rows), side="right") % 2
    return out


# --- telemetry -------------------------------------------------------------------------------------------------------

TELEMETRY_KINDS = ("level", "no answer", "faster", "noisy", "flat")


def telemetry(name: str, random: Random) -> Device:
    """A measurement with a cycle, which some commands move for a while; values between -1 and 1, coarse in some."""
    clean, rows, commands = 2500, 7500, 24
    rate = np.where(random.random(commands) < 0.5, random.uniform(0.0005, 0.004, commands), 1 / 150)
    fires = random.random((rows, commands)) < rate
    fires[:, random.random(commands) < 0.3] = False  # commands that are never given
    on = np.zeros((rows, commands))
    for k in range(commands):
        stay = int(random.integers(1, 12))
        for t in np.flatnonzero(fires[:, k]).tolist():
            on[t : t + stay, k] = 1.0
    weight = np.where(random.random(commands) < 0.3, random.normal(size=commands), 0.0)
    events = list(spaced(random, random.permutation(TELEMETRY_KINDS)[:3].tolist(), rows - clean, (60, 250), 300))
    mute, quicker = np.ones(rows), np.ones(rows)
    for event in events:
        rows_ = slice(clean + event.first, clean + event.last + 1)
        if event.kind == "no answer":
            on[rows_.start :: 20, int(np.argmax(np.abs(weight)))][: (event.last - event.first) // 20] = 1.0
            mute[rows_] = 0.0
        elif event.kind == "faster":
            quicker[rows_] = 2.5
    answer = np.zeros(rows)
    memory = random.uniform(0.85, 0.98)
    kick = (np.diff(on, axis=0, prepend=0.0) > 0) @ weight * mute
    for t in range(1, rows):
        answer[t] = memory * answer[t - 1] + kick[t]
    phase = np.cumsum(quicker) * 2 * np.pi / random.uniform(40, 130)
    x = random.uniform(0.3, 1.0) * np.sin(phase) + random.uniform(0.0, 0.4) * np.sin(2 * phase) + answer
    x += 0.08 * random.standard_normal(rows)
    spread = x[:clean].std()
    for event in events:
        part = x[clean + event.first : clean + event.last + 1]
        if event.kind == "level":
            part += random.choice((-1.0, 1.0)) * 1.5 * spread
        elif event.kind == "noisy":
            part += 0.8 * spread * random.standard_normal(len(part))
        elif event.kind == "flat":
            part[:] = x[:clean].mean() + 0.1 * spread
    if random.random() < 0.4:
        x = np.round(x / (0.25 * spread)) * 0.25 * spread
    return _split(name, np.column_stack([x / np.abs(x).max(), on]), clean, 1.0, events, dated=False)


# --- plant -----------------------------------------------------------------------------------------------------------

PLANT_KINDS = ("pump held on", "pump held off", "level sensor", "hidden", "flow sensor", "pressure drop", "leak")


def plant(name: str, random: Random) -> Device:
    """Seven tanks fed by eleven pumps under level control, demands by day, week and season."""
    clean, rows, tanks, pumps = 8760, 8760 + 2400, 7, 11
    t = np.arange(rows)
    hour, week, year = t % 24, (t // 24) % 7, 2 * np.pi * t / 8766
    shape = 1 + 0.5 * np.sin(2 * np.pi * (hour - 7) / 24) + 0.3 * np.sin(4 * np.pi * (hour - 3) / 24)
    season = 1 + 0.15 * np.sin(year + random.uniform(0, 2 * np.pi))
    feeds = np.arange(pumps) % tanks
    events = list(spaced(random, PLANT_KINDS, rows - clean, (24, 120), 48))
    held: dict[int, list[tuple[Event, int]]] = {}
    for event in events:
        for at in range(clean + event.first, clean + event.last + 1):
            held.setdefault(at, []).append((event, zlib.crc32(event.kind.encode())))
    capacity = random.uniform(0.9, 1.4, pumps)
    supply = np.bincount(feeds, capacity, tanks)
    base = 0.5 * supply * random.uniform(0.9, 1.05, tanks)
    weekend = np.where(week >= 5, random.uniform(0.85, 1.1), 1.0)
    wander = ar(random, (rows, tanks), 0.95)
    demand = base * shape[:, None] * season[:, None] * weekend[:, None] * (1 + 0.07 * wander)
    level, on = np.full(tanks, 2.5), np.ones(pumps)
    levels, states, flows, pressure = (np.zeros((rows, n)) for n in (tanks, pumps, pumps, 12))
    low, high = random.uniform(0.5, 1.6, pumps), random.uniform(3.0, 4.2, pumps)
    head = random.normal(size=(tanks + pumps, 12)) * 0.3
    for now in range(rows):
        seen = level.copy()
        leak, drop = np.zeros(tanks), 0.0
        forced: dict[int, float] = {}
        for event, key in held.get(now, ()):
            if event.kind == "pump held on":
                forced[key % pumps] = 1.0
            elif event.kind == "pump held off":
                forced[key % pumps] = 0.0
            elif event.kind == "level sensor":
                seen[key % tanks] *= 0.6
            elif event.kind == "leak":
                leak[key % tanks] = 0.25 * base[key % tanks]
            elif event.kind == "pressure drop":
                drop = 0.35
        on = np.where(seen[feeds] < low, 1.0, np.where(seen[feeds] > high, 0.0, on))
        for pump, state in forced.items():
            on[pump] = state
        flow = on * capacity * (1 + 0.02 * random.standard_normal(pumps)) * (1.05 - 0.02 * level[feeds])
        level = np.clip(level + 0.3 * (np.bincount(feeds, flow, tanks) - demand[now] - leak), 0.0, 5.0)
        levels[now], states[now], flows[now] = seen, on, flow
        pressure[now] = 20 + np.concatenate([level, flow]) @ head + 0.05 * random.standard_normal(12)
        pressure[now, :4] -= drop * 2
    levels += 0.01 * random.standard_normal(levels.shape)
    for event in events:
        rows_ = slice(clean + event.first, clean + event.last + 1)
        back = 24 * -(-(event.last - event.first + 1) // 24)
        if event.kind == "hidden":
            tank = zlib.crc32(name.encode()) % tanks
            levels[rows_, tank] = levels[rows_.start - back : rows_.stop - back, tank]
            pressure[rows_, tank] -= 0.5
        elif event.kind == "flow sensor":
            flows[rows_, zlib.crc32(name.encode()) % pumps] *= 0.7
    return _split(name, np.column_stack([levels, states, flows, pressure]), clean, HOUR, events, dated=True)


FAMILIES: dict[str, tuple[int, Callable[[str, Random], Device]]] = {
    "mixed-38": (6, lambda name, random: mixed(name, 38, random)),
    "mixed-55": (6, lambda name, random: mixed(name, 55, random)),
    "telemetry-25": (12, telemetry),
    "plant-40": (4, plant),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One device. Shares of rows; alerts are of kind prediction; `flagged_settled` leaves out the rows after events."""

    id: str
    family: str
    rows: int
    flagged_outside: float
    flagged_settled: float
    precision: float
    recall: float
    f1: float
    auprc: float
    events: int
    found: int
    alerts_inside: int
    alerts_outside: int
    events_alerted: int


def average_precision(truth: Bools, score: Floats) -> float:
    """Area under the precision-recall curve, by rows; a row without a score is the least anomalous."""
    rank = np.nan_to_num(score, nan=-1.0)
    order = np.argsort(-rank, kind="stable")
    hit, last = np.cumsum(truth[order]), np.append(np.diff(rank[order]) != 0, True)
    gained = np.diff(hit[last], prepend=0) / max(int(truth.sum()), 1)
    return float((gained * hit[last] / (np.flatnonzero(last) + 1)).sum())


def judge(family: str, device: Device, verdict: Verdict) -> Row:
    """Figures of one device."""
    truth, flag = device.truth, verdict.flagged
    after = truth.copy()
    for event in device.events:
        after[event.last : event.last + 1 + SETTLED] = True
    flags = judge_flags([truth], [flag])
    starts = verdict.starts()
    return Row(
        id=f"mixed/{device.test.id}",
        family=family,
        rows=len(truth),
        flagged_outside=flags.far,
        flagged_settled=float(flag[~after].mean()),
        precision=int(truth[flag].sum()) / max(int(flag.sum()), 1),
        recall=1 - flags.mar,
        f1=flags.f1,
        auprc=average_precision(truth, verdict.score),
        events=flags.events,
        found=flags.found,
        alerts_inside=sum(bool(truth[start]) for start in starts),
        alerts_outside=sum(not truth[start] for start in starts),
        events_alerted=sum(any(e.first <= s <= e.last for s in starts) for e in device.events),
    )


def run(at: int, todo: Sequence[tuple[str, int]], seed: int) -> tuple[Row, list[dict[str, Any]]]:
    """One device: learn from its clean recording, judge the other."""
    family, number = todo[at]
    name = f"{family}/{number}"
    device = FAMILIES[family][1](name, np.random.default_rng(zlib.crc32(name.encode())))
    plan = Plan(recordings=(recording([device.clean]),), declared=True, seed=seed)
    result = Backtest(SPEC, [recording([device.test])], Progress(f"[{at + 1}/{len(todo)}] {name}")).run(plan)
    verdict = verdicts([device.test], result)[0]
    events = [
        {
            "id": f"mixed/{name}/{event.kind}",
            "first": event.first,
            "last": event.last,
            "flagged": float(verdict.flagged[event.first : event.last + 1].mean()),
            "alerted": any(event.first <= start <= event.last for start in verdict.starts()),
        }
        for event in device.events
    ]
    return judge(family, device, verdict), events


def summed_up(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over devices; counts are summed."""
    shares = ("flagged_outside", "flagged_settled", "precision", "recall", "f1", "auprc")
    counts = ("events", "found", "events_alerted", "alerts_inside", "alerts_outside")
    out: dict[str, Any] = {name: float(np.mean([getattr(row, name) for row in rows])) for name in shares}
    out |= {name: int(sum(getattr(row, name) for row in rows)) for name in counts}
    return out | {"flagged_worst": max(row.flagged_settled for row in rows), "devices": len(rows)}


def show(summary: dict[str, dict[str, Any]]) -> None:
    """A line a family."""
    print(
        f"\n{'':<16}{'devices':>8}{'flagged outside':>17}{'settled':>9}{'worst':>7}{'precision':>11}{'recall':>8}{'F1':>7}"
        f"{'AUPRC':>7}{'events':>8}{'found':>7}{'alerted':>9}{'alerts in / out':>17}"
    )
    for family, s in summary.items():
        print(
            f"{family.removeprefix('mixed/'):<16}{s['devices']:>8}{s['flagged_outside']:>17.1%}{s['flagged_settled']:>9.1%}"
            f"{s['flagged_worst']:>7.0%}{s['precision']:>11.2f}{s['recall']:>8.2f}{s['f1']:>7.3f}{s['auprc']:>7.3f}"
            f"{s['events']:>8}{s['found']:>7}{s['events_alerted']:>9}{s['alerts_inside']:>10} / {s['alerts_outside']:<4}"
        )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of the family's name")
    parser.add_argument("--devices", type=int, default=100, help="at most, of a family")
    parser.add_argument("--seed", type=int, default=0, help="of the learning; the devices stay the same")
    parser.add_argument("--jobs", type=int, default=1, help="devices at once, a process each")
    given = parser.parse_args()
    todo = [
        (family, number)
        for family, (count, _) in FAMILIES.items()
        if given.only in family
        for number in range(min(count, given.devices))
    ]
    if not todo:
        parser.error(f"no family has {given.only!r} in its name")
    results = over_seeds(partial(run, todo=todo, seed=given.seed), len(todo), given.jobs)
    rows = [row for row, _ in results]
    by_family: dict[str, list[Row]] = {}
    for row in rows:
        by_family.setdefault(row.family, []).append(row)
    summary = {f"mixed/{family}": summed_up(some) for family, some in by_family.items()}
    show(summary)
    save(given.out, summary, devices=[asdict(row) for row in rows], events=[e for _, events in results for e in events])
    return 0


if __name__ == "__main__":
    sys.exit(main())
