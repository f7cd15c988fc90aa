"""Sparkplug B: what its messages are read as, sessions of edge nodes, and that a restart knows what births said."""

import struct
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel.errors import ConfigError
from sentinel.host import FIRST, LAST, MOST_ASKED, Host, Rebirths, denies
from sentinel.records import Birth, Channel, Death, Fate, Heard, Message, ProfileSpec, Readings
from sentinel.settings import load_settings
from sentinel.stream.decode import Decoded, Edges
from sentinel.stream.decode.sparkplug import MAX_METRICS, parse_topic, read_payload, rebirth, unit
from sentinel.stream.pipeline import Pipeline, ProfileStream, Turn
from tests.edges import (
    BOOLEAN,
    DATETIME,
    DOUBLE,
    FLOAT,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    EdgeNode,
    metric,
    payload,
)

NOW = 1_700_000_000.0
SPEC = ProfileSpec("plc", topic="spBv1.0/#", format="sparkplug")
DEVICE = "plant/e1/d1"
VALUES = {"temp": (DOUBLE, 21.5), "speed": (INT32, (1 << 32) - 7), "on": (BOOLEAN, True), "name": (STRING, b"x")}


class Plant:
    """A pipeline and what one turn after the other made of messages."""

    def __init__(self, spec: ProfileSpec = SPEC) -> None:
        self.pipeline = Pipeline([spec])
        self.now = NOW

    @property
    def stream(self) -> ProfileStream:
        return self.pipeline.profiles["plc"]

    def take(self, *messages: tuple[str, bytes], qos: int = 0, retain: bool = False) -> Turn:
        """All in one turn."""
        self.now += 1.0
        given = [Message(topic, body, qos, retain, self.now) for topic, body in messages]
        return self.pipeline.push(given, self.now)

    def state(self, device: str) -> str:
        return self.stream.device_state(self.stream.table.slot_of[device])


def rows(decoded: Decoded) -> list[tuple[str, float, dict[str, float]]]:
    """Device, time since `NOW` and values of each reading."""
    return [
        (device, round(time - NOW, 6), {c: v for c, v in zip(part.channels, values, strict=True) if v == v})  # noqa: PLR0124 - NaN
        for part in decoded.readings
        for device, time, values in zip(part.device, part.time.tolist(), part.values.tolist(), strict=True)
    ]


def born(spec: ProfileSpec = SPEC) -> tuple[Plant, EdgeNode]:
    """A plant that has heard of one node and one device."""
    plant, node = Plant(spec), EdgeNode()
    plant.take(node.birth(NOW, {"load": (FLOAT, 0.5)}), node.birth(NOW, VALUES, "d1"))
    return plant, node


class TestTopics:
    @pytest.mark.parametrize("verb", ["NBIRTH", "NDATA", "NDEATH"])
    def test_a_node_is_a_device_by_group_and_edge(self, verb: str) -> None:
        assert parse_topic(f"spBv1.0/g/{verb}/e") == (verb, "g/e", "g/e")

    @pytest.mark.parametrize("verb", ["DBIRTH", "DDATA", "DDEATH"])
    def test_a_device_has_its_nodes_name_before_its_own(self, verb: str) -> None:
        assert parse_topic(f"spBv1.0/g/{verb}/e/d") == (verb, "g/e", "g/e/d")

    @pytest.mark.parametrize("topic", ["spBv1.0/STATE/scada", "spBv1.0/g/NCMD/e", "spBv1.0/g/DCMD/e/d"])
    def test_commands_and_states_are_no_input_and_not_counted(self, topic: str) -> None:
        turn = Plant().take((topic, b"\xff"))
        assert (turn.fates, turn.decoded.foreign, turn.entries) == ({}, [0], [])

    @pytest.mark.parametrize(
        "topic",
        [
            "spBv1.0", "spBv1.0/g", "spBv1.0/g/NBIRTH", "spBv1.0/g/NBIRTH/e/d", "spBv1.0/g/DDATA/e", "spBv1.0/g/XDATA/e",
            "spBv1.0/g/DDATA/e/d/x", "spBv1.0//NDATA/e", "spBv1.0/g/DDATA/e/" + "x" * 200,
        ],
    )  # fmt: skip
    def test_what_is_no_topic_of_sparkplugs_is_refused(self, topic: str) -> None:
        assert Plant().take((topic, payload(NOW, 0))).fates == {Fate.BAD_DEVICE: 1}


class TestPayloads:
    @pytest.mark.parametrize(
        ("kind", "sent", "number"),
        [
            (INT8, 0xFF, -1), (INT8, 0xFFFFFFFF, -1), (INT8, 127, 127), (INT8, 0x80, -128),
            (INT16, 0xFFFE, -2), (INT16, 0xFFFFFFFE, -2), (INT16, 32767, 32767),
            (INT32, 0xFFFFFFFD, -3), (INT32, 7, 7), (INT64, (1 << 64) - 4, -4), (INT64, 1 << 62, 2.0**62),
            (UINT8, 255, 255), (UINT16, 65535, 65535), (UINT32, 0xFFFFFFFF, 4294967295), (UINT64, (1 << 64) - 1, 2.0**64),
            (FLOAT, 0.5, 0.5), (DOUBLE, -1e-3, -1e-3),
        ],
    )  # fmt: skip
    def test_numbers_are_read_by_their_data_type(self, kind: int, sent: float, number: float) -> None:
        plant, node = Plant(), EdgeNode()
        (row,) = rows(plant.take(node.birth(NOW, {"a": (kind, sent)}, "d1")).decoded)
        assert row == (DEVICE, 0.0, {"a": number})
        (row,) = rows(plant.take(node.data(NOW + 1, {"a": (kind, sent)}, "d1")).decoded)
        assert row == (DEVICE, 1.0, {"a": number})

    def test_an_integer_may_come_in_the_wider_field(self) -> None:
        body = payload(
            NOW, 0, metric("a", INT32, (1 << 64) - 5, field="long_value"), metric("b", UINT32, 5, field="long_value")
        )
        assert rows(Plant().take(("spBv1.0/plant/DDATA/e1/d1", body)).decoded) == [(DEVICE, 0.0, {"a": -5.0, "b": 5.0})]

    @pytest.mark.parametrize(
        ("kind", "sent"), [(INT8, 300), (UINT8, 256), (UINT16, 1 << 16), (DOUBLE, float("nan")), (FLOAT, float("inf"))]
    )
    def test_what_is_out_of_its_types_range_is_a_bad_value(self, kind: int, sent: float) -> None:
        turn = Plant().take(
            ("spBv1.0/plant/DDATA/e1/d1", payload(NOW, 0, metric("a", kind, sent), metric("b", DOUBLE, 1.0)))
        )
        assert rows(turn.decoded) == [(DEVICE, 0.0, {"b": 1.0})]
        assert turn.decoded.bad_values == {"plc": 1}
        alone = Plant().take(("spBv1.0/plant/DDATA/e1/d1", payload(NOW, 0, metric("a", kind, sent))))
        assert alone.fates == {Fate.BAD_VALUE: 1}

    def test_what_is_no_number_is_counted_and_never_a_channel(self) -> None:
        others = [
            metric("s", STRING, b"x"), metric("b", BOOLEAN, True), metric("t", DATETIME, 5),
            metric("set", 16, b"\x08\x01", field="dataset_value"), metric("file", 18, b"\xff", field="bytes_value"),
            metric("template", 19, b"\xff\xff", field="template_value"), metric("ext", 0, b"", field="extension_value"),
        ]  # fmt: skip
        turn = Plant().take(("spBv1.0/plant/DDATA/e1/d1", payload(NOW, 0, metric("a", INT8, 1), *others)))
        assert turn.decoded.readings[0].channels == ("a",)
        assert turn.decoded.unknown == {"plc": len(others)}
        assert Plant().take(("spBv1.0/plant/DDATA/e1/d1", payload(NOW, 0, *others))).fates == {Fate.NO_CHANNEL: 1}

    def test_null_is_missing(self) -> None:
        plant, node = born()
        turn = plant.take(
            (node.topic("DDATA", "d1"), payload(NOW + 1, 2, metric(alias=102), metric("temp", DOUBLE, 1.0))),
        )
        assert rows(turn.decoded)[0][2] == {"temp": 1.0}
        assert plant.take((node.topic("DDATA", "d1"), payload(NOW + 2, 3, metric("temp", DOUBLE)))).fates == {
            Fate.ACCEPTED: 1
        }

    def test_metrics_of_the_protocol_are_no_channels(self) -> None:
        plant, node = born()
        assert plant.stream.channels == ["load", "temp", "speed"]
        body = payload(
            NOW, node.seq + 1, metric("Node Control/Scan Rate", INT64, 5), metric("Device Control/x", INT8, 5)
        )
        assert plant.take((node.topic("NDATA"), body)).fates == {Fate.ACCEPTED: 1}
        assert "Node Control/Scan Rate" not in plant.stream.channels

    def test_metrics_are_readings_by_their_own_times_in_order(self) -> None:
        plant, node = born()
        body = payload(
            NOW + 9, 2,
            metric("temp", DOUBLE, 3.0, timestamp=int((NOW + 3) * 1e3)), metric("speed", INT32, 9),
            metric("speed", INT32, 2, timestamp=int((NOW + 2) * 1e3)), metric("load", FLOAT, 1.0, timestamp=int((NOW + 3) * 1e3)),
        )  # fmt: skip
        assert rows(plant.take((node.topic("DDATA", "d1"), body)).decoded) == [
            (DEVICE, 2.0, {"speed": 2.0}),
            (DEVICE, 3.0, {"temp": 3.0, "load": 1.0}),
            (DEVICE, 9.0, {"speed": 9.0}),
        ]

    def test_a_birth_is_one_reading_of_its_own_time(self) -> None:
        body = payload(
            NOW, 0, metric("a", INT8, 1, timestamp=int((NOW - 500) * 1e3)), metric("b", INT8, 2, timestamp=5)
        )
        assert rows(Plant().take(("spBv1.0/plant/DBIRTH/e1/d1", body)).decoded) == [(DEVICE, 0.0, {"a": 1.0, "b": 2.0})]

    def test_without_a_time_it_is_that_of_receipt_and_an_odd_one_is_refused(self) -> None:
        plant = Plant()
        topic = "spBv1.0/plant/DDATA/e1/d1"
        assert rows(plant.take((topic, payload(0, 0, metric("a", INT8, 1)))).decoded) == [(DEVICE, 1.0, {"a": 1.0})]
        assert plant.take((topic, payload(5, 1, metric("a", INT8, 1)))).fates == {Fate.BAD_TIME: 1}

    def test_historical_values_go_by_their_times_and_are_late_where_newer_ones_came(self) -> None:
        plant, node = born()
        flag = b"\x28\x01"  # is_historical
        old = payload(NOW + 5, 2, metric("temp", DOUBLE, 1.0, timestamp=int((NOW - 60) * 1e3)) + flag)
        assert plant.take((node.topic("DDATA", "d1"), old)).fates == {Fate.LATE: 1}
        newer = payload(NOW + 5, 3, metric("temp", DOUBLE, 1.0, timestamp=int((NOW + 2) * 1e3)) + flag)
        assert plant.take((node.topic("DDATA", "d1"), newer)).fates == {Fate.ACCEPTED: 1}

    def test_bytes_that_nobody_of_ours_encoded(self) -> None:
        """By hand from the wire format: field << 3 | type; 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes."""
        double = b"\x0a\x01t" + b"\x10\x05" + b"\x20\x0a" + b"\x69" + struct.pack("<d", 21.5)  # name, alias 5, Double
        small = b"\x0a\x01i" + b"\x10\x06" + b"\x20\x01" + b"\x50\xfe\x01"  # Int8, int_value 254
        unknown = b"\x0a\x01n" + b"\x20\x03" + b"\x28\x01" + b"\x38\x00" + b"\xfa\x01\x02hi" + b"\x50\x07"  # field 31
        time = b"\x08\x80\xd0\x95\xff\xbc\x31"  # 1 700 000 000 000
        body = (
            time
            + b"".join(b"\x12" + bytes([len(m)]) + m for m in (double, small, unknown))
            + b"\x18\x01"
            + b"\x22\x01u"
        )
        plant = Plant()
        assert rows(plant.take(("spBv1.0/plant/DBIRTH/e1/d1", body)).decoded) == [
            (DEVICE, 0.0, {"t": 21.5, "i": -2.0, "n": 7.0})
        ]
        data = time + b"\x12\x05" + b"\x10\x06" + b"\x50\xfd\x01" + b"\x18\x02"  # alias 6, 253
        turn = plant.take(("spBv1.0/plant/DDATA/e1/d1", data))
        assert (rows(turn.decoded), turn.decoded.gaps) == ([(DEVICE, 0.0, {"i": -3.0})], {})

    def test_what_we_send_is_the_command_that_nodes_know(self) -> None:
        message = rebirth(NOW)
        wanted = b"\x08\x80\xd0\x95\xff\xbc\x31" + b"\x12\x21" + b"\x0a\x14Node Control/Rebirth"
        assert message == wanted + b"\x18\x80\xd0\x95\xff\xbc\x31" + b"\x20\x0b" + b"\x70\x01"

    @pytest.mark.parametrize(
        ("body", "fate"),
        [
            (b"\xff", Fate.BAD_SYNTAX), (b"\x12\x05a", Fate.BAD_SYNTAX), (b"\x12\x02\x0a\x09", Fate.BAD_SYNTAX),
            (payload(NOW, 0, metric("a", INT8, 1)).replace(b"\x0a\x01a", b"\x0a\x01\xff"), Fate.BAD_SYNTAX),
            (b"\x12\x00" * (MAX_METRICS + 1), Fate.TOO_LARGE), (b"\x12\x00" * (1 << 19) + b"\0", Fate.TOO_LARGE),
            (b"\x12\x00" * MAX_METRICS, Fate.ACCEPTED), (b"", Fate.ACCEPTED), (b"\x5b" * 5000, Fate.BAD_SYNTAX),
        ],
    )  # fmt: skip
    def test_hostile_payloads_have_a_fate(self, body: bytes, fate: Fate) -> None:
        assert Plant().take(("spBv1.0/plant/DDATA/e1/d1", body)).fates == {
            Fate.UNBORN if body.startswith(b"\x12\x00") and fate is Fate.ACCEPTED else fate: 1
        }

    def test_units_of_a_birth_are_those_of_its_properties(self) -> None:
        properties = b"\x0a\x07engUnit" + b"\x12\x07" + b"\x08\x0c" + b"\x42\x03bar"
        body = payload(
            NOW, 0, metric("p", FLOAT, 1.0, properties=properties), metric("q", FLOAT, 1.0, properties=b"\xff")
        )
        assert [unit(m) for m in read_payload(Message("", body)).metrics] == ["bar", ""]


class TestSessions:
    def test_data_go_by_the_aliases_and_types_of_the_birth(self) -> None:
        plant, node = born()
        turn = plant.take(
            node.data(NOW + 1, {"temp": (DOUBLE, 22.0), "speed": (INT32, (1 << 32) - 8)}, "d1"),
            node.data(NOW + 1, {"load": (FLOAT, 0.25)}),
        )
        assert rows(turn.decoded) == [
            (DEVICE, 1.0, {"temp": 22.0, "speed": -8.0}),
            ("plant/e1", 1.0, {"load": 0.25}),
        ]

    def test_named_channels_are_metrics_whatever_their_names_hold(self, tmp_path: Path) -> None:
        file = tmp_path / "s.toml"
        file.write_text(
            '[profiles.plc]\ntopic = "spBv1.0/#"\nformat = "sparkplug"\n'
            'channels = ["Motor/Speed.rpm", { name = "t", path = "Motor/Temp" }]'
        )
        plant, node = Plant(load_settings(file).specs()[0]), EdgeNode()
        turn = plant.take(
            node.birth(NOW, {"Motor/Speed.rpm": (INT32, 5), "Motor/Temp": (FLOAT, 2.0), "z": (INT8, 1)}, "d1")
        )
        assert rows(turn.decoded) == [(DEVICE, 0.0, {"Motor/Speed.rpm": 5.0, "t": 2.0})]
        assert turn.decoded.unknown == {"plc": 1}

    def test_before_a_birth_only_what_says_all_by_itself_is_read(self) -> None:
        plant, topic = Plant(), "spBv1.0/plant/DDATA/e1/d1"
        turn = plant.take(
            (topic, payload(NOW, 7, metric("a", INT8, 255), metric("b", field="double_value", value=2.0)))
        )
        assert rows(turn.decoded) == [(DEVICE, 0.0, {"a": -1.0, "b": 2.0})]
        assert not turn.decoded.unborn
        for seq, one in enumerate(
            (metric(alias=3, field="double_value", value=1.0), metric("c", field="int_value", value=1)), 8
        ):
            turn = plant.take((topic, payload(NOW, seq, one)))
            assert (turn.fates, turn.decoded.unborn) == ({Fate.UNBORN: 1}, {("plc", "plant/e1")})

    def test_an_alias_that_no_birth_named_leaves_the_others(self) -> None:
        plant, node = born()
        body = payload(NOW + 1, 2, metric(alias=99, field="double_value", value=1.0), metric("temp", DOUBLE, 2.0))
        turn = plant.take((node.topic("DDATA", "d1"), body))
        assert turn.fates == {Fate.ACCEPTED: 1}
        assert (turn.decoded.unborn, turn.decoded.unknown) == ({("plc", "plant/e1")}, {"plc": 1})

    def test_a_value_that_is_not_of_its_births_type_is_of_a_birth_that_was_missed(self) -> None:
        plant, node = born()
        alias = node.aliases["d1", "temp"]
        body = payload(NOW + 1, 2, metric(alias=alias, field="int_value", value=1))
        turn = plant.take((node.topic("DDATA", "d1"), body))
        assert (turn.fates, turn.decoded.unborn) == ({Fate.UNBORN: 1}, {("plc", "plant/e1")})

    def test_a_new_birth_means_what_it_says_and_ends_what_was_said_before(self) -> None:
        plant, node = born()
        old = dict(node.aliases)
        node.reborn()
        plant.take(node.birth(NOW + 1, {"load": (FLOAT, 0.5)}))
        body = payload(NOW + 2, 1, metric(alias=old["d1", "temp"], field="double_value", value=1.0))
        assert plant.take((node.topic("DDATA", "d1"), body)).fates == {Fate.UNBORN: 1}
        node.seq = 1
        plant.take(node.birth(NOW + 3, VALUES, "d1"))
        turn = plant.take(node.data(NOW + 4, {"temp": (DOUBLE, 5.0)}, "d1"))
        assert rows(turn.decoded) == [(DEVICE, 4.0, {"temp": 5.0})]

    @pytest.mark.parametrize(
        "metrics",
        [[metric("a", INT8, 1, alias=1), metric("b", INT8, 1, alias=1)], [metric("", INT8, 1, alias=1)]],
    )
    def test_a_birth_that_contradicts_itself_is_refused(self, metrics: Sequence[bytes]) -> None:
        assert Plant().take(("spBv1.0/plant/NBIRTH/e1", payload(NOW, 0, *metrics))).fates == {Fate.BAD_SHAPE: 1}

    def test_a_birth_without_numbers_is_used_and_makes_no_device(self) -> None:
        plant, node = Plant(), EdgeNode()
        assert plant.take(node.birth(NOW, {"name": (STRING, b"x")})).fates == {Fate.ACCEPTED: 1}
        assert len(plant.stream.table) == 0

    def test_a_birth_of_nulls_makes_a_device(self) -> None:
        plant, node = Plant(), EdgeNode()
        plant.take(node.birth(NOW, {"a": (DOUBLE, None)}, "d1"))
        assert list(plant.stream.table.slot_of) == [DEVICE]

    def test_sequences_go_round_and_a_gap_is_told_once(self) -> None:
        plant, node = born()
        for at in range(300):
            turn = plant.take(node.data(NOW + 1 + at, {"temp": (DOUBLE, float(at))}, "d1"))
            assert not turn.decoded.gaps
        node.data(NOW, {"temp": (DOUBLE, 0.0)}, "d1")
        turn = plant.take(node.data(NOW + 400, {"temp": (DOUBLE, 1.0)}, "d1"))
        assert (turn.decoded.gaps, turn.decoded.unborn) == ({"plc": 1}, {("plc", "plant/e1")})
        assert turn.fates == {Fate.ACCEPTED: 1}, "its aliases are known"
        assert not plant.take(node.data(NOW + 401, {"temp": (DOUBLE, 2.0)}, "d1")).decoded.gaps

    @given(st.lists(st.tuples(st.sampled_from(["node", "d1", "d2"]), st.booleans()), max_size=600), st.integers(0, 255))
    @settings(max_examples=30, deadline=None)
    def test_gaps_are_as_many_as_runs_of_lost_messages(self, sent: list[tuple[str, bool]], first: int) -> None:
        plant, node = Plant(), EdgeNode()
        messages, gaps, missing, heard = [], 0, 0, False
        node.seq = first
        for at, (device, lost) in enumerate(sent):
            topic = node.topic("NDATA") if device == "node" else node.topic("DDATA", device)
            message = topic, payload(NOW + at, node._next(), metric("a", INT8, at % 100))
            if lost:
                missing += 1
                continue
            gaps += heard and missing % 256 > 0
            missing, heard = 0, True
            messages.append(message)
        assert plant.take(*messages).decoded.gaps.get("plc", 0) == gaps

    def test_what_comes_again_is_a_duplicate_and_no_gap(self) -> None:
        plant, node = born()
        last = [node.data(NOW + 1 + at, {"temp": (DOUBLE, float(at))}, "d1") for at in range(3)]
        plant.take(*last, qos=1)
        assert plant.take(last[-1], qos=1).fates == {Fate.DUPLICATE: 1}
        turn = plant.take(*last, node.data(NOW + 9, {"temp": (DOUBLE, 9.0)}, "d1"), qos=1)
        assert turn.fates == {Fate.ACCEPTED: 1, Fate.DUPLICATE: 1, Fate.LATE: 2}
        assert not turn.decoded.gaps

    def test_a_birth_that_comes_again_changes_nothing(self) -> None:
        plant, node = Plant(), EdgeNode()
        births = [node.birth(NOW, {"load": (FLOAT, 0.5)}), node.birth(NOW, VALUES, "d1")]
        plant.take(*births, qos=1)
        before = plant.stream.edges.export()
        turn = plant.take(*births, qos=1)
        assert (turn.fates, turn.decoded.gaps) == ({Fate.DUPLICATE: 2}, {})
        assert plant.stream.edges.export() == before

    def test_a_retained_birth_tells_only_what_nothing_else_has_told(self) -> None:
        plant, _ = born()
        old = EdgeNode()
        old.birth(NOW, {"load": (FLOAT, 0.5)})
        before = plant.stream.edges.export()
        plant.take(old.birth(NOW, {"speed": (INT32, 1), "temp": (DOUBLE, 1.0)}, "d1"), retain=True)
        assert plant.stream.edges.export() == before
        fresh = Plant()
        fresh.take(old.birth(NOW, VALUES, "d2"), retain=True)
        turn = fresh.take(old.data(NOW + 1, {"temp": (DOUBLE, 2.0)}, "d2"))
        assert rows(turn.decoded) == [("plant/e1/d2", 1.0, {"temp": 2.0})]

    def test_a_device_that_is_forgotten_leaves_its_room_to_others(self) -> None:
        plant = Plant(replace(SPEC, max_devices=5))
        plant.take(*((f"spBv1.0/g/NDATA/e{at}", payload(NOW, 0, metric("a", INT8, 1))) for at in range(5)))
        assert plant.stream.edges.full
        forgotten = plant.stream.timer(plant.now + 2 * SPEC.device_ttl).forgotten
        assert len(forgotten) == 5
        assert plant.stream.edges.export() == {}
        assert not plant.stream.edges.full

    def test_names_of_a_kilobyte_are_refused(self) -> None:
        plant, node = Plant(), EdgeNode()
        assert plant.take(node.birth(NOW, {"x" * 1025: (FLOAT, 0.5)})).fates == {Fate.BAD_SHAPE: 1}

    def test_nodes_metrics_and_devices_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plant = Plant(replace(SPEC, max_devices=5))
        bodies = [(f"spBv1.0/g/NDATA/e{at}", payload(NOW, 0, metric("a", INT8, 1))) for at in range(50)]
        fates = plant.take(*bodies).fates
        assert fates == {Fate.ACCEPTED: 5, Fate.OVERFULL: 45}
        assert len(plant.stream.edges.export()) == 5
        monkeypatch.setattr("sentinel.stream.decode.edges.MOST_MEANINGS", 10)
        plant, node = Plant(), EdgeNode()
        assert plant.take(node.birth(NOW, VALUES, "d1"), node.birth(NOW, VALUES, "d2")).fates == {
            Fate.ACCEPTED: 1,
            Fate.OVERFULL: 1,
        }

    def test_the_count_of_what_is_held_is_true_after_anything(self) -> None:
        plant, node = born()
        for at in range(5):
            node.reborn()
            plant.take(node.birth(NOW + at, {"a": (INT8, 1)}), node.birth(NOW + at, VALUES, f"d{at}"))
            plant.take(node.death(NOW + at, f"d{at}"), node.death(NOW + at) if at % 2 else node.birth(NOW + at, {}))
        held = plant.stream.edges
        assert held._devices == sum(len(n.devices) for n in held._nodes.values())
        assert held._meanings == sum(len(m) for n in held._nodes.values() for m in n.devices.values())


class TestDeaths:
    def test_a_nodes_death_takes_its_devices_offline_and_a_birth_brings_each_back(self) -> None:
        plant, node = born()
        plant.take(node.death(NOW))
        assert plant.stream.states()["offline"] == 2
        node.reborn()
        plant.take(node.birth(NOW + 1, {"load": (FLOAT, 0.5)}))
        assert (plant.state("plant/e1"), plant.state(DEVICE)) == ("learning", "offline")
        plant.take(node.birth(NOW + 1, VALUES, "d1"))
        assert plant.stream.states()["offline"] == 0

    def test_a_devices_death_is_its_own(self) -> None:
        plant, node = born()
        turn = plant.take(node.death(NOW, "d1"))
        assert (turn.fates, turn.decoded.gaps) == ({Fate.ACCEPTED: 1}, {})
        assert (plant.state("plant/e1"), plant.state(DEVICE)) == ("learning", "offline")
        assert plant.take(node.data(NOW + 1, {"temp": (DOUBLE, 1.0)}, "d1")).fates == {Fate.UNBORN: 1}
        plant.take((node.topic("DDATA", "d1"), payload(NOW + 2, node._next(), metric("temp", DOUBLE, 1.0))))
        assert plant.state(DEVICE) == "learning"

    def test_a_death_of_an_earlier_birth_is_late_and_changes_nothing(self) -> None:
        plant, node = born()
        stale = node.death(NOW)
        node.reborn()
        plant.take(node.birth(NOW + 1, {"load": (FLOAT, 0.5)}), node.birth(NOW + 1, VALUES, "d1"))
        assert plant.take(stale).fates == {Fate.LATE: 1}
        assert plant.stream.states()["offline"] == 0
        plant.take(node.death(NOW + 2))
        assert plant.stream.states()["offline"] == 2

    def test_of_one_turn_what_came_last_holds(self) -> None:
        plant, node = born()
        plant.take(node.data(NOW + 1, {"temp": (DOUBLE, 1.0)}, "d1"), node.death(NOW + 1))
        assert plant.state(DEVICE) == "offline"
        node.reborn()
        plant.take(node.birth(NOW + 2, {}), node.birth(NOW + 2, VALUES, "d1"), node.death(NOW + 2), node.birth(NOW + 3, {}),
                   node.birth(NOW + 3, VALUES, "d1"))  # fmt: skip
        assert plant.state(DEVICE) == "learning"
        assert [type(e) for e in plant.take(node.data(NOW + 4, {"temp": (DOUBLE, 2.0)}, "d1")).entries] == [
            Readings,
            Heard,
        ]

    def test_devices_that_no_birth_told_of_go_offline_with_their_node(self) -> None:
        plant = Plant()
        plant.take(("spBv1.0/plant/DDATA/e1/d1", payload(NOW, 0, metric("a", INT8, 1))))
        plant.take(EdgeNode().death(NOW + 1))
        assert plant.state(DEVICE) == "offline"

    def test_who_is_offline_is_not_silent_and_an_open_silence_is_over(self) -> None:
        plant, node = born(replace(SPEC, silence_after=60.0))
        plant.take(node.data(NOW + 1, {"load": (FLOAT, 1.0)}))
        first = plant.stream.timer(plant.now + 100)
        assert sorted((t.alert.device, t.alert.kind) for t in first.transitions) == [
            ("plant/e1", "silence"),
            (DEVICE, "silence"),
        ]
        outcome = plant.take(node.death(NOW + 2)).outcomes["plc"]
        assert [(t.alert.kind, t.alert.state) for t in outcome.transitions] == [("silence", "resolved")] * 2
        assert not plant.stream.timer(plant.now + 1000).transitions
        assert plant.stream.states()["offline"] == 2

    def test_who_stays_offline_too_long_is_told_once_until_a_birth(self) -> None:
        plant, node = born(replace(SPEC, silence_after=60.0, offline_after=600.0))
        death = node.death(NOW + 2)
        plant.take(death)
        died = plant.now
        assert not plant.stream.timer(died + 599).transitions
        plant.take((death[0], death[1]))
        told = plant.stream.timer(died + 601).transitions
        assert sorted((t.alert.device, t.alert.kind, t.alert.state) for t in told) == [
            ("plant/e1", "silence", "firing"),
            (DEVICE, "silence", "firing"),
        ]
        assert "d1: offline since" in told[-1].alert.message
        plant.take((death[0], death[1]))
        assert not plant.stream.timer(died + 2000).transitions
        assert plant.stream.states()["offline"] == 2
        node.reborn()
        births = node.birth(NOW + 3000, {"load": (FLOAT, 0.5)}), node.birth(NOW + 3000, VALUES, "d1")
        ended = plant.take(*births).outcomes["plc"].transitions
        assert [(t.alert.kind, t.alert.state) for t in ended] == [("silence", "resolved")] * 2

    def test_the_time_offline_is_no_gap_but_a_gap_after_it_is(self) -> None:
        plant, node = born(replace(SPEC, max_gap=60.0, channels=(Channel("temp", ("temp",)),)))
        plant.take(node.data(NOW + 1, {"temp": (DOUBLE, 1.0)}, "d1"), node.death(NOW + 2))
        node.reborn()
        births = node.birth(NOW + 500, {}), node.birth(NOW + 500, VALUES, "d1")
        assert not plant.take(*births).outcomes["plc"].transitions
        outcome = plant.take(node.data(NOW + 1000, {"temp": (DOUBLE, 2.0)}, "d1")).outcomes["plc"]
        assert [t.alert.kind for t in outcome.transitions] == ["gap"]

    def test_a_tick_that_waited_for_its_window_at_the_death_brings_no_gap_either(self) -> None:
        spec = replace(SPEC, max_gap=60.0, align_window=1.0, channels=(Channel("temp", ("temp",)),))
        plant, node = born(spec)
        plant.take(node.data(NOW + 1, {"temp": (DOUBLE, 1.0)}, "d1"), node.death(NOW + 2))
        plant.stream.timer(plant.now + 10)
        node.reborn()
        plant.now += 500
        moved = plant.take(node.birth(NOW + 500, {}), node.birth(NOW + 500, VALUES, "d1")).outcomes["plc"].transitions
        assert [*moved, *plant.stream.timer(plant.now + 10).transitions] == []

    def test_a_retained_death_takes_nobody_offline(self) -> None:
        plant, node = born()
        assert plant.take(node.death(NOW + 2, "d1"), retain=True).fates == {Fate.LATE: 1}
        assert plant.state(DEVICE) != "offline"

    def test_an_alert_about_values_stays_open_while_offline(self) -> None:
        plant, node = born(replace(SPEC, channels=(Channel("temp", ("temp",), max=10.0),)))
        plant.take(node.data(NOW + 1, {"temp": (DOUBLE, 99.0)}, "d1"))
        plant.take(node.death(NOW + 2))
        assert list(plant.stream.book.open[DEVICE]) == ["range"]


Step = tuple[str, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["birth", "data", "death", "lose", "named", "retained"]), st.sampled_from(["", "d1", "d2"])
    ),
    max_size=40,
)


def message(node: EdgeNode, step: Step, at: int) -> tuple[str, bytes] | None:
    """What a node sends, None: it is lost, or it has nothing to say."""
    verb, device = step
    if verb in ("birth", "retained"):
        if not device:
            node.reborn()
        return node.birth(NOW + at, VALUES, device)
    if verb == "death":
        return node.death(NOW + at, device)
    if verb == "named":
        return node.topic("DDATA", "d9"), payload(NOW + at, node._next(), metric("temp", DOUBLE, float(at)))
    if (device, "temp") not in node.aliases:
        return None
    sent = node.data(NOW + at, {"temp": (DOUBLE, float(at))}, device)
    return None if verb == "lose" else sent


class TestRestart:
    @given(STEPS, st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(0, 40))
    @settings(max_examples=60, deadline=None)
    def test_what_the_journal_holds_makes_the_same_sessions_and_states(
        self, steps: list[Step], turns: list[int], snapshot: int
    ) -> None:
        """However the messages were cut into turns, and wherever a snapshot was taken."""
        node, live, again, at = EdgeNode(), Plant(), ProfileStream(SPEC), 0
        while at < len(steps):
            size = turns[at % len(turns)]
            sent = [m for k, step in enumerate(steps[at : at + size], at) if (m := message(node, step, k)) is not None]
            if at <= snapshot < at + size:
                fresh, slots = ProfileStream(SPEC), np.array(list(again.table), dtype=np.int64)
                ids = [again.table.ids[slot] for slot in slots]
                fresh.restore(
                    orjson.loads(orjson.dumps(again.export())), None, zip(ids, again.rows(slots), strict=True)
                )
                again = fresh
            turn = live.take(*sent, retain=bool(steps[at][0] == "retained"))
            for entry in turn.entries:
                match entry:
                    case Readings():
                        again.absorb(entry, live.now)
                    case Birth() | Death():
                        again.edges.take(entry)
                        again.presence(entry, live.now)
                    case Heard():
                        again.edges.take(entry)
            at += size
        ours, theirs = live.stream, again
        assert theirs.edges.export() == ours.edges.export()
        assert {d: theirs.device_state(s) for d, s in theirs.table.slot_of.items()} == {
            d: ours.device_state(s) for d, s in ours.table.slot_of.items()
        }
        np.testing.assert_array_equal(ours.table.paused[list(ours.table)], theirs.table.paused[list(theirs.table)])

    def test_sessions_survive_json(self) -> None:
        plant, _ = born()
        fresh = Edges(10)
        fresh.restore(orjson.loads(orjson.dumps(plant.stream.edges.export())))
        assert fresh.export() == plant.stream.edges.export()
        assert (fresh._devices, fresh._meanings) == (plant.stream.edges._devices, plant.stream.edges._meanings)


TOPICS = [f"spBv1.0/g/{verb}/e" for verb in ("NBIRTH", "NDATA", "NDEATH", "NCMD")] + [
    f"spBv1.0/g/{verb}/e/{device}" for verb in ("DBIRTH", "DDATA", "DDEATH") for device in "ab"
]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A payload of metrics of every kind, with bytes of it replaced, cut out or doubled."""
    values: dict[int, Any] = {STRING: b"x", BOOLEAN: True, FLOAT: 1.5, DOUBLE: -2.5}
    metrics = []
    for _ in range(draw(st.integers(0, 4))):
        kind, alias = draw(st.integers(1, 13)), draw(st.integers(0, 3) | st.none())
        value = values.get(kind, draw(st.integers(0, 2**32 - 1)))
        named: dict[str, Any] = {} if alias is None else {"alias": alias}
        metrics.append(metric(draw(st.sampled_from(["", "a", "b", "bdSeq"])), kind, value, **named))
    body = bytearray(payload(NOW + draw(st.integers(0, 9)), draw(st.integers(0, 300) | st.none()), *metrics))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(body)


@given(st.lists(st.tuples(st.sampled_from(TOPICS), bodies() | st.binary(max_size=30), st.booleans()), max_size=12))
@settings(max_examples=300, deadline=None)
def test_whatever_comes_has_one_fate_and_only_finite_numbers_come_out(sent: list[tuple[str, bytes, bool]]) -> None:
    pipeline = Pipeline([SPEC])
    turn = pipeline.push([Message(topic, body, 1, retain, NOW) for topic, body, retain in sent], NOW)
    assert sum(turn.fates.values()) + len(turn.decoded.foreign) == len(sent)
    for readings in turn.decoded.readings:
        assert np.isfinite(readings.time).all()
        assert (np.nanmax(np.abs(readings.values), axis=1) <= 1e30).all()
    orjson.dumps(pipeline.profiles["plc"].export())


class TestConfiguration:
    @pytest.mark.parametrize("topic", ["spBv1.0/#", "spBv1.0/plant/#", "spBv1.0/+/+/e1/#", "spBv1.0/plant/+/#"])
    def test_topics_that_hold_the_births_too(self, topic: str, tmp_path: Path) -> None:
        file = tmp_path / "s.toml"
        file.write_text(f'[profiles.plc]\ntopic = "{topic}"\nformat = "sparkplug"')
        assert load_settings(file).specs()[0].format == "sparkplug"

    @pytest.mark.parametrize(
        ("profile", "said"),
        [
            ('topic = "spBv1.0/{group}/DDATA/{edge}/{device}"', "births"), ('topic = "plant/#"', "births"),
            ('topic = "spBv1.0/plant/DDATA/#"', "births"), ('topic = "spBv1.0/#"\ntime = { path = "t" }', "time has no"),
            ('topic = "spBv1.0/#"\nreadings = { path = "t" }', "readings has no"),
        ],
    )  # fmt: skip
    def test_a_profile_that_could_not_know_births_is_a_mistake(self, profile: str, said: str, tmp_path: Path) -> None:
        file = tmp_path / "s.toml"
        file.write_text(f'[profiles.plc]\nformat = "sparkplug"\n{profile}')
        with pytest.raises(ConfigError, match=said):
            load_settings(file)

    def test_what_has_no_effect_or_takes_the_will_away_is_told(self, tmp_path: Path) -> None:
        file = tmp_path / "s.toml"
        file.write_text('[mqtt]\nhost_id = "h"\nrebirth = true\n[home_assistant]\n[profiles.a]\ntopic = "a/{device}"')
        said = " ".join(load_settings(file).warnings())
        assert "mqtt.rebirth has no effect" in said
        assert "home_assistant with mqtt.host_id" in said

    @pytest.mark.parametrize("host", ["a/b", "+", ""])
    def test_a_host_id_is_one_level(self, host: str, tmp_path: Path) -> None:
        file = tmp_path / "s.toml"
        file.write_text(f'[mqtt]\nhost_id = "{host}"')
        with pytest.raises(ConfigError, match="host_id"):
            load_settings(file)


class TestHost:
    def test_the_will_and_the_state_of_one_connection_have_one_time(self) -> None:
        clock = iter([1.0, 2.0, 3.0])
        host = Host("scada", lambda: next(clock))
        assert host.topic == "spBv1.0/STATE/scada"
        assert orjson.loads(host.will()) == {"online": False, "timestamp": 2000}
        assert orjson.loads(host.online()) == {"online": True, "timestamp": 2000}
        assert orjson.loads(host.offline()) == {"online": False, "timestamp": 3000}

    @pytest.mark.parametrize(("said", "so"), [(b'{"online": false}', True), (b'{"online": true}', False), (b"x", False), (b"1", False)])  # fmt: skip
    def test_who_says_that_it_is_offline(self, said: bytes, so: bool) -> None:
        assert denies(said) is so

    def test_a_node_is_asked_at_once_and_then_ever_more_rarely(self) -> None:
        rebirths, asked = Rebirths(), []
        for second in range(4000):
            rebirths.refill()
            if rebirths.may_ask("g/e", float(second)):
                asked.append(second)
        gaps = np.diff(asked)
        assert asked[:4] == [0, FIRST, 3 * FIRST, 7 * FIRST]
        assert gaps.max() == LAST
        assert rebirths.may_ask("g/e", 9999.0)
        assert rebirths.may_ask("g/e", 9999.0 + FIRST)

    def test_many_nodes_are_asked_a_hundred_a_second_and_only_so_many_are_remembered(self) -> None:
        rebirths = Rebirths()
        assert sum(rebirths.may_ask(f"g/{at}", 0.0) for at in range(1000)) == 100
        for at in range(2 * MOST_ASKED):
            rebirths.refill()
            rebirths.may_ask(f"g/{at}", 1.0)
        assert len(rebirths._asked) == MOST_ASKED
        assert rebirths.may_ask("g/new", 2 * LAST)
        rebirths.refill()
        assert rebirths.may_ask("g/another", 2 * LAST)
        assert len(rebirths._asked) == MOST_ASKED


def test_protobuf_is_imported_only_where_it_is_needed() -> None:
    code = "import sys, sentinel.stream.pipeline; sys.exit('google.protobuf' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
