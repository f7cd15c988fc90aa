"""Runs to failure of bearings: how long before the end the first lasting alert came, and what came before.

Learns live with the product's defaults, or takes the first fifth of each test for a recording declared clean. A lasting
alert has 30 anomalous ticks or more. There is no agreed onset of the damage: the first half of a run counts as healthy,
and alerts that begin in it as early.

    python -m tests.bench.bearing --data DIR [--out DIR] [--budget 1/week] [--jobs N]

Writes OUT/<test>-<live|declared>.csv, a line a row (tick, time, score, flagged, in an alert), OUT/alerts.csv and
OUT/summary.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.backtest import Plan
from tests.bench.runs import arguments, over_seeds
from tests.bench.streams import BUDGETS, Stream, Verdict, alert_rows, bearings, judged, save

DECLARED_SHARE = 0.2
LASTING = 30  # anomalous ticks
HOUR = 3600.0


def run(at: int, todo: Sequence[tuple[Stream, bool]], budget: str) -> Verdict:
    """One test, learned in one way."""
    stream, declared = todo[at]
    plan = Plan(share=DECLARED_SHARE, most=None, declared=True) if declared else Plan()
    return judged([stream], BUDGETS[budget], plan, f"[{at + 1}/{len(todo)}] {name(stream, declared)}")[0]


def name(stream: Stream, declared: bool) -> str:
    """Scenario, such as `test1/live`."""
    return f"{stream.id.removeprefix('bearing/')}/{'declared' if declared else 'live'}"


def figures(verdict: Verdict) -> dict[str, Any]:
    """Of one run."""
    time, half = verdict.stream.time, len(verdict.stream) // 2
    lasting = [alert for alert in verdict.alerts if alert.ticks >= LASTING]
    first = next((alert for alert in lasting if alert.start >= half), None)
    judged_ = np.arange(len(time)) >= verdict.learned
    healthy = judged_ & (np.arange(len(time)) < half)
    return {
        "rows": len(time),
        "learned": verdict.learned,
        "alerts": len(verdict.alerts),
        "lasting": len(lasting),
        "first_lasting_hours_before_end": (time[-1] - time[lasting[0].start]) / HOUR if lasting else None,
        "first_lasting_share_of_life": lasting[0].start / len(time) if lasting else None,
        "first_lasting_of_second_half_hours_before_end": (time[-1] - time[first.start]) / HOUR if first else None,
        "early_alerts": sum(alert.start < half for alert in verdict.alerts),
        "early_lasting": sum(alert.start < half for alert in lasting),
        "early_weeks": verdict.stream.seconds(healthy) / HOUR / 168,
        "early_flagged": float(verdict.flagged[healthy].mean()),
        "late_flagged": float(verdict.flagged[half:].mean()),
    }


def main() -> int:
    """Entry point."""
    parser = arguments(__doc__, "bearing/", "tests")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budget", choices=list(BUDGETS), default="1/week")
    given = parser.parse_args()
    todo = [(stream, declared) for declared in (False, True) for stream in bearings(given.data)]
    found = over_seeds(partial(run, todo=todo, budget=given.budget), len(todo), given.jobs)
    summary, alerts, rows = {}, [], {}
    for (stream, declared), verdict in zip(todo, found, strict=True):
        scenario = f"bearing/{name(stream, declared)}"
        summary[scenario] = s = figures(verdict)
        lines = alert_rows(scenario, verdict)
        alerts += lines
        rows[name(stream, declared).replace("/", "-")] = [
            {"tick": at, "time": float(stream.time[at]), "score": float(verdict.score[at]),
             "flagged": int(verdict.flagged[at]), "in_alert": int(verdict.inside[at])}
            for at in range(len(stream))
        ]  # fmt: skip
        print(f"\n{scenario}: {s['rows']} rows, learned from {s['learned']}")
        for line in lines:
            left = (stream.time[-1] - stream.time[line["tick"]]) / HOUR
            print(
                f"  {line['time']}  {left:7.1f} h before the end  {line['kind']:<11}{line['anomalous_ticks']:>5} ticks"
                f"  score {line['score']:6.2f}  {line['channel']}"
            )
    print(
        f"\n{'':<22}{'first lasting alert, h before the end':>38}{'at':>6}{'in 2nd half':>13}{'early alerts':>14}"
        f"{'lasting':>9}{'weeks':>7}{'flagged early':>15}{'late':>6}"
    )
    for scenario, s in summary.items():
        lead, share, later = (
            s[f"first_lasting_{key}"]
            for key in ("hours_before_end", "share_of_life", "of_second_half_hours_before_end")
        )
        told = f"{lead:>38.1f}{share:>6.0%}" if lead is not None else f"{'none':>38}{'':>6}"
        told += f"{later:>13.1f}" if later is not None else f"{'none':>13}"
        print(
            f"{scenario.removeprefix('bearing/'):<22}{told}{s['early_alerts']:>14}{s['early_lasting']:>9}"
            f"{s['early_weeks']:>7.2f}{s['early_flagged']:>15.1%}{s['late_flagged']:>6.0%}"
        )
    save(given.out, summary, alerts=alerts, **rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
