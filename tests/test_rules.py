"""Rules, alignment and the device table, through the stream without a model."""

import math

import numpy as np
import pytest

from sentinel.records import Channel, Fate, Readings
from sentinel.stream.align import waves
from sentinel.stream.pipeline import ProfileStream
from tests import fleets

NAN = math.nan


def stream(**options: object) -> ProfileStream:
    return ProfileStream(fleets.spec(**options))


def feed(
    to: ProfileStream, rows: list[tuple[float, float, float, float]], device: str = "d", now: float = 0.0
) -> list[tuple[str, str, float]]:
    """Rows of time and three values; returns (kind, state, time of the transition)."""
    out: list[tuple[str, str, float]] = []
    for time, *values in rows:
        outcome, _ = to.absorb(fleets.readings([device], np.array([time]), np.array([values])), now or time)
        out += [(t.alert.kind, t.alert.state, t.alert.updated) for t in outcome.transitions]
    return out


def test_a_value_outside_its_range_breaks_the_range_rule_and_names_the_channel() -> None:
    channels = (Channel("pressure", ("pressure",), "bar", min=0, max=16), Channel("flow"), Channel("heat"))
    to = stream(channels=channels, quiet_ticks=2)
    assert feed(to, [(1, 5, 1, 1), (2, 17, 1, 1)]) == [("range", "firing", 2)]
    alert = to.book.retained("d")
    assert alert is not None
    assert (alert.channels[0].name, alert.channels[0].high) == ("pressure", 16)
    assert alert.message == "d: pressure 17 bar is out of its range 0 to 16 bar"
    assert feed(to, [(3, 5, 1, 1), (4, 5, 1, 1)]) == [("range", "resolved", 4)]


def test_a_value_that_changes_too_fast_for_the_time_that_passed_breaks_the_rate_rule() -> None:
    channels = (Channel("pressure", max_rate=1.0), Channel("flow"), Channel("heat"))
    to = stream(channels=channels)
    assert feed(to, [(0, 5, 1, 1), (10, 14, 1, 1), (11, 16, 1, 1)]) == [("rate", "firing", 11)]


def test_a_value_that_stays_the_same_for_too_long_is_stuck() -> None:
    to = stream(stuck_after=4, quiet_ticks=1)
    rows = [(float(t), 5.0, float(t), float(t)) for t in range(6)]
    assert feed(to, rows) == [("stuck", "firing", 3)]
    assert feed(to, [(7, 5.1, 9, 9)]) == [("stuck", "resolved", 7)]


def test_a_gap_is_an_alert_only_where_the_user_set_max_gap() -> None:
    rows = [(0.0, 1.0, 1.0, 1.0), (1.0, 2.0, 2.0, 2.0), (1000.0, 3.0, 3.0, 3.0)]
    assert feed(stream(), rows) == []
    assert feed(stream(max_gap=60.0), rows) == [("gap", "firing", 1000.0)]


def test_silence_is_noticed_by_the_clock_and_ends_with_the_next_reading() -> None:
    to = stream(silence_after=60.0)
    feed(to, [(0, 1, 1, 1)], now=1000.0)
    assert not to.timer_due(1060.0)
    assert to.timer_due(1061.0)
    moved = to.timer(1061.0).transitions
    assert [(t.alert.kind, t.alert.state, t.alert.started) for t in moved] == [("silence", "firing", 1000.0)]
    assert to.states()["silent"] == 1
    assert to.timer(1062.0).transitions == []
    assert feed(to, [(5, 1, 1, 2)], now=1100.0) == [("silence", "resolved", 1100.0)]
    assert to.states() == {"learning": 1, "calibrating": 0, "scoring": 0, "silent": 0, "offline": 0}


def test_silence_auto_waits_for_ten_usual_intervals_and_at_least_five_minutes() -> None:
    slow = stream()
    for hour in range(30):
        feed(slow, [(hour * 3600.0, 1, 1, hour)], now=hour * 3600.0)
    last = 29 * 3600.0
    assert not slow.timer_due(last + 9 * 3600)
    assert slow.timer_due(last + 11 * 3600)


def test_a_device_unheard_for_its_ttl_is_forgotten_and_its_slot_reused() -> None:
    to = stream(device_ttl=100.0, silence_after=0.0)
    feed(to, [(0, 1, 1, 1)], device="old", now=1000.0)
    slot = to.table.slot_of["old"]
    to.timer(1101.0)
    assert "old" not in to.table.slot_of
    feed(to, [(0, 2, 2, 2)], device="new", now=1102.0)
    assert to.table.slot_of["new"] == slot
    assert to.table.ticks[slot] == 1


def test_late_and_duplicate_readings_are_dropped_and_counted() -> None:
    to = stream()
    rows = [(10.0, 1.0, 1.0, 1.0), (10.0, 1.0, 1.0, 1.0), (9.0, 1.0, 1.0, 1.0), (10.0, 2.0, 1.0, 1.0)]
    times, values = np.array([r[0] for r in rows]), np.array([r[1:] for r in rows])
    outcome, codes = to.absorb(fleets.readings(["d"] * 4, times, values), 0.0)
    assert outcome.fates == {Fate.ACCEPTED: 2, Fate.DUPLICATE: 1, Fate.LATE: 1}
    assert len(codes) == 4


def test_waves_hold_a_device_once_and_keep_its_order() -> None:
    slots = np.array([1, 2, 1, 1, 3, 2])
    assert [wave.tolist() for wave in waves(slots)] == [[0, 1, 4], [2, 5], [3]]


class TestAlignment:
    """One value a topic: messages of one device within the window become one tick."""

    def push(self, to: ProfileStream, time: float, now: float, **values: float) -> list[tuple[float, list[float]]]:
        row = np.array([[values.get(name, NAN) for name in fleets.CHANNELS]])
        outcome, _ = to.absorb(
            Readings("pump", fleets.CHANNELS, ["d"], np.array([time]), row, np.zeros(1, dtype=np.int64)), now
        )
        return [(float(t.batch.time[0]), t.batch.values[0].tolist()) for t in outcome.ticks]

    def due(self, to: ProfileStream, now: float) -> list[list[float]]:
        return [t.batch.values[0].tolist() for t in to.timer(now).ticks]

    def test_a_tick_waits_for_its_channels_and_goes_when_all_that_the_device_has_came(self) -> None:
        to = stream(align_window=1.0)
        assert self.push(to, 0.0, 0.0, pressure=1) == []
        assert self.push(to, 0.2, 0.2, flow=2) == []
        np.testing.assert_array_equal(self.due(to, 1.0), [[1, 2, NAN]])
        assert self.push(to, 10.0, 10.0, pressure=3) == []
        ((time, values),) = self.push(to, 10.1, 10.1, flow=4)
        assert time == 10.0
        np.testing.assert_array_equal(values, [3, 4, NAN])

    def test_a_channel_that_comes_again_ends_the_tick_before(self) -> None:
        to = stream(align_window=1.0)
        self.push(to, 0.0, 0.0, pressure=1)
        ((time, values),) = self.push(to, 0.5, 0.5, pressure=2)
        assert time == 0.0
        np.testing.assert_array_equal(values, [1, NAN, NAN])

    def test_channels_that_are_learned_while_a_tick_waits_join_it(self) -> None:
        to = stream(channels=None, align_window=1.0)
        for at in range(3):
            row = np.array([[NAN] * at + [at + 1.0]])
            to.absorb(
                Readings("pump", ("a", "b", "c")[: at + 1], ["d"], np.zeros(1), row, np.zeros(1, dtype=np.int64)), 0.0
            )
        np.testing.assert_array_equal(self.due(to, 1.0), [[1, 2, 3]])

    def test_readings_that_come_late_or_twice_are_counted_as_such_and_make_no_tick(self) -> None:
        to = stream(align_window=1.0)
        for now, time, value in ((0.0, 10.0, 1.0), (0.0, 10.0, 1.0), (5.0, 20.0, 2.0), (5.0, 5.0, 3.0)):
            row = np.array([[value, NAN, NAN]])
            outcome, codes = to.absorb(fleets.readings(["d"], np.array([time]), row), now)
            assert len(codes) == sum(outcome.fates.values()) == 1
        assert len(to.timer(100.0).ticks) == 1
        assert to.table.ticks[to.table.slot_of["d"]] == 2

    def test_a_reading_before_the_tick_that_it_would_end_is_late_and_that_tick_waits_on(self) -> None:
        to = stream(align_window=1.0)
        rows = np.array([[value, NAN, NAN] for value in (5.0, 4.0, 3.0)])
        outcome, _ = to.absorb(fleets.readings(["d"] * 3, np.array([5.0, 4.0, 3.0]), rows), 0.0)
        assert (outcome.fates, outcome.count) == ({Fate.ACCEPTED: 1, Fate.LATE: 2}, 0)
        outcome = to.timer(1.0)
        assert (outcome.fates, outcome.count) == ({}, 1)

    def test_what_a_tick_that_waits_and_the_one_before_say_already_is_a_duplicate(self) -> None:
        to = stream(align_window=1.0)
        self.push(to, 0.0, 0.0, pressure=1, flow=2)
        self.push(to, 5.0, 5.0, pressure=1)
        outcome, _ = to.absorb(fleets.readings(["d"], np.array([5.0]), np.array([[1.0, 2.0, NAN]])), 5.0)
        assert outcome.fates == {Fate.DUPLICATE: 1}
        assert to.timer(6.0).count == 1

    def test_by_time_of_receipt_nothing_is_late_or_doubled(self) -> None:
        to = stream(align_window=1.0, time=None)
        ticks = []
        for now in (100.0, 100.0, 102.0, 50.0, 53.0):
            ticks += self.push(to, now, now, pressure=7)
        assert len(ticks) == 5

    def test_a_clock_that_is_set_back_holds_no_tick_up(self) -> None:
        to = stream(align_window=1.0)
        self.push(to, 0.0, 5000.0, pressure=1)
        assert to.timer_due(100.0)
        assert len(self.due(to, 100.0)) == 1

    def test_a_pending_tick_survives_a_snapshot(self) -> None:
        to, other = stream(align_window=1.0), stream(align_window=1.0)
        self.push(to, 0.0, 0.0, pressure=1)
        slots = np.array(list(to.table))
        other.restore(to.export(), None, list(zip(["d"], to.rows(slots), strict=True)))
        np.testing.assert_array_equal(self.due(other, 5.0), [[1, NAN, NAN]])


class TestClocks:
    @pytest.mark.parametrize("window", [0.0, 1.0])
    def test_one_time_far_ahead_does_not_deafen_a_device_for_good(self, window: float) -> None:
        to = stream(align_window=window)
        feed(to, [*((float(t), 1, 1, t) for t in range(10)), (1e9, 1, 1, 2)])
        fates: list[Fate] = []
        for t in range(20):
            outcome, _ = to.absorb(fleets.readings(["d"], np.array([20.0 + t]), np.array([[1.0, 2.0, t]])), 0.0)
            fates += list(outcome.fates)
        assert fates[:15] == [Fate.LATE] * 15
        assert fates[15:] == [Fate.ACCEPTED] * 5

    def test_readings_that_are_a_little_late_never_begin_a_new_timeline(self) -> None:
        to = stream()
        feed(to, [(1000.0, 1, 1, 1)])
        for t in range(40):
            outcome, _ = to.absorb(fleets.readings(["d"], np.array([900.0 + t]), np.array([[1.0, 2.0, t]])), 0.0)
            assert outcome.fates == {Fate.LATE: 1}

    def test_without_event_times_what_comes_at_once_is_taken_in_order_of_arrival(self) -> None:
        to = stream(time=None)
        values = np.ones((5, 3))
        outcome, _ = to.absorb(fleets.readings(["d"] * 5, np.full(5, 100.0), values), 100.0)
        assert outcome.fates == {Fate.ACCEPTED: 5}
        outcome, _ = to.absorb(fleets.readings(["d"], np.array([90.0]), values[:1]), 90.0)
        assert outcome.fates == {Fate.ACCEPTED: 1}, "our clock stepped back"


def test_a_channel_that_falls_out_does_not_resolve_its_alert() -> None:
    channels = (Channel("pressure", max=16), Channel("flow"), Channel("heat"))
    to = stream(channels=channels, quiet_ticks=2)
    feed(to, [(1, 17, 1, 1)])
    assert feed(to, [(float(t), NAN, 1, 1) for t in range(2, 12)]) == []
    assert feed(to, [(12, 5, 1, 1), (13, 5, 1, 1)]) == [("range", "resolved", 13)]


def test_a_fleet_is_not_silent_while_nobody_listens() -> None:
    to = stream(silence_after=60.0)
    feed(to, [(0, 1, 1, 1)], now=1000.0)
    to.listening_since = math.inf
    assert not to.timer_due(5000.0)
    to.listening_since = 5000.0
    assert not to.timer_due(5050.0)
    assert to.timer_due(5061.0)


def test_a_storm_ends_when_the_devices_are_well_again() -> None:
    channels = (Channel("pressure", max=16), Channel("flow"), Channel("heat"))
    to = stream(channels=channels, quiet_ticks=2)
    for i in range(12):
        feed(to, [(1, 17, 1, 1)], device=f"d{i}", now=1000.0)
    assert [t.alert.kind for t in to.timer(1001.0).transitions] == ["storm"]
    for i in range(12):
        feed(to, [(2, 5, 1, 1), (3, 5, 1, 1)], device=f"d{i}", now=1002.0)
    assert to.timer_due(1100.0)
    assert [(t.alert.kind, t.alert.state) for t in to.timer(1100.0).transitions] == [("storm", "resolved")]
    assert not to.timer_due(1101.0)


def test_columns_are_matched_by_name_whatever_their_order() -> None:
    to = stream()
    swapped = Readings(
        "pump", ("heat", "pressure"), ["d"], np.array([1.0]), np.array([[60.0, 5.0]]), np.zeros(1, dtype=np.int64)
    )
    to.absorb(swapped, 0.0)
    np.testing.assert_array_equal(to.table.last[to.table.slot_of["d"]], [5.0, NAN, 60.0])


def test_a_snapshot_survives_channels_that_are_learned_and_reordered() -> None:
    first = stream(channels=None)
    for names, device in ((("a",), "x"), (("a", "b"), "y")):
        row = np.arange(1.0, len(names) + 1)[None]
        first.absorb(Readings("pump", names, [device], np.array([1.0]), row, np.zeros(1, dtype=np.int64)), 0.0)
    assert first.table.dirty[first.table.slot_of["x"]], "its row is wider now"
    slots = np.array(list(first.table))
    rows = list(zip([first.table.ids[s] for s in slots], first.rows(slots), strict=True))
    other = stream(channels=(Channel("b"), Channel("a")))
    other.restore(first.export(), None, rows)
    np.testing.assert_array_equal(other.table.last[other.table.slot_of["y"]], [2.0, 1.0])
