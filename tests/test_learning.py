"""Learning in the daemon: a process of its own, from the journal to a promotion."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from structlog.testing import capture_logs

from sentinel import trainer
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.store import Store
from sentinel.service import Service
from sentinel.settings import load_settings
from tests import fleets

CONFIG = """
[http]
port = 0
[profiles.pump]
topic = "plant/{device}/telemetry"
time = { path = "ts" }
channels = ["pressure", "flow", "heat"]
model = { hidden = 8, horizons = [1, 8] }
learn_after = 100
"""
DEVICES = 6


def children(of: int) -> list[int]:
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(of)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in out.split()]


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def feed(broker: MemoryBroker, service: Service, first: int, count: int) -> None:
    values = [fleets.healthy(first + count, i, 4) for i in range(DEVICES)]
    for t in range(first, first + count):
        for i in range(DEVICES):
            broker.publish_from_outside(f"plant/d{i}/telemetry", orjson.dumps(fleets.payload(t, values[i][t])))
        service.turn(0.0)


def test_a_fleet_is_learned_while_it_sends_and_every_device_then_scores(tmp_path: Path) -> None:
    (tmp_path / "sentinel.toml").write_text(CONFIG)
    settings = load_settings(tmp_path / "sentinel.toml")
    broker = MemoryBroker()
    service = Service(settings, broker=broker, store=Store(settings.store.path))
    service.restore()
    service.start()
    service.turn(0.0)
    stream = service.pipeline.profiles["pump"]
    try:
        feed(broker, service, 0, 110)
        assert stream.states()["learning"] == DEVICES
        sent, deadline = 110, time.monotonic() + 150
        while stream.detector is None:
            assert time.monotonic() < deadline, service._learners["pump"].failure
            feed(broker, service, sent, 1)
            sent += 1
            time.sleep(0.2)
        assert stream.states()["scoring"] == DEVICES
        feed(broker, service, sent, 20)
        assert not np.isnan(stream.scores()[list(stream.table)]).any()
        version = stream.detector.version
    finally:
        service.shutdown()
    again = Service(settings, broker=MemoryBroker(), store=Store(settings.store.path))
    again.restore()
    restored = again.pipeline.profiles["pump"]
    assert restored.detector is not None
    assert restored.detector.version == version
    np.testing.assert_array_equal(restored.scores()[list(restored.table)], stream.scores()[list(stream.table)])
    again.shutdown()


SLOW = """
import sys, time
sys.stdin.read()
print('{"stage": "reading", "share": 0.5}', '{"stage": "fitting", "share": 0.25}', sep="\\n", flush=True)
time.sleep(60)
"""


def test_while_it_learns_log_and_status_say_the_stage_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sentinel.toml").write_text(CONFIG)
    monkeypatch.setattr(trainer, "ENTRY", SLOW)
    broker, now = MemoryBroker(), fleets.START
    settings = load_settings(tmp_path / "sentinel.toml")
    service = Service(settings, broker=broker, store=Store(settings.store.path), clock=lambda: now, steady=lambda: now)
    service.restore()
    service.start()
    told = broker.subscribe_from_outside("sentinel/status")
    try:
        with capture_logs() as log:
            feed(broker, service, 0, 50)
            now += 2
            service.turn(0.0)
            feed(broker, service, 50, 60)
            deadline = time.monotonic() + 30
            while service._learners["pump"].stage != "fitting":
                assert time.monotonic() < deadline, log
                now += 1.5
                service.turn(0.01)
            now += 31.0
            service.turn(0.0)
            service.turn(0.0)
    finally:
        service.shutdown()
    said = [line for line in log if line["event"] in ("collecting", "learning")]
    assert [(line["event"], line.get("stage"), line.get("share")) for line in said] == [
        ("collecting", None, pytest.approx(0.5, abs=0.02)),
        ("learning", None, None),
        ("learning", "fitting", 0.25),
        ("learning", "fitting", 0.25),
    ]
    shown = orjson.loads([d for d in told.got if b"fitting" in d.payload][-1].payload)["profiles"]["pump"]
    assert (shown["stage"], shown["progress"], shown["training"]) == ("fitting", 0.25, True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the kernel ends the learner with its parent")
def test_the_learner_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
import subprocess, sys, os, time
from sentinel import trainer
process = subprocess.Popen([sys.executable, "-c", trainer.ENTRY, str(os.getpid())], stdin=subprocess.PIPE)
print(process.pid, flush=True)
time.sleep({60})
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    learner = int(parent.stdout.readline())
    assert learner in children(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while alive(learner) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(learner)
