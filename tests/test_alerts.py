"""The life of an alert."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import get_args

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel.adapters.sinks import load_schema
from sentinel.records import AlertKind, ChannelView, How, Transition
from sentinel.stream.alerts import AlertBook, Evidence, duration, quantity, words
from tests import fleets

VIEW = ChannelView("vibration", "mm/s", 9.1, 3.2, 2.6, 3.8, 0.83)


def seen(score: float = 1.5) -> dict[AlertKind, Callable[[], Evidence]]:
    return {"prediction": lambda: Evidence(score, 1e-6, (VIEW,))}


def book(**options: object) -> AlertBook:
    return AlertBook(fleets.spec(**{"quiet_ticks": 3, **options}), model="v1")


def play(alerts: AlertBook, anomalous: str, device: str = "pump-7") -> list[Transition]:
    """One tick a sign: "x" anomalous, "." quiet."""
    out = []
    for t, sign in enumerate(anomalous):
        moved, _ = alerts.tick(device, 100.0 + t, 100.0 + t, seen() if sign == "x" else {}, t)
        out += moved
    return out


def states(transitions: list[Transition]) -> list[tuple[str, int]]:
    return [(t.alert.state, t.alert.seq) for t in transitions]


def test_an_alert_fires_at_once_and_resolves_after_its_quiet_time() -> None:
    moved = play(book(), "xx...")
    assert states(moved) == [("firing", 0), ("resolved", 1)]
    first, last = moved[0].alert, moved[1].alert
    assert first.id == last.id
    assert (first.started, first.fired, first.ended) == (100.0, 100.0, None)
    assert (last.started, last.fired, last.ticks) == (100.0, 100.0, 2)
    assert moved[0].retained == first
    assert moved[1].retained is None
    assert [t.message for t in moved] == [0, 4]


def test_the_quiet_time_is_not_part_of_the_episode() -> None:
    last = play(book(quiet_ticks=20), "xx.x" + "." * 20)[-1].alert
    assert (last.started, last.ended, last.updated) == (100.0, 103.0, 123.0)
    assert last.message.startswith("pump-7: vibration 9.1 mm/s, expected 3.2 ± 0.6 for 3 s;")


def test_an_episode_begins_when_the_disturbance_did_and_says_when_it_fired() -> None:
    alerts = book(min_ticks=2)
    evidence: dict[AlertKind, Callable[[], Evidence]] = {"prediction": lambda: Evidence(2.5, 1e-6, (VIEW,), 70.0)}
    told = [alerts.tick("p", t, t, evidence, 0)[0][0] for t in (100.0, 110.0)]
    assert [(t.alert.started, t.alert.fired, t.fires) for t in told] == [(70.0, None, False), (70.0, 110.0, True)]
    last = alerts.forget("p", 900.0)[0]
    assert (last.alert.started, last.alert.fired, last.alert.ended, last.fires) == (70.0, 110.0, 110.0, False)


def test_an_episode_never_begins_after_the_tick_that_opened_it() -> None:
    moved, _ = book().tick("p", 5.0, 5.0, {"prediction": lambda: Evidence(2.0, 0.1, (VIEW,), 6.0)}, 0)
    assert (moved[0].alert.started, moved[0].alert.fired) == (5.0, 5.0)


def test_two_episodes_that_trace_back_to_one_moment_are_two_alerts() -> None:
    alerts, ids = book(quiet_ticks=1), []
    for t in (100.0, 102.0):
        moved, _ = alerts.tick("p", t, t, {"prediction": lambda: Evidence(2.0, 0.1, (VIEW,), 99.0)}, 0)
        ids.append(moved[0].alert.id)
        alerts.tick("p", t + 1, t + 1, {}, 0)
    assert ids[0] != ids[1]


def test_quiet_ticks_that_are_interrupted_do_not_resolve() -> None:
    assert states(play(book(), "x..x..x..")) == [("firing", 0)]


def test_a_minimum_length_keeps_an_alert_pending_and_a_short_one_never_fires() -> None:
    assert states(play(book(min_ticks=3), "xx...")) == [("pending", 0), ("resolved", 1)]
    assert states(play(book(min_ticks=3), "x.x.x...")) == [("pending", 0), ("firing", 1), ("resolved", 2)]


def test_the_same_episode_has_the_same_id_in_every_run_and_another_one_has_another() -> None:
    one, same = play(book(), "x...")[0].alert.id, play(book(), "x...")[0].alert.id
    assert one == same
    ids = [t.alert.id for t in play(book(), "x...x...") if t.alert.state == "firing"]
    assert len(set(ids)) == 2


def test_the_retained_alert_is_the_most_urgent_of_several() -> None:
    alerts = book()
    alerts.tick("p", 1.0, 1.0, {"stuck": lambda: Evidence(None, None, ())}, 0)
    moved, _ = alerts.tick("p", 2.0, 2.0, {"stuck": lambda: Evidence(None, None, ()), **seen()}, 1)
    assert moved[0].retained is not None
    assert moved[0].retained.kind == "prediction"
    for t in range(3):
        moved, _ = alerts.tick("p", 3.0 + t, 3.0, {"stuck": lambda: Evidence(None, None, ())}, 2)
    assert moved[0].alert.kind == "prediction"
    assert moved[0].retained is not None
    assert moved[0].retained.kind == "stuck"


def test_an_acknowledged_alert_stays_open_and_resolves_by_itself() -> None:
    alerts = book()
    play(alerts, "x")
    assert states(alerts.acknowledge("pump-7", 101.0)) == [("acknowledged", 1)]
    assert states(play(alerts, "...")) == [("resolved", 2)]


def test_a_shelved_alert_fires_again_when_its_time_is_over() -> None:
    alerts = book()
    play(alerts, "x")
    assert states(alerts.shelve("pump-7", 101.0, 60.0)) == [("shelved", 1)]
    assert alerts.due(160.0) == []
    assert states(alerts.due(161.0)) == [("firing", 2)]


def test_what_begins_on_a_shelved_device_begins_shelved_and_fires_afterwards_if_it_is_still_wrong() -> None:
    alerts = book()
    assert alerts.shelve("pump-7", 90.0, 60.0) == [], "nothing is wrong yet"
    (first,) = play(alerts, "xx")
    assert (first.alert.state, first.alert.seq, first.alert.fired, first.fires) == ("shelved", 0, None, False)
    assert first.retained == first.alert
    assert alerts.firing() == {}
    assert not alerts.is_due(149.0)
    assert alerts.due(149.0) == []
    assert alerts.is_due(150.0)
    (last,) = alerts.due(150.0)
    assert (last.alert.id, last.alert.state, last.fires) == (first.alert.id, "firing", True)
    assert alerts.shelved == {}


def test_the_next_alert_of_a_shelved_device_is_shelved_too_and_those_of_others_are_not() -> None:
    alerts = book()
    play(alerts, "x")
    alerts.shelve("pump-7", 100.0, 60.0)
    assert states(play(alerts, "...x...")) == [("resolved", 2), ("shelved", 0), ("resolved", 1)]
    assert states(alerts.start("pump-7", "silence", 110.0, 120.0)) == [("shelved", 0)]
    assert states(play(alerts, "x", "pump-8")) == [("firing", 0)]


def test_what_is_about_to_resolve_when_the_shelf_ends_is_not_told_but_if_it_comes_back_it_is() -> None:
    alerts = book()
    alerts.shelve("pump-7", 90.0, 12.0)
    assert states(play(alerts, "x.")) == [("shelved", 0)]
    assert alerts.due(102.0) == []
    moved, _ = alerts.tick("pump-7", 103.0, 103.0, seen(), 0)
    assert states(moved) == [("firing", 1)]


def test_a_device_that_is_shelved_no_longer_tells_at_once_what_is_still_wrong() -> None:
    alerts = book()
    alerts.shelve("pump-7", 90.0, 3600.0)
    play(alerts, "x")
    alerts.tick(
        "pump-7", 100.5, 100.5, {"stuck": lambda: Evidence(None, None, ())}, 1
    )  # the prediction is quiet by now
    (moved,) = alerts.shelve("pump-7", 101.0, 0.0)
    assert (moved.alert.kind, moved.alert.state, moved.fires) == ("stuck", "firing", True)
    assert alerts.shelved == {}
    assert alerts.shelve("pump-7", 102.0, 0.0) == []
    assert states(alerts.start("pump-7", "silence", 103.0, 103.0)) == [("firing", 0)]


def test_the_last_word_says_for_how_long_a_device_is_shelved() -> None:
    alerts = book()
    play(alerts, "x")
    alerts.shelve("pump-7", 100.0, 600.0)
    assert alerts.shelve("pump-7", 101.0, 60.0) == []
    assert alerts.due(160.0) == []
    assert states(alerts.due(161.0)) == [("firing", 2)]


def test_a_pending_alert_of_a_shelved_device_fires_shelved_at_its_time() -> None:
    alerts = book(min_ticks=3)
    play(alerts, "x")
    assert alerts.shelve("pump-7", 101.0, 60.0) == []
    assert states(play(alerts, "xx")) == [("shelved", 1)]
    assert alerts.started == {"prediction": 1}, "what the budget knows is as without a shelf"
    assert states(alerts.due(161.0)) == [("firing", 2)]


def test_many_shelved_devices_are_no_storm_until_it_is_over() -> None:
    alerts = book()
    for number in range(12):
        alerts.shelve(f"p{number}", 90.0, 60.0)
        play(alerts, "x", f"p{number}")
    assert alerts.storm(12, 101.0) == []
    assert len(alerts.due(150.0)) == 12
    assert states(alerts.storm(12, 151.0)) == [("firing", 0)]


def test_a_shelf_survives_a_snapshot_and_goes_with_its_device() -> None:
    alerts, again = book(), book()
    for device in ("pump-7", "pump-8"):
        alerts.shelve(device, 90.0, 60.0)
    play(alerts, "x")
    alerts.forget("pump-8", 101.0)
    again.restore(orjson.loads(orjson.dumps(alerts.export())))
    assert again.shelved == {"pump-7": 150.0}
    assert states(again.due(150.0)) == [("firing", 1)]


def test_what_an_older_release_had_shelved_stays_so_for_its_time() -> None:
    data = {
        "open": {
            "p": [{**OLD, "kind": "prediction", "shelved_until": 0.0}, {**OLD, "kind": "stuck", "state": "shelved"}],
            "q": [{**OLD, "kind": "rate", "state": "shelved", "fired": None, "told": False}],
        },
        "started": {"prediction": 1, "stuck": 1},
        "recent": [],
    }
    alerts = book(min_ticks=2)
    alerts.restore(data)
    assert alerts.shelved == {"p": 150.0, "q": 150.0}
    assert {kind: e.state for one in alerts.open.values() for kind, e in one.items()} == {
        "prediction": "firing",
        "stuck": "shelved",
        "rate": "pending",
    }
    assert states(alerts.due(149.0)) == [("shelved", 4)]
    assert [t.alert.kind for t in alerts.due(150.0)] == ["prediction", "stuck"]


OLD = {
    "id": "1",
    "kind": "stuck",
    "started": 90.0,
    "updated": 100.0,
    "last": 100.0,
    "state": "firing",
    "seq": 3,
    "ticks": 2,
    "quiet": 0,
    "score": None,
    "p_value": None,
    "channels": [],
    "shelved_until": 150.0,
    "detail": "",
    "fired": 90.0,
    "told": True,
    "settled": False,
    "needed": 1.0,
}


def test_an_alert_fires_once_however_often_it_moves() -> None:
    alerts = book()
    moved = play(alerts, "x")
    moved += alerts.shelve("pump-7", 101.0, 60.0) + alerts.due(161.0) + alerts.settle("pump-7", 162.0, 7)
    moved += play(alerts, "...")
    assert [(t.alert.state, t.fires) for t in moved] == [
        ("firing", True),
        ("shelved", False),
        ("firing", False),
        ("firing", False),
        ("resolved", False),
    ]


def test_an_alert_called_normal_ends_at_once() -> None:
    alerts = book()
    play(alerts, "xx")
    alerts.tick("pump-7", 102.0, 102.0, {"stuck": lambda: Evidence(None, None, ())}, 2)
    (moved,) = alerts.normal("pump-7", 200.0)
    assert (moved.alert.kind, moved.alert.state, moved.alert.ended) == ("prediction", "resolved", 101.0)
    assert moved.alert.message.endswith("; accepted as normal")
    assert moved.retained is not None
    assert moved.retained.kind == "stuck"
    assert alerts.normal("pump-7", 201.0) == []
    assert alerts.normal("unheard of", 201.0) == []


def test_an_episode_that_lasts_is_asked_about_once() -> None:
    alerts = book()
    play(alerts, "xx")
    (asked,) = alerts.settle("pump-7", 102.0, 5)
    assert (asked.alert.state, asked.alert.seq, asked.message) == ("firing", 1, 5)
    assert asked.retained == asked.alert
    assert asked.alert.message.endswith("; a new normal?")
    assert alerts.settle("pump-7", 103.0, 6) == []
    assert alerts.settle("unheard of", 103.0, 6) == []
    last = play(alerts, "...")[-1].alert
    assert (last.seq, last.ended) == (2, 101.0)
    assert last.message.endswith("; it became the new normal")


def test_a_storm_adds_a_fleet_alert_and_keeps_the_devices_alerts() -> None:
    alerts = book()
    for i in range(10):
        play(alerts, "x", f"p{i}")
    assert states(alerts.storm(21, 101.0)) == []
    moved = alerts.storm(20, 101.0)
    assert [(t.alert.kind, t.alert.device, t.alert.state) for t in moved] == [("storm", "_fleet", "firing")]
    assert moved[0].alert.message == "all devices of pump: 10 of 20 fired within a minute"
    assert alerts.storm(20, 102.0) == []
    for i in range(10):
        play(alerts, "...", f"p{i}")
    assert states(alerts.storm(20, 200.0)) == [("resolved", 1)]


def test_a_book_survives_a_snapshot() -> None:
    alerts = book()
    play(alerts, "xx.")
    other = book()
    other.restore(orjson.loads(orjson.dumps(alerts.export())))
    assert play(other, "..") == play(alerts, "..")
    assert not other.open


@pytest.mark.parametrize("kind", ["prediction", "range", "rate", "stuck", "gap", "silence"])
def test_every_kind_is_valid_by_the_schema_and_says_something(kind: AlertKind) -> None:
    alerts = book()
    moved, _ = alerts.tick("p", 1.0, 1.0, {kind: lambda: Evidence(None, None, () if kind == "gap" else (VIEW,))}, 0)
    schema = load_schema()
    jsonschema.validate(orjson.loads(orjson.dumps(asdict(moved[0].alert))), schema)
    assert moved[0].alert.message.startswith("p: ")


def test_the_words_name_the_channel_the_value_and_what_was_expected() -> None:
    alerts = book()
    alert = play(alerts, "x")[0].alert
    assert words(alert) == "pump-7: vibration 9.1 mm/s, expected 3.2 ± 0.6; explains 83 % of the surprise"
    assert play(alerts, "...")[-1].alert.message.endswith("; resolved")


def said(view: ChannelView) -> str:
    """What an alert of that channel alone says of it."""
    evidence: dict[AlertKind, Callable[[], Evidence]] = {"prediction": lambda: Evidence(2.0, 0.1, (view,))}
    moved, _ = book().tick("p", 1.0, 1.0, evidence, 0)
    return moved[0].alert.message.removeprefix("p: ")


INSIDE = ChannelView("heat", "°C", 20.1, 20.0, 17.0, 23.0, 1.0)


@pytest.mark.parametrize(
    ("how", "by", "readings", "text"),
    [
        ("", None, 0, "heat is unusual over its last readings"),
        ("above", 0.6, 30, "heat has run 0.6 °C above what was expected over 30 readings"),
        ("below", -0.6, 0, "heat has run 0.6 °C below what was expected"),
        ("below", None, 30, "heat has run below what was expected over 30 readings"),
        ("drifted", 2.5, 0, "heat has drifted up by 2.5 °C"),
        ("drifted", -2.5, 0, "heat has drifted down by 2.5 °C"),
        ("drifted", None, 0, "heat has drifted"),
        ("noisy", None, 0, "heat is noisier than usual"),
        ("unlike the others", None, 0, "heat does not fit the other channels"),
        ("out of all history", None, 0, "heat goes beyond all that it had shown"),
    ],
)
def test_a_value_within_its_band_is_not_what_was_unusual(how: How, by: float | None, readings: int, text: str) -> None:
    view = replace(INSIDE, how=how, by=by, readings=readings)
    assert said(view) == f"{text} (20.1 °C, expected 20 ± 3)"


def test_every_way_of_being_unusual_has_words_of_its_own() -> None:
    texts = {how: said(replace(INSIDE, how=how)) for how in get_args(How)}
    assert len(set(texts.values())) == len(texts)


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6),
    st.floats(0.05, 20),
    st.sampled_from([-1, 1]),
    st.sampled_from(get_args(How)),
)
def test_what_is_said_never_contradicts_itself(expected: float, half: float, away: float, side: int, how: How) -> None:
    """A value said to be other than expected lies outside of the band that is said, and the other way round."""
    away = away if abs(away - 1) > 0.1 else 1.2
    value = expected + side * away * half
    text = said(ChannelView("heat", "", value, expected, expected - half, expected + half, 1.0, how))
    number = r"(-?[\d.e+-]+)"
    found = re.search(rf"(?:heat |\(){number}, expected {number} ± {number}", text)
    assert found is not None, text
    told, middle, around = map(float, found.groups())
    assert text.startswith(f"heat {found[1]}, ") == (away > 1)
    assert (abs(told - middle) > around) == (away > 1), text


def test_what_is_also_known_of_a_value_outside_of_its_band_is_added() -> None:
    view = replace(INSIDE, value=31.0, how="out of all history")
    assert said(view) == "heat 31 °C, expected 20 ± 3, goes beyond all that it had shown"


def test_a_lopsided_band_is_said_by_its_ends() -> None:
    assert said(replace(INSIDE, value=24.0, low=10.0)) == "heat 24 °C, expected 20 (10 to 23)"


def test_a_channel_without_a_value_or_a_forecast_has_words_too() -> None:
    missing = replace(INSIDE, value=None, how="above")
    assert said(missing) == "heat has run above what was expected (no value at that moment, expected 20 ± 3)"
    bare = ChannelView("heat", "°C", 20.1, None, None, None, 1.0)
    assert said(bare) == "heat 20.1 °C is unusual"
    assert said(replace(bare, how="noisy")) == "heat is noisier than usual (20.1 °C)"


def test_a_second_channel_with_a_large_share_is_named_too() -> None:
    views = (replace(INSIDE, value=31.0, share=0.6), ChannelView("flow", "", 1.0, 0.0, -1.0, 1.0, 0.3))
    moved, _ = book().tick("p", 1.0, 1.0, {"prediction": lambda: Evidence(2.0, 0.1, views)}, 0)
    assert moved[0].alert.message.endswith("; explains 60 % of the surprise, flow 30 %")


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0, 20.0, "is out of its range 0 to 20 °C"),
        (None, 20.0, "is over its limit 20 °C"),
        (25.0, None, "is under its limit 25 °C"),
    ],
)
def test_a_broken_limit_is_said_as_it_was_given(low: float | None, high: float | None, text: str) -> None:
    view = ChannelView("heat", "°C", 21.0, None, low, high, 1.0)
    moved, _ = book().tick("p", 1.0, 1.0, {"range": lambda: Evidence(None, None, (view,))}, 0)
    assert moved[0].alert.message == f"p: heat 21 °C {text}"


def test_a_broken_limit_is_told_with_the_worst_while_it_was_open() -> None:
    alerts = book(quiet_ticks=1)

    def tick(time: float, **values: float) -> list[str]:
        limits = {"level": (None, 40.0), "heat": (0.0, 90.0)}
        views = [ChannelView(name, "cm", v, None, *limits[name], 1 / len(values)) for name, v in values.items()]
        found: dict[AlertKind, Callable[[], Evidence]] = {"range": lambda: Evidence(None, None, tuple(views))}
        moved, _ = alerts.tick("p", time, time, found if values else {}, 0)
        return [t.alert.message for t in moved]

    assert tick(1.0, level=41.0) == ["p: level 41 cm is over its limit 40 cm"]
    assert tick(2.0, level=47.0) == []
    assert tick(3.0, level=43.0) == []
    (still,) = alerts.alerts("p")
    assert still.message == "p: level is over its limit 40 cm for 2 s, at worst 47 cm"
    assert tick(4.0) == ["p: level was over its limit 40 cm for 2 s, at worst 47 cm; resolved"]
    tick(5.0, heat=-30.0)
    tick(6.0, heat=95.0, level=44.0)
    tick(7.0, level=42.0)
    assert [(view.name, view.value, view.share) for view in alerts.alerts("p")[0].channels] == [
        ("level", 44.0, 0.5),
        ("heat", -30.0, 0.5),
    ]


NOON = 1.7e9 - 1.7e9 % 86400 + 43200


@pytest.mark.parametrize(
    ("began", "text"),
    [
        (NOON, ""),
        (NOON - 40, " since 11:59 UTC (told after 40 s)"),
        (NOON - 86400, " since 2023-11-13 12:00 UTC (told after 24 h)"),
    ],
)
def test_an_open_alert_says_since_when_and_how_late_it_was_told(began: float, text: str) -> None:
    look: dict[AlertKind, Callable[[], Evidence]] = {"prediction": lambda: Evidence(2.0, 0.1, (VIEW,), began)}
    moved, _ = book().tick("p", NOON, NOON, look, 0)
    assert moved[0].alert.message == f"p: vibration 9.1 mm/s, expected 3.2 ± 0.6{text}; explains 83 % of the surprise"


def test_a_resolved_alert_says_how_long_it_was_and_row_numbers_are_no_clock() -> None:
    look: dict[AlertKind, Callable[[], Evidence]] = {"prediction": lambda: Evidence(2.0, 0.1, (VIEW,), NOON - 40)}
    alerts = book()
    alerts.tick("p", NOON, NOON, look, 0)
    alerts.tick("p", NOON + 200, NOON + 200, look, 0)
    assert "± 0.6 for 4 min (told after 40 s); explains" in alerts.forget("p", NOON + 900)[0].alert.message
    look = {"prediction": lambda: Evidence(2.0, 0.1, (VIEW,), 300.0)}
    moved, _ = alerts.tick("p", 330.0, NOON, look, 0)
    assert "± 0.6 for 30 s; explains" in moved[0].alert.message


def test_silence_says_since_when_and_how_long_it_was() -> None:
    alerts = book()
    first = alerts.start("p", "silence", NOON, NOON + 600)[0].alert
    assert (first.started, first.fired, first.updated) == (NOON, NOON + 600, NOON + 600)
    assert first.message == "p: nothing heard since 12:00 UTC"
    last = alerts.end("p", "silence", NOON + 1200)[0].alert
    assert (last.ended, last.message) == (NOON + 1200, "p: nothing heard for 20 min; resolved")


def test_numbers_and_spans_are_written_as_people_do() -> None:
    assert [quantity(v) for v in (0.0, 3.14159, 12345.6, 1e9, None, float("nan"))] == [
        "0",
        "3.14",
        "12346",
        "1e+09",
        "?",
        "?",
    ]
    assert [duration(s) for s in (0.25, 5.0, 240.0, 7200.0, 200000.0)] == ["0.25 s", "5 s", "4 min", "2 h", "2 d"]
