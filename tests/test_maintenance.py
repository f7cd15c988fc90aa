"""Maintenance windows: what would fire in one is shelved, and told afterwards if it is still wrong."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pytest

from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.store import MemoryStore
from sentinel.adapters.store.memory import MemoryDisk
from sentinel.errors import ConfigError
from sentinel.model import learn as learning
from sentinel.records import AlertKind, ProfileSpec, Transition
from sentinel.service import Service
from sentinel.settings import load_settings
from sentinel.settings.values import parse_maintenance
from sentinel.stream.alerts import AlertBook, Evidence
from sentinel.stream.maintenance import ends
from tests import fleets
from tests.test_alerts import seen
from tests.test_backtest import run

BERLIN = "Europe/Berlin"


def at(text: str, timezone: str = BERLIN) -> float:
    """Seconds since the epoch of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(timezone)).timestamp()


NIGHT = at("2026-11-28T02:00")  # a Saturday


def over(window: str, now: str, timezone: str = BERLIN) -> str | None:
    """When the window is over in which a local time lies."""
    found = ends([parse_maintenance(window, timezone)], timezone, at(now, timezone))
    return None if found is None else f"{datetime.fromtimestamp(found, ZoneInfo(timezone)):%Y-%m-%dT%H:%M}"


class TestTheCalendar:
    @pytest.mark.parametrize(
        ("window", "now", "end"),
        [
            ("sat 02:00-04:00", "2026-11-28T01:59:59", None),
            ("sat 02:00-04:00", "2026-11-28T02:00", "2026-11-28T04:00"),
            ("sat 02:00-04:00", "2026-11-28T03:59:59", "2026-11-28T04:00"),
            ("sat 02:00-04:00", "2026-11-28T04:00", None),
            ("sat 02:00-04:00", "2026-11-27T03:00", None),
            ("fri 22:00-06:00", "2026-11-27T23:00", "2026-11-28T06:00"),
            ("fri 22:00-06:00", "2026-11-28T05:00", "2026-11-28T06:00"),
            ("fri 22:00-06:00", "2026-11-27T05:00", None),
            ("mon-fri 22:00-06:00", "2026-11-26T23:00", "2026-11-27T06:00"),
            ("fri-mon 12:00-13:00", "2026-11-29T12:30", "2026-11-29T13:00"),
            ("fri-mon 12:00-13:00", "2026-12-01T12:30", None),
            ("mon,sat 12:00-13:00", "2026-11-28T12:30", "2026-11-28T13:00"),
            ("daily 00:00-24:00", "2026-11-28T12:30", "2026-11-29T00:00"),
            ("2026-12-24T18:00/2026-12-27T06:00", "2026-12-25T12:00", "2026-12-27T06:00"),
            ("2026-12-24T18:00/2026-12-27T06:00", "2026-12-27T06:00", None),
            ("2026-12-24T17:00Z/2026-12-27T06:00+01:00", "2026-12-24T18:00", "2026-12-27T06:00"),
            ("sun 01:00-04:00", "2026-03-29T03:30", "2026-03-29T04:00"),  # clocks go from 2 to 3
            ("sun 02:00-04:00", "2026-03-29T01:59", None),
            ("sun 01:00-04:00", "2026-10-25T02:30", "2026-10-25T04:00"),  # clocks go from 3 to 2
        ],
    )
    def test_a_window_is_told_by_the_clock_on_the_wall(self, window: str, now: str, end: str | None) -> None:
        assert over(window, now) == end

    def test_the_hours_of_a_window_are_those_that_pass_where_clocks_are_set(self) -> None:
        window = parse_maintenance("sun 01:00-04:00")
        for begin, hours in ((at("2026-03-29T01:00"), 2), (at("2026-10-25T01:00"), 4), (at("2026-11-29T01:00"), 3)):
            inside = [ends([window], BERLIN, begin + 60 * minute) is not None for minute in range(-60, 360)]
            assert sum(inside) == 60 * hours
            assert inside.index(True) == 60

    def test_of_windows_that_overlap_the_last_end_counts(self) -> None:
        windows = [parse_maintenance("sat 02:00-04:00"), parse_maintenance("sat 03:00-05:00")]
        assert ends(windows, BERLIN, NIGHT + 5400) == NIGHT + 3 * 3600

    @pytest.mark.parametrize("now", [0.0, 17.0, 3e11, -1e12, float("nan"), float("inf"), 1e300])
    def test_times_without_a_clock_lie_in_no_window(self, now: float) -> None:
        assert ends([parse_maintenance("daily 00:00-24:00")], BERLIN, now) is None


def book(window: str = "sat 02:00-04:00", **options: object) -> AlertBook:
    return AlertBook(
        fleets.spec(quiet_ticks=3, timezone=BERLIN, maintenance=(parse_maintenance(window, BERLIN),), **options)
    )


def tick(alerts: AlertBook, now: float, anomalous: bool = True, device: str = "p") -> list[Transition]:
    evidence: dict[AlertKind, Callable[[], Evidence]] = seen() if anomalous else {}
    return alerts.tick(device, now, now, evidence, 0)[0]


def told(transitions: list[Transition]) -> list[tuple[str, int, bool]]:
    return [(t.alert.state, t.alert.seq, t.fires) for t in transitions]


class TestAlerts:
    def test_an_alert_in_maintenance_is_shelved_and_fires_afterwards_if_it_is_still_wrong(self) -> None:
        alerts = book()
        (first,) = tick(alerts, NIGHT + 60)
        assert (told([first]), first.alert.fired) == ([("shelved", 0, False)], None)
        assert first.retained == first.alert
        assert alerts.firing() == {}
        assert not alerts.is_due(NIGHT + 7199)
        assert alerts.due(NIGHT + 7199) == []
        assert alerts.is_due(NIGHT + 7200)
        (last,) = alerts.due(NIGHT + 7200)
        assert (told([last]), last.alert.fired) == ([("firing", 1, True)], NIGHT + 60)
        assert last.alert.id == first.alert.id

    def test_the_next_anomalous_tick_tells_it_too_and_says_how_late(self) -> None:
        alerts = book()
        tick(alerts, NIGHT + 60)
        (last,) = tick(alerts, NIGHT + 7260)
        assert told([last]) == [("firing", 1, True)]
        assert "since 02:01 CET (told after 2 h)" in last.alert.message

    def test_what_is_well_again_by_then_was_never_told(self) -> None:
        alerts = book()
        moved = tick(alerts, NIGHT + 60)
        for second in range(3):
            moved += tick(alerts, NIGHT + 61 + second, anomalous=False)
        assert told(moved) == [("shelved", 0, False), ("resolved", 1, False)]
        assert moved[-1].alert.fired is None

    def test_what_is_about_to_resolve_when_it_ends_is_not_told_but_if_it_comes_back_it_is(self) -> None:
        alerts = book()
        tick(alerts, NIGHT + 7190)
        tick(alerts, NIGHT + 7195, anomalous=False)
        assert not alerts.is_due(NIGHT + 7200)
        assert alerts.due(NIGHT + 7200) == []
        assert told(tick(alerts, NIGHT + 7205)) == [("firing", 1, True)]

    def test_what_fires_when_maintenance_begins_is_shelved_and_told_again_but_counted_once(self) -> None:
        alerts = book()
        moved = tick(alerts, NIGHT - 60)
        assert alerts.is_due(NIGHT)
        moved += alerts.due(NIGHT)
        assert alerts.due(NIGHT + 1) == []
        moved += alerts.due(NIGHT + 7200)
        assert told(moved) == [("firing", 0, True), ("shelved", 1, False), ("firing", 2, False)]
        assert moved[-1].alert.fired == NIGHT - 60

    def test_an_acknowledged_alert_stays_so(self) -> None:
        alerts = book()
        tick(alerts, NIGHT - 60)
        alerts.acknowledge("p", NIGHT - 50)
        assert alerts.due(NIGHT) == tick(alerts, NIGHT + 1) == alerts.due(NIGHT + 7200) == []

    def test_a_shelf_that_ends_within_maintenance_is_prolonged(self) -> None:
        alerts = book()
        tick(alerts, NIGHT - 60)
        alerts.shelve("p", NIGHT - 60, 120.0)
        assert alerts.due(NIGHT + 61) == []
        assert not alerts.is_due(NIGHT + 61)
        assert told(alerts.due(NIGHT + 7200)) == [("firing", 2, False)]

    def test_many_devices_in_maintenance_are_no_storm_until_it_is_over(self) -> None:
        alerts = book()
        for number in range(12):
            tick(alerts, NIGHT + 60, device=f"p{number}")
        assert alerts.storm(12, NIGHT + 61) == []
        assert len(alerts.due(NIGHT + 7200)) == 12
        (storm,) = alerts.storm(12, NIGHT + 7201)
        assert storm.alert.kind == "storm"

    def test_an_untold_alert_lives_on_over_a_snapshot(self) -> None:
        alerts, again = book(), book()
        tick(alerts, NIGHT + 60)
        again.restore(orjson.loads(orjson.dumps(alerts.export())))
        assert told(again.due(NIGHT + 7200)) == [("firing", 1, True)]


class TestTheStream:
    def test_maintenance_changes_what_is_told_and_no_score_nor_threshold(self) -> None:
        learned = fleets.learned()
        begun = NIGHT - 60.0
        values = fleets.healthy(600, 0, 3)
        values[100:140, 1] += 20
        values[500:510, 2] += 40
        plain = fleets.running(fleets.spec(), learned)
        shelved = fleets.running(
            fleets.spec(maintenance=(parse_maintenance("sat 02:00-02:03", BERLIN),), timezone=BERLIN), learned
        )
        states = []
        for t in range(600):
            now = begun + t
            both = [
                stream.absorb(fleets.readings(["d0"], np.array([now]), values[t : t + 1]), now)[0]
                for stream in (plain, shelved)
            ]
            states.append([[moved.alert.state for moved in outcome.transitions] for outcome in both])
            np.testing.assert_array_equal(plain.scores(), shelved.scores())
        assert plain.slabs is not None
        assert shelved.slabs is not None
        every = np.arange(len(plain.slabs))
        for one, other in zip(plain.slabs.take(every), shelved.slabs.take(every), strict=True):
            np.testing.assert_array_equal(one, other)
        fired = [sum(("firing" in turn[k]) for turn in states) for k in (0, 1)]
        assert fired == [2, 1], "the first one only in one of them"
        assert any("shelved" in turn[1] for turn in states)

    def test_the_journal_holds_it(self) -> None:
        spec = fleets.spec(maintenance=(parse_maintenance("mon-fri 22:00-06:00"),), timezone=BERLIN)
        assert ProfileSpec.load(json.loads(json.dumps(asdict(spec)))) == spec
        old = asdict(spec)
        del old["maintenance"], old["timezone"]
        assert ProfileSpec.load(old) == fleets.spec()

    def test_a_running_stream_takes_a_changed_calendar(self) -> None:
        stream = fleets.running(fleets.spec(), fleets.learned())
        changed = fleets.spec(maintenance=(parse_maintenance("daily 00:00-24:00"),), timezone=BERLIN)
        assert stream.takes(changed)


def test_a_backtest_shelves_by_the_time_of_the_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "STEPS", 60)
    monkeypatch.setattr(learning, "STAGE_STEPS", 10)
    (tmp_path / "s.toml").write_text(
        f'[profiles.pump]\ntopic = "p/{{device}}"\ntimezone = "{BERLIN}"\nmaintenance = ["sat 02:00-04:00"]\n'
        'channels = [{ name = "pressure", max = 16 }, "flow", "heat"]\nquiet_ticks = 5\n'
        "model = { hidden = 8, horizons = [1, 8] }\n"
    )
    values = fleets.healthy(800)
    begun = NIGHT - 300 * 60.0
    for row in (320, 360, 500):  # 02:20, 03:00; and 05:20
        values[row : row + 3, 0] = 99.0
    values[419:430, 0] = 99.0  # 03:59 to 04:10
    with (tmp_path / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["time", "device", *fleets.CHANNELS])
        rows.writerows([begun + 60 * t, "d0", *row] for t, row in enumerate(values.tolist()))
    done = run(tmp_path, tmp_path / "data.csv", config=tmp_path / "s.toml", profile="pump", train_rows=200)
    ranges = [(a["state"], round((a["updated"] - NIGHT) / 60)) for a in done.alerts if a["kind"] == "range"]
    assert ranges == [
        ("shelved", 20),
        ("resolved", 27),
        ("shelved", 60),
        ("resolved", 67),
        ("shelved", 119),
        ("firing", 120),
        ("resolved", 134),
        ("firing", 200),
        ("resolved", 207),
    ]
    assert done.summary["alerts"]["range"] == 2, "what was never told is no alarm"


class Plant:
    """The daemon on twins, from the night of maintenance on."""

    def __init__(self, folder: Path) -> None:
        (folder / "s.toml").write_text(
            f'[http]\nport = 0\n[profiles.pump]\ntopic = "p/{{device}}"\ntimezone = "{BERLIN}"\nlearn = "never"\n'
            'maintenance = ["sat 02:00-04:00"]\nchannels = [{ name = "pressure", max = 16 }]\nsilence_after = "5m"\n'
        )
        self.now, self.broker, self.disk = NIGHT, MemoryBroker(), MemoryDisk()
        self.settings = load_settings(folder / "s.toml")
        self.events = self.broker.subscribe_from_outside("sentinel/events/#")
        self.start()

    def start(self) -> None:
        self.store = MemoryStore(self.disk)
        self.service = Service(
            self.settings, broker=self.broker, store=self.store, clock=lambda: self.now, steady=lambda: self.now
        )
        self.service.restore()
        self.service.start()
        self.turn(1.0)

    def turn(self, seconds: float, *pressures: tuple[str, float]) -> None:
        self.now += seconds
        for device, pressure in pressures:
            self.broker.publish_from_outside(f"p/{device}", json.dumps({"pressure": pressure}).encode())
        fleets.settle(self.service)

    def told(self) -> list[tuple[str, str, str]]:
        found = [json.loads(event.payload) for event in self.events.got]
        self.events.got.clear()
        return [(alert["device"], alert["kind"], alert["state"]) for alert in found]


def test_the_daemon_tells_at_the_end_of_the_window_what_is_wrong_then_a_crash_in_between_or_not(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.turn(60.0, ("hot", 99.0), ("away", 5.0), ("well", 99.0))
    assert plant.told() == [("hot", "range", "shelved"), ("well", "range", "shelved")]
    plant.turn(400.0, ("hot", 99.0), ("well", 5.0))
    assert plant.told() == [("away", "silence", "shelved")]
    written = plant.store.journal.last()
    for _ in range(5):
        plant.turn(10.0)
    assert plant.store.journal.last() == written, "what waits writes nothing"
    plant.store.close()
    plant.service.http.stop(1.0)
    plant.start()
    assert set(plant.told()) == {
        (name, kind, "shelved") for name, kind in (("hot", "range"), ("well", "range"), ("away", "silence"))
    }
    while plant.now < NIGHT + 7200:
        plant.turn(60.0, ("hot", 99.0), ("well", 5.0))
    assert plant.told() == [("well", "range", "resolved"), ("hot", "range", "firing"), ("away", "silence", "firing")]
    started = {
        kind: plant.service.registry.get_sample_value("sentinel_alerts_total", {"profile": "pump", "kind": kind})
        for kind in ("range", "silence")
    }
    assert started == {"range": 1, "silence": 1}
    plant.service.shutdown()


class TestSettings:
    def load(self, folder: Path, lines: str) -> ProfileSpec:
        (folder / "s.toml").write_text(f'[profiles.pump]\ntopic = "p/{{device}}"\n{lines}\n')
        return load_settings(folder / "s.toml").specs()[0]

    def test_times_are_in_the_profiles_zone(self, tmp_path: Path) -> None:
        spec = self.load(
            tmp_path,
            f'timezone = "{BERLIN}"\nmaintenance = ["sat 02:00-04:00", "2026-12-24T18:00/2026-12-27T06:00"]',
        )
        assert spec.timezone == BERLIN
        assert [(w.days, w.begin, w.end) for w in spec.maintenance] == [
            ((5,), 7200.0, 14400.0),
            ((), at("2026-12-24T18:00"), at("2026-12-27T06:00")),
        ]

    @pytest.mark.parametrize(
        ("lines", "problem"),
        [
            ('timezone = "Europe/Bearlin"', "must be the name of a time zone"),
            ('timezone = ""', "must be the name of a time zone"),
            ('timezone = "../etc/passwd"', "must be the name of a time zone"),
            ("timezone = 1", "must be the name of a time zone"),
            ('maintenance = "sat 02:00-04:00"', "must be a list of times"),
            ('maintenance = ["sat 02:00"]', 'must be a time such as "sat 02:00-04:00"'),
            ('maintenance = ["sat 2:00-4:00"]', "must be a time such as"),
            ('maintenance = ["sat 02:00-25:00"]', "must be a time such as"),
            ('maintenance = ["saturday 02:00-04:00"]', "must be a time such as"),
            ('maintenance = ["2026-12-24/2026-12-24"]', "must end after it begins"),
            ('maintenance = ["2026-12-24T18:00/2026-13-01"]', "must be a time such as"),
            ("maintenance = [5]", "must be a time such as"),
        ],
    )
    def test_what_is_no_time_is_refused_with_an_example(self, tmp_path: Path, lines: str, problem: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.load(tmp_path, lines)
        assert problem in str(caught.value)
