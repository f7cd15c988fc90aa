"""The daemon among Sparkplug edge nodes, through a real mosquitto; its journal run again."""

import csv
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from typer.testing import CliRunner

from sentinel.adapters.mqtt.client import MqttBroker
from sentinel.commands.app import app
from sentinel.service import Service
from sentinel.settings import load_settings
from tests.brokers import Mosquitto, PlainClient, plain_client, wait_until
from tests.edges import DOUBLE, EdgeNode

CONFIG = """
[mqtt]
host = "127.0.0.1"
port = {port}
rebirth = {rebirth}
host_id = "scada"
[http]
port = 0
[store]
path = "./state"
[profiles.plc]
topic = "spBv1.0/#"
format = "sparkplug"
learn = "never"
"""
DEVICE, STATE = "plant/e1/d1", "spBv1.0/STATE/scada"


class Edge:
    """A paho client that is an edge node with one device: it has its death as last will, and obeys rebirth."""

    def __init__(self, port: int) -> None:
        self.node = EdgeNode()
        self.commands: list[bytes] = []
        topic, body = self.node.death(time.time())

        def setup(client: paho.Client) -> None:
            client.will_set(topic, body, 1)

        self.client = PlainClient(port, "spBv1.0/plant/NCMD/e1", setup=setup)

    def send(self, *messages: tuple[str, bytes]) -> None:
        for topic, body in messages:
            self.client.publish(topic, body, 0)

    def birth(self) -> None:
        values = {"temp": (DOUBLE, 20.0)}
        self.send(self.node.birth(time.time(), values), self.node.birth(time.time(), values, "d1"))

    def data(self, value: float) -> None:
        self.send(self.node.data(time.time(), {"temp": (DOUBLE, value)}, "d1"))

    def lose(self) -> None:
        self.node.data(time.time(), {"temp": (DOUBLE, 0.0)}, "d1")

    def asked(self) -> int:
        return sum(b"Node Control/Rebirth" in m.payload for m in self.client.got)

    def kill(self) -> None:
        """As where the power goes: the broker tells its last will."""
        self.client._client._sock_close()
        self.client._client.loop_stop()


class Daemon:
    """A service on a real store and broker, in a thread."""

    def __init__(self, folder: Path, port: int, *, rebirth: bool) -> None:
        config = folder / "sentinel.toml"
        config.write_text(CONFIG.format(port=port, rebirth=str(rebirth).lower()))
        self.service = Service(load_settings(config))
        self.service.restore()
        self.service.start()
        self._running = True
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def _turn(self) -> None:
        while self._running:
            self.service.turn(0.02)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.registry.get_sample_value(name, labels) or 0.0

    def last(self) -> float:
        """Last value of the device's channel."""
        stream = self.service.pipeline.profiles["plc"]
        return float(stream.table.last[stream.table.slot_of.get(DEVICE, 0)][:1].sum())

    def stop(self) -> None:
        self._halt()
        self.service.shutdown()

    def kill(self) -> None:
        """What is left of kill -9: the journal, and a connection that broke."""
        self._halt()
        broker = self.service.broker
        assert isinstance(broker, MqttBroker)
        assert broker._wire is not None
        for end in (broker._wire, broker._wake_read, broker._wake_write):
            end.close()
        self.service.store.close()

    def _halt(self) -> None:
        self._running = False
        self._thread.join()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    (tmp_path / "broker").mkdir()
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def start(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(*, rebirth: bool = True) -> Daemon:
        made.append(Daemon(tmp_path, mosquitto.port, rebirth=rebirth))
        wait_until(lambda: made[-1].service.ready()[0] or made[-1].service.broker.subscribed, what="subscribed")
        return made[-1]

    yield make
    if made and made[-1]._running:
        made[-1].stop()


def states(client: PlainClient) -> list[dict[str, Any]]:
    return [json.loads(m.payload) for m in client.got if m.topic == STATE]


def test_births_data_gaps_deaths_and_a_rebirth_that_is_asked_for(
    start: Callable[..., Daemon], mosquitto: Mosquitto
) -> None:
    daemon, edge = start(), Edge(mosquitto.port)
    edge.birth()
    edge.data(21.0)
    wait_until(lambda: daemon.last() == 21.0, what="data by alias")
    assert edge.asked() == 0
    edge.lose()
    edge.data(22.0)
    wait_until(lambda: edge.asked() == 1, what="a rebirth is asked for")
    assert daemon.metric("sentinel_sparkplug_gaps_total", profile="plc") == 1
    edge.birth()
    edge.data(23.0)
    wait_until(lambda: daemon.last() == 23.0)
    edge.lose()
    edge.data(24.0)
    wait_until(lambda: daemon.metric("sentinel_sparkplug_gaps_total", profile="plc") == 2)
    assert daemon.metric("sentinel_sparkplug_rebirths_total", profile="plc") == 1, "not so soon again"
    edge.kill()
    wait_until(lambda: daemon.metric("sentinel_devices", profile="plc", state="offline") == 2, what="offline")
    again = Edge(mosquitto.port)
    again.birth()
    wait_until(lambda: daemon.metric("sentinel_devices", profile="plc", state="offline") == 0, what="back")
    again.client.close()


def test_nothing_is_asked_of_nodes_unless_it_is_allowed(start: Callable[..., Daemon], mosquitto: Mosquitto) -> None:
    daemon, edge = start(rebirth=False), Edge(mosquitto.port)
    edge.node.birth(0, {"temp": (DOUBLE, 1.0)}, "d1")
    edge.data(1.0)
    wait_until(lambda: daemon.metric("sentinel_messages_total", profile="plc", outcome="unborn") == 1)
    edge.client.close()
    assert edge.asked() == 0


def test_the_hosts_state_is_told_and_the_last_will_ends_it(start: Callable[..., Daemon], mosquitto: Mosquitto) -> None:
    with plain_client(mosquitto.port, "spBv1.0/STATE/#") as watcher:
        daemon = start()
        wait_until(lambda: states(watcher), what="online")
        first = states(watcher)[0]
        assert first["online"] is True
        watcher.publish(STATE, b'{"online": false, "timestamp": 1}', retain=True)
        wait_until(lambda: len(states(watcher)) == 3, what="said again")
        assert states(watcher)[2] == first
        daemon.kill()
        wait_until(lambda: len(states(watcher)) == 4, what="the last will")
        assert states(watcher)[3] == first | {"online": False}
        daemon = start()
        wait_until(lambda: len(states(watcher)) == 5, what="online again")
        assert states(watcher)[4]["timestamp"] > first["timestamp"]
        daemon.stop()
        wait_until(lambda: len(states(watcher)) == 6, what="a clean end")
        assert states(watcher)[5]["online"] is False
    with plain_client(mosquitto.port, "sentinel/status") as late:
        wait_until(lambda: late.got)
        assert json.loads(late.got[0].payload) == {"state": "offline"}


def test_after_a_kill_data_are_known_by_alias_and_the_journal_gives_the_same(
    start: Callable[..., Daemon], mosquitto: Mosquitto, tmp_path: Path
) -> None:
    daemon, edge = start(), Edge(mosquitto.port)
    edge.birth()
    for value in range(5):
        edge.data(float(value))
    wait_until(lambda: daemon.last() == 4.0)
    daemon.kill()
    daemon = start()
    for value in range(30, 35):
        edge.data(float(value))
    wait_until(lambda: daemon.last() == 34.0, what="data by alias")
    wait_until(lambda: daemon.metric("sentinel_messages_total", profile="plc", outcome="accepted") == 5)
    assert daemon.metric("sentinel_sparkplug_gaps_total", profile="plc") == 0
    assert edge.asked() == 0
    edge.kill()
    wait_until(lambda: daemon.metric("sentinel_devices", profile="plc", state="offline") == 2)
    daemon.stop()
    arguments = ["backtest", "--from-journal", "--config", str(tmp_path / "sentinel.toml"), "--profile", "plc"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "past")])
    assert done.exit_code == 0, done.output
    with (tmp_path / "past" / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["device"] == DEVICE]
    key = next(name for name in rows[0] if name.startswith("temp"))
    assert [float(row[key]) for row in rows] == [20.0, 0.0, 1.0, 2.0, 3.0, 4.0, 30.0, 31.0, 32.0, 33.0, 34.0]
    listed = CliRunner().invoke(
        app, ["devices", "--config", str(tmp_path / "sentinel.toml"), "--json", str(tmp_path / "d.json")]
    )
    assert listed.exit_code == 0, listed.output
    assert {d["state"] for d in json.loads((tmp_path / "d.json").read_text())["devices"]} == {"offline"}
