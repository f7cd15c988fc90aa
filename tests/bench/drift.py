"""A recording declared clean, then a device that drifts: false time in alarm, and long true faults still held.

Real: transformers (`ett`) declared normal for their first three months, air quality (`beijing`) for its first four, then
judged for a year, whole devices (multi) and channels apart (uni). Simulated: four devices of eight coupled channels,
1,000 ticks of 15 min declared, 6,000 judged, ageing in one of the ways of `DRIFTS`. On copies, each a device of its own,
a fault of 300 or 1,000 ticks early or late: found if an alert starts in it or is open when it begins and not in the
clean copy; held is the share of its ticks that are flagged or in an alert, beside the same share of the clean copy.

    python -m tests.bench.drift --data DIR [--out DIR] [--only SUBSTRING] [--budget 1/week] [--quick] [--jobs N]

Writes OUT/devices.csv (healthy ones), OUT/faults.csv, OUT/alerts.csv and OUT/summary.json.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.backtest import Plan
from sentinel.model.calibrate import REFRACTORY, WEEK
from sentinel.records import Floats
from tests.bench.inject import Fault, inject, spread
from tests.bench.runs import arguments, over_seeds
from tests.bench.streams import (
    BUDGETS,
    DAY,
    Stream,
    Verdict,
    alert_rows,
    apart,
    grouped,
    healthy,
    judged,
    save,
    simulated,
)

MONTHS = {"ett": 3, "beijing": 4}
MONTH_TICKS, YEAR_TICKS = 730, 8766  # hourly
SIM_DECLARED, SIM_JUDGED, SIM_DEVICES, SIM_CHANNELS, SIM_INTERVAL = 1000, 6000, 4, 8, 900.0
FAULTS = tuple(
    Fault(kind, size, length)
    for kind, size in (("shift", 3.0), ("shift", 6.0), ("decoupled", 0.0), ("stuck", 0.0))
    for length in (300, 1000)
)
WHEN = {"early": 0.1, "late": 0.75}  # share of what is judged at which a fault begins
PER_FAULT = 4  # devices that get each fault, at most
Drift = Callable[[Floats, Floats], Floats]


def _ramp(size: float, channels: int) -> Drift:
    """Level drifts to `size` of the channel's spreads over the test."""
    return lambda z, at: z + size * at[:, None] * (np.arange(z.shape[1]) < channels)


def _noise(size: float) -> Drift:
    """What is fast (differences from a mean of 9 ticks) grows to `size` times."""
    return lambda z, at: z + (size - 1) * at[:, None] * (z - _mean(z, 9))


def _gain(size: float, channels: int) -> Drift:
    """Deviations from the middle grow to `size` times."""
    return lambda z, at: z * (1 + (size - 1) * at[:, None] * (np.arange(z.shape[1]) < channels))


def _season(size: float) -> Drift:
    """Each channel follows one year's wave, which begins when the recording ends, with its own sign."""
    return lambda z, at: z + size * np.sin(2 * np.pi * at)[:, None] * np.where(np.arange(z.shape[1]) % 2, 1, -1)


def _step(size: float, channels: int) -> Drift:
    """A new operating point for ever, from a fifth of the test on."""
    return lambda z, at: z + size * (at > 0.2)[:, None] * (np.arange(z.shape[1]) < channels)


DRIFTS: dict[str, Drift] = {
    "none": lambda z, _at: z,
    "level-3-one": _ramp(3, 1),
    "level-10-one": _ramp(10, 1),
    "level-3-all": _ramp(3, SIM_CHANNELS),
    "level-10-all": _ramp(10, SIM_CHANNELS),
    "noise-3": _noise(3),
    "gain-2-one": _gain(2, 1),
    "season-3": _season(3),
    "step-6-one": _step(6, 1),
    "step-6-all": _step(6, SIM_CHANNELS),
}


def _mean(z: Floats, width: int) -> Floats:
    """Centred moving mean along time."""
    padded = np.pad(z, ((width // 2, width // 2), (0, 0)), mode="edge")
    out: Floats = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0).mean(axis=2)
    return out


@dataclass(frozen=True, slots=True)
class Task:
    """One profile."""

    group: str
    mode: str

    @property
    def kind(self) -> str:
        """Scenario."""
        return f"{self.mode}/{self.group}"


@dataclass(frozen=True, slots=True)
class Healthy:
    """One healthy device: shares of the judged ticks flagged and in an alert, alerts a week."""

    id: str
    kind: str
    weeks: float
    flagged: float
    in_alert: float
    alerts: int
    expected: float


@dataclass(frozen=True, slots=True)
class Faulty:
    """One fault. `held_clean`: `held` in the clean copy at the same time."""

    id: str
    kind: str
    channel: str
    found: bool
    delay: int | None
    held: float
    held_clean: float


def groups(task: Task, data: Path, quick: bool) -> tuple[list[Stream], int]:
    """Healthy streams of a task, and the ticks of each that are declared."""
    year = YEAR_TICKS // 4 if quick else YEAR_TICKS
    if task.group in MONTHS:
        declared = MONTHS[task.group] * MONTH_TICKS
        whole = [_head(s, declared + year) for s in grouped(healthy(data))[task.group]]
        return (whole if task.mode == "multi" else apart(whole)), declared
    ticks = SIM_DECLARED + (SIM_JUDGED // 4 if quick else SIM_JUDGED)
    fleet = simulated(SIM_INTERVAL, SIM_CHANNELS, "factor", SIM_DEVICES, ticks, spread=0.05)
    at = np.maximum(np.arange(ticks) - SIM_DECLARED, 0) / (ticks - SIM_DECLARED)
    aged = []
    for stream in fleet:
        clean = stream.values[:SIM_DECLARED]
        middle, scale = np.median(clean, axis=0), spread(clean)
        values = middle + scale * DRIFTS[task.group]((stream.values - middle) / scale, at)
        aged.append(replace(stream, id=f"{task.group}/{stream.id.rsplit('/', 1)[1]}", values=values))
    return aged, SIM_DECLARED


def _head(stream: Stream, ticks: int) -> Stream:
    return replace(stream, time=stream.time[:ticks], values=stream.values[:ticks])


def run(at: int, todo: Sequence[Task], data: Path, budget: str, quick: bool) -> tuple[list[Any], list[Any], list[Any]]:
    """Healthy devices, faults and alerts of one task."""
    task = todo[at]
    streams, declared = groups(task, data, quick)
    cases: list[tuple[int, int, int, str]] = []  # stream, channel, onset, fault's name
    copies = []
    alone = len(streams[0].channels) == 1  # nothing to be coupled with
    for number, fault in enumerate(fault for fault in FAULTS if not (alone and fault.kind == "decoupled")):
        for late, (when, share) in enumerate(WHEN.items()):
            for turn in range(min(PER_FAULT, len(streams))):
                which = (turn * max(len(streams) // PER_FAULT, 1) + number + late) % len(streams)
                stream = streams[which]
                channel = (number + turn + late) % len(stream.channels)
                onset = declared + int(share * (len(stream) - declared))
                if onset + fault.length + REFRACTORY > len(stream):
                    continue
                name = f"{fault.name}/{fault.length}/{when}/{stream.id}"
                values = inject(
                    stream.values,
                    channel,
                    fault,
                    onset,
                    scale=float(spread(stream.values[:declared, [channel]])[0]),
                    day=round(DAY / stream.interval),
                    random=np.random.default_rng(zlib.crc32(name.encode())),
                )
                if not np.array_equal(values, stream.values, equal_nan=True):
                    cases.append((which, channel, onset, name))
                    copies.append(replace(stream, id=name, values=values))
    plan = Plan(rows=declared, declared=True)
    found = judged([*streams, *copies], BUDGETS[budget], plan, f"[{at + 1}/{len(todo)}] {task.kind}")
    clean = found[: len(streams)]
    healthy_ = [judge_healthy(task, verdict, BUDGETS[budget]) for verdict in clean]
    faulty = [
        judge_fault(task, case, verdict, clean[case[0]])
        for case, verdict in zip(cases, found[len(streams) :], strict=True)
    ]
    alerts = [line for verdict in found for line in alert_rows(f"drift/{task.kind}/{verdict.stream.id}", verdict)]
    return healthy_, faulty, alerts


def judge_healthy(task: Task, verdict: Verdict, budget: float) -> Healthy:
    """Figures of a healthy device."""
    judged_ = np.arange(len(verdict.stream)) >= verdict.learned
    seconds = verdict.stream.seconds(judged_)
    return Healthy(
        id=f"drift/{task.kind}/{verdict.stream.id}",
        kind=task.kind,
        weeks=seconds / WEEK,
        flagged=float(verdict.flagged[judged_].mean()),
        in_alert=float(verdict.inside[judged_].mean()),
        alerts=len(verdict.alerts),
        expected=seconds * budget,
    )


def judge_fault(task: Task, case: tuple[int, int, int, str], verdict: Verdict, clean: Verdict) -> Faulty:
    """Figures of a fault."""
    _, channel, onset, name = case
    length = int(name.split("/")[1])
    fault = slice(onset, onset + length)
    hits = [a.start for a in verdict.alerts if onset <= a.start < onset + length + REFRACTORY]
    was_open = bool(verdict.inside[onset] and not clean.inside[onset : onset + length].all())
    held, held_clean = (float((v.flagged | v.inside)[fault].mean()) for v in (verdict, clean))
    return Faulty(
        id=f"drift/{task.kind}/{name}",
        kind=f"{task.kind}/{name.split('/')[0]}/{length}",
        channel=verdict.stream.channels[channel],
        found=bool(hits) or was_open,
        delay=min(hits) - onset if hits else None,
        held=held,
        held_clean=held_clean,
    )


def summed_up(devices: Sequence[Healthy], faults: Sequence[Faulty]) -> dict[str, Any]:
    """Both sides of one or several scenarios."""
    weeks = sum(device.weeks for device in devices)
    return {
        "devices": len(devices),
        "weeks": weeks,
        "flagged": float(np.mean([device.flagged for device in devices])),
        "in_alert": float(np.mean([device.in_alert for device in devices])),
        "in_alert_worst": max(device.in_alert for device in devices),
        "alerts_per_week": sum(device.alerts for device in devices) / weeks,
        "budget_per_week": sum(device.expected for device in devices) / weeks,
        "faults": len(faults),
        "found": float(np.mean([fault.found for fault in faults])) if faults else None,
        "held": float(np.mean([fault.held for fault in faults])) if faults else None,
        "held_clean": float(np.mean([fault.held_clean for fault in faults])) if faults else None,
    }


def show(summary: dict[str, dict[str, Any]], faults: Sequence[Faulty]) -> None:
    """Print both sides, and the faults by kind."""
    print(
        f"\n{'healthy, drifting':<26}{'devices':>8}{'weeks':>8}{'flagged':>9}{'in alert':>10}{'worst':>7}{'alerts/week':>13}"
        f"{'budget':>8}   {'faults':>8}{'found':>7}{'held':>7}{'of clean':>10}"
    )
    for kind, s in summary.items():
        print(
            f"{kind.removeprefix('drift/'):<26}{s['devices']:>8}{s['weeks']:>8.0f}{s['flagged']:>9.1%}{s['in_alert']:>10.1%}"
            f"{s['in_alert_worst']:>7.0%}{s['alerts_per_week']:>13.2f}{s['budget_per_week']:>8.2f}   {s['faults']:>8}"
            f"{s['found']:>7.0%}{s['held']:>7.0%}{s['held_clean']:>10.0%}"
        )
    print(f"\n{'long faults':<26}{'n':>4}{'found':>8}{'delay':>7}{'held':>7}{'of clean':>10}")
    by_fault: dict[str, list[Faulty]] = {}
    for fault in faults:
        _, rest = fault.id.split("/", 1)
        mode = rest.split("/")[0]
        by_fault.setdefault("/".join([mode, *fault.kind.split("/")[-2:]]), []).append(fault)
    for name, some in sorted(by_fault.items()):
        delays = [fault.delay for fault in some if fault.delay is not None]
        print(
            f"{name:<26}{len(some):>4}{np.mean([f.found for f in some]):>8.0%}"
            f"{np.median(delays) if delays else np.nan:>7.0f}{np.mean([f.held for f in some]):>7.0%}"
            f"{np.mean([f.held_clean for f in some]):>10.0%}"
        )


def main() -> int:
    """Entry point."""
    parser = arguments(__doc__, "ett/ and beijing_air/", "profiles")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of mode/group, such as multi/ett or sim/level")
    parser.add_argument("--budget", choices=list(BUDGETS), default="1/week")
    parser.add_argument("--quick", action="store_true", help="a quarter of each test")
    given = parser.parse_args()
    every = [Task(group, mode) for mode in ("multi", "uni") for group in MONTHS] + [
        Task(name, "sim") for name in DRIFTS
    ]
    todo = [task for task in every if given.only in task.kind]
    if not todo:
        parser.error(f"nothing has {given.only!r} in its name")
    job = partial(run, todo=todo, data=given.data, budget=given.budget, quick=given.quick)
    results = over_seeds(job, len(todo), given.jobs)
    summary = {f"drift/{task.kind}": summed_up(*some[:2]) for task, some in zip(todo, results, strict=True)}
    devices, faults, alerts = ([line for some in results for line in some[part]] for part in range(3))
    for mode in dict.fromkeys(task.mode for task in todo):
        mine = [[x for x in part if x.kind.startswith(f"{mode}/")] for part in (devices, faults)]
        summary[f"drift/{mode}"] = summed_up(*mine)
    show(summary, faults)
    save(given.out, summary, devices=[asdict(d) for d in devices], faults=[asdict(f) for f in faults], alerts=alerts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
