"""Alerts on topics: encoding, schema, and what a subscriber sees."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import jsonschema
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sentinel.adapters import sinks
from sentinel.adapters.mqtt import memory
from sentinel.adapters.mqtt.client import MqttBroker, MqttOptions
from sentinel.adapters.sinks import AlertSink, Place
from sentinel.records import (
    ALERT_KINDS,
    COMMAND_FATES,
    Alert,
    AlertKind,
    AlertState,
    ChannelView,
    Command,
    CommandFate,
    Severity,
    Transition,
)
from tests.brokers import Mosquitto, plain_client, wait_until

SCHEMA = sinks.load_schema()
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60) | st.text("ab/_+#%$\0\x7f", max_size=120)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
READABLE = st.text(st.characters(codec="utf-8"), max_size=20)


def channel_views() -> st.SearchStrategy[ChannelView]:
    """Any channel of an alert."""
    maybe = st.none() | NUMBERS
    return st.builds(
        ChannelView,
        name=READABLE.filter(bool),
        unit=READABLE,
        value=maybe,
        expected=maybe,
        low=maybe,
        high=maybe,
        share=st.floats(0, 1),
    )


def alerts() -> st.SearchStrategy[Alert]:
    """Any alert."""
    return st.builds(
        Alert,
        id=READABLE.filter(bool),
        seq=st.integers(0, 1 << 40),
        state=st.sampled_from(typing.get_args(AlertState)),
        device=READABLE,
        profile=READABLE,
        kind=st.sampled_from(ALERT_KINDS),
        severity=st.sampled_from(typing.get_args(Severity)),
        started=NUMBERS,
        updated=NUMBERS,
        ended=st.none() | NUMBERS,
        score=st.none() | st.floats(0, 1e300),
        p_value=st.none() | st.floats(0, 1),
        ticks=st.integers(0, 1 << 40),
        channels=st.lists(channel_views(), max_size=3).map(tuple),
        message=READABLE.filter(bool),
        model=st.none() | READABLE,
    )


def make_alert(device: str = "hall/pump-7", kind: AlertKind = "prediction", state: AlertState = "firing") -> Alert:
    """An alert as it may come."""
    return Alert(
        id="5f0c",
        seq=1,
        state=state,
        device=device,
        profile="pump",
        kind=kind,
        severity="warning",
        started=1000.0,
        updated=1060.5,
        ended=None,
        score=2.5,
        p_value=1e-9,
        ticks=4,
        channels=(ChannelView("vibration", "mm/s", 9.1, 3.2, 2.6, 3.8, 1.0),),
        message="hall/pump-7: vibration 9.1 mm/s, expected 3.2 ± 0.6",
        model="a1b2",
    )


class TestTopics:
    """Device ids in topics."""

    @given(ANY_TEXT)
    def test_every_device_id_comes_back(self, device: str) -> None:
        coded = sinks.encode_device(device)
        assert sinks.decode_device(coded) == device

    @given(ANY_TEXT)
    def test_every_topic_is_one_that_a_broker_takes(self, device: str) -> None:
        topic = sinks.alert_topic("sentinel", Place("pump", device))
        topic.encode()
        assert not any(sign in topic for sign in "+#$\0")
        assert all(topic.split("/"))
        assert topic.count("/") < 200

    @given(ANY_TEXT.filter(bool), ANY_TEXT | st.none())
    def test_every_alert_topic_says_whom_it_is_about(self, profile: str, device: str | None) -> None:
        place = Place(profile, device)
        assert sinks.parse_alert_topic("a/b", sinks.alert_topic("a/b", place)) == place
        assert sinks.parse_device_topic("a/b", sinks.device_topic("a/b", place)) == place
        assert sinks.parse_device_topic("a/b", sinks.alert_topic("a/b", place)) is None

    @pytest.mark.parametrize(
        ("device", "coded"),
        [
            ("pump-7", "pump-7"),
            ("hall/pump 7", "hall/pump 7"),
            ("50%+#$", "50%25%2B%23%24"),
            ("a//b", "a/%/b"),
            ("", "%"),
            ("_fleet", "%5Ffleet"),
            ("a/_fleet", "a/_fleet"),
            ("línea\n", "línea%0A"),
            ("\x85", "%C2%85"),
        ],
    )
    def test_only_what_topics_cannot_hold_is_encoded(self, device: str, coded: str) -> None:
        assert sinks.encode_device(device) == coded

    def test_fleet_and_system_have_places_of_their_own(self) -> None:
        assert sinks.alert_topic("sentinel", Place("pump", None)) == "sentinel/alerts/pump/_fleet"
        assert sinks.alert_topic("sentinel", Place(None, None)) == "sentinel/alerts/_system"
        assert sinks.event_topic("sentinel", Place(None, None)) == "sentinel/events/_system"
        assert sinks.event_topic("sentinel", Place("pump", "a/b")) == "sentinel/events/pump/a/b"
        assert sinks.parse_alert_topic("sentinel", "sentinel/alerts/_system") == Place(None, None)

    @given(st.text())
    @example("pump/%FF")
    @example("%FF/d0")
    def test_any_topic_is_taken_or_not(self, rest: str) -> None:
        assert isinstance(sinks.parse_alert_topic("sentinel", f"sentinel/alerts/{rest}"), Place | None)

    @pytest.mark.parametrize("topic", ["sentinel/alerts/pump", "sentinel/events/pump/a", "other/alerts/pump/a", ""])
    def test_other_topics_are_not_taken_for_alerts(self, topic: str) -> None:
        assert sinks.parse_alert_topic("sentinel", topic) is None


class TestCommands:
    """What operators may say, and nothing else."""

    @pytest.mark.parametrize(
        ("verb", "payload", "expected"),
        [
            ("acknowledge", b"", 0.0),
            ("normal", b"{}", 0.0),
            ("forget", b"", 0.0),
            ("shelve", b"", 3600.0),
            ("shelve", b"{}", 3600.0),
            ("shelve", b'{"seconds": 0.5}', 0.5),
            ("shelve", b'{"seconds": 31622400}', sinks.LONGEST_SHELF),
            ("shelve", b'{"seconds": 31622401}', "bad_payload"),
            ("shelve", b'{"seconds": 0}', 0.0),
            ("shelve", b'{"seconds": -1}', "bad_payload"),
            ("shelve", b'{"seconds": true}', "bad_payload"),
            ("shelve", b'{"seconds": "60"}', "bad_payload"),
            ("shelve", b'{"seconds": NaN}', "bad_payload"),
            ("shelve", b'{"seconds": 1e999}', "bad_payload"),
            ("shelve", b'{"seconds": 60, "by": "me"}', "bad_payload"),
            ("shelve", b"60", "bad_payload"),
            ("shelve", b"[" * 100_000, "bad_payload"),
            ("shelve", b'{"seconds": 60}' + b" " * 2000, "bad_payload"),
            ("acknowledge", b'{"seconds": 60}', "bad_payload"),
            ("delete", b"", "bad_topic"),
            ("", b"", "bad_topic"),
        ],
    )
    def test_a_command_is_taken_only_as_it_is_described(
        self, verb: str, payload: bytes, expected: float | CommandFate
    ) -> None:
        found = sinks.parse_command("sentinel", f"sentinel/command/{verb}/pump/hall/pump-7", payload)
        if isinstance(found, Command):
            assert found == Command(found.verb, "pump", "hall/pump-7", float(expected))
        else:
            assert found == expected

    @given(st.text(), st.binary())
    @example("acknowledge/pump/%FF", b"")
    @example("normal/%FF/d0", b"")
    def test_any_topic_and_payload_is_a_command_or_a_reason(self, rest: str, payload: bytes) -> None:
        found = sinks.parse_command("sentinel", f"sentinel/command/{rest}", payload)
        assert isinstance(found, Command) or found in COMMAND_FATES


class TestSchema:
    """The published schema and the record are one."""

    def test_it_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        assert SCHEMA["$id"] == "urn:sentinel:alert:1"

    @given(alerts())
    def test_every_alert_validates_and_loses_nothing(self, alert: Alert) -> None:
        decoded = orjson.loads(sinks.encode_alert(alert))
        jsonschema.Draft202012Validator(SCHEMA).validate(decoded)
        assert decoded == json.loads(json.dumps(dataclasses.asdict(alert)))

    def test_the_fields_and_lists_are_those_of_the_record(self) -> None:
        properties = typing.cast(dict[str, dict[str, object]], SCHEMA["properties"])
        names = [field.name for field in dataclasses.fields(Alert)]
        assert list(properties) == SCHEMA["required"] == names
        assert properties["kind"]["enum"] == list(ALERT_KINDS)
        assert properties["state"]["enum"] == list(typing.get_args(AlertState))
        assert properties["severity"]["enum"] == list(typing.get_args(Severity))
        channel = typing.cast(dict[str, dict[str, typing.Any]], SCHEMA["$defs"])["channel"]
        assert (
            list(channel["properties"]) == channel["required"] == [one.name for one in dataclasses.fields(ChannelView)]
        )

    @pytest.mark.parametrize("change", [{"kind": "odd"}, {"extra": 1}, {"seq": -1}, {"ended": "now"}])
    def test_it_refuses_what_is_not_an_alert(self, change: dict[str, object]) -> None:
        decoded = orjson.loads(sinks.encode_alert(make_alert())) | change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(SCHEMA).validate(decoded)


class TestAlertSink:
    """What goes out."""

    def test_a_transition_is_an_event_and_sets_the_retained_alert(self) -> None:
        broker = memory.MemoryBroker()
        broker.start(())
        alert = make_alert()
        AlertSink(broker.publish, "sentinel").emit([Transition(alert, alert)])
        assert broker.flush(1.0)
        event, retained = broker.published
        assert event == ("sentinel/events/pump/hall/pump-7", sinks.encode_alert(alert), 1, False)
        assert retained == ("sentinel/alerts/pump/hall/pump-7", sinks.encode_alert(alert), 1, True)

    def test_the_end_of_an_alert_clears_what_is_retained(self) -> None:
        broker = memory.MemoryBroker()
        broker.start(())
        sink = AlertSink(broker.publish, "sentinel")
        sink.emit([Transition(make_alert(), make_alert())])
        assert broker.flush(1.0)
        assert set(broker.retained) == {"sentinel/alerts/pump/hall/pump-7"}
        sink.emit([Transition(make_alert(state="resolved"), None)])
        assert broker.flush(1.0)
        assert broker.retained == {}
        assert broker.published[-2].payload == sinks.encode_alert(make_alert(state="resolved"))

    def test_storm_and_system_alerts_go_to_their_places(self) -> None:
        broker = memory.MemoryBroker()
        broker.start(())
        sink = AlertSink(broker.publish, "s")
        storm, system = make_alert(device="", kind="storm"), make_alert(device="", kind="system")
        sink.emit([Transition(storm, storm), Transition(system, system)])
        sink.status(b"{}")
        assert broker.flush(1.0)
        assert set(broker.retained) == {"s/alerts/pump/_fleet", "s/alerts/_system", "s/status"}
        sink.clear(sinks.place_of(storm))
        sink.clear(sinks.place_of(system))
        assert broker.flush(1.0)
        assert set(broker.retained) == {"s/status"}

    def test_a_late_subscriber_of_a_real_broker_sees_what_is_wrong_now(self, tmp_path: Path) -> None:
        odd = "50%/+#$/_x//\n\ufffe\U0001ffff" + "/" * 150
        with Mosquitto(tmp_path) as mosquitto:
            broker = MqttBroker(MqttOptions(port=mosquitto.port, client_id="sink"))
            broker.start(())
            sink = AlertSink(broker.publish, "sentinel")
            open_alerts = [make_alert(device) for device in ("a", odd, "_fleet")]
            for device in ("a", "b", odd, "_fleet"):
                sink.emit([Transition(make_alert(device), make_alert(device))])
            sink.emit([Transition(make_alert("b", state="resolved"), None)])
            assert broker.flush(10.0)
            assert broker.reconnects == 0
            with plain_client(mosquitto.port, sinks.alerts_filter("sentinel")) as late:
                wait_until(lambda: len(late.got) >= 3)
                assert {one.payload for one in late.got} == {sinks.encode_alert(one) for one in open_alerts}
                places = {sinks.parse_alert_topic("sentinel", one.topic) for one in late.got}
                assert places == {Place("pump", one.device) for one in open_alerts}
            broker.close(1.0)
