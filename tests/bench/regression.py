"""A short form of the benches on two commits: which figures got worse by more than their tolerance.

Every figure has a direction and a tolerance, see `BENCHES`; a figure that is no longer told counts as worse, and so does
a bench that fails on the head. A bench that one of the two does not have is skipped. Ids, the bench's own after `short/`,
never change their meaning: what is run or measured anew gets a new one. Speed is not compared: `tests.bench.throughput` and `sentinel bench`
tell it.

    python -m tests.bench.regression --data DIR [--base REV] [--head REV] [--out DIR] [--only BENCH ...]

DIR holds nab/, skab/, ett/, …. Without --head the working tree is the head; it should not change meanwhile. Writes
OUT/{base,head}/<bench>/, what that bench writes, its output.txt, and OUT/figures.csv. Exit 1 if a figure got worse.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).parent.parent.parent
Figures = dict[str, dict[str, float | None]]
"""By scenario and name; None: there is none to tell."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a figure is compared.

    Attributes:
        tolerance: by how much it may get worse, in its own unit.
        relative: the same as a share of the base's value; the larger counts.
        enough: a value better than this is worth no more than this.
    """

    better: Literal["higher", "lower"]
    tolerance: float
    relative: float = 0.0
    enough: float | None = None

    def gain(self, base: float, head: float) -> float:
        """By how much the head is better; below 0: worse."""
        sign = 1.0 if self.better == "higher" else -1.0
        best = math.inf if self.enough is None else sign * self.enough
        return min(sign * head, best) - min(sign * base, best)

    def allowed(self, base: float) -> float:
        """By how much the head may be worse."""
        return max(self.tolerance, self.relative * abs(base))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure on both sides. `id`: its scenario and name. `allowed`: how much worse it may be."""

    id: str
    verdict: Literal["worse", "gone", "better", "new", "within", "same"]
    base: float | None
    head: float | None
    better: str
    allowed: float


@dataclass(frozen=True, slots=True)
class Bench:
    """A bench's short form.

    Attributes:
        folder: of the data, below the one given; None: it makes its own.
        read: its figures, from its summary.json.
    """

    folder: str | None
    arguments: tuple[str, ...]
    read: Callable[[Any], Figures]
    rules: Mapping[str, Rule]


def compare(base: Figures, head: Figures, rules: Mapping[str, Rule]) -> list[Verdict]:
    """Judge every figure that has a rule, by scenario, in the order of the base and then of what the head has new."""
    out = []
    for scenario in {**base, **head}:
        before, after = base.get(scenario, {}), head.get(scenario, {})
        for name, rule in rules.items():
            old, new = _told(before.get(name)), _told(after.get(name))
            if old is None and new is None:
                continue
            allowed = rule.tolerance if old is None else rule.allowed(old)
            out.append(Verdict(f"{scenario}/{name}", _verdict(rule, old, new), old, new, rule.better, allowed))
    return out


def _told(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _verdict(
    rule: Rule, old: float | None, new: float | None
) -> Literal["worse", "gone", "better", "new", "within", "same"]:
    if old is None:
        return "new"
    if new is None:
        return "gone"
    gain, allowed = rule.gain(old, new), rule.allowed(old)
    if abs(gain) > allowed:
        return "better" if gain > 0 else "worse"
    return "within" if old != new else "same"


# --- the benches -----------------------------------------------------------------------------------------------------


def _nab(summary: Any) -> Figures:
    """Points, means over seeds."""
    family = summary["files"][0].split("/")[0]
    runs = summary["runs"]
    out: Figures = {
        f"nab/{family}/{part}": {name: _mean(run[part][name] for run in runs) for name in runs[0][part]}
        for part in ("best", "every_alert")
    }
    halves = [run["other_half"] for run in runs]
    out[f"nab/{family}/other_half"] = {name: _mean(half[name][0] for half in halves) for name in halves[0]}
    return out


def _skab(summary: Any) -> Figures:
    """Means over seeds."""
    group = summary["files"][0].split("/")[0]
    flags = [run["flags"] for run in summary["runs"]]
    figures: dict[str, float | None] = {name: _mean(some[name] for some in flags) for name in ("f1", "far", "mar")}
    figures["found"] = _mean(len(some["delays"]) for some in flags)
    delays = [delay for some in flags for delay in some["delays"]]
    figures["delay_median"] = float(np.median(delays)) if delays else None
    return {f"skab/{group}": figures}


def _drift(summary: Any) -> Figures:
    """As they are; and held in excess of the clean copy, for an alarm that never ends holds everything."""
    return {
        scenario: {**figures, "held_beyond": figures["held"] - figures["held_clean"] if figures["faults"] else None}
        for scenario, figures in summary.items()
    }


def _as_is(summary: Any) -> Figures:
    figures: Figures = summary
    return figures


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


POINTS = Rule("higher", 2.0)
BENCHES = {
    "nab": Bench(
        "nab",
        ("--seeds", "1", "--files", "realTraffic/"),
        _nab,
        {"standard": POINTS, "reward_low_FP_rate": POINTS, "reward_low_FN_rate": POINTS},
    ),
    "skab": Bench(
        "skab",
        ("--seeds", "1", "--files", "valve2"),
        _skab,
        {
            "f1": Rule("higher", 0.01),
            "far": Rule("lower", 0.02),
            "mar": Rule("lower", 0.02),
            "found": Rule("higher", 0.0),
            "delay_median": Rule("lower", 5, relative=0.2),
        },
    ),
    "budget": Bench(
        "",
        ("--only", "fleet/3600s/8", "--live"),
        _as_is,
        {
            "worst": Rule("lower", 0.2, enough=1.0),  # alerts over what the budget allows: fewer is no gain
            "first_worst": Rule("lower", 2, enough=1.0),
            "flagged": Rule("lower", 0.002),
            "in_alert": Rule("lower", 0.02),
        },
    ),
    "faults": Bench(
        "",
        ("--only", "factor-4/"),
        _as_is,
        {  # ten sites a fault: two may fall the other way
            "beyond_chance": Rule("higher", 0.25),
            "right": Rule("higher", 0.25),
            "delay_median": Rule("lower", 3, relative=0.25),
        },
    ),
    "mixed": Bench(
        None,
        ("--devices", "2"),
        _as_is,
        {
            "flagged_settled": Rule("lower", 0.02),
            "f1": Rule("higher", 0.05),
            "auprc": Rule("higher", 0.05),
            "alerts_outside": Rule("lower", 3, relative=0.25),
        },
    ),
    "drift": Bench(
        "",
        ("--quick", "--only", "sim"),
        _drift,
        {
            "flagged": Rule("lower", 0.03),
            "in_alert": Rule("lower", 0.05),
            "alerts_per_week": Rule("lower", 0.5, relative=0.25, enough=1.0),
            "found": Rule("higher", 0.1),
            "held_beyond": Rule("higher", 0.05),
        },
    ),
    "bearing": Bench(
        "",
        (),
        _as_is,
        {
            "first_lasting_of_second_half_hours_before_end": Rule("higher", 6, relative=0.1),
            "early_alerts": Rule("lower", 2),
            "early_lasting": Rule("lower", 0),
            "early_flagged": Rule("lower", 0.02),
            "late_flagged": Rule("higher", 0.05),
        },
    ),
}


# --- running them ----------------------------------------------------------------------------------------------------


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A work tree of a commit, in a temporary folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sentinel-regression-") as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def figures_of(name: str, tree: Path, data: Path, out: Path, who: str) -> Figures | None:
    """Run a bench's short form as that tree has it, with one thread; None if it failed."""
    bench = BENCHES[name]
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)
    where = ("--out", str(out)) if bench.folder is None else ("--data", str(data / bench.folder), "--out", str(out))
    command = [sys.executable, "-m", f"tests.bench.{name}", *where, *bench.arguments]
    print(f"{who}: {' '.join(bench.arguments)}", file=sys.stderr, flush=True)
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with (out / "output.txt").open("w") as output:
        code = subprocess.run(command, cwd=tree, env=environment, stdout=output, check=False).returncode
    if code:
        print(f"{who}: failed with exit {code}", file=sys.stderr, flush=True)
        return None
    print(f"{who}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    read = bench.read(json.loads((out / "summary.json").read_text()))
    return {f"short/{scenario}": figures for scenario, figures in read.items()}


def report(verdicts: Sequence[Verdict]) -> None:
    """Print what differs by more than its tolerance, and count the rest."""
    for kind in ("worse", "gone", "better", "new"):
        for row in verdicts:
            if row.verdict == kind:
                base, head = ("-" if value is None else f"{value:.4g}" for value in (row.base, row.head))
                rule = f"{row.better} is better, tolerance {row.allowed:.3g}"
                print(f"{kind:<8}{row.id:<72}{base:>9} -> {head:<9}{rule}")
    kinds = [row.verdict for row in verdicts]
    counts = (f"{kinds.count(kind)} {kind}" for kind in ("worse", "gone", "better", "new", "within", "same"))
    print(f"{len(verdicts)} figures: {', '.join(counts)}")


def main() -> int:
    """Entry point; 1 if a figure got worse or a bench fails on the head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds nab/, skab/, ett/, …")
    parser.add_argument("--base", default="HEAD", metavar="REV")
    parser.add_argument("--head", metavar="REV", help="the working tree if left out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES), metavar="BENCH")
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"{given.data} is no folder")
    failed: list[str] = []
    verdicts: list[Verdict] = []
    with ExitStack() as stack:
        out = (given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        out.mkdir(parents=True, exist_ok=True)
        trees, names = {}, {}
        for side, rev in (("base", given.base), ("head", given.head)):
            if rev is None:
                trees[side], names[side] = ROOT, "the working tree"
                continue
            try:
                commit = _git("rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")
                trees[side], names[side] = stack.enter_context(checked_out(commit)), commit[:7]
            except subprocess.CalledProcessError:
                parser.error(f"{rev} cannot be checked out")
        for at, name in enumerate(given.only, 1):
            lacking = [side for side, tree in trees.items() if not (tree / f"tests/bench/{name}.py").exists()]
            if lacking:
                who = " and ".join(names[side] for side in lacking)
                print(f"{name}: skipped, {who} does not have it", file=sys.stderr, flush=True)
                continue
            base, head = (
                figures_of(
                    name,
                    tree,
                    given.data.resolve(),
                    out / side / name,
                    f"[{at}/{len(given.only)}] {name} {names[side]}",
                )
                for side, tree in trees.items()
            )
            if head is None:
                failed.append(name)
            elif base is not None:
                verdicts += compare(base, head, BENCHES[name].rules)
        with (out / "figures.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(Verdict.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(row) for row in verdicts)
    print(f"{names['base']} -> {names['head']}")
    report(verdicts)
    if failed:
        print(f"failed on {names['head']}: {', '.join(failed)}")
    return 1 if failed or any(row.verdict in {"worse", "gone"} for row in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
