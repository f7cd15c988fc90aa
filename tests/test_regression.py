"""The regression command: what it makes of two tables of figures."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import regression
from tests.bench.regression import BENCHES, Bench, Figures, Rule, Verdict, compare

RULES = {"score": Rule("higher", 2.0), "delay": Rule("lower", 4.0, relative=0.25)}


def only(base: float | None, head: float | None, rule: Rule) -> Verdict:
    (verdict,) = compare({"a": {"x": base}}, {"a": {"x": head}}, {"x": rule})
    return verdict


@pytest.mark.parametrize(
    ("head", "higher", "lower"),
    [
        (6.0, "worse", "better"),
        (8.0, "within", "within"),
        (10.0, "same", "same"),
        (12.0, "within", "within"),
        (14.0, "better", "worse"),
    ],
)
def test_a_figure_is_judged_by_its_direction_and_tolerance(head: float, higher: str, lower: str) -> None:
    assert only(10.0, head, Rule("higher", 2.0)).verdict == higher
    assert only(10.0, head, Rule("lower", 2.0)).verdict == lower


def test_the_larger_of_the_absolute_and_the_relative_tolerance_counts() -> None:
    rule = RULES["delay"]
    assert [only(8.0, head, rule).verdict for head in (12.0, 12.5)] == ["within", "worse"]
    assert [only(80.0, head, rule).verdict for head in (100.0, 100.5)] == ["within", "worse"]
    assert only(-80.0, -60.0, rule).allowed == 20.0


def test_no_tolerance_lets_no_loss_pass() -> None:
    assert only(5.0, 4.0, Rule("higher", 0.0)).verdict == "worse"
    assert only(5.0, 5.0, Rule("higher", 0.0)).verdict == "same"


def test_a_change_among_values_that_are_good_enough_is_none() -> None:
    rule = Rule("lower", 0.25, enough=1.0)
    assert [only(0.25, head, rule).verdict for head in (0.9, 1.25, 1.5)] == ["within", "within", "worse"]
    assert [only(base, 0.25, rule).verdict for base in (1.25, 1.5)] == ["within", "better"]
    assert only(0.9, 0.5, Rule("higher", 0.1, enough=0.8)).verdict == "worse"


@pytest.mark.parametrize("none", [None, math.nan])
def test_a_figure_that_is_no_longer_told_is_gone_and_one_told_anew_is_new(none: float | None) -> None:
    assert only(1.0, none, RULES["score"]).verdict == "gone"
    assert only(none, 1.0, RULES["score"]).verdict == "new"
    assert compare({"a": {"x": none}}, {"a": {"x": none}}, {"x": RULES["score"]}) == []


def test_scenarios_of_both_sides_are_compared_by_id_and_figures_without_a_rule_are_not() -> None:
    base: Figures = {"b": {"score": 1.0, "rows": 5.0}, "a": {"score": 1.0, "delay": 1.0}}
    head: Figures = {"c": {"score": 9.0}, "a": {"score": 9.0, "delay": 9.0}}
    assert [(row.id, row.verdict) for row in compare(base, head, RULES)] == [
        ("b/score", "gone"),
        ("a/score", "better"),
        ("a/delay", "worse"),
        ("c/score", "new"),
    ]


def test_the_summaries_of_the_labelled_benchmarks_are_read_as_means_over_seeds() -> None:
    profiles = ("standard", "reward_low_FP_rate", "reward_low_FN_rate")

    def points(value: float) -> dict[str, object]:
        final = dict.fromkeys(profiles, value)
        return {"best": final, "every_alert": final, "other_half": {name: [value - 1, 9.0] for name in profiles}}

    nab = BENCHES["nab"].read({"files": ["realTraffic/x.csv"], "runs": [points(70.0), points(72.0)]})
    assert nab["nab/realTraffic/best"]["standard"] == 71.0
    assert nab["nab/realTraffic/other_half"]["reward_low_FP_rate"] == 70.0
    runs = [{"flags": {"f1": f1, "far": 0.5, "mar": 0.25, "delays": delays}} for f1, delays in ((0.5, [2]), (1.0, []))]
    skab = BENCHES["skab"].read({"files": ["valve2/0.csv"], "runs": runs})
    assert skab == {"skab/valve2": {"f1": 0.75, "far": 0.5, "mar": 0.25, "found": 0.5, "delay_median": 2.0}}


def test_an_alarm_that_holds_the_clean_copy_too_holds_nothing_of_the_fault() -> None:
    figures = BENCHES["drift"].read({"drift/sim/none": {"faults": 3, "held": 1.0, "held_clean": 1.0}})
    assert figures["drift/sim/none"]["held_beyond"] == 0.0


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of one commit, whose only bench tells the figure 5."""
    root = tmp_path / "repository"
    (root / "tests/bench").mkdir(parents=True)
    for package in ("tests", "tests/bench"):
        (root / package / "__init__.py").touch()
    (root / "tests/bench/skab.py").write_text(
        "import json, sys, pathlib\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "(out / 'summary.json').write_text(json.dumps({'skab': {'x': 5}}))\n"
    )
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "-m", "first")):
        subprocess.run(["git", "-C", root, *command], check=True)
    bench = Bench("", (), dict, {"x": Rule("higher", 0.5)})
    monkeypatch.setattr(regression, "ROOT", root)
    monkeypatch.setattr(regression, "BENCHES", {"skab": bench, "nab": bench})
    monkeypatch.setattr(sys, "argv", ["regression", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    return root


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_working_tree_is_held_against_its_commit_and_nothing_is_left_behind(
    repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = repository / "tests/bench/skab.py"
    assert regression.main() == 0
    bench.write_text(bench.read_text().replace("5", "4"))
    assert regression.main() == 1
    said = capfd.readouterr()
    assert "short/skab/x" in said.out
    assert "nab: skipped" in said.err
    assert json.loads((tmp_path / "out/base/skab/summary.json").read_text()) == {"skab": {"x": 5}}
    assert json.loads((tmp_path / "out/head/skab/summary.json").read_text()) == {"skab": {"x": 4}}
    bench.write_text("raise SystemExit(3)\n")
    assert regression.main() == 1
    assert "failed on the working tree: skab" in capfd.readouterr().out
    trees = subprocess.run(["git", "-C", repository, "worktree", "list"], check=True, capture_output=True, text=True)
    assert len(trees.stdout.splitlines()) == 1
