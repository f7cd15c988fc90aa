"""Batches of messages to columnar readings, one decoder for all profiles."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from sentinel.records import Birth, Bools, Death, Fate, Heard, Message, Naming, ProfileSpec, Readings
from sentinel.stream.alerts import FLEET
from sentinel.stream.decode import payload as wire
from sentinel.stream.decode.edges import Edges, Said
from sentinel.stream.decode.formats import format_of
from sentinel.stream.decode.payload import MAX_READINGS, Malformed, Record
from sentinel.stream.decode.sparkplug import Place, parse_topic
from sentinel.stream.decode.topics import Template
from sentinel.stream.decode.words import Words, dotted, kind, listed, paths, say, unlike

MAX_DEVICE_BYTES = 200
MAX_ROUTES = 1 << 18  # topics remembered
LONGEST_CHANNEL = 200  # characters of a channel's name that is learned
LONGEST_ROUTE = 512  # characters of a topic that is remembered; a longer one is no device's
_NUMBERS = frozenset({float, int})
CLOCK_NAMES = frozenset({"ts", "time", "timestamp", "datetime"})  # never a channel that is learned by itself


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that went no further: for the dead-letter topic.

    Attributes:
        device: that its topic alone names; empty: none, or the payload may name it.
    """

    message: int
    profile: str
    fate: Fate
    words: Words
    device: str = ""

    @property
    def detail(self) -> str:
        """What is wrong, in words; each time it is asked it looks into the payload."""
        return say(self.words)


@dataclass(slots=True)
class Decoded:
    """What a batch of messages held.

    Attributes:
        inputs: of the stream, in order; one record of readings a profile that had any, one more after each death.
        fates: of each message; None: its readings decide.
        owners: profile of each message that has a fate.
        refusals: the messages that are refused already.
        foreign: messages on no profile's topic (a session that outlived a subscription): not counted.
        announced: profile and device of retained messages without an event time.
        bad_values: single values of a usable reading that were dropped, by profile.
        unknown: values of unknown channels, by profile.
        gaps: Sparkplug messages before which others are missing, by profile.
        unborn: profile and node whose birth is missing, or something since.
    """

    inputs: list[Readings | Birth | Death | Heard]
    fates: list[Fate | None]
    refusals: list[Refusal]
    owners: dict[int, str] = field(default_factory=dict)
    foreign: list[int] = field(default_factory=list)
    announced: list[tuple[str, str]] = field(default_factory=list)
    bad_values: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    unborn: set[tuple[str, str]] = field(default_factory=set)

    def decide(self, message: int, profile: str, fate: Fate) -> None:
        """What becomes of a message is known without its readings."""
        self.fates[message], self.owners[message] = fate, profile

    def refuse(self, message: int, profile: str, fate: Fate, words: Words, device: str = "") -> None:
        """A message goes no further."""
        self.decide(message, profile, fate)
        self.refusals.append(Refusal(message, profile, fate, words, device))

    @property
    def readings(self) -> list[Readings]:
        return [each for each in self.inputs if isinstance(each, Readings)]


@dataclass(frozen=True, slots=True)
class _Route:
    profile: "_Profile | None"
    device: str = ""
    channel: str | None = None
    refused: str = ""
    place: Place | None = None


class _Profile:
    """How one profile's payloads are read, and what a batch gathers of them."""

    def __init__(self, spec: ProfileSpec, channels: list[str], edges: Edges | None) -> None:
        self.spec = spec
        self.edges = edges or Edges(spec.max_devices)
        self.channels = channels
        self.index = {name: at for at, name in enumerate(channels)}
        self.template = Template(spec.topic)
        self.load = format_of(spec)
        self.by_arrival = spec.by_arrival
        self.auto = spec.channels is None
        self.paths = [channel.path or (channel.name,) for channel in spec.channels or ()]
        self.flat = None if any(len(path) != 1 for path in self.paths) else [path[0] for path in self.paths]
        # The channel of a bare number on a topic that names none.
        self.bare = "value" if self.auto else channels[0] if spec.format == "value" and len(channels) == 1 else None
        time_path = spec.time.path if spec.time else ()
        self.about = {
            path[0] for path in (spec.device_path, time_path) if path
        }  # keys to a reading's own device and time
        # Among the keys of channels, unless these are names that entries carry: the time, and how many are none.
        self.skip = () if spec.naming else time_path
        self.beside = 0 if spec.naming else bool(time_path) + bool(spec.device_path)
        split = bool(spec.naming and spec.naming.split)
        self.by_topic = not (spec.device_path or spec.readings_path or split)  # the topic alone names the device
        self.prefixed = bool(self.template.names) or spec.readings_path[-1:] == ("*",)  # a device split off a name
        self.clear()

    def clear(self) -> None:
        self._clear_rows()
        self.bad = 0
        self.unknown = 0

    def _clear_rows(self) -> None:
        self.device: list[str] = []
        self.time: list[float] = []
        self.rows: list[list[float]] = []
        self.message: list[int] = []

    def above(self, route: "_Route") -> str:
        """What the topic says of a device whose own name the payload carries."""
        return route.device if self.template.names or self.spec.readings_path[-1] != "*" else ""

    def column(self, name: str) -> int | None:
        """Column of a channel; a new one where the profile learns its channels and has room."""
        at = self.index.get(name)
        if (
            at is None
            and self.auto
            and len(self.channels) < self.spec.max_channels
            and 0 < len(name) <= LONGEST_CHANNEL
        ):
            at = self.index[name] = len(self.channels)
            self.channels.append(name)
        return at

    def knows_not(self, channel: str) -> str:
        """Why a topic's channel is none of this profile."""
        said = f"channel {dotted((channel,))} is none of the profile's: {listed(self.channels)}"
        return f"{said}; max_channels is {self.spec.max_channels}" if self.auto else said

    def finds_none(self, value: Any) -> str:
        """Why an object has no number for any channel."""
        if self.auto:
            room = len(self.channels) < self.spec.max_channels
            why = (
                "no number that can be a channel"
                if room
                else f"no channel of the {len(self.channels)} that are learned"
            )
            return f"{why}; {paths(value)}"
        there = [(path, found) for path in self.paths if (found := wire.follow(value, path)) is not None]
        if there:
            return f"{kind(there[0][1])} at channel path {dotted(there[0][0])}, expected a number; {paths(value)}"
        return f"nothing at channel paths {listed(map(dotted, self.paths))}; {paths(value)}"

    def sync(self) -> None:
        """Take up channels that came by another way (a journal, a snapshot)."""
        for name in self.channels[len(self.index) :]:
            self.index[name] = len(self.index)

    def flush(self) -> Readings | None:
        """What was gathered; readings of one message in the order of their times."""
        if not self.device:
            return None
        width = len(self.channels)
        if self.auto and any(len(row) != width for row in self.rows):
            self.rows = [row + [math.nan] * (width - len(row)) for row in self.rows]
        device, values = self.device, np.array(self.rows, dtype=np.float64).reshape(-1, width)
        time, message = np.array(self.time, dtype=np.float64), np.array(self.message, dtype=np.int64)
        if ((time[1:] < time[:-1]) & (message[1:] == message[:-1])).any():
            order = np.lexsort((time, message))
            device = [device[at] for at in order.tolist()]
            time, values, message = time[order], values[order], message[order]
        self._clear_rows()
        return Readings(self.spec.name, tuple(self.channels), device, time, values, message)


class Decoder:
    """Decodes batches of messages.

    Blocks: never.   Raises: nothing, whatever comes.   Drops: with a fate that is counted.
    """

    def __init__(
        self,
        profiles: Sequence[tuple[ProfileSpec, list[str]]],
        own_prefix: str,
        edges: Mapping[str, Edges] = MappingProxyType({}),
    ) -> None:
        """Take profiles, each with the list of its channels' names, which grows where they are learned.

        Args:
            own_prefix: topics under it are never input.
            edges: what is known of Sparkplug's nodes, by profile; it grows.
        """
        self._profiles = [_Profile(spec, channels, edges.get(spec.name)) for spec, channels in profiles]
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
                if error.fate is not Fate.RETAINED:
                    out.refuse(at, of.spec.name, error.fate, error.words, route.device if of.by_topic else "")
                    continue
                out.decide(at, of.spec.name, error.fate)
                if route.device and of.by_topic:
                    out.announced.append((of.spec.name, route.device))
        for profile in self._profiles:
            self._flush(profile, out)
            name = profile.spec.name
            if (heard := profile.edges.heard(name)) is not None:
                out.inputs.append(heard)
            if profile.bad:
                out.bad_values[name] = out.bad_values.get(name, 0) + profile.bad
            if profile.unknown:
                out.unknown[name] = profile.unknown
            profile.clear()
        return out

    def _flush(self, profile: _Profile, out: Decoded) -> None:
        readings = profile.flush()
        if readings is not None and len(kept := self._finite(readings, out)):
            out.inputs.append(kept)

    def is_own(self, topic: str) -> bool:
        """Whether a topic is one that we publish: no input, and not counted."""
        return topic.startswith(self._own)

    def _route(self, topic: str) -> _Route:
        route = _Route(None)
        for profile in self._profiles:
            match = profile.template.match(topic)
            if match is None:
                continue
            route = _sparkplug_route(profile, topic) if profile.spec.format == "sparkplug" else _route(profile, *match)
            break
        if len(topic) <= LONGEST_ROUTE:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[topic] = route
        return route

    def _read(self, profile: _Profile, route: _Route, message: Message, at: int, out: Decoded) -> None:
        if route.place is not None:
            self._read_sparkplug(profile, route.place, message, at, out)
            return
        spec = profile.spec
        value = profile.load(message)
        if message.retain and profile.by_arrival:
            raise Malformed(Fate.RETAINED, "a retained message without an event time")
        if route.channel is not None:
            self._read_value(profile, route, message, at, value)
        elif spec.naming is not None:
            self._read_named(profile, spec.naming, route, message, at, value)
        elif spec.readings_path:
            self._read_all(profile, _entries(value, spec.readings_path, profile.above(route)), message, at, value)
        elif type(value) is dict:
            self._read_object(profile, route.device, message, at, value)
        elif type(value) is list and value:
            self._read_all(profile, [(route.device, item) for item in value], message, at)
        elif (type(value) is float or type(value) is int) and profile.bare is not None:
            self._read_value(profile, _Route(profile, route.device, profile.bare), message, at, value)
        else:
            raise Malformed(Fate.BAD_SHAPE, f"the payload is {kind(value)}, expected an object")

    def _read_all(
        self,
        profile: _Profile,
        items: Sequence[tuple[str, Any]],
        message: Message,
        at: int,
        around: dict[str, Any] | None = None,
    ) -> None:
        """Several readings, each with its device; the message is refused if none can be used."""
        if len(items) > MAX_READINGS:
            raise Malformed(Fate.TOO_LARGE, f"{len(items)} readings in one message, over {MAX_READINGS}")
        worst: Malformed | None = None
        for device, item in items:
            try:
                if type(item) is Record:
                    self._read_object(profile, device, message, at, item.values, item.about, item)
                elif type(item) is dict:
                    self._read_object(profile, device, message, at, item, around)
                elif type(item) is Malformed:
                    raise item
                else:
                    words = f"a reading is {kind(item)}, expected an object"
                    raise Malformed(Fate.BAD_SHAPE, words)  # noqa: TRY301 - as above
            except Malformed as error:
                profile.bad += 1
                worst = error
        if worst is not None and (not profile.message or profile.message[-1] != at):
            raise worst

    def _read_named(
        self, profile: _Profile, naming: Naming, route: _Route, message: Message, at: int, value: Any
    ) -> None:
        """Readings whose entries name their channels; the message is refused if none can be used."""
        path = profile.spec.readings_path
        if path:
            entries = _entries(value, path, profile.above(route))
            readings = _gather(profile, naming, entries, message, value)
        else:
            entries = [(route.device, entry) for entry in (value if type(value) is list else [value])]
            readings = _gather(profile, naming, entries, message)
        bad, used, worst = 0, False, None
        for reading in readings:
            try:
                if isinstance(reading, Malformed):
                    raise reading
                self._add(profile, *reading, at)
                used = True
            except Malformed as error:
                bad += error.fate is not Fate.NO_CHANNEL  # those are counted as unknown
                worst = error
        if not used:
            first = entries[0][1] if entries else None
            nothing = partial(unlike, "channel value", naming.value, None, "a number", first)
            raise worst or Malformed(Fate.NO_CHANNEL, nothing)
        profile.bad += bad

    def _read_sparkplug(self, profile: _Profile, place: Place, message: Message, at: int, out: Decoded) -> None:
        name = profile.spec.name
        said = profile.edges.read(name, place, message)
        if said.gap:
            out.gaps[name] = out.gaps.get(name, 0) + 1
        if (said.gap or said.unborn) and not message.retain:
            out.unborn.add((name, place.node))
        if place.verb == "NBIRTH":
            out.unborn.discard((name, place.node))
        if isinstance(said.entry, Death):
            self._flush(profile, out)  # what came before it
        if said.entry is not None:
            out.inputs.append(said.entry)
        profile.unknown += said.others + (said.unborn if said.records else 0)
        profile.bad += said.bad
        try:
            self._read_said(profile, place, said, message, at)
        except Malformed as error:
            if said.entry is None or error.fate not in (Fate.NO_CHANNEL, Fate.BAD_VALUE):
                raise
            out.decide(at, name, Fate.ACCEPTED)  # a birth says more than values
        else:
            if not said.records:
                out.decide(at, name, Fate.ACCEPTED)

    def _read_said(self, profile: _Profile, place: Place, said: Said, message: Message, at: int) -> None:
        if len(said.records) > 1:
            self._read_all(profile, [(place.device, record) for record in said.records], message, at)
        elif said.records:
            record = said.records[0]
            self._read_object(profile, place.device, message, at, record.values, record.about, record)
        elif said.unborn:
            raise Malformed(Fate.UNBORN, f"{said.unborn} metrics that no birth of {place.node} tells of")
        elif said.bad or said.others:
            raise Malformed(Fate.BAD_VALUE if said.bad else Fate.NO_CHANNEL, "no metric has a usable number")

    def _read_value(self, profile: _Profile, route: _Route, message: Message, at: int, value: Any) -> None:
        """One value a topic: a bare number, or {"value": number}."""
        time, found = None, value
        if type(value) is dict:
            time = wire.event_time(value, profile.spec.time, message.received)
            found = value.get("value")
        elif profile.spec.time is not None:
            raise Malformed(Fate.BAD_TIME, f"the payload is {kind(value)} and carries no event time")
        if type(found) is not float and type(found) is not int:
            if found is value:
                raise Malformed(Fate.BAD_VALUE, f"the payload is {kind(value)}, expected a number")
            raise Malformed(Fate.BAD_VALUE, partial(unlike, "value", ("value",), found, "a number", value))
        column = profile.column(route.channel or "")
        if column is None:
            profile.unknown += 1
            raise Malformed(Fate.NO_CHANNEL, partial(profile.knows_not, route.channel or ""))
        row = [math.nan] * len(profile.channels)
        row[column] = found
        profile.device.append(route.device)
        profile.time.append(message.received if time is None else time)
        profile.rows.append(row)
        profile.message.append(at)

    def _read_object(
        self,
        profile: _Profile,
        device: str,
        message: Message,
        at: int,
        value: dict[str, Any],
        around: dict[str, Any] | None = None,
        record: Record | None = None,
    ) -> None:
        """One reading; what it does not say of device and time, `around` may."""
        device, time = _place(profile, device, message, value, around, record)
        self._add(profile, device, time, value, at)

    def _add(self, profile: _Profile, device: str, time: float, value: dict[str, Any], at: int) -> None:
        """One reading of known device and time, its values by path."""
        known = bad = 0
        row: list[Any]
        if profile.auto:
            row = [math.nan] * len(profile.channels)
            for name, number in wire.leaves(value, profile.skip):
                if profile.spec.time is None and name in CLOCK_NAMES:
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
            keys = profile.flat
            row = (
                [value.get(key) for key in keys] if keys is not None else [wire.follow(value, p) for p in profile.paths]
            )
            known = len(row)
            if not _NUMBERS.issuperset(map(type, row)):
                for column, item in enumerate(row):
                    if type(item) is not float and type(item) is not int:
                        row[column] = math.nan
                        known -= 1
                        bad += item is not None
            if keys is not None:
                extra = len(value) - known - bad - profile.beside
                if extra > 0:
                    profile.unknown += extra
        if not known:
            raise Malformed(Fate.BAD_VALUE if bad else Fate.NO_CHANNEL, partial(profile.finds_none, value))
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
            out.refuse(at, name, Fate.BAD_VALUE, f"a number over {wire.LARGEST:g}")
        device = [d for d, k in zip(readings.device, keep.tolist(), strict=True) if k]
        return Readings(name, readings.channels, device, readings.time[keep], values[keep], readings.message[keep])


def _route(profile: _Profile, device: str, channel: str | None) -> _Route:
    return _Route(profile, device, channel, "" if profile.spec.device_path else _device_fault(device))


def _sparkplug_route(profile: _Profile, topic: str) -> _Route:
    try:
        place = parse_topic(topic)
    except ValueError as error:
        return _Route(profile, refused=str(error))
    return _Route(None) if place is None else _Route(profile, place.device, None, _device_fault(place.device), place)


def _device_fault(device: str) -> str:
    size = len(device.encode("utf-8", "surrogatepass"))
    if size > MAX_DEVICE_BYTES:
        return f"device id of {size} bytes, over {MAX_DEVICE_BYTES}"
    if device == FLEET:
        return f"device id {FLEET} is the place of alerts about all"
    return "" if device.strip("/") else "device id is empty"


def _entries(value: Any, path: tuple[str, ...], device: str) -> list[tuple[str, Any]]:
    """Device and reading of what lies at a path; after a last "*" each entry is one, its key part of the device's id."""
    each = path[-1] == "*"
    found = wire.follow(value, path[:-1] if each else path)
    if each and type(found) is dict:
        given = [(f"{device}/{key}" if device else key, item) for key, item in found.items()]
    elif type(found) is dict or type(found) is list:
        given = [(device, found)]
    else:
        raise Malformed(Fate.BAD_SHAPE, partial(unlike, "readings", path, found, "an object or an array", value))
    out: list[tuple[str, Any]] = []
    for name, item in given:
        if fault := _device_fault(name):
            out.append((name, Malformed(Fate.BAD_DEVICE, fault)))
        elif type(item) is list:
            out.extend((name, part) for part in item)
        else:
            out.append((name, item))
    return out


def _gather(
    profile: _Profile,
    naming: Naming,
    entries: Sequence[tuple[str, Any]],
    message: Message,
    around: Any = None,
) -> list[tuple[str, float, dict[str, Any]] | Malformed]:
    """Device, time and values by name of entries that name their channels, and the entries that are refused.

    Those of one device and time are one reading, until a name comes again.
    """
    out: list[tuple[str, float, dict[str, Any]] | Malformed] = []
    newest: dict[tuple[str, float], dict[str, Any]] = {}
    shared: dict[str, tuple[str, float]] = {}  # places of entries that say nothing of them
    for device, entry in entries:
        if len(out) > MAX_READINGS:
            break
        try:
            if type(entry) is not dict:
                if type(entry) is Malformed:
                    raise entry
                raise Malformed(Fate.BAD_SHAPE, f"an entry is {kind(entry)}, expected an object")  # noqa: TRY301 - as above
            name = wire.follow(entry, naming.path)
            if type(name) is not str:
                name = _text(Fate.BAD_SHAPE, "channel", naming.path, entry, around)
            if naming.split:
                device, name = _split(name, naming.split, device if profile.prefixed else "")  # noqa: PLW2901
            silent = profile.about.isdisjoint(entry)
            place = shared.get(device) if silent else None
            if place is None:
                place = _place(profile, device, message, entry, around)
                if silent:
                    shared[device] = place
        except Malformed as error:
            out.append(error)
            continue
        item = wire.follow(entry, naming.value)
        if item is None:
            continue
        values = newest.get(place)
        if values is None or name in values:
            values = newest[place] = {}
            out.append((*place, values))
        values[name] = item
    if len(out) > MAX_READINGS:
        raise Malformed(Fate.TOO_LARGE, f"over {MAX_READINGS} readings in one message")
    return out


def _place(
    profile: _Profile,
    device: str,
    message: Message,
    value: dict[str, Any],
    around: Any,
    record: Record | None = None,
) -> tuple[str, float]:
    """Device and time of a reading: what it says of them, else what is around it."""
    spec = profile.spec
    if spec.device_path:
        device = _sound(_text(Fate.BAD_DEVICE, "device", spec.device_path, value, around))
    if spec.time is not None:
        found = wire.follow(value, spec.time.path)
        found = wire.follow(around, spec.time.path) if found is None else found
        return device, wire.seconds(found, spec.time, message.received, value, around)
    return device, message.received if profile.by_arrival or record is None else _own_time(record, message)


def _own_time(record: Record, message: Message) -> float:
    """Event time that a format carries by itself; without one, that of receipt."""
    time = record.time
    if time is None:
        if message.retain:
            raise Malformed(Fate.RETAINED, "a retained message without an event time")
        return message.received
    if not wire.EARLIEST <= time <= wire.LATEST:
        raise Malformed(Fate.BAD_TIME, f"time {time:g} s is out of range; is it in another unit? Set `time`")
    return time


def _split(name: str, by: str, above: str) -> tuple[str, str]:
    """Device and channel of a name that has both, under what else says of the device."""
    device, _, channel = name.rpartition(by)
    return _sound(f"{above}/{device}" if above and device else above or device), channel


def _text(fate: Fate, what: str, path: tuple[str, ...], within: Any, around: Any) -> str:
    """The text, or whole number, at a path in one or the other. Raises Malformed."""
    found = wire.follow(within, path)
    if found is None:
        found = wire.follow(around, path)
    if type(found) is int:
        return str(found)
    if type(found) is not str:
        raise Malformed(fate, partial(unlike, what, path, found, "text", within, around))
    return found


def _sound(device: str) -> str:
    if fault := _device_fault(device):
        raise Malformed(Fate.BAD_DEVICE, fault)
    return device
