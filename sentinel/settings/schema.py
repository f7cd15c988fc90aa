"""Every key of the configuration: its default, its unit, what is allowed.

Defaults of a profile are those of `records.ProfileSpec`. A value that is text in the file and a number in the
program (durations, budgets, sizes) carries a `Text`, which reads, writes and describes it.
"""

from __future__ import annotations

import base64
import ipaddress
import math
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, PrivateAttr, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sentinel.errors import ConfigError
from sentinel.records import Channel, Direction, EventTime, ModelSpec, Naming, PayloadFormat, ProfileSpec
from sentinel.settings import files, values

_PROFILE = ProfileSpec(name="")
_CHANNEL = Channel(name="")
_NAMED_WINDOW = 1.0  # s, where a message may be of one channel alone
_NAMING_FORMATS = {"auto", "json", "cbor"}
_LEAST_KEY, _LONGEST_KEY = 24, 64  # bytes
_LEAST_TICKS_PER_ALERT = 150  # twice the 75 ticks after an alert's start in which no other is counted


@dataclass(frozen=True)
class Text:
    """How a value is written in the configuration.

    Attributes:
        kind: its type, for the reference.
        allowed: completes "must be …".
        parse: raises ValueError.
        words: keywords and what they mean.
    """

    kind: str
    allowed: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], Any] = lambda value: value
    words: tuple[tuple[str, object], ...] = ()

    def read(self, value: object) -> object:
        for word, meaning in self.words:
            if value == word:
                return meaning
        try:
            return self.parse(value)
        except ValueError as error:
            alternatives = "".join(f', or "{word}"' for word, _ in self.words)
            raise ValueError(f"{error}{alternatives}") from error

    def write(self, value: object) -> object:
        for word, meaning in self.words:
            if value == meaning:
                return word
        return None if value is None else self.show(value)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))


def _path(value: object) -> tuple[str, ...]:
    parts = value.split(".") if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, str) and part for part in parts):
        return tuple(parts)
    raise ValueError('must be a path into the payload such as "flow.value" or ["flow", "value"]')


def _show_path(path: tuple[str, ...]) -> str | list[str]:
    return list(path) if any("." in part for part in path) else ".".join(path)


def _channels(value: object) -> object:
    if isinstance(value, list | tuple) and value:
        return value
    raise ValueError('must be a list of channels such as ["pressure", { name = "flow", unit = "m3/h" }]')


def _horizons(value: object) -> tuple[int, ...]:
    if (
        isinstance(value, list | tuple)
        and value
        and all(type(ticks) is int and 1 <= ticks <= 1024 for ticks in value)
        and list(value) == sorted(set(value))
    ):
        if math.lcm(32, *value) >= 1 << 22:  # ticks are counted modulo this in float32 (`Layout.period`)
            raise ValueError("must be ticks whose least common multiple is small: powers of 2 such as [1, 16, 64]")
        return tuple(value)
    raise ValueError("must be a list of ticks from 1 to 1024, ascending, such as [1, 64]")


def _stuck_after(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= values.LARGEST:
        return value
    raise ValueError("must be a number of ticks of at least 2")


def _host(value: object) -> str:
    if isinstance(value, str) and value and not set(value) & set("/@ \t\r\n"):
        return value
    raise ValueError('must be a host name or an address, without "mqtt://" and without a port')


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _prefix(value: object) -> str:
    if isinstance(value, str) and value and not set(value) & set("+#\0") and value[0] not in "/$" and value[-1] != "/":
        return value
    raise ValueError('must be a topic without wildcards such as "sentinel" or "site/sentinel"')


def _level(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value and not set(value) & set("+#/\0")):
        return value
    raise ValueError('must be one level of a topic, without wildcards, such as "sentinel"')


def _url(value: object) -> str:
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        try:
            parts = urlsplit(value)
            fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and not parts.fragment
        except ValueError:
            fine = False
        if fine and "@" not in parts.netloc:
            return value
    raise ValueError('must be an address such as "https://example.org/alerts", without a user name or a password')


def _maintenance(value: object) -> tuple[object, ...]:
    if isinstance(value, list | tuple):
        for each in value:
            values.parse_maintenance(each)
        return tuple(value)
    raise ValueError('must be a list of times such as ["sat 02:00-04:00"]')


def _tables(value: object) -> object:
    if isinstance(value, list | tuple):
        return value
    raise ValueError("must be a list of tables")


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("bool", "a boolean is no number")
    if isinstance(value, int) and abs(value) > values.LARGEST:
        raise ValueError(f"must be a number of at most {values.LARGEST}")
    return value


def _seconds(value: object) -> int:
    seconds = values.parse_duration(value)
    if seconds != int(seconds):
        raise ValueError("must be a whole number of seconds")
    return int(seconds)


Duration = Annotated[float, Text("duration", values.DURATION, values.parse_positive_duration, values.show_duration)]
Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
PayloadPath = Annotated[
    tuple[str, ...], Text("payload path", 'a path into the payload such as "flow.value"', _path, _show_path)
]


class Table(BaseModel):
    """A table of the file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TlsSettings(Table):
    """An empty table means TLS with the system's certificate authorities."""

    ca: Path | None = Field(default=None, description="file of certificate authorities; left out: the system's")
    cert: Path | None = Field(default=None, description="file of the client's certificate")
    key: Path | None = Field(default=None, description="file of the client's key")

    def context(self) -> ssl.SSLContext:
        """For a connection to the broker; the files are read anew at each call. Raises FileProblem."""
        return files.client_context(("mqtt", "tls"), self.ca, self.cert, self.key)


class MqttSettings(Table):
    host: Annotated[str, Text("text", "a host name or an address", _host)] = Field(
        default="127.0.0.1", description="the broker's name or address"
    )
    port: Whole = Field(default=1883, ge=1, le=65535, description="the broker's port")
    version: Literal["3.1.1", "5"] = Field(default="3.1.1", description="protocol version")
    client_id: str | None = Field(
        default=None, min_length=1, max_length=256, description="left out: a random one, kept in the store"
    )
    username: str | None = Field(default=None, min_length=1, description="left out: anonymous")
    password_file: Path | None = Field(
        default=None, description="file that holds the password; left out: the systemd credential mqtt_password"
    )
    tls: TlsSettings | None = Field(default=None, description="left out: no TLS; {}: with the system's authorities")
    qos: Whole = Field(default=1, ge=0, le=1, description="highest quality of service to ask for; 0 may lose readings")
    keepalive: Whole = Field(default=60, ge=1, le=65535, description="s between signs of life")
    prefix: Annotated[str, Text("text", "a topic without wildcards", _prefix)] = Field(
        default="sentinel", description="first levels of all topics that Sentinel publishes"
    )
    commands: bool = Field(
        default=False, description="take commands on PREFIX/command/…; who may publish there is the broker's to say"
    )
    host_id: Annotated[str | None, Text("text", "a level of a topic without wildcards", _level)] = Field(
        default=None,
        description="name as a Sparkplug host application, whose state is then the last will; left out: it is none",
    )
    rebirth: bool = Field(
        default=False,
        description="ask Sparkplug nodes for a new birth where one is missing: a command to devices, on spBv1.0/+/NCMD/+",
    )
    session_expiry: Annotated[int, Text("duration", values.DURATION, _seconds, values.show_duration)] = Field(
        default=7 * 86400,
        ge=0,
        le=0xFFFFFFFF,
        description="how long the broker keeps the session while away (version 5)",
    )

    _typed: str | None = PrivateAttr(default=None)

    def with_password(self, typed: str) -> Self:
        """The same, with a password that a person typed."""
        known = self.model_copy()
        known._typed = typed  # noqa: SLF001 - its own
        return known

    def password(self) -> str | None:
        """What was typed, or what `password_file` holds; read anew at each call. Raises FileProblem."""
        return self._typed or files.secret(("mqtt", "password_file"), self.password_file)


class HttpTlsSettings(Table):
    cert: Path = Field(description="file of the server's certificate, with the chain to its authority")
    key: Path = Field(description="file of the server's key")

    def context(self) -> ssl.SSLContext:
        """For those who ask over HTTPS. Raises FileProblem."""
        return files.server_context(("http", "tls"), self.cert, self.key)

    def pinned(self) -> ssl.SSLContext:
        """For asking the daemon itself, by whatever name: it must hold the key of `cert`. Raises FileProblem."""
        return files.pinned_context(("http", "tls", "cert"), self.cert)


class HttpSettings(Table):
    host: Annotated[str, Text("text", "a host name or an address", _host)] = Field(
        default="127.0.0.1", description="address to answer on"
    )
    port: Whole = Field(
        default=9108,
        ge=0,
        le=65535,
        description="port of the status page, /metrics, /healthz and /readyz; 0: any free one",
    )
    token_file: Path | None = Field(
        default=None,
        description="file that holds a bearer token to ask for; left out: the systemd credential http_token",
    )
    username: str | None = Field(default=None, min_length=1, description="user name to ask for, with the password")
    password_file: Path | None = Field(
        default=None, description="file that holds the password; left out: the systemd credential http_password"
    )
    tls: HttpTlsSettings | None = Field(default=None, description="left out: no TLS")
    max_device_series: Whole = Field(default=1000, ge=0, description="devices that get series of their own in /metrics")

    def token(self) -> str | None:
        """What `token_file` holds. Raises FileProblem."""
        return files.secret(("http", "token_file"), self.token_file)

    def password(self) -> str | None:
        """What `password_file` holds. Raises FileProblem."""
        return files.secret(("http", "password_file"), self.password_file)


class StoreSettings(Table):
    path: Path = Field(default=Path("./state"), description="directory of journal, snapshot and models")
    durability: Literal["journal", "none"] = Field(
        default="journal",
        description="journal: acknowledge readings once they are on disk; none: a power cut goes back to the newest snapshot",
    )
    snapshot_interval: Duration = Field(default=60.0, description="time between snapshots of the state")
    max_bytes: Annotated[int, Text("size", values.SIZE, values.parse_size, values.show_size)] = Field(
        default=4 << 30, description="size at which the journal's oldest readings go"
    )
    max_age: Duration = Field(default=90 * 86400.0, description="age at which the journal's readings go")


class HomeAssistantSettings(Table):
    """An empty table turns it on."""

    prefix: Annotated[str, Text("text", "a topic without wildcards", _prefix)] = Field(
        default="homeassistant", description="first levels of Home Assistant's discovery topics"
    )


class WebhookSettings(Table):
    url: Annotated[str, Text("URL", 'an address such as "https://example.org/alerts"', _url)] = Field(
        description="address that each transition of an alert is posted to"
    )
    secret_file: Path | None = Field(
        default=None,
        description="file of the secret that signs the messages: whsec_ and base64; left out: they are not signed",
    )
    ca: Path | None = Field(default=None, description="file of certificate authorities; left out: the system's")

    def key(self, at: int) -> bytes | None:
        """What `secret_file` holds; `at`: place of this webhook in the list. Raises FileProblem."""
        name = ("webhooks", at, "secret_file")
        if self.secret_file is None or (text := files.secret(name, self.secret_file)) is None:
            return None
        try:
            key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not _LEAST_KEY <= len(key) <= _LONGEST_KEY:
            why = "must hold whsec_ and 24 to 64 bytes in base64: echo whsec_$(openssl rand -base64 32)"
            raise files.FileProblem(name, self.secret_file, why)
        return key

    def context(self, at: int) -> ssl.SSLContext:
        """For connections to the receiver. Raises FileProblem."""
        return files.client_context(("webhooks", at), self.ca, None, None)


class TimeSettings(Table):
    path: PayloadPath = Field(description="where the payload carries the event time")
    unit: Literal["s", "ms", "us", "ns", "iso8601"] = Field(
        default="s", description="since 1970 UTC, or ISO 8601 text, UTC where it names no zone"
    )


class ReadingsSettings(Table):
    path: PayloadPath = Field(
        description='where the payload carries its readings; a last "*": each entry is one, its key the device or part of its id'
    )


class DevicePathSettings(Table):
    path: PayloadPath = Field(description="where the payload carries the device's id")


class ChannelNameSettings(Table):
    path: PayloadPath = Field(description="where an entry of the payload carries its channel's name")
    value: PayloadPath = Field(default=("value",), description="where the entry carries the number")
    split: str | None = Field(
        default=None,
        min_length=1,
        max_length=8,
        description='what ends the id of the device in such a name: "." in "line1.press2.heat"; left out: it has none',
    )

    def naming(self) -> Naming:
        return Naming(self.path, self.value, self.split or "")


class ChannelSettings(Table):
    name: str = Field(min_length=1, max_length=200, description="name in alerts and metrics")
    path: PayloadPath | None = Field(
        default=None, description="where the payload carries the value; left out: the name, split at its dots"
    )
    unit: str = Field(default=_CHANNEL.unit, description="unit, for people")
    min: Number | None = Field(default=None, description="smallest value allowed, in `unit`; left out: none")
    max: Number | None = Field(default=None, description="largest value allowed, in `unit`; left out: none")
    max_rate: Number | None = Field(
        default=None, gt=0, description="fastest change allowed, in `unit` per s; left out: none"
    )
    min_deviation: Number = Field(
        default=_CHANNEL.min_deviation,
        ge=0,
        description="deviations from the forecast below this never count, in `unit`",
    )
    direction: Direction = Field(default=_CHANNEL.direction, description="deviations from the forecast that count")

    @model_validator(mode="before")
    @classmethod
    def _just_a_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError("min must be less than max")
        return self

    def channel(self, *, named: bool) -> Channel:
        """What the stream knows of it; `named`: the topic or the payload carries its name."""
        path = self.path or (() if named else tuple(self.name.split(".")))
        return Channel(
            self.name, path, self.unit, self.min, self.max, self.max_rate, self.min_deviation, self.direction
        )


class ModelSettings(Table):
    cell: Literal["lstm", "gru"] = Field(default=_PROFILE.model.cell, description="kind of recurrent cell")
    layers: Whole = Field(default=_PROFILE.model.layers, ge=1, le=8, description="stacked recurrent layers")
    hidden: Whole = Field(default=_PROFILE.model.hidden, ge=1, le=1024, description="units per layer")
    dropout: Number = Field(
        default=_PROFILE.model.dropout, ge=0, lt=1, description="share of units dropped while training"
    )
    horizons: Annotated[tuple[int, ...], Text("list of ticks", "a list of ticks such as [1, 64]", _horizons, list)] = (
        Field(default=_PROFILE.model.horizons, description="ticks ahead that forecasts are made for, ascending")
    )
    weights: Literal["shared", "device"] = Field(
        default=_PROFILE.model.weights,
        description="one network for the profile, or one for each device besides, for a fleet of unlike devices",
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        default=_PROFILE.device, description="where it runs; auto: cuda if there"
    )


class ProfileSettings(Table):
    topic: Annotated[str, Text("topic template", values.TOPIC, values.parse_topic)] = Field(
        description="topics of the profile; each {name} is one level; all but {channel}, joined by /, are the "
        "device id; without names, the whole topic is"
    )
    channels: Annotated[
        tuple[ChannelSettings, ...] | None,
        Text("list of channels", "a list of channels", _channels, words=(("auto", None),)),
    ] = Field(default=None, description="auto: every number that the payloads hold")
    format: PayloadFormat = Field(
        default=_PROFILE.format,
        description="how payloads are written; auto: JSON, CBOR maps, Influx lines and, with channels = auto, SenML",
    )
    readings: ReadingsSettings | None = Field(
        default=None, description="left out: the payload is a reading, or an array of readings"
    )
    time: TimeSettings | None = Field(
        default=None,
        description="event time in the payload; left out: receive time, or that which influx, senml and sparkplug carry",
    )
    device: DevicePathSettings | None = Field(
        default=None, description="device id in the payload; left out: from the topic"
    )
    channel: ChannelNameSettings | None = Field(
        default=None, description="channels named in the payload; left out: its keys are the names, or {channel}"
    )
    alert_budget: Annotated[
        float, Text("budget", values.BUDGET, values.parse_budget, values.show_budget, (("off", 0.0),))
    ] = Field(
        default=_PROFILE.alert_budget, description="false alarms allowed per device; off: no alerts from forecasts"
    )
    threshold: Number | None = Field(
        default=_PROFILE.threshold, gt=0, description="surprise that raises an alert; left out: from alert_budget"
    )
    silence_after: Annotated[
        float | None,
        Text(
            "duration",
            values.DURATION,
            values.parse_positive_duration,
            values.show_duration,
            (("auto", None), ("off", 0.0)),
        ),
    ] = Field(
        default=_PROFILE.silence_after,
        description="time without a reading that raises an alert; auto: 10 usual intervals, at least 5m",
    )
    offline_after: Duration | None = Field(
        default=_PROFILE.offline_after,
        description="sparkplug: time after a death without a birth that raises an alert; left out: none",
    )
    max_gap: Annotated[
        float | None,
        Text("duration", values.DURATION, values.parse_positive_duration, values.show_duration, (("auto", None),)),
    ] = Field(
        default=_PROFILE.max_gap,
        description="gap between two readings that resets the state and raises an alert; "
        "auto: 64 usual intervals, without an alert",
    )
    stuck_after: Annotated[
        int | None,
        Text("ticks", "a number of ticks of at least 2", _stuck_after, words=(("auto", None), ("off", 0))),
    ] = Field(
        default=_PROFILE.stuck_after,
        description="ticks of one unchanging value that raise an alert; auto: from the longest run learned",
    )
    align_window: Annotated[
        float | None,
        Text("duration", values.DURATION, values.parse_duration, values.show_duration, (("auto", None),)),
    ] = Field(
        default=None,
        description="event time in which messages of one device become one tick; auto: 1s with {channel} or channel, else 0s",
    )
    max_devices: Whole = Field(default=_PROFILE.max_devices, ge=1, description="devices; readings of more are refused")
    max_channels: Whole = Field(
        default=_PROFILE.max_channels, ge=1, le=1024, description="channels that auto learns at most"
    )
    device_ttl: Duration = Field(
        default=_PROFILE.device_ttl, description="time unheard after which a device is forgotten"
    )
    min_ticks: Whole = Field(default=_PROFILE.min_ticks, ge=1, description="anomalous ticks before an alert fires")
    quiet_ticks: Whole = Field(default=_PROFILE.quiet_ticks, ge=1, description="quiet ticks before an alert resolves")
    timezone: Annotated[str, Text("time zone", values.TIMEZONE, values.parse_timezone)] = Field(
        default=_PROFILE.timezone, description="zone of the clock in messages and in maintenance"
    )
    maintenance: Annotated[tuple[str, ...], Text("list of times", values.MAINTENANCE, _maintenance, list)] = Field(
        default=(),
        description='times at which alerts are shelved: weekly ("sat 02:00-04:00", "mon-fri 22:00-06:00", '
        '"daily 00:00-24:00") or once ("2026-12-24T18:00/2026-12-27T06:00")',
    )
    learn: Literal["online", "once", "never"] = Field(
        default=_PROFILE.learn,
        description="online: retrain as readings come; once: train once; never: use `sentinel train`",
    )
    learn_after: Whole = Field(
        default=_PROFILE.learn_after, ge=1, description="ticks per device before the first training"
    )
    model: ModelSettings = Field(default=ModelSettings(), description="shape of the forecaster")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = values.wildcards(self.topic)
        problems = []
        if names == ("channel",) and self.device is None:
            problems.append(
                f'topic = "{self.topic}" names no device: add a wildcard such as {{device}}, '
                'or device = { path = "…" } for an id in the payload'
            )
        of_channels = [channel.name for channel in self.channels or ()]
        if twice := sorted({name for name in of_channels if of_channels.count(name) > 1}):
            problems.append(f'channels must have distinct names: "{twice[0]}" is there twice')
        if len(of_channels) > self.max_channels:
            problems.append(f"channels must be at most max_channels = {self.max_channels}")
        if "channel" in names and (self.readings is not None or self.format in ("csv", "influx", "senml")):
            what = "readings" if self.readings is not None else f'format = "{self.format}"'
            problems.append(
                f'{what} names the channels in the payload: leave {{channel}} out of topic = "{self.topic}"'
            )
        if self.channel is not None:
            problems += self._naming_problems(names)
        if self.format == "value" and len(of_channels) > 1 and "channel" not in names:
            problems.append('format = "value" has one channel: name one, or have {channel} in the topic')
        if self.offline_after is not None and self.format != "sparkplug":
            problems.append('offline_after needs format = "sparkplug": its deaths alone say who is offline')
        if self.format == "sparkplug":
            if not values.is_sparkplug(self.topic):
                problems.append(
                    'format = "sparkplug" goes by births, which are on topics of their own: topic = "spBv1.0/#", or '
                    '"spBv1.0/GROUP/#", or "spBv1.0/GROUP/+/EDGE/#"; the device id is group/edge/device'
                )
            for key in ("time", "device", "readings"):
                if getattr(self, key) is not None:
                    problems.append(f'{key} has no meaning with format = "sparkplug", which says it by itself')
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _naming_problems(self, wildcards: tuple[str, ...]) -> Iterator[str]:
        if self.format not in _NAMING_FORMATS:
            yield f'channel has no meaning with format = "{self.format}": it is for "json" and "cbor"'
        if "channel" in wildcards:
            yield f'channel names the channels in the payload: leave {{channel}} out of topic = "{self.topic}"'
        for channel in self.channels or ():
            if channel.path is not None:
                yield (
                    f'with channel = {{ path = "…" }} a channel is found by its name: leave path out of "{channel.name}", '
                    "and name it as the payload does"
                )
        if self.channel is not None and self.channel.split is not None and self.device is not None:
            yield "channel.split takes the device's id from the channel's name: leave out device, or split"

    def longest_interval(self) -> float:
        """Longest time between a device's ticks, in s, at which single alerts of the budget can be told apart.

        With an explicit `threshold`, or no budget, there is none.
        """
        if self.threshold is not None or self.alert_budget == 0:
            return math.inf
        return 1 / (self.alert_budget * _LEAST_TICKS_PER_ALERT)

    def _columns(self) -> Iterator[str]:
        """The columns of a CSV line that no path names, in order: those of the channels without one."""
        paths = [table.path for table in (self.time, self.device, *(self.channels or ())) if table is not None]
        return (str(column) for column in count() if (str(column),) not in paths)

    def spec(self, name: str) -> ProfileSpec:
        """What the stream knows of this profile."""
        named = "channel" in values.wildcards(self.topic) or self.channel is not None
        window = self.align_window
        if window is None:
            window = _NAMED_WINDOW if named else 0.0
        channels = [channel.channel(named=named) for channel in self.channels or ()]
        if self.format == "csv":
            columns = self._columns()
            channels = [
                channel if given.path else replace(channel, path=(next(columns),))
                for given, channel in zip(self.channels or (), channels, strict=True)
            ]
        if self.format == "sparkplug":  # names of metrics, whatever is in them
            channels = [
                replace(channel, path=(".".join(given.path or (given.name,)),))
                for given, channel in zip(self.channels or (), channels, strict=True)
            ]
        return ProfileSpec(
            name=name,
            topic=self.topic,
            channels=None if self.channels is None else tuple(channels),
            time=None if self.time is None else EventTime(self.time.path, self.time.unit),
            device_path=() if self.device is None else self.device.path,
            format=self.format,
            readings_path=() if self.readings is None else self.readings.path,
            naming=None if self.channel is None else self.channel.naming(),
            alert_budget=self.alert_budget,
            threshold=self.threshold,
            silence_after=self.silence_after,
            offline_after=self.offline_after,
            max_gap=self.max_gap,
            stuck_after=self.stuck_after,
            align_window=window,
            max_devices=self.max_devices,
            max_channels=self.max_channels,
            device_ttl=self.device_ttl,
            min_ticks=self.min_ticks,
            quiet_ticks=self.quiet_ticks,
            timezone=self.timezone,
            maintenance=tuple(values.parse_maintenance(each, self.timezone) for each in self.maintenance),
            learn=self.learn,
            learn_after=self.learn_after,
            model=ModelSpec(**self.model.model_dump(exclude={"device"})),
            device=self.model.device,
        )


class Settings(BaseSettings):
    """The whole resolved configuration; `load_settings` makes it."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        env_prefix="SENTINEL_",
        env_nested_delimiter="__",
    )

    mqtt: MqttSettings = Field(default=MqttSettings(), description="the broker")
    http: HttpSettings = Field(default=HttpSettings(), description="metrics and health")
    store: StoreSettings = Field(default=StoreSettings(), description="what outlives the process")
    home_assistant: HomeAssistantSettings | None = Field(
        default=None, description="left out: off; {}: each device is shown in Home Assistant"
    )
    webhooks: Annotated[
        tuple[WebhookSettings, ...], Text("list of tables", "a list of tables [[webhooks]]", _tables, list)
    ] = Field(default=(), description="addresses that alerts are posted to")
    profiles: dict[str, ProfileSettings] = Field(default={}, description="classes of like devices")

    _origins: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` has merged, so that each value has one known origin."""
        return (init_settings,)

    def origin(self, *key: str | int) -> str:
        """Where the value at `key` came from: "FILE:LINE", the variable's name, "command line" or "default"."""
        return self._origins.get(key, "default")

    def specs(self) -> tuple[ProfileSpec, ...]:
        """One spec a profile, in the order of the file.

        Raises:
            ConfigError: there is no profile.
        """
        if not self.profiles:
            raise ConfigError(
                [
                    (
                        "no profile: nothing to watch. Give --config FILE with a table [profiles.NAME] that has a topic, "
                        "or --broker and --topic"
                    )
                ]
            )
        return tuple(profile.spec(name) for name, profile in self.profiles.items())

    def warnings(self, intervals: Mapping[str, float] = MappingProxyType({})) -> list[str]:
        """What is allowed but hardly meant, one sentence each.

        Args:
            intervals: usual seconds between a device's ticks, of the profiles where they are known.
        """
        found = []
        mqtt = self.mqtt
        if mqtt.tls and mqtt.tls.key and not mqtt.tls.cert:
            found.append("mqtt.tls.key has no effect without mqtt.tls.cert")
        if mqtt.tls and mqtt.port == 1883:
            found.append("mqtt.port = 1883 with TLS: brokers usually expect TLS on 8883")
        if mqtt.username and mqtt.password_file is None:
            found.append("mqtt.username without mqtt.password_file: no password will be sent")
        if mqtt.username and mqtt.tls is None and not _is_loopback(mqtt.host):
            found.append("mqtt.username without mqtt.tls: the password crosses the network in clear; set mqtt.tls")
        if mqtt.commands and mqtt.username is None and not (mqtt.tls and mqtt.tls.cert):
            found.append(
                "mqtt.commands on a broker that takes anonymous clients: whoever reaches it can shelve alerts and forget "
                f"devices; let the broker ask for a password and restrict who may write {mqtt.prefix}/command/#"
            )
        if mqtt.host_id is not None and self.home_assistant is not None:
            found.append(
                "home_assistant with mqtt.host_id: the last will is Sparkplug's state then, and Home Assistant is not told "
                "if Sentinel breaks off"
            )
        sparkplug = any(profile.format == "sparkplug" for profile in self.profiles.values())
        for key in ("rebirth", "host_id"):
            if getattr(mqtt, key) and not sparkplug:
                found.append(f'mqtt.{key} has no effect without a profile of format = "sparkplug"')
        http = self.http
        asks = http.token_file or http.password_file
        if not asks and not _is_loopback(http.host):
            found.append(
                f'http.host = "{http.host}" without http.token_file or http.password_file: whoever reaches the port reads '
                "/metrics with all names of devices; set one of them, or listen on 127.0.0.1"
            )
        if asks and http.tls is None and not _is_loopback(http.host):
            found.append("http.token_file or http.password_file without http.tls: secrets cross the network in clear")
        for at, webhook in enumerate(self.webhooks):
            parts = urlsplit(webhook.url)
            if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
                found.append(f"webhooks[{at}].url without https: alerts cross the network in clear")
        if mqtt.qos == 0 and self.store.durability == "journal":
            found.append("mqtt.qos = 0: the broker may lose readings before they reach the journal")
        if not self.profiles:
            found.append("no profile: nothing to watch; add a table [profiles.NAME] with a topic")
        for name, profile in self.profiles.items():
            key = f"profiles.{name}"
            if profile.threshold is not None and profile.alert_budget == 0:
                found.append(f'{key}.threshold has no effect with alert_budget = "off"')
            interval = intervals.get(name, 0.0)
            if interval > profile.longest_interval():
                found.append(
                    f'{key}.alert_budget = "{values.show_budget(profile.alert_budget)}" is one alert in '
                    f"{1 / (profile.alert_budget * interval):.0f} ticks of {values.show_duration(float(f'{interval:.3g}'))}: "
                    f"below {_LEAST_TICKS_PER_ALERT}, single alerts cannot be told apart; choose a smaller budget"
                )
        return found
