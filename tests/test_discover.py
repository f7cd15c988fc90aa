"""From a broker's traffic to a configuration that fits it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel.commands._proposal import propose
from sentinel.commands._publisher import Publisher
from sentinel.commands.discover import discover
from sentinel.commands.simulate import publish_fleets
from sentinel.errors import ConfigError, DataError, Unavailable
from sentinel.records import Message
from sentinel.settings import Login, MqttSettings, Settings, TlsSettings, load_settings
from sentinel.simulate import PUMP, ROOM, Fleet
from sentinel.stream.decode.decoder import Decoder
from tests.brokers import Mosquitto, free_port, plain_client, write_password
from tests.edges import FLOAT, STRING, EdgeNode, metric, payload

NOW = 1_780_000_000.0


def message(topic: str, payload: object, received: float = NOW) -> Message:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Message(topic, body, received=received)


def series(topics: Iterable[str], *payloads: object) -> list[Message]:
    return [message(topic, payload, NOW + at) for at, payload in enumerate(payloads) for topic in topics]


def load(text: str, tmp_path: Path) -> Settings:
    """The configuration as the daemon reads it."""
    path = tmp_path / "sentinel.toml"
    path.write_text(text, encoding="utf-8")
    settings = load_settings(path)
    settings.specs()
    return settings


def profiles(samples: list[Message]) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(propose(samples))["profiles"]
    return found


def one(samples: list[Message]) -> dict[str, Any]:
    (profile,) = profiles(samples).values()
    assert isinstance(profile, dict)
    return profile


class TestTopics:
    def test_the_level_that_varies_is_the_device(self) -> None:
        samples = series([f"plant/pump-{n}/telemetry" for n in range(3)], {"a": 1.5})
        assert profiles(samples)["pump"]["topic"] == "plant/{device}/telemetry"

    def test_of_several_levels_that_vary_the_one_with_most_names_is_the_device(self) -> None:
        samples = series([f"plant/{site}/p{n}/telemetry" for site in "ab" for n in range(4)], {"a": 1.5})
        assert one(samples)["topic"] == "plant/{site}/{device}/telemetry"

    def test_bare_numbers_under_words_are_channels(self) -> None:
        samples = series([f"home/{room}/{c}" for room in ("bath", "hall") for c in ("temperature", "co2")], 21, 22)
        assert one(samples) == {"topic": "home/{device}/{channel}", "channels": "auto"}

    def test_the_channel_may_stand_before_the_device(self) -> None:
        samples = series([f"home/{c}/{room}" for room in ("bath", "hall") for c in ("temperature", "co2")], 21, 22)
        assert one(samples)["topic"] == "home/{channel}/{device}"

    def test_bare_numbers_of_numbered_devices_are_one_channel_each(self) -> None:
        assert one(series(["sensors/s1", "sensors/s2"], 21.5, 22)) == {"topic": "sensors/{device}", "channels": "auto"}

    def test_one_value_objects_are_read_like_bare_numbers(self) -> None:
        samples = series([f"home/r{n}/{c}" for n in (1, 2) for c in ("temp", "hum")], {"value": 1.5, "unit": "x"})
        assert one(samples)["topic"] == "home/{device}/{channel}"

    def test_a_lone_device_is_guessed_by_its_number(self) -> None:
        assert one(series(["plant/pump7/telemetry"], {"a": 1.5}))["topic"] == "plant/{device}/telemetry"

    def test_a_topic_for_all_devices_takes_them_from_the_payload(self) -> None:
        samples = [message("ingest", {"device_id": f"m{n % 3}", "a": n / 7}) for n in range(9)]
        profile = one(samples)
        assert (profile["topic"], profile["device"]) == ("ingest", {"path": "device_id"})

    def test_payloads_of_different_keys_are_different_profiles(self) -> None:
        samples = series(["plant/p1/telemetry", "plant/p2/telemetry"], {"a": 1.5, "b": 2.5})
        samples += series(["plant/p1/health", "plant/p2/health"], {"disk": 1.5})
        assert {p["topic"] for p in profiles(samples).values()} == {"plant/{device}/telemetry", "plant/{device}/health"}

    def test_profiles_that_would_overlap_become_one(self) -> None:
        samples = series(["zigbee/door", "zigbee/gate"], {"battery": 90.5, "angle": 1.5})
        samples += series(["zigbee/lamp", "zigbee/strip"], {"brightness": 3.5})
        profile = one(samples)
        assert profile["topic"] == "zigbee/{device}"
        assert {channel["name"] for channel in profile["channels"]} == {"battery", "angle", "brightness"}

    def test_what_overlaps_in_another_kind_is_left_out_and_said(self) -> None:
        samples = series([f"home/r{n}/{c}" for n in (1, 2) for c in ("temp", "hum")], 21, 22)
        samples += series(["home/r1/state", "home/r2/state"], {"uptime_min": 1.5, "signal": 2.5})
        assert len(profiles(samples)) == 1
        assert "left out: home/{device}/state" in propose(samples)

    @pytest.mark.parametrize(
        "topic", ["d/1/set", "cmnd/d1/Power", "x/sensor/1/config", "z/bridge/health", "app/1/command/down"]
    )
    def test_commands_settings_and_their_answers_are_no_readings_and_are_named(self, topic: str) -> None:
        samples = series(["d/1/x", "d/2/x"], {"a": 1.5}) + series([topic], {"a": 1.5})
        assert one(samples)["topic"] == "d/{device}/x"
        assert f"left out: commands, settings and their answers on 1 topic, such as {topic}" in propose(samples)

    def test_an_entitys_state_is_a_device_and_not_a_channel(self) -> None:
        samples = series(["home/sensor/bath_temperature/state", "home/sensor/desk_power/state"], 21, 22)
        assert one(samples) == {"topic": "home/sensor/{device}/state", "channels": "auto"}

    @pytest.mark.parametrize("topic", ["sentinel/alerts/pump/a", "sentinel/status", "$SYS/broker/uptime"])
    def test_its_own_and_the_brokers_topics_are_no_traffic(self, topic: str) -> None:
        with pytest.raises(DataError, match="no readings"):
            propose(series([topic], {"score": 1.5}))


class TestPayloads:
    @pytest.mark.parametrize(
        ("value", "unit"),
        [
            (NOW, "s"),
            (int(NOW), "s"),
            (int(NOW * 1e3), "ms"),
            (int(NOW * 1e6), "us"),
            (int(NOW * 1e9), "ns"),
            ("2026-05-28T20:26:40Z", "iso8601"),
            ("2026-05-28 20:26:40", "iso8601"),
        ],
    )
    def test_a_time_is_known_by_name_and_size(self, value: object, unit: str) -> None:
        samples = series(["d/1/x", "d/2/x"], {"ts": value, "a": 1.5})
        assert one(samples)["time"] == {"path": "ts", "unit": unit}
        assert [channel["name"] for channel in one(samples)["channels"]] == ["a"]

    @pytest.mark.parametrize(("text", "said"), [("2026-05-28T20:26:40", True), ("2026-05-28T20:26:40Z", False)])
    def test_a_time_without_a_zone_is_said_to_be_taken_for_utc(self, text: str, said: bool) -> None:
        samples = series(["d/1/x", "d/2/x"], {"ts": text, "a": 1.5})
        assert ("name no zone" in propose(samples)) is said

    def test_a_time_may_lie_deep_and_have_any_name_if_it_is_now(self) -> None:
        samples = series(["d/1/x", "d/2/x"], {"meta": {"x": NOW}, "a": 1.5})
        assert one(samples)["time"] == {"path": "meta.x", "unit": "s"}

    @pytest.mark.parametrize("leaf", [{"t": 21.5}, {"time_to_close": 4.5}, {"ts": None}, {"date": "tomorrow"}])
    def test_what_is_only_named_like_a_time_is_none(self, leaf: dict[str, object]) -> None:
        assert "time" not in one(series(["d/1/x", "d/2/x"], {"a": 1.5, **leaf}))

    def test_a_time_that_most_payloads_lack_is_none(self) -> None:
        samples = series(["d/1/x", "d/2/x"], {"a": 1.5, "ts": NOW}, {"a": 2.5}, {"a": 3.5})
        assert "time" not in one(samples)

    def test_channels_are_the_numeric_leaves_with_their_paths(self) -> None:
        payload = {"p": 1.5, "flow": {"value": 2, "unit": "m3/h"}, "on": True, "name": "x", "list": [1], "none": None}
        channels = one(series(["d/1/x", "d/2/x"], payload))["channels"]
        assert channels == [{"name": "p", "path": "p"}, {"name": "flow", "path": "flow.value"}]

    def test_leaves_of_one_name_get_longer_names(self) -> None:
        channels = one(series(["d/1/x", "d/2/x"], {"a": {"t": 1.5}, "b": {"t": 2.5}}))["channels"]
        assert channels == [{"name": "a_t", "path": "a.t"}, {"name": "b_t", "path": "b.t"}]
        channels = one(series(["d/1/x", "d/2/x"], {"a": {"heat": 1.5}, "b": {"heat": 2.5}}))["channels"]
        assert channels == [{"name": "heat", "path": "a.heat"}, {"name": "b_heat", "path": "b.heat"}]

    def test_a_key_with_a_dot_is_a_path_of_one(self) -> None:
        channels = one(series(["d/1/x", "d/2/x"], {"a.b": 1.5, 'quo"te\x7f\n': 2.5}))["channels"]
        assert [channel["path"] for channel in channels] == [["a.b"], 'quo"te\x7f\n']

    def test_arrays_of_readings_are_looked_into(self) -> None:
        profile = one(series(["d/1/x", "d/2/x"], [{"a": 1.5, "ts": NOW}, {"a": 2.5, "ts": NOW + 1}]))
        assert profile["time"]["path"] == "ts"
        assert profile["channels"] == [{"name": "a", "path": "a"}]

    def test_an_array_beside_numbers_is_no_readings(self) -> None:
        profile = one(series(["d/1/x", "d/2/x"], {"a": 1.5, "gateways": [{"id": "g1", "rssi": -50}]}))
        assert "readings" not in profile
        assert profile["channels"] == [{"name": "a", "path": "a"}]

    def test_a_tag_that_a_device_has_several_of_is_named(self) -> None:
        lines = [message("m", f"cpu,cpu=c{k % 4},host=h{k % 2} load={k / 7}".encode()) for k in range(12)]
        assert "# of one device there are several tags.cpu: taken as one" in propose(lines)

    def test_the_devices_of_a_payload_are_counted_and_named(self) -> None:
        samples = series(["line/1", "line/2"], {"all": {f"p{d}": {"a": 1.5, "b": 2.5} for d in range(3)}})
        assert "# 6 devices, such as 1/p0" in propose(samples)

    def test_topics_whose_only_numbers_are_times_are_named(self) -> None:
        samples = [*series(["d/1/x", "d/2/x"], {"a": 1.5}), message("beat", {"timestamp": NOW})]
        assert "# no numbers read on 1 topic, such as beat" in propose(samples)

    def test_counters_are_commented_out(self) -> None:
        samples = series(["d/1/x", "d/2/x"], *({"seq": n * 3, "k": n, "a": n / 7} for n in range(9)))
        assert [channel["name"] for channel in one(samples)["channels"]] == ["a"]
        assert '# { name = "k", path = "k" },  # a counter' in propose(samples)

    def test_more_channels_than_allowed_are_commented_out(self, tmp_path: Path) -> None:
        samples = series(["d/1/x", "d/2/x"], {f"c{n}": n / 7 for n in range(80)})
        assert len(one(samples)["channels"]) == 64
        load(propose(samples), tmp_path)

    @pytest.mark.parametrize(
        "payload", [b"", b"\xff\xfe", b"hello", b"NaN", b"[1, 2]", b'{"a": "1"}', b"true", b"[" * 5000, b"{}"]
    )
    def test_what_holds_no_reading_is_said_and_does_not_hinder(self, payload: bytes) -> None:
        with pytest.raises(DataError):
            propose([message("odd/1", payload)])
        samples = series(["d/1/x", "d/2/x"], {"a": 1.5})
        assert one([message("odd/1", payload), *samples])["topic"] == "d/{device}/x"


LEVEL = st.text(st.characters(exclude_characters="/+#\0", exclude_categories=["Cs"]), max_size=6)
KEY = st.text(max_size=6) | st.sampled_from(["id", "name", "sensor", "device", "unit", "value", "v", "ts"])
LEAF = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.just(NOW)
    | st.sampled_from(["a.b", "c.d"])
)
PAYLOAD = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=4),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


class TestWhateverComes:
    @given(
        samples=st.lists(
            st.builds(
                message,
                st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool),
                PAYLOAD | st.binary(max_size=20),
                st.just(NOW),
            ),
            max_size=12,
        )
    )
    def test_the_proposal_is_a_configuration_that_the_daemon_takes(
        self, samples: list[Message], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        try:
            text = propose(samples)
        except DataError:
            return
        load(text, tmp_path_factory.mktemp("proposal"))

    def test_it_reads_every_message_that_it_was_made_from(self, tmp_path: Path) -> None:
        samples = series(
            [f"plant/a/p{n}/telemetry" for n in range(3)], *({"ts": NOW + k, "x": {"y": k / 7}} for k in range(9))
        )
        samples += series(["home/bath/temp", "home/hall/temp", "home/hall/hum"], 21, 22.5)
        samples += [message("ingest", {"id": f"m{n % 3}", "a": n / 7, "when": int(NOW * 1e3)}) for n in range(9)]
        samples += series(["sensors/s1", "sensors/s2"], 3.5)
        settings = load(propose(samples), tmp_path)
        decoded = Decoder([(spec, [c.name for c in spec.channels or ()]) for spec in settings.specs()], "sentinel")
        out = decoded.decode(samples)
        assert out.refusals == []
        assert sum(len(readings) for readings in out.readings) == len(samples)


NS = int(NOW) * 10**9
FORMATS: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "csv": (
        [message(f"t/p{n}/up", f"{NOW + k},{k / 7},{n + k / 3}".encode(), NOW + k) for k in range(9) for n in range(2)],
        {"topic": "t/{device}/up", "format": "csv", "time": {"path": "0", "unit": "s"}},
    ),
    "influx": (
        [message("metrics", f"cpu,host=h{k % 3} load={k / 7} {NS + k}".encode(), NOW + k) for k in range(9)],
        {"topic": "metrics", "format": "influx", "device": {"path": "tags.host"}},
    ),
    "senml": (
        [message("up", [{"bn": f"dev{k % 3}:", "bt": NOW + k, "n": "a", "v": k / 7}], NOW + k) for k in range(9)],
        {"topic": "up", "format": "senml", "device": {"path": "bn"}},
    ),
    "cbor": (
        [message(f"t/p{n}/up", cbor2.dumps({"ts": NOW + k, "a": k / 7})) for k in range(9) for n in range(2)],
        {"topic": "t/{device}/up", "format": "cbor", "time": {"path": "ts", "unit": "s"}},
    ),
    "sparkplug": (
        [
            Message(*sent, received=NOW + k)
            for node in [EdgeNode("plant", "e1")]
            for k in range(9)
            for sent in (
                [node.birth(NOW, {"p": (FLOAT, 0.5)}, "d1")]
                if k == 0
                else [node.data(NOW + k, {"p": (FLOAT, k / 8)}, "d1")]
            )
        ],
        {"topic": "spBv1.0/plant/#", "format": "sparkplug"},
    ),
    "tags": (
        [message("metrics", f"climate,floor=f1,room=r{k % 3} t={k / 7} {NS + k}".encode(), NOW + k) for k in range(9)],
        {"topic": "metrics", "format": "influx", "device": {"path": "tags.room"}},
    ),
    "tags of a host": (
        [message("m", f"cpu,cpu=c{k % 4},host=h{k % 2} load={k / 7} {NS + k}".encode(), NOW + k) for k in range(12)],
        {"topic": "m", "format": "influx", "device": {"path": "tags.host"}},
    ),
    "devices within": (
        [
            message(
                f"acme/l{n}/bulk",
                {"sent": int((NOW + k) * 1e3), "all": {f"p{d}": {"a": k / 7, "b": {"c": k / 3}} for d in range(3)}},
            )
            for k in range(9)
            for n in range(2)
        ],
        {"topic": "acme/{device}/bulk", "readings": {"path": "all.*"}, "time": {"path": "sent", "unit": "ms"}},
    ),
    "values of tags": (
        [
            message(
                "gateway",
                {
                    "timestamp": NOW + k,
                    "values": [{"id": f"Line{n}.Flow", "v": k / 7, "q": True, "t": NOW + k} for n in range(3)],
                },
            )
            for k in range(9)
        ],
        {
            "topic": "gateway",
            "readings": {"path": "values"},
            "channel": {"path": "id", "value": "v", "split": "."},
            "time": {"path": "t", "unit": "s"},
        },
    ),
    "names beside a device": (
        [
            message("up", {"device": f"a{n}", "ts": NOW + k, "values": [{"id": c, "v": k / 7} for c in ("temp", "s1")]})
            for k in range(9)
            for n in range(2)
        ],
        {
            "topic": "up",
            "readings": {"path": "values"},
            "device": {"path": "device"},
            "channel": {"path": "id", "value": "v"},
            "time": {"path": "ts", "unit": "s"},
        },
    ),
    "names of a lone device": (
        [
            message(
                "up", {"device": "a1", "metrics": [{"name": f"Sim.Test.{c}", "value": k / 7} for c in ("x1", "x2")]}
            )
            for k in range(9)
        ],
        {"topic": "up", "readings": {"path": "metrics"}, "device": {"path": "device"}, "channel": {"path": "name"}},
    ),
    "names in cbor": (
        [
            message(f"t/p{n}", cbor2.dumps([{"tag": c, "value": k / 7, "q": 192} for c in ("flow", "heat")]))
            for k in range(9)
            for n in range(2)
        ],
        {"topic": "t/{device}", "format": "cbor", "channel": {"path": "tag"}},
    ),
    "names of nodes": (
        [
            message(
                "opc",
                [
                    {"NodeId": f"nsu=http://x.org/Plc/;s={c}", "Value": {"Value": k / 7, "SourceTimestamp": NOW + k}}
                    for c in ("Fast", "Slow")
                ],
            )
            for k in range(9)
        ],
        {
            "topic": "opc",
            "channel": {"path": "NodeId", "value": "Value.Value"},
            "time": {"path": "Value.SourceTimestamp", "unit": "s"},
        },
    ),
    "devices": (
        [message("all", {f"d{n}": {"ts": NOW + k, "a": k / 7, "b": k / 3} for n in range(2)}) for k in range(9)],
        {"topic": "all", "readings": {"path": "*"}, "time": {"path": "ts", "unit": "s"}},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_recognised_and_every_message_read_by_its_proposal(name: str, tmp_path: Path) -> None:
    samples, expected = FORMATS[name]
    profile = one(samples)
    assert {key: value for key, value in profile.items() if key != "channels"} == expected
    specs = load(propose(samples), tmp_path).specs()
    out = Decoder([(spec, [c.name for c in spec.channels or ()]) for spec in specs], "sentinel").decode(samples)
    assert out.refusals == []
    assert sum(len(readings) for readings in out.readings) >= len(samples)
    assert np.isfinite(out.readings[0].values).all()


def one_value_a_message(topics: Iterable[str], *names: str, **more: object) -> list[Message]:
    return [
        message(topic, {"sensor": name, "value": k / 7, "ts": NOW + k, **more}, NOW + k)
        for k in range(5)
        for topic in topics
        for name in names
    ]


class TestNamedChannels:
    @pytest.mark.parametrize("topics", [["plant/a1", "plant/a2"], ["plant/a1"], ["x/plant/a1", "x/plant/a2"]])
    def test_one_value_a_message_is_a_channel_of_its_topics_device(self, topics: list[str], tmp_path: Path) -> None:
        samples = one_value_a_message(topics, "temp", "hum", unit="C")
        found = one(samples)
        assert found["topic"].endswith("plant/{device}")
        assert (found["channel"], found["channels"]) == ({"path": "sensor"}, "auto")
        assert "# 2 seen: hum (C), temp (C)" in propose(samples)
        (spec,) = load(propose(samples), tmp_path).specs()
        out = Decoder([(spec, [])], "sentinel").decode(samples)
        assert out.refusals == []
        assert set(out.readings[0].channels) == {"hum", "temp"}
        assert set(out.readings[0].device) == {topic.split("/")[-1] for topic in topics}

    def test_numbered_names_are_devices_unless_something_else_names_these(self) -> None:
        numbered = one_value_a_message(["up"], "s1", "s2")
        assert "channel" not in one(numbered)
        assert one(numbered)["device"] == {"path": "sensor"}
        assert one(one_value_a_message(["up"], "s1", "s2", device="d1"))["channel"] == {"path": "sensor"}
        assert one(one_value_a_message(["up/d1", "up/d2"], "s1", "s2"))["channel"] == {"path": "sensor"}

    def test_a_name_for_each_device_is_no_channel(self) -> None:
        rooms = ["Kitchen", "Hall"]
        samples = [message("up", {"deviceId": f"d{k % 2}", "name": rooms[k % 2], "value": k / 7}) for k in range(9)]
        assert one(samples)["device"] == {"path": "deviceId"}
        assert "channel" not in one(samples)

    def test_a_name_on_a_topic_of_its_own_is_no_channel(self) -> None:
        samples = [
            message(f"home/{room}/{c}", {"name": f"{room} {c}", "value": k / 7})
            for k in range(5) for room in ("bath", "hall") for c in ("temperature", "co2")
        ]  # fmt: skip
        assert one(samples) == {"topic": "home/{device}/{channel}", "channels": "auto"}

    def test_entries_of_several_numbers_are_readings(self) -> None:
        samples = [message("up", [{"id": f"m{n}", "v": 220 + k, "i": k / 7} for n in range(2)]) for k in range(9)]
        assert one(samples)["device"] == {"path": "id"}
        assert "channel" not in one(samples)

    def test_devices_within_the_names_of_several_gateways_are_a_hint(self) -> None:
        def batch(parts: list[str]) -> dict[str, object]:
            return {"values": [{"id": f"{part}.{c}", "v": 1.5} for part in parts for c in ("Heat", "Flow")]}

        text = propose([message(f"opc/plant{n}/data", batch(["L1.P1", "L1.P2", "L2.P1"])) for n in (1, 2)])
        assert '# if L1.P1, L1.P2 and so on are devices: channel = { path = "id", value = "v", split = "." }' in text
        assert "are devices" not in propose([message(f"opc/plant{n}/data", batch(["motor"])) for n in (1, 2)])

    def test_positions_are_left_out_and_said_to_be_such(self) -> None:
        samples = series(["f/1/x", "f/2/x"], {"gps": {"lat": 50.1, "lon": 8.5, "speed": 3.5}})
        assert one(samples)["channels"] == [{"name": "speed", "path": "gps.speed"}]
        assert '# { name = "gps_lat", path = "gps.lat" },  # a position' in propose(samples)

    def test_devices_within_names_are_counted_and_named(self) -> None:
        values = [{"id": f"Sim.Dev{n}.{c}", "v": n + 0.5} for n in range(2) for c in ("Ramp1", "Random1")]
        text = propose([message("kepware", {"values": values})])
        assert "# 2 devices, such as Sim.Dev0" in text
        assert "# 2 seen: Ramp1, Random1" in text

    def test_texts_and_booleans_among_the_values_do_not_hide_them(self) -> None:
        values = [
            {"id": "l1.heat", "v": 1.5},
            {"id": "l1.flow", "v": 2.5},
            {"id": "l1.state", "v": "on"},
            {"id": "l1.on", "v": True},
        ]
        assert one([message("up", {"values": values})])["channel"] == {"path": "id", "value": "v", "split": "."}


class TestSparkplug:
    UNIT = bytes.fromhex("0a07") + b"engUnit" + bytes.fromhex("1207080c4203") + b"bar"  # a set of one property

    def test_channels_are_the_numbers_of_births_with_their_units(self) -> None:
        birth = payload(
            NOW, 0, metric("p", FLOAT, 1.0, properties=self.UNIT), metric("off", FLOAT), metric("name", STRING, b"x"),
            metric("Device Control/x", FLOAT, 1.0),
        )  # fmt: skip
        text = propose([Message("spBv1.0/Plant A/DBIRTH/e1/d1", birth, received=NOW)])
        found = tomllib.loads(text)["profiles"]["plant_a"]
        assert found["channels"] == [{"name": "p", "unit": "bar"}, {"name": "off"}]
        assert "1 device, such as Plant A/e1/d1" in text

    def test_data_by_aliases_whose_birth_was_not_seen_are_learned_and_it_says_what_would_name_them(self) -> None:
        data = payload(NOW, 5, metric(field="double_value", value=1.0, alias=7))
        text = propose([Message("spBv1.0/plant/DDATA/e1/d1", data, received=NOW)])
        assert tomllib.loads(text)["profiles"]["plant"]["channels"] == "auto"
        assert "rebirth = true" in text

    def test_metrics_with_times_of_their_own_are_joined(self) -> None:
        own = [metric(name, FLOAT, 1.0, timestamp=int((NOW + at) * 1e3)) for at, name in enumerate("ab")]
        found = one([Message("spBv1.0/plant/DDATA/e1/d1", payload(NOW, 5, *own), received=NOW)])
        assert found["align_window"] == "1s"

    def test_what_is_no_sparkplug_under_its_name_is_left_out(self) -> None:
        broken = Message("spBv1.0/plant/DDATA/e1/d1", b"\xff", received=NOW)
        state = Message("spBv1.0/STATE/scada", b'{"online": true, "timestamp": 5}', received=NOW)
        with pytest.raises(DataError, match="no readings"):
            propose([broken, state])


class TestAgainstMosquitto:
    def test_a_minute_of_a_plants_traffic_gives_its_configuration(self, tmp_path: Path) -> None:
        out = tmp_path / "found.toml"
        with Mosquitto(tmp_path) as broker, plain_client(broker.port) as client:
            client.publish("sentinel/status", b'{"version": 1}', retain=True)
            with Publisher(MqttSettings(port=broker.port)) as publisher:
                fleets = [Fleet(PUMP, 4, interval=0.1), Fleet(ROOM, 3, interval=0.1)]
                thread = threading.Thread(
                    target=publish_fleets, args=(publisher, fleets), kwargs={"seconds": 2.5, "start": NOW}
                )
                thread.start()
                discover(broker=f"mqtt://127.0.0.1:{broker.port}", seconds=2.0, out=out)
                thread.join()
        settings = load_settings(out)
        assert settings.mqtt.port == broker.port
        pump, room = settings.profiles["pump"], settings.profiles["room"]
        assert pump.topic == "plant/north/{device}/telemetry"
        assert room.topic == "home/{device}/climate"
        assert [channel.name for channel in pump.channels or ()] == list(PUMP.channels)
        assert pump.time is not None
        assert pump.time.path == ("ts",)
        check = [sys.executable, "-m", "sentinel", "check-config", "--config", str(out)]
        assert subprocess.run(check, capture_output=True, check=False, timeout=60).returncode == 0

    def test_a_silent_broker_gives_no_configuration(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker, pytest.raises(DataError, match="no readings in 0 messages"):
            discover(broker=f"127.0.0.1:{broker.port}", seconds=0.5, out=None)

    def test_a_broker_that_is_away_or_refuses_is_named(self, tmp_path: Path) -> None:
        port = free_port()
        with pytest.raises(Unavailable, match=rf"127.0.0.1:{port}: .* nothing listens there: .* \(--broker\)"):
            discover(broker=f"127.0.0.1:{port}", seconds=60.0, out=None)
        users = tmp_path / "users"
        users.write_text("")
        options = ("allow_anonymous false", f"password_file {users}")
        with (
            Mosquitto(tmp_path, options=options) as broker,
            pytest.raises(Unavailable, match=r"Not authorized; .* \(--username, --password-file\)"),
        ):
            discover(broker=f"127.0.0.1:{broker.port}", seconds=60.0, out=None)

    def test_what_takes_the_connection_and_says_nothing_is_told_at_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def hang_up() -> None:
                server.accept()[0].close()

            threading.Thread(target=hang_up).start()
            port = server.getsockname()[1]
            with pytest.raises(Unavailable, match=r"closed the connection without an answer .*--broker mqtts://"):
                discover(broker=f"127.0.0.1:{port}", seconds=60.0, out=None)

    @pytest.fixture
    def guarded(self, tmp_path: Path) -> Iterator[Mosquitto]:
        """A broker that lets in `me` with the password `geheim`, and `secret`, a file that holds it."""
        write_password(tmp_path / "users", "me", "geheim")
        (tmp_path / "secret").write_text("geheim\n")
        with Mosquitto(tmp_path, options=("allow_anonymous false", f"password_file {tmp_path / 'users'}")) as broker:
            publisher = MqttSettings(port=broker.port, username="me").with_password("geheim")
            with Publisher(publisher) as running:
                stop = threading.Event()

                def publish() -> None:
                    while not stop.wait(0.1):
                        running.publish([("plant/p1/telemetry", b'{"a": 1.5}')])

                thread = threading.Thread(target=publish)
                thread.start()
                yield broker
                stop.set()
                thread.join()

    def test_a_user_with_a_file_that_holds_the_password_is_in_the_configuration(
        self, guarded: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sentinel.commands.discover._SAY_EVERY", 0.4)
        broker, out = f"mqtt://127.0.0.1:{guarded.port}", tmp_path / "found.toml"
        discover(broker, 1.0, out, username="me", password_file=tmp_path / "secret")
        settings = load_settings(out)
        assert (settings.mqtt.username, settings.mqtt.password()) == ("me", "geheim")
        assert "geheim" not in out.read_text()
        first, second, *_, last = capsys.readouterr().err.splitlines()
        assert first == f"watching {broker} for 1 s; Ctrl-C ends it early with what was seen"
        assert re.fullmatch(r"0 s: \d+ messages? on 1 topic", second)
        assert last == f"wrote {out}; next: sentinel run --config {out}"
        with pytest.raises(DataError, match="exists and is left as it is"):
            discover(f"127.0.0.1:{free_port()}", 60.0, out)

    def test_a_password_that_no_file_holds_is_asked_for_and_written_nowhere(
        self, guarded: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def ask(text: str) -> str:
            asked.append(text)
            return "geheim"

        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("sentinel.commands._broker.getpass", ask)
        out = tmp_path / "found.toml"
        discover(f"mqtt://me@127.0.0.1:{guarded.port}", 0.5, out)
        assert asked == ["password of me at 127.0.0.1 (empty: none): "]
        assert 'username = "me"\npassword_file = "mqtt.password"  # write' in out.read_text()
        assert f"next: write the password into {tmp_path}/mqtt.password, mode 0600, then" in capsys.readouterr().err
        assert "geheim" not in out.read_text()

    def test_a_topic_that_the_user_may_read_can_be_given(self, guarded: Mosquitto, tmp_path: Path) -> None:
        login = Login(username="me", password_file=tmp_path / "secret")
        broker = f"mqtt://127.0.0.1:{guarded.port}"
        discover(broker, 1.0, tmp_path / "found.toml", topic="plant/{device}/telemetry", **login)
        assert "plant/" in (tmp_path / "found.toml").read_text()
        with pytest.raises(DataError, match="no readings in 0 messages"):
            discover(broker, 0.5, tmp_path / "none.toml", topic="mill/#", **login)
        with pytest.raises(ConfigError, match='--topic must have "#" as its last level only'):
            discover(broker, 60.0, None, topic="mill/#/x", **login)

    def test_certificates_that_it_came_with_are_in_the_configuration(self) -> None:
        found = tomllib.loads(propose(series(["a/1", "a/2"], {"x": 1.5}), MqttSettings(tls=TlsSettings())))
        assert found["mqtt"]["tls"] == {}
        given = MqttSettings(tls=TlsSettings(ca=Path("/ca.pem"), key=Path("/k")))
        found = tomllib.loads(propose(series(["a/1", "a/2"], {"x": 1.5}), given))
        assert found["mqtt"]["tls"] == {"ca": "/ca.pem", "key": "/k"}
