"""Decoding: what is read, what is refused, and that nothing escapes (invariant 7)."""

import json
import math
from collections import Counter

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel.records import Channel, EventTime, Fate, Message, Naming, ProfileSpec
from sentinel.stream.decode import Decoded, Decoder, Template
from sentinel.stream.pipeline import Pipeline
from tests import fleets

PUMP = ProfileSpec(
    "pump",
    topic="plant/{site}/{device}/telemetry",
    time=EventTime(("ts",)),
    channels=(Channel("pressure", ("pressure",), "bar"), Channel("flow", ("flow", "value"), "m3/h")),
)
ROOM = ProfileSpec("room", topic="home/{device}/{channel}", channels=None)


def decode(*messages: Message, specs: tuple[ProfileSpec, ...] = (PUMP, ROOM)) -> Decoded:
    return Decoder([(spec, [c.name for c in spec.channels or ()]) for spec in specs], "sentinel").decode(messages)


def pump(payload: object, topic: str = "plant/north/p1/telemetry", retain: bool = False) -> Message:
    return Message(topic, payload if isinstance(payload, bytes) else orjson.dumps(payload), 1, retain, 100.0)


class TestTemplate:
    def test_named_wildcards_are_the_device_but_for_the_channel(self) -> None:
        template = Template("plant/{site}/{channel}/{device}")
        assert template.filter == "plant/+/+/+"
        assert template.match("plant/north/flow/p1") == ("north/p1", "flow")

    def test_without_names_the_whole_topic_is_the_device(self) -> None:
        assert Template("a/#").match("a/b/c") == ("a/b/c", None)
        assert Template("#").match("$SYS/broker") is None

    def test_a_plain_wildcard_beside_names_is_not_part_of_the_device(self) -> None:
        assert Template("a/+/{device}").match("a/x/d1") == ("d1", None)

    @pytest.mark.parametrize("text", ["", "a/x{device}", "a/{device}/{device}", "a/#/b", "a/b+"])
    def test_what_is_no_template_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"\S"):
            Template(text)


class TestReadings:
    def test_paths_times_and_devices_are_read(self) -> None:
        out = decode(pump({"ts": 12.5, "pressure": 3, "flow": {"value": 4.5}}))
        (readings,) = out.readings
        assert (readings.device, readings.time.tolist(), readings.values.tolist()) == (
            ["north/p1"],
            [12.5],
            [[3.0, 4.5]],
        )

    def test_readings_of_one_message_are_in_the_order_of_their_times_and_messages_in_that_of_arrival(self) -> None:
        entries = [{"ts": time, "pressure": value} for value, time in enumerate((9, 8, 8, 7))]
        (readings,) = decode(pump(entries), pump({"ts": 1, "pressure": 5}), pump({"ts": 2, "pressure": 6})).readings
        assert readings.time.tolist() == [7, 8, 8, 9, 1, 2]
        assert readings.values[:, 0].tolist() == [3, 1, 2, 0, 5, 6]
        assert readings.message.tolist() == [0, 0, 0, 0, 1, 2]

    @pytest.mark.parametrize(
        "entries",
        [
            [("a", 5 - at) for at in range(5)],
            [(name, 5 * at + 0.1 * (name == "b")) for name in "ab" for at in range(5)],
        ],
        ids=["newest first", "tag by tag"],
    )
    def test_a_list_of_named_values_in_any_order_loses_none(self, entries: list[tuple[str, float]]) -> None:
        spec = ProfileSpec(
            "log",
            topic="log/{device}",
            time=EventTime(("ts",)),
            naming=Naming(("id",)),
            channels=None,
            align_window=1.0,
        )
        pipeline = Pipeline([spec], "sentinel")
        payload = [{"ts": fleets.START + time, "id": name, "value": time} for name, time in entries]
        outcome = pipeline.push([Message("log/d", orjson.dumps(payload))], fleets.START).outcomes["log"]
        assert outcome.fates == {Fate.ACCEPTED: len(entries)}
        ticks = outcome.ticks + pipeline.profiles["log"].timer(fleets.START + 9).ticks
        assert sum(int((~np.isnan(each.batch.values)).sum()) for each in ticks) == len(entries)
        assert sum(len(each.batch) for each in ticks) == 5

    def test_a_channel_that_is_null_or_absent_is_missing_not_zero(self) -> None:
        (readings,) = decode(
            pump({"ts": 1, "pressure": None, "flow": {"value": 1}}), pump({"ts": 2, "pressure": 1})
        ).readings
        assert np.isnan(readings.values).tolist() == [[True, False], [False, True]]

    def test_one_value_a_topic_is_a_bare_number_or_an_object_with_a_value(self) -> None:
        topic = "home/attic/temp"
        out = decode(Message(topic, b"21.5", received=7.0), Message(topic, b'{"value": 22}', received=8.0))
        (readings,) = out.readings
        assert readings.channels == ("temp",)
        assert readings.values.tolist() == [[21.5], [22.0]]
        assert readings.time.tolist() == [7.0, 8.0]

    def test_auto_learns_the_numeric_leaves_and_never_a_clock(self) -> None:
        spec = ProfileSpec("auto", topic="a/{device}", channels=None)
        out = decode(Message("a/1", b'{"t":{"in":1,"out":2.5},"on":true,"name":"x","timestamp":1.7e9}'), specs=(spec,))
        assert out.readings[0].channels == ("t.in", "t.out")

    def test_an_array_of_objects_is_as_many_readings(self) -> None:
        out = decode(pump([{"ts": 1, "pressure": 1}, {"ts": 2, "pressure": 2}]))
        assert out.readings[0].time.tolist() == [1.0, 2.0]

    @pytest.mark.parametrize(
        ("unit", "value", "seconds"),
        [
            ("s", 1.5, 1.5),
            ("ms", 1500, 1.5),
            ("us", 1_500_000, 1.5),
            ("ns", 1_500_000_000, 1.5),
            ("iso8601", "1970-01-01T00:00:01.5", 1.5),
            ("iso8601", "1970-01-01T01:00:01.5+01:00", 1.5),
        ],
    )
    def test_event_time_has_a_unit_and_without_a_zone_it_is_utc(self, unit: str, value: object, seconds: float) -> None:
        spec = ProfileSpec("x", topic="x/{device}", time=EventTime(("t",), unit), channels=(Channel("v", ("v",)),))  # type: ignore[arg-type]
        (readings,) = decode(Message("x/1", orjson.dumps({"t": value, "v": 1})), specs=(spec,)).readings
        assert readings.time[0] == pytest.approx(seconds)

    @pytest.mark.parametrize(("unit", "meant", "factor"), [("ms", "s", 1), ("us", "ms", 1e3), ("ns", "s", 1)])
    def test_a_time_of_the_seventies_that_is_of_today_in_another_unit_is_refused(
        self, unit: str, meant: str, factor: float
    ) -> None:
        spec = ProfileSpec("x", topic="x/{device}", time=EventTime(("t",), unit), channels=(Channel("v", ("v",)),))  # type: ignore[arg-type]
        today = 1_795_935_173.0

        def taken(value: float) -> Decoded:
            return decode(Message("x/1", orjson.dumps({"t": value, "v": 1}), received=today + 60), specs=(spec,))

        (refusal,) = taken(today * factor).refusals
        assert refusal.fate == Fate.BAD_TIME
        assert refusal.detail.endswith(f"is out of range in {unit}; in {meant} it would be 2026-11-29 06:52")
        assert taken(5000 * factor).readings  # a device whose clock began with it

    def test_a_device_id_may_lie_in_the_payload(self) -> None:
        spec = ProfileSpec("x", topic="x/all", device_path=("id",), channels=(Channel("v", ("v",)),))
        (readings,) = decode(Message("x/all", b'{"id": 7, "v": 1}'), specs=(spec,)).readings
        assert readings.device == ["7"]

    def test_no_device_may_take_the_place_of_alerts_about_all(self) -> None:
        decoded = decode(Message("home/_fleet/heat", b"1"))
        assert decoded.fates == [Fate.BAD_DEVICE]

    def test_a_message_of_which_no_number_is_left_is_refused_once(self) -> None:
        spec = ProfileSpec("x", topic="x/{device}", channels=(Channel("v", ("v",)),))
        wild, half = [{"v": 1e31}] * 1000, [{"v": 1e31}, {"v": 1}] * 500
        decoded = decode(Message("x/a", orjson.dumps(wild)), Message("x/b", orjson.dumps(half)), specs=(spec,))
        assert decoded.fates == [Fate.BAD_VALUE, None]
        assert [refusal.message for refusal in decoded.refusals] == [0]
        assert len(decoded.readings[0]) == 500


GOOD = {"ts": 1.0, "pressure": 1.0, "flow": {"value": 2.0}}
REFUSED: list[tuple[object, Fate]] = [
    (b"", Fate.BAD_SYNTAX),
    (b"{", Fate.BAD_SYNTAX),
    (b"\xff\xfe", Fate.BAD_SYNTAX),
    (b"[" * 10_000 + b"]" * 10_000, Fate.BAD_SYNTAX),
    (b'{"ts":1,"pressure":1,"pressure":2}', Fate.BAD_SYNTAX),
    (b'{"ts":1,"pressure" :1,"pressure":2}', Fate.BAD_SYNTAX),
    (b'{"ts":1,"pressure"\n:1,"flow":{"value":2,"value":3}}', Fate.BAD_SYNTAX),
    (b'[{"ts":1,"pressure":1,"pressure":2},{"ts":2}]', Fate.BAD_SYNTAX),
    (b'{"ts":1,"pressure":{},"x":":","pressure":2}', Fate.BAD_SYNTAX),
    (b'{"ts":1,"pressure":NaN}', Fate.BAD_VALUE),
    (b'{"ts":1,"pressure":Infinity}', Fate.BAD_VALUE),
    (b'{"ts":1,"pressure":1e999}', Fate.BAD_VALUE),
    (b'{"ts":1,"pressure":' + b"9" * 400 + b"}", Fate.BAD_VALUE),
    (b"x" * (1 << 21), Fate.TOO_LARGE),
    ("text", Fate.BAD_SHAPE),
    (None, Fate.BAD_SHAPE),
    (3, Fate.BAD_SHAPE),
    ([], Fate.BAD_SHAPE),
    ([1], Fate.BAD_SHAPE),
    ({"ts": 1.0}, Fate.NO_CHANNEL),
    ({"ts": 1.0, "other": 1}, Fate.NO_CHANNEL),
    ({"ts": 1.0, "pressure": "high"}, Fate.BAD_VALUE),
    ({"ts": 1.0, "pressure": True}, Fate.BAD_VALUE),
    ({"pressure": 1.0}, Fate.BAD_TIME),
    (GOOD | {"ts": "now"}, Fate.BAD_TIME),
    (GOOD | {"ts": -1}, Fate.BAD_TIME),
    (GOOD | {"ts": 1e15}, Fate.BAD_TIME),
    (GOOD | {"ts": True}, Fate.BAD_TIME),
]


class TestRefusals:
    @pytest.mark.parametrize(("payload", "fate"), REFUSED)
    def test_each_has_its_reason(self, payload: object, fate: Fate) -> None:
        out = decode(pump(payload))
        assert out.fates == [fate]
        assert [refusal.fate for refusal in out.refusals] == [fate]
        assert not out.readings

    @pytest.mark.parametrize("text", [":", '":', '{"pressure":1,"pressure":2}', "12:30:00"])
    def test_colons_in_strings_are_no_keys(self, text: str) -> None:
        (readings,) = decode(pump({"ts": 1, "pressure": 3, "flow": {"value": 4.5, "said": text}})).readings
        assert readings.values.tolist() == [[3.0, 4.5]]

    def test_a_value_that_cannot_be_used_leaves_the_rest_of_its_reading(self) -> None:
        out = decode(pump({"ts": 1, "pressure": "high", "flow": {"value": 2}}))
        assert out.readings[0].values[0, 1] == 2
        assert out.bad_values == {"pump": 1}

    def test_values_of_no_number_and_numbers_too_large_are_counted_together(self) -> None:
        out = decode(
            pump({"ts": 1, "pressure": "high", "flow": {"value": 2}}),
            pump({"ts": 2, "pressure": 3, "flow": {"value": 1e31}}),
        )
        assert out.bad_values == {"pump": 2}

    def test_retained_without_an_event_time_announces_the_device_only(self) -> None:
        out = decode(Message("home/attic/temp", b"21.5", retain=True))
        assert out.fates == [Fate.RETAINED]
        assert not out.readings

    def test_retained_with_an_event_time_is_a_reading_like_any_other(self) -> None:
        assert len(decode(pump(GOOD, retain=True)).readings[0]) == 1

    def test_a_device_id_is_neither_empty_nor_long(self) -> None:
        long = "d" * 201
        out = decode(pump(GOOD, f"plant/north/{long}/telemetry"), pump(GOOD, "plant///telemetry"))
        assert out.fates == [Fate.BAD_DEVICE] * 2

    def test_a_topic_of_no_profile_is_foreign_and_not_counted(self) -> None:
        out = decode(pump(GOOD, "elsewhere"))
        assert (out.foreign, out.fates) == ([0], [None])


@given(st.lists(st.tuples(st.text(max_size=30), st.binary(max_size=60), st.booleans()), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_bytes_on_any_topic_have_one_fate_and_raise_nothing(given_messages: list[tuple[str, bytes, bool]]) -> None:
    pipeline = Pipeline([PUMP, ROOM, ProfileSpec("rest", topic="#", channels=None)], "sentinel")
    messages = [Message(topic, payload, 1, retain, 5.0) for topic, payload, retain in given_messages]
    turn = pipeline.push(messages, 5.0)
    assert sum(turn.fates.values()) == len(messages) - len(turn.decoded.foreign)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["ts", "pressure", "flow", "value", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=10))
@settings(max_examples=150, deadline=None)
def test_any_json_has_one_fate_and_only_finite_numbers_come_out(payloads: list[object]) -> None:
    pipeline = Pipeline([PUMP], "sentinel")
    turn = pipeline.push([pump(json.dumps(value).encode()) for value in payloads], 5.0)
    assert sum(turn.fates.values()) == len(payloads)
    for readings in turn.decoded.readings:
        assert np.isfinite(readings.time).all()
        assert (~np.isnan(readings.values)).any(axis=1).all()
        assert np.nanmax(np.abs(readings.values)) <= 1e30


def test_a_hundred_thousand_malformed_payloads_among_good_ones_are_counted_and_the_good_ones_scored() -> None:
    pipeline = Pipeline([fleets.spec(max_devices=50)], "sentinel")
    stream = pipeline.profiles["pump"]
    learned = fleets.learned()
    stream.adopt(learned.detector, learned.devices, learned.memory)
    rng = np.random.default_rng(0)
    values = fleets.healthy(1000, 0, 9)
    bad = [p for p, _ in REFUSED if not (isinstance(p, bytes) and len(p) > 20_000)]
    expected: Counter[Fate] = Counter()
    counted: Counter[Fate] = Counter()
    for t in range(1000):
        good = fleets.payload(t, values[t])
        messages = [Message("plant/d0/telemetry", orjson.dumps(good))]
        for kind in rng.integers(0, len(bad) + 1, 100):
            if kind == len(bad):
                messages.append(Message("plant/d0/telemetry", rng.bytes(30)))
            else:
                payload = bad[kind]
                body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
                messages.append(Message("plant/d0/telemetry", body))
        rng.shuffle(messages)
        messages = [Message(*m) for m in messages]
        counted.update(pipeline.push(messages, fleets.START + t).fates)
        expected[Fate.ACCEPTED] += 1
    assert sum(counted.values()) == 101_000
    assert counted[Fate.ACCEPTED] == expected[Fate.ACCEPTED] == stream.table.ticks[stream.table.slot_of["d0"]]
    assert set(counted) >= {Fate.BAD_SYNTAX, Fate.BAD_VALUE, Fate.BAD_TIME, Fate.BAD_SHAPE, Fate.NO_CHANNEL}
    assert not math.isnan(stream.table.score[stream.table.slot_of["d0"]])


def test_more_devices_than_allowed_are_refused_counted_and_take_no_room() -> None:
    pipeline = Pipeline([fleets.spec(max_devices=10)], "sentinel")
    good = orjson.dumps({"ts": fleets.START, "pressure": 1.0, "flow": 1.0, "heat": 1.0})
    turn = pipeline.push([Message(f"plant/x{i}/telemetry", good) for i in range(5000)], fleets.START)
    assert turn.fates == {Fate.ACCEPTED: 10, Fate.OVERFULL: 4990}
    assert pipeline.profiles["pump"].table.capacity <= 64
