"""What a profile's beginning costs: faults in what is learned from, devices that join, and declared profiles at 1 Hz.

All fleets are simulated, at 1 Hz and 1/week.

    learning    12 devices learn live from 600 ticks; in 2 of them a fault, once in those and once 500 ticks after: the
                share of the latter that is told, beside the same without the former; three such fleets a kind
    rare        6 devices do once or twice in those 600 ticks what they do again and again afterwards: their prediction
                alerts in the next 3,400
    joining     12 healthy pumps that a profile of 12 others, alike, was not learned from: their prediction alerts in the
                first ten minutes and in all, and faults of theirs that are told
    late        8 devices with cycles of some minutes are learned from, 3 join and are learned from after 25 readings and more,
                as in the daemon: the joiners' prediction alerts in the first ten minutes, and of 3 faults those told
    declared    12 healthy devices, 600 and 2,000 ticks of each declared: their prediction alerts in the rest of 7,200

    python -m tests.bench.starting [--out DIR] [--only PART …]

Writes OUT/summary.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from sentinel.backtest import Backtest, Plan
from sentinel.model.learn import Series, learn, next_learning
from sentinel.records import Channel, Floats, Readings
from sentinel.simulate import PUMP, Fleet
from sentinel.stream.pipeline import ProfileStream
from sentinel.trainer import adopt, take_over
from tests.bench.inject import Fault, inject, spread
from tests.bench.runs import Progress
from tests.bench.streams import BUDGETS, EPOCH, SPEC, Stream, Verdict, judged_at, recording, save, simulated, verdicts

WEEKLY = replace(SPEC, alert_budget=BUDGETS["1/week"])
FAULTS = (Fault("spike", 6, 10), Fault("spike", 20, 10), Fault("shift", 6, 60), Fault("noise", 6, 20))
KINDS = ("pump", "4/ar", "1/ar", "8/heavy", "1/heavy")
LEARNED, AGAIN, TICKS = 600, 1100, 1500
PLACES = (60, 100, 200, 300, 380, 450, 500, 570)  # of faults while learning, in turn
AFTER = 75  # ticks in which a fault may be told after its end
HOURS = 7200  # ticks
FEW, JOIN, LAG, FAULT_AT = 8, 800, 120, 1400  # devices; ticks: of joining, of a network's learning, of a fault
RAMP = 50  # ticks from which a pulse is a half wave


def fleet(kind: str, devices: int, ticks: int, *, seed: int = 1) -> list[Stream]:
    """Healthy devices, a little unlike."""
    if kind != "pump":
        channels, noise = kind.split("/")
        return simulated(1.0, int(channels), noise, devices, ticks, spread=0.05)
    pumps = Fleet(PUMP, devices, interval=1.0, seed=seed)
    time = EPOCH + np.arange(ticks, dtype=np.float64)
    values = np.stack([pumps.step(now).values for now in time.tolist()], axis=1)
    return [Stream(f"pump/{at}", "pump", time, own, PUMP.channels) for at, own in enumerate(values)]


def faulty(stream: Stream, channel: int, fault: Fault, at: int, seed: int) -> Stream:
    """The stream with a fault."""
    scale = float(spread(stream.values[:LEARNED, channel : channel + 1])[0])
    random = np.random.default_rng(seed)
    return replace(stream, values=inject(stream.values, channel, fault, at, scale=scale, day=86400, random=random))


def cut(stream: Stream, begin: int, end: int | None = None) -> Stream:
    """Some of its ticks."""
    return replace(stream, time=stream.time[begin:end], values=stream.values[begin:end])


def told(verdict: Verdict, fault: Fault, at: int) -> bool:
    """Whether an alert started in the fault, or soon after it."""
    return any(at <= alert.start < at + fault.length + AFTER for alert in verdict.alerts)


def learning() -> Iterator[tuple[str, dict[str, float]]]:
    """Shares of faults told after clean learning, and after learning with the like of them."""
    for kind in KINDS:
        healthy = fleet(kind, 36, TICKS)
        for fault in FAULTS:
            found: dict[str, list[bool]] = {"clean": [], "like": []}
            for name, fleet_at in product(found, range(3)):
                copies = []
                for at, stream in enumerate(healthy[12 * fleet_at : 12 * fleet_at + 12]):
                    channel, one = (at // 6 + fleet_at) % stream.values.shape[1], replace(stream, id=str(at))
                    if at % 6 == 0 and name == "like":
                        one = faulty(one, channel, fault, PLACES[(3 * fleet_at + at // 2) % len(PLACES)], at)
                    copies.append(faulty(one, channel, fault, AGAIN, at) if at % 6 == 0 else one)
                judged = judged_at(copies, [WEEKLY.alert_budget], LEARNED, f"{kind} {fault.name}", declared=False)[0]
                found[name] += [told(verdict, fault, AGAIN - LEARNED) for verdict in judged[::6]]
            yield f"learning/{kind}/{fault.name}", {name: float(np.mean(each)) for name, each in found.items()}


def rare() -> Iterator[tuple[str, dict[str, float]]]:
    """Alerts of healthy devices about what they did but once or twice while they were learned from."""

    def pulse(period: int, length: int, phase: int) -> Floats:
        at = (np.arange(4000) + phase) % period
        smooth: Floats = np.sin(np.pi * np.clip(at / length, 0, 1))
        return smooth if length > RAMP else (at < length).astype(np.float64)

    ways: dict[str, Callable[[int], Floats]] = {
        "defrost": lambda at: 8 * pulse(350, 20, 53 * at),
        "defrost seldom": lambda at: 8 * pulse(500, 20, 83 * at),
        "cycle": lambda at: 10 * pulse(400, 60, 53 * at),
        "set-point": lambda at: np.where(np.arange(4000) >= 420 + 20 * at, 10.0, 0.0),
    }
    for way, course in ways.items():
        streams = fleet("4/ar", 6, 4000)
        for at, stream in enumerate(streams):
            stream.values[:, 0] += course(at) * float(spread(stream.values[:LEARNED, :1])[0])
        budget = WEEKLY.alert_budget
        found = judged_at(streams, [budget], LEARNED, way, declared=False)[0]
        yield f"rare/{way}", {"alerts": sum(len(verdict.starts()) for verdict in found)}


def learned(streams: Sequence[Stream], ticks: int, *, declared: bool) -> Backtest:
    """A profile of the first ticks of each stream."""
    run = Backtest(WEEKLY, [recording([cut(stream, 0, ticks) for stream in streams])], Progress("learning"))
    run.learn_all(Plan(declared=declared))
    return run


def judged(streams: Sequence[Stream], model: Backtest) -> list[Verdict]:
    """What that profile makes of other streams."""
    assert model.stream.detector is not None
    run = Backtest(WEEKLY, [recording(streams)], Progress("judging"))
    return verdicts(streams, run.run(None, (model.stream.detector, model.stream)))


def starts(found: Sequence[Verdict], before: int = HOURS) -> int:
    """Prediction alerts that began before a tick."""
    return sum(start < before for verdict in found for start in verdict.starts())


def joining() -> Iterator[tuple[str, dict[str, float]]]:
    """Alerts of healthy devices that join, and shares of their faults that are told."""
    pumps = fleet("pump", 12, HOURS, seed=3)
    for ticks in (600, 2000):
        for declared in (True, False):
            model = learned(pumps, ticks, declared=declared)
            new = [replace(cut(pump, ticks), id=f"new/{pump.id}") for pump in pumps]
            found = judged(new, model)
            figures: dict[str, float] = {"alerts_first_10_min": starts(found, 600), "alerts": starts(found)}
            for at in (60, 150, 400, 1000):
                fault = FAULTS[2]
                broken = [faulty(pump, i % 4, fault, at, i) for i, pump in enumerate(new)]
                shares = [told(verdict, fault, at) for verdict in judged([cut(s, 0, 2000) for s in broken], model)]
                figures[f"shift_at_{at}_told"] = float(np.mean(shares))
            yield f"joining/{'declared' if declared else 'live'}/{ticks}", figures


def rooms(seed: int) -> list[Stream]:
    """Eleven rooms whose air swings in 4 to 6 minutes, by each in its own; the last three join at tick JOIN."""
    random, out = np.random.default_rng(seed), []
    for at in range(11):
        ticks = np.arange(JOIN if at >= FEW else 0, TICKS, dtype=np.float64)
        swing = np.sin(2 * np.pi * ticks / random.uniform(240, 360) + random.uniform(0, 6))
        noise = random.normal(size=(len(ticks), 3))
        heat = random.uniform(20, 23) + 0.8 * swing + 0.05 * noise[:, 0]
        damp = 45 - 3 * (heat - heat.mean()) + 0.2 * noise[:, 1]
        values = np.stack([620 + 150 * swing + 5 * noise[:, 2], heat, damp], 1)
        out.append(Stream(f"room/{at}", "room", EPOCH + ticks, values, ("co2", "heat", "damp")))
    return out


def starts_live(streams: Sequence[Stream]) -> dict[str, list[int]]:
    """Ticks of prediction alerts, by device, as in the daemon: a network learns beside the stream and is taken later."""
    channels = tuple(Channel(name) for name in streams[0].channels)
    spec = replace(WEEKLY, channels=channels)
    live, found = ProfileStream(spec), dict[str, list[int]]()
    total, due, ready, coming = 0, LEARNED * FEW, 0, ProfileStream(spec)
    for tick in range(TICKS):
        readings = _at(streams, tick)
        total += len(readings)
        outcome, _ = live.absorb(readings, EPOCH + tick)
        coming.absorb(readings, EPOCH + tick)
        for transition in outcome.transitions:
            if transition.alert.kind == "prediction" and transition.alert.state == "firing":
                found.setdefault(transition.alert.device, []).append(tick)
        if ready and tick >= ready:
            take_over(live, coming)
            ready = 0
        elif not ready and total >= due:
            past = [cut(s, 0, tick + 1 - int(s.time[0] - EPOCH)) for s in streams if s.time[1] <= EPOCH + tick]
            series = [Series(s.id, s.time, s.values) for s in past]
            start, placed = live.detector, live.placed()
            done = learn(series, channels, spec.model, seed=0, declared=False, start=start, placed=placed)
            due, ready = next_learning(total), tick + (LAG if start is None else LAG // 3)
            coming = ProfileStream(spec)
            adopt(coming, done)
    return found


def _at(streams: Sequence[Stream], tick: int) -> Readings:
    here = [(s, tick - int(s.time[0] - EPOCH)) for s in streams if s.time[0] <= EPOCH + tick]
    values, time = np.stack([s.values[at] for s, at in here]), np.full(len(here), EPOCH + tick)
    return Readings("bench", streams[0].channels, [s.id for s, _ in here], time, values, np.arange(len(here)))


def late() -> Iterator[tuple[str, dict[str, float]]]:
    """Alerts of devices that join when a network learns on soon, and whether a fault of each is told."""
    fault, alerts, seen = FAULTS[2], 0, 0
    for seed in range(3):
        streams = rooms(seed)
        joined = [faulty(s, at, fault, FAULT_AT - JOIN, seed) for at, s in enumerate(streams[FEW:])]
        found = starts_live([*streams[:FEW], *joined])
        for stream in joined:
            starts = found.get(stream.id, [])
            alerts += sum(start < FAULT_AT for start in starts)
            seen += any(FAULT_AT <= start < FAULT_AT + fault.length for start in starts)
    yield "late/rooms", {"alerts": alerts, "told": seen / 9}


def declared() -> Iterator[tuple[str, dict[str, float]]]:
    """Alerts of healthy devices whose first ticks were declared."""
    for kind in ("pump", "1/ar", "4/ar", "8/white", "8/heavy"):
        streams = fleet(kind, 12, HOURS, seed=3)
        for ticks in (600, 2000):
            found = judged([cut(stream, ticks) for stream in streams], learned(streams, ticks, declared=True))
            flagged = float(np.mean([verdict.flagged.mean() for verdict in found]))
            yield f"declared/{kind}/{ticks}", {"alerts": starts(found), "flagged": flagged}


def main() -> None:
    """Run all, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parts = {part.__name__: part for part in (learning, rare, joining, late, declared)}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    given = parser.parse_args()
    out, summary = given.out, {}
    for part in map(parts.__getitem__, given.only):
        for name, figures in part():
            summary[name] = figures
            print(f"{name:32}", "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)
    save(out, summary)


if __name__ == "__main__":
    main()
