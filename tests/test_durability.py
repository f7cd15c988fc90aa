"""The daemon and its disk: refused at start with reason and remedy, or degraded while running, and back by itself."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import structlog

from sentinel import trainer
from sentinel.adapters.models import list_models
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.store import AnyStore, Store
from sentinel.records import Configuration, Entry, Readings
from sentinel.service import Service
from sentinel.settings import Settings, load_settings
from sentinel.stream.pipeline import ProfileStream
from tests import fleets
from tests.disks import no_room

CONFIG = """
[http]
port = 0
[profiles.pump]
topic = "plant/{device}/telemetry"
time = { path = "ts" }
channels = [{ name = "pressure", min = 0, max = 16 }, "flow", "heat"]
model = { hidden = 8, horizons = [1, 8] }
learn = "never"
[store]
"""


@contextmanager
def read_only(store: AnyStore) -> Iterator[None]:
    """Within the block SQLite refuses every write, as where a disk was remounted read-only after an error."""
    assert isinstance(store, Store)
    store.journal._connection.execute("PRAGMA query_only = 1")
    try:
        yield
    finally:
        store.journal._connection.execute("PRAGMA query_only = 0")


class Daemon:
    """In this process, on a real store."""

    def __init__(self, folder: Path, store: str = "", broker: MemoryBroker | None = None) -> None:
        (folder / "sentinel.toml").write_text(CONFIG + store)
        self.settings: Settings = load_settings(folder / "sentinel.toml")
        self.now = fleets.START
        self.broker = broker or MemoryBroker()
        self.service = Service(self.settings, broker=self.broker, clock=lambda: self.now, steady=lambda: self.now)
        self.service.restore()
        self.service.start()
        self.turn()

    @property
    def stream(self) -> ProfileStream:
        return self.service.pipeline.profiles["pump"]

    def send(self, first: int, count: int = 1) -> None:
        for t in range(first, first + count):
            body = orjson.dumps(fleets.payload(t, fleets.healthy(t + 1)[t]))
            self.broker.publish_from_outside("plant/d0/telemetry", body)
            self.turn(1.0)

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        for _ in range(3):
            self.service.turn(0.0)

    def snapshot(self) -> None:
        self.service._snapshot()
        self.service._writer.wait()

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.broker.retained["sentinel/status"].payload)
        return told

    def metric(self, name: str) -> float:
        return self.service.registry.get_sample_value(name) or 0.0

    def power_cut(self) -> None:
        """End as a power cut ends it: what was not asked to be on the disk is gone."""
        path = self.settings.store.path
        log = (path / "journal.sqlite").read_bytes(), (path / "snapshot.sqlite-wal").read_bytes()
        self.service.store.close()
        (path / "journal.sqlite").write_bytes(log[0])
        (path / "journal.sqlite-wal").unlink(missing_ok=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.service.shutdown()


class TestWhileRunning:
    @pytest.mark.parametrize("away", ["full", "read-only"])
    def test_a_disk_that_takes_nothing_is_said_everywhere_and_ends_by_itself(self, daemon: Daemon, away: str) -> None:
        daemon.send(0, 5)
        committed = daemon.metric("sentinel_journal_last_commit_timestamp_seconds")
        with no_room() if away == "full" else read_only(daemon.service.store):
            daemon.send(5, 3)
            assert daemon.status()["state"] == "degraded"
            assert "journal.sqlite" in daemon.status()["reason"]
            ready, reasons = daemon.service.ready()
            assert (ready, reasons[0].startswith("journal: ")) == (False, True)
            assert daemon.metric("sentinel_journal_last_commit_timestamp_seconds") == committed
            assert daemon.service.health()[0]
        daemon.turn(1.0)
        daemon.turn(1.0)
        assert daemon.status()["state"] == "online"
        assert daemon.service.store.journal.readings_count("pump") == 8
        assert daemon.metric("sentinel_journal_last_commit_timestamp_seconds") > committed

    def test_a_snapshot_that_fails_is_said_and_the_next_one_ends_it(self, daemon: Daemon) -> None:
        daemon.send(0, 2)
        with no_room():
            daemon.snapshot()
            daemon.turn(1.0)
            assert daemon.status()["state"] == "degraded"
            assert daemon.status()["reason"].startswith("snapshot: ")
            assert daemon.metric("sentinel_snapshot_errors_total") == 1
        daemon.snapshot()
        daemon.turn(1.0)
        assert daemon.status()["state"] == "online"

    def test_no_snapshot_is_taken_of_what_the_journal_could_not_take(self, daemon: Daemon) -> None:
        daemon.send(0, 2)
        daemon.snapshot()
        with no_room():
            daemon.send(2)
        # The journal is still away where the snapshot's file would be written.
        daemon.snapshot()
        image = daemon.service.store.snapshot.load()
        assert image is not None
        (row,) = image.rows
        fresh = ProfileStream(daemon.stream.spec)
        fresh.restore(json.loads(image.meta)["profiles"]["pump"], None, [row[1:]])
        assert fresh.table.ticks.max() == 2

    def test_a_promotion_waits_for_the_journal(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        promoted: list[str] = []
        monkeypatch.setattr(daemon.service._learners["pump"], "poll", lambda _now: "v1")
        monkeypatch.setattr(daemon.service, "_promote", lambda _name, version, _now: promoted.append(version))
        with no_room():
            daemon.send(0, 2)
        assert promoted == []
        daemon.turn(1.0)
        daemon.turn(1.0)
        assert promoted


class TestRetention:
    def test_what_is_older_than_max_age_goes_once_a_snapshot_stands_for_it(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path, 'max_age = "20s"')
        daemon.send(0, 50)
        assert daemon.service.store.journal.first() == 1
        daemon.snapshot()
        daemon.turn(1.0)
        held = [turn.now for turn in daemon.service.store.journal.read()]
        assert held[0] == daemon.now - 20
        daemon.service.shutdown()

    def test_trimming_keeps_up_with_any_rate(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path, 'max_bytes = "2MiB"')
        journal = daemon.service.store.journal
        block = Readings(
            "pump", fleets.CHANNELS, ["d0"] * 4000, np.arange(4000.0), np.ones((4000, 3)), np.zeros(4000, np.int64)
        )
        for at in range(100):
            journal.append([block], daemon.now + at)
        daemon.service._position = journal.last()
        daemon.snapshot()
        before = journal.bytes()
        daemon.service._trim(daemon.now)
        assert before - journal.bytes() > 1 << 20, "more than a step of it in one second's chores"
        for _ in range(20):
            daemon.service._trim(daemon.now)
        assert journal.bytes() <= 2.1 * (1 << 20)
        daemon.service.shutdown()

    def test_models_that_a_retained_promotion_names_are_kept_and_go_with_it(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path, 'max_age = "1h"')
        versions = []
        for at in range(6):
            learned = fleets.learned()
            stream = ProfileStream(daemon.stream.spec)
            stream.announce(f"x{at}")
            trainer.adopt(stream, learned)
            versions.append(trainer.save(daemon.service.store.models, stream, learned.detector, 1))
            os.utime(daemon.service.store.models / "pump" / versions[-1] / "manifest.json", (at, at))
            daemon.service._promote("pump", versions[-1], daemon.now)
            daemon.service._writer.wait()
            daemon.send(at)
        saved = {model.version for model in list_models(daemon.service.store.models, "pump")}
        assert saved == set(versions), "a replay would load each of them"
        daemon.now += 7200.0
        daemon.snapshot()
        daemon.send(7)
        daemon.turn(1.0)
        assert daemon.service.store.journal.promotions("pump") == []
        assert [model.version for model in list_models(daemon.service.store.models, "pump")] == versions[:2:-1]
        daemon.service.shutdown()

    def test_the_journal_goes_on_from_a_promotion_until_a_snapshot_stands_for_it(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path, 'max_age = "1s"')
        daemon.send(0, 5)
        daemon.snapshot()
        daemon.service._promoted = daemon.service.store.journal.last() + 1
        daemon.turn(60.0)
        assert daemon.service.store.journal.first() == 1
        daemon.service.shutdown()


class TestWithoutDurability:
    def test_a_power_cut_goes_back_to_the_newest_snapshot(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path, 'durability = "none"')
        daemon.send(0, 5)
        daemon.snapshot()
        daemon.send(5, 5)
        daemon.power_cut()
        with structlog.testing.capture_logs() as said:
            again = Daemon(tmp_path, 'durability = "none"')
        assert again.stream.table.ticks.max() == 5
        assert "the journal has lost its end: the snapshot is newer" in [line["event"] for line in said]
        again.send(10, 2)
        position = again.service.store.journal.last()
        assert position > again.service.store.snapshot.load().position  # type: ignore[union-attr]
        again.service.shutdown()

    def test_a_killed_process_loses_nothing(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path, 'durability = "none"')
        daemon.send(0, 5)
        daemon.service.store.close()
        again = Daemon(tmp_path, 'durability = "none"')
        assert again.stream.table.ticks.max() == 5
        again.service.shutdown()


def test_a_stop_in_the_middle_of_the_replay_loses_nothing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.send(0, 30)
    daemon.service.store.close()
    hasty = Service(daemon.settings, broker=daemon.broker, clock=lambda: daemon.now, steady=lambda: daemon.now)
    hasty.stop()
    hasty.restore()
    hasty.shutdown()
    again = Daemon(tmp_path)
    assert again.stream.table.ticks.max() == 30
    again.service.shutdown()


def test_a_log_that_was_cut_off_is_read_as_far_as_it_is_whole_and_the_daemon_says_what_it_has(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.send(0, 30)
    path = daemon.settings.store.path
    main, log = ((path / f"journal.sqlite{end}").read_bytes() for end in ("", "-wal"))
    daemon.service.store.close()
    (path / "journal.sqlite").write_bytes(main)
    (path / "journal.sqlite-wal").write_bytes(log[: len(log) // 2])
    with structlog.testing.capture_logs() as said:
        again = Daemon(tmp_path)
    (line,) = (line for line in said if line["event"] == "restored")
    assert 5 < line["replayed"] < 30
    assert again.stream.table.ticks.max() == line["replayed"]
    again.service.shutdown()


def test_the_settings_in_force_are_in_the_journal_at_the_start_and_only_where_they_change(tmp_path: Path) -> None:
    def held(daemon: Daemon) -> list[Entry]:
        return [entry for turn in daemon.service.store.journal.read() for entry in turn.entries]

    daemon = Daemon(tmp_path)
    assert held(daemon) == [Configuration(daemon.stream.spec)]
    daemon.service.shutdown()
    for store in ("", 'max_age = "1h"'):
        daemon = Daemon(tmp_path, store)
        assert len(held(daemon)) == 1, "nothing of the stream changed"
        daemon.service.shutdown()
    daemon = Daemon(tmp_path, '[profiles.room]\ntopic = "room/{device}"')
    assert [entry.profile for entry in held(daemon) if isinstance(entry, Configuration)] == ["pump", "room"]
    daemon.service.shutdown()


# --- refused at start, by the command itself ---


def foreign(state: Path) -> None:
    (state / "journal.sqlite").unlink()
    connection = sqlite3.connect(state / "journal.sqlite")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def newer(state: Path) -> None:
    connection = sqlite3.connect(state / "snapshot.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def torn(name: str) -> Callable[[Path], None]:
    def tear(state: Path) -> None:
        file = state / name
        file.write_bytes(file.read_bytes()[:5000])

    return tear


def garbled(state: Path) -> None:
    connection = sqlite3.connect(state / "snapshot.sqlite")
    connection.execute("UPDATE image SET meta = '{'")
    connection.commit()
    connection.close()


def unreadable(state: Path) -> None:
    (state / "meta").write_bytes(b"\xff")


def started(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sentinel", "run", "--config", "sentinel.toml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], remedy: str) -> None:
    assert done.returncode == 1, done.stderr
    starting, *told = done.stderr.splitlines()
    assert json.loads(starting)["event"] == "starting"
    assert len(told) == 1, "a reason and a remedy, no traceback"
    assert told[0].startswith("error: ")
    assert remedy in told[0]


@pytest.mark.parametrize(
    ("break_it", "remedy"),
    [
        (foreign, "belongs to another program; move it away or choose another [store] path"),
        (newer, "upgrade sentinel or choose another [store] path"),
        (torn("journal.sqlite"), "it is damaged; restore it from a backup or move the store away"),
        (torn("snapshot.sqlite"), "it is damaged; restore it from a backup or move the store away"),
        (garbled, "move "),
        (unreadable, "restore it from a backup, or move the store away"),
    ],
    ids=["foreign", "newer", "torn journal", "torn snapshot", "garbled snapshot", "unreadable identity"],
)
def test_a_store_that_cannot_be_used_is_refused_at_start(
    break_it: Callable[[Path], None], remedy: str, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path)
    daemon.send(0, 40)
    daemon.service.shutdown()
    break_it(tmp_path / "state")
    assert_refused(started(tmp_path), remedy)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
        yield disk


def test_a_full_disk_is_refused_at_start(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "sentinel.toml").write_text(CONFIG + 'path = "./disk/state"\n')
    (small_disk / "ballast").write_bytes(bytes((4 << 20) - 8192))
    assert_refused(started(tmp_path), "room")


def test_a_read_only_disk_is_refused_at_start(small_disk: Path, tmp_path: Path) -> None:
    daemon = Daemon(small_disk)
    daemon.send(0, 5)
    daemon.service.shutdown()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (tmp_path / "sentinel.toml").write_text(CONFIG + 'path = "./disk/state"\n')
    assert_refused(started(tmp_path), "this user may write")


def test_a_disk_that_fills_up_while_running_is_said_and_ends_when_there_is_room(small_disk: Path) -> None:
    daemon = Daemon(small_disk)
    daemon.send(0, 5)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(4096)):
            pass
    for t in range(5, 400):
        daemon.send(t)
        if not daemon.service.ready()[0]:
            break
    daemon.turn(1.0)
    assert daemon.status()["state"] == "degraded"
    assert "full" in daemon.status()["reason"]
    count = daemon.service.store.journal.readings_count("pump")
    ballast.unlink()
    daemon.turn(1.0)
    daemon.turn(1.0)
    assert daemon.status()["state"] == "online"
    assert daemon.service.store.journal.readings_count("pump") == count + 1
    daemon.service.shutdown()
