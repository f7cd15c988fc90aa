"""`sentinel backtest --from-journal` and `sentinel train --from-journal`: what a daemon's own journal tells."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from sentinel.model import learn as learning
from sentinel.records import Floats, Promotion
from sentinel.rerun import Rerun
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
            settings, broker=self.broker, clock=lambda: self.now, reread=lambda: load_settings(self.config)
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
        empty = 0
        while empty < 2:
            empty = 0 if self.service.turn(0.0) else empty + 1

    def run(self, until: int, quiet: slice = slice(0, 0)) -> None:
        stream = self.service.pipeline.profiles["pump"]
        for t in range(self.at, until):
            for device, values in zip(DEVICES, self.values, strict=True):
                if device == "hall/d1" and quiet.start <= t < quiet.stop:
                    continue
                body = dict(zip(fleets.CHANNELS, values[t].tolist(), strict=True)) | {"ts": fleets.START + t}
                self.broker.publish_from_outside(f"plant/{device}/telemetry", orjson.dumps(body))
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
        return [json.loads(d.payload) for d in self.events.got]


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
