"""From MQTT traffic to the configuration that fits it: pure text and guesses, for `sentinel discover`.

Topics of one root, depth and kind of payload make a group; the levels that vary within it become wildcards.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal

import orjson

from sentinel.commands._terminal import plural
from sentinel.errors import DataError
from sentinel.records import Message, Naming
from sentinel.settings import MqttSettings
from sentinel.stream.decode.csvline import read_csv
from sentinel.stream.decode.formats import recognise
from sentinel.stream.decode.payload import Malformed, Record
from sentinel.stream.decode.sparkplug import (
    NAMESPACE,
    NUMBERS,
    fits,
    is_control,
    number,
    parse_topic,
    read_payload,
    unit,
)

Unit = Literal["s", "ms", "us", "ns", "iso8601"]
Kind = Literal["object", "number", "csv", "influx", "senml", "cbor"]
Keys = tuple[str, ...]

_DEPTH = 6  # of nesting that is looked into
_LEAVES = 256  # of a payload that are looked at
_MAX_CHANNELS = 64
_ALIKE = 0.5  # Jaccard index of two payloads' keys from which they are of one kind
_LEVELS_OF_A_CHANNEL = 2  # a topic that names a channel has more levels than this
_QUANTITY = re.compile(
    "temp|humid|press|co2|voc|pm10|pm2|volt|current|power|energy|flow|level|speed|rpm|vibr|torque|lux|illum|weight|freq",
    re.IGNORECASE,
)
_MOST = 0.9  # share of payloads in which a field must be what it is taken for
_DECADE = 10 * 365.25 * 86400.0
_HOUR = 3600.0
_SCALES: dict[Unit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_TIME_NAME = re.compile(r"^(t|at|when|ts|dt)$|time|date|stamp|epoch|(^|_)ts(_|$)", re.IGNORECASE)
_SURELY_A_DEVICE = re.compile("device|dev|machine|asset", re.IGNORECASE)
_COUNTER_NAME = re.compile(r"^(seq|seq_?no|sequence|counter|n|(msg|message|packet)_?id)$", re.IGNORECASE)
_POSITION_NAME = re.compile("(lat(itude)?|lon(gitude)?|lng)$", re.IGNORECASE)
_DEVICE_NAME = re.compile(
    r"^((device|dev|sensor|node|machine|asset|unit)(_?(id|name|eui))?|id|name|serial|source|host(name)?|bn)$",
    re.IGNORECASE,
)
_CHANNEL_NAME = re.compile(  # the surer, the earlier its group
    "(?:((?:channel|tag|metric|measure|measurement|param|parameter|property|quantity|point|data_?point|signal|var|variable)"
    "(?:_?(?:name|id|key|type))?)|((?:sensor|display|item|field|attribute|type|kind|key)(?:_?(?:name|id|key|type))?)"
    "|(name|n|node_?id)|(id))$",
    re.IGNORECASE,
)
_VALUE_NAME = re.compile(
    "(v|val|reading|data|raw|((double|float|int|long|num|number|numeric)_?)?value)$", re.IGNORECASE
)
_BESIDE_VALUE = re.compile("(q|quality|status(_?code)?)$", re.IGNORECASE)
_UNIT_NAME = re.compile("(u|uom|(eng(ineering)?_?)?units?(_?of_?measure(ment)?)?)$", re.IGNORECASE)
_SEPARATORS = (".", "/", ":")  # of device and channel in a name
_TERSE = 3  # characters of a key that says little without the one above it: "oil.bar", "gps.lat"

_NO_READINGS = re.compile(
    "(^|/)(cmnd|command)/|/(set|get|command|config)$"
    "|/bridge/(info|state|devices|groups|definitions|event|logging|health|request|response)(/|$)"
    "|/event/(join|ack|txack|log)$"
)
"""Topics of commands and settings, and what Zigbee2MQTT and ChirpStack say of themselves: no readings, though numbers."""

_LOCAL = MqttSettings()
TO_WRITE = "mqtt.password"  # the file that a password which was typed is to be written to, beside the configuration


@dataclass(slots=True)
class _Topic:
    """One topic's messages: for each, its received time and its leaves; a bare number is the leaf ().

    Attributes:
        place: where in a payload its readings lie; after a last "*" each entry is one, its key the leaf ("*",).
    """

    levels: tuple[str, ...]
    kind: Kind
    place: Keys
    readings: list[tuple[float, dict[Keys, float | str]]]

    @property
    def numeric(self) -> set[Keys]:
        return {keys for _, leaves in self.readings for keys, leaf in leaves.items() if isinstance(leaf, float)}


@dataclass(slots=True)
class _Group:
    """Topics that look alike: one profile.

    Attributes:
        names: per level its text, or its wildcard in braces; empty where no device can be told.
        device: where the payload carries the device id; empty: the topic does.
        naming: where it carries the names of its channels; None: its keys are these, or the topic has them.
    """

    topics: list[_Topic]
    names: tuple[str, ...] = ()
    device: Keys = ()
    naming: Naming | None = None

    @property
    def kind(self) -> Kind:
        return self.topics[0].kind

    @property
    def place(self) -> Keys:
        return self.topics[0].place

    @property
    def keyed(self) -> bool:
        """Whether readings lie by their devices' keys."""
        return self.place[-1:] == ("*",)

    @property
    def template(self) -> str:
        return "/".join(self.names)

    def readings(self) -> Iterator[tuple[float, dict[Keys, float | str]]]:
        for topic in self.topics:
            yield from topic.readings

    def devices(self) -> set[str]:
        """Ids of the devices seen."""
        if self.device:
            return {str(leaves[self.device]) for _, leaves in self.readings() if self.device in leaves}
        if self.naming is not None and self.naming.split:
            return {name.rpartition(self.naming.split)[0] for name in _texts(self)[self.naming.path]}
        wild = [i for i, name in enumerate(self.names) if name[:1] == "{" and name != "{channel}"]
        out = set()
        for topic in self.topics:
            levels = [topic.levels[i] for i in (wild if wild or self.keyed else range(len(self.names)))]
            keys = {str(leaves["*",]) for _, leaves in topic.readings} if self.keyed else {""}
            out |= {"/".join([*levels, key] if key else levels) for key in keys}
        return out


def propose(samples: Sequence[Message], broker: MqttSettings = _LOCAL) -> str:
    """A commented configuration for the traffic in `samples`, each with its receive time.

    One profile for each group of topics that differ in some levels only and whose payloads share their keys.
    Sentinel's own topics and $SYS are left out. Raises DataError when no message holds a number.
    """
    plants = _plants(samples)
    aside = {message.topic for message in samples if _NO_READINGS.search(message.topic)}
    of_plants = f"{NAMESPACE}/"
    rest = [each for each in samples if each.topic not in aside and not each.topic.startswith(of_plants)]
    topics, unread = _read(rest, broker.prefix)
    found = _groups(topics)
    groups, clashing = _separate([group for group in found if _channel_keys(group)])
    unread |= {"/".join(topic.levels) for group in found if not _channel_keys(group) for topic in group.topics}
    if not groups and not plants:
        raise DataError(f"no readings in {len(samples)} messages: expected JSON objects with numbers, or bare numbers")
    names: set[str] = set()
    lines = [
        "# Written by `sentinel discover`. Look it over, then: sentinel run --config FILE",
        "",
        "[mqtt]",
        f"host = {_quote(broker.host)}",
        f"port = {broker.port}",
        *_login(broker),
    ]
    for group in groups:
        lines += ["", *_section(group, _name(group, names))]
    for plant in plants:
        lines += ["", *_plant_section(plant, _unused(_slug(plant.group) or "sparkplug", names))]
    for group, other in clashing:
        text = f"left out: {group.template} ({plural(len(group.topics), 'topic')}) overlaps {other.template}"
        lines += ["", _comment(text)]
    for what, left in (("no numbers read", unread), ("left out: commands, settings and their answers", aside)):
        if left:
            lines += ["", _comment(f"{what} on {plural(len(left), 'topic')}, such as {min(left)}")]
    return "\n".join(lines) + "\n"


def _login(broker: MqttSettings) -> Iterator[str]:
    """As whom to come to the broker, and by which certificates: files are named, what they hold is not."""
    if broker.username is not None:
        yield f"username = {_quote(broker.username)}"
        file = _quote(str(broker.password_file or TO_WRITE))
        asked = broker.password_file is None
        unknown = "# " if asked and broker.password() is None else ""
        yield f"{unknown}password_file = {file}" + "  # write the password into it, mode 0600" * asked
    if broker.tls is not None:
        files = ", ".join(f"{name} = {_quote(str(file))}" for name, file in broker.tls if file is not None)
        yield f"tls = {{ {files} }}" if files else "tls = {}"


def _read(samples: Sequence[Message], prefix: str) -> tuple[list[_Topic], set[str]]:
    """The topics with readings, and those without."""
    found: dict[tuple[str, Kind, Keys], _Topic] = {}
    seen: set[str] = set()
    for message in samples:
        if message.topic.startswith("$") or message.topic.startswith(f"{prefix}/") or not message.payload:
            continue
        seen.add(message.topic)
        for kind, place, leaves in _parse(message):
            blank = _Topic(tuple(message.topic.split("/")), kind, place, [])
            topic = found.setdefault((message.topic, kind, place), blank)
            topic.readings.append((message.received, leaves))
    best: dict[str, _Topic] = {}
    for (name, _, _), topic in found.items():
        if name not in best or len(topic.readings) > len(best[name].readings):
            best[name] = topic
    # Braces are what templates name wildcards with; a topic that has them cannot be written as one.
    topics = [topic for name, topic in sorted(best.items()) if not {"{", "}"} & set(name)]
    return topics, seen - {"/".join(topic.levels) for topic in topics}


def _parse(message: Message) -> Iterator[tuple[Kind, Keys, dict[Keys, float | str]]]:
    """Kind, place and leaves of a message's readings."""
    try:
        found, value = recognise(message)
    except Malformed:
        try:
            found, value = "csv", read_csv(message)
        except Malformed:
            return
    kind: Kind = "object" if found not in ("csv", "influx", "senml", "cbor") else found
    place: Keys = ()
    around: dict[Keys, float | str] = {}
    if isinstance(value, dict) and (place := _place(value, (), message.received) or ()):
        around = dict(_around(value, place, message.received))
        value = _at(value, place)
    many = isinstance(value, list)
    for item in value if many else [value]:
        if isinstance(item, Record):
            leaves = dict(_leaves(item.values, ())) | dict(_leaves(item.about, ()))
        elif isinstance(item, dict) or not many:
            leaves = dict(_leaves(item, ()))
        else:
            continue
        numbers = [keys for keys, leaf in leaves.items() if isinstance(leaf, float)]
        if not numbers or (kind == "csv" and len(leaves) == 1):
            continue
        alone = not place and all(keys in ((), ("value",)) or _TIME_NAME.search(keys[-1]) for keys in numbers)
        single = kind == "object" and alone and {(), ("value",)} & set(numbers)
        yield ("number" if single else kind), place, around | leaves


def _place(value: dict[str, object], at: Keys, received: float) -> Keys | None:
    """Where an object holds several readings: an entry for each device, or an array; None: it is one reading itself.

    They lie where all its numbers do, but for times and counters.
    """
    if _holds_devices(value):
        return (*at, "*")
    for key, item in value.items():
        inner: Keys | None = None
        if isinstance(item, dict) and len(at) < _DEPTH:
            inner = _place(item, (*at, key), received)
        elif isinstance(item, list) and all(isinstance(part, dict) for part in item) and any(map(_numeric, item)):
            inner = (*at, key)
        if inner is None:
            continue
        others = {name: other for name, other in value.items() if name != key}
        if all(_unit(keys, leaf, received) or _COUNTER_NAME.match(keys[-1]) for keys, leaf in _numeric(others).items()):
            return inner
    return None


def _at(value: dict[str, object], place: Keys) -> list[dict[str, object]]:
    """The readings at a place, each of those by key with it as "*"."""
    found: object = value
    for key in place:
        if isinstance(found, dict):
            found = [{**item, "*": name} for name, item in found.items()] if key == "*" else found[key]
    return found if isinstance(found, list) else []


def _around(value: dict[str, object], place: Keys, received: float) -> Iterator[tuple[Keys, float | str]]:
    """What a payload says beside its readings that may name their time or device."""
    stem = place[:-1] if place[-1] == "*" else place
    for keys, leaf in _leaves(value, ()):
        if keys[: len(stem)] != stem and (isinstance(leaf, str) or _unit(keys, leaf, received)):
            yield keys, leaf


def _numeric(value: object) -> dict[Keys, float]:
    return {keys: leaf for keys, leaf in _leaves(value, ()) if isinstance(leaf, float)}


def _holds_devices(value: dict[str, object]) -> bool:
    """Whether an object has a reading for each of several devices: numbered keys, of the same several numbers each."""
    if len(value) < 2 or not all(re.search(r"\d", key) for key in value):
        return False
    shapes = {frozenset(_numeric(item)) for item in value.values()}
    return len(shapes) == 1 and len(shapes.pop()) > 1 and all(isinstance(item, dict) for item in value.values())


def _leaves(item: object, keys: Keys) -> Iterator[tuple[Keys, float | str]]:
    if isinstance(item, str):
        yield keys, item
    elif isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item):
        yield keys, float(item)
    elif isinstance(item, dict) and len(keys) < _DEPTH:
        for key, value in [(key, value) for key, value in item.items() if key][:_LEAVES]:
            yield from _leaves(value, (*keys, key))


def _groups(topics: Sequence[_Topic]) -> list[_Group]:
    """Topics of one root, depth, kind and place, objects also of like keys."""
    groups: list[_Group] = []
    places: dict[tuple[str, int, Kind, Keys], list[tuple[set[Keys], _Group]]] = defaultdict(list)
    for topic in topics:
        keys = topic.numeric
        place = places[topic.levels[0], len(topic.levels), topic.kind, topic.place]
        for known, group in place:
            if topic.kind == "number" or len(keys & known) >= _ALIKE * len(keys | known):
                group.topics.append(topic)
                known.update(keys)
                break
        else:
            group = _Group([topic])
            place.append((keys, group))
            groups.append(group)
    return [_named(group) for group in groups]


def _separate(groups: list[_Group]) -> tuple[list[_Group], list[tuple[_Group, _Group]]]:
    """Join groups whose templates overlap; those of another kind are left out, with the group they clash with."""
    kept: list[_Group] = []
    clashing: list[tuple[_Group, _Group]] = []
    waiting = sorted(groups, key=lambda group: len(group.topics))
    while waiting:
        group = waiting.pop()
        other = next((other for other in kept if _overlap(group.names, other.names)), None)
        if other is None:
            kept.append(group)
        elif (other.kind, other.place) == (group.kind, group.place):
            kept.remove(other)
            waiting.append(_named(_Group([*other.topics, *group.topics])))
        else:
            clashing.append((group, other))
    return sorted(kept, key=lambda group: group.template), clashing


def _overlap(one: Sequence[str], two: Sequence[str]) -> bool:
    return len(one) == len(two) and all(a == b or a[:1] == "{" or b[:1] == "{" for a, b in zip(one, two, strict=True))


def _named(group: _Group) -> _Group:
    """Name the levels that vary: {channel}, {device}, and what stands beside them."""
    values = [set(level) for level in zip(*(topic.levels for topic in group.topics), strict=True)]
    varying = [i for i, level in enumerate(values) if len(level) > 1]
    names = list(group.topics[0].levels)
    naming = _naming(group)
    channel = _channel_level(values) if group.kind == "number" and naming is None else None
    wild = [i for i in varying if i != channel]
    guess = _guess(names, channel)
    keys = () if wild else _device_keys(group, naming, lone=not guess)
    if keys or (naming is not None and naming.split):
        return _Group(group.topics, tuple(names), keys, naming)
    wild = wild or guess
    device = max(wild, key=lambda i: (len(values[i]), i), default=None)
    others = [i for i in wild if i != device]
    for i in others:
        names[i] = "{site}" if len(others) == 1 else f"{{level{i + 1}}}"
    if device is not None:
        names[device] = "{device}"
    if channel is not None:
        names[channel] = "{channel}"
    return _Group(group.topics, tuple(names), (), naming)


def _channel_level(values: Sequence[set[str]]) -> int | None:
    """The level that names what is measured: one of known words, else the last that varies in words, else the last.

    None where what varies is numbered, as devices are, where each topic is an entity's state, as Home Assistant
    publishes it, or no level is left for root and device.
    """
    if values[-1] == {"state"}:
        return None

    def known(level: int) -> bool:
        return any(_QUANTITY.search(value) for value in values[level])

    varying = [i for i, level in enumerate(values) if len(level) > 1]
    worded = [i for i in varying if not all(re.search(r"\d", value) for value in values[i])]
    if not worded and varying:
        return None
    places = [i for i in range(1, len(values)) if known(i)] or worded or [len(values) - 1]
    return places[-1] if len(values) > _LEVELS_OF_A_CHANNEL else None


def _texts(group: _Group) -> dict[Keys, list[str]]:
    """The fields that are text in most of the payloads."""
    texts: dict[Keys, list[str]] = defaultdict(list)
    total = 0
    for _, leaves in group.readings():
        total += 1
        for keys, leaf in leaves.items():
            if keys and isinstance(leaf, str):
                texts[keys].append(leaf)
    return {keys: seen for keys, seen in texts.items() if len(seen) >= _MOST * total}


def _device_keys(group: _Group, naming: Naming | None, *, lone: bool) -> Keys:
    """The field of the payloads that names devices: named so, or a tag, of several values; `lone`: or surely named so."""
    texts = _texts(group)
    found = [
        keys
        for keys, seen in texts.items()
        if (_DEVICE_NAME.match(keys[-1]) or (group.kind == "influx" and keys[0] == "tags"))
        and (1 < len(set(seen)) < len(seen) or (lone and len(set(seen)) == 1 and _SURELY_A_DEVICE.match(keys[-1])))
        and (naming is None or (not _UNIT_NAME.match(keys[-1]) and _has_several(group, naming.path, keys)))
    ]
    return min(
        found, key=lambda keys: (not _DEVICE_NAME.match(keys[-1]), len(keys), -len(set(texts[keys])), keys), default=()
    )


def _naming(group: _Group) -> Naming | None:
    """Where entries of one number each name what it is: in a field that has several names for one device.

    None where these are numbered, as devices are, and nothing else tells devices.
    """
    value = _lone_value(group)
    texts = _texts(group) if value is not None else {}
    ranks = {keys: found.lastindex or 0 for keys in texts if (found := _CHANNEL_NAME.match(keys[-1]))}
    fields = [keys for keys in texts if _DEVICE_NAME.match(keys[-1]) and not _UNIT_NAME.match(keys[-1])]
    for keys in sorted(ranks, key=lambda keys: (ranks[keys], len(keys), keys)):
        if value is None or not _has_several(group, keys):
            continue
        others = [other for other in fields if other != keys and len(set(texts[other])) > 1]
        lone = [other for other in fields if other != keys and _SURELY_A_DEVICE.match(other[-1])]
        if len(group.topics) > 1 or any(_has_several(group, keys, other) for other in others + lone):
            return Naming(keys, value)
        if not all(_CHANNEL_NAME.match(other[-1]) for other in others):
            continue  # a name for each device
        names = set(texts[keys])
        split = _separator(names)
        if split or any(map(_QUANTITY.search, names)) or not all(re.search(r"\d", name) for name in names):
            return Naming(keys, value, split)
    return None


def _has_several(group: _Group, names: Keys, device: Keys = ()) -> bool:
    """Whether a device, by its topic and a field, has several names."""
    seen: dict[tuple[tuple[str, ...], object], set[object]] = defaultdict(set)
    for topic in group.topics:
        for _, leaves in topic.readings:
            seen[topic.levels, leaves.get(device)].add(leaves.get(names))
    return any(len(found - {None}) > 1 for found in seen.values())


def _lone_value(group: _Group) -> Keys | None:
    """The field of the only number, under a name that does not say of what, and in half of the entries at least."""
    if group.kind not in ("object", "number", "cbor"):
        return None
    times, _ = _times(group)
    numbers = {keys: seen for keys, seen in _values(group).items() if keys not in times}
    named = [keys for keys in numbers if keys and all(map(_VALUE_NAME.match, keys))]
    value = max(named, key=lambda keys: len(numbers[keys]), default=None)
    if value is None or 2 * len(numbers[value]) < sum(1 for _ in group.readings()):
        return None
    varying = (keys for keys, seen in numbers.items() if keys != value and len(set(seen)) > 1)
    return value if all(_BESIDE_VALUE.match(keys[-1]) or _counts(group, keys) for keys in varying) else None


def _separator(names: set[str]) -> str:
    """What parts each name into a device and a channel's word; empty: nothing does."""
    for sign in _SEPARATORS:
        parts = [name.rpartition(sign) for name in names]
        if all(device and re.fullmatch(r"\w[\w -]*", word) and not word.isdigit() for device, _, word in parts):
            return sign
    return ""


def _split_hints(group: _Group, naming: Naming) -> Iterator[str]:
    """How names could be split, where what stands in front of words that come again may be devices."""
    names = set(_texts(group)[naming.path])
    sign = _separator(names)
    parts = [name.rpartition(sign) for name in names] if sign and not naming.split else []
    if sum(count > 1 for count in Counter(word for _, _, word in parts).values()) > 1:
        fronts = sorted({front for front, _, _ in parts})
        shown = ", ".join(fronts[:2]) + (" and so on" if len(fronts) > 2 else "")
        yield _comment(f"if {shown} are devices: {_channel_line(replace(naming, split=sign))}")


def _split(group: _Group) -> list[Keys]:
    """Tags of Influx lines that one device has several values of."""
    seen: dict[Keys, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for _, leaves in group.readings():
        for keys, leaf in leaves.items():
            if group.kind == "influx" and keys[:1] == ("tags",) and keys != group.device:
                seen[keys][str(leaves.get(group.device))].add(str(leaf))
    return sorted(keys for keys, by_device in seen.items() if max(map(len, by_device.values())) > 1)


def _guess(names: Sequence[str], channel: int | None) -> list[int]:
    """The level that is the device where none varies; never the first: a lone level is left as it is.

    It is the last with a number in it, else the last before its channel or a word such as "telemetry".
    """
    places = [i for i in range(1, len(names)) if i != channel]
    numbered = [i for i in places if re.search(r"\d", names[i])]
    return numbered[-1:] or places[-2 if channel is None else -1 :][:1]


def _name(group: _Group, taken: set[str]) -> str:
    """A profile name: the stem that the devices' names share, else the template's words."""
    stems = {re.sub(r"[\W\d_]+$", "", re.split(r"\d", device.split("/")[-1])[0]) for device in group.devices()}
    fixed = [name for name in group.names if name[:1] != "{"]
    stem = stems.pop() if len(stems) == 1 else ""
    base = stem if len(stem) > 2 else (fixed[0] if fixed else "devices")  # shorter says nothing
    return _unused(_slug(base) or "devices", taken)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _unused(base: str, taken: set[str]) -> str:
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


@dataclass(slots=True)
class _Plant:
    """One group of Sparkplug's: one profile.

    Attributes:
        units: of the channels, in the order in which births named them.
        apart: whether one message held metrics of several times.
        unborn: whether some data had aliases that no birth explained.
    """

    group: str
    devices: set[str]
    units: dict[str, str]
    apart: bool = False
    unborn: bool = False


def _plants(samples: Sequence[Message]) -> list[_Plant]:
    """Groups of Sparkplug nodes with numbers, by name."""
    plants: dict[str, _Plant] = {}
    born: set[str] = set()
    for message in sorted(samples, key=lambda sample: sample.received):
        try:
            place = parse_topic(message.topic)
            payload = read_payload(message)
        except (ValueError, Malformed):
            continue
        if place is None or place.verb[1:] == "DEATH" or {"{", "}"} & set(place.node):
            continue
        group = place.node.split("/")[0]
        plant = plants.setdefault(group, _Plant(group, set(), {}))
        birth = place.verb[1:] == "BIRTH"
        born |= {place.device} if birth else set()
        plant.apart |= not birth and len({metric.time for metric in payload.metrics}) > 1
        for metric in payload.metrics:
            if is_control(metric.name) or (metric.kind and metric.kind not in NUMBERS):
                continue
            if not metric.name or not fits(metric, metric.kind, sure=birth):
                plant.unborn |= place.device not in born
            elif not metric.field or number(metric, metric.kind) is not None:
                plant.units[metric.name] = plant.units.get(metric.name) or unit(metric)
            plant.devices.add(place.device)
    return [plants[group] for group in sorted(plants) if plants[group].devices]


def _plant_section(plant: _Plant, name: str) -> list[str]:
    many = plural(len(plant.devices), "device")
    lines = [
        _comment(f"{many}, such as {min(plant.devices)}"),
        f"[profiles.{name}]",
        f"topic = {_quote(f'{NAMESPACE}/{plant.group}/#')}",
        'format = "sparkplug"',
        "# a reading's time is the one that it carries",
    ]
    if plant.apart:
        lines.append('align_window = "1s"  # metrics of one message have times of their own')
    if plant.unborn:
        lines.append("# some data name aliases whose birth was not seen; [mqtt] rebirth = true would ask for it")
    if plant.unborn or not plant.units:
        return [*lines, 'channels = "auto"']
    listed = [f"{{ name = {_quote(key)}{f', unit = {_quote(of)}' if of else ''} }}," for key, of in plant.units.items()]
    over = [f"  # {line}  # over {_MAX_CHANNELS} channels" for line in listed[_MAX_CHANNELS:]]
    return [*lines, "channels = [", *(f"  {line}" for line in listed[:_MAX_CHANNELS]), *over, "]"]


def _section(group: _Group, name: str) -> list[str]:
    devices = group.devices()
    named = group.device or group.keyed or (group.naming is not None and group.naming.split)
    example = min(devices) if named else "/".join(group.topics[0].levels)
    lines = [
        _comment(f"{plural(len(devices), 'device')}, such as {example}"),
        f"[profiles.{name}]",
        f"topic = {_quote(group.template)}",
    ]
    if group.place:
        lines.append(f"readings = {{ path = {_path(group.place)} }}")
    if group.kind not in ("object", "number"):
        lines.append(f"format = {_quote(group.kind)}")
    if group.device:
        lines.append(f"device = {{ path = {_path(group.device)} }}")
        lines += [_comment(f"of one device there are several {'.'.join(keys)}: taken as one") for keys in _split(group)]
    if group.naming is not None:
        lines.append(_channel_line(group.naming))
        lines += _split_hints(group, group.naming)
    times, units = _times(group)
    if group.kind == "senml" or (group.kind == "influx" and times and units[times[0]] == "ns"):
        lines.append("# a reading's time is the one that it carries")
    elif times:
        lines.append(f"time = {{ path = {_path(times[0])}, unit = {_quote(units[times[0]])} }}")
        moments = [_moment(leaves.get(times[0])) for _, leaves in group.readings()]
        if any(moment is not None and moment.tzinfo is None for moment in moments):
            lines.append("# its times name no zone, and are taken for UTC")
        lines += [_comment(f"also a time: {'.'.join(keys)}") for keys in times[1:]]
    else:
        lines.append("# no event time in the payload: a reading's time is when it is received")
    if group.naming is not None:
        return [*lines, _seen(_named_channels(group, group.naming)), 'channels = "auto"']
    if group.kind == "number" and "{channel}" not in group.names:
        return [*lines, 'channels = "auto"']
    if group.kind == "number":
        at = group.names.index("{channel}")
        return [*lines, _seen({topic.levels[at] for topic in group.topics}), 'channels = "auto"']
    return [*lines, *_channels(group, times)]


def _channel_line(naming: Naming) -> str:
    value = "" if naming.value == ("value",) else f", value = {_path(naming.value)}"
    split = f", split = {_quote(naming.split)}" if naming.split else ""
    return f"channel = {{ path = {_path(naming.path)}{value}{split} }}"


def _seen(channels: set[str]) -> str:
    shown = ", ".join(sorted(channels)[:20]) + (" …" if len(channels) > 20 else "")
    return _comment(f"{len(channels)} seen: {shown}")


def _named_channels(group: _Group, naming: Naming) -> set[str]:
    """Channels that entries name, with the unit that the latest of each says."""
    found: dict[str, str] = {}
    for _, leaves in group.readings():
        name = leaves.get(naming.path)
        if isinstance(name, str) and isinstance(leaves.get(naming.value), float):
            channel = name.rpartition(naming.split)[2] if naming.split else name
            unit = next((leaf for keys, leaf in leaves.items() if keys and _UNIT_NAME.match(keys[-1])), "")
            found[channel] = f"{channel} ({unit})" if unit else channel
    return set(found.values())


def _channels(group: _Group, times: Iterable[Keys]) -> list[str]:
    values = _values(group)
    lines, taken, count = ["channels = ["], set[str](), 0
    for keys, seen in values.items():
        if keys in times:
            continue
        naming = (f"column_{keys[0]}",) if group.kind == "csv" else keys
        name = next(name for name in _channel_names(naming) if name not in taken)
        taken.add(name)
        line = f"{{ name = {_quote(name)}, path = {_path(keys)} }},"
        if why := _no_channel(group, keys):
            lines.append(f"  # {line}  # {why}")
        elif count == _MAX_CHANNELS:
            lines.append(f"  # {line}  # over {_MAX_CHANNELS} channels")
        else:
            count += 1
            constant = len(seen) > 1 and len(set(seen)) == 1
            lines.append(f"  {line}" + ("  # constant while watched" if constant else ""))
    return [*lines, "]"]


def _values(group: _Group) -> dict[Keys, list[float]]:
    values: dict[Keys, list[float]] = defaultdict(list)
    for _, leaves in group.readings():
        for keys, leaf in leaves.items():
            if isinstance(leaf, float) and not (group.kind == "influx" and keys == ("time",)):
                values[keys].append(leaf)
    return values


def _channel_keys(group: _Group) -> list[Keys]:
    """What is left as channels without times and counters."""
    if group.naming is not None:
        return [group.naming.value]
    times, _ = _times(group)
    return [keys for keys in _values(group) if keys not in times and not _no_channel(group, keys)]


def _channel_names(keys: Keys) -> Iterator[str]:
    """The shortest end of the path that says something, then ever longer ones."""
    words = [re.sub(r"\W+", "_", key) or "_" for key in keys if key not in ("value", "val", "v")] or ["value"]
    terse = len(words[-1]) <= _TERSE and not _QUANTITY.search(words[-1])
    for length in range(min(1 + terse, len(words)), len(words) + 1):
        yield "_".join(words[-length:])
    yield from (f"{'_'.join(words)}_{number}" for number in range(2, 1 << 20))


def _no_channel(group: _Group, keys: Keys) -> str:
    """Why a number is left out of the channels; empty: it is one."""
    if _counts(group, keys):
        return "a counter"
    return "a position: where it will be is not in where it was" if keys and _POSITION_NAME.match(keys[-1]) else ""


def _counts(group: _Group, keys: Keys) -> bool:
    """Whether a field is a message counter: named like one, or rising by one with each message."""
    if not keys or keys == ("value",):
        return False
    if _COUNTER_NAME.match(keys[-1]):
        return True
    steps: Counter[float] = Counter()
    for topic in group.topics:
        run = [leaf for _, leaves in topic.readings if isinstance(leaf := leaves.get(keys), float)]
        steps.update(b - a for a, b in pairwise(run))
    total = steps.total()
    return total >= 5 and steps[1.0] >= _MOST * total  # fewer may be chance


def _times(group: _Group) -> tuple[list[Keys], dict[Keys, Unit]]:
    """Fields that hold an event time, the best first, and their units."""
    votes: dict[Keys, Counter[Unit]] = defaultdict(Counter)
    total = 0
    for received, leaves in group.readings():
        total += 1
        for keys, leaf in leaves.items():
            unit = _unit(keys, leaf, received) if keys not in ((), ("value",), ("*",)) else None
            if unit is not None:
                votes[keys][unit] += 1
    tops = {keys: vote.most_common(1)[0] for keys, vote in votes.items()}
    units = {keys: unit for keys, (unit, count) in tops.items() if count >= _MOST * total}
    return sorted(units, key=lambda keys: (not _TIME_NAME.search(keys[-1]), len(keys), keys[-1])), units


def _unit(keys: Keys, leaf: float | str, received: float) -> Unit | None:
    if isinstance(leaf, str):
        moment = _moment(leaf)
        if moment is None:
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return "iso8601" if abs(moment.timestamp() - received) < _DECADE else None
    near = _DECADE if _TIME_NAME.search(keys[-1]) else _HOUR
    return next((unit for unit, scale in _SCALES.items() if abs(leaf / scale - received) < near), None)


def _moment(leaf: float | str | None) -> datetime | None:
    """The moment that a text of ISO 8601 means; None: it is none."""
    try:
        return datetime.fromisoformat(leaf) if isinstance(leaf, str) else None
    except ValueError:
        return None


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return orjson.dumps(text).decode().replace("\x7f", "\\u007f")


def _path(keys: Keys) -> str:
    if all("." not in key and key for key in keys):
        return _quote(".".join(keys))
    return "[" + ", ".join(map(_quote, keys)) + "]"


def _comment(text: str) -> str:
    return "# " + "".join(c if c.isprintable() else "?" for c in text)
