"""Batches of messages to columnar readings, one decoder for all profiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sentinel.records import Bools, Fate, Message, ProfileSpec, Readings
from sentinel.stream.alerts import FLEET
from sentinel.stream.decode import payload as wire
from sentinel.stream.decode.payload import Malformed
from sentinel.stream.decode.topics import Template

MAX_DEVICE_BYTES = 200
MAX_READINGS = 1000  # in one message
MAX_ROUTES = 1 << 18  # topics remembered
LONGEST_ROUTE = 512  # characters of a topic that is remembered; a longer one is no device's
CLOCK_NAMES = frozenset({"ts", "time", "timestamp", "datetime"})  # never a channel that is learned by itself


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that went no further: for the dead-letter topic."""

    message: int
    profile: str
    fate: Fate
    detail: str


@dataclass(slots=True)
class Decoded:
    """What a batch of messages held.

    Attributes:
        readings: one record a profile that had any.
        fates: of each message; None: its readings decide.
        refusals: the messages that are refused already.
        foreign: messages on no profile's topic (a session that outlived a subscription): not counted.
        announced: profile and device of retained messages without an event time.
        bad_values: single values of a usable reading that were dropped, by profile.
        unknown: values of unknown channels, by profile.
    """

    readings: list[Readings]
    fates: list[Fate | None]
    refusals: list[Refusal]
    foreign: list[int] = field(default_factory=list)
    announced: list[tuple[str, str]] = field(default_factory=list)
    bad_values: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Route:
    profile: "_Profile | None"
    device: str = ""
    channel: str | None = None
    refused: str = ""


class _Profile:
    """How one profile's payloads are read, and what a batch gathers of them."""

    def __init__(self, spec: ProfileSpec, channels: list[str]) -> None:
        self.spec = spec
        self.channels = channels
        self.index = {name: at for at, name in enumerate(channels)}
        self.template = Template(spec.topic)
        self.auto = spec.channels is None
        self.paths = [channel.path or (channel.name,) for channel in spec.channels or ()]
        self.flat = None if any(len(path) != 1 for path in self.paths) else [path[0] for path in self.paths]
        self.skip = spec.time.path if spec.time else ()
        self.clear()

    def clear(self) -> None:
        self.device: list[str] = []
        self.time: list[float] = []
        self.rows: list[list[float]] = []
        self.message: list[int] = []
        self.bad = 0
        self.unknown = 0

    def column(self, name: str) -> int | None:
        """Column of a channel; a new one where the profile learns its channels and has room."""
        at = self.index.get(name)
        if at is None and self.auto and len(self.channels) < self.spec.max_channels and name:
            at = self.index[name] = len(self.channels)
            self.channels.append(name)
        return at

    def sync(self) -> None:
        """Take up channels that came by another way (a journal, a snapshot)."""
        for name in self.channels[len(self.index) :]:
            self.index[name] = len(self.index)

    def flush(self) -> Readings | None:
        if not self.device:
            return None
        width = len(self.channels)
        if any(len(row) != width for row in self.rows):
            self.rows = [row + [math.nan] * (width - len(row)) for row in self.rows]
        values = np.array(self.rows, dtype=np.float64).reshape(-1, width)
        return Readings(
            self.spec.name,
            tuple(self.channels),
            self.device,
            np.array(self.time, dtype=np.float64),
            values,
            np.array(self.message, dtype=np.int64),
        )


class Decoder:
    """Decodes batches of messages.

    Blocks: never.   Raises: nothing, whatever comes.   Drops: with a fate that is counted.
    """

    def __init__(self, profiles: Sequence[tuple[ProfileSpec, list[str]]], own_prefix: str) -> None:
        """Take profiles, each with the list of its channels' names, which grows where they are learned.

        Args:
            own_prefix: topics under it are never input.
        """
        self._profiles = [_Profile(spec, channels) for spec, channels in profiles]
        self._own = own_prefix.rstrip("/") + "/"
        self._routes: dict[str, _Route] = {}

    def decode(self, messages: Sequence[Message]) -> Decoded:
        """Readings and refusals of a batch. A fate of `RETAINED` announces its device without a reading."""
        out = Decoded([], [None] * len(messages), [])
        for profile in self._profiles:
            profile.sync()
        routes = self._routes
        for at, message in enumerate(messages):
            route = routes.get(message.topic)
            if route is None:
                route = self._route(message.topic)
            of = route.profile
            if of is None:
                out.foreign.append(at)
                continue
            try:
                if route.refused:
                    raise Malformed(Fate.BAD_DEVICE, route.refused)  # noqa: TRY301 - one way out for all refusals
                self._read(of, route, message, at, out)
            except Malformed as error:
                out.fates[at] = error.fate
                out.refusals.append(Refusal(at, of.spec.name, error.fate, str(error)))
        for profile in self._profiles:
            readings = profile.flush()
            if readings is not None:
                kept = self._finite(readings, out)
                if len(kept):
                    out.readings.append(kept)
            name = profile.spec.name
            if profile.bad:
                out.bad_values[name] = profile.bad
            if profile.unknown:
                out.unknown[name] = profile.unknown
            profile.clear()
        return out

    def is_own(self, topic: str) -> bool:
        """Whether a topic is one that we publish: no input, and not counted."""
        return topic.startswith(self._own)

    def _route(self, topic: str) -> _Route:
        route = _Route(None)
        for profile in self._profiles:
            match = profile.template.match(topic)
            if match is None:
                continue
            device, channel = match
            refused = "" if profile.spec.device_path else _device_fault(device)
            route = _Route(profile, device, channel, refused)
            break
        if len(topic) <= LONGEST_ROUTE:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[topic] = route
        return route

    def _read(self, profile: _Profile, route: _Route, message: Message, at: int, out: Decoded) -> None:
        spec = profile.spec
        value = wire.load(message.payload)
        if message.retain and spec.time is None:
            out.fates[at] = Fate.RETAINED
            if not spec.device_path:
                out.announced.append((spec.name, route.device))
            return
        if route.channel is not None:
            self._read_value(profile, route, message, at, value)
        elif type(value) is dict:
            self._read_object(profile, route.device, message, at, value)
        elif type(value) is list and len(value) > MAX_READINGS:
            raise Malformed(Fate.TOO_LARGE, f"{len(value)} readings in one message, over {MAX_READINGS}")
        elif type(value) is list and value:
            worst: Malformed | None = None
            for item in value:
                try:
                    if type(item) is not dict:
                        raise Malformed(Fate.BAD_SHAPE, "an array must hold objects")  # noqa: TRY301 - as above
                    self._read_object(profile, route.device, message, at, item)
                except Malformed as error:
                    profile.bad += 1
                    worst = error
            if worst is not None and (not profile.message or profile.message[-1] != at):
                raise worst
        elif (type(value) is float or type(value) is int) and profile.auto:
            self._read_value(profile, _Route(profile, route.device, "value"), message, at, value)
        else:
            raise Malformed(Fate.BAD_SHAPE, f"{type(value).__name__}, expected an object")

    def _read_value(self, profile: _Profile, route: _Route, message: Message, at: int, value: Any) -> None:
        """One value a topic: a bare number, or {"value": number}."""
        time = None
        if type(value) is dict:
            time = wire.event_time(value, profile.spec.time)
            value = value.get("value")
        elif profile.spec.time is not None:
            raise Malformed(Fate.BAD_TIME, "a bare number carries no event time")
        if type(value) is not float and type(value) is not int:
            raise Malformed(Fate.BAD_VALUE, f"value is {type(value).__name__}, expected a number")
        column = profile.column(route.channel or "")
        if column is None:
            profile.unknown += 1
            raise Malformed(Fate.NO_CHANNEL, f"channel {route.channel!r} is not of profile {profile.spec.name!r}")
        row = [math.nan] * len(profile.channels)
        row[column] = value
        profile.device.append(route.device)
        profile.time.append(message.received if time is None else time)
        profile.rows.append(row)
        profile.message.append(at)

    def _read_object(self, profile: _Profile, device: str, message: Message, at: int, value: dict[str, Any]) -> None:
        spec = profile.spec
        if spec.device_path:
            device = _device_of(value, spec.device_path)
        time = (
            message.received if spec.time is None else wire.seconds(wire.follow(value, spec.time.path), spec.time.unit)
        )
        known = bad = 0
        row: list[float]
        if profile.auto:
            row = [math.nan] * len(profile.channels)
            for name, number in wire.leaves(value, profile.skip):
                if spec.time is None and name in CLOCK_NAMES:
                    continue
                column = profile.column(name)
                if column is None:
                    profile.unknown += 1
                    continue
                if column >= len(row):
                    row.append(math.nan)
                row[column] = number
                known += 1
        else:
            row = []
            keys = profile.flat
            found = (
                [value.get(key) for key in keys] if keys is not None else [wire.follow(value, p) for p in profile.paths]
            )
            for item in found:
                if type(item) is float or type(item) is int:
                    row.append(item)
                    known += 1
                else:
                    row.append(math.nan)
                    bad += item is not None
            if keys is not None:
                extra = len(value) - known - bad - (spec.time is not None) - bool(spec.device_path)
                profile.unknown += max(extra, 0)
        if not known:
            fate = Fate.BAD_VALUE if bad else Fate.NO_CHANNEL
            raise Malformed(fate, "no known channel has a number")
        profile.bad += bad
        profile.device.append(device)
        profile.time.append(time)
        profile.rows.append(row)
        profile.message.append(at)

    def _finite(self, readings: Readings, out: Decoded) -> Readings:
        """Drop numbers that are no measurement; refuse readings that have none left."""
        with np.errstate(invalid="ignore"):
            wild = ~(np.abs(readings.values) <= wire.LARGEST) & ~np.isnan(readings.values)
        if not wild.any():
            return readings
        name = readings.profile
        out.bad_values[name] = out.bad_values.get(name, 0) + int(wild.sum())
        values = np.where(wild, np.nan, readings.values)
        keep: Bools = np.any(~np.isnan(values), axis=1, keepdims=True)[:, 0]
        for at in np.setdiff1d(readings.message[~keep], readings.message[keep]).tolist():
            out.fates[at] = Fate.BAD_VALUE
            out.refusals.append(Refusal(at, name, Fate.BAD_VALUE, f"a number over {wire.LARGEST:g}"))
        device = [d for d, k in zip(readings.device, keep.tolist(), strict=True) if k]
        return Readings(name, readings.channels, device, readings.time[keep], values[keep], readings.message[keep])


def _device_fault(device: str) -> str:
    size = len(device.encode("utf-8", "surrogatepass"))
    if size > MAX_DEVICE_BYTES:
        return f"device id of {size} bytes, over {MAX_DEVICE_BYTES}"
    if device == FLEET:
        return f"device id {FLEET} is the place of alerts about all"
    return "" if device.strip("/") else "device id is empty"


def _device_of(value: Any, path: tuple[str, ...]) -> str:
    found = wire.follow(value, path)
    if type(found) is int:
        found = str(found)
    if type(found) is not str:
        raise Malformed(Fate.BAD_DEVICE, f"device id is {type(found).__name__}, expected text")
    fault = _device_fault(found)
    if fault:
        raise Malformed(Fate.BAD_DEVICE, fault)
    return found
