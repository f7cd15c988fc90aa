"""Injected faults of one channel: which are found, how soon, and whether the right channel is named.

A site is a stretch of a healthy stream, a channel in it and an onset; every fault is put into every site, and each copy
is a device of its own, beside the clean one. Real sites begin a whole number of weeks into their stream. The network
learns once from the first ticks of all copies, 1,800 declared clean, or 750 with statistics that go on learning live;
faults begin 2,000 ticks in or later. A fault is found if an alert starts in it or in the 75 ticks after it; the same of
the clean copy is chance, and beyond it is (found - chance) / (1 - chance) (Abbott 1925). A site at whose onset an alert
is open already is busy: no alert can start there, and it is not counted. The channel is right if it has the largest
share in that alert; told of faults whose clean copy is silent. A fault that changes nothing is left out.

    python -m tests.bench.faults --data DIR [--out DIR] [--only SUBSTRING] [--quick] [--jobs N]

Writes OUT/faults.csv, a line an injection, and OUT/summary.json.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.model.calibrate import REFRACTORY, WEEK
from sentinel.records import Floats
from sentinel.simulate import PUMP, Fleet
from tests.bench.inject import FAULTS, LENGTH, Fault, inject, spread
from tests.bench.runs import arguments, over_seeds
from tests.bench.streams import BUDGETS, DAY, EPOCH, Stream, Verdict, grouped, healthy, judged_at, save, simulated

BEFORE, JITTER, AFTER = 2000, 168, 100  # ticks
TICKS = BEFORE + JITTER + LENGTH + AFTER
DECLARED, LIVE = 1800, 750  # ticks learned from
VARIED = 20  # distinct values of a channel that gets a fault
REAL = {"ett": 14, "tetuan": 12, "beijing": 14}  # sites
SIMULATED = {"plant": 10, "factor-4": 10, "factor-11": 10, "factor-40": 10}
QUICK, QUICK_SITES = ("ett", "factor-11"), 6
TOLD = ("1/week", "1/month")
QUARTER_HOUR = 900.0  # a simulated plant's day is 96 ticks


@dataclass(frozen=True, slots=True)
class Site:
    """Where faults begin.

    Attributes:
        stream: TICKS long.
        channel: the one that gets them.
    """

    stream: Stream
    channel: int
    onset: int

    def copy(self, fault: Fault | None) -> Stream:
        """The stream with a fault, or without."""
        id_ = f"{fault.name if fault else 'clean'}/{self.stream.id}"
        if fault is None:
            return replace(self.stream, id=id_)
        past = self.stream.values[: self.onset, self.channel]
        values = inject(
            self.stream.values,
            self.channel,
            fault,
            self.onset,
            scale=float(spread(past[:, None])[0]),
            day=round(DAY / self.stream.interval),
            random=np.random.default_rng(zlib.crc32(id_.encode())),
        )
        return replace(self.stream, id=id_, values=values)


@dataclass(frozen=True, slots=True)
class Task:
    """All faults at all sites of one profile, learned in one way. `mode`: multi or uni."""

    group: str
    mode: str
    declared: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One injection.

    Attributes:
        kind: of scenario: corpus / mode / how learned / budget / fault.
        busy: an alert was open already.
        found, chance: an alert started in the fault's time; in the clean copy at that time.
        alert: its kind.   delay: ticks.   named: channel with the largest share in it.
        flagged: share of the fault's ticks.
    """

    id: str
    kind: str
    site: str
    channel: str
    busy: bool
    found: bool
    chance: bool
    alert: str
    delay: int | None
    named: str
    right: bool | None
    flagged: float


def sites(group: str, count: int, data: Path) -> list[Site]:
    """Sites of a group; which they are depends on its name alone."""
    random = np.random.default_rng(zlib.crc32(group.encode()))
    streams = _cut(group, count, data, random) if group in REAL else _simulated(group, count)
    out, next_channel = [], int(random.integers(1000))
    for stream in streams:
        past = stream.values[:BEFORE]
        fit = [at for at, x in enumerate(past.T) if len(np.unique(x[~np.isnan(x)])) > VARIED]
        channel = fit[next_channel % len(fit)]
        next_channel += 1
        name = f"{stream.id}/{stream.channels[channel]}"
        out.append(Site(replace(stream, id=name), channel, BEFORE + int(random.integers(JITTER))))
    return out


def _cut(group: str, count: int, data: Path, random: np.random.Generator) -> list[Stream]:
    """Stretches that begin whole weeks into the streams of a group, all moved to the same week."""
    streams = grouped(healthy(data))[group]
    out = []
    for at, stream in enumerate(streams):
        week = round(WEEK / stream.interval)
        share = len(range(at, count, len(streams)))
        chosen = sorted(random.choice((len(stream) - TICKS) // week, share, replace=False).tolist())
        for number in chosen:
            values = stream.values[number * week : number * week + TICKS]
            out.append(replace(stream, id=f"{stream.id}/w{number}", time=streams[0].time[:TICKS], values=values))
    return out


def _simulated(group: str, count: int) -> list[Stream]:
    if group == "plant":
        fleet = Fleet(PUMP, count, interval=QUARTER_HOUR, seed=1, spread=0.0)
        time: Floats = EPOCH + QUARTER_HOUR * np.arange(TICKS, dtype=np.float64)
        values = np.stack([fleet.step(now).values for now in time.tolist()], axis=1)
        return [Stream(f"plant/{at}", group, time, own, PUMP.channels) for at, own in enumerate(values)]
    width = int(group.removeprefix("factor-"))
    fleet_ = simulated(QUARTER_HOUR, width, "factor", count, TICKS, spread=0.05)
    return [replace(stream, id=f"{group}/{at}", group=group) for at, stream in enumerate(fleet_)]


def single(site: Site) -> Site:
    """The site's channel as a device of its own."""
    column = site.stream.values[:, site.channel : site.channel + 1]
    return replace(site, stream=replace(site.stream, values=column, channels=("value",)), channel=0)


def run(at: int, todo: Sequence[Task], data: Path, budgets: Sequence[str], most: int) -> list[Row]:
    """All rows of one task."""
    task = todo[at]
    found = sites(task.group, (REAL | SIMULATED)[task.group], data)[:most]
    if task.mode == "uni":
        found = [single(site) for site in found]
    cases = [(site, fault) for site in found for fault in FAULTS if task.mode == "multi" or fault.kind != "replayed"]
    copies = [site.copy(None) for site in found] + [site.copy(fault) for site, fault in cases]
    learned = DECLARED if task.declared else LIVE
    how = "declared" if task.declared else "live"
    who = f"[{at + 1}/{len(todo)}] {task.group} {task.mode} {how}"
    rows = []
    verdicts = judged_at(copies, [BUDGETS[name] for name in budgets], learned, who, declared=task.declared)
    for budget, all_ in zip(budgets, verdicts, strict=True):
        clean = dict(zip([site.stream.id for site in found], all_, strict=False))
        for (site, fault), verdict in zip(cases, all_[len(found) :], strict=True):
            twin = clean[site.stream.id]
            if not np.array_equal(verdict.stream.values, twin.stream.values, equal_nan=True):
                corpus = "real" if task.group in REAL else "sim"
                kind = f"{corpus}/{task.mode}/{how}/{budget}/{fault.name}"
                rows.append(judge(site, fault, verdict, twin, learned, kind))
    return rows


def judge(site: Site, fault: Fault, verdict: Verdict, twin: Verdict, learned: int, kind: str) -> Row:
    """One injection's figures."""
    onset = site.onset - learned
    until = onset + fault.length + REFRACTORY
    hits = [alert for alert in verdict.alerts if onset <= alert.start < until]
    first = hits[0] if hits else None
    chance = any(onset <= alert.start < until for alert in twin.alerts)
    channel = site.stream.channels[site.channel]
    named = first.channels[0] if first and first.channels else ""
    tellable = first is not None and not chance and len(site.stream.channels) > 1 and fault.kind != "replayed"
    return Row(
        id=f"faults/{kind}/{site.stream.id}",
        kind=kind,
        site=site.stream.id,
        channel=channel,
        busy=bool(verdict.inside[onset - 1]),
        found=first is not None,
        chance=chance,
        alert=first.kind if first else "",
        delay=first.start - onset if first else None,
        named=named,
        right=named == channel if tellable else None,
        flagged=float(verdict.flagged[onset : onset + fault.length].mean()),
    )


def summed_up(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of one kind of scenario."""
    injected, rows = len(rows), [row for row in rows if not row.busy]
    found, chance = (
        float(np.mean([getattr(row, name) for row in rows])) if rows else 0.0 for name in ("found", "chance")
    )
    delays = [row.delay for row in rows if row.delay is not None]
    right = [row.right for row in rows if row.right is not None]
    return {
        "injected": injected,
        "busy": injected - len(rows),
        "found": found,
        "chance": chance,
        "beyond_chance": (found - chance) / (1 - chance) if chance < 1 else None,
        "delay_median": float(np.median(delays)) if delays else None,
        "delay_p90": float(np.percentile(delays, 90)) if delays else None,
        "by_rule": float(np.mean([row.found and row.alert != "prediction" for row in rows])) if rows else 0.0,
        "attributed": len(right),
        "right": float(np.mean(right)) if right else None,
        "flagged": float(np.mean([row.flagged for row in rows])) if rows else 0.0,
    }


def show(by_kind: dict[str, list[Row]]) -> None:
    """Print a table a corpus, mode and way of learning."""
    head = ""
    for kind, rows in by_kind.items():
        *where, fault = kind.split("/")
        if "/".join(where) != head:
            head = "/".join(where)
            print(
                f"\n{head:<28}{'n':>4}{'busy':>6}{'found':>7}{'chance':>8}{'beyond':>8}{'delay':>7}{'p90':>5}{'flagged':>9}{'right':>13}"
            )
        s = summed_up(rows)
        delay = (
            f"{s['delay_median']:7.0f}{s['delay_p90']:5.0f}" if s["delay_median"] is not None else f"{'-':>7}{'-':>5}"
        )
        right = f"{s['right']:8.0%} of {s['attributed']}" if s["attributed"] else ""
        beyond = f"{s['beyond_chance']:8.0%}" if s["beyond_chance"] is not None else f"{'-':>8}"
        by_rule = f"   {s['by_rule']:.0%} by a rule" if s["by_rule"] else ""
        print(
            f"  {fault:<26}{s['injected']:>4}{s['busy']:>6}{s['found']:>7.0%}{s['chance']:>8.0%}{beyond}{delay}"
            f"{s['flagged']:>9.0%}{right:<13}{by_rule}"
        )


def main() -> int:
    """Entry point."""
    parser = arguments(__doc__, "ett/, tetuan_power/, beijing_air/", "profiles")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of group/mode/how, such as ett/multi/live")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} at 1/week, {QUICK_SITES} sites each")
    given = parser.parse_args()
    todo = [
        Task(group, mode, declared)
        for group in (QUICK if given.quick else REAL | SIMULATED)
        for mode in (("multi", "uni") if group in REAL else ("multi",))
        for declared in (False, True)
        if given.only in f"{group}/{mode}/{'declared' if declared else 'live'}"
    ]
    if not todo:
        parser.error(f"nothing has {given.only!r} in its name")
    budgets = TOLD[:1] if given.quick else TOLD
    most = QUICK_SITES if given.quick else TICKS
    job = partial(run, todo=todo, data=given.data, budgets=budgets, most=most)
    rows = [row for some in over_seeds(job, len(todo), given.jobs) for row in some]
    by_kind: dict[str, list[Row]] = {}
    order = {fault.name: at for at, fault in enumerate(FAULTS)}
    for row in sorted(rows, key=lambda row: (row.kind.rsplit("/", 1)[0], order[row.kind.rsplit("/", 1)[1]])):
        by_kind.setdefault(row.kind, []).append(row)
    show(by_kind)
    summary = {f"faults/{kind}": summed_up(found) for kind, found in by_kind.items()}
    save(given.out, summary, faults=[asdict(row) for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
