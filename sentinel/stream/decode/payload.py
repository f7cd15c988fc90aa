"""Payload bytes to Python values: JSON, checked for what orjson lets pass; event times."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson

from sentinel.records import EventTime, Fate, Message
from sentinel.stream.decode.words import Words, dotted, kind, say, unlike

MAX_PAYLOAD = 1 << 20  # bytes
MAX_READINGS = 1000  # in one message
MAX_VALUES = 1 << 17  # in one message, with their keys: of so many readings 64 channels each
LARGEST = 1e30  # in any unit; a larger number is no measurement
EARLIEST, LATEST = 1e8, 1e11  # seconds since the epoch, 1973 and 5138; a time before is one read in a wrong unit
_LEAVES = frozenset({str, int, float, bool, type(None)})
_THIS_CENTURY = 4102444800.0  # seconds since the epoch, its end
_DAY = 86400.0
_ISO = "an ISO 8601 time"
_KEY = re.compile(rb'"\s*:')
TO_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class Malformed(Exception):
    """Carries the fate of a payload out of its decoder, no further."""

    def __init__(self, fate: Fate, words: Words) -> None:
        super().__init__(fate)
        self.fate, self.words = fate, words

    def __str__(self) -> str:
        return say(self.words)


@dataclass(slots=True)
class Record:
    """One reading of a format that itself says more than values.

    Attributes:
        values: where the channels' paths lead.
        about: where the paths of device and time lead.
        time: event time, s; None: it carries none.
    """

    values: dict[str, Any]
    about: dict[str, Any]
    time: float | None = None


def sized(payload: bytes, separators: bytes = b"") -> bytes:
    """The payload. Raises Malformed: too large, or, going by the bytes that stand before values, of too many of them."""
    if len(payload) > MAX_PAYLOAD:
        raise Malformed(Fate.TOO_LARGE, f"{len(payload)} bytes, over {MAX_PAYLOAD}")
    if len(payload) > MAX_VALUES and sum(map(payload.count, separators)) > MAX_VALUES:
        raise Malformed(Fate.TOO_LARGE, f"over {MAX_VALUES} values")
    return payload


def load(message: Message) -> Any:
    """The JSON value of a payload.

    Raises:
        Malformed: too large, of too many values, not UTF-8, not JSON, nested too deep, or with a key twice in one object.
    """
    payload = message.payload
    if len(payload) > MAX_VALUES:
        sized(payload, b",[{")
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        if (
            "out of range" in str(error)
            or "infin" in str(error)
            or b"NaN" in payload
            or b"Infinity" in payload
            or b" nan" in payload
            or payload in {b"nan", b"inf", b"-inf"}
        ):
            raise Malformed(Fate.BAD_VALUE, "NaN or Infinity is not JSON; leave the key out or send null") from None
        raise Malformed(Fate.BAD_SYNTAX, str(error)) from None
    # Each key is followed by a colon. More of them than keys: some stand in strings, or a key came twice.
    if type(value) is dict or type(value) is list:
        colons = payload.count(b":")
        if colons != len(value) or type(value) is list:
            keys = _keys(value)
            if colons != keys and len(_KEY.findall(payload)) != keys:
                _refuse_repeated_keys(payload)
    return value


def _keys(value: Any) -> int:
    """How many keys all objects in a value have."""
    count, within = 0, [value]
    while within:
        node = within.pop()
        if type(node) is dict:
            count += len(node)
            node = node.values()
        if not _LEAVES.issuperset(map(type, node)):
            within += [item for item in node if type(item) is dict or type(item) is list]
    return count


def _refuse_repeated_keys(payload: bytes) -> None:
    def pairs(items: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in items}) != len(items):
            raise Malformed(Fate.BAD_SYNTAX, "a key twice in one object")

    try:
        json.loads(payload, object_pairs_hook=pairs)
    except ValueError as error:
        raise Malformed(Fate.BAD_SYNTAX, str(error)) from None
    except RecursionError:
        raise Malformed(Fate.BAD_SYNTAX, "nested too deep") from None


def follow(value: Any, path: Sequence[str]) -> Any:
    """What lies at a path of keys (or indexes into arrays); None where there is nothing."""
    for key in path:
        if type(value) is dict:
            value = value.get(key)
        elif type(value) is list and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def seconds(value: Any, time: EventTime, received: float, within: Any, around: Any = None) -> float:
    """Event time in seconds since the epoch.

    Args:
        value: what lies at the time's path; None: nothing.
        received: receive time. A number that is of the 1970s, but of that day in another unit, is in that unit.
        within, around: where it was looked for, to say what is there instead.

    Raises:
        Malformed: not a time in that unit, or out of range (1970 to 5138).
    """
    if time.unit == "iso8601":
        if type(value) is not str:
            raise Malformed(Fate.BAD_TIME, partial(unlike, "time", time.path, value, _ISO, within, around))
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise Malformed(Fate.BAD_TIME, partial(unlike, "time", time.path, value, _ISO)) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        out = moment.timestamp()
    elif type(value) is float or type(value) is int:
        out = value * TO_SECONDS[time.unit]
    else:
        wanted = f"a number of {time.unit}"
        raise Malformed(Fate.BAD_TIME, partial(unlike, "time", time.path, value, wanted, within, around))
    if not EARLIEST <= out <= LATEST and (
        not math.isfinite(out) or not 0.0 <= out <= LATEST or _is_in_another_unit(value, time, received)
    ):
        raise Malformed(Fate.BAD_TIME, partial(_out_of_range, value, time))
    return out


def _is_in_another_unit(value: Any, time: EventTime, received: float) -> bool:
    known = received > EARLIEST and time.unit != "iso8601"
    return known and any(abs(value * factor - received) < _DAY for factor in TO_SECONDS.values())


def _out_of_range(value: Any, time: EventTime) -> str:
    said = f"{kind(value)} at time path {dotted(time.path)} is out of range in {time.unit}"
    for unit, factor in TO_SECONDS.items():
        if time.unit != "iso8601" and EARLIEST <= value * factor <= _THIS_CENTURY:
            said += f"; in {unit} it would be {datetime.fromtimestamp(value * factor, UTC):%Y-%m-%d %H:%M}"
    return said


def event_time(value: Any, time: EventTime | None, received: float) -> float | None:
    """Event time of a decoded object; None: the profile uses receive time.

    Raises:
        Malformed: it should carry one and does not.
    """
    return None if time is None else seconds(follow(value, time.path), time, received, value)


def leaves(value: Any, skip: tuple[str, ...], depth: int = 5) -> list[tuple[str, float]]:
    """The numeric leaves of an object as (name joined by ".", number), but for the path `skip`."""
    out: list[tuple[str, float]] = []

    def walk(node: dict[str, Any], at: tuple[str, ...]) -> None:
        for key, child in node.items():
            here = (*at, key)
            if here == skip:
                continue
            if type(child) is float or type(child) is int:
                out.append((".".join(here), child))
            elif type(child) is dict and len(here) < depth:
                walk(child, here)

    walk(value, ())
    return out
