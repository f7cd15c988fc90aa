"""Payload formats: what each is read as, what is refused, and that nothing escapes (invariant 7)."""

import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import cbor2
import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sentinel.errors import ConfigError
from sentinel.records import Channel, Fate, Message, PayloadFormat, ProfileSpec, Readings
from sentinel.settings import Settings, load_settings
from sentinel.stream.decode import Decoded, Decoder
from sentinel.stream.decode.payload import MAX_PAYLOAD, MAX_READINGS, MAX_VALUES
from sentinel.stream.decode.words import LONGEST
from sentinel.stream.pipeline import Pipeline
from tests.bench.formats import FORMS, decoder, turn

NOW = 1_700_000_000.0
TOPIC = 'topic = "t/{device}"\n'
SPARKPLUG = 'topic = "spBv1.0/#"\n'


def load(directory: Path, profile: str) -> Settings:
    file = directory / "sentinel.toml"
    file.write_text(f"[profiles.p]\n{profile}")
    return load_settings(file)


class Read:
    """What a profile makes of payloads on the topic `t/d`."""

    def __init__(self, directory: Path, profile: str, *payloads: bytes | object, retain: bool = False) -> None:
        messages = [
            Message("t/d", payload if isinstance(payload, bytes) else orjson.dumps(payload), 1, retain, NOW)
            for payload in payloads
        ]
        specs = load(directory, profile).specs()
        self.decoded: Decoded = Decoder(
            [(spec, [c.name for c in spec.channels or ()]) for spec in specs], "sentinel"
        ).decode(messages)

    @property
    def readings(self) -> Readings:
        assert not self.decoded.refusals
        return self.decoded.readings[0]

    @property
    def rows(self) -> list[tuple[str, float, dict[str, float]]]:
        """Device, time since `NOW`, and values of each reading."""
        if not self.decoded.readings:
            return []
        of = self.decoded.readings[0]
        return [
            (
                device,
                round(time - NOW, 6),
                {c: v for c, v in zip(of.channels, row, strict=True) if not np.isnan(v)},
            )
            for device, time, row in zip(of.device, of.time.tolist(), of.values.tolist(), strict=True)
        ]


def values(directory: Path, profile: str, *payloads: bytes | object) -> list[dict[str, float]]:
    return [row for _, _, row in Read(directory, profile, *payloads).rows]


class TestJson:
    def test_one_message_holds_many_devices_by_their_keys(self, tmp_path: Path) -> None:
        read = Read(
            tmp_path,
            'topic = "t/{site}"\nreadings = { path = "*" }\nchannels = ["a"]\ntime = { path = "ts" }',
            {"d1": {"ts": NOW, "a": 1}, "d2": {"ts": NOW + 1, "a": 2}, "d3": {"a": 3}},
        )
        assert read.rows == [("d/d1", 0.0, {"a": 1.0}), ("d/d2", 1.0, {"a": 2.0})]
        assert read.decoded.bad_values == {"p": 1}

    def test_on_a_topic_without_wildcards_the_keys_are_the_devices(self, tmp_path: Path) -> None:
        read = Read(tmp_path, 'topic = "t/d"\nreadings = { path = "*" }', {"d1": {"a": 1}, "d2": {"a": 2}})
        assert [device for device, _, _ in read.rows] == ["d1", "d2"]

    def test_an_array_of_readings_has_a_device_id_each(self, tmp_path: Path) -> None:
        profile = TOPIC + 'device = { path = "id" }\nchannels = ["a"]'
        rows = Read(tmp_path, profile, [{"id": "x", "a": 1}, {"id": "y", "a": 2}, {"a": 3}]).rows
        assert rows == [("x", 0.0, {"a": 1.0}), ("y", 0.0, {"a": 2.0})]

    def test_nested_readings_take_time_and_device_from_what_is_about_them(self, tmp_path: Path) -> None:
        read = Read(
            tmp_path,
            TOPIC + 'readings = { path = "data.values" }\ndevice = { path = "gateway.id" }\ntime = { path = "at" }',
            {"gateway": {"id": "g7"}, "at": NOW + 5, "data": {"values": [{"a": 1}, {"a": 2, "at": NOW + 6}]}},
        )
        assert read.rows == [("g7", 5.0, {"a": 1.0}), ("g7", 6.0, {"a": 2.0})]

    def test_what_holds_no_readings_at_the_path_is_refused_once(self, tmp_path: Path) -> None:
        read = Read(tmp_path, TOPIC + 'readings = { path = "data" }', {"a": 1}, {"data": 3}, {"data": [1, 2]})
        assert read.decoded.fates == [Fate.BAD_SHAPE] * 3
        assert len(read.decoded.refusals) == 3

    def test_a_key_that_is_no_device_id_leaves_the_others(self, tmp_path: Path) -> None:
        read = Read(
            tmp_path, 'topic = "t/d"\nreadings = { path = "*" }', {"": {"a": 1}, "_fleet": {"a": 1}, "x": {"a": 2}}
        )
        assert [device for device, _, _ in read.rows] == ["x"]


NAMED = 'channel = { path = "id", value = "v" }\n'
LISTED = TOPIC + NAMED + 'readings = { path = "values" }\ntime = { path = "ts" }\n'
BY_NAME: Sequence[tuple[str, str, object, list[tuple[str, float, dict[str, float]]]]] = [
    (
        "a list in an object that says device and time",
        LISTED + 'device = { path = "device" }',
        {"device": "a1", "ts": NOW + 1, "values": [{"id": "temp", "v": 21.5}, {"id": "hum", "v": 40}]},
        [("a1", 1.0, {"temp": 21.5, "hum": 40.0})],
    ),
    (
        "a list alone",
        TOPIC + NAMED,
        [{"id": "temp", "v": 21.5}, {"id": "hum", "v": 40}],
        [("d", 0.0, {"temp": 21.5, "hum": 40.0})],
    ),
    (
        "one value",
        TOPIC + 'channel = { path = "sensor" }\ntime = { path = "ts" }',
        {"sensor": "temp", "value": 21.5, "unit": "C", "ts": NOW + 2},
        [("d", 2.0, {"temp": 21.5})],
    ),
    (
        "names, values and times that lie deep, and a number for a name",
        TOPIC + 'channel = { path = "node.name", value = "value.is" }\ntime = { path = "value.at" }',
        [
            {"node": {"name": "a.b"}, "value": {"is": 1, "at": NOW}},
            {"node": {"name": 40001}, "value": {"is": 2, "at": NOW}},
        ],
        [("d", 0.0, {"a.b": 1.0, "40001": 2.0})],
    ),
    (
        "times of their own, else that of all",
        LISTED,
        {"ts": NOW, "values": [{"id": "a", "v": 1, "ts": NOW + 1}, {"id": "b", "v": 2}, {"id": "c", "v": 3, "ts": NOW + 1}]},
        [("d", 0.0, {"b": 2.0}), ("d", 1.0, {"a": 1.0, "c": 3.0})],
    ),
    (
        "devices of their own",
        TOPIC + NAMED + 'device = { path = "of" }',
        [{"of": "x", "id": "a", "v": 1}, {"of": "y", "id": "a", "v": 2}, {"of": "x", "id": "b", "v": 3}],
        [("x", 0.0, {"a": 1.0, "b": 3.0}), ("y", 0.0, {"a": 2.0})],
    ),
    (
        "lists by their devices' keys",
        TOPIC + NAMED + 'readings = { path = "all.*" }',
        {"all": {"x": [{"id": "a", "v": 1}, {"id": "b", "v": 2}], "y": [{"id": "a", "v": 3}]}},
        [("d/x", 0.0, {"a": 1.0, "b": 2.0}), ("d/y", 0.0, {"a": 3.0})],
    ),
    (
        "samples of one channel that what is about them names",
        LISTED,
        {"id": "a", "values": [{"v": 1, "ts": NOW}, {"v": 2, "ts": NOW + 1}]},
        [("d", 0.0, {"a": 1.0}), ("d", 1.0, {"a": 2.0})],
    ),
    (
        "a name that comes again begins another reading",
        TOPIC + NAMED,
        [{"id": "a", "v": 1}, {"id": "b", "v": 2}, {"id": "a", "v": 3}, {"id": "b", "v": 4}],
        [("d", 0.0, {"a": 1.0, "b": 2.0}), ("d", 0.0, {"a": 3.0, "b": 4.0})],
    ),
    (
        "channels called as the fields of device and time are",
        LISTED + 'device = { path = "of" }',
        {"ts": NOW, "of": "x", "values": [{"id": "ts", "v": 1}, {"id": "of", "v": 2}, {"id": "id", "v": 3}]},
        [("x", 0.0, {"ts": 1.0, "of": 2.0, "id": 3.0})],
    ),
    (
        "a name of device and channel",
        'topic = "t/d"\nchannel = { path = "id", value = "v", split = "." }',
        [{"id": "l1.p2.heat", "v": 1}, {"id": "l1.p3.heat", "v": 2}, {"id": "l1.p2.flow", "v": 3}],
        [("l1.p2", 0.0, {"heat": 1.0, "flow": 3.0}), ("l1.p3", 0.0, {"heat": 2.0})],
    ),
    (
        "such a name below the topic's device, which is it where the name has none",
        TOPIC + 'channel = { path = "id", value = "v", split = "." }',
        [{"id": "p2.heat", "v": 1}, {"id": "uptime", "v": 2}],
        [("d/p2", 0.0, {"heat": 1.0}), ("d", 0.0, {"uptime": 2.0})],
    ),
]  # fmt: skip


class TestNamedChannels:
    @pytest.mark.parametrize(
        ("profile", "payload", "rows"), [case[1:] for case in BY_NAME], ids=[case[0] for case in BY_NAME]
    )
    def test_entries_of_one_device_and_time_are_one_reading_alike_in_json_and_cbor(
        self, profile: str, payload: object, rows: list[tuple[str, float, dict[str, float]]], tmp_path: Path
    ) -> None:
        for written in (orjson.dumps(payload), cbor2.dumps(payload)):
            read = Read(tmp_path, profile, written)
            assert read.rows == rows
            assert (read.decoded.refusals, read.decoded.bad_values, read.decoded.unknown) == ([], {}, {})

    def test_declared_channels_are_found_by_their_names_and_others_counted(self, tmp_path: Path) -> None:
        profile = LISTED + 'channels = ["hum", { name = "motor.temp", max = 90 }]'
        values = [{"id": "motor.temp", "v": 21.5}, {"id": "extra", "v": 1}, {"id": "state", "v": "on"}]
        read = Read(tmp_path, profile, {"ts": NOW, "values": values})
        assert read.rows == [("d", 0.0, {"motor.temp": 21.5})]
        assert read.readings.channels == ("hum", "motor.temp")
        assert (read.decoded.unknown, read.decoded.bad_values) == ({"p": 2}, {})

    def test_readings_of_channels_that_are_not_declared_are_no_bad_values(self, tmp_path: Path) -> None:
        values = [{"id": name, "v": 1, "ts": NOW + at} for at, name in enumerate(("x", "a", "y"))]
        read = Read(tmp_path, LISTED + 'channels = ["a"]', {"values": values})
        assert read.rows == [("d", 1.0, {"a": 1.0})]
        assert (read.decoded.unknown, read.decoded.bad_values) == ({"p": 2}, {})

    def test_an_entry_that_cannot_be_used_is_counted_and_leaves_the_others(self, tmp_path: Path) -> None:
        values = [
            {"id": "a", "v": 1},
            {"v": 2},
            {"id": True, "v": 2},
            3,
            {"id": "b", "v": "high"},
            {"id": "b", "v": None},
        ]
        read = Read(tmp_path, LISTED + 'channels = ["a", "b"]', {"ts": NOW, "values": values})
        assert read.rows == [("d", 0.0, {"a": 1.0})]
        assert (read.decoded.bad_values, read.decoded.unknown) == ({"p": 4}, {})

    @pytest.mark.parametrize(
        ("payload", "fate"),
        [
            ({"ts": NOW, "values": []}, Fate.NO_CHANNEL),
            ({"ts": NOW, "values": [{"id": "a"}]}, Fate.NO_CHANNEL),
            ({"ts": NOW, "values": [{"id": "a", "v": None}]}, Fate.NO_CHANNEL),
            ({"ts": NOW, "values": [{"id": "x", "v": 1}]}, Fate.NO_CHANNEL),
            ({"ts": NOW, "values": [{"id": "", "v": 1}]}, Fate.NO_CHANNEL),
            ({"ts": NOW, "values": [{"id": "a", "v": "1"}]}, Fate.BAD_VALUE),
            ({"ts": NOW, "values": [{"id": "a", "v": True}]}, Fate.BAD_VALUE),
            ({"ts": NOW, "values": [{"id": "a", "v": 1e31}]}, Fate.BAD_VALUE),
            ({"ts": NOW, "values": [{"v": 1}]}, Fate.BAD_SHAPE),
            ({"ts": NOW, "values": [{"id": ["a"], "v": 1}]}, Fate.BAD_SHAPE),
            ({"ts": NOW, "values": [1, 2]}, Fate.BAD_SHAPE),
            ({"ts": NOW, "values": 3}, Fate.BAD_SHAPE),
            ({"values": [{"id": "a", "v": 1}]}, Fate.BAD_TIME),
            ({"ts": "now", "values": [{"id": "a", "v": 1}]}, Fate.BAD_TIME),
            ({"ts": NOW, "values": [{"id": "a", "v": 1, "ts": -1}]}, Fate.BAD_TIME),
        ],
    )
    def test_a_message_without_a_value_that_can_be_used_is_refused_once(
        self, payload: object, fate: Fate, tmp_path: Path
    ) -> None:
        read = Read(tmp_path, LISTED + 'channels = ["a"]', payload)
        assert read.decoded.fates == [fate]
        assert [refusal.fate for refusal in read.decoded.refusals] == [fate]
        assert read.rows == []

    @pytest.mark.parametrize(
        ("name", "fate"), [("heat", Fate.BAD_DEVICE), (".heat", Fate.BAD_DEVICE), ("_fleet.heat", Fate.BAD_DEVICE),
                           ("d" * 201 + ".heat", Fate.BAD_DEVICE), ("p1.", Fate.NO_CHANNEL)],
    )  # fmt: skip
    def test_a_name_without_a_sound_device_or_a_channel_is_refused(self, name: str, fate: Fate, tmp_path: Path) -> None:
        profile = 'topic = "t/d"\nchannel = { path = "id", value = "v", split = "." }'
        assert Read(tmp_path, profile, {"id": name, "v": 1}).decoded.fates == [fate]

    def test_retained_without_a_time_it_only_announces_the_device_that_the_topic_names(self, tmp_path: Path) -> None:
        entry = {"id": "p1.heat", "v": 1}
        read = Read(tmp_path, TOPIC + NAMED, entry, retain=True).decoded
        assert (read.fates, read.announced) == ([Fate.RETAINED], [("p", "d")])
        split = TOPIC + 'channel = { path = "id", value = "v", split = "." }'
        read = Read(tmp_path, split, entry, retain=True).decoded
        assert (read.fates, read.announced) == ([Fate.RETAINED], [])

    def test_an_array_that_senml_could_be_goes_by_the_profile(self, tmp_path: Path) -> None:
        profile = TOPIC + 'channel = { path = "n", value = "v" }'
        assert values(tmp_path, profile, [{"n": "urn:dev:x:y:heat", "v": 1}]) == [{"urn:dev:x:y:heat": 1.0}]

    def test_lines_are_of_no_shape_that_it_describes(self, tmp_path: Path) -> None:
        assert Read(tmp_path, TOPIC + NAMED, b"m f=1").decoded.fates == [Fate.BAD_SHAPE]

    def test_a_thousand_readings_of_several_channels_are_not_too_many_and_one_more_is(self, tmp_path: Path) -> None:
        def entries(count: int) -> list[dict[str, object]]:
            return [{"id": name, "v": at, "ts": NOW + at} for at in range(count) for name in ("a", "b", "c")]

        assert len(Read(tmp_path, LISTED, {"values": entries(MAX_READINGS)}).rows) == MAX_READINGS
        refused = Read(tmp_path, LISTED, {"values": entries(MAX_READINGS + 1)})
        assert (refused.decoded.fates, refused.rows) == ([Fate.TOO_LARGE], [])

    def test_messages_of_one_channel_each_become_one_tick(self, tmp_path: Path) -> None:
        specs = load(tmp_path, TOPIC + 'channel = { path = "sensor" }\ntime = { path = "ts" }').specs()
        pipeline = Pipeline(specs, "sentinel")
        table = pipeline.profiles["p"].table
        for at in range(5):
            for name in ("temp", "hum"):
                body = orjson.dumps({"sensor": name, "value": at, "ts": NOW + 10 * at})
                pipeline.push([Message("t/d", body, received=NOW + 10 * at)], NOW + 10 * at)
        assert table.ticks[table.slot_of["d"]] == 5
        assert pipeline.profiles["p"].channels == ["temp", "hum"]


class TestNumber:
    @pytest.mark.parametrize(("payload", "number"), [(b"21.5", 21.5), (b" -3\n", -3.0), (b"+1", 1.0), (b".5", 0.5)])
    def test_a_bare_number_is_a_value(self, payload: bytes, number: float, tmp_path: Path) -> None:
        assert values(tmp_path, TOPIC + 'format = "value"\nchannels = ["heat"]', payload) == [{"heat": number}]

    @pytest.mark.parametrize(
        ("payload", "fate"),
        [(b"nan", Fate.BAD_VALUE), (b"-inf", Fate.BAD_VALUE), (b"on", Fate.BAD_SYNTAX), (b"1_0", Fate.BAD_SYNTAX),
         (b"", Fate.BAD_SYNTAX), (b"\xff", Fate.BAD_SYNTAX), (b"1" * (MAX_PAYLOAD + 1), Fate.TOO_LARGE)],
    )  # fmt: skip
    def test_what_is_none_is_refused(self, payload: bytes, fate: Fate, tmp_path: Path) -> None:
        assert Read(tmp_path, TOPIC + 'format = "value"', payload).decoded.fates == [fate]


class TestCsv:
    PROFILE = TOPIC + 'format = "csv"\nchannels = ["a", "b"]\n'

    def test_channels_are_the_columns_in_order_but_for_those_of_time_and_device(self, tmp_path: Path) -> None:
        profile = self.PROFILE + 'time = { path = "0", unit = "iso8601" }\ndevice = { path = "2" }'
        (row,) = Read(tmp_path, profile, b"2023-11-14T22:13:21Z,1.5,pump-1,2").rows
        assert row == ("pump-1", 1.0, {"a": 1.5, "b": 2.0})

    @pytest.mark.parametrize(
        "line", [b"1.5,2", b"1.5;2", b"1,5;2", b"1.5\t2", b'"1.5","2"\r\n', b"\xef\xbb\xbf1.5, 2 "]
    )
    def test_separators_quotes_and_decimal_commas(self, line: bytes, tmp_path: Path) -> None:
        assert values(tmp_path, self.PROFILE, line) == [{"a": 1.5, "b": 2.0}]

    def test_each_line_is_a_reading_and_an_empty_cell_is_missing(self, tmp_path: Path) -> None:
        assert values(tmp_path, self.PROFILE, b"1,2\n,3\n\n4,\n") == [{"a": 1.0, "b": 2.0}, {"b": 3.0}, {"a": 4.0}]

    def test_a_header_beside_rows_is_one_bad_value_not_a_lost_message(self, tmp_path: Path) -> None:
        read = Read(tmp_path, self.PROFILE, b"a,b\n1,2")
        assert [row for _, _, row in read.rows] == [{"a": 1.0, "b": 2.0}]
        assert read.decoded.bad_values == {"p": 1}

    @pytest.mark.parametrize(
        ("payload", "fate"),
        [(b"", Fate.BAD_SYNTAX), (b"a,b", Fate.BAD_VALUE), (b"nan,inf", Fate.BAD_VALUE), (b",", Fate.NO_CHANNEL),
         (b'"1,2', Fate.BAD_SYNTAX), (b"1,2\n" * (MAX_READINGS + 1), Fate.TOO_LARGE)],
    )  # fmt: skip
    def test_what_is_none_is_refused(self, payload: bytes, fate: Fate, tmp_path: Path) -> None:
        assert Read(tmp_path, self.PROFILE, payload).decoded.fates == [fate]


class TestInflux:
    PROFILE = TOPIC + 'format = "influx"\n'

    def test_fields_are_channels_by_measurement_and_the_time_is_nanoseconds(self, tmp_path: Path) -> None:
        (row,) = Read(
            tmp_path, self.PROFILE, b'weather,place=hall temp=21.5,n=3i,m=4u,on=t,name="x y" 1700000001500000000'
        ).rows
        assert row == ("d", 1.5, {"weather.temp": 21.5, "weather.n": 3.0, "weather.m": 4.0})

    def test_a_tag_may_name_the_device_and_lines_of_one_time_and_place_are_one_reading(self, tmp_path: Path) -> None:
        read = Read(
            tmp_path,
            self.PROFILE + 'device = { path = "tags.host" }',
            b"cpu,host=a load=1 1700000000000000000\nmem,host=a free=2 1700000000000000000\ncpu,host=b load=3 1700000000000000000",
        )
        assert read.rows == [("a", 0.0, {"cpu.load": 1.0, "mem.free": 2.0}), ("b", 0.0, {"cpu.load": 3.0})]

    def test_escapes_and_comments(self, tmp_path: Path) -> None:
        (row,) = Read(
            tmp_path,
            self.PROFILE,
            rb"""# said first
my\ room,a\,b=c\=d in\ side=1 1700000000000000000""",
        ).rows
        assert row[2] == {"my room.in side": 1.0}

    def test_another_unit_of_time_is_set_and_not_guessed(self, tmp_path: Path) -> None:
        seconds = b"m f=1 1700000002"
        assert Read(tmp_path, self.PROFILE, seconds).decoded.fates == [Fate.BAD_TIME]
        (row,) = Read(tmp_path, self.PROFILE + 'time = { path = "time", unit = "s" }', seconds).rows
        assert row[1] == 2.0

    def test_without_a_time_it_is_that_of_receipt_and_retained_it_only_announces(self, tmp_path: Path) -> None:
        assert Read(tmp_path, self.PROFILE, b"m f=1").rows == [("d", 0.0, {"m.f": 1.0})]
        retained = Read(tmp_path, self.PROFILE, b"m f=1", retain=True).decoded
        assert (retained.fates, retained.announced) == ([Fate.RETAINED], [("p", "d")])

    def test_a_bad_line_leaves_the_others(self, tmp_path: Path) -> None:
        read = Read(tmp_path, self.PROFILE, b"m f=1\nno line\n")
        assert [row for _, _, row in read.rows] == [{"m.f": 1.0}]
        assert read.decoded.bad_values == {"p": 1}

    @pytest.mark.parametrize(
        "line",
        [b"", b"# x", b"m", b"m,a= f=1", b"m f=", b"m f=1,", b"m f=0x1", b"m f=1_0", b"m f=nan", b"m f=1 1 1", b",f=1"],
    )
    def test_what_is_no_line_is_refused(self, line: bytes, tmp_path: Path) -> None:
        assert Read(tmp_path, self.PROFILE, line).decoded.fates == [Fate.BAD_SYNTAX]


SENML: Sequence[tuple[str, list[dict[Any, Any]], list[tuple[str, float, dict[str, float]]]]] = [
    (
        "a name and a value, now",
        [{"n": "urn:dev:ow:10e2073a01080063", "u": "Cel", "v": 23.1}],
        [("urn:dev:ow:10e2073a01080063", 0.0, {"value": 23.1})],
    ),
    (
        "a base name and several quantities",
        [
            {"bn": "urn:dev:ow:10e2073a01080063:", "n": "voltage", "u": "V", "v": 120.1},
            {"n": "current", "u": "A", "v": 1.2},
        ],
        [("urn:dev:ow:10e2073a01080063", 0.0, {"voltage": 120.1, "current": 1.2})],
    ),
    (
        "a base time with relative times before it",
        [
            {"bn": "dev1:", "bt": NOW, "bu": "A", "bver": 5, "n": "voltage", "u": "V", "v": 120.1},
            {"n": "current", "t": -5, "v": 1.2},
            {"n": "current", "t": -4, "v": 1.3},
        ],
        [("dev1", -5.0, {"current": 1.2}), ("dev1", -4.0, {"current": 1.3}), ("dev1", 0.0, {"voltage": 120.1})],
    ),
    (
        "times relative to now",
        [{"bn": "dev1:", "n": "a", "v": 1, "t": -60}, {"n": "a", "v": 2}],
        [("dev1", -60.0, {"a": 1.0}), ("dev1", 0.0, {"a": 2.0})],
    ),
    (
        "a base value and a base sum are added",
        [{"bn": "dev1:", "bv": 20, "bs": 100, "n": "a", "v": 1.5, "s": 3}, {"n": "b", "v": 0}],
        [("dev1", 0.0, {"a": 21.5, "a_sum": 103.0, "b": 20.0})],
    ),
    (
        "a base name that changes, and records of base fields only",
        [{"bn": "dev1/"}, {"n": "a", "v": 1}, {"bn": "dev2/", "n": "a", "v": 2}],
        [("dev1", 0.0, {"a": 1.0}), ("dev2", 0.0, {"a": 2.0})],
    ),
    (
        "text, booleans and data are no numbers, unknown fields are passed over",
        [{"bn": "dev1:", "n": "a", "v": 1, "extra": 2}, {"n": "b", "vs": "x"}, {"n": "c", "vb": True}, {"n": "d", "vd": "eA"}],
        [("dev1", 0.0, {"a": 1.0})],
    ),
]  # fmt: skip
LABELS = {"bver": -1, "bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6, "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "s": 5, "t": 6, "ut": 7, "vd": 8}  # fmt: skip


class TestSenml:
    PROFILE = TOPIC + 'format = "senml"\ndevice = { path = "bn" }'

    @pytest.mark.parametrize(("pack", "rows"), [case[1:] for case in SENML], ids=[case[0] for case in SENML])
    def test_packs_resolve_alike_in_json_and_cbor(
        self, pack: list[dict[str, Any]], rows: list[tuple[str, float, dict[str, float]]], tmp_path: Path
    ) -> None:
        assert Read(tmp_path, self.PROFILE, pack).rows == rows
        labelled = [{LABELS.get(key, key): value for key, value in record.items()} for record in pack]
        assert Read(tmp_path, self.PROFILE, cbor2.dumps(labelled)).rows == rows

    def test_decimal_fractions_are_numbers(self, tmp_path: Path) -> None:
        pack = bytes.fromhex("81a2006161" + "02" + "c48220" + "18e7")  # n: "a", v: 231 * 10^-1
        assert Read(tmp_path, TOPIC + 'format = "senml"', pack).rows == [("d", 0.0, {"a": 23.1})]

    def test_the_device_is_that_of_the_topic_unless_set(self, tmp_path: Path) -> None:
        assert Read(tmp_path, TOPIC + 'format = "senml"', [{"n": "a", "v": 1}]).rows == [("d", 0.0, {"a": 1.0})]

    @pytest.mark.parametrize(
        ("pack", "fate"),
        [
            ([{"n": "a", "v": 1, "must_": 1}], Fate.BAD_SHAPE),
            ([{"n": "a", "v": 1, "bver": 11}], Fate.BAD_SHAPE),
            ([{"n": "a", "v": "1"}], Fate.NO_CHANNEL),
            ([{"n": "sp ace", "v": 1}], Fate.BAD_DEVICE),
            ([{"v": 1}], Fate.BAD_DEVICE),
            ([{"n": "a", "v": 1, "t": "now"}], Fate.BAD_TIME),
            ([{"n": "a"}], Fate.NO_CHANNEL),
            ([], Fate.BAD_SHAPE),
            ({"n": "a", "v": 1}, Fate.BAD_SHAPE),
            ([1], Fate.BAD_SHAPE),
        ],
    )
    def test_what_is_no_pack_is_refused(self, pack: object, fate: Fate, tmp_path: Path) -> None:
        assert Read(tmp_path, TOPIC + 'format = "senml"', pack).decoded.fates == [fate]

    def test_retained_and_relative_to_now_it_only_announces(self, tmp_path: Path) -> None:
        read = Read(tmp_path, TOPIC + 'format = "senml"', [{"n": "a", "v": 1, "t": -1}], retain=True)
        assert read.decoded.fates == [Fate.RETAINED]


class TestCbor:
    PROFILE = TOPIC + 'format = "cbor"\nchannels = ["a", "b.c"]\n'

    @pytest.mark.parametrize(
        "payload",
        [
            cbor2.dumps({"a": 1.5, "b": {"c": 2}}),
            cbor2.dumps([{"a": 1.5, "b": {"c": 2}}]),
            b"\xd9\xd9\xf7" + cbor2.dumps({"a": 1.5, "b": {"c": 2}}),
            bytes.fromhex("a26161f93e006162bf616302ff"),  # half precision; a map of no stated length
        ],
    )
    def test_maps_and_arrays_are_read_as_in_json(self, payload: bytes, tmp_path: Path) -> None:
        assert values(tmp_path, self.PROFILE, payload) == [{"a": 1.5, "b.c": 2.0}]

    @pytest.mark.parametrize(
        ("tagged", "unit"), [("c11a6553f102", "s"), ("c074323032332d31312d31345432323a31333a32325a", "iso8601")]
    )
    def test_tagged_times_are_their_content(self, tagged: str, unit: str, tmp_path: Path) -> None:
        profile = self.PROFILE + f'time = {{ path = "t", unit = "{unit}" }}'
        assert Read(tmp_path, profile, bytes.fromhex("a2616101" + "6174" + tagged)).rows == [("d", 2.0, {"a": 1.0})]

    @pytest.mark.parametrize(
        ("payload", "fate"),
        [
            (b"", Fate.BAD_SYNTAX),
            (b"\xa1\x61a", Fate.BAD_SYNTAX),
            (b"\xa1\x61a\x01\x00", Fate.BAD_SYNTAX),
            (b"\xa2\x61a\x01\x61a\x02", Fate.BAD_SYNTAX),
            (b"\x81" * 1000 + b"\x01", Fate.BAD_SYNTAX),
            (b"\x9b\x00\x00\xff\xff\xff\xff\xff\xff", Fate.BAD_SYNTAX),
            (b"\x5b\x00\xff\xff\xff\xff\xff\xff\xff", Fate.BAD_SYNTAX),
            (b"\xa1\x41a\x01", Fate.BAD_SHAPE),
            (b"\xa1\x61a\xf9\x7e\x00", Fate.BAD_VALUE),
            (b"\xa1\x61a\xc2\x42\x01\x00", Fate.BAD_VALUE),
            (b"\xa1\x61a\xf7", Fate.NO_CHANNEL),
        ],
    )
    def test_what_is_no_map_of_numbers_is_refused(self, payload: bytes, fate: Fate, tmp_path: Path) -> None:
        assert Read(tmp_path, self.PROFILE, payload).decoded.fates == [fate]


@pytest.mark.parametrize(
    "profile",
    [
        'topic = "t/{device}/{channel}"\nformat = "csv"',
        'topic = "t/{device}/{channel}"\nreadings = { path = "*" }',
        TOPIC + 'format = "value"\nchannels = ["a", "b"]',
        'topic = "t/{device}/{channel}"\n' + NAMED,
        *(TOPIC + NAMED + f'format = "{name}"' for name in ("value", "csv", "influx", "senml")),
        SPARKPLUG + NAMED + 'format = "sparkplug"',
        TOPIC + NAMED + 'channels = [{ name = "a", path = "b" }]',
        TOPIC + 'channel = { path = "id", split = "." }\ndevice = { path = "of" }',
        TOPIC + 'channel = { path = "id", split = "" }',
        TOPIC + 'format = "xml"',
    ],
)
def test_a_profile_that_could_read_nothing_is_a_mistake_of_the_configuration(profile: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, profile)


class TestToldApart:
    @pytest.mark.parametrize(
        ("payload", "channels"),
        [
            (b'{"a": 1}', ("a",)),
            (b"21.5", ("value",)),
            (cbor2.dumps({"a": 1}), ("a",)),
            (b"m,x=y a=1 1700000000000000000", ("m.a",)),
            (b'[{"bn": "dev1:", "n": "a", "v": 1}]', ("a",)),
            (cbor2.dumps([{-2: "dev1:", 0: "a", 2: 1}]), ("a",)),
        ],
    )
    def test_without_a_format_each_is_what_it_can_only_be(
        self, payload: bytes, channels: tuple[str, ...], tmp_path: Path
    ) -> None:
        assert Read(tmp_path, TOPIC, payload).readings.channels == channels

    def test_what_none_of_them_is_has_the_fate_that_json_gives_it(self, tmp_path: Path) -> None:
        fates = Read(tmp_path, TOPIC, b"on", b"1,2", b"", b"nan", b"\xff").decoded.fates
        assert fates == [Fate.BAD_SYNTAX] * 3 + [Fate.BAD_VALUE, Fate.BAD_SYNTAX]

    def test_a_set_format_takes_no_other(self, tmp_path: Path) -> None:
        assert Read(tmp_path, TOPIC + 'format = "json"', cbor2.dumps({"a": 1})).decoded.fates == [Fate.BAD_SYNTAX]


def test_the_bench_says_the_same_readings_in_every_format() -> None:
    assert {form.format for form in FORMS.values()} == set(get_args(PayloadFormat)) - {"auto"}
    (expected,) = decoder(FORMS["json"]).decode(turn(FORMS["json"])[:9]).readings
    for name, form in FORMS.items():
        (read,) = decoder(form).decode(turn(form)[:9]).readings
        assert np.array_equal(read.values, expected.values[:, : read.values.shape[1]]), name
        assert name == "value" or np.array_equal(read.time, expected.time), name


def cbor_map(*items: bytes) -> bytes:
    """A map of keys and values that are written already."""
    return b"\xba" + (len(items) // 2).to_bytes(4) + b"".join(items)


def colliding(count: int) -> list[bytes]:
    """Arrays of two numbers that Python hashes to the same as tuples: solved for the second number."""
    one, two, five = 11400714785074694791, 14029467366897019727, 2870177450012600261  # xxHash's primes
    word = (1 << 64) - 1
    keys: list[tuple[int, int]] = []
    for a in range(1 << 20):
        first = five + a * two & word
        first = (first << 31 | first >> 33) * one & word
        b = (1 - first) * pow(two, -1, 1 << 64) & word
        if b < (1 << 61) - 1:
            keys.append((a, b))
        if len(keys) == count:
            break
    assert len({hash(key) for key in keys}) == 1
    return [cbor2.dumps(list(key)) for key in keys]


def of(unit: bytes, begin: bytes = b"", end: bytes = b"") -> bytes:
    """As many units as a payload may hold."""
    return begin + unit * ((MAX_PAYLOAD - len(begin) - len(end)) // len(unit)) + end


NO_CBOR_IS_MADE: Sequence[tuple[str, bytes, Fate]] = [
    ("colliding keys", cbor_map(*(part for key in colliding(5000) for part in (key, b"\0"))), Fate.BAD_SHAPE),
    ("numbers as keys", cbor_map(*(p for n in range(9000) for p in (cbor2.dumps(n * 2.0**61), b"\0"))), Fate.BAD_SHAPE),
    ("tagged keys", cbor_map(*(p for n in range(9000) for p in (b"\xc1" + cbor2.dumps(n), b"\0"))), Fate.BAD_SHAPE),
    ("keys within", b"\x81\xa1\x61a" + cbor_map(*[b"\xf6\0"] * 9000), Fate.BAD_SHAPE),
    ("empty maps", of(b"\xa0", b"\x9f", b"\xff"), Fate.TOO_LARGE),
    ("empty maps in a map", of(b"\xa0", b"\xa1\x61a\x9f", b"\xff"), Fate.TOO_LARGE),
    ("true", of(b"\xf5", b"\x9f", b"\xff"), Fate.TOO_LARGE),
    ("empty chunks of bytes", of(b"\x40", b"\x81\x5f", b"\xff"), Fate.TOO_LARGE),
    ("decimals", of(b"\xc4\x82\x18\x1e\x01", b"\x9f", b"\xff"), Fate.TOO_LARGE),
]
HOSTILE: Sequence[tuple[PayloadFormat, bytes, Fate]] = [
    ("cbor", b"\xa1\x61a\xc2\x5a" + (MAX_PAYLOAD - 9).to_bytes(4) + b"\xff" * (MAX_PAYLOAD - 9), Fate.NO_CHANNEL),
    ("cbor", b"\xa1\x61a\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01", Fate.NO_CHANNEL),
    ("cbor", b"\xa1\x61a\xd8\x23\x7a" + (1 << 19).to_bytes(4) + b"(" * (1 << 19), Fate.NO_CHANNEL),
    ("cbor", b"\xa1\x61a\xd8\x1e\x82\x01\x00", Fate.NO_CHANNEL),
    ("cbor", b"\xa1\x61a" + b"\xc1" * 100_000, Fate.BAD_SYNTAX),
    ("cbor", of(b"\x61a\0", b"\xbf", b"\xff"), Fate.TOO_LARGE),
    ("json", of(b"{},", b"[", b"{}]"), Fate.TOO_LARGE),
    ("json", of(b"[[[]]],", b"[", b"{}]"), Fate.TOO_LARGE),
    ("json", of(b'\\":', b'{"a":"', b'"}'), Fate.NO_CHANNEL),
    ("json", of(b'"a":1,', b"{", b'"b":1}'), Fate.TOO_LARGE),
    ("json", b'{"x":{' + b'"a":1,' * 100_000 + b'"b":1}}', Fate.BAD_SYNTAX),
    ("csv", of(b"1,"), Fate.TOO_LARGE),
    ("csv", of(b"1;"), Fate.TOO_LARGE),
    ("influx", b"m," + b",".join(b"t%d=a" % n for n in range(5000)) + b" f=1", Fate.TOO_LARGE),
    ("influx", of(b"a=1,", b"m ", b"b=1"), Fate.TOO_LARGE),
    ("senml", of(b',{"n":"b","v":1}', b'[{"bn":"' + b"a" * (MAX_PAYLOAD // 2) + b'"}', b"]"), Fate.TOO_LARGE),
    ("senml", b'[{"bn":"' + b"a" * 2000 + b'","n":"b","v":1}]', Fate.BAD_DEVICE),
]
HOSTILE_NAMES: Sequence[tuple[str, bytes, Fate | None]] = [
    (NAMED, of(b'{"id":"a","v":1},', b"[", b"{}]"), Fate.TOO_LARGE),
    (NAMED, of(b'{"v":1},', b"[", b"{}]"), Fate.TOO_LARGE),
    (NAMED, b"[" + b",".join(b'{"id":"%d","v":1}' % n for n in range(40_000)) + b"]", None),
    (NAMED + 'device = { path = "id" }', b"[" + b",".join(b'{"id":"%d","v":1}' % n for n in range(9000)) + b"]", Fate.TOO_LARGE),
    (NAMED, of(b"a", b'{"id":"', b'","v":"1"}'), Fate.NO_CHANNEL),
]  # fmt: skip


class TestHostile:
    @pytest.mark.parametrize("payload_format", ["cbor", "senml", "auto"])
    @pytest.mark.parametrize(
        ("payload", "fate"), [case[1:] for case in NO_CBOR_IS_MADE], ids=[case[0] for case in NO_CBOR_IS_MADE]
    )
    def test_what_would_cost_too_much_is_refused_before_anything_is_made_of_it(
        self, payload: bytes, fate: Fate, payload_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cbor2, "CBORDecoder", lambda *_args, **_options: pytest.fail("it is decoded"))
        assert Read(tmp_path, TOPIC + f'format = "{payload_format}"', payload).decoded.fates == [fate]

    def test_a_thousand_readings_of_64_channels_are_not_too_many(self, tmp_path: Path) -> None:
        reading = {f"c{n:02}": n for n in range(64)}
        for payload in (cbor2.dumps([reading] * MAX_READINGS), orjson.dumps([reading] * MAX_READINGS)):
            assert len(payload) > MAX_VALUES
            assert len(Read(tmp_path, TOPIC, payload).readings) == MAX_READINGS

    @pytest.mark.parametrize(
        ("profile", "payload", "fate"), [*((f'format = "{name}"', *case) for name, *case in HOSTILE), *HOSTILE_NAMES]
    )
    def test_it_takes_no_more_than_fifty_times_its_size(
        self, profile: str, payload: bytes, fate: Fate | None, tmp_path: Path
    ) -> None:
        assert len(payload) <= MAX_PAYLOAD
        specs = load(tmp_path, TOPIC + profile).specs()
        decoder, messages = Decoder([(specs[0], [])], "sentinel"), [Message("t/d", payload, received=NOW)]
        tracemalloc.start()
        try:
            decoded = decoder.decode(messages)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert decoded.fates == [fate]
        assert peak < 50 * len(payload) + 100_000


SEEDS = [
    b'{"a":1,"b":{"c":2}}',
    b"1.5,2;3",
    b'm,t=x a=1,b="q" 1700000000000000000\nm b=2i',
    b'[{"bn":"d:","bt":1700000000,"n":"a","v":1},{"n":"b","s":2,"t":-1}]',
    cbor2.dumps([{-2: "d:", 0: "a", 2: 1}]),
    cbor2.dumps({"a": 1.5, "b": [1, {"c": None}]}),
    b'[{"id":"a.b","v":1,"ts":1700000000},{"id":"c","v":2}]',
    cbor2.dumps([{"id": "a.b", "v": 1.5}, {"id": "a.b", "v": 2}]),
]
FUZZED = {name: f'format = "{name}"' for name in get_args(PayloadFormat)} | {
    "named": NAMED,
    "named, split": 'channel = { path = "id", value = "v", split = "." }\ntime = { path = "ts" }',
}


@st.composite
def near(draw: st.DrawFn) -> bytes:
    """A payload of some format with bytes of it replaced, cut out or doubled."""
    payload = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(payload)))
        payload[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(payload)


@pytest.mark.parametrize("name", FUZZED)
@given(payloads=st.lists(st.binary(max_size=40) | near(), max_size=8))
@example(payloads=[b"\xc1" * 5000, b"\xd8\x1c" * 5000, b"m f=" + b'"\\' * 5000, b"m" + b",a=b" * 5000, b"," * 5000])
@settings(max_examples=100, deadline=None)
def test_whatever_comes_has_one_fate_and_only_finite_numbers_come_out(
    name: str, payloads: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    of, topic = (SPARKPLUG, "spBv1.0/g/DBIRTH/e/d") if name == "sparkplug" else (TOPIC, "t/d")
    specs = load(tmp_path_factory.getbasetemp(), of + FUZZED[name]).specs()
    turn = Pipeline(specs, "sentinel").push([Message(topic, payload, received=NOW) for payload in payloads], NOW)
    assert sum(turn.fates.values()) == len(payloads)
    for readings in turn.decoded.readings:
        assert np.isfinite(readings.time).all()
        assert (np.nanmax(np.abs(readings.values), axis=1) <= 1e30).all()


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b", "c.a", "", 7]) | st.none() | st.lists(st.just("a"), max_size=1),
        "v": st.floats(allow_nan=False) | st.integers() | st.text(max_size=2) | st.booleans() | st.none(),
        "ts": st.integers(int(NOW), int(NOW) + 3) | st.none() | st.text(max_size=2),
        "of": st.sampled_from(["x", "y", "", "_fleet"]),
    },
)


@given(payloads=st.lists(st.lists(ENTRY | st.integers() | st.none(), max_size=6), max_size=6))
@settings(max_examples=150, deadline=None)
def test_whatever_entries_hold_each_value_is_read_once_or_counted(
    payloads: list[list[object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    profile = 'topic = "t/d"\n' + NAMED + 'time = { path = "ts" }\ndevice = { path = "of" }\nchannels = ["a", "b"]'
    read = Read(tmp_path_factory.getbasetemp(), profile, *(cbor2.dumps(payload) for payload in payloads)).decoded
    rows = [
        (m, d, t, v)
        for of in read.readings
        for m, d, t, v in zip(of.message, of.device, of.time, of.values, strict=True)
    ]
    given: list[tuple[int, str, float, str, float]] = []
    for at, payload in enumerate(payloads):
        for entry in payload:
            match entry:
                case {
                    "id": "a" | "b" as name,
                    "v": float() | int() as value,
                    "ts": int() as time,
                    "of": "x" | "y" as device,
                }:
                    if not isinstance(value, bool) and abs(value) <= 1e30:
                        given.append((at, device, float(time), name, float(value)))
    found = [
        (int(m), d, float(t), name, float(value))
        for m, d, t, row in rows
        for name, value in zip("ab", row, strict=True)
        if not np.isnan(value)
    ]
    assert sorted(found) == sorted(given)
    assert {m for m, *_ in found} == {at for at, fate in enumerate(read.fates) if fate is None}


PATHS = TOPIC + 'channels = ["v", { name = "flow", path = "f.value" }]\ntime = { path = "meta.ts" }\n'
BY_ID = 'topic = "t/+"\ndevice = { path = "meta.id" }\nchannels = ["v"]\n'
SAYS: list[tuple[str, bytes | object, str]] = [
    (BY_ID, {"id": 1, "meta": {"name": "a"}, "v": 1}, "nothing at device path 'meta.id'; the payload has: id, meta.name, v"),
    (BY_ID, {"meta": {"id": None}, "v": 1}, "nothing at device path 'meta.id'; the payload has: meta.id (null), v"),
    (BY_ID, {"meta": {"id": True}}, "true at device path 'meta.id', expected text"),
    (BY_ID, {"meta": {"id": [1]}}, "an array at device path 'meta.id', expected text"),
    (BY_ID, {"meta": {"id": {"x": 1}}}, "an object at device path 'meta.id', expected text; the payload has: meta.id.x"),
    (BY_ID, {"meta": {"id": "a" * 201}}, "device id of 201 bytes, over 200"),
    (BY_ID, "x", "the payload is text ('x'), expected an object"),
    (BY_ID, None, "the payload is null, expected an object"),
    (BY_ID, [], "the payload is an empty array, expected an object"),
    (BY_ID, [1, 2], "a reading is a number (2), expected an object"),
    (PATHS, {"v": 1, "ts": 5}, "nothing at time path 'meta.ts'; the payload has: v, ts"),
    (PATHS, {"v": 1, "meta": {"ts": "5"}}, "text ('5') at time path 'meta.ts', expected a number of s"),
    (
        PATHS,
        {"v": 1, "meta": {"ts": NOW * 1000}},
        "a number (1700000000000.0) at time path 'meta.ts' is out of range in s; in ms it would be 2023-11-14 22:13",
    ),
    (PATHS, {"v": 1, "meta": {"ts": -1}}, "a number (-1) at time path 'meta.ts' is out of range in s"),
    (PATHS, {"meta": {"ts": 5}, "w": 1}, "nothing at channel paths 'v', 'f.value'; the payload has: meta.ts, w"),
    (
        PATHS,
        {"meta": {"ts": 5}, "f": {"value": False}},
        "false at channel path 'f.value', expected a number; the payload has: meta.ts, f.value",
    ),
    (
        TOPIC + 'time = { path = "at", unit = "iso8601" }\n',
        {"at": 5, "v": 1},
        "a number (5) at time path 'at', expected an ISO 8601 time",
    ),
    (
        TOPIC + 'time = { path = "at", unit = "iso8601" }\n',
        {"at": "x" * 99, "v": 1},
        f"text ('{'x' * 39}…') at time path 'at', expected an ISO 8601 time",
    ),
    (TOPIC, {"name": "a", "time": 5}, "no number that can be a channel; the payload has: name, time"),
    (TOPIC, {f"k{n}": "x" for n in range(99)}, "no number that can be a channel; the payload has: "
     + ", ".join(f"k{n}" for n in range(10)) + ", …"),
    (TOPIC, {}, "no number that can be a channel; the payload has: nothing"),
    (TOPIC + 'readings = { path = "data" }\n', {"d": []}, "nothing at readings path 'data'; the payload has: d"),
    (TOPIC + 'readings = { path = "data" }\n', {"data": 5}, "a number (5) at readings path 'data', expected an object or an array"),
    (TOPIC + 'readings = { path = "*" }\n', {"a": 5}, "a reading is a number (5), expected an object"),
    ('topic = "{device}/{channel}"\nchannels = ["v", "w"]\n', b"1", "channel 'd' is none of the profile's: v, w"),
    ('topic = "{device}/{channel}"\n', {"v": 1}, "nothing at value path 'value'; the payload has: v"),
    ('topic = "{device}/{channel}"\n', "on", "the payload is text ('on'), expected a number"),
    (
        'topic = "{device}/{channel}"\ntime = { path = "ts" }\n',
        b"1",
        "the payload is a number (1) and carries no event time",
    ),
    (TOPIC + 'format = "senml"\n', {"n": "a"}, "the payload is an object, expected an array of SenML records"),
    (TOPIC + 'format = "senml"\n', [5], "a SenML record is a number (5), expected an object"),
    (TOPIC + 'format = "senml"\n', [{"n": "a", "t": "x", "v": 1}], "time is text ('x'), expected a number of seconds"),
    (
        TOPIC + 'channel = { path = "id" }\n',
        [{"name": "heat", "value": 1}],
        "nothing at channel path 'id'; the payload has: name, value",
    ),
    (
        TOPIC + 'channel = { path = "id" }\n',
        [{"id": "heat", "v": 1}],
        "nothing at channel value path 'value'; the payload has: id, v",
    ),
    (TOPIC + 'channel = { path = "id" }\n', [5], "an entry is a number (5), expected an object"),
    (TOPIC + 'channel = { path = "id" }\n', [], "nothing at channel value path 'value'; the payload has: nothing"),
    (TOPIC + 'format = "cbor"\n', cbor2.dumps(b"x"), "the payload is bytes, expected an object"),
    (
        TOPIC + 'format = "influx"\ndevice = { path = "tags.host" }\n',
        b"cpu,region=eu load=1",
        "nothing at device path 'tags.host'; the payload has: cpu.load, tags.region",
    ),
]  # fmt: skip


class TestWhatARefusalSays:
    @pytest.mark.parametrize(("profile", "payload", "detail"), SAYS)
    def test_names_what_was_found_where_and_what_is_there(
        self, tmp_path: Path, profile: str, payload: bytes | object, detail: str
    ) -> None:
        (refusal,) = Read(tmp_path, profile, payload).decoded.refusals
        assert refusal.detail == detail

    def test_a_birth_with_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        spec = load(tmp_path, SPARKPLUG + 'format = "sparkplug"\n').specs()[0]
        decoded = Decoder([(spec, [])], "sentinel").decode([Message("spBv1.0/g/NBIRTH/e", b"\x12\x03\x0a\x01\xff")])
        assert decoded.refusals[0].detail == "no Sparkplug payload: a metric's name is not UTF-8"

    @given(st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=400),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=400), inner, max_size=20),
        max_leaves=30,
    ))  # fmt: skip
    def test_is_short_and_speaks_no_python_whatever_comes(self, payload: object) -> None:
        channel = Channel("v", ("no", "v"))
        spec = ProfileSpec("p", topic="t/+", device_path=("no", "id"), channels=(channel,))
        (refusal,) = Decoder([(spec, ["v"])], "sentinel").decode([Message("t/d", orjson.dumps(payload))]).refusals
        assert 0 < len(refusal.detail) <= LONGEST
        refusal.detail.encode()
        assert not re.search(r"\b(NoneType|dict|list|str|int|float|bool|None)\b", refusal.detail.split(";")[0])
