"""Durations, budgets, sizes, topics and broker addresses: text in the configuration, numbers outside it.

Every `parse_…` raises ValueError whose text says what is allowed. Every `show_…` gives text that parses back
to the same number (a budget that is no whole number per period: to 1e-12 of it).
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from sentinel.records import Maintenance

DURATION = 'a duration such as "500ms", "5m", "1h30m", "2d", or a number of seconds'
MOMENT = 'a duration back from now such as "7d" or "12h", or a time such as "2026-05-01T12:00" (UTC unless it says so)'
BUDGET = 'a number of alerts per device and time such as "1/week", "2/day", "1/month", "3/hour"'
TOPIC = 'a topic template such as "plant/{device}/telemetry"'
TIMEZONE = 'the name of a time zone such as "Europe/Berlin"'
MAINTENANCE = 'a time such as "sat 02:00-04:00", "mon-fri 22:00-06:00" or "2026-12-24T18:00/2026-12-27T06:00"'
SIZE = 'a size such as "500MB", "4GiB", or a number of bytes'

_SECONDS = {
    "w": Fraction(604800),
    "d": Fraction(86400),
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
}
_PERIODS = {
    "week": 604800.0,
    "day": 86400.0,
    "month": 30 * 86400.0,
    "hour": 3600.0,
    "year": 365 * 86400.0,
    "minute": 60.0,
}
_BYTES = {
    "TiB": 1 << 40,
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "B": 1,
}
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = rf"(?:{'|'.join(_DAYS)})"
_CLOCK = r"([01]\d|2[0-3]):([0-5]\d)"
_WEEKLY = re.compile(rf"(daily|{_DAY}(?:[-,]{_DAY})*) {_CLOCK}-(?:{_CLOCK}|24:00)")
_NUMBER = r"\d+(?:\.\d+)?"
LONGEST = 400  # characters of a number with its unit
LARGEST_SIZE = 2**63
LARGEST = 2**53  # beyond it a float holds no longer every whole number
_PART = re.compile(rf"\s*({_NUMBER})\s*(ms|[wdhms])\s*")
_WILDCARD = re.compile(r"\{([^{}]*)\}")


def parse_duration(value: object) -> float:
    """Seconds, >= 0, from a number of seconds or text such as "1h30m" (w, d, h, m, s, ms)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST:
        return float(value)
    if isinstance(value, str) and len(value) <= LONGEST:
        text, seconds = value.strip(), math.inf
        if re.fullmatch(_NUMBER, text):
            seconds = float(text)
        elif text and re.fullmatch(rf"(?:{_PART.pattern})+", text):
            seconds = float(sum(Fraction(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))
        if seconds <= LARGEST:
            return seconds
    raise ValueError(f"must be {DURATION}")


def parse_positive_duration(value: object) -> float:
    """As `parse_duration`, and more than zero."""
    seconds = parse_duration(value)
    if seconds == 0:
        raise ValueError(f"must be more than zero, {DURATION}")
    return seconds


def parse_moment(value: str, now: float) -> float:
    """Seconds since the epoch, from a time, or a duration before `now`, with its unit: 20260501 is a day."""
    try:
        return now - parse_positive_duration("" if value.strip().isdecimal() else value)
    except ValueError:
        try:
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise ValueError(f"must be {MOMENT}") from None


def show_duration(seconds: float) -> str:
    """Text for so many seconds."""
    rest = Fraction(seconds)
    if (rest * 1000).denominator != 1:
        return f"{Decimal(repr(seconds)):f}s"
    text = ""
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, _SECONDS[unit])
        if count:
            text += f"{count}{unit}"
    return text or "0s"


def parse_budget(value: object) -> float:
    """Alerts per second from text such as "1/week"; a month is 30 days, a year 365."""
    units = "|".join(_PERIODS)
    text = value if isinstance(value, str) and len(value) <= LONGEST else ""
    found = re.fullmatch(rf"\s*({_NUMBER})\s*/\s*({units})\s*", text)
    if found is None or not 0 < float(found[1]) <= LARGEST:
        raise ValueError(f"must be {BUDGET}")
    return float(found[1]) / _PERIODS[found[2]]


def show_budget(rate: float) -> str:
    """Text for so many alerts per second."""
    counts = {unit: round(rate * seconds) for unit, seconds in _PERIODS.items()}
    exact = {unit: count for unit, count in counts.items() if count and count / _PERIODS[unit] == rate}
    if exact:
        unit = min(exact, key=exact.__getitem__)
        return f"{exact[unit]}/{unit}"
    return f"{Decimal(repr(rate * _PERIODS['week'])):f}/week"


def parse_size(value: object) -> int:
    """Bytes, > 0, from a number of bytes or text such as "4GiB"."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST_SIZE:
        return value
    if isinstance(value, str) and len(value) <= LONGEST:
        found = re.fullmatch(rf"\s*({_NUMBER})\s*({'|'.join(_BYTES)})?\s*", value)
        if found and 0 < (size := round(Fraction(found[1]) * _BYTES[found[2] or "B"])) < LARGEST_SIZE:
            return size
    raise ValueError(f"must be {SIZE}")


def show_size(size: int) -> str:
    """Text for so many bytes."""
    unit = next(unit for unit, factor in _BYTES.items() if size % factor == 0)
    return f"{size // _BYTES[unit]}{unit}"


def parse_timezone(value: object) -> str:
    """The IANA name of a time zone."""
    try:
        if isinstance(value, str):
            return ZoneInfo(value).key
    except (KeyError, ValueError, OSError):
        pass
    raise ValueError(f"must be {TIMEZONE}")


def parse_maintenance(value: object, timezone: str = "UTC") -> Maintenance:
    """A weekly time such as "sat 02:00-04:00", over midnight where it ends before it begins, or a time from / to."""
    if isinstance(value, str) and (found := _WEEKLY.fullmatch(value)):
        days, *clock = found.groups()
        begin, end = (int(hours or 24) * 3600.0 + int(minutes or 0) * 60.0 for hours, minutes in (clock[:2], clock[2:]))
        return Maintenance(_days(days), begin, end)
    if isinstance(value, str) and value.count("/") == 1:
        try:
            moments = [datetime.fromisoformat(part) for part in value.split("/")]
        except ValueError:
            moments = []
        times = [(m if m.tzinfo else m.replace(tzinfo=ZoneInfo(timezone))).timestamp() for m in moments]
        if times and times[0] < times[1]:
            return Maintenance((), *times)
        if times:
            raise ValueError("must end after it begins")
    raise ValueError(f"must be {MAINTENANCE}")


def _days(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in ("mon-sun" if text == "daily" else text).split(","):
        first, *_, last = [_DAYS.index(day) for day in part.split("-")] * 2
        found |= {day % 7 for day in range(first, last + 1 + 7 * (last < first))}
    return tuple(sorted(found))


def wildcards(template: str) -> tuple[str, ...]:
    """Names of a topic template's wildcards, in order."""
    return tuple(_WILDCARD.findall(template))


def topic_filter(template: str) -> str:
    """The MQTT topic filter that a template subscribes to."""
    return _WILDCARD.sub("+", template)


def is_sparkplug(template: str) -> bool:
    """Whether it takes in all topics of the Sparkplug nodes that it is about: spBv1.0/#, or by group, or by edge node."""
    levels = template.split("/")
    verbs = levels[2:3] in ([], ["#"], ["+"])
    return levels[0] == "spBv1.0" and levels[-1] == "#" and 2 <= len(levels) <= 5 and verbs and "{" not in template


def parse_topic(value: object) -> str:
    """A topic template as it is: named wildcards, one whole level each, or a plain MQTT filter without names."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be {TOPIC}")
    if "\0" in value or len(value.encode()) > 65535:
        raise ValueError("must not hold a null character nor be longer than 65535 bytes")
    if value.startswith("$share/"):
        raise ValueError("must not be a shared subscription: a device's readings must all come here, in order")
    levels, names = value.split("/"), wildcards(value)
    for level in levels:
        if names and ("+" in level or "#" in level):
            raise ValueError(
                f'must not mix named wildcards with "{level}": name that level, for example {{area}}, or name none'
            )
        if ("+" in level or "#" in level) and len(level) > 1:
            raise ValueError(f'must not have a wildcard in a part of a level ("{level}")')
        if ("{" in level or "}" in level) and not _WILDCARD.fullmatch(level):
            raise ValueError(f'must not have a wildcard in a part of a level ("{level}"): a name stands for all of it')
    if "#" in levels[:-1]:
        raise ValueError('must have "#" as its last level only')
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(f'must name each wildcard with letters, digits and "_" ("{{{name}}}")')
        if names.count(name) > 1:
            raise ValueError(f'must not use the wildcard "{{{name}}}" twice')
    return value


def filters_overlap(one: str, other: str) -> bool:
    """Whether some topic matches both MQTT filters. A leading wildcard never matches a topic that begins with "$"."""
    a, b = one.split("/"), other.split("/")
    if any(x in {"+", "#"} and y.startswith("$") for x, y in ((a[0], b[0]), (b[0], a[0]))):
        return False
    for x, y in zip(a, b, strict=False):
        if "#" in (x, y):
            return True
        if x != y and "+" not in (x, y):
            return False
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return longer[len(shorter) :] in ([], ["#"])


def parse_broker(url: str) -> dict[str, object]:
    """Keys of `[mqtt]` from mqtt://[user@]host[:port], mqtts:// for TLS, or host[:port]."""
    allowed = "must be a broker's address such as mqtt://host:1883, or mqtts://host:8883 for TLS"
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(allowed)
    if parts.password is not None:
        raise ValueError(
            "must not hold a password, which other users of the machine could read: "
            "give --password-file, a file that holds it"
        )
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(allowed) from error
    options: dict[str, object] = {"host": parts.hostname, "port": port or (8883 if parts.scheme == "mqtts" else 1883)}
    if parts.username:
        options["username"] = parts.username
    if parts.scheme == "mqtts":
        options["tls"] = {}
    return options
