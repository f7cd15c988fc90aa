"""The alarm budget on healthy devices: prediction alerts against what the budget allows.

Learns live with the product's defaults (from the first 15 % of the rows, at most 750), or takes the same rows for a
recording declared clean. Alerts count after start-up: the longer of 1,500 ticks and one budget interval, of real streams
at most a quarter of what is judged. A budget is judged where its interval is 150 ticks or more. A stream's ratio is told
where 4 alerts or more are expected; simulated devices of a kind count as one stream, each judged for one interval after
the start-up or longer. In the benchmark's files alerts and time count outside its windows and the refractory after them.

    python -m tests.bench.budget --data DIR [--out DIR] [--only SUBSTRING] [--declared | --live] [--long] [--jobs N]

Writes OUT/streams.csv, OUT/alerts.csv and OUT/summary.json.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.backtest import Plan
from sentinel.model.calibrate import WEEK
from tests.bench.runs import arguments, over_seeds
from tests.bench.streams import (
    BUDGETS,
    NOISES,
    Stream,
    Verdict,
    alert_rows,
    apart,
    grouped,
    healthy,
    judged,
    numenta,
    save,
    simulated,
)

START_UP, LEAST_INTERVAL = 1500, 150  # ticks
LEAST_EXPECTED, WORTH = 4.0, 1.0  # alerts that make a ratio; that make a stream worth running
WITHIN = 1.5
INTERVALS = (1.0, 60.0, 600.0, 3600.0)  # s between ticks of simulated fleets
WIDTHS = (1, 8, 60)  # channels
LEARNED = 750  # ticks
VALUES, MOST_DEVICES = 12_000_000, 32  # of a simulated fleet
MOST_TICKS, LONG_TICKS = 200_000, 1_500_000  # of a simulated device
HERTZ_WEEKS = 30  # device-weeks at 1 Hz and one channel


@dataclass(frozen=True, slots=True)
class Task:
    """One profile under one budget. `mode`: multi, uni or fleet."""

    group: str
    mode: str
    declared: bool
    budget: str

    @property
    def kind(self) -> str:
        """Scenario it is summed up under."""
        return f"{self.mode}/{'declared' if self.declared else 'live'}/{self.budget}"


@dataclass(frozen=True, slots=True)
class Row:
    """One stream under one budget.

    Attributes:
        interval_ticks: ticks per budgeted alert.
        start_up: ticks that do not count, after what was learned from.
        weeks: device-weeks that count.
        starts: prediction alerts begun in them, of `expected`.
        early: prediction alerts begun in the start-up.
        first: prediction alerts begun in the first budget interval after what was learned from.
        flagged, in_alert: shares of the counted rows: a budget is easily kept by an alert that never ends.
        rules: other alerts.
    """

    id: str
    stream: str
    ticks: int
    learned: int
    interval_ticks: float
    start_up: int
    weeks: float
    expected: float
    starts: int
    ratio: float
    early: int
    first: int
    flagged: float
    in_alert: float
    rules: int


def fleet_size(interval: float, width: int, rate: float, long: bool) -> tuple[int, int] | None:
    """Devices and ticks of a simulated fleet; None: the budget is too strict, or too loose, to be judged."""
    per_alert = 1 / (rate * interval)
    ticks = int(LEARNED + 2 * max(START_UP, per_alert))
    if not per_alert >= LEAST_INTERVAL or ticks > (LONG_TICKS if long else MOST_TICKS):
        return None
    if interval == 1.0 and width == 1:
        return int(-(-HERTZ_WEEKS * WEEK // ticks)), ticks
    return min(max(VALUES // (ticks * width), int(LEAST_EXPECTED)), MOST_DEVICES), ticks


def fleets(long: bool) -> list[str]:
    """Simulated fleets: interval, channels, noise. By default each interval and width has one noise."""
    return [
        f"fleet/{interval:g}s/{width}/{noise}"
        for i, interval in enumerate(INTERVALS)
        for w, width in enumerate(WIDTHS)
        for noise in (NOISES if long else (NOISES[(i + w) % len(NOISES)],))
    ]


def group_streams(task: Task, data: Path, long: bool) -> list[Stream]:
    """The streams of a task."""
    if task.mode == "fleet":
        _, step, width, noise = task.group.split("/")
        interval = float(step[:-1])
        size = fleet_size(interval, int(width), BUDGETS[task.budget], long)
        assert size is not None
        return simulated(interval, int(width), noise, *size)
    streams = healthy(data) if not task.group.startswith("nab") else numenta(data)
    return grouped(apart(streams) if task.mode == "uni" else streams)[task.group]


def tasks(data: Path, only: str, learns: Sequence[bool], long: bool) -> list[Task]:
    """What there is to run, the same order each time."""
    whole = healthy(data)
    plans: list[tuple[str, str, float, float]] = []  # group, mode, interval, seconds in all
    for mode, streams in (("multi", whole), ("uni", [*apart(whole), *numenta(data)])):
        for group, members in grouped(streams).items():
            seconds = max(len(s) * s.interval for s in members)
            plans.append((group, mode, members[0].interval, seconds))
    out = [
        Task(group, mode, declared, budget)
        for group, mode, interval, seconds in plans
        for declared in learns
        for budget, rate in BUDGETS.items()
        if only in f"{mode}/{group}" and 1 / (rate * interval) >= LEAST_INTERVAL and seconds * rate >= WORTH
    ]
    for group in fleets(long):
        _, step, width, _noise = group.split("/")
        out += [
            Task(group, "fleet", declared, budget)
            for declared in learns
            for budget, rate in BUDGETS.items()
            if only in group and fleet_size(float(step[:-1]), int(width), rate, long) is not None
        ]
    return out


def run(at: int, todo: Sequence[Task], data: Path, long: bool) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows and alerts of one task."""
    task = todo[at]
    streams = group_streams(task, data, long)
    plan = Plan(declared=task.declared, relearn=task.mode != "fleet")
    found = judged(streams, BUDGETS[task.budget], plan, f"[{at + 1}/{len(todo)}] {task.group} {task.kind}")
    rows = [judge(verdict, task) for verdict in found]
    return rows, [line for row, verdict in zip(rows, found, strict=True) for line in alert_rows(row.id, verdict)]


def judge(verdict: Verdict, task: Task) -> Row:
    """One stream's figures."""
    stream, budget = verdict.stream, BUDGETS[task.budget]
    per_alert = 1 / (budget * stream.interval)
    start_up = max(START_UP, int(per_alert))
    if task.mode != "fleet":
        start_up = min(start_up, (len(stream) - verdict.learned) // 4)
    counts = np.arange(len(stream)) >= verdict.learned + start_up
    if stream.normal is not None:
        counts &= stream.normal
    weeks = stream.seconds(counts) / WEEK
    expected = weeks * WEEK * budget
    starts = verdict.starts()
    since = [start - verdict.learned for start in starts if stream.normal is None or stream.normal[start]]
    counted = sum(bool(counts[start]) for start in starts)
    return Row(
        id=f"budget/{task.kind}/{stream.id}",
        stream=stream.id,
        ticks=len(stream),
        learned=verdict.learned,
        interval_ticks=per_alert,
        start_up=start_up,
        weeks=weeks,
        expected=expected,
        starts=counted,
        ratio=counted / expected if expected else np.nan,
        early=sum(at < start_up for at in since),
        first=sum(at < per_alert for at in since),
        flagged=float(verdict.flagged[counts].mean()) if counts.any() else np.nan,
        in_alert=float(verdict.inside[counts].mean()) if counts.any() else np.nan,
        rules=len(verdict.alerts) - len(starts),
    )


def pooled(rows: Sequence[Row]) -> list[Row]:
    """Simulated devices of one fleet as one stream; others as they are."""
    out = [row for row in rows if not row.stream.startswith("sim/")]
    fleets_: dict[str, list[Row]] = {}
    for row in rows:
        if row.stream.startswith("sim/"):
            fleets_.setdefault(row.stream.rsplit("/", 1)[0], []).append(row)
    for name, members in fleets_.items():
        total = {
            key: sum(getattr(m, key) for m in members) for key in ("weeks", "expected", "starts", "ticks", "rules")
        }
        mean = {
            key: float(np.mean([getattr(m, key) for m in members])) for key in ("flagged", "in_alert", "early", "first")
        }
        first = asdict(members[0])
        ratio = total["starts"] / total["expected"]
        out.append(
            Row(**(first | total | mean | {"id": members[0].id.rsplit("/", 1)[0], "stream": name, "ratio": ratio}))
        )
    return out


def summed_up(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of one kind of scenario."""
    told = [row for row in pooled(rows) if row.expected >= LEAST_EXPECTED]
    ratios = np.array([row.ratio for row in told])
    worst = max(told, key=lambda row: row.ratio) if told else None
    expected = sum(row.expected for row in rows)
    return {
        "streams": len(rows),
        "told": len(told),
        "within": float((ratios <= WITHIN).mean()) if told else None,
        "median": float(np.median(ratios)) if told else None,
        "worst": worst.ratio if worst else None,
        "worst_stream": worst.stream if worst else None,
        "starts": sum(row.starts for row in rows),
        "expected": expected,
        "ratio": sum(row.starts for row in rows) / expected if expected else None,
        "first_mean": float(np.mean([row.first for row in rows])),
        "first_worst": max(row.first for row in rows),
        "early_mean": float(np.mean([row.early for row in rows])),
        "flagged": float(np.nanmean([row.flagged for row in rows])),
        "in_alert": float(np.nanmean([row.in_alert for row in rows])),
        "weeks": sum(row.weeks for row in rows),
    }


def show(by_kind: dict[str, list[Row]]) -> None:
    """Print fleets, the streams over their budget, and the summary."""
    for kind, rows in by_kind.items():
        for row in pooled(rows):
            over = row.expected >= LEAST_EXPECTED and row.ratio > WITHIN
            if kind.startswith("fleet/") or over:
                print(
                    f"{row.id:<64}{row.starts:>6} of {row.expected:7.1f} = {row.ratio:5.2f}   first {row.first:g}"
                    f"{'   over' if over else ''}"
                )
    print(
        f"\n{'':<24}{'streams':>8}{'told':>6}{'<= 1.5 x':>10}{'median':>8}{'worst':>7}{'alerts':>8}{'expected':>10}"
        f"{'first interval':>16}{'start-up':>10}{'flagged':>9}{'in alert':>10}"
    )
    for kind, rows in by_kind.items():
        s = summed_up(rows)
        told = f"{s['within']:10.0%}{s['median']:8.2f}{s['worst']:7.2f}" if s["told"] else f"{'-':>10}{'-':>8}{'-':>7}"
        print(
            f"{kind:<24}{s['streams']:>8}{s['told']:>6}{told}{s['starts']:>8}{s['expected']:>10.1f}"
            f"{s['first_mean']:>10.1f} / {s['first_worst']:<3g}{s['early_mean']:>10.1f}{s['flagged']:>9.2%}{s['in_alert']:>10.2%}"
            + (f"   {s['worst_stream']}" if s["told"] else "")
        )
    hertz = sum(row.weeks for rows in by_kind.values() for row in rows if row.stream.startswith("sim/1s/"))
    if hertz:
        print(f"\n1 Hz: {hertz:.1f} simulated device-weeks after start-up")


def by_kinds(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by scenario kind, the second to fourth part of their ids."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        mode, learn, many, unit = row.id.split("/")[1:5]
        out.setdefault(f"{mode}/{learn}/{many}/{unit}", []).append(row)
    return dict(sorted(out.items()))


def main() -> int:
    """Entry point."""
    parser = arguments(__doc__, "ett/, tetuan_power/, beijing_air/, …", "profiles")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of mode/group, such as uni/ett or fleet/60s")
    learns = parser.add_mutually_exclusive_group()
    learns.add_argument("--declared", action="store_true", help="only with the first rows declared clean")
    learns.add_argument("--live", action="store_true", help="only learning live")
    parser.add_argument("--long", action="store_true", help="every noise, and 1/week at 1 Hz; takes hours")
    given = parser.parse_args()
    chosen = [declared for declared, skip in ((False, given.declared), (True, given.live)) if not skip]
    todo = tasks(given.data, given.only, chosen, given.long)
    if not todo:
        parser.error(f"nothing has {given.only!r} in its name")
    results = over_seeds(partial(run, todo=todo, data=given.data, long=given.long), len(todo), given.jobs)
    rows = [row for some, _ in results for row in some]
    by_kind = by_kinds(rows)
    show(by_kind)
    summary = {f"budget/{kind}": summed_up(found) for kind, found in by_kind.items()}
    save(given.out, summary, streams=[asdict(row) for row in rows], alerts=[a for _, alerts in results for a in alerts])
    return 0


if __name__ == "__main__":
    sys.exit(main())
