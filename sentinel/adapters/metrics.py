"""Every metric that Sentinel exports, and the object that the service feeds them by.

Calls are cheap enough for once a turn or once a batch, not for once a message. None blocks or raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from sentinel import __version__
from sentinel.records import (
    ALERT_KINDS,
    COMMAND_FATES,
    DEVICE_STATES,
    FATES,
    WEBHOOK_FATES,
    AlertKind,
    Bools,
    CommandFate,
    DeviceState,
    Fate,
    Floats,
    Ints,
    WebhookFate,
)

Stage = Literal["score", "journal", "publish"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ValueDrop = Literal["bad_value"]
VALUE_DROPS: tuple[ValueDrop, ...] = get_args(ValueDrop)

WEEK = 604800.0  # seconds

OPEN: tuple[str, ...] = ()
"""Marks a label whose values are not known beforehand."""


@dataclass(frozen=True, eq=False, slots=True)
class Metric:
    """One entry of the catalogue.

    Attributes:
        help: what it says, and what to do about it.
        labels: per label its closed set of values, or `OPEN`; those of `profile` come from the config.
        buckets: upper bounds of a histogram, in the metric's unit.
        from_start: whether the series whose labels are known are there, at zero, before anything is said.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    from_start: bool = True


_PROFILE = {"profile": OPEN}
_DEVICE = {"profile": OPEN, "device": OPEN}
_FAST = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0, 10.0)

MESSAGES = Metric(
    "counter",
    "sentinel_messages_total",
    "PUBLISH packets received on profile topics, by what became of them. "
    "Any outcome but accepted growing: read the dead-letter topic, then correct the profile or the sender; "
    "unborn: set mqtt.rebirth, or let the Sparkplug nodes be born again. All of a profile's at 0: look at its topic.",
    {"profile": OPEN, "outcome": FATES},
)
READINGS = Metric(
    "counter",
    "sentinel_readings_total",
    "Readings decoded, by what became of them. "
    "late: raise the align window or mend the sender's clock; overfull: raise max_devices.",
    {"profile": OPEN, "outcome": FATES},
)
VALUES_DROPPED = Metric(
    "counter",
    "sentinel_values_dropped_total",
    "Single values left out of a reading that was used. Growing: look at the channel's path and at the sensor.",
    {"profile": OPEN, "reason": VALUE_DROPS},
)
UNKNOWN_CHANNELS = Metric(
    "counter",
    "sentinel_unknown_channels_total",
    "Values of channels that the profile does not list. Growing: list them in the profile, or ignore it.",
    _PROFILE,
)
TICKS = Metric(
    "counter",
    "sentinel_ticks_total",
    "Ticks that the forecaster or the rules took. Flat while readings come: look at the outcomes of the readings.",
    _PROFILE,
)
STATE_RESETS = Metric(
    "counter",
    "sentinel_state_resets_total",
    "States that began anew after a gap. Many: devices or network pause; set max_gap if that is an alert of its own.",
    _PROFILE,
)
ANOMALIES = Metric(
    "counter",
    "sentinel_anomalies_total",
    "Anomalous ticks, by kind. Many with few alerts: a borderline channel; set its min_deviation.",
    {"profile": OPEN, "kind": ALERT_KINDS},
)
ALERTS = Metric(
    "counter",
    "sentinel_alerts_total",
    "Alerts started, by kind. Too many of kind prediction: lower alert_budget; of a rule: correct its limit.",
    {"profile": OPEN, "kind": ALERT_KINDS},
)
ALERTS_FIRING = Metric(
    "gauge",
    "sentinel_alerts_firing",
    "Alerts open now, by kind. Over 0: read them on the alerts topics and go to the device.",
    {"profile": OPEN, "kind": ALERT_KINDS},
)
ALERT_BUDGET = Metric(
    "gauge",
    "sentinel_alert_budget_interval_seconds",
    "Time in which the budget allows one device one alert of kind prediction; no series: no budget. "
    "Compare with the rate of sentinel_alerts_total; well over it: look for a changed fleet and retrain.",
    _PROFILE,
    from_start=False,
)
ALERT_BUDGET_WEEKLY = Metric(
    "gauge",
    "sentinel_alert_budget_per_device_week",
    "Alerts of kind prediction that the budget allows a device that is well in a week; no series: no budget. "
    "Well under 604800 times the rate of sentinel_alerts_total over that of sentinel_device_heard_seconds_total: "
    "the fleet has changed, train again.",
    _PROFILE,
    from_start=False,
)
HEARD = Metric(
    "counter",
    "sentinel_device_heard_seconds_total",
    "Event time that passed between the scored readings of all devices, pauses left out: 604800 is a device-week. "
    "Flat while ticks grow: the profile has no model yet.",
    _PROFILE,
)
DEVICES = Metric(
    "gauge",
    "sentinel_devices",
    "Known devices, each in one state. "
    "silent, or offline by its own word: check its power and network; learning or calibrating for hours: it sends too rarely.",
    {"profile": OPEN, "state": DEVICE_STATES},
)
LEARNING_PROGRESS = Metric(
    "gauge",
    "sentinel_learning_progress_ratio",
    "Readings gathered over readings needed for the profile's next model. Below 1 for days: lower learn_after.",
    _PROFILE,
)
MODEL_INFO = Metric(
    "gauge",
    "sentinel_model_info",
    "1 for the model that the profile runs; no series: none yet. None for days: look at the learning progress.",
    {"profile": OPEN, "version": OPEN, "cell": OPEN},
    from_start=False,
)
MODEL_TRAINED = Metric(
    "gauge",
    "sentinel_model_trained_timestamp_seconds",
    "When the profile's model was trained. Older than the last change of the plant: train again.",
    _PROFILE,
    from_start=False,
)
STATE_SATURATION = Metric(
    "gauge",
    "sentinel_state_saturation_ratio",
    "Share of the LSTM cells in use whose |c| is over its limit. Above 0.1 for long: train again.",
    _PROFILE,
)
PUBLISH_TO_ALERT = Metric(
    "histogram",
    "sentinel_publish_to_alert_seconds",
    "From a message's arrival at the socket to its alert's hand-over to the socket. "
    "Growing: the machine is too busy or its disk too slow; see the stage durations.",
    buckets=(5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
INGEST_LAG = Metric(
    "gauge",
    "sentinel_ingest_lag_seconds",
    "How far the newest event time of the last turn with readings is behind now; a replay's is large and no fault. "
    "Growing live: the broker's queue or the network holds readings up.",
)
STAGE = Metric(
    "histogram",
    "sentinel_stage_seconds",
    "Duration of one stage in one turn. The longest is where to look when latency grows.",
    {"stage": STAGES},
    buckets=_FAST,
)
TURN = Metric(
    "histogram",
    "sentinel_turn_seconds",
    "Duration of one turn of the reactor, waiting left out. Over 1 s: lower the turn's limits or add CPU.",
    buckets=_FAST,
)
BATCH = Metric(
    "histogram",
    "sentinel_batch_readings",
    "Readings in one turn. Always in the highest buckets: the machine is at its limit.",
    buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384),
)
DEAD_LETTERS = Metric(
    "counter",
    "sentinel_dead_letters_total",
    "Refused messages copied to the dead-letter topic. Growing: subscribe to it and see what the senders do wrong.",
)
DEAD_LETTERS_SUPPRESSED = Metric(
    "counter",
    "sentinel_dead_letters_suppressed_total",
    "Refused messages over the dead-letter rate limit, counted only. Growing: a sender floods; find it and stop it.",
)
COMMANDS = Metric(
    "counter",
    "sentinel_commands_total",
    "Messages on the command topics, by what became of them; the log has a line for each but those that are rate_limited. "
    "Any outcome but accepted growing: see there what is sent, and let the broker say who may.",
    {"outcome": COMMAND_FATES},
)
PUBLISHES_DROPPED = Metric(
    "counter",
    "sentinel_publishes_dropped_total",
    "Own publishes (alerts, events, status) given up. Growing: the broker is away too long, or refuses the topics.",
)
WEBHOOK_MESSAGES = Metric(
    "counter",
    "sentinel_webhook_messages_total",
    "Messages to webhooks, by what became of them; retried: attempts after the first. "
    "Any outcome but delivered growing: the log has the reason; look at the receiver.",
    {"outcome": WEBHOOK_FATES},
)
WEBHOOK_WAITING = Metric(
    "gauge",
    "sentinel_webhook_waiting",
    "Messages that wait for webhooks, each of which holds 1000. Growing: a receiver is away or too slow; see the log.",
)
SPARKPLUG_GAPS = Metric(
    "counter",
    "sentinel_sparkplug_gaps_total",
    "Sparkplug messages whose sequence number shows that others before them are missing. "
    "Growing: the broker or the network loses messages; births among them leave data unborn.",
    _PROFILE,
)
SPARKPLUG_REBIRTHS = Metric(
    "counter",
    "sentinel_sparkplug_rebirths_total",
    "Commands to Sparkplug nodes that ask for a new birth. "
    "Growing for one node (the log names it): it does not answer; see its log and the broker's access list.",
    _PROFILE,
)
BROKER_CONNECTED = Metric(
    "gauge",
    "sentinel_broker_connected",
    "1 while connected to the broker. 0: check the broker, its address and the credentials.",
)
BROKER_RECONNECTS = Metric(
    "counter",
    "sentinel_broker_reconnects_total",
    "Connections to the broker after the first. Growing: unstable network, or another client with the same client_id.",
)
JOURNAL_BYTES = Metric(
    "gauge",
    "sentinel_journal_bytes",
    "Size of the journal on disk. Near the disk's free space: lower its retention.",
)
JOURNAL_COMMIT = Metric(
    "gauge",
    "sentinel_journal_last_commit_timestamp_seconds",
    "When the journal last took a turn; 0: not yet. Standing still while messages come: look at the disk.",
)
SNAPSHOT_AGE = Metric(
    "gauge",
    "sentinel_snapshot_age_seconds",
    "Since the last complete snapshot, or since the start. Over 10 intervals: look at the disk and the log.",
)
SNAPSHOT_ERRORS = Metric(
    "counter",
    "sentinel_snapshot_errors_total",
    "Snapshots that failed. Growing: free the disk; until one succeeds a restart replays more of the journal.",
)
BUILD_INFO = Metric(
    "gauge",
    "sentinel_build_info",
    "1, with the running version. More than one version in a fleet: finish the upgrade.",
    {"version": (__version__,)},
)
DEVICE_SCORE = Metric(
    "gauge",
    "sentinel_device_score",
    "Latest score of a device; at 1 a reading is anomalous; no series: no score yet. At 1 or over for long: see its alert.",
    _DEVICE,
)
DEVICE_FIRING = Metric(
    "gauge",
    "sentinel_device_firing",
    "1 while the device has an open alert. 1: read it on the device's alerts topic.",
    _DEVICE,
)
DEVICE_LAST_SEEN = Metric(
    "gauge",
    "sentinel_device_last_seen_timestamp_seconds",
    "Receive time of the device's last reading. Long ago: check its power and network.",
    _DEVICE,
)
DEVICES_OMITTED = Metric(
    "gauge",
    "sentinel_device_series_omitted",
    "Devices without series of their own because of the cap (firing first, then highest score). "
    "Over 0 and you need them: raise the cap, at the cost of scrape size.",
    _PROFILE,
)

CATALOGUE: tuple[Metric, ...] = tuple(entry for entry in list(globals().values()) if isinstance(entry, Metric))
"""All of the above, in order."""


_FROM_VIEW = (DEVICE_SCORE, DEVICE_FIRING, DEVICE_LAST_SEEN, DEVICES_OMITTED)


class Reference(NamedTuple):
    """One row of the documentation's table of metrics."""

    name: str
    kind: str
    labels: str
    help: str


def metrics_reference() -> list[Reference]:
    """The catalogue as text, one row a metric; closed label sets are spelt out."""
    return [
        Reference(
            metric.name,
            metric.kind,
            ", ".join(
                name if values is OPEN else f"{name} ({'|'.join(values)})" for name, values in metric.labels.items()
            ),
            metric.help,
        )
        for metric in CATALOGUE
    ]


@dataclass(frozen=True, slots=True)
class DeviceSeries:
    """One profile's devices as of one turn, a row each; nobody modifies it afterwards.

    Attributes:
        device: ids.
        score: NaN: no score yet.
        firing: whether an alert of the device is open.
        last_seen: receive time of the last reading.
    """

    device: Sequence[str]
    score: Floats
    firing: Bools
    last_seen: Floats


class Metrics(Collector):
    """Holds the values of the catalogue and gives them to `registry`.

    All series whose labels are known beforehand are there from the start, at zero.

    Args:
        registry: where to register; the process's own metrics (CPU, memory, files) go there too.
        profiles: names of the configured profiles.
        max_device_series: devices that get series of their own, over all profiles.
        clock: wall clock, read at a scrape for ages.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        profiles: Sequence[str],
        max_device_series: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_device_series = max_device_series
        self._clock = clock
        self._snapshot_time = clock()
        self._devices: Mapping[str, DeviceSeries] = {}
        self._models: dict[str, tuple[str, str]] = {}
        self._counters: dict[Metric, Counter] = {}
        self._gauges: dict[Metric, Gauge] = {}
        self._histograms: dict[Metric, Histogram] = {}
        for metric in CATALOGUE:
            if metric in _FROM_VIEW:
                continue
            if metric.kind == "counter":
                self._counters[metric] = Counter(metric.name, metric.help, metric.labels, registry=None)
            elif metric.kind == "gauge":
                self._gauges[metric] = Gauge(metric.name, metric.help, metric.labels, registry=None)
            else:
                self._histograms[metric] = Histogram(
                    metric.name, metric.help, metric.labels, registry=None, buckets=metric.buckets
                )
        self._families = self._counters | self._gauges | self._histograms
        for metric, family in self._families.items():
            if metric.labels and metric.from_start:
                for values in product(*(profiles if values is OPEN else values for values in metric.labels.values())):
                    family.labels(*values)
        self._gauges[BUILD_INFO].labels(__version__).set(1)
        self._gauges[SNAPSHOT_AGE].set_function(lambda: max(self._clock() - self._snapshot_time, 0.0))
        registry.register(self)
        ProcessCollector(registry=registry)

    def messages(self, profile: str, counts: Mapping[Fate, int]) -> None:
        """Add messages by their outcome."""
        self._add(MESSAGES, counts, profile)

    def readings(self, profile: str, counts: Mapping[Fate, int]) -> None:
        """Add readings by their outcome."""
        self._add(READINGS, counts, profile)

    def values_dropped(self, profile: str, counts: Mapping[ValueDrop, int]) -> None:
        """Add values left out of readings, by reason."""
        self._add(VALUES_DROPPED, counts, profile)

    def unknown_channels(self, profile: str, n: int) -> None:
        """Add values of unlisted channels."""
        self._counters[UNKNOWN_CHANNELS].labels(profile).inc(n)

    def ticks(self, profile: str, n: int) -> None:
        """Add ticks."""
        self._counters[TICKS].labels(profile).inc(n)

    def state_resets(self, profile: str, n: int) -> None:
        """Add states that began anew after a gap."""
        self._counters[STATE_RESETS].labels(profile).inc(n)

    def anomalies(self, profile: str, kind: AlertKind, n: int) -> None:
        """Add anomalous ticks."""
        self._counters[ANOMALIES].labels(profile, kind).inc(n)

    def alerts_started(self, profile: str, kind: AlertKind, n: int = 1) -> None:
        """Add alerts that began to fire."""
        self._counters[ALERTS].labels(profile, kind).inc(n)

    def alerts_firing(self, profile: str, counts: Mapping[AlertKind, int]) -> None:
        """Set how many alerts of each kind are open; a kind left out has none."""
        self._set_all(ALERTS_FIRING, profile, ALERT_KINDS, counts)

    def alert_budget(self, profile: str, per_second: float) -> None:
        """Set the budget, in alerts per second and device; 0: none."""
        if per_second > 0:
            self._gauges[ALERT_BUDGET].labels(profile).set(1 / per_second)
            self._gauges[ALERT_BUDGET_WEEKLY].labels(profile).set(WEEK * per_second)
        else:
            self._gauges[ALERT_BUDGET].remove(profile)
            self._gauges[ALERT_BUDGET_WEEKLY].remove(profile)

    def heard(self, profile: str, seconds: float) -> None:
        """Add event time in which devices were scored, summed over them."""
        self._counters[HEARD].labels(profile).inc(seconds)

    def devices(self, profile: str, counts: Mapping[DeviceState, int]) -> None:
        """Set how many devices are in each state; a state left out has none."""
        self._set_all(DEVICES, profile, DEVICE_STATES, counts)

    def learning(self, profile: str, progress: float) -> None:
        """Set readings gathered over readings needed, 0 to 1."""
        self._gauges[LEARNING_PROGRESS].labels(profile).set(progress)

    def model(self, profile: str, version: str, cell: str, trained: float) -> None:
        """Say which model the profile runs and when it was trained (epoch); it replaces the one before."""
        old = self._models.get(profile)
        self._models[profile] = version, cell
        self._gauges[MODEL_INFO].labels(profile, version, cell).set(1)
        if old is not None and old != (version, cell):
            self._gauges[MODEL_INFO].remove(profile, *old)
        self._gauges[MODEL_TRAINED].labels(profile).set(trained)

    def state_saturation(self, profile: str, ratio: float) -> None:
        """Set the share of saturated cells, 0 to 1."""
        self._gauges[STATE_SATURATION].labels(profile).set(ratio)

    def publish_to_alert(self, seconds: Iterable[float]) -> None:
        """Add latencies of alerts."""
        for value in seconds:
            self._histograms[PUBLISH_TO_ALERT].observe(value)

    def ingest_lag(self, seconds: float) -> None:
        """Set how far the newest event time of a turn is behind now."""
        self._gauges[INGEST_LAG].set(seconds)

    def observe(self, stage: Stage, seconds: float) -> None:
        """Add one stage's duration in one turn."""
        self._histograms[STAGE].labels(stage).observe(seconds)

    def turn(self, seconds: float, readings: int) -> None:
        """Add one turn: its duration without waiting, and its batch size."""
        self._histograms[TURN].observe(seconds)
        self._histograms[BATCH].observe(readings)

    def dead_letters(self, sent: int, suppressed: int) -> None:
        """Add refused messages: copied to the dead-letter topic, and over its rate limit."""
        self._counters[DEAD_LETTERS].inc(sent)
        self._counters[DEAD_LETTERS_SUPPRESSED].inc(suppressed)

    def command(self, fate: CommandFate) -> None:
        """Add a message on the command topics."""
        self._counters[COMMANDS].labels(fate).inc()

    def publishes_dropped(self, n: int) -> None:
        """Add own publishes given up."""
        self._counters[PUBLISHES_DROPPED].inc(n)

    def webhook(self, fate: WebhookFate) -> None:
        """Add a message to a webhook. From any thread."""
        self._counters[WEBHOOK_MESSAGES].labels(fate).inc()

    def webhooks_waiting(self, n: int) -> None:
        """Set how many messages wait for webhooks."""
        self._gauges[WEBHOOK_WAITING].set(n)

    def sparkplug_gaps(self, profile: str, n: int) -> None:
        """Add messages before which others are missing."""
        self._counters[SPARKPLUG_GAPS].labels(profile).inc(n)

    def sparkplug_rebirth(self, profile: str) -> None:
        """Add a command that asks for a birth."""
        self._counters[SPARKPLUG_REBIRTHS].labels(profile).inc()

    def broker_connected(self, connected: bool) -> None:
        """Set whether the broker is connected."""
        self._gauges[BROKER_CONNECTED].set(connected)

    def broker_reconnected(self) -> None:
        """Add a connection that was not the first."""
        self._counters[BROKER_RECONNECTS].inc()

    def journal(self, size: int, committed: float) -> None:
        """Set the journal's size in bytes and the time of its last commit (epoch)."""
        self._gauges[JOURNAL_BYTES].set(size)
        self._gauges[JOURNAL_COMMIT].set(committed)

    def snapshot(self, completed: float) -> None:
        """Say when the newest snapshot was completed (epoch); its age is reckoned at each scrape."""
        self._snapshot_time = completed

    def snapshot_failed(self) -> None:
        """Add a snapshot that failed."""
        self._counters[SNAPSHOT_ERRORS].inc()

    def set_devices(self, view: Mapping[str, DeviceSeries]) -> None:
        """Replace what the per-device series are made from, by profile. Neither it nor its arrays change later."""
        self._devices = view

    def collect(self) -> Iterator[Family]:
        """All families; called by the registry, in the thread that scrapes."""
        for metric in self._families.values():
            for family in metric.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family
        yield from self._collect_devices(self._devices)

    def _collect_devices(self, view: Mapping[str, DeviceSeries]) -> Iterator[Family]:
        families = {
            metric: GaugeMetricFamily(metric.name, metric.help, labels=tuple(metric.labels)) for metric in _FROM_VIEW
        }
        for profile, rows in zip(view, most_urgent(list(view.values()), self._max_device_series), strict=True):
            series = view[profile]
            for row in rows:
                labels = (profile, series.device[row])
                if not np.isnan(series.score[row]):
                    families[DEVICE_SCORE].add_metric(labels, float(series.score[row]))
                families[DEVICE_FIRING].add_metric(labels, float(series.firing[row]))
                families[DEVICE_LAST_SEEN].add_metric(labels, float(series.last_seen[row]))
            families[DEVICES_OMITTED].add_metric((profile,), len(series.device) - len(rows))
        yield from families.values()

    def _add(self, metric: Metric, counts: Mapping[Any, int], *labels: str) -> None:
        for value, n in counts.items():
            self._counters[metric].labels(*labels, value).inc(n)

    def _set_all(self, metric: Metric, profile: str, values: Sequence[str], counts: Mapping[Any, int]) -> None:
        for value in values:
            self._gauges[metric].labels(profile, value).set(counts.get(value, 0))


def most_urgent(profiles: Sequence[DeviceSeries], limit: int) -> list[Ints]:
    """Rows of each profile that are among the `limit` first over all: firing first, then highest score.

    Devices without a score come last. Linear in the number of devices.
    """
    if not profiles:
        return []
    score = np.concatenate([series.score for series in profiles])
    score = np.where(np.isnan(score), -1.0, score)
    firing = np.concatenate([series.firing for series in profiles])
    chosen = np.zeros(len(score), dtype=np.bool_)
    for group in (np.flatnonzero(firing), np.flatnonzero(~firing)):
        room = limit - int(chosen.sum())
        chosen[group if room >= len(group) else group[np.argpartition(-score[group], room)[:room]]] = True
    ends = np.cumsum([len(series.device) for series in profiles])
    return [np.flatnonzero(part) for part in np.split(chosen, ends[:-1])]
