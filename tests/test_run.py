"""The daemon as a user runs it: a real mosquitto, `sentinel` as a process, a real Prometheus."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from sentinel.adapters.sinks import load_schema
from tests import fleets
from tests.brokers import Mosquitto, PlainClient, plain_client, wait_until
from tests.servers import Prometheus, binary, dashboard_queries, free_port, rule_queries

CONFIG = """
[mqtt]
host = "127.0.0.1"
port = {broker}
[http]
host = "127.0.0.1"
port = {http}
[store]
path = "./state"
snapshot_interval = "2s"
[profiles.pump]
topic = "plant/{{device}}/telemetry"
time = {{ path = "time", unit = "s" }}
channels = [
  {{ name = "pressure", unit = "bar", min = 0, max = 16 }},
  {{ name = "flow", unit = "m3/h" }},
  "heat",
]
alert_budget = "1/week"
[profiles.pump.model]
hidden = 16
horizons = [1, 16]
"""
NORMAL, TEST, FAULT = 600, 400, slice(150, 190)
RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "sentinel.rules.yml"


def sentinel(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sentinel", *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, check=True
    )


@dataclass
class Daemon:
    """`sentinel run` in `folder`, and what a subscriber saw of it."""

    folder: Path
    port: int
    broker: Mosquitto
    process: subprocess.Popen[bytes]
    client: PlainClient

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, line: str) -> float:
        found = [text for text in self.get("/metrics")[1].splitlines() if text.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    def events(self) -> list[dict[str, object]]:
        return [json.loads(m.payload) for m in self.client.got if m.topic.startswith("sentinel/events/")]


def replay(daemon: Daemon, file: str, rate: int) -> None:
    address = f"mqtt://127.0.0.1:{daemon.broker.port}"
    options = ("--rate", str(rate), "--label-column", "label", "--device", "test")
    sentinel("replay", file, "--broker", address, "--topic", "plant/{device}/telemetry", *options, cwd=daemon.folder)


def settle(daemon: Daemon) -> None:
    """Let the series of devices, which are renewed once a second, catch up with the last reading."""
    turns = daemon.metric("sentinel_turn_seconds_count")
    wait_until(lambda: daemon.get("/readyz")[0] == 200, 60)
    time.sleep(2.5)
    assert daemon.metric("sentinel_turn_seconds_count") >= turns


def launch(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "daemon.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sentinel", "run", "--config", "sentinel.toml"], cwd=folder, stderr=log, stdout=log
        )


def write(path: Path, values: np.ndarray, start: float, label: slice | None) -> None:
    with path.open("w") as file:
        out = csv.writer(file)
        out.writerow(["time", *fleets.CHANNELS, "label"])
        for t, row in enumerate(values.tolist()):
            out.writerow([start + t, *row, int(label is not None and label.start <= t < label.stop)])


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    binary("mosquitto")
    folder = tmp_path_factory.mktemp("daemon")
    values = fleets.healthy(NORMAL + TEST, 0, 3)
    values[NORMAL + FAULT.start : NORMAL + FAULT.stop, 1] += 15.0
    write(folder / "normal.csv", values[:NORMAL], fleets.START, None)
    write(folder / "test.csv", values[NORMAL:], fleets.START + NORMAL, FAULT)
    (folder / "broker").mkdir()
    with Mosquitto(folder / "broker") as broker:
        port = free_port()
        (folder / "sentinel.toml").write_text(CONFIG.format(broker=broker.port, http=port))
        sentinel(
            "train",
            "--config",
            "sentinel.toml",
            "--profile",
            "pump",
            "normal.csv",
            "--label-column",
            "label",
            cwd=folder,
        )
        with plain_client(broker.port, "sentinel/#") as client:
            daemon = Daemon(folder, port, broker, launch(folder), client)
            try:
                wait_until(lambda: daemon.get("/readyz")[0] == 200, 60)
                replay(daemon, "test.csv", 400)
                wait_until(
                    lambda: daemon.metric('sentinel_messages_total{outcome="accepted",profile="pump"}') >= TEST, 60
                )
                yield daemon
            finally:
                daemon.process.kill()
                daemon.process.wait()


def test_a_recorded_fault_raises_an_alert_inside_it_that_is_retained_and_cleared_after(daemon: Daemon) -> None:
    wait_until(lambda: any(event["state"] == "resolved" for event in daemon.events()), 30)
    first = daemon.events()[0]
    schema = load_schema()
    for event in daemon.events():
        jsonschema.validate(event, schema)
    begin = fleets.START + NORMAL
    assert begin + FAULT.start <= float(str(first["started"])) < begin + FAULT.stop
    assert first["state"] == "firing"
    assert first["channels"][0]["name"] == "flow"  # type: ignore[index]
    assert str(first["message"]).startswith("test: flow ")
    retained = [m for m in daemon.client.got if m.topic == "sentinel/alerts/pump/test"]
    assert json.loads(retained[0].payload)["id"] == first["id"]
    assert retained[-1].payload == b""


def test_backtest_with_the_stored_model_gives_the_daemons_scores_and_alerts(daemon: Daemon) -> None:
    arguments = ("--config", "sentinel.toml", "--profile", "pump", "--label-column", "label", "--out", "report")
    sentinel("backtest", "test.csv", *arguments, cwd=daemon.folder)
    with (daemon.folder / "report" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TEST
    last = float(next(row["score"] for row in reversed(rows)))
    live = daemon.metric('sentinel_device_score{device="test",profile="pump"}')
    assert live == pytest.approx(last, rel=1e-5)
    alerts = [json.loads(line) for line in (daemon.folder / "report" / "alerts.jsonl").read_text().splitlines()]
    assert [(a["id"], a["seq"], a["state"], a["score"]) for a in alerts] == [
        (e["id"], e["seq"], e["state"], e["score"]) for e in daemon.events()
    ]


def test_backtest_from_the_journal_gives_the_running_daemons_scores_and_alerts_exactly(daemon: Daemon) -> None:
    sentinel(
        "backtest",
        "--from-journal",
        "--config",
        "sentinel.toml",
        "--profile",
        "pump",
        "--out",
        "past",
        cwd=daemon.folder,
    )
    with (daemon.folder / "past" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["device"], float(row["time"])) for row in rows] == [
        ("test", fleets.START + NORMAL + t) for t in range(TEST)
    ]
    settle(daemon)
    assert daemon.metric('sentinel_device_score{device="test",profile="pump"}') == float(rows[-1]["score"])
    alerts = [json.loads(line) for line in (daemon.folder / "past" / "alerts.jsonl").read_text().splitlines()]
    assert alerts == daemon.events()


def test_every_query_of_dashboard_and_rules_has_data_in_a_real_prometheus(daemon: Daemon) -> None:
    values = fleets.healthy(200, 0, 4)
    values[100:120, 2] += 30.0
    write(daemon.folder / "more.csv", values, fleets.START + 2000, None)
    with Prometheus([f"127.0.0.1:{daemon.port}"], rules=[RULES]) as prometheus:
        # Rates need a change between two scrapes: readings and an alert while it watches.
        wait_until(lambda: prometheus.query("sentinel_build_info"), 30)
        replay(daemon, "more.csv", 40)
        queries = dashboard_queries({"profile": "pump", "device": "test"}) + rule_queries(prometheus)
        missing = prometheus.without_data(queries, 60)
    assert [query.expr for query in missing] == []


def test_sigterm_snapshots_and_a_restart_goes_on_with_states_and_counts_nothing_twice(daemon: Daemon) -> None:
    settle(daemon)
    score = daemon.metric('sentinel_device_score{device="test",profile="pump"}')
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    assert time.monotonic() - began < 10
    assert json.loads([m for m in daemon.client.got if m.topic == "sentinel/status"][-1].payload)["state"] == "offline"
    daemon.process = launch(daemon.folder)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, 60)
    wait_until(lambda: daemon.metric('sentinel_device_score{device="test",profile="pump"}') == score, 10)
    assert daemon.metric('sentinel_messages_total{outcome="accepted",profile="pump"}') == 0


def test_kill_9_is_told_by_the_last_will_and_the_restart_replays_the_journal(daemon: Daemon) -> None:
    wait_until(lambda: daemon.get("/readyz")[0] == 200, 60)
    for t in range(20):
        body = {"time": fleets.START + 5000 + t, "pressure": 5.0, "flow": 20.0 + t % 3, "heat": 60.0}
        daemon.client.publish("plant/killed/telemetry", json.dumps(body).encode())
    wait_until(lambda: daemon.metric('sentinel_messages_total{outcome="accepted",profile="pump"}') >= 20, 30)
    wait_until(lambda: daemon.metric('sentinel_device_score{device="killed",profile="pump"}') > 0, 30)
    settle(daemon)
    score = daemon.metric('sentinel_device_score{device="killed",profile="pump"}')
    os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait()
    wait_until(lambda: b"offline" in [m for m in daemon.client.got if m.topic == "sentinel/status"][-1].payload, 30)
    daemon.process = launch(daemon.folder)
    wait_until(lambda: daemon.metric('sentinel_device_score{device="killed",profile="pump"}') == score, 60)


def test_a_second_daemon_on_the_same_store_refuses_to_start(daemon: Daemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "sentinel", "run", "--config", "sentinel.toml"],
        cwd=daemon.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert str(daemon.process.pid) in second.stderr
