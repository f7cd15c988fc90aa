"""Frozen data shared by all rings. Imports nothing of ours and knows no clock.

Units: times are seconds since the epoch (float64), durations seconds, unless a name says otherwise.
Axes: B rows in a batch, F channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

AlertKind = Literal["prediction", "range", "rate", "stuck", "gap", "silence", "storm", "system"]
ALERT_KINDS: tuple[AlertKind, ...] = ("prediction", "range", "rate", "stuck", "gap", "silence", "storm", "system")
AlertState = Literal["pending", "firing", "acknowledged", "shelved", "resolved"]
Severity = Literal["info", "warning", "critical"]
Direction = Literal["above", "below", "both"]
PayloadFormat = Literal["auto", "json", "value", "csv", "influx", "senml", "cbor", "sparkplug"]
How = Literal["", "above", "below", "drifted", "noisy", "unlike the others", "out of all history"]
TIMED_FORMATS: frozenset[PayloadFormat] = frozenset({"influx", "senml", "sparkplug"})  # carry event times of their own
DeviceState = Literal["learning", "calibrating", "scoring", "silent", "offline"]
DEVICE_STATES: tuple[DeviceState, ...] = ("learning", "calibrating", "scoring", "silent", "offline")


class Message(NamedTuple):
    """One MQTT PUBLISH as it came.

    Attributes:
        received: receive time, wall clock.
        arrived: `time.perf_counter()` at the socket, for latencies; never used by the stream.
        mid, epoch: packet id and the connection it came on; what an acknowledgement needs.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    received: float = 0.0
    arrived: float = 0.0
    mid: int = 0
    epoch: int = 0


class Fate(StrEnum):
    """What became of a message, or of a reading. Ordered: of several, the first listed wins.

    A message is `ACCEPTED` when at least one of its readings was used, else it has the worst
    reason of its readings, the last in this order.
    """

    ACCEPTED = "accepted"
    RETAINED = "retained"  # a retained message without an event time: it only announces the device
    DUPLICATE = "duplicate"  # same device, time and values as before
    LATE = "late"  # older than the device's last tick
    OVERFULL = "overfull"  # more devices than `max_devices`, or more pending readings than allowed
    UNBORN = "unborn"  # Sparkplug data whose birth, which says what they mean, has not come
    NO_CHANNEL = "no_channel"  # no known channel with a usable value
    BAD_VALUE = "bad_value"  # every value of a wrong type, NaN or infinite
    BAD_TIME = "bad_time"  # event time missing, of a wrong type, or out of range
    BAD_DEVICE = "bad_device"  # device id empty or over 200 bytes
    BAD_SHAPE = "bad_shape"  # well-formed, of a shape that the profile does not describe
    BAD_SYNTAX = "bad_syntax"  # not of the format, not UTF-8, nested too deep, duplicate keys
    TOO_LARGE = "too_large"  # payload over the limit


FATES: tuple[Fate, ...] = tuple(Fate)
FATE_CODE: dict[Fate, int] = {fate: code for code, fate in enumerate(FATES)}


@dataclass(frozen=True, slots=True)
class Channel:
    """One measured quantity of a device.

    Attributes:
        path: keys into the payload; empty for a channel named by the topic.
        min, max: limits of the range rule, in `unit`; None: no limit.
        max_rate: limit of the rate rule, in `unit` per second; None: off.
        min_deviation: gate: smaller deviations from the forecast never count, in `unit`.
        direction: gate: which deviations count.
    """

    name: str
    path: tuple[str, ...] = ()
    unit: str = ""
    min: float | None = None
    max: float | None = None
    max_rate: float | None = None
    min_deviation: float = 0.0
    direction: Direction = "both"


@dataclass(frozen=True, slots=True)
class EventTime:
    """Where a payload carries its event time. `unit`: s, ms, us, ns or iso8601."""

    path: tuple[str, ...]
    unit: Literal["s", "ms", "us", "ns", "iso8601"] = "s"


@dataclass(frozen=True, slots=True)
class Naming:
    """Where each entry of a payload carries the name of its channel.

    Attributes:
        value: where the entry carries the number.
        split: text in the name whose last occurrence ends the device's id and begins the channel's name; empty: none.
    """

    path: tuple[str, ...]
    value: tuple[str, ...] = ("value",)
    split: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a profile's forecaster.

    Attributes:
        weights: one network for the profile, or one for each device besides.
    """

    cell: Literal["lstm", "gru"] = "lstm"
    layers: int = 1
    hidden: int = 32
    dropout: float = 0.0
    horizons: tuple[int, ...] = (1, 64)
    weights: Literal["shared", "device"] = "shared"


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A time in which a profile's alerts are shelved.

    Attributes:
        days: weekdays on which it begins, every week, 0 for Monday; empty: it is once.
        begin, end: seconds since midnight by the profile's clock; an `end` up to `begin` is on the next day.
            Of one that is once: seconds since the epoch.
    """

    days: tuple[int, ...]
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """All that the stream must know of a profile.

    Attributes:
        channels: None: learn the numeric leaves of the payloads (`channels = "auto"`).
        time: None: receive time is event time, but for formats that carry their own.
        format: how payloads are written; auto: told apart where that is safe.
        readings_path: where a payload's readings lie; a last "*": each entry there is one, named by its key.
        naming: of payloads that carry the names of their channels; None: keys, paths or the topic name them.
        alert_budget: alerts per second and device; 0: off (no prediction alerts).
        threshold: explicit threshold on the surprise, replacing the budget's; None: from the budget.
        silence_after: receive-time seconds without a reading; None: max(300 s, 10 usual intervals); 0: off.
        offline_after: receive-time seconds that a device may be offline; None: any.
        max_gap: event-time seconds; a longer gap resets the state and breaks the gap rule;
            None: 64 usual intervals reset the state, no rule.
        stuck_after: ticks of one value that break the stuck rule; None: from the longest run learned; 0: off.
        align_window: event-time seconds in which messages of one device become one tick.
        device_ttl: receive-time seconds after which an unheard device is forgotten.
        min_ticks, quiet_ticks: an alert fires after / resolves after so many ticks.
        timezone: IANA name of the zone that the clocks in messages and `maintenance` show.
        learn_after: ticks a device before the profile is trained.
        device: where the model runs.
    """

    name: str
    topic: str = "#"
    channels: tuple[Channel, ...] | None = None
    time: EventTime | None = None
    device_path: tuple[str, ...] = ()
    format: PayloadFormat = "auto"
    readings_path: tuple[str, ...] = ()
    naming: Naming | None = None
    alert_budget: float = 1 / 604800
    threshold: float | None = None
    silence_after: float | None = None
    offline_after: float | None = None
    max_gap: float | None = None
    stuck_after: int | None = None
    align_window: float = 0.0
    max_devices: int = 100_000
    max_channels: int = 64
    device_ttl: float = 30 * 86400.0
    min_ticks: int = 1
    quiet_ticks: int = 15
    timezone: str = "UTC"
    maintenance: tuple[Maintenance, ...] = ()
    learn: Literal["online", "once", "never"] = "online"
    learn_after: int = 600
    model: ModelSpec = field(default_factory=ModelSpec)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def by_arrival(self) -> bool:
        """Whether receive time is event time."""
        return self.time is None and self.format not in TIMED_FORMATS

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> ProfileSpec:
        """Undo `dataclasses.asdict`, JSON in between or not."""
        channels, time, naming = raw["channels"], raw["time"], raw.get("naming")
        nested = {
            "channels": channels and tuple(Channel(**(c | {"path": tuple(c["path"])})) for c in channels),
            "time": time and EventTime(tuple(time["path"]), time["unit"]),
            "device_path": tuple(raw["device_path"]),
            "maintenance": tuple(
                Maintenance(tuple(m["days"]), m["begin"], m["end"]) for m in raw.get("maintenance", ())
            ),
            "readings_path": tuple(raw.get("readings_path", ())),
            "naming": naming and Naming(tuple(naming["path"]), tuple(naming["value"]), naming["split"]),
            "model": ModelSpec(**(raw["model"] | {"horizons": tuple(raw["model"]["horizons"])})),
        }
        return cls(**(dict(raw) | nested))


@dataclass(frozen=True, slots=True)
class Readings:
    """B readings of one profile in order of arrival, those of one message in the order of their times, columnar.

    Attributes:
        channels: names of the F columns; a prefix-stable list that only grows for `auto` profiles.
        device: B device ids.
        time: event times, (B,).
        values: (B, F), NaN where a channel is missing.
        message: index of the message of the turn that each came with, (B,).
    """

    profile: str
    channels: tuple[str, ...]
    device: Sequence[str]
    time: Floats
    values: Floats
    message: Ints

    def __len__(self) -> int:
        return len(self.device)

    def of(self, device: str) -> Readings:
        """Those of one device."""
        rows = [at for at, name in enumerate(self.device) if name == device]
        names = [device] * len(rows)
        return Readings(self.profile, self.channels, names, self.time[rows], self.values[rows], self.message[rows])


CommandVerb = Literal["acknowledge", "shelve", "normal", "forget"]
COMMAND_VERBS: tuple[CommandVerb, ...] = get_args(CommandVerb)
CommandFate = Literal[
    "accepted", "no_alert", "bad_topic", "bad_payload", "unknown_device", "retained", "rate_limited", "off"
]
COMMAND_FATES: tuple[CommandFate, ...] = get_args(CommandFate)


WebhookFate = Literal["delivered", "retried", "overfull", "refused", "expired", "gone", "stopped"]
WEBHOOK_FATES: tuple[WebhookFate, ...] = get_args(WebhookFate)


@dataclass(frozen=True, slots=True)
class Command:
    """An operator's word on a device's alerts, an input of the stream.

    Attributes:
        verb: acknowledge, shelve (for `seconds`, 0: no longer), normal (feedback), forget (the device).
    """

    verb: CommandVerb
    profile: str
    device: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Timer:
    """A timer turn that changed something (silence, an alignment window that closed).

    Attributes:
        listening_since: since when nothing that was published was missed: silence is counted from there at the earliest.
    """

    listening_since: float = 0.0


@dataclass(frozen=True, slots=True)
class Promotion:
    """From here on, `profile` runs the model in the store's directory `version`."""

    profile: str
    version: str


@dataclass(frozen=True, slots=True)
class Announcement:
    """A device was heard of without a reading: by a retained message without an event time."""

    profile: str
    device: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """From here on, a profile runs with these settings."""

    spec: ProfileSpec

    @property
    def profile(self) -> str:
        return self.spec.name


@dataclass(frozen=True, slots=True)
class Birth:
    """Sparkplug: a node or a device is there, and from here on its metrics mean this.

    Attributes:
        node: "group/edge".
        device: the node itself, whose birth ends what those of its devices said; or one of its devices.
        metrics: name, alias (None: it has none) and data type of each.
        session: the node's own bdSeq, which its death names; None: unsaid, or of a device.
    """

    profile: str
    node: str
    device: str
    metrics: tuple[tuple[str, int | None, int], ...]
    session: int | None = None

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Birth:
        """Undo `dataclasses.asdict`, JSON in between or not."""
        return cls(**(dict(raw) | {"metrics": tuple((name, alias, kind) for name, alias, kind in raw["metrics"])}))


@dataclass(frozen=True, slots=True)
class Death:
    """Sparkplug: these devices are offline; a node with all of its devices, or one of them."""

    profile: str
    node: str
    devices: tuple[str, ...]

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Death:
        """Undo `dataclasses.asdict`, JSON in between or not."""
        return cls(raw["profile"], raw["node"], tuple(raw["devices"]))


@dataclass(frozen=True, slots=True)
class Heard:
    """Sparkplug: how far the sequences of the nodes have come that a turn heard of.

    Attributes:
        numbers: newest sequence number (None: unknown) by node, or by a device of it that no birth has told of; of
            several of one node the last holds.
    """

    profile: str
    numbers: Mapping[str, int | None]


Entry = Readings | Command | Timer | Promotion | Announcement | Configuration | Birth | Death | Heard
"""One input of the stream; the journal holds them in order, grouped by turn."""


@dataclass(frozen=True, slots=True)
class ChannelView:
    """One channel in an alert: what came, what was expected, and its share of the surprise.

    Attributes:
        value: None: missing in that tick.
        low, high: band of what was expected.
        share: its part of the surprise; shares of an alert sum to 1.
        how: what was unusual of it; "": the value itself.
            above, below: on that side of what was expected for `readings` readings, by `by` on average.
            drifted: `by` away from where it used to be.
            noisy: errors larger than usual, on both sides.
            unlike the others: not as the other channels imply.
            out of all history: beyond all values that it had.
        by: in `unit`, of either sign; None: not known.
        readings: over which `by` was averaged; 0: not known.
    """

    name: str
    unit: str
    value: float | None
    expected: float | None
    low: float | None
    high: float | None
    share: float
    how: How = ""
    by: float | None = None
    readings: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    """One transition of one alert, as published. See `alert.schema.json`.

    Attributes:
        id: hash of profile, device, kind and the event time of the tick that opened the episode.
        seq: 0, 1, 2 … within the alert.
        started: when the episode began, which may be before the tick that opened it.
        updated: time of this transition.
        ended: of a resolved alert, its last anomalous tick; the quiet time after it is not counted.
        score: highest score so far; None for rules.
        ticks: anomalous ticks so far.
        fired: when it fired, `fired - started` after the episode began; None: not yet, or never, or it began shelved.

    `started`, `updated`, `ended` and `fired` are event times (receive times for silence, storm and system).
    """

    id: str
    seq: int
    state: AlertState
    device: str
    profile: str
    kind: AlertKind
    severity: Severity
    started: float
    updated: float
    ended: float | None
    score: float | None
    p_value: float | None
    ticks: int
    channels: tuple[ChannelView, ...]
    message: str
    model: str | None
    fired: float | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert changed.

    Attributes:
        alert: what goes to the events topic.
        retained: what the device's retained topic must now say; None: clear it.
        message: index of the message of the turn that caused it; -1: a timer.
        fires: whether the alert fired with it; once in an alert's life.
        recent: where it began or ended with a tick, the device's newest ones as of then, for people, as
            `stream.recent` has them; None: nobody keeps them.
    """

    alert: Alert
    retained: Alert | None
    message: int = -1
    fires: bool = False
    recent: npt.NDArray[Any] | None = field(default=None, compare=False, repr=False)
