"""The demo: its parts, its book-keeping, and all of it against the clock."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

from sentinel.commands import demo as command
from sentinel.commands._parts import await_port, child, free_port
from sentinel.commands._publisher import Publisher
from sentinel.errors import DataError
from sentinel.settings import MqttSettings, load_settings
from sentinel.simulate import Fault
from tests.brokers import plain_client, wait_until

FAULT = Fault("stuck", "pump", "north/pump-1", "flow", 1070.0, 1080.0, 0.0)


def alert(state: str, identity: str = "x", device: str = "north/pump-1", kind: str = "prediction") -> dict[str, object]:
    message = f"{device}: flow 9.1 m3/h, expected 3.2 ± 0.6"
    return {"id": identity, "state": state, "device": device, "profile": "pump", "kind": kind, "message": message}


@pytest.fixture
def scene() -> command.Scene:
    return command.Scene(began=1000.0, page="http://127.0.0.1:1/")


class TestBookKeeping:
    def test_an_alert_counts_once_when_it_begins_to_fire(self, scene: command.Scene) -> None:
        scene.take("fault", asdict(FAULT), 1070.0)
        lines = [
            scene.take("alert", alert(state), 1072.0 + at) for at, state in enumerate(("pending", "firing", "firing"))
        ]
        assert [line is not None for line in lines] == [False, True, False]
        assert "north/pump-1: flow 9.1" in str(lines[1])
        assert scene.count().delays == (3.0,)

    def test_what_fires_is_open_until_it_resolves(self, scene: command.Scene) -> None:
        scene.take("alert", alert("firing"), 1001.0)
        assert scene.open
        assert "resolved" in str(scene.take("alert", alert("resolved"), 1002.0))
        assert not scene.open

    @pytest.mark.parametrize("kind", ["storm", "system"])
    def test_alerts_about_no_device_are_shown_but_not_counted(self, scene: command.Scene, kind: str) -> None:
        assert scene.take("alert", alert("firing", kind=kind), 1001.0)
        assert scene.count().false_alarms == ()

    def test_the_summary_is_numbers(self, scene: command.Scene) -> None:
        scene.take("fault", asdict(FAULT), 1070.0)
        scene.take("fault", asdict(FAULT) | {"device": "north/pump-2"}, 1070.0)
        scene.take("alert", alert("firing"), 1072.5)
        scene.take("alert", alert("firing", "y", "north/pump-3"), 1080.0)
        written = json.loads(json.dumps(command.summary(scene)))
        expected = {"faults_injected": 2, "faults_found": 1, "false_alarms": 1, "median_delay_seconds": 2.5}
        assert {key: written[key] for key in expected} == expected
        assert [fault["found"] for fault in written["faults"]] == [True, False]
        assert written["first_alert_after_seconds"] == 72.5

    def test_without_a_live_view_it_says_how_far_each_profile_has_learned_at_each_stage_and_now_and_then(
        self, scene: command.Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def at(now: float, **stages: tuple[str, float]) -> None:
            profiles = {name: {"stage": stage, "progress": share} for name, (stage, share) in stages.items()}
            assert scene.take("status", {"profiles": profiles}, now) is None
            monkeypatch.setattr("sentinel.commands.demo.time.time", lambda: now)
            show(None)

        with command._view(Console(), scene) as show:
            at(1001.0, pump=("collecting", 0.1))
            at(1002.0, pump=("collecting", 0.2))
            at(1017.0, pump=("collecting", 0.5))
            at(1018.0, pump=("scoring", 1.0), room=("fitting", 0.25))
            scene.scoring_at = 1019.0
            at(1050.0, pump=("scoring", 1.0), room=("scoring", 1.0))
        assert capsys.readouterr().out.splitlines()[1:] == [
            "   1.0 s  learning  pump collecting 10 %",
            "  17.0 s  learning  pump collecting 50 %",
            "  18.0 s  learning  pump scoring, room fitting 25 %",
        ]

    def test_device_states_are_added_over_profiles(self) -> None:
        text = (
            "# HELP sentinel_devices x\n"
            'sentinel_devices{profile="pump",state="scoring"} 3.0\n'
            'sentinel_devices{profile="room",state="scoring"} 2.0\n'
            'sentinel_devices{profile="room",state="silent"} 1.0\n'
            'sentinel_devices_total{profile="room",state="silent"} 9.0\n'
        )
        assert command.device_states(text) == {"scoring": 5, "silent": 1}


def test_the_configuration_is_one_that_the_daemon_takes(tmp_path: Path) -> None:
    path = tmp_path / "sentinel.toml"
    path.write_text(command.config(1, 2, tmp_path / 'a "state"'), encoding="utf-8")
    settings = load_settings(path)
    assert [spec.name for spec in settings.specs()] == ["pump", "room"]
    assert settings.store.path == tmp_path / 'a "state"'
    assert settings.warnings({"pump": 0.1, "room": 0.1}) == []


def test_without_its_broker_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "amqtt" else found(name))
    with pytest.raises(DataError, match=r"pip install 'sentinel\[demo\]'"):
        command.demo(seconds=1.0, json_file=None, seed=0)


class TestTheEmbeddedBroker:
    @pytest.fixture
    def port(self, tmp_path: Path) -> Iterator[int]:
        port = free_port(0)
        with child("broker", str(port), log=tmp_path / "log") as process:
            await_port(process, port, tmp_path / "log")
            yield port

    def test_carries_qos_1(self, port: int) -> None:
        with plain_client(port, "plant/#") as client, Publisher(MqttSettings(port=port)) as publisher:
            publisher.publish((f"plant/{n}", b"%d" % n) for n in range(500))
            publisher.drain()
            wait_until(lambda: len(client.got) == 500)
        assert {message.qos for message in client.got} == {1}
        assert sorted(int(message.payload) for message in client.got) == list(range(500))

    def test_keeps_retained_messages_until_they_are_cleared(self, port: int) -> None:
        with plain_client(port) as client:
            client.publish("a/kept", b"1", retain=True)
            client.publish("a/cleared", b"1", retain=True)
            client.publish("a/cleared", b"", retain=True)
        with plain_client(port, "a/#") as client:
            wait_until(lambda: client.got)
            time.sleep(0.2)
        assert [(message.topic, message.retain) for message in client.got] == [("a/kept", True)]

    def test_remembers_a_persistent_session(self, port: int) -> None:
        def present() -> bool:
            said: list[bool] = []
            client = paho.Client(CallbackAPIVersion.VERSION2, client_id="keeper", clean_session=False)
            client.on_connect = lambda _client, _data, flags, *_: said.append(flags.session_present)
            client.connect("127.0.0.1", port)
            client.loop_start()
            wait_until(lambda: said)
            client.disconnect()
            client.loop_stop()
            return said[0]

        assert [present(), present()] == [False, True]

    def test_takes_a_last_will(self, port: int) -> None:
        with plain_client(port, "sentinel/status") as client:
            dying = paho.Client(CallbackAPIVersion.VERSION2)
            dying.will_set("sentinel/status", b"gone", 1, retain=True)
            dying.connect("127.0.0.1", port)
            for _ in range(5):
                dying.loop(0.05)
            connection = dying.socket()
            assert connection is not None
            connection.close()
            wait_until(lambda: client.got)
        assert client.got[0].payload == b"gone"


class TestProcesses:
    def test_end_with_their_parent_however_that_ends(self, tmp_path: Path) -> None:
        code = (
            "import time; from pathlib import Path; from sentinel.commands._parts import child, free_port\n"
            f"with child('broker', str(free_port(0)), log=Path({str(tmp_path / 'log')!r})) as process:\n"
            "    time.sleep(1); print(process.pid, flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            os.kill(pid, 0)
            parent.kill()

        def gone() -> bool:
            with suppress(ProcessLookupError):
                return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
            return True

        wait_until(lambda: gone() or not Path(f"/proc/{pid}").exists(), what="the child ends")


def running(of: int) -> set[int]:
    """Process ids of all descendants."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == of:
                pid = int(stat.parent.name)
                found |= {pid, *running(pid)}
    return found


class TestAllOfIt:
    def test_finds_the_faults_in_three_minutes(self, tmp_path: Path) -> None:
        result = tmp_path / "demo.json"
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "sentinel", "demo", "--for", "180", "--json", str(result)],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 210
        found = json.loads(result.read_text())
        assert found["faults_injected"] >= 5
        assert found["faults_found"] >= 0.8 * found["faults_injected"], done.stdout
        assert found["false_alarms"] <= found["faults_injected"] / 5, done.stdout
        assert isinstance(found["median_delay_seconds"], float)
        assert found["first_alert_after_seconds"] < 120

    def test_ends_at_an_interrupt_with_the_summary_and_nothing_left(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "sentinel", "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as demo:
            assert demo.stdout is not None
            assert "page at http://127.0.0.1:" in demo.stdout.readline()
            wait_until(lambda: len(running(demo.pid)) == 3, what="broker, daemon and plant run")
            children = running(demo.pid)
            time.sleep(5)
            demo.send_signal(signal.SIGINT)
            said = demo.stdout.read()
            assert demo.wait(20) == 0
        assert "false alarms" in said
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
