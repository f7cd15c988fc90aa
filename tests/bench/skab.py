"""The Skoltech Anomaly Benchmark, outlier problem: the tick's flags of the product, scored by the benchmark's rules.

All 34 experiments are devices of one profile: one network is learned from the first 400 rows of each, declared clean,
and each device keeps the statistics of its own 400 rows. The rest is scored; labels are used for nothing else.

    python -m tests.bench.skab --data DIR --out DIR [--seeds N] [--jobs N] [--alone] [--with-anomaly-free]
                               [--files SUBSTRING]

DIR holds data/. Writes OUT/seed-N/<group>/<file>.csv, `datetime;score;anomaly`, a line an input row, where rows that
were learned from have no score and anomaly 0, and OUT/summary.json.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sentinel.adapters.tables import Recording, read_table
from sentinel.backtest import Backtest, Plan, Result
from sentinel.model.calibrate import WEEK
from sentinel.records import Bools, Floats, ProfileSpec
from tests.bench.runs import Progress, labelled_arguments, mean_sd, over_seeds, unlike
from tests.bench.scoring import Flags, judge_flags

TRAIN = 400  # rows of each file, by the benchmark
SPEC = ProfileSpec("skab")
PLAN = Plan(rows=TRAIN, declared=True)
ANOMALY_FREE = "anomaly-free/anomaly-free.csv"
EWMA_RATE, EWMA_SETTLED, RIDGE, FACTOR = 2 / 46, 80, 0.003, math.sqrt(17)  # of the model-free statistic
PUBLISHED = {  # F1, false-alarm rate, missed-alarm rate; the benchmark's own leaderboard
    "Conv-AE (not causal)": (0.78, 0.1355, 0.2802),
    "MSET (not causal)": (0.78, 0.3973, 0.1413),
    "T-squared + Q (PCA)": (0.76, 0.2662, 0.2492),
    "LSTM-AE (not causal)": (0.74, 0.2996, 0.2592),
    "T-squared": (0.66, 0.1921, 0.4260),
    "LSTM-VAE": (0.56, 0.0913, 0.5503),
    "Vanilla LSTM": (0.54, 0.1254, 0.5953),
    "Vanilla AE": (0.39, 0.0259, 0.7515),
    "MSCRED": (0.36, 0.4994, 0.6988),
    "Isolation forest": (0.29, 0.0256, 0.8289),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What is run: see the command's options."""

    data: Path
    out: Path
    files: str
    alone: bool
    with_anomaly_free: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Figures of one seed."""

    seed: int
    flags: Flags
    seconds: float


def experiments(data: Path, part: str = "") -> list[Recording]:
    """The labelled files whose name, group/file.csv, contains `part`."""
    root = data / "data"
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.csv"))
    return [read_table(root / name, name=name) for name in names if part in name and name != ANOMALY_FREE]


def run_seed(seed: int, choice: Choice) -> Run:
    """Run the product over the files, write its scores and flags, score them."""
    began = time.monotonic()
    files = experiments(choice.data, choice.files)
    plan = replace(PLAN, seed=seed)
    scores: list[Floats] = []
    flags: list[Bools] = []
    if choice.with_anomaly_free:
        other = read_table(choice.data / "data" / ANOMALY_FREE, name=ANOMALY_FREE)
        tests, plan = [_rows(file, slice(TRAIN, None)) for file in files], _recorded(plan, files, other)
        result = Backtest(SPEC, tests, Progress(f"seed {seed}")).run(plan)
        scores, flags = _by_file(result, tests)
        scores = [np.concatenate([np.full(TRAIN, np.nan), score]) for score in scores]
        flags = [np.concatenate([np.zeros(TRAIN, dtype=np.bool_), flag]) for flag in flags]
    else:
        for at, group in enumerate([[file] for file in files] if choice.alone else [files], 1):
            where = f", {at} of {len(files)}" if choice.alone else ""
            more = _by_file(Backtest(SPEC, group, Progress(f"seed {seed}{where}")).run(plan), group)
            scores += more[0]
            flags += more[1]
    write(choice.out / f"seed-{seed}", files, scores, flags)
    return Run(seed, judge_flags(truths(files), [flag[TRAIN:] for flag in flags]), time.monotonic() - began)


def _recorded(plan: Plan, files: Sequence[Recording], other: Recording) -> Plan:
    """Learn from each file's first rows, as recordings of their own, and from another machine's recording."""
    return replace(plan, rows=None, recordings=(*(_rows(file, slice(TRAIN)) for file in files), other))


def _rows(file: Recording, rows: slice) -> Recording:
    return replace(
        file,
        device=file.device[rows],
        time=file.time[rows],
        time_text=file.time_text[rows],
        values=file.values[rows],
        label=None if file.label is None else file.label[rows],
    )


def _by_file(result: Result, files: Sequence[Recording]) -> tuple[list[Floats], list[Bools]]:
    """Scores and flags of each file; rows that were learned from have no flag."""
    ends = np.cumsum([len(file) for file in files])[:-1]
    return np.split(result.score, ends), np.split(result.anomaly & ~result.learned, ends)


def truths(files: Sequence[Recording]) -> list[Bools]:
    """The labels of the test rows of each file."""
    return [file.label[TRAIN:] == 1 for file in files if file.label is not None]


def write(folder: Path, files: Sequence[Recording], scores: Sequence[Floats], flags: Sequence[Bools]) -> None:
    """A CSV a file: its own time, character by character, the score (empty: none) and the flag."""
    for file, score, flag in zip(files, scores, flags, strict=True):
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        times = file.time_text.astype(np.str_).tolist()
        rows = [
            f"{text};{'' if math.isnan(value) else format(value, '.9g')};{int(raised)}\n"
            for text, value, raised in zip(times, score.tolist(), flag.tolist(), strict=True)
        ]
        path.write_text("datetime;score;anomaly\n" + "".join(rows))


def model_free(values: Floats) -> Bools:
    """Flags of a file's test rows without a network, from (n, F) values: what the network has to beat.

    Standard scores by the first 400 rows, v their EWMA, D its Mahalanobis distance with the mean and the ridged
    covariance of v over rows 80 to 400; a flag where D is over sqrt(17) times its maximum there. That factor was chosen
    on these very labels, so this is its best case.
    """
    clean = values[:TRAIN]
    spread = clean.std(0)
    z = (values - clean.mean(0)) / np.where(spread > 0, spread, 1.0)
    v = np.zeros_like(z)
    for t in range(len(z)):
        before = v[t - 1] if t else np.zeros(z.shape[1])
        v[t] = before + EWMA_RATE * (z[t] - before)
    settled = v[EWMA_SETTLED:TRAIN]
    c = np.cov(settled.T, bias=True)
    c += RIDGE * np.trace(c) / len(c) * np.eye(len(c))
    away = v - settled.mean(0)
    d = np.sqrt(np.einsum("ti,ij,tj->t", away, np.linalg.inv(c), away))
    flagged: Bools = d[TRAIN:] > FACTOR * d[EWMA_SETTLED:TRAIN].max()
    return flagged


def settings(choice: Choice) -> list[str]:
    """The settings that differ from the product's defaults, then the budget and what is learned from."""
    learned = "each file alone" if choice.alone else "a network for all files"
    if choice.with_anomaly_free:
        learned += ", learned from the anomaly-free recording too"
    return [
        *unlike(ProfileSpec(SPEC.name), SPEC),
        *unlike(Plan(), PLAN),
        f"alert budget: {SPEC.alert_budget * WEEK:g}/week",
        learned,
    ]


def report(files: Sequence[Recording], runs: Sequence[Run]) -> None:
    """Print the figures beside their anchors."""
    print(f"\n{'':<34}F1     FAR %  MAR %  events  delay in rows: median, 90 %")
    for run in runs:
        _print_flags(f"seed {run.seed}, {run.seconds:.0f} s", run.flags)
    for what, digits, figures in (
        ("F1", 3, [run.flags.f1 for run in runs]),
        ("FAR %", 1, [100 * run.flags.far for run in runs]),
        ("MAR %", 1, [100 * run.flags.mar for run in runs]),
        ("events found", 1, [float(run.flags.found) for run in runs]),
        ("median delay", 1, [run.flags.delay(0.5) for run in runs]),
        ("90 % delay", 1, [run.flags.delay(0.9) for run in runs]),
    ):
        mean, sd = mean_sd(figures)
        print(f"mean ± sd, {what:<23}{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if len(runs) > 1 else ""))
    truth = truths(files)
    _print_flags("every row flagged", judge_flags(truth, [np.ones_like(rows) for rows in truth]))
    _print_flags("EWMA + Mahalanobis, no model", judge_flags(truth, [model_free(file.values) for file in files]))
    print("published, all 34 files, each with its own network")
    for name, (f1, far, mar) in PUBLISHED.items():
        print(f"  {name:<32}{f1:<7.2f}{100 * far:<7.1f}{100 * mar:<7.1f}")


def _print_flags(what: str, flags: Flags) -> None:
    events = f"{flags.found}/{flags.events}"
    rates = f"{flags.f1:<7.3f}{100 * flags.far:<7.1f}{100 * flags.mar:<7.1f}"
    print(f"{what:<34}{rates}{events:<8}{flags.delay(0.5):.0f}, {flags.delay(0.9):.0f}")


def main() -> int:
    """Entry point."""
    parser = labelled_arguments(__doc__, "data/")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--alone", action="store_true", help="a run a file, each with a network of its own")
    way.add_argument("--with-anomaly-free", action="store_true", help="learn from the anomaly-free recording as well")
    given = parser.parse_args()
    choice = Choice(given.data, given.out, given.files, given.alone, given.with_anomaly_free)
    files = experiments(choice.data, choice.files)
    if len(files) < 1 + choice.with_anomaly_free:  # with one device, a recording is taken for its own past
        parser.error(f"too few files have {choice.files!r} in their name")
    print(f"{len(files)} files; unlike the product's defaults (in parentheses):")
    print("".join(f"  {line}\n" for line in settings(choice)), flush=True)
    runs = over_seeds(partial(run_seed, choice=choice), given.seeds, given.jobs)
    report(files, runs)
    summary = {
        "files": [file.name for file in files],
        "settings": settings(choice),
        "runs": [asdict(run) for run in runs],
    }
    (choice.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
