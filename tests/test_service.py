"""The whole daemon in one process, on in-memory twins of broker and store."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import numpy as np
import orjson
import pytest
from structlog.testing import capture_logs

from sentinel import trainer
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.mqtt.outbox import Publish
from sentinel.adapters.sinks import load_schema
from sentinel.adapters.store import MemoryStore
from sentinel.adapters.store.memory import MemoryDisk
from sentinel.errors import SentinelError, StoreError
from sentinel.records import Command
from sentinel.service import COMMANDS_A_SECOND, DEAD_LETTERS_A_SECOND, Service
from sentinel.settings import Settings, command_line, load_settings
from sentinel.stream.pipeline import ProfileStream
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
silence_after = "5m"
"""


class Clock:
    """A wall clock. Attributes: now: time that passes; off: by how much it was set."""

    def __init__(self) -> None:
        self.now = fleets.START
        self.off = 0.0

    def __call__(self) -> float:
        return self.now + self.off


class Bench:
    """A service on twins, and what a test says to it."""

    def __init__(self, settings: Settings, disk: MemoryDisk, broker: MemoryBroker, clock: Clock) -> None:
        self.clock, self.broker = clock, broker
        self.store = MemoryStore(disk)
        self.service = Service(settings, broker=broker, store=self.store, clock=clock, steady=lambda: clock.now)
        self.service.restore()
        self.service.start()
        self.turn()  # connects
        self.events = broker.subscribe_from_outside("sentinel/events/#")

    def send(self, device: str, payload: object, **options: bool) -> None:
        body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        self.broker.publish_from_outside(f"plant/{device}/telemetry", body, **options)

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        fleets.settle(self.service)

    def tick(self, device: str, at: int, values: np.ndarray) -> None:
        self.send(device, fleets.payload(at, values))

    def metric(self, name: str, **labels: str) -> float:
        return self.service.registry.get_sample_value(name, labels) or 0.0

    def alerts(self) -> list[dict[str, object]]:
        schema = load_schema()
        found = [json.loads(d.payload) for d in self.events.got]
        for alert in found:
            jsonschema.validate(alert, schema)
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    (tmp_path / "sentinel.toml").write_text(CONFIG)
    usual = load_settings(tmp_path / "sentinel.toml")
    made: list[Bench] = []
    disk, broker, clock = MemoryDisk(), MemoryBroker(), Clock()

    def make(*, model: bool = True, settings: Settings = usual) -> Bench:
        if made:
            made[-1].store.close()
        elif model:
            learned = fleets.learned(declared=False)
            stream = fleets.running(settings.specs()[0], learned)
            trainer.save(disk.models, stream, learned.detector, 0)
        made.append(Bench(settings, disk, broker, clock))
        return made[-1]

    yield make
    if made:
        made[-1].service.shutdown()


def test_an_address_that_is_taken_is_told_before_anything_takes_its_time(
    start: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentinel.service.warm", lambda _compiling: pytest.fail("it compiles first"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = load_settings(tmp_path / "sentinel.toml", overrides=command_line(http_port=port))
        service = Service(settings, broker=MemoryBroker(), store=MemoryStore(MemoryDisk()))
        with pytest.raises(SentinelError, match=rf"127\.0\.0\.1:{port}: .* in use; .* --http-port"):
            service.run()


def test_before_it_is_restored_it_is_not_ready_and_says_so(start: Callable[..., Bench], tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "sentinel.toml")
    service = Service(settings, broker=MemoryBroker(), store=MemoryStore(MemoryDisk()))
    assert service.ready() == (False, ["starting: nothing is read yet"])
    service.shutdown()


def test_a_fault_fires_is_retained_and_is_cleared_when_it_is_over(start: Callable[..., Bench]) -> None:
    bench = start()
    values = fleets.healthy(200, 0, 7)
    values[60:80, 1] += 60.0
    for t in range(200):
        bench.tick("d0", t, values[t])
        bench.turn(1.0)
    states = [(a["state"], a["kind"], a["seq"]) for a in bench.alerts() if a["kind"] == "prediction"]
    assert states[:2] == [("firing", "prediction", 0), ("resolved", "prediction", 1)]
    first = bench.alerts()[0]
    assert first["started"] == fleets.START + 60
    assert first["channels"][0]["name"] == "flow"  # type: ignore[index]
    assert "flow" in str(first["message"])
    assert "expected" in str(first["message"])
    retained = [d for d in bench.broker.published if d.topic == "sentinel/alerts/pump/d0"]
    assert retained[0].retain
    assert json.loads(retained[0].payload)["id"] == first["id"]
    assert retained[-1].payload == b""


def test_alerts_that_a_crash_kept_back_are_published_after_the_restart(
    start: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = start()
    values = fleets.healthy(160, 0, 7)
    values[60:80, 1] += 60.0
    with monkeypatch.context() as patch:
        patch.setattr(bench.service.sink, "emit", lambda transitions: None)
        for t in range(160):
            bench.tick("d0", t, values[t])
            bench.turn(1.0)
    assert bench.alerts() == []
    bench = start()
    events = [json.loads(d.payload) for d in bench.broker.published if d.topic == "sentinel/events/pump/d0"]
    assert [(e["state"], e["kind"], e["seq"]) for e in events][:2] == [
        ("firing", "prediction", 0),
        ("resolved", "prediction", 1),
    ]


def test_every_message_has_one_outcome_and_is_acknowledged(start: Callable[..., Bench]) -> None:
    bench = start()
    good = {"ts": fleets.START, "pressure": 5.0, "flow": 20.0, "heat": 60.0}
    bench.send("d0", good)
    bench.send("d0", good)
    bench.send("d0", good | {"ts": fleets.START - 5})
    bench.send("d0", b"{")
    bench.send("d0", b"[" * 10_000)
    bench.send("d0", b'{"ts": 1, "ts": 2, "pressure": 1}')
    bench.send("d0", {"pressure": 1.0})
    bench.send("d0", good | {"ts": fleets.START + 1, "pressure": "high", "flow": True, "heat": None})
    bench.send("d0", b'{"ts": 1, "pressure": NaN}')
    bench.send("d0", [1, 2])
    bench.send("x" * 201, good)
    bench.turn()
    expected = {
        "accepted": 1,
        "duplicate": 1,
        "late": 1,
        "bad_syntax": 3,
        "bad_time": 1,
        "bad_value": 2,
        "bad_shape": 1,
        "bad_device": 1,
    }
    counts = {outcome: bench.metric("sentinel_messages_total", profile="pump", outcome=outcome) for outcome in expected}
    assert counts == expected
    assert sum(expected.values()) == 11
    bench.broker.disconnect()
    bench.turn(5.0)
    assert bench.metric("sentinel_messages_total", profile="pump", outcome="accepted") == 1, "nothing comes again"
    letters = [json.loads(d.payload) for d in bench.broker.published if d.topic.startswith("sentinel/dead-letter/")]
    assert [letter["reason"] for letter in letters].count("bad_syntax") == 3


def test_a_device_that_falls_silent_raises_an_alert_without_any_message(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.tick("d1", 0, fleets.healthy(1)[0])
    bench.turn()
    bench.turn(301.0)
    assert [(a["kind"], a["state"]) for a in bench.alerts()] == [("silence", "firing")]
    bench.turn(1.0)
    assert bench.metric("sentinel_devices", profile="pump", state="silent") == 1
    bench.tick("d1", 400, fleets.healthy(1)[0])
    bench.turn(10.0)
    assert [(a["kind"], a["state"]) for a in bench.alerts()] == [("silence", "firing"), ("silence", "resolved")]
    bench.turn(1.0)
    assert bench.metric("sentinel_devices", profile="pump", state="silent") == 0


@pytest.mark.parametrize("off", [86400.0, -86400.0])
def test_setting_the_clock_makes_nobody_silent_and_who_dies_then_is_told_in_time(
    start: Callable[..., Bench], off: float
) -> None:
    bench = start()
    for device in ("d0", "d1"):
        bench.tick(device, 0, fleets.healthy(1)[0])
    bench.turn(1.0)
    bench.clock.off = off
    bench.turn(1.0)
    assert bench.alerts() == []
    bench.turn(200.0)
    bench.tick("d0", 200, fleets.healthy(1)[0])
    bench.turn(1.0)
    assert bench.alerts() == []
    bench.turn(120.0)
    assert [(a["device"], a["kind"]) for a in bench.alerts()] == [("d1", "silence")]


def test_after_a_stop_and_a_start_scores_and_open_alerts_go_on_as_if_nothing_had_happened(
    start: Callable[..., Bench],
) -> None:
    values = fleets.healthy(120, 0, 7)
    values[50:70, 1] += 60.0
    bench = start()
    scores: dict[int, float] = {}
    for t in range(120):
        if t == 60:
            bench.service.shutdown()
            bench.broker.resume()
            bench = start()
        bench.tick("d0", t, values[t])
        bench.turn(1.0)
        stream = bench.service.pipeline.profiles["pump"]
        scores[t] = float(stream.scores()[stream.table.slot_of["d0"]])
    undisturbed = ProfileStream(bench.service.settings.specs()[0])
    learned = fleets.learned(declared=False)
    for name in learned.devices:
        undisturbed.announce(name)
    trainer.adopt(undisturbed, learned)
    for t in range(120):
        undisturbed.absorb(fleets.readings(["d0"], np.array([fleets.START + t]), values[t : t + 1]), fleets.START)
        expected = undisturbed.scores()[undisturbed.table.slot_of["d0"]]
        np.testing.assert_array_equal(scores[t], expected)
    assert max(score for score in scores.values() if score == score) >= 1  # noqa: PLR0124 - NaN: no score yet


def test_the_page_still_tells_of_resolved_alerts_after_a_stop_and_a_start(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.tick("d0", 0, np.array([99.0, 10.0, 20.0]))
    for t in range(1, 40):
        bench.tick("d0", t, np.array([8.0, 10.0, 20.0]))
        bench.turn(1.0)
    before = bench.service.window.export()
    assert "range" in [alert.kind for alert in before]
    bench.service.shutdown()
    bench.broker.resume()
    window = start().service.window
    assert window.export() == before
    window.restore([{"id": "of another version", "channels": []}])
    assert window.export() == before


def test_a_crash_loses_nothing_that_was_acknowledged(start: Callable[..., Bench]) -> None:
    bench = start()
    values = fleets.healthy(40, 0, 7)
    for t in range(20):
        bench.tick("d0", t, values[t])
        bench.turn(1.0)
    before = bench.service.pipeline.profiles["pump"].scores().copy()
    bench = start()
    after = bench.service.pipeline.profiles["pump"].scores()
    np.testing.assert_array_equal(before, after[: len(before)])


def test_a_full_disk_stops_the_reading_and_nothing_is_acknowledged_until_it_ends(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.store.disk.full = True
    bench.tick("d0", 0, fleets.healthy(1)[0])
    bench.turn()
    assert not bench.service.ready()[0]
    bench.tick("d0", 1, fleets.healthy(2)[1])
    bench.turn()
    assert bench.store.journal.last() == 2, "only the configuration and the promotion"
    bench.store.disk.full = False
    bench.turn()
    bench.turn()
    assert bench.service.ready()[0]
    assert bench.store.journal.readings_count("pump") == 2


def test_ready_says_what_is_missing(start: Callable[..., Bench]) -> None:
    bench = start(model=False)
    bench.turn()
    ok, reasons = bench.service.ready()
    assert not ok
    assert reasons == ['profile pump: no model and learn = "never"; run `sentinel train`']


def test_ready_says_what_the_broker_refuses_though_everything_is_heard(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.broker.refused = ["sentinel/status: Not authorized; the broker must allow this client to publish"]
    assert bench.service.ready() == (False, [f"refused: {bench.broker.refused[0]}"])


def test_a_profile_that_does_not_fit_its_payloads_is_told_everywhere_and_stays_ready(
    start: Callable[..., Bench], tmp_path: Path
) -> None:
    (tmp_path / "wrong.toml").write_text(CONFIG.replace("[profiles.pump]", '[profiles.pump]\ndevice = { path = "id" }'))
    bench = start(settings=load_settings(tmp_path / "wrong.toml"))
    letters = bench.broker.subscribe_from_outside("sentinel/dead-letter/#")
    with capture_logs() as logs:
        for t in range(30):
            bench.tick("d0", t, fleets.healthy(30)[t])
            bench.turn(1.0)
    why = "nothing at device path 'id'; the payload has: ts, pressure, flow, heat"
    assert [(one["event"], one["example"]) for one in logs if one["log_level"] == "warning"] == [
        ("messages are refused", why)
    ]
    ok, reasons = bench.service.ready()
    assert ok, "whoever restarts it for that mends nothing"
    (reason,) = reasons
    assert why in reason
    statuses = [json.loads(d.payload) for d in bench.broker.published if d.topic == "sentinel/status"]
    assert (statuses[-1]["state"], statuses[-1]["reason"]) == ("degraded", reason)
    assert len({status["reason"] for status in statuses}) == 2, "it does not change from second to second"
    letter = json.loads(letters.got[-1].payload)
    assert (letter["reason"], letter["detail"]) == ("bad_device", why)
    assert json.loads(letter["payload"])["ts"] == fleets.START + 29
    assert bench.metric("sentinel_messages_total", profile="pump", outcome="bad_device") == 30
    for t in range(200):
        bench.send("d0", fleets.payload(t, fleets.healthy(200)[t]) | {"id": "d0"})
        bench.turn(1.0)
    bench.turn(1.0)
    assert bench.service.ready() == (True, [])
    assert json.loads(bench.broker.retained["sentinel/status"].payload)["state"] == "online"


def test_of_a_flood_of_refusals_ten_a_second_are_told_and_all_are_counted(start: Callable[..., Bench]) -> None:
    bench = start()
    for _ in range(3):
        for _ in range(50):
            bench.send("d0", b"{")
        bench.turn()
    assert bench.metric("sentinel_dead_letters_total") == DEAD_LETTERS_A_SECOND
    assert bench.metric("sentinel_dead_letters_suppressed_total") == 150 - DEAD_LETTERS_A_SECOND
    assert bench.metric("sentinel_messages_total", profile="pump", outcome="bad_syntax") == 150


def test_stale_retained_alerts_of_an_earlier_run_are_cleared(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.broker.publish_from_outside("sentinel/alerts/pump/gone", b'{"id": "x"}', retain=True)
    bench.broker.disconnect()
    bench.turn(3.0)
    bench.turn(3.0)
    assert [d.payload for d in bench.broker.published if d.topic == "sentinel/alerts/pump/gone"][-1] == b""


def test_events_that_the_broker_has_not_got_before_a_snapshot_and_a_crash_come_after_the_restart(
    start: Callable[..., Bench],
) -> None:
    bench = start()
    bench.tick("d0", 0, np.array([5.0, 20.0, 60.0]))
    bench.turn(1.0)
    bench.tick("d0", 1, np.array([99.0, 20.0, 60.0]))
    drained = bench.broker.drain(0.0, 10, 1000)
    bench.broker.stop()
    bench.service._take(drained, bench.clock())
    bench.service._snapshot()
    bench.service._writer.wait()
    waiting = [publish.payload for publish in bench.broker.unconfirmed if "/events/" in publish.topic]
    assert len(waiting) == 1
    bench.broker.close(0.0)  # as a crash: nothing that waited goes out
    bench.broker.resume()
    again = start()
    again.turn(1.0)
    events = [d.payload for d in bench.events.got + again.events.got]
    assert waiting[0] in events


def test_a_turn_that_breaks_off_leaves_no_snapshot_of_half_of_it(
    start: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = start()
    bench.tick("d0", 0, np.array([5.0, 20.0, 60.0]))
    bench.turn(1.0)
    bench.tick("d0", 1, np.array([5.0, 20.0, 60.0]))

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(bench.service, "_count", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        bench.service.run()
    monkeypatch.undo()
    stream = start().service.pipeline.profiles["pump"]
    assert stream.table.ticks[stream.table.slot_of["d0"]] == 2  # the message was not acknowledged: it came again


def test_the_time_of_a_shelved_alert_fills_no_journal(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.tick("d0", 0, np.array([99.0, 20.0, 60.0]))
    bench.turn(1.0)
    stream = bench.service.pipeline.profiles["pump"]
    stream.book.shelve("d0", bench.clock(), 100.0)
    before = bench.service.store.journal.last()
    for _ in range(20):
        bench.turn(4.0)
    assert bench.service.store.journal.last() == before
    bench.turn(25.0)
    assert bench.service.store.journal.last() > before
    assert stream.book.open["d0"]["range"].state == "firing"


def test_a_new_connection_is_told_the_status_and_every_open_alert_again(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.tick("d0", 0, np.array([99.0, 20.0, 60.0]))
    bench.turn(1.0)
    topic = "sentinel/alerts/pump/d0"
    assert topic in bench.broker.retained
    bench.broker.retained.pop(topic)
    bench.broker.retained.pop("sentinel/status")
    bench.broker.disconnect()
    bench.turn(2.0)
    bench.turn(2.0)
    assert json.loads(bench.broker.retained[topic].payload)["kind"] == "range"
    assert json.loads(bench.broker.retained["sentinel/status"].payload)["state"] == "online"


def test_commands_are_refused_unless_they_are_configured(start: Callable[..., Bench], tmp_path: Path) -> None:
    bench = start()
    bench.tick("d0", 0, np.array([99.0, 20.0, 60.0]))
    bench.turn(1.0)
    bench.broker.publish_from_outside("sentinel/command/acknowledge/pump/d0", b"")
    bench.turn(1.0)
    assert [a["state"] for a in bench.alerts()] == ["firing"]
    (tmp_path / "sentinel.toml").write_text("[mqtt]\ncommands = true\n" + CONFIG)
    again = start(settings=load_settings(tmp_path / "sentinel.toml"))
    for topic, payload in (
        ("acknowledge/pump/d0", b""),
        ("shelve/pump/d0", b'{"seconds": 60}'),
        ("forget/pump/d0", b""),
    ):
        again.broker.publish_from_outside(f"sentinel/command/{topic}", payload)
        again.turn(1.0)
    assert [a["state"] for a in again.alerts()] == ["acknowledged", "shelved", "resolved"]
    assert "d0" not in again.service.pipeline.profiles["pump"].table.slot_of
    assert again.metric("sentinel_commands_total", outcome="accepted") == 3


@pytest.mark.parametrize(
    ("topic", "payload", "outcome"),
    [
        ("shelve/pump/d0", b'{"seconds": "x"}', "bad_payload"),
        ("shelve/pump/d0", b'{"seconds": 1e9}', "bad_payload"),
        ("acknowledge/pump/d0", b"please", "bad_payload"),
        ("nonsense/pump/d0", b"", "bad_topic"),
        ("acknowledge/pump", b"", "bad_topic"),
        ("acknowledge/nobody/d0", b"", "unknown_device"),
        ("forget/pump/d9", b"", "unknown_device"),
        ("forget/pump/../pump/d0", b"", "unknown_device"),
    ],
)
def test_a_command_that_cannot_be_done_changes_nothing_and_is_counted_and_written_down(
    start: Callable[..., Bench], tmp_path: Path, topic: str, payload: bytes, outcome: str
) -> None:
    (tmp_path / "sentinel.toml").write_text("[mqtt]\ncommands = true\n" + CONFIG)
    bench = start(settings=load_settings(tmp_path / "sentinel.toml"), model=False)
    bench.tick("d0", 0, np.array([99.0, 20.0, 60.0]))
    bench.turn(1.0)
    before = bench.store.journal.last()
    with capture_logs() as logs:
        bench.broker.publish_from_outside(f"sentinel/command/{topic}", payload)
        bench.turn()
    told = {
        "event": "command refused",
        "log_level": "warning",
        "outcome": outcome,
        "topic": f"sentinel/command/{topic}",
    }
    assert told in logs
    assert bench.metric("sentinel_commands_total", outcome=outcome) == 1
    assert bench.store.journal.last() == before
    assert [a["state"] for a in bench.alerts()] == ["firing"]
    assert "d0" in bench.service.pipeline.profiles["pump"].table.slot_of


def test_a_command_that_is_done_is_written_down_with_all_that_it_says(
    start: Callable[..., Bench], tmp_path: Path
) -> None:
    (tmp_path / "sentinel.toml").write_text("[mqtt]\ncommands = true\n" + CONFIG)
    bench = start(settings=load_settings(tmp_path / "sentinel.toml"), model=False)
    bench.tick("d0", 0, np.array([99.0, 20.0, 60.0]))
    bench.turn(1.0)
    with capture_logs() as logs:
        bench.broker.publish_from_outside("sentinel/command/shelve/pump/d0", b'{"seconds": 60}')
        bench.turn()
    said = {"verb": "shelve", "profile": "pump", "device": "d0", "seconds": 60.0}
    said["topic"] = "sentinel/command/shelve/pump/d0"
    assert {"event": "command", "log_level": "info"} | said in logs


def test_what_there_is_nothing_to_say_yes_to_is_told_and_not_written_down(
    start: Callable[..., Bench], tmp_path: Path
) -> None:
    (tmp_path / "sentinel.toml").write_text("[mqtt]\ncommands = true\n" + CONFIG)
    bench = start(settings=load_settings(tmp_path / "sentinel.toml"), model=False)
    bench.tick("d0", 0, np.array([99.0, 20.0, 60.0]))
    bench.turn(1.0)
    for verb in ("normal", "acknowledge", "acknowledge"):  # the alert is of a rule; the second time it is acknowledged
        bench.broker.publish_from_outside(f"sentinel/command/{verb}/pump/d0", b"")
    bench.turn()
    assert bench.metric("sentinel_commands_total", outcome="no_alert") == 2
    assert bench.metric("sentinel_commands_total", outcome="accepted") == 1
    commands = [entry for turn in bench.store.disk.turns for entry in turn.entries if isinstance(entry, Command)]
    assert commands == [Command("acknowledge", "pump", "d0")]


def test_a_device_and_its_shelf_are_forgotten_together_and_the_fleet_can_be_shelved(
    start: Callable[..., Bench], tmp_path: Path
) -> None:
    (tmp_path / "sentinel.toml").write_text("[mqtt]\ncommands = true\n" + CONFIG)
    bench = start(settings=load_settings(tmp_path / "sentinel.toml"), model=False)
    bench.tick("d0", 0, np.array([9.0, 20.0, 60.0]))
    bench.turn(1.0)
    book = bench.service.pipeline.profiles["pump"].book
    for topic in ("shelve/pump/d0", "shelve/pump/_fleet", "forget/pump/d0"):
        before = dict(book.shelved)
        bench.broker.publish_from_outside(f"sentinel/command/{topic}", b"")
        bench.turn()
    assert (set(before), set(book.shelved)) == ({"d0", "_fleet"}, {"_fleet"})
    bench.broker.publish_from_outside("sentinel/command/shelve/pump/_fleet", b'{"seconds": 0}')
    bench.turn()
    assert book.shelved == {}


def test_a_retained_command_is_not_done_again_at_a_start(start: Callable[..., Bench], tmp_path: Path) -> None:
    (tmp_path / "sentinel.toml").write_text("[mqtt]\ncommands = true\n" + CONFIG)
    settings = load_settings(tmp_path / "sentinel.toml")
    bench = start(settings=settings, model=False)
    bench.tick("d0", 0, np.array([99.0, 20.0, 60.0]))
    bench.turn(1.0)
    bench.broker.publish_from_outside("sentinel/command/forget/pump/d0", b"", retain=True)
    bench.broker.retained["sentinel/command/forget/pump/d0"] = Publish(
        "sentinel/command/forget/pump/d0", b"{}", 1, True
    )
    bench.turn(1.0)
    bench.tick("d0", 5, np.array([9.0, 20.0, 60.0]))
    bench.turn(1.0)
    bench.broker.disconnect()
    bench.turn(5.0)
    bench.turn(5.0)
    assert bench.metric("sentinel_commands_total", outcome="retained") == 1
    assert "d0" in bench.service.pipeline.profiles["pump"].table.slot_of


def test_commands_over_the_rate_are_counted_and_not_done(start: Callable[..., Bench], tmp_path: Path) -> None:
    (tmp_path / "sentinel.toml").write_text("[mqtt]\ncommands = true\n" + CONFIG)
    bench = start(settings=load_settings(tmp_path / "sentinel.toml"), model=False)
    bench.tick("d0", 0, fleets.healthy(1)[0])
    bench.turn(2.0)
    with capture_logs() as logs:
        for _ in range(COMMANDS_A_SECOND + 50):
            bench.broker.publish_from_outside("sentinel/command/shelve/pump/d0", b"")
        bench.turn()
    assert bench.metric("sentinel_commands_total", outcome="accepted") == COMMANDS_A_SECOND
    assert bench.metric("sentinel_commands_total", outcome="rate_limited") == 50
    assert len(logs) <= COMMANDS_A_SECOND + 1
    bench.turn(2.0)
    bench.broker.publish_from_outside("sentinel/command/shelve/pump/d0", b"")
    bench.turn()
    assert bench.metric("sentinel_commands_total", outcome="accepted") == COMMANDS_A_SECOND + 1


def test_more_devices_than_allowed_are_one_system_alert(start: Callable[..., Bench], tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(CONFIG + "max_devices = 2\n")
    bench = start(settings=load_settings(tmp_path / "few.toml"))
    system = bench.broker.subscribe_from_outside("sentinel/alerts/_system")
    for i in range(5):
        bench.tick(f"x{i}", 0, fleets.healthy(1)[0])
    bench.turn(1.0)
    bench.turn(2.0)
    assert json.loads(system.got[-1].payload)["state"] == "firing"
    assert bench.metric("sentinel_messages_total", profile="pump", outcome="overfull") == 3
    bench.turn(120.0)
    assert system.got[-1].payload == b""


def test_a_reload_says_which_tables_need_a_restart_and_keeps_them_as_they_were(
    start: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = start()
    changed = tmp_path / "changed.toml"
    changed.write_text("[mqtt]\ncommands = true\n" + CONFIG.replace('"5m"', '"6m"'))
    bench.service._reread = lambda: load_settings(changed)
    with capture_logs() as logs:
        bench.service.reload()
        bench.turn(1.0)
    assert [entry["table"] for entry in logs if entry["event"] == "needs a restart"] == ["mqtt"]
    assert not bench.service.settings.mqtt.commands
    assert bench.service.pipeline.profiles["pump"].spec.silence_after == 360.0


def test_a_store_that_cannot_be_restored_is_left_as_it_is(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.tick("d0", 0, fleets.healthy(1)[0])
    bench.turn(1.0)
    bench.service.shutdown()
    disk = bench.store.disk
    rows = dict(disk.rows)
    disk.image = (disk.image[0], disk.image[1], b'{"profiles": {"pump": {"model": null}}}') if disk.image else None
    bench.broker.resume()
    with pytest.raises(StoreError, match="does not fit"):
        start()
    assert disk.rows == rows
