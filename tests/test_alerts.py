"""The life of an alert."""

from collections.abc import Callable
from dataclasses import asdict

import jsonschema
import orjson
import pytest

from sentinel.adapters.sinks import load_schema
from sentinel.records import AlertKind, ChannelView, Transition
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
    assert (first.started, last.started, last.ended, last.ticks) == (100.0, 100.0, 104.0, 2)
    assert moved[0].retained == first
    assert moved[1].retained is None
    assert [t.message for t in moved] == [0, 4]


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


def test_a_storm_adds_a_fleet_alert_and_keeps_the_devices_alerts() -> None:
    alerts = book()
    for i in range(10):
        play(alerts, "x", f"p{i}")
    assert states(alerts.storm(21, 101.0)) == []
    moved = alerts.storm(20, 101.0)
    assert [(t.alert.kind, t.alert.device, t.alert.state) for t in moved] == [("storm", "_fleet", "firing")]
    assert alerts.storm(20, 102.0) == []
    for i in range(10):
        play(alerts, "...", f"p{i}")
    assert states(alerts.storm(20, 200.0)) == [("resolved", 1)]


def test_a_book_survives_a_snapshot() -> None:
    alerts = book()
    play(alerts, "xx.")
    other = book()
    other.restore(orjson.loads(orjson.dumps(alerts.export())))
    assert states(play(other, "..")) == states(play(alerts, "..")) == [("resolved", 1)]


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
    assert play(alerts, "...")[0].alert.message.endswith("; resolved")


def test_numbers_and_spans_are_written_as_people_do() -> None:
    assert [quantity(v) for v in (0.0, 3.14159, 12345.6, 1e9, None, float("nan"))] == [
        "0",
        "3.14",
        "12346",
        "1e+09",
        "?",
        "?",
    ]
    assert [duration(s) for s in (5.0, 240.0, 7200.0, 200000.0)] == ["5 s", "4 min", "2 h", "2 d"]
