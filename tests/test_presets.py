"""The presets in config/presets: what other systems publish is read as each preset says, and `discover` finds the same.

The messages are made up in the shapes that those systems document.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sentinel.commands.discover import discover
from sentinel.records import Fate, Message
from sentinel.settings import load_settings
from sentinel.stream.decode import Decoder
from tests.brokers import Mosquitto, plain_client

PRESETS = Path(__file__).parent.parent / "config" / "presets"
NAMES = ("zigbee2mqtt", "tasmota", "chirpstack", "home-assistant")
NOW = float(int(time.time()))
Read = tuple[str, float, dict[str, float]]
Expected = Read | Fate | None
"""Device, event time and channels of a message; why it is refused; or None where the preset does not subscribe to it."""


def iso(at: float, zone: str = "Z") -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S") + zone


def message(topic: str, payload: object, *, retain: bool = False, received: float = NOW) -> Message:
    body = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
    return Message(topic, body, 1, retain, received)


def zigbee2mqtt() -> Iterator[tuple[Message, Expected]]:
    base = "zigbee2mqtt"
    for k in range(12):
        at = NOW + 60 * k
        seen = {"last_seen": iso(at), "linkquality": 80 + k % 3}
        climate = {"temperature": 21.5 + k / 10, "humidity": 44.7 - k / 7, "battery": 97, "voltage": 3005}
        yield message(f"{base}/bath_climate", climate | seen), ("bath_climate", at, climate)
        yield message(f"{base}/0x00158d0001e5a0ff", climate | seen), ("0x00158d0001e5a0ff", at, climate)
        plug = {"power": 61.5 + k % 5, "current": 0.27, "voltage": 231}
        told = plug | {"state": "ON", "energy": 17.4, "update": {"state": "idle", "installed_version": 16777241}} | seen
        yield message(f"{base}/desk plug", told), ("desk plug", at, plug)
    seen["last_seen"] = iso(NOW)
    yield message(f"{base}/desk plug", plug | seen, retain=True), ("desk plug", NOW, plug)
    yield (
        message(f"{base}/lamp", {"state": "ON", "brightness": 215, "color": {"x": 0.4, "y": 0.3}} | seen),
        Fate.NO_CHANNEL,
    )
    yield message(f"{base}/button", {"action": "single"} | seen), Fate.NO_CHANNEL
    yield message(f"{base}/door", {"contact": True, "temperature": None} | seen), Fate.NO_CHANNEL
    yield message(f"{base}/all_lamps", {"state": "ON", "brightness": 120}), Fate.BAD_TIME
    yield message(f"{base}/bath_climate/availability", {"state": "online"}, retain=True), None
    yield message(f"{base}/lamp/set", {"brightness": 255}), None
    yield message(f"{base}/lamp/get", {"brightness": ""}), None
    yield message(f"{base}/bridge/state", {"state": "online"}, retain=True), None
    info = {"version": "2.1.0", "network": {"channel": 15, "pan_id": 5674}, "permit_join_timeout": 10}
    yield message(f"{base}/bridge/info", info, retain=True), None
    devices = [{"ieee_address": "0x00158d0001e5a0ff", "network_address": 29159, "scenes": [{"id": 3}]}]
    yield message(f"{base}/bridge/devices", devices, retain=True), None
    yield message(f"{base}/bridge/logging", {"level": "info", "message": "Zigbee: joined"}), None
    health = {
        "response_time": 1.7e12,
        "os": {"load_average": [0.1], "memory_percent": 15.3},
        "process": {"uptime_sec": 60},
    }
    yield message(f"{base}/bridge/health", health, retain=True), None
    shown = {"unique_id": "x", "expire_after": 300, "state_topic": "zigbee2mqtt/bath_climate"}
    yield message("homeassistant/sensor/0x00158d0001e5a0ff/temperature/config", shown, retain=True), None


def tasmota() -> Iterator[tuple[Message, Expected]]:
    for k in range(12):
        at = NOW + 300 * k
        stamp = iso(at + 7200, "+02:00")
        energy = {"TotalStartTime": "2024-01-05T12:41:22", "Total": 514.1 + k / 8, "Yesterday": 1.5, "Today": k / 9,
                  "Period": 0, "Power": 56 + k % 5, "ApparentPower": 92, "ReactivePower": 73, "Factor": 0.61,
                  "Voltage": 234, "Current": 0.392}  # fmt: skip
        read = {"power": 56.0 + k % 5, "voltage": 234.0, "current": 0.392}
        for plug in ("plug_1", "plug_2"):
            yield message(f"tele/{plug}/SENSOR", {"Time": stamp, "Switch1": "ON", "ENERGY": energy}), (plug, at, read)
        tank = {"Time": stamp, "DS18B20": {"Id": "01131B123456", "Temperature": 20.6 + k / 10}, "TempUnit": "C"}
        yield message("tele/tank/SENSOR", tank), ("tank", at, {"ds18b20": 20.6 + k / 10})
        air = {"Temperature": 25.5, "Humidity": 40.0 + k % 4, "DewPoint": 10.9, "Pressure": 1008.4}
        board = {"Time": stamp, "BME280": air, "ANALOG": {"A0": 12}, "PressureUnit": "hPa", "TempUnit": "C"}
        yield (
            message("tele/board/SENSOR", board),
            ("board", at, {"bme280": 25.5, "bme280_humidity": 40.0 + k % 4, "bme280_pressure": 1008.4, "analog": 12.0}),
        )
    yield message("tele/board/SENSOR", {"Time": stamp, "BME280": dict.fromkeys(air)}), Fate.NO_CHANNEL
    yield message("tele/lamp/SENSOR", {"Time": stamp, "Switch1": "OFF"}), Fate.NO_CHANNEL
    yield message("tele/twin/SENSOR", {"Time": stamp, "ENERGY": {"Power": [52, 5]}}), Fate.BAD_VALUE
    state = {"Time": stamp, "Uptime": "0T00:20:22", "UptimeSec": 1222, "Heap": 15, "POWER": "ON", "Wifi": {"RSSI": 42}}
    yield message("tele/plug_1/STATE", state), None
    yield message("tele/plug_1/LWT", "Online", retain=True), None
    yield message("stat/plug_1/POWER", "ON"), None
    yield message("cmnd/plug_1/TelePeriod", "300"), None
    yield (
        message("tasmota/discovery/A4CF12000001/config", {"ip": "192.0.2.7", "so": {"4": 0}, "ver": 1}, retain=True),
        None,
    )


def chirpstack() -> Iterator[tuple[Message, Expected]]:
    app = "ca739e26-7b67-4f14-b69e-d568c22a5a75"
    for k in range(12):
        at = NOW + 600 * k
        for eui in ("0101010101010101", "a84041ffff182d64"):
            uplink = {
                "deduplicationId": "57433366-50a6-4dc2-8145-2df1bbc70d9e",
                "time": iso(at, ".775023242+00:00"),
                "deviceInfo": {"applicationId": app, "deviceName": "tank", "devEui": eui, "tags": {"hall": "7"}},
                "devAddr": "00189440", "adr": True, "dr": 5, "fCnt": 4 + k, "fPort": 2, "confirmed": False, "data": "qqo=",
                "object": {"temperature": 21.5 + k / 3, "lid": "shut", "open": False, "level": {"1": 25 - k}},
                "rxInfo": [{"gatewayId": "0016c001f153a14c", "rssi": -57, "snr": 9.8, "location": {"altitude": 4.0}}],
                "txInfo": {"frequency": 867100000},
            }  # fmt: skip
            read = {"temperature": 21.5 + k / 3, "level.1": 25.0 - k}
            yield message(f"application/{app}/device/{eui}/event/up", uplink), (f"{app}/{eui}", at + 0.775023, read)
    bare = {key: value for key, value in uplink.items() if key != "object"}
    yield message(f"application/{app}/device/0202020202020202/event/up", bare), Fate.BAD_SHAPE
    events: dict[str, dict[str, Any]] = {
        "status": {"margin": 6, "externalPowerSource": False, "batteryLevel": 75.5},
        "join": {"devAddr": "00189440"},
        "ack": {"queueItemId": "7d9d", "acknowledged": True, "fCntDown": 4},
        "txack": {"queueItemId": "7d9d", "fCntDown": 4, "gatewayId": "0016c001f153a14c"},
        "log": {"level": "WARNING", "code": "UPLINK_F_CNT_RESET", "description": "frame-counter reset"},
        "location": {"location": {"latitude": 52.1, "longitude": 4.9}},
    }
    for event, told in events.items():
        about = {"time": iso(NOW), "deviceInfo": uplink["deviceInfo"]}
        yield message(f"application/{app}/device/{eui}/event/{event}", about | told), None
    yield message(f"application/{app}/device/{eui}/command/down", {"devEui": eui, "fPort": 10, "data": "AQ=="}), None


def home_assistant() -> Iterator[tuple[Message, Expected]]:
    base = "homeassistant/sensor"
    for k in range(12):
        at = NOW + 60 * k
        for entity, value in (("bath_temperature", 21.5 + k / 10), ("car_battery", 80.0 - k), ("desk_power", 61.0)):
            sent = message(f"{base}/{entity}/state", f"{value}", received=at)
            yield sent, (entity, at, {"value": value})
    yield message(f"{base}/bath_temperature/state", "21.5", retain=True), Fate.RETAINED
    yield message(f"{base}/bath_temperature/state", "unavailable"), Fate.BAD_SYNTAX
    yield message(f"{base}/bath_temperature/state", "unknown"), Fate.BAD_SYNTAX
    yield message(f"{base}/next_alarm/state", iso(NOW)), Fate.BAD_SYNTAX
    yield message(f"{base}/bath_temperature/last_changed", iso(NOW), retain=True), None
    yield message(f"{base}/bath_temperature/unit_of_measurement", '"°C"', retain=True), None
    yield message("homeassistant/light/lamp/state", "on", retain=True), None
    yield message("homeassistant/binary_sensor/door/state", "off", retain=True), None
    shown = {"unique_id": "x", "expire_after": 300, "state_topic": "plant/x"}
    yield message("homeassistant/device/sentinel_1/config", shown, retain=True), None
    yield message("homeassistant/status", "online", retain=True), None


TRAFFIC = dict(zip(NAMES, (zigbee2mqtt, tasmota, chirpstack, home_assistant), strict=True))


def decoded(config: Path, messages: list[Message]) -> list[Expected]:
    """What a configuration makes of each message."""
    specs = load_settings(config).specs()
    out = Decoder([(spec, [c.name for c in spec.channels or ()]) for spec in specs], "sentinel").decode(messages)
    found: list[Expected] = list(out.fates)
    for readings in out.readings:
        for row, at in enumerate(readings.message.tolist()):
            given = zip(readings.channels, readings.values[row].tolist(), strict=True)
            values = {name: value for name, value in given if not np.isnan(value)}
            found[at] = readings.device[row], float(readings.time[row]), values
    return found


def test_every_preset_is_tried_here() -> None:
    assert {path.stem for path in PRESETS.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_reads_what_its_system_publishes_and_nothing_else(name: str) -> None:
    messages, expected = zip(*TRAFFIC[name](), strict=True)
    for sent, found, wanted in zip(messages, decoded(PRESETS / f"{name}.toml", list(messages)), expected, strict=True):
        if isinstance(wanted, tuple) and isinstance(found, tuple):
            assert (found[0], found[2]) == (wanted[0], wanted[2]), sent
            assert found[1] == pytest.approx(wanted[1], abs=1e-5), sent
        else:
            assert found == wanted, sent


def test_names_of_two_levels_have_a_profile_of_their_own_that_refuses_what_is_no_device(tmp_path: Path) -> None:
    text = (PRESETS / "zigbee2mqtt.toml").read_text()
    first, found, rooms = text.partition("# [profiles.zigbee_rooms]")
    assert found
    config = tmp_path / "sentinel.toml"
    config.write_text(first + re.sub("(?m)^# ", "", found + rooms))
    seen = {"last_seen": iso(NOW)}
    oven = message("zigbee2mqtt/kitchen/oven", {"temperature": 180, "power": 900} | seen)
    (read,) = decoded(config, [oven])
    assert read == ("kitchen/oven", NOW, {"temperature": 180.0, "power": 900.0})
    traffic = [sent for sent, wanted in zigbee2mqtt() if wanted is None and sent.topic.count("/") == 2]
    assert len(traffic) > 5
    assert set(decoded(config, traffic)) <= {Fate.BAD_TIME, Fate.BAD_SHAPE}


def _published(name: str, broker: Mosquitto, messages: list[Message], config: Path) -> None:
    """Let `discover` watch a broker on which the messages are published, the retained ones before."""
    with plain_client(broker.port) as client:
        for sent in messages:
            if sent.retain:
                client.publish(sent.topic, sent.payload, retain=True)
        watch = threading.Thread(
            target=discover,
            kwargs={"broker": f"mqtt://127.0.0.1:{broker.port}", "seconds": 2.5, "out": config},
            name=name,
        )
        watch.start()
        time.sleep(1.2)  # it is subscribed
        for sent in messages:
            if not sent.retain:
                client.publish(sent.topic, sent.payload)
        watch.join()


@pytest.mark.parametrize("name", NAMES)
def test_what_discover_proposes_reads_the_same_devices_times_and_values(name: str, tmp_path: Path) -> None:
    messages, expected = zip(*TRAFFIC[name](), strict=True)
    config = tmp_path / "found.toml"
    with Mosquitto(tmp_path) as broker:
        _published(name, broker, list(messages), config)
    for sent, found, wanted in zip(messages, decoded(config, list(messages)), expected, strict=True):
        if isinstance(wanted, tuple):
            assert isinstance(found, tuple), sent
            assert wanted[0].endswith(found[0]), sent  # an application that never varied is no part of the id
            assert found[1] == pytest.approx(wanted[1], abs=1e-5), sent
            assert set(wanted[2].values()) <= set(found[2].values()), sent
        elif wanted is None and (
            Path(sent.topic).name in {"set", "get", "config", "command"} or "/bridge/" in sent.topic
        ):
            assert found is None, sent
