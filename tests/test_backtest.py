"""`sentinel backtest` from files to files, on small made-up recordings."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from sentinel.adapters.sinks import load_schema
from sentinel.adapters.tables import read_tables
from sentinel.backtest import Backtest, Plan
from sentinel.commands.backtest import backtest
from sentinel.commands.train import train
from sentinel.errors import ConfigError, DataError
from sentinel.model import learn as learning
from sentinel.model.learn import next_learning
from sentinel.records import Floats, ModelSpec, ProfileSpec

ROWS, LEARNED = 620, 300
FAULT = slice(480, 540)
CHANNELS = ("pressure", "flow", "heat", "setpoint", "valve")
CONFIG = """
[profiles.pump]
topic = "plant/{device}/telemetry"
channels = [{ name = "pressure", unit = "bar", max = 20 }, "flow"]
stuck_after = "off"
model = { hidden = 8, horizons = [1, 8] }
"""


@pytest.fixture(autouse=True, scope="module")
def _few_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "STEPS", 40)
        patch.setattr(learning, "STAGE_STEPS", 10)
        yield


def healthy(rows: int = ROWS, seed: int = 0) -> Floats:
    """Coupled pressure and flow, a heat of its own, a constant and a switch, (T, 5)."""
    random = np.random.default_rng(seed)
    load = np.sin(np.arange(rows) * 2 * np.pi / 40) + 0.1 * random.standard_normal(rows)
    noise = random.standard_normal((2, rows))
    switch = (np.arange(rows) // 15) % 2
    heat = 60 + np.cos(np.arange(rows) * 2 * np.pi / 27) + 0.1 * random.standard_normal(rows)
    return np.stack(
        [5 + load + 0.05 * noise[0], 20 + 4 * load + 0.2 * noise[1], heat, np.full(rows, 3.0), switch], axis=1
    )


def stamp(second: int) -> str:
    return f"2026-01-01 {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"


def table(values: Floats, begin: int = 0, header: str = f"time,{','.join(CHANNELS)}") -> list[str]:
    lines = [header]
    for at, row in enumerate(values.round(4).tolist()):
        lines.append(",".join([stamp(begin + at), *("" if cell != cell else repr(cell) for cell in row)]))  # noqa: PLR0124
    return lines


def saved(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class Done:
    """What a run wrote."""

    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> Floats:
        return np.array([float(row[name] or "nan") for row in self.rows])

    @property
    def scores(self) -> bytes:
        return (self.folder / "scores.csv").read_bytes()


def run(folder: Path, data: Path | list[Path], **options: Any) -> Done:
    given: dict[str, Any] = {
        "data": data if isinstance(data, list) else [data],
        "config": None,
        "profile": None,
        "train_rows": None,
        "train_fraction": None,
        "train": [],
        "label_column": None,
        "seed": 0,
        "out": folder / "out",
        "json_file": None,
    }
    assert backtest(**(given | options)) == 0
    out = (given | options)["out"]
    with (out / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    alerts = [json.loads(line) for line in (out / "alerts.jsonl").read_text().splitlines()]
    return Done(out, rows, alerts, json.loads((out / "summary.json").read_bytes()))


DUPLICATE, LATE, EMPTY = 350, 360, 370


def eventful() -> list[str]:
    """One recording with a fault in heat, holes, an empty row, a duplicate and a late row; labelled."""
    values = healthy()
    values[FAULT, 2] += 8.0
    values[np.arange(7, ROWS, 31), 0] = np.nan
    values[EMPTY] = np.nan
    lines = table(values, header=f"time,{','.join(CHANNELS)}")
    label = np.zeros(ROWS, dtype=int)
    label[FAULT] = 1
    lines = [lines[0] + ",anomaly", *(f"{line},{mark}" for line, mark in zip(lines[1:], label.tolist(), strict=True))]
    lines.insert(1 + DUPLICATE, lines[DUPLICATE])
    late = lines[1 + LATE - 40].split(",")
    lines.insert(1 + LATE, ",".join([late[0], "9.0", *late[2:]]))
    return lines


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("eventful")
    data = saved(folder / "pump-1.csv", eventful())
    return run(folder, data, train_rows=LEARNED, label_column="anomaly", json_file=folder / "summary.json")


class TestScores:
    def test_each_row_of_the_data_has_one_line_in_its_order(self, seen: Done) -> None:
        given = [line.split(",") for line in eventful()[1:]]
        assert [row["time"] for row in seen.rows] == [cells[0] for cells in given]
        assert [row["pressure_value"] and float(row["pressure_value"]) for row in seen.rows] == [
            cells[1] and float(cells[1]) for cells in given
        ]
        assert {row["device"] for row in seen.rows} == {"pump-1"}

    def test_columns_are_those_promised(self, seen: Done) -> None:
        first = ["time", "device", "score", "p_value", "anomaly", "alert_id"]
        each = [f"{name}_{what}" for name in CHANNELS for what in ("value", "expected", "low", "high")]
        assert list(seen.rows[0]) == first + each

    def test_rows_learned_from_have_no_score_and_are_no_anomaly(self, seen: Done) -> None:
        learned = seen.rows[:LEARNED]
        assert {(row["score"], row["p_value"], row["anomaly"], row["alert_id"]) for row in learned} == {
            ("", "", "0", "")
        }
        assert all(row["pressure_expected"] == "" for row in learned)

    def test_all_other_rows_are_scored_but_those_that_are_no_tick(self, seen: Done) -> None:
        missing = np.flatnonzero(np.isnan(seen.column("score")))
        assert missing.tolist() == [*range(LEARNED), DUPLICATE, LATE, EMPTY + 2]
        assert {seen.rows[at]["anomaly"] for at in missing} == {"0"}

    def test_the_expected_lies_within_its_band_and_near_what_came(self, seen: Done) -> None:
        part = slice(LEARNED + 10, 470)
        low, middle, high = (seen.column(f"flow_{what}")[part] for what in ("low", "expected", "high"))
        known = ~np.isnan(middle)
        assert known.mean() > 0.9
        assert (low[known] <= middle[known]).all()
        assert (middle[known] <= high[known]).all()
        assert np.median(np.abs(seen.column("flow_value")[part] - middle)[known]) < 4

    def test_constants_and_switches_harm_nothing(self, seen: Done) -> None:
        assert (seen.column("setpoint_value")[:100] == 3.0).all()
        assert np.isfinite(seen.column("score")[LEARNED + 20 : DUPLICATE]).all()

    def test_anomalies_are_where_the_score_reaches_1(self, seen: Done) -> None:
        score = seen.column("score")
        np.testing.assert_array_equal(seen.column("anomaly") == 1, score >= 1)
        assert (score >= 1).any()


class TestAlerts:
    def test_the_fault_is_found_and_its_channel_named(self, seen: Done) -> None:
        begin = next(alert for alert in seen.alerts if alert["kind"] == "prediction")
        shift = 2  # rows put in before the fault
        row = next(at for at, line in enumerate(seen.rows) if line["alert_id"] == begin["id"])
        assert FAULT.start <= row - shift <= FAULT.start + 5
        assert begin["channels"][0]["name"] == "heat"
        assert begin["message"].startswith("pump-1: heat ")

    @pytest.mark.parametrize("channel", ["pressure", "flow"])
    def test_of_coupled_channels_the_faulty_one_is_named(self, tmp_path: Path, channel: str) -> None:
        values = healthy()
        values[FAULT, CHANNELS.index(channel)] += {"pressure": 3.0, "flow": 12.0}[channel]
        done = run(tmp_path, saved(tmp_path / "pump.csv", table(values)), train_rows=LEARNED)
        begin = next(alert for alert in done.alerts if alert["kind"] == "prediction")
        assert begin["channels"][0]["name"] == channel

    def test_the_alert_is_named_while_it_is_open(self, seen: Done) -> None:
        last = {alert["id"]: alert for alert in seen.alerts}
        times = np.array([line["time"] for line in seen.rows])
        for identity, alert in last.items():
            rows = np.flatnonzero([line["alert_id"] == identity for line in seen.rows])
            assert len(rows)
            began = np.datetime64(int(alert["fired"]), "s")
            assert np.datetime64(times[rows[0]]) == began
            if alert["state"] == "resolved":
                assert np.datetime64(times[rows[-1]]) < np.datetime64(int(alert["updated"]), "s")
            else:
                assert rows[-1] == len(times) - 1
        assert {line["alert_id"] for line in seen.rows} - {""} <= set(last)

    def test_transitions_are_as_published(self, seen: Done) -> None:
        schema = load_schema()
        for alert in seen.alerts:
            jsonschema.validate(alert, schema)
        states = [(alert["state"], alert["seq"]) for alert in seen.alerts if alert["id"] == seen.alerts[0]["id"]]
        assert states[0] == ("firing", 0)


class TestSummary:
    def test_it_counts_what_the_other_files_hold(self, seen: Done) -> None:
        summary, score = seen.summary, seen.column("score")
        assert (summary["rows"], summary["rows_learned"]) == (ROWS + 2, LEARNED)
        assert summary["rows_scored"] == int(np.isfinite(score).sum())
        assert summary["rows_flagged"] == int(seen.column("anomaly").sum())
        assert (summary["devices"], summary["channels"]) == (1, list(CHANNELS))
        assert sum(summary["alerts"].values()) == len({alert["id"] for alert in seen.alerts})
        assert summary["alert_budget_per_device_week"] == pytest.approx(1.0)
        assert summary["device_weeks"] == pytest.approx((ROWS - LEARNED - 1) / 604800, rel=0.02)

    def test_labels_are_compared_with(self, seen: Done) -> None:
        labels = seen.summary["labels"]
        assert (labels["rows_anomalous"], labels["events"], labels["events_found"]) == (60, 1, 1)
        assert 0 <= labels["median_delay_seconds"] <= 5
        assert labels["f1"] > 0.5

    @pytest.mark.parametrize(
        ("labelled", "outside"), [(500, 0), (420, 0), (330, 1)], ids=["it", "its way back", "none"]
    )
    def test_alerts_outside_labelled_events_are_told_apart(self, tmp_path: Path, labelled: int, outside: int) -> None:
        values = healthy()
        values[500:540, :2] += 4
        lines = [f"{line},{int(labelled <= at < labelled + 40)}" for at, line in enumerate(table(values)[1:])]
        marked = saved(tmp_path / "marked.csv", [f"time,{','.join(CHANNELS)},label", *lines])
        done = run(tmp_path, marked, train_rows=LEARNED, label_column="label")
        assert done.summary["alerts"] == {"prediction": 1}
        assert done.summary["labels"]["alerts_outside"] == outside

    def test_the_json_file_holds_the_same(self, seen: Done) -> None:
        assert json.loads((seen.folder.parent / "summary.json").read_bytes()) == seen.summary

    def test_the_report_is_there(self, seen: Done) -> None:
        page = (seen.folder / "report.html").read_text("utf-8")
        assert "1 of 1 labelled events found" in page


class TestSameAgain:
    def test_the_same_seed_gives_the_same_bytes(self, seen: Done, tmp_path: Path) -> None:
        data = saved(tmp_path / "pump-1.csv", eventful())
        again = run(tmp_path, data, train_rows=LEARNED, label_column="anomaly")
        assert again.scores == seen.scores
        assert again.alerts == seen.alerts

    def test_what_comes_later_changes_no_earlier_score(self, seen: Done, tmp_path: Path) -> None:
        data = saved(tmp_path / "pump-1.csv", eventful()[:500])
        shorter = run(tmp_path, data, train_rows=LEARNED, label_column="anomaly")
        assert seen.scores.startswith(shorter.scores)
        assert len(shorter.rows) == 499

    def test_learning_while_running_happens_at_fixed_tick_counts(self, tmp_path: Path) -> None:
        def scores(rows: int) -> Floats:
            data = saved(tmp_path / f"{rows}.csv", table(healthy(450)[:rows]))
            stages: list[str] = []
            run = Backtest(
                ProfileSpec("p", model=ModelSpec(hidden=8)), read_tables([data]), lambda what, _: stages.append(what)
            )
            result = run.run(Plan(rows=100))
            learnings = [a for a, b in itertools.pairwise(stages) if a != "fitting" and b == "fitting"]
            known, most = next_learning(100), 0
            while known < rows:
                known, most = next_learning(known), most + 1
            assert len(learnings) == most, "with every tenth more"
            return result.score

        np.testing.assert_array_equal(scores(450)[:420], scores(420))


class TestWhatToLearnFrom:
    def test_a_recording_of_its_own_is_the_devices_past(self, tmp_path: Path) -> None:
        values = healthy(450)
        normal = saved(tmp_path / "normal.csv", table(values[:LEARNED]))
        follows = saved(tmp_path / "later.csv", table(values[LEARNED:], begin=LEARNED))
        done = run(tmp_path, follows, train=[normal])
        assert done.summary["rows_learned"] == 0
        assert np.isfinite(done.column("score")).all()

    def test_times_that_do_not_follow_begin_a_new_state_with_the_old_calibration(self, tmp_path: Path) -> None:
        values = healthy(450)
        normal = saved(tmp_path / "normal.csv", table(values[:LEARNED], begin=7200))
        earlier = saved(tmp_path / "earlier.csv", table(values[LEARNED:]))
        score = run(tmp_path, earlier, train=[normal]).column("score")
        assert np.isnan(score[0])
        assert np.isfinite(score[50:]).all()

    def test_of_several_devices_each_has_its_own_past(self, tmp_path: Path) -> None:
        def both(part: slice) -> list[str]:
            lines = [f"time,device,{','.join(CHANNELS)}"]
            fleet = {name: table(healthy(450, seed)[part], begin=part.start)[1:] for seed, name in enumerate("ab")}
            for pair in zip(*fleet.values(), strict=True):
                lines += [line.replace(",", f",{name},", 1) for name, line in zip(fleet, pair, strict=True)]
            return lines

        normal = saved(tmp_path / "normal.csv", both(slice(0, LEARNED)))
        later = both(slice(LEARNED, 450))
        whole = run(tmp_path, saved(tmp_path / "later.csv", later), train=[normal], out=tmp_path / "whole")
        only = [later[0], *(line for line in later[1:] if ",a," in line)]
        alone = run(tmp_path, saved(tmp_path / "alone.csv", only), train=[normal], out=tmp_path / "alone")
        mine = [row["score"] for row in whole.rows if row["device"] == "a"]
        assert [row["score"] for row in alone.rows] == mine
        assert np.isfinite(alone.column("score")[50:]).all()

    def test_one_device_in_several_files_is_one_stream_whatever_their_order(self, tmp_path: Path) -> None:
        lines = [line.replace(",", ",pump,", 1) for line in table(healthy(450))]
        header = lines[0].replace("pump", "device")
        whole = run(tmp_path, saved(tmp_path / "whole.csv", [header, *lines[1:]]), train_rows=LEARNED)
        first = saved(tmp_path / "first.csv", [header, *lines[1:201]])
        second = saved(tmp_path / "second.csv", [header, *lines[201:]])
        apart = run(tmp_path, [second, first], train_rows=LEARNED, out=tmp_path / "apart")
        assert [row["score"] for row in apart.rows[250:] + apart.rows[:250]] == [row["score"] for row in whole.rows]

    def test_a_label_column_is_never_a_channel(self, tmp_path: Path) -> None:
        normal = saved(tmp_path / "normal.csv", table(healthy(LEARNED)))
        lines = table(healthy(100), begin=1000)
        marked = saved(tmp_path / "marked.csv", [lines[0] + ",fault", *(f"{line},0" for line in lines[1:])])
        done = run(tmp_path, marked, train=[normal], label_column="fault")
        assert done.summary["channels"] == list(CHANNELS)
        assert done.summary["labels"]["events"] == 0

    def test_less_than_a_day_of_several_is_said_to_miss_the_daily_cycle(self, tmp_path: Path) -> None:
        hours = np.datetime64("2026-01-01T00:00:00") + np.arange(400) * np.timedelta64(900, "s")
        lines = [
            f"{moment},{value:.3f}"
            for moment, value in zip(hours, np.random.default_rng(0).normal(size=400), strict=True)
        ]
        data = saved(tmp_path / "halves.csv", ["time,value", *lines])
        short = run(tmp_path, data, train_rows=60)
        assert any("learned from 15 h only" in note for note in short.summary["notes"])
        assert not any("only" in note for note in run(tmp_path, data, train_rows=100).summary["notes"])

    def test_without_any_word_the_first_15_percent_are_learned_from(self, tmp_path: Path) -> None:
        values = healthy()
        lines = [
            f"row;{';'.join(CHANNELS)}",
            *(f"{at};{';'.join(map(repr, row))}" for at, row in enumerate(values.tolist())),
        ]
        done = run(tmp_path, saved(tmp_path / "pump.csv", lines))
        assert done.summary["rows_learned"] == int(0.15 * ROWS)
        assert done.summary["channels"] == list(CHANNELS)
        assert [row["time"] for row in done.rows[:3]] == ["0", "1", "2"]
        assert done.summary["device_weeks"] == pytest.approx((ROWS - 94) / 604800)

    def test_a_share_can_be_given(self, tmp_path: Path) -> None:
        data = saved(tmp_path / "pump.csv", table(healthy(300)))
        assert run(tmp_path, data, train_fraction=0.5).summary["rows_learned"] == 150

    def test_too_little_to_learn_from_is_an_error_that_says_what_to_do(self, tmp_path: Path) -> None:
        data = saved(tmp_path / "pump.csv", table(healthy(100)))
        with pytest.raises(DataError, match="at least 60 are needed: give more, or --train FILE"):
            run(tmp_path, data)


class TestWithAConfiguration:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        (tmp_path / "sentinel.toml").write_text(CONFIG)
        return tmp_path / "sentinel.toml"

    def test_broken_rules_are_anomalies_beside_the_score(self, tmp_path: Path, config: Path) -> None:
        values = healthy(450)
        values[[350, 420], 0] = 25.0
        data = saved(tmp_path / "pump.csv", table(values))
        done = run(tmp_path, data, config=config, profile="pump", train_rows=LEARNED)
        assert done.summary["channels"] == ["pressure", "flow"]
        broken = done.column("pressure_value") > 20
        np.testing.assert_array_equal(done.column("anomaly") == 1, (done.column("score") >= 1) | broken)
        assert "range" in {alert["kind"] for alert in done.alerts}
        ranged = next(alert for alert in done.alerts if alert["kind"] == "range")
        assert ranged["channels"][0] == {
            "name": "pressure", "unit": "bar", "value": 25.0, "expected": None, "low": None, "high": 20.0, "share": 1.0,
            "how": "", "by": None, "readings": 0,
        }  # fmt: skip

    def test_the_stored_model_is_used(self, tmp_path: Path, config: Path) -> None:
        normal = saved(tmp_path / "normal.csv", table(healthy(LEARNED)))
        options: dict[str, Any] = {"label_column": None, "seed": 0, "json_file": None}
        assert train(data=[normal], config=config, profile="pump", **options) == 0
        data = saved(tmp_path / "pump.csv", table(healthy(120, seed=5), begin=5000))
        done = run(tmp_path, data, config=config, profile="pump")
        assert done.summary["rows_learned"] == 0
        assert np.isfinite(done.column("score")[50:]).all()

    def test_without_one_it_says_what_to_do(self, tmp_path: Path, config: Path) -> None:
        data = saved(tmp_path / "pump.csv", table(healthy(120)))
        with pytest.raises(DataError, match=r"has no model in .*run `sentinel train`"):
            run(tmp_path, data, config=config, profile="pump")

    def test_an_unknown_profile_is_an_error_that_names_the_known(self, tmp_path: Path, config: Path) -> None:
        data = saved(tmp_path / "pump.csv", table(healthy(120)))
        with pytest.raises(ConfigError, match=r"no such profile in .*known: pump"):
            run(tmp_path, data, config=config, profile="pmup")


def test_the_command_line_does_it_all(tmp_path: Path) -> None:
    data = saved(tmp_path / "pump.csv", table(healthy(160)))
    command = [sys.executable, "-m", "sentinel", "backtest", "pump.csv", "--train-rows", "100", "--out", "out"]
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("SENTINEL_")}
    done = subprocess.run(
        command, cwd=data.parent, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scores.csv",
        "alerts.jsonl",
        "summary.json",
        "report.html",
    }
    assert "learned from 100" in done.stdout
