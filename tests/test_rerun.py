"""`sentinel backtest --from-journal` and `sentinel train --from-journal`: what a daemon's own journal tells."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from sentinel import trainer
from sentinel.adapters.models import list_models
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.store import Store, open_reader
from sentinel.commands.app import app
from sentinel.errors import DataError
from sentinel.model import learn as learning
from sentinel.records import Promotion
from sentinel.service import Service
from sentinel.settings import load_settings
from tests import fleets

CONFIG = """
[mqtt]
commands = true
[http]
port = 0
[profiles.pump]
topic = "plant/{site}/{device}/telemetry"
time = { path = "ts" }
channels = [{ name = "pressure", unit = "bar", min = 0, max = 16 }, "flow", "heat"]
model = { hidden = 8, horizons = [1, 8] }
learn = "never"
silence_after = "5m"
"""
DEVICES = ("hall/d0", "hall/d1", "yard/d,2")
LEARNED, FAULT, STRICTER, QUIET, AGAIN, TICKS = 120, slice(180, 195), 230, slice(240, 260), 320, 380

Live = dict[tuple[str, float], float]


@pytest.fixture(autouse=True, scope="module")
def _few_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "STEPS", 40)
        patch.setattr(learning, "STAGE_STEPS", 10)
        yield


@dataclass
class Plant:
    """A daemon on a real store, one reading a device and turn, and what it said at the time."""

    folder: Path
    scores: Live = field(default_factory=dict)
    now: float = fleets.START
    at: int = 0

    def __post_init__(self) -> None:
        self.config.write_text(CONFIG)
        self.broker = MemoryBroker()
        self.events = self.broker.subscribe_from_outside("sentinel/events/#")
        self.values = [fleets.healthy(TICKS + 200, i, 7) for i in range(len(DEVICES))]
        self.values[0][FAULT, 1] += 60.0
        self.values[2][60:64, 0] = 99.0
        self.start()

    @property
    def config(self) -> Path:
        return self.folder / "sentinel.toml"

    def start(self) -> None:
        """Begin, or go on after a crash."""
        settings = load_settings(self.config)
        self.service = Service(
            settings,
            broker=self.broker,
            clock=lambda: self.now,
            steady=lambda: self.now,
            reread=lambda: load_settings(self.config),
        )
        self.service.restore()
        self.service.start()
        self.turn()

    def crash(self) -> None:
        self.service._writer.wait()
        self.service.store.close()
        self.broker.disconnect()
        self.start()

    def turn(self) -> None:
        fleets.settle(self.service)

    def run(self, until: int, quiet: slice = slice(0, 0)) -> None:
        stream = self.service.pipeline.profiles["pump"]
        for t in range(self.at, until):
            for device, values in zip(DEVICES, self.values, strict=True):
                if device == "hall/d1" and quiet.start <= t < quiet.stop:
                    continue
                body = orjson.dumps(fleets.payload(t, values[t]))
                self.broker.publish_from_outside(f"plant/{device}/telemetry", body)
            self.now += 20.0 if quiet.start <= t < quiet.stop else 1.0
            self.turn()
            for device, slot in stream.table.slot_of.items():
                self.scores[device, float(stream.table.last_time[slot])] = float(stream.scores()[slot])
        self.at = until

    def learn(self) -> str:
        """As the learning process does, and the promotion of what it learned."""
        stream, store = self.service.pipeline.profiles["pump"], self.service.store
        champion = stream.detector.version if stream.detector is not None else None
        said = trainer.run(trainer.Job(str(store.path), stream.spec, store.seed, champion), lambda _what, _share: None)
        self.run(self.at + 5)  # what comes while it learns
        self.service._promote("pump", said["version"], self.now)
        self.service._writer.wait()
        return str(said["version"])

    def say(self, topic: str, payload: bytes = b"") -> None:
        self.broker.publish_from_outside(f"sentinel/command/{topic}", payload)
        self.turn()

    def alerts(self) -> list[dict[str, Any]]:
        """Each once: a restart says those again that it replays."""
        return [json.loads(payload) for payload in dict.fromkeys(d.payload for d in self.events.got)]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Learns, alerts, is commanded, reconfigured, crashes, hears silence, and learns again."""
    plant = Plant(tmp_path_factory.mktemp("plant"))
    plant.run(LEARNED)
    plant.learn()
    plant.run(FAULT.start + 5)
    plant.say("acknowledge/pump/hall/d0")
    plant.run(FAULT.start + 8)
    plant.say("normal/pump/hall/d0")
    plant.run(STRICTER)
    plant.config.write_text(CONFIG.replace("max = 16", "max = 6") + 'alert_budget = "1/day"\n')
    plant.service.reload()
    plant.now += 1.0
    plant.turn()
    plant.crash()
    plant.run(QUIET.stop, quiet=QUIET)
    plant.run(AGAIN)
    plant.learn()
    plant.run(TICKS)
    yield plant
    plant.service.shutdown()


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


@dataclass
class Report:
    rows: list[dict[str, str]]
    alerts: list[dict[str, Any]]
    summary: dict[str, Any]
    said: str

    @property
    def scores(self) -> Live:
        return {(row["device"], float(row["time"])): float(row["score"] or "nan") for row in self.rows}


def backtest(plant: Plant, out: Path) -> Report:
    options = ("--config", str(plant.config), "--profile", "pump", "--out", str(out))
    code, said = command("backtest", "--from-journal", *options)
    assert code == 0, said
    with (out / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert (out / "report.html").stat().st_size > 10_000
    alerts = [json.loads(line) for line in (out / "alerts.jsonl").read_text().splitlines()]
    return Report(rows, alerts, json.loads((out / "summary.json").read_bytes()), said)


@pytest.fixture(scope="module")
def report(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """With the daemon still running."""
    return backtest(plant, tmp_path_factory.mktemp("report"))


def identity(alerts: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(a["id"], a["seq"], a["state"], a["device"], a["kind"], a["score"], a["message"]) for a in alerts]


def test_the_scores_are_those_of_the_live_run_bit_for_bit(plant: Plant, report: Report) -> None:
    assert report.scores.keys() == plant.scores.keys()
    assert len(report.rows) == len(plant.scores), "one row a device and event time"
    live = np.array([plant.scores[key] for key in report.scores])
    np.testing.assert_array_equal(list(report.scores.values()), live)
    assert np.isfinite(live).sum() > 400
    assert np.nanmax(live) >= 1


def test_the_alerts_are_those_of_the_live_run_in_their_order(plant: Plant, report: Report) -> None:
    assert identity(report.alerts) == identity(plant.alerts())
    told = {(alert["kind"], alert["state"]) for alert in report.alerts}
    assert told >= {
        ("range", "firing"),
        ("prediction", "firing"),
        ("prediction", "acknowledged"),
        ("prediction", "resolved"),
        ("silence", "firing"),
        ("silence", "resolved"),
    }


def test_ticks_from_before_there_was_a_model_have_a_row_without_a_score(report: Report) -> None:
    before = [row for row in report.rows if float(row["time"]) < fleets.START + LEARNED]
    assert len(before) == LEARNED * len(DEVICES)
    assert {row["score"] for row in before} == {""}
    assert {row["alert_id"] for row in before if row["anomaly"] == "1"} == {a["id"] for a in report.alerts[:1]}
    assert report.summary["rows_learned"] >= len(before)
    assert report.summary["notes"] == []


def test_the_row_of_an_open_alert_names_it(report: Report) -> None:
    firing = next(a for a in report.alerts if a["kind"] == "prediction" and a["state"] == "firing")
    rows = [row for row in report.rows if row["alert_id"] == firing["id"]]
    assert {row["device"] for row in rows} == {firing["device"]}
    assert float(rows[0]["time"]) == firing["updated"]
    assert all(row["flow_value"] and row["flow_expected"] for row in rows)


def test_settings_that_were_reloaded_hold_from_there_on(report: Report) -> None:
    pressure = {row["anomaly"] for row in report.rows if float(row["pressure_value"]) > 6.0}
    assert pressure == {"0", "1"}, "above 6 bar was allowed until the limit was lowered"


def test_a_model_that_is_gone_is_said_and_passed_over(plant: Plant, tmp_path: Path) -> None:
    versions = [model.path for model in list_models(plant.service.store.models, "pump")]
    away = versions[0].rename(tmp_path / "away")
    try:
        report = backtest(plant, tmp_path / "report")
    finally:
        away.rename(versions[0])
    assert len(report.rows) == len(plant.scores)
    assert versions[0].name in report.summary["notes"][0]
    assert f"the promotion of model {versions[0].name} is passed over" in report.said.replace("\n", " ")
    early = {key: score for key, score in report.scores.items() if key[1] < fleets.START + AGAIN}
    np.testing.assert_array_equal(list(early.values()), [plant.scores[key] for key in early])


def trimmed(plant: Plant, tmp_path: Path, keep_after: int) -> Report:
    """A backtest of the store without its turns up to a position."""
    copy = Plant.__new__(Plant)
    copy.folder = tmp_path
    copy.config.write_text(plant.config.read_text())
    plant.service._snapshot()
    plant.service._writer.wait()
    shutil.copytree(plant.folder / "state", tmp_path / "state")
    with Store(tmp_path / "state") as store:
        while store.journal.trim(0, 0.0, 1e12, keep_after):
            pass
    return backtest(copy, tmp_path / "report")


def test_a_trimmed_journal_begins_anew_with_what_there_is_and_says_so(plant: Plant, tmp_path: Path) -> None:
    journal = plant.service.store.journal
    first, second = (turn.seq for turn in journal.read() if any(isinstance(entry, Promotion) for entry in turn.entries))
    version = plant.service.pipeline.profiles["pump"].detector.version  # type: ignore[union-attr]
    report = trimmed(plant, tmp_path, (first + second) // 2)
    (note,) = report.summary["notes"]
    assert note.startswith(f"the journal's first {(first + second) // 2} turns were trimmed")
    assert note.endswith(f"ticks before model {version} have no score")
    unscored = {float(row["time"]) for row in report.rows if not row["score"]}
    assert unscored, "what came before the promotion is there"
    after = {key: score for key, score in report.scores.items() if key[1] > fleets.START + AGAIN + 5}
    assert np.isfinite(list(after.values())).all()


def test_a_model_whose_catching_up_was_trimmed_is_said(plant: Plant, tmp_path: Path) -> None:
    turns = list(plant.service.store.journal.read())
    last = max(turn.seq for turn in turns if any(isinstance(entry, Promotion) for entry in turn.entries))
    report = trimmed(plant, tmp_path, last - 2)
    assert "is not brought up to its promotion" in report.summary["notes"][1]


def test_with_no_promotion_left_it_begins_with_the_model_of_the_newest_snapshot(plant: Plant, tmp_path: Path) -> None:
    journal = plant.service.store.journal
    last = max(turn.seq for turn in journal.read() if any(isinstance(e, Promotion) for e in turn.entries))
    report = trimmed(plant, tmp_path, last)
    assert "as it was saved" in report.summary["notes"][0]
    assert "note: the journal's first" in report.said
    assert report.summary["rows_learned"] == 0
    assert report.summary["rows_scored"] > 0


def test_without_a_reading_of_the_profile_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sentinel.toml").write_text(CONFIG)
    Store(tmp_path / "state").close()
    options = ("--from-journal", "--config", str(tmp_path / "sentinel.toml"), "--profile", "pump")
    code, said = command("backtest", *options)
    assert (code, "no reading of profile pump; let `sentinel run` collect" in said) == (1, True)
    code, said = command("train", *options)
    assert (code, "0 readings of profile pump" in said, "let `sentinel run` collect more" in said) == (1, True, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("backtest",), "give DATA or --from-journal"),
        (("backtest", "x.csv", "--from-journal", "--config", "c", "--profile", "p"), "one of them"),
        (("backtest", "--from-journal"), "--from-journal needs --config and --profile"),
        (("backtest", "--from-journal", "--config", "c", "--profile", "p", "--train-rows", "9"), "no --train"),
        (("train", "--config", "c", "--profile", "p"), "give DATA or --from-journal"),
        (("train", "x.csv", "--since", "7d", "--config", "c", "--profile", "p"), "--since goes with --from-journal"),
        (("train", "x.csv", "--until", "7d", "--config", "c", "--profile", "p"), "--until goes with --from-journal"),
        (("train", "--from-journal", "--since", "soon", "--config", "c", "--profile", "p"), "--since must be"),
        (("train", "--from-journal", "--until", "2026-13-01", "--config", "c", "--profile", "p"), "--until must be"),
        (
            ("train", "--from-journal", "--since", "1h", "--until", "2h", "--config", "c", "--profile", "p"),
            "--since must be before --until",
        ),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(arguments: tuple[str, ...], told: str) -> None:
    code, said = command(*arguments)
    assert code == 2
    assert told in " ".join(said.split())


def test_a_model_trained_on_the_journal_is_taken_up_at_the_next_start_with_states_up_to_date(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run(200)
    options = ("--from-journal", "--config", str(plant.config), "--profile", "pump")
    code, said = command("train", *options, "--json", str(tmp_path / "trained.json"))
    assert code == 0, said
    trained = json.loads((tmp_path / "trained.json").read_bytes())
    assert (trained["devices"], trained["ticks"]) == (3, 600)
    plant.run(240)
    assert np.isnan(list(plant.scores.values())).all(), "it is taken up at the next start"
    plant.crash()
    stream = plant.service.pipeline.profiles["pump"]
    assert stream.detector is not None
    assert (stream.detector.version, stream.detector.declared) == (trained["version"], True)
    assert stream.slabs is not None
    assert set(stream.slabs.view("since")[list(stream.table)].tolist()) == {240.0}, "its state saw all 240 ticks"
    plant.run(300)
    report = backtest(plant, tmp_path / "report")
    np.testing.assert_array_equal([report.scores[key] for key in plant.scores], list(plant.scores.values()))
    assert np.isfinite(list(report.scores.values())[-30:]).all()
    plant.crash()
    assert plant.service.store.journal.promotions("pump") == [Promotion("pump", trained["version"])]
    plant.service.shutdown()


def test_training_takes_only_what_came_since_and_until(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentinel.commands.app.time.time", lambda: plant.now)
    seen: list[trainer.Job] = []

    def run(job: trainer.Job, _tell: object) -> dict[str, Any]:
        seen.append(job)
        raise DataError("enough")

    monkeypatch.setattr(trainer, "run", run)
    options = ("--from-journal", "--config", str(plant.config), "--profile", "pump")
    for since in ("30s", "1ms"):
        command("train", *options, "--since", since)
    with open_reader(plant.folder / "state") as journal:
        recent = list(journal.read(seen[0].after, profile="pump"))
        assert recent[0].now == plant.now - 30
        assert seen[1].after == recent[-1].seq - 1
        assert seen[0].upto is None
        moment = datetime.fromtimestamp(plant.now - 20, UTC).isoformat()
        for until in ("20s", moment, moment.removesuffix("+00:00")):
            command("train", *options, "--until", until)
            assert seen[-1].upto is not None
            assert [*journal.read(upto=seen[-1].upto, profile="pump")][-1].now < plant.now - 20
            assert next(journal.read(after=seen[-1].upto, profile="pump")).now == plant.now - 20


def test_a_model_is_trained_without_what_came_after_and_says_what_that_cannot_tell(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run(150)
    plant.service.shutdown()
    until = datetime.fromtimestamp(fleets.START + 101, UTC).isoformat()
    options = ("--from-journal", "--config", str(plant.config), "--profile", "pump", "--json", str(tmp_path / "j"))
    code, said = command("train", *options, "--until", until)
    assert code == 0, said
    trained = json.loads((tmp_path / "j").read_bytes())
    assert (trained["ticks"], trained["device_seconds"]) == (300, 297.0)
    assert "300 ticks of 3 devices, 5 device-minutes" in said
    assert 'note: 5 device-minutes cannot show what is normal but rare. alert_budget = "1/week"' in said
    assert "one alert in 1.0 device-weeks; they can tell one in 5 device-minutes." in said


def test_a_channel_that_a_restart_brought_is_there_from_there_on(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run(LEARNED)
    plant.learn()
    plant.run(150)
    plant.service.shutdown()
    plant.config.write_text(CONFIG.replace(', "flow"', ', "load", "flow"'))
    plant.broker.resume()
    plant.start()
    plant.run(200)
    report = backtest(plant, tmp_path / "report")
    np.testing.assert_array_equal([report.scores[key] for key in plant.scores], list(plant.scores.values()))
    assert np.isfinite(list(report.scores.values())[-30:]).all()
    assert {"load_value", "flow_value", "flow_expected"} <= set(report.rows[0])
    assert identity(report.alerts) == identity(plant.alerts())
    plant.service.shutdown()
