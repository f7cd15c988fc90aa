"""What Home Assistant discovers, and what it then shows.

The schema and the rules of templates are those of device discovery in its releases 2024.11.3 and 2026.2.3, which were run
with Sentinel by hand; what they did beyond the documentation is said at the tests.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import numpy as np
import pytest

from sentinel.adapters.mqtt.client import MqttBroker, MqttOptions
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.mqtt.outbox import Publish
from sentinel.adapters.sinks.home_assistant import AT_ONCE, EVERY, HomeAssistant, Scores
from sentinel.adapters.store import MemoryStore
from sentinel.adapters.store.memory import MemoryDisk
from sentinel.records import Floats
from sentinel.service import Service
from sentinel.settings import load_settings
from tests import fleets
from tests.brokers import Mosquitto, plain_client, wait_until

CONFIG = """
[http]
port = 0
[mqtt]
commands = true
[home_assistant]
[profiles.{profile}]
topic = "{topic}"
device = {{ path = "id" }}
channels = [{{ name = "pressure", unit = "bar", min = 0, max = 16 }}, "flow", "heat"]
learn = "never"
silence_after = "5m"
"""
TOPIC = re.compile(r"homeassistant/device/([a-zA-Z0-9_-]+)/config")

_TEXT = {"type": "string", "minLength": 1}
_AVAILABILITY = {
    "availability": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["topic"],
            "additionalProperties": False,
            "properties": dict.fromkeys(
                ("topic", "payload_available", "payload_not_available", "value_template"), _TEXT
            ),
        },
    },
    "availability_mode": {"enum": ["all", "any", "latest"]},
}
_ENTITY = {
    **dict.fromkeys(
        (
            "platform",
            "unique_id",
            "name",
            "icon",
            "default_entity_id",
            "state_topic",
            "value_template",
            "json_attributes_topic",
            "json_attributes_template",
            "encoding",
        ),
        _TEXT,
    ),
    "device_class": _TEXT,
    "entity_category": {"enum": ["config", "diagnostic"]},
    "enabled_by_default": {"type": "boolean"},
    "expire_after": {"type": "integer", "minimum": 0},
    "force_update": {"type": "boolean"},
    "qos": {"enum": [0, 1, 2]},
    **_AVAILABILITY,
}
_BINARY_SENSOR = {
    "properties": _ENTITY
    | {"platform": {"const": "binary_sensor"}}
    | {"device_class": {"enum": ["battery", "connectivity", "problem", "running", "safety", "tamper"]}}
    | dict.fromkeys(("payload_on", "payload_off"), _TEXT)
    | {"off_delay": {"type": "integer", "minimum": 0}},
}
_SENSOR = {
    "properties": _ENTITY
    | {"platform": {"const": "sensor"}}
    | {
        "state_class": {"enum": ["measurement", "measurement_angle", "total", "total_increasing"]},
        "suggested_display_precision": {"type": "integer", "minimum": 0},
        "unit_of_measurement": _TEXT,
        "options": {"type": "array"},
        "last_reset_value_template": _TEXT,
    },
}
_COMPONENT = {"type": "object", "required": ["platform", "unique_id"], "additionalProperties": False}
SCHEMA = {
    "type": "object",
    "required": ["device", "components", "origin"],
    "additionalProperties": False,
    "properties": {
        "device": {
            "type": "object",
            "additionalProperties": False,
            "anyOf": [{"required": ["identifiers"]}, {"required": ["connections"]}],
            "properties": {
                "identifiers": {"type": "array", "items": _TEXT, "minItems": 1},
                "connections": {"type": "array"},
                **dict.fromkeys(
                    ("name", "manufacturer", "model", "model_id", "hw_version", "sw_version", "serial_number"), _TEXT
                ),
                **dict.fromkeys(("via_device", "suggested_area", "configuration_url"), _TEXT),
            },
        },
        "origin": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": dict.fromkeys(("name", "sw_version", "support_url"), _TEXT),
        },
        "components": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "oneOf": [_COMPONENT | _BINARY_SENSOR, _COMPONENT | _SENSOR],
            },
        },
        "state_topic": _TEXT,
        "command_topic": _TEXT,
        **_AVAILABILITY,
    },
}


def rendered(template: str, payload: bytes) -> str:
    """A template as Home Assistant renders it with a message; a template that fails gives nothing."""
    return (
        jinja2.Environment(autoescape=False)
        .from_string(template)
        .render(value=payload.decode(), value_json=json.loads(payload))
    )


class Home:
    """What Home Assistant shows, from the broker's retained messages alone."""

    def __init__(self, retained: Callable[[], dict[str, bytes]]) -> None:
        self.retained = retained

    def devices(self) -> dict[str, dict[str, Any]]:
        found = {}
        for topic, payload in self.retained().items():
            if match := TOPIC.fullmatch(topic):
                config = json.loads(payload)
                jsonschema.validate(config, SCHEMA)
                assert config["device"]["identifiers"] == [match[1]]
                found[config["device"]["name"]] = config
        return found

    def shows(self, device: str, entity: str) -> str:
        """An entity's state."""
        config, retained = self.devices()[device], self.retained()
        component = config["components"][entity]
        for one in component["availability"]:
            if one["topic"] not in retained or rendered(one["value_template"], retained[one["topic"]]) != "online":
                return "unavailable"
        if config["state_topic"] not in retained:
            return "unknown"
        shown = rendered(component["value_template"], retained[config["state_topic"]])
        if entity == "problem":
            assert shown in {"ON", "OFF"}
        return "unknown" if shown == "None" else shown

    def attributes(self, device: str) -> dict[str, Any]:
        component = self.devices()[device]["components"]["problem"]
        payload = self.retained()[component["json_attributes_topic"]]
        found: dict[str, Any] = json.loads(rendered(component["json_attributes_template"], payload))
        return found


class Plant:
    """A service on twins, a second a turn. `before`: what its broker retains of an earlier one."""

    def __init__(
        self, path: Path, topic: str, profile: str = "pump", before: Mapping[str, Publish] | None = None
    ) -> None:
        (path / "sentinel.toml").write_text(CONFIG.format(topic=topic, profile=profile))
        self.now = fleets.START
        self.broker = MemoryBroker(will_topic="sentinel/status", will_payload=b'{"state": "offline"}')
        self.broker.retained.update(before or {})
        self.service = Service(
            load_settings(path / "sentinel.toml"),
            broker=self.broker,
            store=MemoryStore(MemoryDisk()),
            clock=lambda: self.now,
            steady=lambda: self.now,
        )
        self.home = Home(lambda: {topic: kept.payload for topic, kept in self.broker.retained.items()})
        self.service.restore()
        self.service.start()
        self.turn()

    def turn(self, seconds: float = 1.0) -> None:
        self.now += seconds
        fleets.settle(self.service)

    def send(self, device: str, pressure: float = 5.0) -> None:
        reading = {"id": device, "pressure": pressure, "flow": 20.0, "heat": 60.0}
        self.broker.publish_from_outside("plant/telemetry", json.dumps(reading).encode())

    def say(self, command: str, payload: bytes = b"") -> None:
        self.broker.publish_from_outside(f"sentinel/command/{command}", payload)
        self.turn()


@pytest.fixture(params=["plant/telemetry", "#"])
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path, request.param)
    yield made
    made.service.shutdown()


def test_a_device_appears_with_two_entities_and_its_alert_is_a_problem_until_it_is_over(plant: Plant) -> None:
    plant.send("hall/pump 7")
    plant.turn()
    plant.turn()
    home = plant.home
    assert list(home.devices()) == ["hall/pump 7"]
    assert (home.shows("hall/pump 7", "problem"), home.shows("hall/pump 7", "score")) == ("OFF", "unknown")
    plant.send("hall/pump 7", pressure=99.0)
    plant.turn()
    assert home.shows("hall/pump 7", "problem") == "ON"
    shown = home.attributes("hall/pump 7")
    assert (shown["alert"], shown["kind"], shown["severity"]) == ("firing", "range", "warning")
    assert shown["message"] == "hall/pump 7: pressure 99 bar is out of its range 0 to 16 bar"
    plant.say("acknowledge/pump/hall/pump 7")
    assert (home.shows("hall/pump 7", "problem"), home.attributes("hall/pump 7")["alert"]) == ("ON", "acknowledged")
    plant.say("shelve/pump/hall/pump 7")
    assert (home.shows("hall/pump 7", "problem"), home.attributes("hall/pump 7")["alert"]) == ("OFF", "shelved")
    for _ in range(20):
        plant.send("hall/pump 7")
        plant.turn()
    assert home.attributes("hall/pump 7")["message"] is None
    assert home.shows("hall/pump 7", "problem") == "OFF"


def test_a_silent_device_is_a_problem_without_a_score_and_all_is_unavailable_without_sentinel(plant: Plant) -> None:
    plant.send("p1")
    plant.turn()
    plant.turn()
    plant.turn(301.0)
    plant.turn()
    assert (plant.home.shows("p1", "problem"), plant.home.shows("p1", "score")) == ("ON", "unavailable")
    plant.broker.stop()
    assert (plant.home.shows("p1", "problem"), plant.home.shows("p1", "score")) == ("unavailable", "unavailable")


def test_a_forgotten_device_leaves_home_assistant_and_nothing_retained_behind(plant: Plant) -> None:
    plant.send("p1")
    plant.send("p2")
    plant.turn()
    plant.turn()
    assert set(plant.home.devices()) == {"p1", "p2"}
    plant.say("forget/pump/p1")
    plant.turn()
    assert set(plant.home.devices()) == {"p2"}
    assert "sentinel/devices/pump/p1" not in plant.broker.retained


def test_a_device_that_the_store_has_lost_leaves_home_assistant_until_it_is_heard_again(
    plant: Plant, tmp_path: Path
) -> None:
    """A retained problem of a device that nobody watches stayed on for ever."""
    plant.send("p1", pressure=99.0)
    plant.send("p2")
    plant.turn()
    plant.turn()
    plant.service.shutdown()
    anew = Plant(tmp_path, "plant/telemetry", before=plant.broker.retained)
    assert anew.home.devices() == {}
    assert not [topic for topic, kept in anew.broker.retained.items() if "/devices/" in topic and kept.payload]
    anew.send("p1")
    anew.turn()
    anew.turn()
    assert (list(anew.home.devices()), anew.home.shows("p1", "problem")) == (["p1"], "OFF")
    anew.service.shutdown()


def test_devices_of_a_profile_that_is_no_more_are_unavailable(plant: Plant, tmp_path: Path) -> None:
    """They stay, for another daemon's profile looks no different; but nobody watches them, so they claim nothing."""
    plant.send("p1", pressure=99.0)
    plant.turn()
    plant.turn()
    assert plant.home.shows("p1", "problem") == "ON"
    plant.service.shutdown()
    anew = Plant(tmp_path, "plant/telemetry", "renamed", before=plant.broker.retained)
    assert (anew.home.shows("p1", "problem"), anew.home.shows("p1", "score")) == ("unavailable", "unavailable")
    anew.service.shutdown()


def test_when_home_assistant_or_the_broker_starts_anew_all_is_said_again(plant: Plant) -> None:
    plant.send("p1")
    plant.send("p2", pressure=99.0)
    plant.turn()
    plant.turn()
    before = plant.home.retained()
    own = [topic for topic in before if TOPIC.fullmatch(topic) or topic.startswith("sentinel/devices/")]
    for starts in ("home assistant", "broker"):
        for topic in own:
            plant.broker.retained.pop(topic)
        if starts == "broker":
            plant.broker.disconnect()
        else:
            plant.broker.publish_from_outside("homeassistant/status", b"online")
        plant.turn()
        plant.turn()
        assert plant.home.retained() == before


def test_discovery_is_never_taken_for_readings(plant: Plant) -> None:
    plant.send("p1")
    for _ in range(4):
        plant.turn()
    registry = plant.service.registry
    counts = [
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "sentinel_messages_total"
    ]
    assert sum(counts) == 1


class Fleet:
    """Many devices before a sink alone."""

    def __init__(self, count: int) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.sink = HomeAssistant(self.publish, "sentinel", "homeassistant")
        self.names = [f"d{at}" for at in range(count)]
        self.score = np.full(count, 0.3)
        self.silent = np.zeros(count, dtype=np.bool_)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        assert (qos, retain) == (1, True)
        self.published.append((topic, payload))

    def report(self, now: float, score: Floats | None = None) -> dict[str, bytes]:
        self.published.clear()
        self.sink.report({"pump": Scores(self.names, self.score if score is None else score, self.silent)}, now)
        assert len(self.published) <= AT_ONCE
        return dict(self.published)

    def settled(self) -> float:
        """The time at which all was said."""
        for second in range(1000):
            if not self.report(float(second)):
                return float(second)
        raise AssertionError("it never ends")


def test_each_component_asks_for_its_quality_of_service_itself() -> None:
    """Home Assistant takes "qos" beside the components, hands it down to none, and subscribes with 0."""
    (payload, *_) = Fleet(1).report(0.0).values()
    config = json.loads(payload)
    assert {name: component["qos"] for name, component in config["components"].items()} == {"problem": 1, "score": 1}


def test_what_a_problem_shows_does_not_move_with_the_score() -> None:
    """With the score among its attributes, Home Assistant recorded a new state of each problem a minute."""
    fleet = Fleet(1)
    config, before = (json.loads(payload) for payload in fleet.report(0.0).values())
    begun = fleet.settled()
    (after,) = fleet.report(begun + EVERY, fleet.score + 0.4).values()
    problem = config["components"]["problem"]
    assert json.loads(after)["score"] != before["score"]
    for template in (problem["value_template"], problem["json_attributes_template"]):
        assert rendered(template, after) == rendered(template, json.dumps(before).encode())


def test_ten_thousand_devices_are_said_at_a_bounded_rate_and_their_topics_are_all_different() -> None:
    fleet, said = Fleet(10_000), set[str]()
    for second in range(2 * 10_000 // AT_ONCE):
        said |= set(fleet.report(float(second)))
    assert len(said) == 20_000
    assert len([topic for topic in said if TOPIC.fullmatch(topic)]) == 10_000
    moved = set[str]()
    for second in range(200, 200 + int(EVERY)):
        moved |= set(fleet.report(float(second), fleet.score + second / 1000))
    assert len(moved) == 10_000, "within a minute every score that moved is said again"


def test_profiles_leave_one_another_what_they_do_not_need_and_none_waits_for_long() -> None:
    """A plant of one large profile and empty ones appeared at the pace of a share."""
    fleet, said = Fleet(1000), list[str]()
    large, none = Scores(fleet.names, fleet.score, fleet.silent), Scores([], fleet.score[:0], fleet.silent[:0])
    small = Scores(fleet.names[:1], fleet.score[:1], fleet.silent[:1])
    for second in range(11):
        fleet.published.clear()
        fleet.sink.report({"large": large, "none": none, "empty": none, "small": small}, float(second))
        assert len(fleet.published) <= AT_ONCE
        said += [topic for topic, _ in fleet.published if not TOPIC.fullmatch(topic)]
        if second == 3:
            assert "sentinel/devices/small/d0" in said
    assert len(said) == len(set(said)) == 1001


def test_a_score_is_said_at_once_where_it_crosses_the_threshold_and_else_once_a_minute() -> None:
    fleet = Fleet(3)
    begun = fleet.settled()
    fleet.score[:] = (0.304, 0.5, 1.0)
    assert [json.loads(payload)["score"] for payload in fleet.report(begun + 1).values()] == [1.0]
    later = fleet.report(begun + EVERY)
    assert {topic: json.loads(payload)["score"] for topic, payload in later.items()} == {
        "sentinel/devices/pump/d1": 0.5
    }
    fleet.score[:] = np.nan
    assert {json.loads(payload)["score"] for payload in fleet.report(begun + EVERY + 1).values()} == {None}


@pytest.mark.parametrize("device", ["", "_fleet", "a/b", "50%+#$", "línea", "x" * 200, "{{ 7 * 7 }}", 'quo"te'])
def test_any_device_id_makes_a_topic_and_a_config_that_home_assistant_takes(device: str) -> None:
    fleet = Fleet(1)
    fleet.names = [device]
    (topic, payload), (state, _) = fleet.report(0.0).items()
    assert TOPIC.fullmatch(topic)
    config = json.loads(payload)
    assert config["state_topic"] == state
    if device:
        jsonschema.validate(config, SCHEMA)
    others = Fleet(2)
    others.names = [device.replace("/", "_") + "_", device.replace("/", "_") + "-"]
    assert topic not in others.report(0.0)


def test_a_real_broker_keeps_all_of_it_for_a_home_assistant_that_comes_later(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto:
        broker = MqttBroker(MqttOptions(port=mosquitto.port, client_id="sentinel"))
        broker.start(())
        sink = HomeAssistant(broker.publish, "sentinel", "homeassistant")
        names = ["hall/pump 7", "50%+#$", "línea"]
        sink.report({"pump": Scores(names, np.array([0.3, np.nan, 1.2]), np.zeros(3, dtype=np.bool_))}, 0.0)
        broker.publish("sentinel/status", b'{"state": "online", "profiles": {"pump": {}}}', retain=True)
        assert broker.flush(10.0)
        with plain_client(mosquitto.port, "homeassistant/#", "sentinel/#") as late:
            wait_until(lambda: len(late.got) >= 7)
            home = Home(lambda: {one.topic: one.payload for one in late.got})
            assert set(home.devices()) == set(names)
            assert [home.shows(name, "score") for name in names] == ["0.3", "unknown", "1.2"]
        broker.close(1.0)
