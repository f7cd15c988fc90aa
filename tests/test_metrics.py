from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from sentinel import __version__
from sentinel.adapters.metrics import (
    CATALOGUE,
    OPEN,
    DeviceSeries,
    Metrics,
    metrics_reference,
    most_urgent,
)
from sentinel.records import ALERT_KINDS, DEVICE_STATES, FATES, Fate
from tests.servers import binary


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def series(*rows: tuple[str, float, bool]) -> DeviceSeries:
    return DeviceSeries(
        device=[device for device, _, _ in rows],
        score=np.array([score for _, score, _ in rows], dtype=np.float64),
        firing=np.array([firing for _, _, firing in rows], dtype=np.bool_),
        last_seen=np.arange(len(rows), dtype=np.float64),
    )


def device_scores(registry: CollectorRegistry) -> dict[str, float]:
    return {
        sample.labels["device"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "sentinel_device_score"
    }


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, ["pump", "room"], max_device_series=3, clock=lambda: 1000.0)


class TestCatalogue:
    def test_holds_the_promised_names_and_labels(self) -> None:
        labels = {metric.name: tuple(metric.labels) for metric in CATALOGUE}
        promised = {
            "sentinel_messages_total": ("profile", "outcome"),
            "sentinel_readings_total": ("profile", "outcome"),
            "sentinel_ticks_total": ("profile",),
            "sentinel_anomalies_total": ("profile", "kind"),
            "sentinel_alerts_firing": ("profile", "kind"),
            "sentinel_devices": ("profile", "state"),
            "sentinel_model_info": ("profile", "version", "cell"),
            "sentinel_publish_to_alert_seconds": (),
            "sentinel_ingest_lag_seconds": (),
        }
        assert promised.items() <= labels.items()

    def test_names_are_unique(self) -> None:
        assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE) > 30

    @pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
    def test_help_ends_with_what_to_do(self, metric: object) -> None:
        """Two statements at least: what the number says, then a condition and its remedy."""
        text = getattr(metric, "help", "")
        assert re.fullmatch(r"[A-Z0-9].*[.;:] .*\.", text), text

    def test_reference_has_a_row_for_each_and_spells_out_closed_labels(self) -> None:
        rows = {row.name: row for row in metrics_reference()}
        assert set(rows) == {metric.name for metric in CATALOGUE}
        assert rows["sentinel_devices"].labels == "profile, state (learning|calibrating|scoring|silent|offline)"
        assert rows["sentinel_ingest_lag_seconds"].labels == ""


class TestAtStart:
    def test_every_series_with_known_labels_is_there_at_zero(
        self, registry: CollectorRegistry, metrics: Metrics
    ) -> None:
        for profile in ("pump", "room"):
            for outcome in FATES:
                assert value(registry, "sentinel_messages_total", profile=profile, outcome=outcome) == 0
            for kind in ALERT_KINDS:
                assert value(registry, "sentinel_alerts_firing", profile=profile, kind=kind) == 0
            for state in DEVICE_STATES:
                assert value(registry, "sentinel_devices", profile=profile, state=state) == 0
        names = {sample.name for family in registry.collect() for sample in family.samples}
        for metric in CATALOGUE:
            if metric.from_start and "device" not in metric.labels and metric.name != "sentinel_device_series_omitted":
                assert names & {metric.name, f"{metric.name}_count"}, metric.name

    def test_what_is_not_known_has_no_series(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        names = {sample.name for family in registry.collect() for sample in family.samples}
        assert not names & {"sentinel_model_info", "sentinel_device_score", "sentinel_alert_budget_per_device_week"}

    def test_says_its_version(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        assert value(registry, "sentinel_build_info", version=__version__) == 1

    def test_two_of_them_share_nothing(self, metrics: Metrics) -> None:
        other = CollectorRegistry()
        Metrics(other, [], max_device_series=0)
        metrics.dead_letters(sent=1, suppressed=2)
        assert value(other, "sentinel_dead_letters_total") == 0

    def test_creation_times_are_left_out(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        assert b"_created" not in generate_latest(registry)


class TestValues:
    def test_counts_add_up(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        for _ in range(2):
            metrics.messages("pump", {Fate.ACCEPTED: 3, Fate.BAD_SYNTAX: 1})
            metrics.readings("pump", {Fate.LATE: 2})
            metrics.values_dropped("pump", {"bad_value": 4})
            metrics.unknown_channels("pump", 5)
            metrics.ticks("pump", 6)
            metrics.heard("pump", 0.25)
            metrics.anomalies("pump", "prediction", 7)
            metrics.alerts_started("pump", "range")
            metrics.dead_letters(sent=8, suppressed=9)
            metrics.broker_reconnected()
            metrics.publishes_dropped(10)
            metrics.snapshot_failed()
        got = {
            "accepted": value(registry, "sentinel_messages_total", profile="pump", outcome="accepted"),
            "syntax": value(registry, "sentinel_messages_total", profile="pump", outcome="bad_syntax"),
            "late": value(registry, "sentinel_readings_total", profile="pump", outcome="late"),
            "values": value(registry, "sentinel_values_dropped_total", profile="pump", reason="bad_value"),
            "unknown": value(registry, "sentinel_unknown_channels_total", profile="pump"),
            "ticks": value(registry, "sentinel_ticks_total", profile="pump"),
            "heard": value(registry, "sentinel_device_heard_seconds_total", profile="pump"),
            "anomalies": value(registry, "sentinel_anomalies_total", profile="pump", kind="prediction"),
            "alerts": value(registry, "sentinel_alerts_total", profile="pump", kind="range"),
            "dead": value(registry, "sentinel_dead_letters_total"),
            "suppressed": value(registry, "sentinel_dead_letters_suppressed_total"),
            "reconnects": value(registry, "sentinel_broker_reconnects_total"),
            "publishes": value(registry, "sentinel_publishes_dropped_total"),
            "snapshot": value(registry, "sentinel_snapshot_errors_total"),
        }
        assert list(got.values()) == [6, 2, 4, 8, 10, 12, 0.5, 14, 2, 16, 18, 2, 20, 2], got

    def test_gauges_hold_what_was_said_last(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        for n in (9.0, 0.5):
            metrics.learning("room", n)
            metrics.state_saturation("room", n)
            metrics.ingest_lag(n)
            metrics.journal(size=int(n * 10), committed=n)
            metrics.broker_connected(n < 1)
        assert value(registry, "sentinel_learning_progress_ratio", profile="room") == 0.5
        assert value(registry, "sentinel_state_saturation_ratio", profile="room") == 0.5
        assert value(registry, "sentinel_ingest_lag_seconds") == 0.5
        assert value(registry, "sentinel_journal_bytes") == 5
        assert value(registry, "sentinel_journal_last_commit_timestamp_seconds") == 0.5
        assert value(registry, "sentinel_broker_connected") == 1

    def test_a_kind_or_state_left_out_falls_to_zero(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.alerts_firing("pump", {"prediction": 2})
        metrics.alerts_firing("pump", {"stuck": 1})
        metrics.devices("pump", {"learning": 4})
        metrics.devices("pump", {"scoring": 4})
        assert value(registry, "sentinel_alerts_firing", profile="pump", kind="prediction") == 0
        assert value(registry, "sentinel_alerts_firing", profile="pump", kind="stuck") == 1
        assert value(registry, "sentinel_devices", profile="pump", state="learning") == 0
        assert value(registry, "sentinel_devices", profile="pump", state="scoring") == 4

    def test_durations_are_observed_in_seconds(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.observe("score", 0.002)
        metrics.turn(0.02, readings=7)
        metrics.publish_to_alert([0.003, 0.3])
        assert value(registry, "sentinel_stage_seconds_sum", stage="score") == 0.002
        assert value(registry, "sentinel_stage_seconds_count", stage="journal") == 0
        assert value(registry, "sentinel_turn_seconds_bucket", le="0.025") == 1
        assert value(registry, "sentinel_batch_readings_bucket", le="4.0") == 0
        assert value(registry, "sentinel_batch_readings_bucket", le="16.0") == 1
        assert value(registry, "sentinel_publish_to_alert_seconds_bucket", le="0.005") == 1
        assert value(registry, "sentinel_publish_to_alert_seconds_count") == 2

    def test_a_profile_has_one_model(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.model("pump", "a1", "lstm", trained=5.0)
        metrics.model("pump", "b2", "gru", trained=6.0)
        metrics.model("pump", "b2", "gru", trained=6.0)
        assert value(registry, "sentinel_model_info", profile="pump", version="a1", cell="lstm") is None
        assert value(registry, "sentinel_model_info", profile="pump", version="b2", cell="gru") == 1
        assert value(registry, "sentinel_model_trained_timestamp_seconds", profile="pump") == 6

    def test_the_budget_is_absent_when_off(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.alert_budget("pump", 2 / 604800)
        assert value(registry, "sentinel_alert_budget_interval_seconds", profile="pump") == pytest.approx(302400)
        assert value(registry, "sentinel_alert_budget_per_device_week", profile="pump") == pytest.approx(2)
        for _ in range(2):
            metrics.alert_budget("pump", 0.0)
        assert value(registry, "sentinel_alert_budget_interval_seconds", profile="pump") is None
        assert value(registry, "sentinel_alert_budget_per_device_week", profile="pump") is None

    def test_the_snapshot_ages_between_scrapes(self, registry: CollectorRegistry) -> None:
        now = [100.0]
        metrics = Metrics(registry, [], max_device_series=0, clock=lambda: now[0])
        now[0] = 130.0
        assert value(registry, "sentinel_snapshot_age_seconds") == 30
        metrics.snapshot(completed=120.0)
        now[0] = 150.0
        assert value(registry, "sentinel_snapshot_age_seconds") == 30

    def test_profiles_that_come_later_are_taken(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.ticks("late", 2)
        assert value(registry, "sentinel_ticks_total", profile="late") == 2

    def test_promtool_finds_nothing_to_say(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.model("pump", "a1", "lstm", trained=5.0)
        metrics.alert_budget("pump", 1.0)
        metrics.set_devices({"pump": series(("a", 0.5, False))})
        result = subprocess.run(
            [binary("promtool"), "check", "metrics"],
            input=generate_latest(registry),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert (result.returncode, result.stdout) == (0, b"")


class TestDeviceSeries:
    def test_a_device_without_a_score_has_no_score_series(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.set_devices({"pump": series(("new", float("nan"), False), ("old", 0.0, False))})
        assert device_scores(registry) == {"old": 0.0}
        assert value(registry, "sentinel_device_firing", profile="pump", device="new") == 0
        assert value(registry, "sentinel_device_last_seen_timestamp_seconds", profile="pump", device="old") == 1

    def test_firing_devices_come_first_then_the_highest_scores(
        self, registry: CollectorRegistry, metrics: Metrics
    ) -> None:
        metrics.set_devices(
            {
                "pump": series(("low", 0.1, False), ("firing", 0.2, True), ("high", 0.9, False)),
                "room": series(("worst", 40.0, False), ("none", float("nan"), False)),
            }
        )
        assert device_scores(registry) == {"firing": 0.2, "high": 0.9, "worst": 40.0}
        assert value(registry, "sentinel_device_series_omitted", profile="pump") == 1
        assert value(registry, "sentinel_device_series_omitted", profile="room") == 1

    def test_a_forgotten_device_is_gone_with_the_next_view(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.set_devices({"pump": series(("a", 0.5, False))})
        metrics.set_devices({"pump": series(("b", 0.5, False))})
        assert device_scores(registry) == {"b": 0.5}

    def test_odd_device_names_survive_the_exposition(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.set_devices({"pump": series(('a"b\\c\nd/é', 0.5, False))})
        assert 'device="a\\"b\\\\c\\nd/é"' in generate_latest(registry).decode()

    def test_an_empty_fleet_is_no_error(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        metrics.set_devices({"pump": series()})
        assert value(registry, "sentinel_device_series_omitted", profile="pump") == 0

    @given(
        rows=st.lists(
            st.lists(st.tuples(st.one_of(st.just(np.nan), st.floats(0, np.inf)), st.booleans()), max_size=8), max_size=4
        ),
        limit=st.integers(0, 20),
    )
    @settings(deadline=None)
    def test_nobody_left_out_is_more_urgent_than_anybody_taken(
        self, rows: list[list[tuple[float, bool]]], limit: int
    ) -> None:
        profiles = [series(*((str(i), *row) for i, row in enumerate(part))) for part in rows]
        chosen = most_urgent(profiles, limit)
        taken: list[tuple[bool, float]] = []
        left: list[tuple[bool, float]] = []
        for part, picked in zip(rows, chosen, strict=True):
            for i, (score, firing) in enumerate(part):
                (taken if i in picked else left).append((firing, -1.0 if np.isnan(score) else score))
        assert len(taken) == min(limit, sum(map(len, rows)))
        if taken and left:
            assert min(taken) >= max(left)


def test_open_and_closed_labels_can_be_told_apart() -> None:
    assert all(values is OPEN or len(values) > 0 for metric in CATALOGUE for values in metric.labels.values())
