"""`sentinel devices` and `sentinel models` on a store that the daemon wrote, in use or not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from sentinel import trainer
from sentinel.adapters.models import model_path
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.store import Store, open_reader
from sentinel.commands import _terminal
from sentinel.commands import devices as module
from sentinel.commands.devices import devices
from sentinel.commands.models import models
from sentinel.errors import DataError, StoreError
from sentinel.model import archive
from sentinel.records import Command, Floats
from sentinel.service import Service
from sentinel.settings import Settings, load_settings
from tests import fleets

CONFIG = """
[http]
port = 0
[profiles.pump]
topic = "plant/{device}/telemetry"
time = { path = "ts" }
channels = [{ name = "pressure", unit = "bar", min = 0, max = 16 }, "flow", "heat"]
model = { hidden = 8, horizons = [1, 8] }
learn = "never"
[profiles.room]
topic = "home/{device}/telemetry"
time = { path = "ts" }
learn = "never"
"""
TICKS = 60


@dataclass
class Plant:
    """A store in a folder, and a daemon on it while one is wanted."""

    folder: Path
    now: float = fleets.START
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    service: Service | None = None

    @property
    def config(self) -> Path:
        return self.folder / "sentinel.toml"

    @property
    def settings(self) -> Settings:
        return load_settings(self.config)

    def train(self, *, declared: bool = False, position: int = 0) -> str:
        learned = fleets.learned(declared=declared)
        stream = fleets.running(self.settings.specs()[0], learned)
        return trainer.save(self.settings.store.path / "models", stream, learned.detector, position)

    def start(self) -> None:
        store = self.settings.store
        self.service = Service(
            self.settings,
            broker=self.broker,
            store=Store(store.path, store.durability),
            clock=lambda: self.now,
            steady=lambda: self.now,
        )
        self.service.restore()
        self.service.start()
        self.turn()  # connects

    def send(self, topic: str, **payload: float) -> None:
        self.broker.publish_from_outside(topic, orjson.dumps({"ts": self.now} | payload))

    def run(self, **values: Floats) -> None:
        """A reading of each device a second."""
        for tick in zip(*(block.tolist() for block in values.values()), strict=True):
            for device, (pressure, flow, heat) in zip(values, tick, strict=True):
                self.send(f"plant/{device}/telemetry", pressure=pressure, flow=flow, heat=heat)
            self.now += 1.0
        self.turn()

    def turn(self) -> None:
        assert self.service is not None
        while self.service.turn(0.0):
            pass

    def stop(self) -> None:
        if self.service is not None:
            self.service.shutdown()
            self.service = None

    def crash(self) -> None:
        """End without a word, as kill -9 does."""
        assert self.service is not None
        self.service.store.close()
        self.service = None


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    (tmp_path / "sentinel.toml").write_text(CONFIG)
    made = Plant(tmp_path)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Two pumps, the second out of its range at the end, and a room; then a clean stop."""
    plant = Plant(tmp_path_factory.mktemp("plant"))
    plant.config.write_text(CONFIG)
    plant.train()
    plant.start()
    values = fleets.healthy(TICKS, 1, 7)
    values[-1, 0] = 40.0
    plant.run(d0=fleets.healthy(TICKS, 0, 7), d1=values)
    plant.send("home/[kitchen]/telemetry", temperature=21.5)
    plant.turn()
    plant.stop()
    return plant


@pytest.fixture
def stopped(ran: Plant, plant: Plant) -> Plant:
    """A copy of `ran`'s store."""
    shutil.copytree(ran.settings.store.path, plant.settings.store.path)
    plant.now = ran.now
    return plant


def asked(plant: Plant, action: str = "list", device: str | None = None) -> Any:
    out = plant.folder / "out.json"
    assert devices(config=plant.config, action=action, device=device, json_file=out) == 0
    return json.loads(out.read_bytes())


def shelve(plant: Plant, device: str) -> None:
    """For an hour, by a daemon that stops."""
    plant.start()
    assert plant.service is not None
    plant.service.pipeline.profiles["pump"].command(Command("shelve", "pump", device, 3600.0), plant.now)
    plant.stop()


class TestList:
    def test_every_device_of_every_profile_is_there_with_its_state(self, stopped: Plant) -> None:
        rows = asked(stopped)["devices"]
        assert [(row["profile"], row["device"], row["state"], row["ticks"]) for row in rows] == [
            ("pump", "d0", "scoring", TICKS),
            ("pump", "d1", "scoring", TICKS),
            ("room", "[kitchen]", "learning", 1),
        ]
        assert rows[0]["last_seen"] == pytest.approx(fleets.START + TICKS - 1, abs=2)
        assert rows[0]["alerts"] == []
        assert ("range", "firing") in [(alert["kind"], alert["state"]) for alert in rows[1]["alerts"]]

    def test_a_shelved_device_is_listed_with_its_time(self, stopped: Plant, capsys: pytest.CaptureFixture[str]) -> None:
        shelve(stopped, "d0")
        until = stopped.now + 3600.0
        assert [row["shelved_until"] for row in asked(stopped)["devices"]] == [until, None, None]
        moment = f"shelved until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%SZ}"
        assert moment in capsys.readouterr().out
        asked(stopped, "show", "d0")
        assert moment in capsys.readouterr().out

    def test_a_daemon_may_run_meanwhile(self, stopped: Plant) -> None:
        stopped.start()
        assert len(asked(stopped)["devices"]) == 3

    def test_no_score_is_none_and_not_0(self, stopped: Plant) -> None:
        rows = asked(stopped)["devices"]
        assert rows[2]["score"] is None

    def test_without_a_terminal_it_prints_plain_columns(
        self, stopped: Plant, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked(stopped)
        head, columns, *rows = capsys.readouterr().out.splitlines()
        assert head.startswith("# 3 devices as of 20")
        assert columns.split("\t")[:4] == ["profile", "device", "state", "ticks"]
        assert rows[1].startswith("pump\td1\tscoring\t60\t")
        assert "range (firing)" in rows[1]
        assert rows[2].startswith("room\t[kitchen]\tlearning\t1\t")

    def test_on_a_terminal_it_draws_a_table(
        self, stopped: Plant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(_terminal, "Console", lambda **_: Console(force_terminal=True, width=160))
        asked(stopped)
        out = capsys.readouterr().out
        assert "[kitchen]" in out
        assert "\x1b[" in out

    def test_many_devices_are_read_a_part_at_a_time(self, stopped: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = asked(stopped)
        monkeypatch.setattr(module, "_AT_ONCE", 1)
        assert asked(stopped) == whole

    def test_before_the_first_snapshot_it_says_so(self, plant: Plant) -> None:
        with pytest.raises(DataError, match=r"no snapshot in .* yet: `sentinel run`"):
            asked(plant)
        Store(plant.settings.store.path).close()
        with pytest.raises(DataError, match=r"no snapshot in .* yet"):
            asked(plant)

    def test_a_missing_model_is_a_note_and_the_rest_is_shown(
        self, stopped: Plant, capsys: pytest.CaptureFixture[str]
    ) -> None:
        version = asked(stopped, "show", "d0")["devices"][0]["model"]
        (model_path(stopped.settings.store.path / "models", "pump", version) / "manifest.json").unlink()
        result = asked(stopped)
        assert [row["ticks"] for row in result["devices"]] == [TICKS, TICKS, 1]
        assert "profile pump begins anew" in result["notes"][0]
        assert "note: profile pump begins anew" in capsys.readouterr().err

    def test_devices_of_a_profile_no_longer_configured_are_shown_with_a_note(self, stopped: Plant) -> None:
        stopped.config.write_text(CONFIG.replace("[profiles.room]", "[profiles.other]"))
        result = asked(stopped)
        assert [row["profile"] for row in result["devices"]] == ["pump", "pump", "room"]
        assert result["notes"] == ["profile room is no longer configured"]


class TestShow:
    def test_scales_and_ranges_are_in_the_channels_units(self, stopped: Plant) -> None:
        (device,) = asked(stopped, "show", "d0")["devices"]
        values = fleets.healthy(TICKS, 0, 7)
        by_name = {channel["name"]: channel for channel in device["channels"]}
        assert list(by_name) == list(fleets.CHANNELS)
        pressure = by_name["pressure"]
        assert pressure["unit"] == "bar"
        assert pressure["last"] == pytest.approx(values[-1, 0])
        assert 4 < pressure["location"] < 6
        assert 0.1 < pressure["spread"] < 2
        assert pressure["low"] <= values[:, 0].min() + 1e-3
        assert pressure["high"] >= values[:, 0].max() - 1e-3
        assert 55 < by_name["heat"]["low"] < by_name["heat"]["high"] < 65

    def test_state_and_calibration_are_shown(self, stopped: Plant, capsys: pytest.CaptureFixture[str]) -> None:
        (device,) = asked(stopped, "show", "d0")["devices"]
        assert device["state"] == "scoring"
        assert device["ticks_of_state"] > 0
        assert list(device["calibrated_on"]) == ["1 ahead", "8 ahead", "across channels"]
        assert min(device["calibrated_on"].values()) > 0
        assert device["interval_seconds"] == pytest.approx(1.0, abs=0.01)
        assert device["frozen"] is False
        out = capsys.readouterr().out
        assert out.startswith("d0 of profile pump, as of 20")
        assert "calibrated on" in out
        assert "pressure\t" in out

    def test_a_learning_device_has_values_but_no_scale(
        self, stopped: Plant, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (device,) = asked(stopped, "show", "[kitchen]")["devices"]
        assert device["channels"] == [{"name": "temperature", "unit": "", "last": 21.5, "unchanged_ticks": 1}]
        assert "temperature\t21.5\t–" in capsys.readouterr().out

    def test_an_unknown_device_is_an_error(self, stopped: Plant) -> None:
        with pytest.raises(DataError, match="no device 'd7' in the snapshot"):
            asked(stopped, "show", "d7")


class TestForget:
    def test_a_running_daemon_is_to_be_stopped_first(self, stopped: Plant) -> None:
        stopped.start()
        with pytest.raises(StoreError, match=r"in use by process .*stop it.* -t sentinel/command/forget/pump/d1 -n"):
            asked(stopped, "forget", "d1")
        stopped.stop()
        assert len(asked(stopped)["devices"]) == 3

    def test_the_device_and_its_alerts_are_gone_and_the_others_stay(self, stopped: Plant) -> None:
        before = asked(stopped)["devices"]
        assert asked(stopped, "forget", "d1") == {"forgotten": ["pump"]}
        assert asked(stopped)["devices"] == [before[0], before[2]]
        stopped.start()
        assert stopped.service is not None
        pump = stopped.service.pipeline.profiles["pump"]
        assert list(pump.table.slot_of) == ["d0"]
        assert not pump.book.open

    def test_a_shelf_is_forgotten_with_its_device(self, stopped: Plant) -> None:
        shelve(stopped, "d1")
        asked(stopped, "forget", "d1")
        stopped.start()
        assert stopped.service is not None
        assert stopped.service.pipeline.profiles["pump"].book.shelved == {}

    def test_what_a_replay_brings_back_is_forgotten_too(self, stopped: Plant) -> None:
        stopped.start()
        stopped.run(d1=fleets.healthy(5, 1, 8))
        stopped.crash()
        asked(stopped, "forget", "d1")
        stopped.start()
        assert stopped.service is not None
        assert list(stopped.service.pipeline.profiles["pump"].table.slot_of) == ["d0"]
        with open_reader(stopped.settings.store.path) as journal:
            entries = [entry for turn in journal.read() for entry in turn.entries if isinstance(entry, Command)]
        assert entries == [Command("forget", "pump", "d1")]

    def test_a_device_whose_reading_waits_for_its_window_leaves_a_store_that_starts(self, plant: Plant) -> None:
        plant.config.write_text(
            CONFIG.replace('learn = "never"\n[profiles.room]', 'align_window = "10s"\n[profiles.room]')
        )
        plant.start()
        plant.send("plant/d9/telemetry", pressure=5.0)
        plant.turn()
        plant.stop()
        asked(plant, "forget", "d9")
        plant.start()
        assert plant.service is not None
        assert "d9" not in plant.service.pipeline.profiles["pump"].table.slot_of

    def test_an_unknown_device_changes_nothing(self, stopped: Plant) -> None:
        with pytest.raises(DataError, match="nothing is changed"):
            asked(stopped, "forget", "d7")
        assert len(asked(stopped)["devices"]) == 3
        with open_reader(stopped.settings.store.path) as journal:
            assert not any(isinstance(entry, Command) for turn in journal.read() for entry in turn.entries)


class TestModels:
    def listed(self, plant: Plant) -> Any:
        out = plant.folder / "models.json"
        assert models(config=plant.config, json_file=out) == 0
        return json.loads(out.read_bytes())["models"]

    def test_a_model_says_what_it_is_and_whether_it_runs(
        self, stopped: Plant, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (row,) = self.listed(stopped)
        assert (row["profile"], row["cell"], row["layers"], row["hidden"]) == ("pump", "lstm", 1, 8)
        assert (row["devices"], row["channels"], row["declared"]) == (4, list(fleets.CHANNELS), False)
        assert (row["runs"], row["next_start"]) == (True, False)
        line = capsys.readouterr().out.splitlines()[1]
        assert line.split("\t")[3:] == ["lstm 1×8", "pressure, flow, heat", "4", "live", "yes"]

    def test_one_that_was_trained_since_runs_from_the_next_start(self, stopped: Plant) -> None:
        stopped.train(declared=True)
        new, old = self.listed(stopped)
        assert (new["runs"], new["next_start"], new["declared"]) == (False, True, True)
        assert (old["runs"], old["next_start"]) == (True, False)
        stopped.start()
        stopped.stop()
        new, old = self.listed(stopped)
        assert (new["runs"], old["runs"]) == (True, False)

    def test_a_damaged_one_is_named_with_the_reason(self, stopped: Plant, capsys: pytest.CaptureFixture[str]) -> None:
        (row,) = self.listed(stopped)
        weights = Path(row["path"]) / "weights.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (row,) = self.listed(stopped)
        assert "is not what its manifest describes" in row["problem"]
        assert "cannot be used: " in capsys.readouterr().out

    def test_one_of_an_earlier_build_is_said_to_be_of_no_use(
        self, stopped: Plant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sentinel.model.archive.FORMAT", archive.FORMAT + 1)
        (row,) = self.listed(stopped)
        assert "is not of this release" in row["problem"]

    def test_none_is_said(self, plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.listed(plant) == []
        assert "no models in " in capsys.readouterr().out


def test_the_command_lines_work(stopped: Plant) -> None:
    for arguments, word in (
        (["devices"], "d0"),
        (["devices", "show", "d1"], "range, firing"),
        (["models"], "lstm 1×8"),
    ):
        command = [sys.executable, "-m", "sentinel", arguments[0], "--config", str(stopped.config), *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert word in done.stdout
