"""The Numenta Anomaly Benchmark: what an alert subscriber of the product sees, scored by the benchmark's rules.

All files are devices of one profile, each with a network of its own, in one stream that learns as it runs. What is
learned from first is the benchmark's probation, min(15 % of the rows, 750); nothing else depends on a file's length,
all other constants are in rows or in seconds. A row's anomaly score is q / (q + 3) with q = 1.7 x the alert's score
where a prediction alert starts, 0 elsewhere.

    python -m tests.bench.nab --data DIR --out DIR [--seeds N] [--jobs N] [--files SUBSTRING]

DIR holds data/, labels/ and published/. Writes OUT/seed-N/<family>/<name>.csv, a line an input row, and
OUT/summary.json.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sentinel.adapters.tables import read_table
from sentinel.backtest import Backtest, Plan, Result
from sentinel.model.calibrate import WEEK
from sentinel.records import Channel, Floats, ModelSpec, ProfileSpec
from tests.bench.runs import Progress, labelled_arguments, mean_sd, over_seeds, unlike
from tests.bench.scoring import (
    PROBATION_MOST,
    PROBATION_SHARE,
    PROFILES,
    Judged,
    judge,
    nab_best,
    nab_score,
    probation,
    window_rows,
)

SPEC = ProfileSpec(
    "nab", channels=(Channel("value"),), alert_budget=1 / WEEK, learn="online", model=ModelSpec(weights="device")
)
PLAN = Plan(share=PROBATION_SHARE, most=PROBATION_MOST)
LEVEL, HALF = 1.7, 3.0  # of the emitted score; any increasing map ranks the alerts alike
DIGITS = 9  # decimals of a written score
EVERY_ALERT = float(np.nextafter(0.0, 1.0))
HALVES = 20
REFERENCE = "numenta"
TOLERANCE = 0.001  # points


@dataclass(frozen=True, slots=True)
class Corpus:
    """The files: names "family/name.csv", their lines without the header, and what detections in them are worth."""

    root: Path
    names: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    judged: tuple[Judged, ...]

    @staticmethod
    def read(root: Path, part: str = "") -> Corpus:
        """The files whose name contains `part`."""
        windows = json.loads((root / "labels/combined_windows.json").read_text())
        names = tuple(sorted(name for name in windows if part in name))
        lines = tuple(tuple((root / "data" / name).read_text().splitlines()[1:]) for name in names)
        judged = []
        for name, rows in zip(names, lines, strict=True):
            times = [row.split(",")[0] for row in rows]
            judged.append(judge(len(rows), window_rows(times, windows[name])))
        return Corpus(root, names, lines, tuple(judged))

    def finals(self, scores: Sequence[Floats], threshold: float | None = None) -> dict[str, float]:
        """Final score by profile, at one threshold or, as NAB does, at the best of all, by profile."""
        if threshold is None:
            return {name: nab_best(self.judged, scores, costs)[1] for name, costs in PROFILES.items()}
        return {name: nab_score(self.judged, scores, costs, threshold) for name, costs in PROFILES.items()}

    def halves(self, scores: Sequence[Floats], seed: int = 0) -> dict[str, list[float]]:
        """By profile: score on one half of the files with the best threshold of the other half, for 20 random halves.

        Each family is halved; the odd file falls on either side.
        """
        random = np.random.default_rng(seed)
        families = np.array([name.split("/")[0] for name in self.names])
        out: dict[str, list[float]] = {profile: [] for profile in PROFILES}
        for _ in range(HALVES):
            chosen = np.zeros(len(self.names), dtype=np.bool_)
            for family in np.unique(families):
                members = random.permutation(np.flatnonzero(families == family))
                chosen[members[: (len(members) + int(random.integers(2))) // 2]] = True
            here, there = np.flatnonzero(chosen).tolist(), np.flatnonzero(~chosen).tolist()
            for profile, costs in PROFILES.items() if here and there else ():
                threshold, _ = nab_best([self.judged[at] for at in here], [scores[at] for at in here], costs)
                final = nab_score([self.judged[at] for at in there], [scores[at] for at in there], costs, threshold)
                out[profile].append(final)
        return out


@dataclass(frozen=True, slots=True)
class Run:
    """Figures of one seed, final scores by profile.

    Attributes:
        best: at NAB's own best threshold by profile.
        other_half: at the threshold of the other half of the files, mean and sd over halves.
        every_alert: at a threshold that every alert reaches.
        every_tick: without alarm policy: each tick's score s as s / (s + 1), at the best threshold.
        alerts_per_1000: per 1,000 rows after the probation.
    """

    seed: int
    best: dict[str, float]
    other_half: dict[str, tuple[float, float]]
    every_alert: dict[str, float]
    every_tick: dict[str, float]
    alerts: int
    alerts_per_1000: float
    seconds: float


def run_seed(seed: int, root: Path, out: Path, part: str) -> Run:
    """Run the product over the corpus, write what it emitted, score it."""
    began = time.monotonic()
    corpus = Corpus.read(root, part)
    recordings = [read_table(root / "data" / name, name=name) for name in corpus.names]
    plan = Plan(share=PLAN.share, most=PLAN.most, seed=seed)
    result = Backtest(SPEC, recordings, Progress(f"seed {seed}")).run(plan)
    ends = np.cumsum([len(rows) for rows in corpus.lines])[:-1]
    emitted = np.split(emit(result), ends)
    raw = np.split(np.nan_to_num(result.score / (result.score + 1)), ends)
    write(out / f"seed-{seed}", corpus, emitted)
    scored = [score[probation(len(score)) :] for score in emitted]
    alerts = sum(int((score > 0).sum()) for score in scored)
    return Run(
        seed=seed,
        best=corpus.finals(emitted),
        other_half={profile: mean_sd(finals) for profile, finals in corpus.halves(emitted).items()},
        every_alert=corpus.finals(emitted, EVERY_ALERT),
        every_tick=corpus.finals(raw),
        alerts=alerts,
        alerts_per_1000=1000 * alerts / sum(map(len, scored)),
        seconds=time.monotonic() - began,
    )


def emit(result: Result) -> Floats:
    """The anomaly score of each row of the recordings: above 0 where a prediction alert starts."""
    out = np.zeros(len(result.time))
    fired = {alert.id for alert in result.alerts if alert.kind == "prediction" and alert.state == "firing"}
    rows = np.array([row for alert, row in result.starts.items() if alert in fired], dtype=np.int64)
    q = LEVEL * result.score[rows]
    out[rows] = np.round(q / (q + HALF), DIGITS)
    return out


def write(folder: Path, corpus: Corpus, emitted: Sequence[Floats]) -> None:
    """A CSV a file: its own time and value, character by character, and the anomaly score."""
    for name, lines, scores in zip(corpus.names, corpus.lines, emitted, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{line},{score:.{DIGITS}g}\n" for line, score in zip(lines, scores.tolist(), strict=True)]
        path.write_text("timestamp,value,anomaly_score\n" + "".join(rows))


def clock(rows: int) -> Floats:
    """An alarm every half probation, whatever the values."""
    out = np.zeros(rows)
    out[probation(rows) :: max(probation(rows) // 2, 1)] = 1.0
    return out


def check_scorer(root: Path) -> bool:
    """Score the published detector that comes with its score of every row; False if its published figures differ."""
    corpus = Corpus.read(root)
    scores: dict[str, list[float]] = {name: [] for name in corpus.names}
    with gzip.open(root / "published" / f"{REFERENCE}_anomaly_scores.csv.gz", "rt") as stream:
        for row in csv.DictReader(stream):
            scores[row["file"]].append(float(row["anomaly_score"]))
    given = [np.array(scores[name]) for name in corpus.names]
    thresholds = json.loads((root / "published/thresholds.json").read_text())[REFERENCE]
    published = json.loads((root / "published/final_results.json").read_text())[REFERENCE]
    ours = {
        profile: nab_score(corpus.judged, given, costs, thresholds[profile]["threshold"])
        for profile, costs in PROFILES.items()
    }
    right = all(abs(ours[profile] - published[profile]) <= TOLERANCE for profile in PROFILES)
    verdict = "right" if right else "WRONG"
    print(f"scorer check: {REFERENCE} {_three(ours, 3)}, published {_three(published, 3)}: {verdict}")
    return right


def settings() -> list[str]:
    """The settings that differ from the product's defaults, then the budget and the warm-up, whether they do or not."""
    return [
        *unlike(ProfileSpec(SPEC.name, channels=SPEC.channels), SPEC),
        *unlike(Plan(), PLAN),
        f"alert budget: {SPEC.alert_budget * WEEK:g}/week",
        f"warm-up: min({PLAN.share:.0%} of the rows, {PLAN.most}), the benchmark's probation",
    ]


def report(corpus: Corpus, runs: Sequence[Run]) -> None:
    """Print the figures beside their anchors."""
    print(f"\n{'':<34}standard / low FP / low FN, {len(runs)} seeds, mean ± sd")
    rows: list[tuple[str, Callable[[Run], dict[str, float]]]] = [
        ("NAB's best threshold", lambda run: run.best),
        ("threshold of the other half", lambda run: {p: mean for p, (mean, _) in run.other_half.items()}),
        ("every alert counts", lambda run: run.every_alert),
        ("without alarm policy", lambda run: run.every_tick),
    ]
    for what, figures in rows:
        cells = []
        for profile in PROFILES:
            mean, sd = mean_sd([figures(run)[profile] for run in runs])
            cells.append(f"{mean:.1f} ± {sd:.1f}" if len(runs) > 1 else f"{mean:.1f}")
        print(f"{what:<34}{' / '.join(cells)}")
    spread = {profile: float(np.mean([run.other_half[profile][1] for run in runs])) for profile in PROFILES}
    print(f"{'  sd over halves':<34}{_three(spread)}")
    print(f"{'a clock':<34}{_three(corpus.finals([clock(len(rows)) for rows in corpus.lines], 1.0))}")
    alerts, _ = mean_sd([run.alerts_per_1000 for run in runs])
    seconds, _ = mean_sd([run.seconds for run in runs])
    print(f"alerts per 1,000 scored rows: {alerts:.2f}   seconds a seed: {seconds:.0f}")
    published = corpus.root / "published/final_results.json"
    if published.exists():
        print("\npublished, best thresholds on all files")
        finals = json.loads(published.read_text())
        for name in sorted(finals, key=lambda name: -finals[name]["standard"]):
            print(f"  {name:<32}{_three(finals[name])}")


def _three(finals: dict[str, float], digits: int = 1) -> str:
    return " / ".join(f"{finals[profile]:.{digits}f}" for profile in PROFILES)


def main() -> int:
    """Entry point; 1 if the scorer fails its check."""
    parser = labelled_arguments(__doc__, "data/, labels/, published/")
    given = parser.parse_args()
    if (given.data / "published").is_dir() and not check_scorer(given.data):
        return 1
    corpus = Corpus.read(given.data, given.files)
    if not corpus.names:
        parser.error(f"no file has {given.files!r} in its name")
    print(f"{len(corpus.names)} files; unlike the product's defaults (in parentheses):")
    print("".join(f"  {line}\n" for line in settings()), flush=True)
    run = partial(run_seed, root=given.data, out=given.out, part=given.files)
    runs = over_seeds(run, given.seeds, given.jobs)
    report(corpus, runs)
    summary = {"files": corpus.names, "settings": settings(), "runs": [asdict(run) for run in runs]}
    (given.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
