"""Recordings, published as they came or faster."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sentinel.adapters.tables import read_table
from sentinel.commands.replay import Publication, _due, publications, replay
from sentinel.errors import DataError, Unavailable
from tests.brokers import Mosquitto, PlainClient, free_port, plain_client, wait_until

ROWS = """time,device,pressure,flow,label
100.0,north/p1,1.5,10,0
100.0,north/p2,1.25,,0
101.0,north/p1,nan,,1
101.5,north/p1,1.75,12.125,1
"""


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "pump.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


def run(path: Path, broker: Mosquitto, topic: str = "plant/{device}/telemetry", **options: Any) -> None:
    given = {"speed": 0.0, "rate": None, "qos": 1, "label_column": None, "device": None, **options}
    replay([path], f"127.0.0.1:{broker.port}", topic, **given)


def received(client: PlainClient, count: int) -> list[tuple[str, dict[str, float]]]:
    wait_until(lambda: len(client.got) >= count)
    return [(message.topic, json.loads(message.payload)) for message in client.got]


class TestMessages:
    def messages(self, path: Path, template: str) -> list[tuple[str, dict[str, float]]]:
        return [(m.topic, json.loads(m.payload)) for m in publications(read_table(path), template)]

    def test_hold_time_and_what_the_row_has_without_label_and_missing_values(self, recording: Path) -> None:
        assert self.messages(recording, "plant/{device}/telemetry") == [
            ("plant/north/p1/telemetry", {"time": 100.0, "pressure": 1.5, "flow": 10.0}),
            ("plant/north/p2/telemetry", {"time": 100.0, "pressure": 1.25}),
            ("plant/north/p1/telemetry", {"time": 101.5, "pressure": 1.75, "flow": 12.125}),
        ]

    def test_are_one_a_value_where_the_topic_names_the_channel(self, recording: Path) -> None:
        assert self.messages(recording, "{device}/{channel}")[:3] == [
            ("north/p1/pressure", {"time": 100.0, "value": 1.5}),
            ("north/p1/flow", {"time": 100.0, "value": 10.0}),
            ("north/p2/pressure", {"time": 100.0, "value": 1.25}),
        ]

    def test_spread_a_device_id_over_the_topics_wildcards(self, recording: Path) -> None:
        topics = [topic for topic, _ in self.messages(recording, "plant/{site}/x/{device}")]
        assert topics[:2] == ["plant/north/x/p1", "plant/north/x/p2"]

    def test_keep_every_digit_of_times_and_values(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("time,x\n1700000000.123456,0.1234567890123456\n1700000001.5,-1e-300\n")
        bodies = [body for _, body in self.messages(path, "t/{device}")]
        assert bodies[0] == {"time": 1700000000.123456, "x": 0.1234567890123456}
        assert bodies[1]["x"] == -1e-300

    def test_encode_what_a_topic_must_not_hold(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("time,device,m/s\n1,a+b#,0.5\n2,a+b#,0.25\n")
        assert self.messages(path, "t/{device}/{channel}")[0][0] == "t/a%2Bb%23/m%2Fs"

    @pytest.mark.parametrize(
        ("template", "reason"),
        [("plant/x", "several devices"), ("{a}/{b}/{device}", "not of the form {a}/{b}/{device}")],
    )
    def test_of_a_topic_that_does_not_fit_the_devices_are_an_error(
        self, recording: Path, template: str, reason: str
    ) -> None:
        with pytest.raises(DataError, match=reason):
            self.messages(recording, template)


class TestPace:
    MESSAGES = tuple(Publication(at, "t", b"") for at in (100.0, 100.0, 102.0, 101.0, 104.0))

    def due(self, speed: float | None, rate: float | None) -> list[float]:
        return [due for due, _ in _due(iter(self.MESSAGES), speed, rate)]

    def test_follows_event_time_and_waits_for_no_late_one(self) -> None:
        assert self.due(2.0, None) == [0, 0, 1, 1, 2]

    def test_is_even_at_a_rate(self) -> None:
        assert self.due(None, 10.0) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])

    @pytest.mark.parametrize("speed", [0.0, math.inf])
    def test_is_the_brokers_without_a_limit(self, speed: float) -> None:
        assert self.due(speed, None) == [0.0] * 5


class TestAgainstMosquitto:
    def test_everything_arrives_in_order_and_is_counted(
        self, recording: Path, broker: Mosquitto, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with plain_client(broker.port, "plant/#") as client:
            run(recording, broker)
            got = received(client, 3)
        assert [body["time"] for _, body in got] == [100.0, 100.0, 101.5]
        assert {message.qos for message in client.got} == {1}
        said = " ".join(capsys.readouterr().err.split())
        assert "4 readings of 2 devices: 3 messages published" in said
        assert "3 acknowledged" in said

    def test_a_large_file_arrives_whole_at_full_speed(self, tmp_path: Path, broker: Mosquitto) -> None:
        path = tmp_path / "large.csv"
        path.write_text("time,device,x\n" + "".join(f"{at // 10},d{at % 10},{at}\n" for at in range(30_000)))
        with plain_client(broker.port, "t/#") as client:
            run(path, broker, "t/{device}")
            got = received(client, 30_000)
        assert [body["x"] for _, body in got] == list(range(30_000))

    def test_several_files_are_merged_by_time(self, tmp_path: Path, broker: Mosquitto) -> None:
        paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
        paths[0].write_text("time,x\n1,0.5\n3,0.5\n5,0.5\n")
        paths[1].write_text("time,x\n2,0.5\n4,0.5\n")
        with plain_client(broker.port, "t/#") as client:
            replay(paths, f"127.0.0.1:{broker.port}", "t/{device}", 0.0, None, 1, None, None)
            got = received(client, 5)
        assert [(topic, body["time"]) for topic, body in got] == [
            ("t/a", 1),
            ("t/b", 2),
            ("t/a", 3),
            ("t/b", 4),
            ("t/a", 5),
        ]

    def test_speed_is_times_as_fast_as_recorded(self, recording: Path, broker: Mosquitto) -> None:
        with plain_client(broker.port, "plant/#") as client:
            run(recording, broker, speed=2.0)
            received(client, 3)
        gaps = [later - client.arrived[0] for later in client.arrived]
        assert gaps == pytest.approx([0.0, 0.0, 0.75], abs=0.15)

    def test_rate_is_messages_a_second(self, tmp_path: Path, broker: Mosquitto) -> None:
        path = tmp_path / "a.csv"
        path.write_text("time,x\n" + "".join(f"{at},0.5\n" for at in range(400)))
        began = time.monotonic()
        run(path, broker, "t/{device}", speed=None, rate=400.0)
        assert 0.9 < time.monotonic() - began < 2.0

    def test_the_device_of_a_file_without_one_can_be_named(self, tmp_path: Path, broker: Mosquitto) -> None:
        path = tmp_path / "a.csv"
        path.write_text("time,x,faulty\n1,0.5,1\n2,0.5,0\n")
        with plain_client(broker.port, "t/#") as client:
            run(path, broker, "t/{device}", device="rig", label_column="faulty", qos=0)
            got = received(client, 2)
        assert got == [("t/rig", {"time": 1.0, "x": 0.5}), ("t/rig", {"time": 2.0, "x": 0.5})]

    def test_a_broker_that_goes_away_is_an_error(self, tmp_path: Path, broker: Mosquitto) -> None:
        path = tmp_path / "a.csv"
        path.write_text("time,x\n" + "".join(f"{at},0.5\n" for at in range(100)))
        killing = threading.Timer(0.5, broker.kill)
        killing.start()
        with pytest.raises(Unavailable, match=r"went away: .* of .* messages were acknowledged"):
            run(path, broker, "t/{device}", speed=None, rate=50.0)
        killing.join()

    def test_the_command_ends_with_1_and_says_where_no_broker_is(self, recording: Path) -> None:
        port = free_port()
        command = [sys.executable, "-m", "sentinel", "replay", str(recording), "--broker", f"mqtt://127.0.0.1:{port}"]
        done = subprocess.run(
            [*command, "--topic", "t/{device}"], capture_output=True, text=True, check=False, timeout=60, env=os.environ
        )
        assert done.returncode == 1
        assert f"127.0.0.1:{port}: Connection refused; nothing listens there" in done.stderr
