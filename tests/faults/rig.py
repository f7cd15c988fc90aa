"""A broker, `sentinel run` beside it, a publisher that keeps books, a subscriber; and what all of it came to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from sentinel.adapters.store import open_reader, open_snapshot
from sentinel.commands._publisher import Publisher
from sentinel.errors import Unavailable
from sentinel.records import Ints, Readings
from sentinel.settings import MqttSettings
from sentinel.stream.devices import DeviceTable
from tests.brokers import Link, Mosquitto, wait_until
from tests.faults.course import Course, save_model
from tests.servers import free_port

Figures = dict[str, int | float | str]
"""What a row saw, for its line."""

DROPPED = "$SYS/broker/publish/messages/dropped"
BEHIND = 1.0  # seconds that a feed makes up for, where the machine was busy
PATIENCE = 120.0  # seconds; a busy machine is no fault
CONFIG = """
[mqtt]
port = {broker}
keepalive = {keepalive}
{mqtt}
[http]
port = {http}
[store]
path = "{store}"
snapshot_interval = "{snapshot_interval}"
[profiles.pump]
topic = "plant/{{device}}/telemetry"
time = {{ path = "ts" }}
channels = [{{ name = "pressure", unit = "bar", min = 0, max = 16 }}, "flow", "heat"]
model = {{ hidden = 8, horizons = [1, 8] }}
learn = "{learn}"
silence_after = "{silence_after}"
max_devices = {max_devices}
{more}
"""
USUAL: Mapping[str, object] = {
    "keepalive": 60,
    "mqtt": "",
    "store": "state",
    "snapshot_interval": "2s",
    "learn": "never",
    "silence_after": "off",
    "max_devices": 100_000,
    "more": "",
}
# Of a device's row, what depends on the readings alone and not on when they came.
TIMELESS = ("last_time", "interval", "ticks", "last_start", "score", "onset", "open", "last", "run", "known", "at")


class Daemon:
    """`sentinel run` in `folder`, on a store that holds a model.

    Args:
        settings: over `USUAL`, for `CONFIG`.
        model: whether the store is given a trained model.
    """

    def __init__(self, folder: Path, broker: int, settings: Mapping[str, object] | None = None, *, model: bool = True):
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log_file = folder / "daemon.log"
        self._settings = {**USUAL, "broker": broker, "http": self.port, **(settings or {})}
        self.store = folder / str(self._settings["store"])
        self.configure()
        if model:
            save_model(self.store)

    def configure(self, **settings: object) -> None:
        """Write the configuration, with some settings changed."""
        self._settings |= settings
        (self.folder / "sentinel.toml").write_text(CONFIG.format(**self._settings))

    def launch(self, *within: str) -> None:
        """Start the process, by way of the command `within` if one is given."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "sentinel", "run", "--config", "sentinel.toml"],
                cwd=self.folder,
                stderr=log,
                stdout=log,
            )

    def start(self) -> None:
        """Start the process, and wait until nothing that is published is missed."""
        self.launch()
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until nothing that is published is missed."""
        wait_until(lambda: self.get("/readyz")[0] == 200 or not self.alive, PATIENCE, "the daemon is ready")
        assert self.alive, f"the daemon ended:\n{self.log[-3000:]}"

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        """What it wrote so far, over all its lives."""
        return self.log_file.read_text(errors="replace")

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that say so."""
        lines = (line for line in self.log.splitlines() if line.startswith("{"))
        return [said for line in lines if (said := json.loads(line))["event"] == event]

    def kill(self) -> None:
        """Kill -9."""
        self.signal(signal.SIGKILL)
        self.await_end()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.await_end()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def await_end(self) -> int:
        """Wait for the process; returns its exit status."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of its answer; 0: none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> dict[str, float]:
        """Every series and its value; empty: it does not answer."""
        lines = (line for line in self.get("/metrics")[1].splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, series: str) -> float:
        """The value of one series; 0: it is not there."""
        return self.metrics().get(series, 0.0)

    def messages(self) -> int:
        """Messages that it counted in this life, whatever their outcome."""
        return int(sum(v for name, v in self.metrics().items() if name.startswith("sentinel_messages_total")))

    def rss(self) -> float:
        """Resident memory, in MB."""
        return self._status("VmRSS:") / 1024

    def threads(self) -> int:
        """Threads."""
        return self._status("Threads:")

    def descriptors(self) -> int:
        """Open file descriptors."""
        assert self.process is not None
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def _status(self, key: str) -> int:
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])


class Feed:
    """Publishes a course at QoS 1, in order, from a thread; again from the first unacknowledged reading if it must.

    Args:
        rate: readings a second, or as many as the broker takes; no test's outcome depends on it.
        qos: at 0, what was handed to the system counts as acknowledged.
        in_flight: readings without an acknowledgement, at most.

    Attributes:
        acknowledged: readings that the broker acknowledged: the numbers below this.
        times_away: connections that broke.
    """

    def __init__(self, port: int, course: Course, rate: float, qos: int = 1, in_flight: int = 200) -> None:
        self.acknowledged = 0
        self.times_away = 0
        self.course = course
        self._settings = MqttSettings(host="127.0.0.1", port=port)
        self._rate = rate
        self._qos = qos
        self._in_flight = in_flight
        self._released = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def release(self, upto: int | None = None) -> None:
        """Let the readings below a number go; None: all."""
        self._released = self.course.count if upto is None else min(upto, self.course.count)

    def finish(self) -> None:
        """Let all go, and wait until all are acknowledged."""
        self.release()
        wait_until(lambda: self.acknowledged == self.course.count, 2 * PATIENCE, "everything is acknowledged")
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.is_set():
            began = self.acknowledged
            try:
                with Publisher(self._settings, qos=self._qos, in_flight=self._in_flight) as publisher:
                    self._publish(publisher, began)
            except Unavailable:
                self.times_away += 1
                self._ended.wait(0.05)

    def _publish(self, publisher: Publisher, began: int) -> None:
        course, at = self.course, began
        pace, due = max(int(self._rate / 50), 1), time.monotonic()
        try:
            while not self._ended.is_set():
                upto = min(at + pace, self._released)
                publisher.publish((course.topic(n), course.payload(n)) for n in range(at, upto))
                at = upto
                due = max(due + pace / self._rate, time.monotonic() - BEHIND)
                publisher.sleep_until(due)
                self.acknowledged = began + (publisher.acknowledged if self._qos else publisher.sent)
        finally:
            self.acknowledged = began + (publisher.acknowledged if self._qos else publisher.sent)


class Watcher:
    """An ordinary subscriber to what the daemon says, with a session that outlives the broker."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, bytes]] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="watcher", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe([("sentinel/#", 1), (DROPPED, 1)])
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _, __, message: self.got.append((message.topic, bytes(message.payload)))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE)

    def alerts(self) -> set[tuple[str, int, str]]:
        """Id, seq and kind of every transition that came."""
        events = [json.loads(payload) for topic, payload in self.got if topic.startswith("sentinel/events/")]
        return {(event["id"], event["seq"], event["kind"]) for event in events}

    def retained(self) -> dict[str, str]:
        """The id of the alert that each retained topic now names."""
        last = {topic: payload for topic, payload in self.got if topic.startswith("sentinel/alerts/")}
        return {topic: json.loads(payload)["id"] for topic, payload in last.items() if payload}

    def states(self) -> list[str]:
        """What the status topic said, in order."""
        return [json.loads(payload)["state"] for topic, payload in self.got if topic == "sentinel/status"]

    def dropped(self) -> int:
        """Messages that the broker says it dropped."""
        return int(next((payload for topic, payload in reversed(self.got) if topic == DROPPED), 0))

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()


class Rig:
    """All of it, for the time of a `with`: started, and taken down whatever happened.

    Args:
        settings, model: of the daemon.
        broker: further lines of the broker's configuration.
        linked: the daemon reaches the broker through `link`.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object] | None = None,
        *,
        model: bool = True,
        broker: Sequence[str] = (),
        linked: bool = False,
    ) -> None:
        (folder / "broker").mkdir(parents=True)
        self.broker = Mosquitto(folder / "broker", options=broker)
        self.link = Link(self.broker.port)
        port = self.link.port if linked else self.broker.port
        self.daemon = Daemon(folder, port, settings, model=model)
        self.feeds: list[Feed] = []

    def __enter__(self) -> Self:
        self.broker.start()
        self.watcher = Watcher(self.broker.port)
        return self

    def __exit__(self, *_: object) -> None:
        for feed in self.feeds:
            feed.close()
        if self.daemon.alive:
            self.daemon.kill()
        self.watcher.close()
        self.link.close()
        self.broker.stop()

    def feed(self, course: Course, rate: float, qos: int = 1, in_flight: int = 200) -> Feed:
        """Begin to publish a course; nothing goes before it is released."""
        self.feeds.append(Feed(self.broker.port, course, rate, qos, in_flight))
        return self.feeds[-1]

    def end(self) -> None:
        """Wait until the daemon has dealt with all that the broker holds for it, stop it, hear its last words."""
        self.await_quiet()
        assert self.daemon.stop() == 0, self.daemon.log[-3000:]
        wait_until(lambda: self.watcher.states()[-1:] == ["offline"], PATIENCE, "the daemon says goodbye")

    def await_quiet(self) -> None:
        """Wait until the daemon is ready and a last message, which is no reading, came through behind all others."""
        self.daemon.await_ready()
        series = 'sentinel_messages_total{outcome="no_channel",profile="pump"}'
        before = self.daemon.metric(series)
        with Publisher(MqttSettings(host="127.0.0.1", port=self.broker.port)) as publisher:
            publisher.publish([("plant/mark/telemetry", b'{"ts": 1}')])
            publisher.drain()
        wait_until(lambda: self.daemon.metric(series) > before, 2 * PATIENCE, "all that was published is taken")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left behind.

    Attributes:
        counts: how often each reading is in the journal, by number.
        devices: by device, of its row in the snapshot what does not depend on when the readings came.
        alerts: id, seq and kind of every transition that was published.
        retained: the alert that each retained topic names.
    """

    counts: Ints
    devices: dict[str, tuple[bytes, ...]]
    alerts: set[tuple[str, int, str]]
    retained: dict[str, str]


def result_of(rig: Rig, course: Course) -> Result:
    """The books after `Rig.end`."""
    store = rig.daemon.store
    return Result(journalled(store, course), devices_of(store), rig.watcher.alerts(), rig.watcher.retained())


def journalled(store: Path, course: Course) -> Ints:
    """How often each reading of a course is in a journal, by number."""
    numbers: list[int] = []
    with open_reader(store) as journal:
        for turn in journal.read():
            for entry in turn.entries:
                if isinstance(entry, Readings):
                    numbers += map(course.number, entry.device, entry.time.tolist())
    found = np.array(numbers, dtype=np.int64)
    return np.bincount(found[(found >= 0) & (found < course.count)], minlength=course.count)


def devices_of(store: Path) -> dict[str, tuple[bytes, ...]]:
    """By device, its row in the newest snapshot without the times of receipt."""
    with closing(open_snapshot(store)) as snapshot:
        image = snapshot.load()
        assert image is not None
        channels = len(orjson.loads(image.meta)["profiles"]["pump"]["channels"])
        width = DeviceTable.width(channels)
        table, out = DeviceTable(channels, 1), {}
        slot = np.array([table.add("any")])
        for _, device, row in image.rows:
            table.unpack(slot, np.frombuffer(row[:width], np.uint8)[None], np.arange(channels))
            out[device] = (*(getattr(table, name)[slot].tobytes() for name in TIMELESS), row[width:])
    return out


@cache
def undisturbed(count: int) -> Result:
    """What a course comes to where nothing breaks."""
    with tempfile.TemporaryDirectory() as place, Rig(Path(place)) as rig:
        rig.daemon.start()
        course = Course(count)
        rig.feed(course, 1e5).finish()
        rig.end()
        return result_of(rig, course)


def check_books(rig: Rig, course: Course) -> Figures:
    """After `Rig.end`: everything acknowledged is kept, and came to the same as where nothing breaks."""
    got, want = result_of(rig, course), undisturbed(course.count)
    assert (want.counts == 1).all(), "the undisturbed run lost or doubled readings"
    assert len(want.alerts) > 0, "the undisturbed run has no alert to compare"
    lost = np.flatnonzero(got.counts == 0)
    assert not len(lost), f"{len(lost)} acknowledged readings are not in the journal: {lost[:10]}"
    differing = [device for device in want.devices if got.devices.get(device) != want.devices[device]]
    assert not differing, f"states differ from the undisturbed run's: {differing}"
    assert got.retained == want.retained, "retained alerts differ"
    assert got.alerts == want.alerts, f"alerts missing: {want.alerts - got.alerts}, extra: {got.alerts - want.alerts}"
    repeated = int((got.counts - 1).sum())
    return {"acknowledged": course.count, "lost": 0, "journalled again": repeated, "alerts": len(got.alerts)}
